"""NMS and RoIAlign as one operator each, so that a trace holds them whole; exported programs call them by name.

A trace sees a result's shape alone, which follows from the arguments' shapes. Shapes: B groups of K boxes each, which
do not suppress each other across groups; R RoIs; C channels; S cells a side.
"""

import torch
from torch import Tensor

from network_files.operators.nms import batched_nms
from network_files.operators.roi_align import FeatureTable, roi_align

DROPPED = -1.0  # the score of what is no box, or was suppressed
POOLED = (  # torch 2.6 infers none from a list
    "(Tensor[] maps, Tensor rois, Tensor image, Tensor level, int cells, int sampling_ratio, str geometry) -> Tensor"
)


@torch.library.custom_op("maskrcnn::kept_scores", mutates_args=())
def kept_scores(boxes: Tensor, scores: Tensor, iou_threshold: float) -> Tensor:
    """Returns the scores [B, K] of the boxes [B, K, 4] that NMS keeps in their group, DROPPED for all others.

    scores [B, K], negative where there is no box.
    """
    group, box = (scores >= 0).nonzero().unbind(1)
    keep = batched_nms(boxes[group, box], scores[group, box], group, iou_threshold)
    group, box = group[keep], box[keep]
    kept = torch.full_like(scores, DROPPED)
    kept[group, box] = scores[group, box]
    return kept


@kept_scores.register_fake
def _(boxes: Tensor, scores: Tensor, iou_threshold: float) -> Tensor:
    return torch.empty_like(scores)


@torch.library.custom_op("maskrcnn::pooled_rois", mutates_args=(), schema=POOLED)
def pooled_rois(
    maps: list[Tensor], rois: Tensor, image: Tensor, level: Tensor, cells: int, sampling_ratio: int, geometry: str
) -> Tensor:
    """Returns the feature [R, C, S, S] of each RoI [R, 4], from maps [N, C, H, W] at strides 4, 8, 16, 32.

    image, level int64 [R]: which map; levels rise, so that what reads level after level need not sort.
    """
    table = FeatureTable(maps, geometry=geometry)
    return roi_align(table, rois, image, level, cells, sampling_ratio).contiguous()


@pooled_rois.register_fake
def _(
    maps: list[Tensor], rois: Tensor, image: Tensor, level: Tensor, cells: int, sampling_ratio: int, geometry: str
) -> Tensor:
    return rois.new_empty(rois.shape[0], maps[0].shape[1], cells, cells)
