"""RoI heads: proposals -> classes, boxes and masks, or their three losses.

Shapes: N images, P proposals of one image, K RoIs over all images, D detections, C classes with
background, M = 28 mask cells a side.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from backbone import ConvNorm, norm_layer
from network_files import matching
from network_files.config import MaskRCNNConfig
from network_files.loss_portions import loss_in_portions
from network_files.losses import box_losses, mask_loss
from network_files.operators.boxes import BoxCoder, at_least, clip_to_sizes, scale_to_sizes
from network_files.operators.instance_masks import mask_targets
from network_files.operators.nms import nms_of_rows
from network_files.operators.padded import Padded, at_least_float32, cat_parts, portions, waits_are_cheap
from network_files.operators.roi_align import FeatureTable, roi_align, roi_levels
from network_files.recorder import SILENT, Observer, Stage
from network_files.shared import Part, Shared, number
from network_files.transform import ImageBatch, Objects

STRIDES = (4, 8, 16, 32)  # of the levels that RoIs are pooled from
MASKS_AT_ONCE = 32  # RoIs in the mask branch: they stay in a CPU's cache
MASKS_AT_ONCE_GPU = 2048  # they keep a GPU busy, and a batch of 16 images has no more in training
MIN_SIDE = 1e-2  # pixels; smaller detections are dropped (torchvision)

# tells which detections of an image need a mask, bool [D], from boxes in its own pixels, labels and scores
NeedsMask = Callable[[dict[str, Tensor]], Tensor]
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
        nn.init.kaiming_normal_(self.conv5_mask.weight, mode="fan_out", nonlinearity="relu")
        # so that logits begin near 1; torchvision's grow with the width and shrink with the classes: a first loss of
        # up to 27, which a network without published weights recovers from slowly
        nn.init.normal_(self.mask_fcn_logits.weight, std=channels**-0.5)
        nn.init.zeros_(self.mask_fcn_logits.bias)

    def forward(self, x: Tensor, labels: Tensor) -> Tensor:
        """Returns logits [K, 28, 28] of each RoI's own class, labels [K], and of no other, from [K, c, 14, 14]."""
        x = F.relu(self.conv5_mask(x), inplace=True)  # [K, c, 28, 28]
        # permuted to its order in memory: its gradient then comes in that order too
        weight = self.mask_fcn_logits.weight.permute(0, 2, 3, 1).flatten(1)[labels]  # [K, c]
        cells = x.permute(0, 2, 3, 1).flatten(1, 2)  # [K, 28 28, c]
        own = torch.bmm(cells, weight.to(x.dtype).unsqueeze(2)).view(x.shape[0], *x.shape[2:])
        return own + self.mask_fcn_logits.bias[labels].view(-1, 1, 1).to(x.dtype)


@dataclass
class Samples:
    """The RoIs that train, S over all images: boxes in the resized image, labels (0 = background), matched int64 [S].

    matched: the object that each RoI stands for; 0 where it is background. chosen: which image each is of, and which
    are positive.
    """

    rois: Tensor
    labels: Tensor
    matched: Tensor
    chosen: matching.Sampled

    def each(self, values: Tensor) -> list[Tensor]:
        """Returns values [S, ...] by image."""
        return list(values.split(self.chosen.sizes()))

    def positives(self, values: Tensor) -> list[Tensor]:
        """Returns those of the RoIs that stand for an object, of values [S, ...], by image."""
        counts, values = [positives for positives, _ in self.chosen.counts], values[self.chosen.positive]
        return [values] if len(counts) == 1 else list(values.split(counts))


class Detections(NamedTuple):
    """What is found in a batch, image after image: counts[i] in image i, each image's by falling score.

    boxes [D, 4], labels int64 [D], scores [D], mask_probs [D, M, M].
    """

    counts: list[int]
    boxes: Tensor
    labels: Tensor
    scores: Tensor
    mask_probs: Tensor

    def each(self) -> list[dict[str, Tensor]]:
        """Returns a dict for each image."""
        if len(self.counts) == 1:
            return [dict(zip(self._fields[1:], self[1:], strict=True))]
        parts = [t.split(self.counts) for t in self[1:]]
        return [dict(zip(self._fields[1:], part, strict=True)) for part in zip(*parts, strict=True)]


