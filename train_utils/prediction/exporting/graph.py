"""A model -> its core as one graph without a loop: prepared images to boxes, labels, scores and masks.

Left out are what happens to an image before (`Transform.batch`) and to a detection after (`MaskRCNN.to_original`). The
parts that compute are the model's own. What depends on the images in number is padded to a fixed one, with scores of
-1, until the detections are chosen.

Shapes: N images, L levels, K candidates a level, P proposals an image, C classes with background, D detections of all.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from network_files import MaskRCNN
from network_files.heads.detections import MIN_SIDE as LEAST_DETECTION
from network_files.operators.roi_align import roi_levels
from network_files.roi_heads import STRIDES
from network_files.rpn import MIN_SIDE as LEAST_PROPOSAL
from train_utils.prediction.runtimes.operators import DROPPED

INPUTS, OUTPUTS = ("images", "sizes"), ("boxes", "labels", "scores", "masks", "image")


class CoreGraph(nn.Module):
    """The graph of a model in evaluation; every number of its config is a constant of it.

    (images [N, channels, h, w], normalised, resized and padded, h and w multiples of 32; sizes float [N, 2], the height
    and width of each before padding) -> boxes [D, 4] in the resized image, labels int64 [D], scores [D], masks
    [D, 28, 28] in 0..1, and image int64 [D], which image each was found in: by image, then by falling score.
    """

    def __init__(self, model: MaskRCNN) -> None:
        super().__init__()
        self.model, self.config = model, model.config

    def forward(self, images: Tensor, sizes: Tensor) -> tuple[Tensor, ...]:
        """Returns boxes, labels, scores, masks, image."""
        maps = self.model.backbone(images)
        rois, exists = self.propose(maps, sizes, images.shape[-2:])  # [N, P, 4], [N, P]
        boxes, labels, scores = self.detect(maps, rois, exists, sizes)  # [N, D', ...]
        image, place = (scores >= 0).nonzero().unbind(1)  # [D]
        boxes, labels, scores = boxes[image, place], labels[image, place], scores[image, place]
        order, back = self._by_level(boxes)
        pooled = self._pool(maps, boxes[order], image[order], self.config.mask_roi_size)
        masks = self.model.roi_heads.masks(pooled, labels[order]).sigmoid()[back]  # [D, 28, 28]
        return boxes, labels, scores, masks, image

    def propose(self, maps: list[Tensor], sizes: Tensor, padded: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """Returns rois [N, P, 4] by falling objectness, and which of them there are, bool [N, P]."""
        config, rpn = self.config, self.model.rpn
        count, before = maps[0].shape[0], config.rpn_pre_nms_top_n_test
        deltas, anchors, scores, exist = [], [], [], []
        for level, of_level in zip(maps, rpn.anchors(maps, padded), strict=True):
            x = rpn.head.conv(level)
            logits = rpn.head.cls_logits(x).permute(0, 2, 3, 1).flatten(1)
            delta = rpn.head.bbox_pred(x).permute(0, 2, 3, 1).reshape(count, -1, 4)
            # as many candidates on every level, small as it may be: -inf, whose sigmoid is 0, stands for none
            score, top = F.pad(logits, (0, before), value=-torch.inf).topk(before, dim=1)  # [N, K]
            own = top.clamp(max=of_level.shape[0] - 1)
            deltas.append(_taken(delta, own))
            anchors.append(of_level[own])
            scores.append(score)
            exist.append(top < of_level.shape[0])
        boxes = _clipped(rpn.coder.decode(torch.cat(deltas, 1), torch.cat(anchors, 1)), sizes)  # [N, L K, 4]
        scores = torch.cat(scores, 1).sigmoid()
        good = _has_sides(boxes, LEAST_PROPOSAL) & torch.cat(exist, 1) & (scores >= config.rpn_score_thresh)
        scores = torch.where(good, scores, DROPPED)
        groups = boxes.reshape(-1, before, 4), scores.reshape(-1, before)  # a level of an image each
        kept = torch.ops.maskrcnn.kept_scores(*groups, config.rpn_nms_thresh).reshape(count, before * len(maps))
        best = torch.argsort(kept, dim=1, descending=True)[:, : config.rpn_post_nms_top_n_test]
        return _taken(boxes, best), kept.gather(1, best) >= 0

    def detect(self, maps: list[Tensor], rois: Tensor, exists: Tensor, sizes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Returns the best boxes [N, D', 4] of each image by falling score, labels and scores [N, D'], DROPPED: none.

        rois [N, P, 4], exists bool [N, P].
        """
        config, heads = self.config, self.model.roi_heads
        count, proposals, classes = rois.shape[0], rois.shape[1], config.num_classes
        flat = rois.flatten(0, 1)  # [N P, 4]
        image = torch.arange(count, device=rois.device).repeat_interleave(proposals)
        order, back = self._by_level(flat)
        pooled = self._pool(maps, flat[order], image[order], config.box_roi_size)
        logits, deltas = (t[back] for t in heads.boxes(pooled))
        scores = logits.softmax(1)[:, 1:].reshape(count, proposals, classes - 1).transpose(1, 2)  # [N, C - 1, P]
        deltas = deltas.reshape(count, proposals, classes, 4)[:, :, 1:].transpose(1, 2)  # [N, C - 1, P, 4]
        boxes = heads.coder.decode(deltas, rois[:, None]).flatten(1, 2)
        boxes = _clipped(boxes, sizes).reshape(count, classes - 1, proposals, 4)
        good = (scores > config.box_score_thresh) & exists[:, None] & _has_sides(boxes, LEAST_DETECTION)
        scores = torch.where(good, scores, DROPPED)
        kept = torch.ops.maskrcnn.kept_scores(boxes.flatten(0, 1), scores.flatten(0, 1), config.box_nms_thresh)
        # by RoI, then class, as equal scores are to be ordered
        kept = kept.reshape(count, classes - 1, proposals).transpose(1, 2).flatten(1)  # [N, P (C - 1)]
        boxes = boxes.transpose(1, 2).flatten(1, 2)
        scores, best = kept.topk(min(config.box_detections_per_img, proposals * (classes - 1)), dim=1)
        best = best.sort(dim=1).values  # topk need not keep the order of equal scores
        best = best.gather(1, torch.argsort(kept.gather(1, best), dim=1, descending=True))
        return _taken(boxes, best), best % (classes - 1) + 1, kept.gather(1, best)

    def _by_level(self, boxes: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the order of boxes [R, 4] by level, and the way back."""
        order = torch.argsort(roi_levels(boxes, len(STRIDES)))
        return order, torch.argsort(order)

    def _pool(self, maps: list[Tensor], rois: Tensor, image: Tensor, cells: int) -> Tensor:
        level = roi_levels(rois, len(STRIDES))
        of_config = self.config.roi_sampling_ratio, self.config.geometry
        return torch.ops.maskrcnn.pooled_rois(maps[: len(STRIDES)], rois, image, level, cells, *of_config)


def _taken(boxes: Tensor, index: Tensor) -> Tensor:
    """Returns the rows [N, k, 4] of [N, K, 4] at index [N, k]."""
    return boxes.gather(1, index[..., None].expand(-1, -1, 4))


def _clipped(boxes: Tensor, sizes: Tensor) -> Tensor:
    """Clips boxes [N, k, 4] to the sizes (h, w) [N, 2] of their images."""
    return torch.minimum(boxes.clamp(min=0), sizes[:, None, [1, 0, 1, 0]])


def _has_sides(boxes: Tensor, least: float) -> Tensor:
    """Says which boxes [..., 4] have both sides of at least so many pixels."""
    return (boxes[..., 2:] - boxes[..., :2] >= least).all(-1)
