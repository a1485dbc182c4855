"""RoI heads: proposals -> classes, boxes and masks, or their three losses.

Shapes: N images, P proposals of one image, K RoIs over all images, D detections, C classes with
background, M = 28 mask cells a side.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from backbone import ConvNorm, norm_layer
from network_files import matching
from network_files.config import MaskRCNNConfig
from network_files.loss_portions import loss_in_portions
from network_files.losses import box_losses, mask_loss
from network_files.operators.boxes import BoxCoder, at_least, clip_boxes
from network_files.operators.instance_masks import mask_targets
from network_files.operators.nms import batched_nms
from network_files.operators.roi_align import FeatureTable, roi_align, roi_levels
from network_files.recorder import SILENT, Observer, Stage
from network_files.shared import Part, Shared, number
from network_files.transform import ImageBatch, Objects

STRIDES = (4, 8, 16, 32)  # of the levels that RoIs are pooled from
MASKS_AT_ONCE = 32  # RoIs in the mask branch
MIN_SIDE = 1e-2  # pixels; smaller detections are dropped (torchvision)


Norm = Callable[[int], nn.Module]


def conv3x3(c_in: int, c_out: int, norm: Norm | None) -> ConvNorm:
    """Returns a 3x3 convolution with its norm, if any, made for a ReLU behind it."""
    conv = ConvNorm(c_in, c_out, 3, norm)
    nn.init.kaiming_normal_(conv[0].weight, mode="fan_out", nonlinearity="relu")
    return conv


class TwoMLPHead(nn.Module):
    """v1's box head: two fully connected layers, [K, c, S, S] -> [K, width]."""

    def __init__(self, channels: int, roi_size: int, width: int, dropout: float) -> None:
        super().__init__()
        self.fc6 = nn.Linear(channels * roi_size**2, width)
        self.fc7 = nn.Linear(width, width)
        self.dropout = dropout

    def forward(self, x: Tensor) -> Tensor:
        """Runs the layers."""
        for layer in (self.fc6, self.fc7):
            x = F.dropout(F.relu(layer(x.flatten(1))), self.dropout, self.training)
        return x


class ConvFCHead(nn.Sequential):
    """v2's box head: normalised 3x3 convolutions and a fully connected layer, [K, c, S, S] -> [K, width]."""

    def __init__(self, channels: int, roi_size: int, width: int, convs: int, norm: Norm, dropout: float) -> None:
        super().__init__(
            *(conv3x3(channels, channels, norm) for _ in range(convs)),
            nn.Flatten(),
            nn.Linear(channels * roi_size**2, width),  # in torchvision's places, for its names
        )
        self.dropout = dropout

    def forward(self, x: Tensor) -> Tensor:
        """Runs the layers."""
        *convs, flatten, linear = self
        for conv in convs:
            x = F.relu(conv(x), inplace=True)
        return F.dropout(F.relu(linear(flatten(x))), self.dropout, self.training)


class BoxPredictor(nn.Module):
    """[K, width] -> class logits [K, C] and deltas [K, 4 C]."""

    def __init__(self, width: int, num_classes: int) -> None:
        super().__init__()
        self.cls_score = nn.Linear(width, num_classes)
        self.bbox_pred = nn.Linear(width, num_classes * 4)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Returns class logits and deltas."""
        return self.cls_score(x), self.bbox_pred(x)


class MaskHead(nn.Sequential):
    """3x3 convolutions, [K, c, 14, 14] -> [K, width, 14, 14]."""

    def __init__(self, channels: int, width: int, layers: int, norm: Norm | None, dropout: float) -> None:
        super().__init__(*(conv3x3(channels if i == 0 else width, width, norm) for i in range(layers)))
        self.dropout = dropout

    def forward(self, x: Tensor) -> Tensor:
        """Runs the layers."""
        for block in self:
            x = F.dropout(F.relu(block(x), inplace=True), self.dropout, self.training)
        return x


class MaskPredictor(nn.Module):
    """Twice the resolution, then a mask logit for the class of each RoI."""

    def __init__(self, channels: int, num_classes: int) -> None:
        super().__init__()
        self.conv5_mask = nn.ConvTranspose2d(channels, channels, 2, 2)
        self.mask_fcn_logits = nn.Conv2d(channels, num_classes, 1)
        for layer in (self.conv5_mask, self.mask_fcn_logits):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor, labels: Tensor) -> Tensor:
        """Returns logits [K, 28, 28] of each RoI's own class, labels [K], and of no other, from [K, c, 14, 14]."""
        x = F.relu(self.conv5_mask(x), inplace=True)  # [K, c, 28, 28]
        # permuted to its order in memory: its gradient then comes in that order too
        weight = self.mask_fcn_logits.weight.permute(0, 2, 3, 1)[labels, 0, 0]  # [K, c]
        own = torch.einsum("kcyx,kc->kyx", x, weight.to(x.dtype))
        return own + self.mask_fcn_logits.bias[labels, None, None].to(x.dtype)