def needed_of(
    needs: Sequence[NeedsMask], found: tuple[list[int], Tensor, Tensor, Tensor], batch: ImageBatch, some: slice
) -> Tensor:
    """Returns which detections need a mask, bool [D]; found: of `RoIHeads.detect_boxes`, of some images of a batch."""
    counts, boxes, labels, scores = found
    boxes = scale_to_sizes(boxes, batch.sizes[some], batch.original_sizes[some])  # as `MaskRCNN.to_original`
    each = zip(*(Padded(t, counts).each() for t in (boxes, labels, scores)), strict=True)
    names = Detections._fields[1:4]
    return cat_parts([need(dict(zip(names, one, strict=True))) for need, one in zip(needs, each, strict=True)])


def masks_at_once(device: torch.device) -> int:
    """Returns how many RoIs a device takes in the mask branch at once."""
    return MASKS_AT_ONCE if waits_are_cheap(device) else MASKS_AT_ONCE_GPU


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
        report: Callable[[Tensor, Tensor, Tensor], None] | None = None,
        level: Tensor | None = None,
    ) -> Tensor:
        """Runs RoIAlign for rois [K, 4] of these images, int64 [K], on P2..P5: [K, c, size, size].

        report: is told rois, their levels and the result; level: as of `roi_levels`, where it is known.
        """
        level = roi_levels(rois, len(STRIDES)) if level is None else level
        ratio = self.config.roi_sampling_ratio
        pooled = roi_align(table, rois, batch_index, level, size, ratio, sparse_grad)
        if report is not None:
            report(rois, level, pooled)
        return pooled

    def boxes(self, pooled: Tensor) -> tuple[Tensor, Tensor]:
        """Returns class logits [K, C] and deltas [K, 4 C], at least float32, from RoI features [K, c, S, S]."""
        logits, deltas = self.box_predictor(self.box_head(pooled))
        dtype = at_least_float32(logits.dtype)
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
        return logits.to(at_least_float32(logits.dtype))

    def losses(
        self, table: FeatureTable, proposals: Padded, objects: Objects, recorder: Observer = SILENT
    ) -> dict[str, Tensor]:
        """Returns the three losses over sampled proposals, the mask's over the positive ones.

        In training this reads the table last, and releases it.
        """
        samples = self.sample(proposals, objects, recorder)
        rois, chosen = samples.rois, samples.chosen
        image = chosen.batch_index
        positive = chosen.positive
        sizes = self.config.mask_roi_size, self.config.box_roi_size
        level = roi_levels(rois, len(STRIDES))
        of_masks = rois[positive], image[positive], sizes[0]
        for_masks = self.pool(table, *of_masks, sparse_grad=True, level=level[positive])
        for_boxes = self.pool(table, rois, image, sizes[1], level=level)
        if self.training:
            table.release()
        losses = self.mask_branch_loss(for_masks, samples, objects, recorder)
        del for_masks
        logits, deltas = self.boxes(for_boxes)
        own = objects.of(image, samples.matched, rois.dtype)
        own = torch.where((samples.labels > 0)[:, None], own, rois)  # a background RoI's own box: delta 0, unused
        targets = self.coder.encode(own, rois)
        if recorder is not SILENT:
            each = {"rois": samples.each(rois), "labels": samples.each(samples.labels)}
            recorder(Stage.BOX_TARGETS, **each, deltas=targets)
        return losses | box_losses(logits, deltas, samples.labels, targets, positive)

    @torch.no_grad()
    def sample(self, proposals: Padded, objects: Objects, recorder: Observer = SILENT) -> Samples:
        """Labels the proposals [N, P, 4] and the objects' own boxes, and draws a balanced part of these."""
        cfg, dtype = self.config, proposals.values.dtype
        own, crowds = (Padded(p.values.to(dtype), p.counts) for p in (objects.boxes, objects.crowds))
        boxes = torch.cat((proposals.values, own.values), 1)  # [N, P + G, 4]
        matched = matching.match_boxes(
            own, crowds, boxes, cfg.box_fg_iou_thresh, cfg.box_bg_iou_thresh, False, cfg.crowd_ioa_thresh
        )  # [N, P + G]
        label, matched_or_first = (matched + 1).clamp(max=0), matched.clamp(min=0)  # BELOW is -1, BETWEEN -2
        if own.values.shape[1]:
            label = torch.where(matched >= 0, objects.labels.values.gather(1, matched_or_first), label)
        if not (proposals.whole and own.whole):
            label = label.masked_fill(~torch.cat((proposals.present(), own.present()), 1), -1)
        generators = [pair[1] for pair in objects.generators]
        count, fraction = cfg.box_batch_size_per_image, cfg.box_positive_fraction
        chosen = matching.sample_balanced(label, count, fraction, generators)
        if recorder is not SILENT:
            self._record_samples(recorder, proposals, own, (boxes, matched, label), chosen)
        which = chosen.batch_index, chosen.index
        return Samples(boxes[which], label[which], matched_or_first[which], chosen)

    @staticmethod
    def _record_samples(
        recorder: Observer,
        proposals: Padded,
        objects: Padded,
        padded: tuple[Tensor, Tensor, Tensor],
        chosen: matching.Sampled,
    ) -> None:
        """Reports what was drawn from, without padding."""
        most = proposals.values.shape[1]
        for i, index in enumerate(chosen.index.split(chosen.sizes())):
            count = proposals.counts[i]
            parts = [(t[i, :count], t[i, most : most + objects.counts[i]]) for t in padded]
            boxes, matched, label = map(torch.cat, parts)
            index = torch.where(index < most, index, index - (most - count))
            recorder(Stage.ROI_SAMPLES, boxes=boxes, matched=matched, label=label, chosen=index)

    def mask_branch_loss(
        self, pooled: Tensor, samples: Samples, objects: Objects, recorder: Observer = SILENT
    ) -> dict[str, Tensor]:
        """Returns the mask loss from the features of the positive RoIs [K, c, S, S], some RoIs at a time."""
        rois, labels, matched = map(samples.positives, (samples.rois, samples.labels, samples.matched))
        cells, geometry = 2 * self.config.mask_roi_size, self.config.geometry
        targets = mask_targets(objects.masks, rois, matched, objects.sizes, cells, geometry)
        recorder(Stage.MASK_TARGETS, rois=rois, labels=labels, matched=matched, targets=targets)

        def loss(x: Tensor, labels: Tensor, targets: Tensor) -> Tensor:
            return mask_loss(self.masks(x, labels), targets)["loss_mask"] * (len(x) / max(len(pooled), 1))

        at_once = len(pooled) if self.training and self.batch_statistics else masks_at_once(pooled.device)
        parameters = [*self.mask_head.parameters(), *self.mask_predictor.parameters()]
        return {"loss_mask": loss_in_portions(loss, (pooled, cat_parts(labels), targets), at_once, parameters)}

    def detect(
        self,
        batch: ImageBatch,
        table: FeatureTable,
        proposals: Padded,
        recorder: Observer = SILENT,
        needs: Sequence[NeedsMask] | None = None,
    ) -> Detections:
        """Returns the detections of each image in the resized image, and their masks.

        needs: of each image; masks that are not needed are zeros. On a CPU image by image, so that an image's numbers
        do not depend on the others in its batch.
        """
        parts = [
            self._detect(batch, some, table, proposals[some], recorder, needs)
            for some in portions(len(proposals), proposals.values.device)
        ]
        counts = [count for part in parts for count in part.counts]
        return (
            parts[0]
            if len(parts) == 1
            else Detections(counts, *map(torch.cat, zip(*(p[1:] for p in parts), strict=True)))
        )

    def _detect(
        self,
        batch: ImageBatch,
        some: slice,
        table: FeatureTable,
        proposals: Padded,
        recorder: Observer,
        needs: Sequence[NeedsMask] | None,
    ) -> Detections:
        """Returns the detections of some images of the batch, whose proposals these are."""
        rois, image, first = proposals.flat(), proposals.image(), some.start
        image = image + first if first else image

        def report(*values: Tensor) -> None:
            for each in zip(*(v.split(proposals.counts) for v in values), strict=True):
                recorder(Stage.ROIS, **dict(zip(("rois", "level", "pooled"), each, strict=True)))

        report_to = None if recorder is SILENT else report
        pooled = self.pool(table, rois, image, self.config.box_roi_size, report=report_to)
        found = self.detect_boxes(*self.boxes(pooled), proposals, batch.sizes[some], recorder)
        counts, needed = found[0], None if needs is None else needed_of(needs[some], found, batch, some)
        image = Padded(found[1], counts).image()
        image = image + first if first else image
        boxes, labels, scores = (Padded(t, counts).flat() for t in found[1:])
        probs = self.mask_probs(table, boxes, image, labels, needed)
        if recorder is not SILENT:
            for each in probs.split(counts):
                recorder(Stage.MASKS, probs=each)
        return Detections(counts, boxes, labels, scores, probs)

    def mask_probs(
        self, table: FeatureTable, boxes: Tensor, image: Tensor, labels: Tensor, needed: Tensor | None = None
    ) -> Tensor:
        """Returns mask probabilities [D, M, M] of boxes [D, 4] of these images and classes, int64 [D].

        needed: bool [D], None: all; masks of others are zeros. Which are needed changes no bit of a mask: a RoI stays
        in its portion, and is alone there only where it was.
        """
        at_once, size = masks_at_once(boxes.device), self.config.mask_roi_size
        if needed is not None:
            probs = boxes.new_zeros(len(labels), 2 * size, 2 * size)
            for some in torch.arange(len(labels), device=labels.device).split(at_once):
                own = some[needed[some]]
                if len(own):
                    own = own.expand(2) if len(own) == 1 < len(some) else own  # a CPU rounds otherwise for one
                    probs[own] = self.mask_probs(table, boxes[own], image[own], labels[own])
            return probs
        pooled = self.pool(table, boxes, image, size)
        some = [(pooled, labels)]
        if len(labels) > at_once:
            some = zip(pooled.split(at_once), labels.split(at_once), strict=True)
        return cat_parts([self.masks(*each) for each in some]).to(boxes.dtype).sigmoid()

    def detect_boxes(
        self,
        logits: Tensor,
        deltas: Tensor,
        proposals: Padded,
        sizes: list[tuple[int, int]],
        recorder: Observer = SILENT,
    ) -> tuple[list[int], Tensor, Tensor, Tensor]:
        """Returns the best boxes of each image after NMS within each class, by falling score.

        logits [K, C], deltas [K, 4 C] of all proposals; sizes: (h, w) of the resized images. Returns how many of each
        image, boxes [N, D, 4], labels [N, D], scores [N, D].
        """
        cfg, classes = self.config, logits.shape[1]
        scores = logits.softmax(1)
        padded = Padded.from_flat(scores, proposals.counts).values  # [N, P, C]
        pairs = padded[..., 1:].flatten(1)  # [N, P (C - 1)]: every (RoI, class)
        pair, score, there = _best_above(pairs, cfg.box_score_thresh)  # [N, M]
        roi, label = pair // (classes - 1), pair % (classes - 1) + 1
        deltas = Padded.from_flat(deltas, proposals.counts).values.unflatten(2, (classes, 4))
        image = torch.arange(len(pair), device=pair.device)[:, None]
        own, reference = deltas[image, roi, label], proposals.values[image, roi]
        boxes = clip_to_sizes(self.coder.decode(own, reference), sizes)  # [N, M, 4]
        good = at_least(boxes, MIN_SIDE) & there
        keep, counts = nms_of_rows(boxes, good, cfg.box_nms_thresh, label)
        counts = [min(count, cfg.box_detections_per_img) for count in counts]
        kept = keep.byte().argsort(dim=1, descending=True, stable=True)[:, : max(counts, default=0)]  # by falling score
        if recorder is not SILENT:
            chosen, each = Padded(kept, counts).each(), scores.split(proposals.counts)
            for i, candidates in enumerate(there):
                some = candidates & good[i]
                recorder(
                    Stage.CLASSES,
                    scores=each[i],
                    roi=roi[i][candidates],
                    good=good[i][candidates],
                    boxes=boxes[i][some],
                    labels=label[i][some],
                    score=score[i][some],
                    keep=(some.cumsum(0) - 1)[chosen[i]],
                )
        return counts, boxes[image, kept], label.gather(1, kept), score.gather(1, kept)


def _best_above(scores: Tensor, threshold: float) -> tuple[Tensor, Tensor, Tensor]:
    """Returns the scores [N, Q] of each row above a threshold, by falling score: places int64 [N, M], scores [N, M].

    Also returns which are there, bool [N, M]: rows with fewer than M are padded. The host waits once.
    """
    if len(scores) == 1:
        own = scores.flatten()
        place = (own > threshold).nonzero()[:, 0]
        score, order = own[place].sort(descending=True, stable=True)
        score = score[None]
        return place[order][None], score, torch.ones_like(score, dtype=torch.bool)
    above = scores > threshold
    most = int(above.sum(1).max())
    score, place = scores.masked_fill(~above, -1).sort(dim=1, descending=True, stable=True)
    return place[:, :most], score[:, :most], score[:, :most] >= 0
