"""Boxes and scores -> the boxes that stay: exact greedy non-maximum suppression without a loop over boxes.

Where few boxes can overlap, which is the usual case, only those pairs are looked at; else blocks of boxes
are compared with all that follow. Both ask the host again and again what there is. Where that is dear all are compared
with all, and the host looks once. Shapes: N boxes, E pairs; of many rows: B rows of K boxes.
"""

import itertools
import struct

import torch
import torch.nn.functional as F
from torch import Tensor

from network_files.operators.boxes import box_iou
from network_files.operators.padded import cat_parts, waits_are_cheap

BLOCK = 256  # boxes decided at once
PAIRS = 4_000_000  # candidates that are worth being looked at one by one
PORTION = 16_000  # of them looked at together: a few MiB
BOXES = 10_000  # of a CPU's rows looked at together: an image's
OVERLAPS = 100_000_000  # compared at once where all are compared with all, 16 bytes each: 1.6 GB
ROUNDS = 12  # of greedy choice between two looks of the host


def nms(boxes: Tensor, scores: Tensor, iou_threshold: float) -> Tensor:
    """Drops every box that overlaps a kept box of higher score by an IoU above the threshold.

    boxes [N, 4], scores [N] -> kept indices int64 [K], by falling score; equal scores keep their order.
    Equal to torchvision.ops.nms.
    """
    return batched_nms(boxes, scores, torch.zeros(len(boxes), dtype=torch.int64, device=boxes.device), iou_threshold)


def batched_nms(boxes: Tensor, scores: Tensor, groups: Tensor, iou_threshold: float) -> Tensor:
    """Runs `nms` within each group: boxes of different groups never suppress each other.

    boxes [N, 4], scores [N], groups int64 [N] -> kept indices int64 [K], by falling score over all groups;
    equal scores keep their order. Equal to torchvision.ops.nms on each group by itself.
    """
    order = torch.argsort(scores, descending=True, stable=True)
    order = order[torch.argsort(groups[order], stable=True)]  # by group, then by falling score
    kept = order[_greedy(boxes[order], groups[order], _float_threshold(iou_threshold, boxes.dtype))]
    kept = kept.sort().values
    return kept[torch.argsort(scores[kept], descending=True, stable=True)]