@dataclass
class Samples:
    """The RoIs that train, S_i of image i: rois [S_i, 4], labels and matched int64 [S_i], per image."""

    rois: list[Tensor]  # boxes in the resized image
    labels: list[Tensor]  # 0 = background
    matched: list[Tensor]  # the object that each RoI stands for; 0 where it is background

    def positives(self) -> "Samples":
        """Returns those that stand for an object."""
        positive = [(label > 0).nonzero()[:, 0] for label in self.labels]
        return Samples(*([t[p] for t, p in zip(ts, positive, strict=True)] for ts in vars(self).values()))


def batch_index_of(boxes: list[Tensor]) -> Tensor:
    """Returns the image of each box, int64 [sum P_i], of boxes [P_i, 4] per image."""
    counts = torch.tensor([len(b) for b in boxes], device=boxes[0].device)
    return torch.repeat_interleave(counts, output_size=sum(map(len, boxes)))


def classes_of(predictor: nn.Module, width: int) -> int:
    """Returns how many classes a box predictor tells apart, background included, of features [K, width].

    Raises ValueError for a module of another contract.
    """
    layer = getattr(predictor, "cls_score", None)
    if isinstance(layer, nn.Linear):
        return layer.out_features
    first = next(predictor.parameters(), torch.zeros(()))
    training = predictor.training
    try:
        with torch.no_grad():
            logits, deltas = predictor.eval()(first.new_zeros(2, width))
        classes = logits.shape[1]
        if logits.shape != (2, classes) or deltas.shape != (2, 4 * classes):
            raise ValueError(f"it gives {list(logits.shape)} and {list(deltas.shape)}")
    except (ValueError, TypeError, RuntimeError) as error:
        what = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(f"roi_heads.box_predictor must turn [K, {width}] into [K, C] and [K, 4 C]: {what}") from error
    finally:
        predictor.train(training)
    return classes


