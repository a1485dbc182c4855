"""An image and its mirror images -> one set of detections, averaged: test-time augmentation.

V views of an image, P proposals, K detections, C classes with background. Boxes are x1 y1 x2 y2 in pixels of the
resized image, which all views share but for their mirroring.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from network_files import MaskRCNN, MaskRCNNConfig
from network_files.heads.detections import Detections, NeedsMask, best_boxes, needed_of
from network_files.operators.nms import nms
from network_files.operators.padded import Padded
from network_files.operators.roi_align import FeatureTable
from network_files.shared import Shared

Axes = tuple[int, ...]  # of an image [C, H, W] that a view mirrors: 2 left and right, 1 top and bottom
Size = tuple[int, int]  # height, width

NOT_MIRRORED: Axes = ()


class View(NamedTuple):
    """What the backbone makes of a mirror image, and what the RPN proposes there, mirrored back [P, 4]."""

    axes: Axes
    table: FeatureTable
    proposals: Tensor


class MirroredModel(nn.Module):
    """A model that looks at mirror images, too; it is called as the model is, without losses.

    - Proposals of all views are put together by their ranks, and cleared of near-duplicates as within one view.
    - The box head sees each of them in each view: class probabilities and boxes are averaged, before threshold and NMS.
    - The mask head sees each detection in each view: the probabilities of its cells are averaged.

    Images are taken one by one, so that their numbers do not depend on the batch. views: the axes that each mirrors.
    """

    def __init__(self, model: MaskRCNN, views: tuple[Axes, ...]) -> None:
        super().__init__()
        self.model, self.views = model, (NOT_MIRRORED, *views)

    @property
    def config(self) -> MaskRCNNConfig:
        """The model's."""
        return self.model.config

    @property
    def shared(self) -> Shared:
        """The holder of the model's config."""
        return self.model.shared

    def forward(
        self,
        images: list[Tensor],
        targets: list[dict] | None = None,
        paste_masks: bool = False,
        needs: Sequence[NeedsMask] | None = None,
    ) -> list[dict[str, Tensor]] | tuple[dict, list[dict[str, Tensor]]]:
        """Returns the detections of images [C, H, W], with targets ({}, detections): averages have no losses."""
        each = zip(images, needs or [None] * len(images), strict=True)
        found = [self._detect(image, paste_masks, need) for image, need in each]
        return found if targets is None else ({}, found)

    def _detect(self, image: Tensor, paste_masks: bool, need: NeedsMask | None) -> dict[str, Tensor]:
        model, heads, cfg = self.model, self.model.roi_heads, self.config
        dtype = next(model.parameters()).dtype
        batch = model.transform.batch([image], None, False, dtype)
        (size,) = batch.sizes
        views = [self._look(image if not axes else image.flip(axes), axes, dtype) for axes in self.views]
        proposals = merged([view.proposals for view in views], cfg.rpn_nms_thresh, cfg.rpn_post_nms_top_n_test)
        logits, deltas = self._boxes(views, proposals, size)
        some = best_boxes(logits, deltas, Padded.of([proposals]), [size], cfg, heads.coder)
        needed = None if need is None else needed_of([need], some, batch, slice(0, 1))
        boxes, labels, scores = (padded[0] for padded in some[1:])
        probs = self._masks(views, boxes, labels, size, needed)
        found = Detections(some.counts, boxes, labels, scores, probs)
        return model.to_original(found, batch, paste_masks)[0]

    def _look(self, image: Tensor, axes: Axes, dtype: torch.dtype) -> View:
        """Returns the view of an image that is mirrored already."""
        model = self.model
        batch = model.transform.batch([image], None, False, dtype)
        features = torch.promote_types(batch.images.dtype, torch.float32)
        table = FeatureTable(model.backbone(batch.images), model.backbone.strides, features, self.config.geometry)
        proposals, _ = model.rpn(batch, table)
        return View(axes, table, mirrored(proposals.values[0], axes, batch.sizes[0]))

    def _boxes(self, views: list[View], proposals: Tensor, size: Size) -> tuple[Tensor, Tensor]:
        """Returns class logits [P, C] and deltas [P, 4 C] of the mean probabilities and boxes."""
        heads = self.model.roi_heads
        probs, boxes = [], []
        for view in views:
            rois = mirrored(proposals, view.axes, size)
            pooled = heads.pool(view.table, rois, first_image(rois), self.config.box_roi_size)
            logits, deltas = heads.boxes(pooled)
            probs.append(logits.softmax(1))
            own = heads.coder.decode(deltas.unflatten(1, (-1, 4)), rois[:, None])  # [P, C, 4]
            boxes.append(mirrored(own, view.axes, size))
        mean = torch.stack(boxes).mean(0)
        reference = proposals[:, None].expand_as(mean)
        deltas = heads.coder.encode(mean.flatten(0, 1), reference.flatten(0, 1)).view_as(mean).flatten(1)
        return torch.stack(probs).mean(0).log(), deltas

    def _masks(self, views: list[View], boxes: Tensor, labels: Tensor, size: Size, needed: Tensor | None) -> Tensor:
        """Returns mean mask probabilities [K, M, M]."""
        probs = []
        for view in views:
            rois = mirrored(boxes, view.axes, size)
            own = self.model.roi_heads.mask_probs(view.table, rois, first_image(rois), labels, needed)
            probs.append(own.flip(view.axes))  # [K, M, M]: the axes of an image
        return torch.stack(probs).mean(0)


def first_image(rois: Tensor) -> Tensor:
    """Returns which image of its batch each RoI is of, int64 [K]: the only one."""
    return torch.zeros(len(rois), dtype=torch.int64, device=rois.device)


def mirrored(boxes: Tensor, axes: Axes, size: Size) -> Tensor:
    """Returns boxes [..., 4] of an image of `size` (H, W) where they lie in its mirror image. Law: twice is nothing."""
    x1, y1, x2, y2 = boxes.unbind(-1)
    if 2 in axes:
        x1, x2 = size[1] - x2, size[1] - x1
    if 1 in axes:
        y1, y2 = size[0] - y2, size[0] - y1
    return torch.stack((x1, y1, x2, y2), -1) if axes else boxes


def merged(proposals: list[Tensor], nms_thresh: float, most: int) -> Tensor:
    """Returns at most so many of the views' proposals [P, 4] each: the first of all, then the second, and so on.

    Those that overlap an earlier one by an IoU above the threshold are left out.
    """
    rank = torch.cat([torch.arange(len(own), device=own.device) for own in proposals])
    boxes = torch.cat(proposals)
    return boxes[nms(boxes, -rank.to(boxes.dtype), nms_thresh)[:most]]