def nms_of_rows(
    boxes: Tensor, valid: Tensor, iou_threshold: float, groups: Tensor | None = None
) -> tuple[Tensor, list[int]]:
    """Runs `nms` within each row, and there within each group: says which boxes stay, and how many of each row.

    boxes [B, K, 4] by falling score, valid bool [B, K]: those that count, groups int64 [B, K] (None: a row is one).
    Returns bool [B, K], and B numbers: where the host's waits are dear, after one wait, or more for long chains.
    """
    rows, k = valid.shape
    threshold, cheap = _float_threshold(iou_threshold, boxes.dtype), waits_are_cheap(boxes.device)
    one_by_one = cheap or k * k > OVERLAPS
    at_once = max((BOXES if one_by_one else OVERLAPS) // max(k if one_by_one else k * k, 1), 1)
    given = (boxes, valid) if groups is None else (boxes, valid, groups)
    portions = [given] if rows <= at_once else list(zip(*(t.split(at_once) for t in given), strict=True))
    if not one_by_one:
        return _keep_at_once(portions, threshold)
    keep, counts = zip(*(_keep_of_some(threshold, *some) for some in portions), strict=True)
    return cat_parts(keep), list(itertools.chain(*counts))


def _keep_of_some(
    threshold: float, boxes: Tensor, valid: Tensor, groups: Tensor | None = None
) -> tuple[Tensor, list[int]]:
    """Returns the result of `nms_of_rows` by looking at the boxes that count alone."""
    row, place = valid.nonzero().unbind(1)
    if groups is not None:
        order = torch.argsort(groups[row, place], stable=True)
        order = order[torch.argsort(row[order], stable=True)] if len(valid) > 1 else order
        row, place = row[order], place[order]
    group = row if groups is None else row * (groups.max() + 1) + groups[row, place] if len(row) else row
    keep = torch.zeros_like(valid)
    keep[row, place] = _greedy(boxes[row, place], group, threshold)
    return keep, keep.sum(1).tolist()


def _keep_at_once(portions: list[tuple[Tensor, ...]], threshold: float) -> tuple[Tensor, list[int]]:
    """Returns the result of `nms_of_rows` for portions of its rows by comparing all with all.

    Rounds as in `_by_pairs`, many for each look. What stays by one round holds what stays by the next, or is held by
    it: where they are as many, they are the same. Else all is done again in more rounds, which is rare.
    """
    rounds = ROUNDS
    while True:
        last = cat_parts([_last_rounds(rounds, threshold, *some) for some in portions], 1)  # [2, B, 1, K]
        before, after = last.sum((2, 3), dtype=torch.float32).tolist()
        if before == after:
            return last[1].squeeze(1) > 0, [int(count) for count in after]
        rounds *= 2


def _last_rounds(rounds: int, threshold: float, boxes: Tensor, valid: Tensor, groups: Tensor | None = None) -> Tensor:
    """Returns what stays by the last two of so many rounds, 1, else 0: [2, B, 1, K]."""
    over = box_iou(boxes, boxes) > threshold  # [B, K, K]
    if groups is not None:
        over &= groups.unsqueeze(2) == groups.unsqueeze(1)
    # numbers for truth, of a round in two operators: what is valid, less how many that stay overlap it
    dtype = torch.float16 if over.device.type == "cuda" else torch.float32
    over, given = over.triu_(1).to(dtype), valid.to(dtype).unsqueeze(1)  # [B, K, K], [B, 1, K]
    keep = given
    with torch.autocast(over.device.type, enabled=False):
        for _ in range(rounds):
            previous, keep = keep, torch.baddbmm(given, keep, over, alpha=-1).gt_(0)
    return torch.stack((previous, keep))


def _float_threshold(threshold: float, dtype: torch.dtype) -> float:
    """Returns the largest number of `dtype` that is not above threshold, so that iou > t is right in real numbers."""
    if dtype != torch.float32:
        return threshold
    bits = struct.unpack("i", struct.pack("f", threshold))[0]  # on the host, without an operator
    rounded = struct.unpack("f", struct.pack("i", bits))[0]
    if rounded > threshold:
        rounded = struct.unpack("f", struct.pack("i", bits - 1 if rounded > 0 else bits + 1))[0]
    return rounded


def _greedy(boxes: Tensor, groups: Tensor, threshold: float) -> Tensor:
    """Says which of the boxes, sorted by group and score, survive: bool [N]."""
    pairs = _overlapping_pairs(boxes, groups, threshold) if len(boxes) else None
    return _by_blocks(boxes, groups, threshold) if pairs is None else _by_pairs(*pairs, len(boxes))


def _overlapping_pairs(boxes: Tensor, groups: Tensor, threshold: float) -> tuple[Tensor, Tensor] | None:
    """Finds the pairs i < j of one group whose IoU is above the threshold: int64 [E] each. None: too many candidates.

    An IoU above t needs a shared width above t times either box's: the box that begins first, over [x1, x2],
    must share more than t (x2 - x1), so the other begins before x2 - t (x2 - x1).
    """
    order = torch.argsort(boxes[:, 0])
    order = order[torch.argsort(groups[order], stable=True)]  # by group, then from left to right
    x1, y1, x2, y2 = boxes[order].t().contiguous()
    start, end = x1.double(), x2.double()
    low, high = start.min(), end.max()
    span = high - low + 1
    if threshold < 0 or not bool(span.isfinite()):
        return None
    group = F.pad((groups.diff() != 0).cumsum(0), (1, 0)) * span  # the groups side by side on one axis
    reach = end - threshold * (end - start) + 1e-6 * span  # a little more: rounding must not lose a pair
    stop = torch.searchsorted(group + (start - low), group + (reach.clamp(max=high) - low), right=True)
    first = torch.arange(1, len(boxes) + 1, device=boxes.device)  # candidates for the k-th: those behind it
    count = (stop - first).clamp_(min=0)
    ends = count.cumsum(0)
    total = int(ends[-1])
    if total > PAIRS:
        return None
    area = (x2 - x1) * (y2 - y1)
    cuts = torch.searchsorted(ends, torch.arange(0, total, PORTION, device=boxes.device), right=True).tolist()
    found = []
    for begin, end in itertools.pairwise([*dict.fromkeys(cuts), len(boxes)]):
        here = count[begin:end]
        left = torch.repeat_interleave(here) + begin
        right = torch.arange(len(left), device=boxes.device)
        right += (first[begin:end] - here.cumsum(0) + here).index_select(0, left - begin)
        found.append(_overlapping(left, right, (x1, y1, x2, y2, area), threshold))
    left, right = (order[torch.cat(side)] for side in zip(*found, strict=True)) if found else (order[:0], order[:0])
    return torch.minimum(left, right), torch.maximum(left, right)


def _overlapping(left: Tensor, right: Tensor, columns: tuple[Tensor, ...], threshold: float) -> tuple[Tensor, Tensor]:
    """Returns those of some pairs whose IoU is above the threshold; columns of all boxes: x1, y1, x2, y2, area, [N]."""
    x1, y1, x2, y2, area = columns

    def both(values: Tensor) -> tuple[Tensor, Tensor]:  # much faster than values[left], values[right]
        return values.index_select(0, left), values.index_select(0, right)

    height = torch.minimum(*both(y2)).sub_(torch.maximum(*both(y1)))
    meet = (height > 0).nonzero()[:, 0]
    left, right, height = left.index_select(0, meet), right.index_select(0, meet), height.index_select(0, meet)
    inter = torch.minimum(*both(x2)).sub_(torch.maximum(*both(x1))).clamp_(min=0).mul_(height)
    area_left, area_right = both(area)
    over = (inter / (area_left.add_(area_right).sub_(inter)) > threshold).nonzero()[:, 0]
    return left[over], right[over]


def _by_pairs(better: Tensor, worse: Tensor, count: int) -> Tensor:
    """Chooses greedily among `count` boxes, bool [count]: one stays if no staying better one overlaps it.

    Iterating the rule from "all stay" settles one more box of every chain in each round, so the fixed
    point is the greedy answer, after as many rounds as the longest chain.
    """
    keep = torch.ones(count, dtype=torch.bool, device=better.device)
    while True:
        updated = torch.ones_like(keep)
        updated[worse[keep[better]]] = False
        if torch.equal(updated, keep):
            return keep
        keep = updated


def _by_blocks(boxes: Tensor, groups: Tensor, threshold: float) -> Tensor:
    """Decides block by block in the order of scores: what stays in one drops what it overlaps behind it. bool [N]."""
    alive = torch.ones(len(boxes), dtype=torch.bool, device=boxes.device)
    ends = torch.searchsorted(groups, groups, right=True)  # [N] one past the last box of each box's group
    for start in range(0, len(boxes), BLOCK):
        stop = min(start + BLOCK, len(boxes))
        block = start + alive[start:stop].nonzero()[:, 0]  # [B] earlier blocks are decided already
        overlap = box_iou(boxes[block], boxes[block]) > threshold
        overlap &= groups[block][:, None] == groups[block]
        keep = _by_pairs(*overlap.triu_(diagonal=1).nonzero().unbind(1), len(block))
        alive[block] = keep
        end = int(ends[stop - 1])
        if end > stop:  # only the last group of a block goes on behind it
            block = block[keep & (groups[block] == groups[stop])]
            alive[stop:end] &= ~(box_iou(boxes[block], boxes[stop:end]) > threshold).any(0)
    return alive
