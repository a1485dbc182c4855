"""RoI heads: proposals -> classes, boxes and masks, or their three losses.

Shapes: N images, P proposals of one image, K RoIs over all images, D detections, C classes with
background, M = 28 mask cells a side.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from backbone import norm_layer
from network_files.config import MaskRCNNConfig
from network_files.heads.box_head import BoxPredictor, ConvFCHead, TwoMLPHead, classes_of
from network_files.heads.detections import Detections, NeedsMask, best_boxes, needed_of
from network_files.heads.mask_head import MaskHead, MaskPredictor, masks_at_once, own_logits
from network_files.heads.sampling import Samples, sample_rois
from network_files.loss_portions import loss_in_portions
from network_files.losses import box_losses, mask_loss
from network_files.operators.boxes import BoxCoder
from network_files.operators.instance_masks import mask_targets
from network_files.operators.padded import Padded, at_least_float32, cat_parts, portions
from network_files.operators.roi_align import FeatureTable, roi_align, roi_levels
from network_files.recorder import SILENT, Observer, Stage
from network_files.shared import Part, Shared, number
from network_files.transform import ImageBatch, Objects

STRIDES = (4, 8, 16, 32)  # of the levels that RoIs are pooled from


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
        level: Tensor | None = None,
        sparse_grad: bool = False,
    ) -> Tensor:
        """Runs RoIAlign for rois [K, 4] of these images, int64 [K], on P2..P5: [K, c, size, size].

        level: as of `roi_levels`, where it is known.
        """
        level = roi_levels(rois, len(STRIDES)) if level is None else level
        return roi_align(table, rois, batch_index, level, size, self.config.roi_sampling_ratio, sparse_grad)

    def boxes(self, pooled: Tensor) -> tuple[Tensor, Tensor]:
        """Returns class logits [K, C] and deltas [K, 4 C], at least float32, from RoI features [K, c, S, S]."""
        logits, deltas = self.box_predictor(self.box_head(pooled))
        dtype = at_least_float32(logits.dtype)
        return logits.to(dtype), deltas.to(dtype)

    def masks(self, pooled: Tensor, labels: Tensor) -> Tensor:
        """Returns mask logits of each RoI's own class [K, M, M], at least float32, from RoI features [K, c, S, S]."""
        classes, cells = self.config.num_classes, 2 * self.config.mask_roi_size
        logits = own_logits(self.mask_predictor, self.mask_head(pooled), labels, classes, cells)
        return logits.to(at_least_float32(logits.dtype))

    def losses(
        self, table: FeatureTable, proposals: Padded, objects: Objects, recorder: Observer = SILENT
    ) -> dict[str, Tensor]:
        """Returns the three losses over sampled proposals, the mask's over the positive ones.

        In training this reads the table last, and releases it.
        """
        samples, cfg = sample_rois(proposals, objects, self.config, recorder), self.config
        rois, image, positive = samples.rois, samples.chosen.batch_index, samples.chosen.positive
        level = roi_levels(rois, len(STRIDES))
        of_masks = rois[positive], image[positive], cfg.mask_roi_size, level[positive]
        for_masks = self.pool(table, *of_masks, sparse_grad=True)
        for_boxes = self.pool(table, rois, image, cfg.box_roi_size, level)
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
        return Detections(counts, *map(cat_parts, zip(*(part[1:] for part in parts), strict=True)))

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
        rois, image = proposals.flat(), _image_in_batch(proposals, some)
        level = roi_levels(rois, len(STRIDES))
        pooled = self.pool(table, rois, image, self.config.box_roi_size, level)
        if recorder is not SILENT:
            each = (values.split(proposals.counts) for values in (rois, level, pooled))
            for own, own_level, features in zip(*each, strict=True):
                recorder(Stage.ROIS, rois=own, level=own_level, pooled=features)
        found = best_boxes(*self.boxes(pooled), proposals, batch.sizes[some], self.config, self.coder, recorder)
        needed = None if needs is None else needed_of(needs[some], found, batch, some)
        counts, *padded = found
        boxes, labels, scores = (Padded(t, counts).flat() for t in padded)
        image = _image_in_batch(Padded(found.boxes, counts), some)
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


def _image_in_batch(padded: Padded, some: slice) -> Tensor:
    """Returns the image of each row of `padded.flat`, int64, counted in the batch of which these are `some` images."""
    image = padded.image()
    return image + some.start if some.start else image
