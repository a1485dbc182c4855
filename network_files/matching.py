"""Which object an anchor or a proposal stands for, and which of them train.

Shapes: N images, G objects, B boxes (anchors or proposals), S sampled boxes of all images, K of them positive.
"""

import functools
import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from network_files.operators.boxes import box_ioa, box_iou
from network_files.operators.padded import HostCopy, Padded, cat_parts, from_host, portions, waits_are_cheap

OVERLAPS = 4_000_000  # computed at once
OVERLAPS_GPU = 25_000_000  # of 16 bytes each: 400 MB
NEAR = 256  # boxes of many that are compared with the objects near them alone
BELOW = -1  # overlaps every object by less than the low threshold: background
BETWEEN = -2  # between the thresholds: neither object nor background, ignored


class Sampled(NamedTuple):
    """The boxes that train: of image after image its positives, then its negatives."""

    batch_index: Tensor  # int64 [S]
    index: Tensor  # int64 [S], within the image
    positive: Tensor  # int64 [K]: which of the S are positive
    counts: list[tuple[int, int]]  # positives and negatives of each image

    def sizes(self) -> list[int]:
        """Returns how many are of each image."""
        return [sum(pair) for pair in self.counts]


class Candidates:
    """The boxes to draw from, of labels [N, B]: >= 1 positive, 0 negative, < 0 ignored.

    How many there are is on its way to the host: what is queued meanwhile costs no wait.
    """

    def __init__(self, labels: Tensor) -> None:
        self.kinds = torch.stack((labels >= 1, labels == 0), 1)  # [N, 2, B]
        self.there = HostCopy(self.kinds.sum(2))  # [N, 2]


def match(overlaps: Callable[[], Iterable[Tensor]], high: float, low: float, keep_best: bool = False) -> Tensor:
    """Returns the object that each box stands for, int64 [..., B].

    That is the object of the best overlap where this is >= high, BELOW where it is < low, BETWEEN otherwise.
    overlaps() yields the IoU matrix in parts [..., G, b] of some boxes each, G > 0. keep_best (Faster R-CNN's
    low-quality rule): the boxes that overlap an object more than all others do (ties included) stand for the object
    that they overlap most, however little.
    """
    parts, alone = [], None
    for part in overlaps():
        alone = None if parts else part  # one part alone is kept, and not computed again
        parts.append((*part.max(-2), _peaks(part) if keep_best else None))
    best, index = cat_parts([part[0] for part in parts], -1), cat_parts([part[1] for part in parts], -1)  # [..., B]
    matched = index.masked_fill(best < high, BETWEEN).masked_fill_(best < low, BELOW)
    if keep_best:
        peak = functools.reduce(torch.maximum, (part[2] for part in parts))  # [..., G]
        peak = peak.masked_fill(peak <= 0, math.inf)[..., None]  # an object that no box touches has no best one
        is_best = cat_parts([(iou == peak).any(-2) for iou in (overlaps() if alone is None else [alone])], -1)
        matched = torch.where(is_best, index, matched)
    return matched


def _peaks(iou: Tensor) -> Tensor:
    """Returns the largest overlap of each object, [..., G], of iou [..., G, b]."""
    return iou.amax(-1) if iou.shape[-1] else iou.new_zeros(iou.shape[:-1])


def match_near(objects: Tensor, boxes: Tensor, high: float, low: float, keep_best: bool) -> Tensor:
    """Returns what `match` gives for objects [G, 4] and boxes [B, 4], for low > 0, without most of their overlaps.

    Boxes are taken in the order of their sizes and places. A portion of them is compared with those objects that touch
    the box around it: the overlaps with all others are 0. For many objects the time is a fraction.
    """
    order = _by_place(boxes)
    boxes = boxes[order]
    best, index, peak = [], [], objects.new_zeros(len(objects))
    for near, iou in _near(objects, boxes):
        value, place = iou.max(0) if len(near) else (iou.sum(0), iou.new_zeros(iou.shape[1], dtype=torch.int64))
        best.append(value)
        index.append(near[place] if len(near) else place)
        peak[near] = torch.maximum(peak[near], iou.amax(1))
    best, index = torch.cat(best), torch.cat(index)  # [B]
    matched = index.masked_fill(best < high, BETWEEN).masked_fill_(best < low, BELOW)
    if keep_best:
        peak = torch.where(peak > 0, peak, math.inf)
        is_best = torch.cat([(iou == peak[near, None]).any(0) for near, iou in _near(objects, boxes)])
        matched = torch.where(is_best, index, matched)
    return torch.empty_like(matched).scatter_(0, order, matched)


def _by_place(boxes: Tensor) -> Tensor:
    """Returns an order of boxes [B, 4] in which those of about one size and place follow one another, int64 [B]."""
    corner, end = boxes[:, :2], boxes[:, 2:]
    size = (end - corner).amax(1).clamp(min=1).log2().floor()  # a box has 2^size to 2^(size + 1) pixels a side
    column, row = ((corner + end) / 4 / size.exp2()[:, None]).floor().unbind(1)  # of squares of twice that side
    by_row = torch.argsort(column, stable=True)
    by_row = by_row[torch.argsort(row[by_row], stable=True)]
    return by_row[torch.argsort(size[by_row], stable=True)]


