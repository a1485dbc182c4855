"""Which object an anchor or a proposal stands for, and which of them train.

Shapes: G objects, B boxes (anchors or proposals).
"""

import torch
from torch import Tensor

from network_files.boxes import box_ioa, box_iou

BELOW = -1  # overlaps every object by less than the low threshold: background
BETWEEN = -2  # between the thresholds: neither object nor background, ignored


def match(iou: Tensor, high: float, low: float, keep_best: bool = False) -> Tensor:
    """The object that each box stands for.

    iou [G, B] -> int64 [B]: an object's index where the best overlap is >= high, BELOW where it is < low,
    BETWEEN otherwise. keep_best (Faster R-CNN's low-quality rule): the boxes that overlap an object more
    than all others do (ties included) stand for the object that they overlap most, however little.
    """
    if iou.shape[0] == 0:
        return torch.full((iou.shape[1],), BELOW, dtype=torch.int64, device=iou.device)
    best, index = iou.max(0)  # [B]
    matched = index.masked_fill(best < high, BETWEEN).masked_fill_(best < low, BELOW)
    if keep_best and iou.shape[1]:
        peak = iou.amax(1, keepdim=True)  # [G, 1]
        is_best = ((iou == peak) & (peak > 0)).any(0)
        matched = torch.where(is_best, index, matched)
    return matched


def match_boxes(
    objects: Tensor, crowds: Tensor, boxes: Tensor, high: float, low: float, keep_best: bool,
    crowd_ioa_thresh: float | None,
) -> Tensor:
    """`match` boxes [B, 4] with objects [G, 4]; a background box that lies in a crowd region is ignored.

    crowds [K, 4]: regions full of unlabelled objects. A box that would be background, with at least
    crowd_ioa_thresh of its area in one of them, becomes BETWEEN (None: off, as torchvision).
    """
    matched = match(box_iou(objects, boxes), high, low, keep_best)
    if crowd_ioa_thresh is not None and len(crowds) and len(boxes):
        in_crowd = box_ioa(crowds, boxes).amax(0) >= crowd_ioa_thresh
        matched = torch.where((matched == BELOW) & in_crowd, BETWEEN, matched)
    return matched


def sample_balanced(
    labels: Tensor, count: int, positive_fraction: float, generator: torch.Generator | None = None
) -> tuple[Tensor, Tensor]:
    """Choose boxes to train on: at most count x positive_fraction positives, the rest negatives.

    labels [B]: >= 1 positive, 0 negative, < 0 ignored. Returns the indices of the positives and of the
    negatives, int64, together at most `count`, drawn with the generator (None: torch's global one).
    """
    positive, negative = (labels >= 1).nonzero()[:, 0], (labels == 0).nonzero()[:, 0]
    n_positive = min(len(positive), int(count * positive_fraction))
    n_negative = min(len(negative), count - n_positive)
    return _draw(positive, n_positive, generator), _draw(negative, n_negative, generator)


def _draw(indices: Tensor, count: int, generator: torch.Generator | None) -> Tensor:
    # on the CPU whatever the device: the same seed then draws the same boxes everywhere
    chosen = torch.randperm(len(indices), generator=generator)[:count]
    return indices[chosen.to(indices.device)]
