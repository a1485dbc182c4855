"""Which object an anchor or a proposal stands for, and which of them train.

Shapes: G objects, B boxes (anchors or proposals).
"""

import math
from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from network_files.operators.boxes import box_ioa, box_iou

OVERLAPS = 4_000_000  # computed at once
BELOW = -1  # overlaps every object by less than the low threshold: background
BETWEEN = -2  # between the thresholds: neither object nor background, ignored


def match(overlaps: Callable[[], Iterable[Tensor]], high: float, low: float, keep_best: bool = False) -> Tensor:
    """Returns the object that each box stands for, int64 [B].

    That is the object of the best overlap where this is >= high, BELOW where it is < low, BETWEEN otherwise.
    overlaps() yields the IoU matrix in parts [G, b] of some boxes each, G > 0. keep_best (Faster R-CNN's low-quality
    rule): the boxes that overlap an object more than all others do (ties included) stand for the object that they
    overlap most, however little.
    """
    best, index, peaks = zip(*map(_best, overlaps()), strict=True)
    best, index, peak = torch.cat(best), torch.cat(index), torch.stack(peaks).amax(0)  # [B], [B], [G]
    matched = index.masked_fill(best < high, BETWEEN).masked_fill_(best < low, BELOW)
    if keep_best:
        peak = torch.where(peak > 0, peak, math.inf)[:, None]  # an object that no box touches has no best one
        is_best = torch.cat([(iou == peak).any(0) for iou in overlaps()])
        matched = torch.where(is_best, index, matched)
    return matched


def _best(iou: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Returns the largest overlap of each box and its object, [b], and that of each object, [G], from iou [G, b]."""
    return *iou.max(0), iou.amax(1) if iou.shape[1] else iou.new_zeros(len(iou))


def match_boxes(
    objects: Tensor,
    crowds: Tensor,
    boxes: Tensor,
    high: float,
    low: float,
    keep_best: bool,
    crowd_ioa_thresh: float | None,
) -> Tensor:
    """Matches boxes [B, 4] with objects [G, 4], as `match`, but ignores background boxes in crowd regions.

    crowds [K, 4]: regions full of unlabelled objects. A box that would be background, with at least
    crowd_ioa_thresh of its area in one of them, becomes BETWEEN (None: off, as torchvision).
    """
    if len(objects):
        matched = match(lambda: (box_iou(objects, some) for some in _some(boxes, objects)), high, low, keep_best)
    else:
        matched = torch.full((len(boxes),), BELOW, dtype=torch.int64, device=boxes.device)
    if crowd_ioa_thresh is not None and len(crowds) and len(boxes):
        in_crowd = torch.cat([box_ioa(crowds, some).amax(0) for some in _some(boxes, crowds)]) >= crowd_ioa_thresh
        matched = torch.where((matched == BELOW) & in_crowd, BETWEEN, matched)
    return matched


def _some(boxes: Tensor, others: Tensor) -> tuple[Tensor, ...]:
    """Returns boxes in parts: all overlaps of 1,000 objects with a large image's anchors would take gigabytes."""
    return boxes.split(max(OVERLAPS // max(len(others), 1), 1))


def sample_balanced(
    labels: Tensor, count: int, positive_fraction: float, generator: torch.Generator | None = None
) -> tuple[Tensor, Tensor]:
    """Chooses boxes to train on: at most count x positive_fraction positives, the rest negatives.

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