def _near(objects: Tensor, boxes: Tensor) -> Iterable[tuple[Tensor, Tensor]]:
    """Yields for each portion of the boxes the objects that may touch one of them, int64 [g], and their IoU [g, b]."""
    for some in boxes.split(NEAR):
        touches = (objects[:, :2] < some[:, 2:].amax(0)) & (objects[:, 2:] > some[:, :2].amin(0))
        near = touches.all(1).nonzero()[:, 0]
        yield near, box_iou(objects[near], some)


def match_boxes(
    objects: Padded,
    crowds: Padded,
    boxes: Tensor,
    high: float,
    low: float,
    keep_best: bool,
    crowd_ioa_thresh: float | None,
) -> Tensor:
    """Matches boxes [N, B, 4] with objects [N, G, 4], as `match`, but ignores background boxes in crowd regions.

    boxes may be [1, B, 4]: the same for all images. crowds [N, K, 4]: regions full of unlabelled objects. A box that
    would be background, with at least crowd_ioa_thresh of its area in one of them, becomes BETWEEN (None: off, as
    torchvision). Returns int64 [N, B].
    """
    found = []
    for some in portions(len(objects), boxes.device):
        own, objects_here, crowds_here = boxes if len(boxes) == 1 else boxes[some], objects[some], crowds[some]
        count = objects_here.values.shape[1]
        if count * boxes.shape[1] > OVERLAPS and waits_are_cheap(boxes.device) and low > 0:
            matched = match_near(objects_here.values[0], own[0], high, low, keep_best)[None]
        elif count:
            matched = match(lambda: _overlaps(box_iou, objects_here, own), high, low, keep_best)  # noqa: B023
        else:
            shape = (len(objects_here), boxes.shape[1])
            matched = torch.full(shape, BELOW, dtype=torch.int64, device=boxes.device)
        if crowd_ioa_thresh is not None and crowds_here.values.shape[1] and boxes.shape[1]:
            shares = [share.amax(-2) for share in _overlaps(box_ioa, crowds_here, own)]
            in_crowd = torch.cat(shares, -1) >= crowd_ioa_thresh
            matched = torch.where((matched == BELOW) & in_crowd, BETWEEN, matched)
        found.append(matched)
    return cat_parts(found)


def _overlaps(measure: Callable[[Tensor, Tensor], Tensor], others: Padded, boxes: Tensor) -> Iterable[Tensor]:
    """Yields the overlap of others [N, G, 4] with boxes [N or 1, B, 4] in parts [N, G, b], -1 where there is none.

    All overlaps of 1,000 objects with a large image's anchors would take gigabytes.
    """
    most = OVERLAPS if waits_are_cheap(boxes.device) else OVERLAPS_GPU
    absent = None if others.whole else ~others.present()[..., None]
    for some in boxes.split(max(most // max(others.values.shape[:2].numel(), 1), 1), 1):
        found = measure(others.values, some)
        yield found if absent is None else found.masked_fill_(absent, -1)


def sample_balanced(
    labels: Tensor,
    count: int,
    positive_fraction: float,
    generators: Sequence[torch.Generator | None],
    candidates: Candidates | None = None,
) -> Sampled:
    """Chooses boxes to train on: of each image at most count x positive_fraction positives, the rest negatives.

    labels [N, B], as of Candidates (None: made here). Of an image at most `count` are chosen, drawn with its generator
    (None: torch's global one). The host waits once, for the numbers that there are to choose from.
    """
    candidates = candidates or Candidates(labels)
    there = [count for pair in candidates.there.read().tolist() for count in pair]
    counts, ranks = [], []  # a box is named by its rank among the candidates of its image and kind
    for positives, negatives, generator in zip(there[::2], there[1::2], generators, strict=True):
        n_positive = min(positives, int(count * positive_fraction))
        counts.append((n_positive, min(negatives, count - n_positive)))
        ranks += [draw(*pair, generator) for pair in zip((positives, negatives), counts[-1], strict=True)]
    # of each image's positives, then its negatives: the first one's rank among all candidates, from 1, and the image
    firsts = itertools.accumulate(there[:-1], initial=1)
    of_kind = torch.tensor([(first, kind // 2) for kind, first in enumerate(firsts)])  # [2 N, 2]
    sizes = torch.tensor([n for pair in counts for n in pair])
    first, image = of_kind.repeat_interleave(sizes, 0, output_size=sum(map(sum, counts))).unbind(1)  # [S]
    starts = itertools.accumulate(map(sum, counts), initial=0)
    positive = [start + i for start, (positives, _) in zip(starts, counts, strict=False) for i in range(positives)]
    positive = torch.tensor(positive, dtype=torch.int64)
    chosen = from_host(torch.cat((torch.cat(ranks).add_(first), image, positive)), labels.device)
    rank, batch_index, positive = chosen.split((len(first), len(first), len(positive)))
    place = torch.searchsorted(candidates.kinds.flatten().cumsum(0), rank)  # of the rank-th candidate
    return Sampled(batch_index, place % labels.shape[1], positive, counts)


def draw(candidates: int, count: int, generator: torch.Generator | None) -> Tensor:
    """Returns which of so many candidates are chosen, int64 [count].

    On the CPU whatever the device: the same seed then draws the same boxes everywhere.
    """
    order = torch.randperm(candidates, generator=generator)
    return order if count == candidates else order[:count]