class RoIHeads(Part, nn.Module):
    """The box and mask branches. All numbers come from the config.

    The predictors may be replaced by modules of torchvision's contract: box_predictor(x [K, width]) -> class logits
    [K, C], deltas [K, 4 C]; mask_predictor(x [K, c, S, S]) -> logits of every class [K, C, M, M]. The box predictor's
    C becomes the config's num_classes.
    """

    batch_statistics: bool
    box_head: nn.Module
    box_predictor: nn.Module
    mask_head: nn.Module
    mask_predictor: nn.Module
    coder: BoxCoder
    score_thresh = number("box_score_thresh", most=1.0)  # no score is above it
    nms_thresh = number("box_nms_thresh")
    detections_per_img = number("box_detections_per_img")

    def __init__(self, config: MaskRCNNConfig | Shared, channels: int) -> None:
        super().__init__()
        self.shared = Shared.of(config)
        config = self.config
        v2 = config.variant == "v2"
        norm = norm_layer(config.norm, config.frozen_bn_eps) if v2 else None
        self.batch_statistics = v2 and config.norm in ("batch", "sync")  # the heads' norms want all RoIs at once
        box_width, dropout = config.box_head_channels, config.dropout
        self.box_head = (
            ConvFCHead(channels, config.box_roi_size, box_width, config.box_head_convs, norm, dropout)
            if v2
            else TwoMLPHead(channels, config.box_roi_size, box_width, dropout)
        )
        self.box_predictor = BoxPredictor(box_width, config.num_classes)
        mask_width = config.mask_head_channels
        self.mask_head = MaskHead(channels, mask_width, config.mask_head_layers, norm, dropout)
        self.mask_predictor = MaskPredictor(mask_width, config.num_classes)
        self.coder = BoxCoder(config.bbox_reg_weights)

    def __setattr__(self, name: str, value: Any) -> None:
        replaced = name == "box_predictor" and "box_predictor" in self._modules
        super().__setattr__(name, value)
        if replaced:
            self.shared.set(num_classes=classes_of(value, self.config.box_head_channels))

    def pool(
        self,
        table: FeatureTable,
        rois: Tensor,
        batch_index: Tensor,
        size: int,
        sparse_grad: bool = False,
        recorder: Observer = SILENT,
    ) -> Tensor:
        """Runs RoIAlign for rois [K, 4] of these images, int64 [K], on P2..P5: [K, c, size, size]."""
        level, ratio = roi_levels(rois, len(STRIDES)), self.config.roi_sampling_ratio
        pooled = roi_align(table, rois, batch_index, level, size, ratio, sparse_grad)
        recorder(Stage.ROIS, rois=rois, level=level, pooled=pooled)
        return pooled

    def boxes(self, pooled: Tensor) -> tuple[Tensor, Tensor]:
        """Returns class logits [K, C] and deltas [K, 4 C], at least float32, from RoI features [K, c, S, S]."""
        logits, deltas = self.box_predictor(self.box_head(pooled))
        dtype = torch.promote_types(logits.dtype, torch.float32)
        return logits.to(dtype), deltas.to(dtype)

    def masks(self, pooled: Tensor, labels: Tensor) -> Tensor:
        """Returns mask logits of each RoI's own class [K, M, M], at least float32, from RoI features [K, c, S, S]."""
        own, features, classes = (
            isinstance(self.mask_predictor, MaskPredictor),
            self.mask_head(pooled),
            self.config.num_classes,
        )
        logits = self.mask_predictor(features, labels) if own else self.mask_predictor(features)
        cells = 2 * self.config.mask_roi_size
        has = self.mask_predictor.mask_fcn_logits.out_channels if own else logits.shape[1]
        if has != classes or tuple(logits.shape[-2:]) != (cells, cells):
            raise ValueError(
                f"roi_heads.mask_predictor gives masks of {has} classes, {list(logits.shape[-2:])} cells: it must be "
                f"{classes} classes, as box_predictor, [{cells}, {cells}] cells; replace both predictors"
            )
        logits = logits if own else logits[torch.arange(len(labels), device=labels.device), labels]  # [K, M, M]
        return logits.to(torch.promote_types(logits.dtype, torch.float32))

    def losses(
        self, table: FeatureTable, proposals: list[Tensor], objects: list[Objects], recorder: Observer = SILENT
    ) -> dict[str, Tensor]:
        """Returns the three losses over sampled proposals, the mask's over the positive ones.

        In training this reads the table last, and releases it.
        """
        samples = self.sample(proposals, objects, recorder)
        positives, reference = samples.positives(), torch.cat(samples.rois)
        rois = positives.rois
        for_masks = self.pool(table, torch.cat(rois), batch_index_of(rois), self.config.mask_roi_size, sparse_grad=True)
        for_boxes = self.pool(table, reference, batch_index_of(samples.rois), self.config.box_roi_size)
        if self.training:
            table.release()
        losses = self.mask_branch_loss(for_masks, positives, objects, recorder)
        del for_masks
        logits, deltas = self.boxes(for_boxes)
        own = [
            o.boxes.to(reference.dtype)[m] if len(o.boxes) else r  # a background RoI's own box: delta 0, unused
            for o, m, r in zip(objects, samples.matched, samples.rois, strict=True)
        ]
        targets = self.coder.encode(torch.cat(own), reference)
        recorder(Stage.BOX_TARGETS, rois=samples.rois, labels=samples.labels, deltas=targets)
        return losses | box_losses(logits, deltas, torch.cat(samples.labels), targets)

    @torch.no_grad()
    def sample(self, proposals: list[Tensor], objects: list[Objects], recorder: Observer = SILENT) -> Samples:
        """Labels the proposals [P, 4] of each image and its objects' own boxes, and draws a balanced part of these."""
        cfg, samples = self.config, Samples([], [], [])
        for boxes, obj in zip(proposals, objects, strict=True):
            boxes = torch.cat((boxes, obj.boxes.to(boxes.dtype)))
            matched = matching.match_boxes(
                obj.boxes.to(boxes.dtype),
                obj.crowds.to(boxes.dtype),
                boxes,
                cfg.box_fg_iou_thresh,
                cfg.box_bg_iou_thresh,
                False,
                cfg.crowd_ioa_thresh,
            )  # [P + G]
            label = torch.where(matched == matching.BELOW, 0, -1)
            if len(obj.labels):
                label = torch.where(matched >= 0, obj.labels[matched.clamp(min=0)], label)
            positive, negative = matching.sample_balanced(
                label, cfg.box_batch_size_per_image, cfg.box_positive_fraction, obj.generators[1]
            )
            chosen = torch.cat((positive, negative))
            recorder(Stage.ROI_SAMPLES, boxes=boxes, matched=matched, label=label, chosen=chosen)
            samples.rois.append(boxes[chosen])
            samples.labels.append(label[chosen])
            samples.matched.append(matched[chosen].clamp(min=0))
        return samples

    def mask_branch_loss(
        self, pooled: Tensor, positives: Samples, objects: list[Objects], recorder: Observer = SILENT
    ) -> dict[str, Tensor]:
        """Returns the mask loss from the features of the positive RoIs [K, c, S, S], some RoIs at a time."""
        rois, labels, matched = positives.rois, positives.labels, positives.matched
        cells, geometry = 2 * self.config.mask_roi_size, self.config.geometry
        targets = mask_targets([o.masks for o in objects], rois, matched, [o.size for o in objects], cells, geometry)
        recorder(Stage.MASK_TARGETS, rois=rois, labels=labels, matched=matched, targets=targets)

        def loss(x: Tensor, labels: Tensor, targets: Tensor) -> Tensor:
            return mask_loss(self.masks(x, labels), targets)["loss_mask"] * (len(x) / max(len(pooled), 1))

        at_once = len(pooled) if self.training and self.batch_statistics else MASKS_AT_ONCE
        parameters = [*self.mask_head.parameters(), *self.mask_predictor.parameters()]
        return {"loss_mask": loss_in_portions(loss, (pooled, torch.cat(labels), targets), at_once, parameters)}

    def detect(
        self, batch: ImageBatch, table: FeatureTable, proposals: list[Tensor], recorder: Observer = SILENT
    ) -> list[dict[str, Tensor]]:
        """Returns, per image, boxes [D, 4] in the resized image, scores, labels, and mask_probs [D, M, M]."""
        # image by image, so that an image's numbers do not depend on the others in its batch
        detections = []
        for i, rois in enumerate(proposals):
            batch_index = torch.full((len(rois),), i, device=rois.device)
            pooled = self.pool(table, rois, batch_index, self.config.box_roi_size, recorder=recorder)
            detection = self.detect_boxes(*self.boxes(pooled), rois, batch.sizes[i], recorder)
            boxes, labels = detection["boxes"], detection["labels"]
            pooled = self.pool(table, boxes, batch_index[:1].expand(len(boxes)), self.config.mask_roi_size)
            logits = torch.cat(
                [
                    self.masks(*some)
                    for some in zip(pooled.split(MASKS_AT_ONCE), labels.split(MASKS_AT_ONCE), strict=True)
                ]
            )
            probs = logits.to(rois.dtype).sigmoid()
            recorder(Stage.MASKS, probs=probs)
            detections.append(detection | {"mask_probs": probs})
        return detections

    def detect_boxes(
        self, logits: Tensor, deltas: Tensor, rois: Tensor, size: tuple[int, int], recorder: Observer = SILENT
    ) -> dict[str, Tensor]:
        """Returns the best boxes of one image after NMS within each class, with scores and labels.

        logits [P, C], deltas [P, 4 C], rois [P, 4]; size: (h, w) of the resized image.
        """
        cfg = self.config
        scores = logits.softmax(1)
        roi, label = (scores[:, 1:] > cfg.box_score_thresh).nonzero().unbind(1)  # every (RoI, class) worth a look
        label = label + 1
        score = scores[roi, label]
        own = deltas.view(len(rois), logits.shape[1], 4)[roi, label]
        boxes = clip_boxes(self.coder.decode(own, rois[roi]), size)
        good = at_least(boxes, MIN_SIDE)
        boxes, score, label = boxes[good], score[good], label[good]
        keep = batched_nms(boxes, score, label, cfg.box_nms_thresh)[: cfg.box_detections_per_img]
        recorder(Stage.CLASSES, scores=scores, roi=roi, good=good, boxes=boxes, labels=label, score=score, keep=keep)
        return {"boxes": boxes[keep], "labels": label[keep], "scores": score[keep]}
