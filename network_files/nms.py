"""Exact greedy non-maximum suppression, in blocks instead of box by box."""

import math

import torch
from torch import Tensor

from network_files.boxes import box_iou

BLOCK = 256  # boxes decided at once


def nms(boxes: Tensor, scores: Tensor, iou_threshold: float) -> Tensor:
    """Drop every box that overlaps a kept box of higher score by an IoU above the threshold.

    boxes [N, 4], scores [N] -> kept indices int64 [K], by falling score; equal scores keep their order.
    Equal to torchvision.ops.nms.
    """
    return batched_nms(boxes, scores, torch.zeros(len(boxes), dtype=torch.int64, device=boxes.device),
                       iou_threshold)


def batched_nms(boxes: Tensor, scores: Tensor, groups: Tensor, iou_threshold: float) -> Tensor:
    """`nms` within each group: boxes of different groups never suppress each other.

    boxes [N, 4], scores [N], groups int64 [N] -> kept indices int64 [K], by falling score over all groups;
    equal scores keep their order. Equal to torchvision.ops.nms on each group by itself.
    """
    order = torch.argsort(scores, descending=True, stable=True)
    order = order[torch.argsort(groups[order], stable=True)]  # by group, then by falling score
    kept = order[_greedy(boxes[order], groups[order], _float_threshold(iou_threshold, boxes.dtype))]
    kept = kept.sort().values
    return kept[torch.argsort(scores[kept], descending=True, stable=True)]


def _float_threshold(threshold: float, dtype: torch.dtype) -> float:
    """The largest number of `dtype` that is not above threshold, so that iou > t means what it says in reals."""
    rounded = torch.tensor(threshold, dtype=dtype)
    if float(rounded) > threshold:
        rounded = torch.nextafter(rounded, torch.tensor(-math.inf, dtype=dtype))
    return float(rounded)


def _greedy(boxes: Tensor, groups: Tensor, threshold: float) -> Tensor:
    """Which of the boxes, sorted by group and score, survive: bool [N]."""
    alive = torch.ones(len(boxes), dtype=torch.bool, device=boxes.device)
    ends = torch.searchsorted(groups, groups, right=True)  # [N] one past the last box of each box's group
    for start in range(0, len(boxes), BLOCK):
        stop = min(start + BLOCK, len(boxes))
        block = start + alive[start:stop].nonzero()[:, 0]  # [B] earlier blocks have spoken already
        overlap = box_iou(boxes[block], boxes[block]) > threshold
        overlap &= groups[block][:, None] == groups[block]
        keep = _resolve(overlap.triu_(diagonal=1))
        alive[block] = keep
        end = int(ends[stop - 1])
        if end > stop:  # only the last group of a block goes on behind it
            block = block[keep & (groups[block] == groups[stop])]
            alive[stop:end] &= ~(box_iou(boxes[block], boxes[stop:end]) > threshold).any(0)
    return alive


def _resolve(suppresses: Tensor) -> Tensor:
    """Greedy choice in a block: box j stays if no staying i < j suppresses it. suppresses bool [B, B], upper.

    Iterating the rule from "all stay" settles one more box of every chain in each round, so the fixed
    point is the greedy answer, after as many rounds as the longest chain.
    """
    matrix = suppresses.to(torch.float32)
    keep = torch.ones(len(matrix), dtype=torch.bool, device=matrix.device)
    while True:
        updated = (keep.to(matrix.dtype) @ matrix) == 0
        if torch.equal(updated, keep):
            return keep
        keep = updated
