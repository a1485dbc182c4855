"""Turns a data set into plain values: histograms of its objects and images, and what masks can reach on it."""

import itertools
from collections import Counter
from typing import NamedTuple

import numpy as np
import torch

from backbone.errors import InputError
from network_files.config import MaskRCNNConfig
from network_files.operators.boxes import HALF_PIXEL, TORCHVISION, scale_boxes
from network_files.operators.cropped_masks import CroppedMasks
from network_files.operators.instance_masks import mask_probs_to_bool, mask_targets
from network_files.transform import resized_size
from tools.doctor.table import Table
from train_utils.data.dataset import ImageDataset
from train_utils.data.objects.anchors import resized

SAMPLE = 500  # objects that masks are tried on
MASK_GAIN = 0.02  # share of objects above IoU 0.9 that a larger mask must gain, to be recommended
SIDES = [0, 4, 8, 16, 32, 64, 128, 256, 512, 1024, np.inf]
COUNTS = [0, 1, 2, 3, 5, 9, 17, 33, 65, 129, np.inf]
RATIOS = [0, 1 / 8, 1 / 4, 1 / 2, 4 / 5, 5 / 4, 2, 4, 8, np.inf]  # width / height
RATIO_LABELS = ["1:8+", "1:8-1:4", "1:4-1:2", "1:2-4:5", "square", "5:4-2:1", "2:1-4:1", "4:1-8:1", "8:1+"]


def histograms(tables: list[Table], config: MaskRCNNConfig) -> dict[str, dict[str, int]]:
    """Returns {what: {bin: count}} of objects that are not crowds, and of images."""
    sides, ratios = [], []
    for table in tables:
        small, _ = resized(table, config)
        scale = (small / np.maximum(table.sizes, 1))[table.image][:, ::-1]  # [A, 2] x, y
        wide_high = ((table.clipped[:, 2:] - table.clipped[:, :2]) * scale)[~table.crowd]
        sides.append(np.sqrt(wide_high.prod(1)))
        ratios.append(wide_high[:, 0] / np.maximum(wide_high[:, 1], 1e-9))
    counts = np.concatenate([table.counts() for table in tables])
    sizes = np.concatenate([table.sizes for table in tables])
    return {
        "objects by size": _binned(np.concatenate(sides), SIDES),
        "objects by width : height": _binned(np.concatenate(ratios), RATIOS, RATIO_LABELS),
        "images by objects": _binned(counts, COUNTS, whole=True),
        "images by width : height": _binned(sizes[:, 1] / np.maximum(sizes[:, 0], 1), RATIOS, RATIO_LABELS),
    }


def image_sizes(tables: list[Table], most: int = 8) -> dict[str, int]:
    """Returns {"width x height": images} of the commonest sizes, and of all others together."""
    counts = Counter(map(tuple, np.concatenate([table.sizes for table in tables]).tolist()))
    found = {f"{w} x {h}": count for (h, w), count in counts.most_common(most)}
    others = sum(counts.values()) - sum(found.values())
    return {**found, f"{len(counts) - len(found)} others": others} if others else found


def _binned(values: np.ndarray, edges: list, labels: list[str] | None = None, whole: bool = False) -> dict[str, int]:
    counts = np.histogram(values, np.array(edges))[0].tolist()
    labels = labels or [_label(low, high, whole) for low, high in zip(edges, edges[1:], strict=False)]
    return dict(zip(labels, counts, strict=True))


def _label(low: float, high: float, whole: bool) -> str:
    if high == np.inf:
        return f"{low}+"
    if whole:
        return f"{low}" if high == low + 1 else f"{low}-{high - 1}"
    return f"{low}-{high}"


class MaskReach(NamedTuple):
    """What masks reach when the mask head is perfect: each object's own target, pasted back into its exact box.

    roi_size: of --mask-roi-size, half the cells of a mask's side; ious float64 [A]: of each object with what came back;
    unreadable: images whose masks cannot be read.
    """

    geometry: str
    roi_size: int
    ious: np.ndarray
    unreadable: int

    def share(self, least: float) -> float:
        """Returns the share of the objects whose mask comes back with an IoU above this."""
        return float((self.ious > least).mean())

    def cells(self) -> str:
        """Returns the size of a mask."""
        return f"{2 * self.roi_size} x {2 * self.roi_size} cells"

    def flags(self) -> str:
        """Returns the flags that train with these masks."""
        return f"--geometry {self.geometry} --mask-roi-size {self.roi_size}"

    def numbers(self) -> str:
        """Returns mean IoU and shares in words."""
        return f"mean IoU {self.ious.mean():.3f}, {self.share(0.5):.1%} above 0.5, {self.share(0.9):.1%} above 0.9"

    def gains(self, other: "MaskReach") -> bool:
        """Says whether noticeably more objects come back well than with the other masks."""
        return max(self.share(least) - other.share(least) for least in (0.5, 0.9)) >= MASK_GAIN


def mask_reach(splits: dict[str, ImageDataset], config: MaskRCNNConfig, seed: int) -> list[MaskReach]:
    """Returns what masks reach as configured, then in half-pixel geometry, then there twice and four times as fine.

    Measured on SAMPLE objects at most, of images chosen by the seed, crowds apart; empty where there are none.
    """
    fitting = HALF_PIXEL if config.geometry == TORCHVISION else config.geometry
    kinds = {
        (geometry, config.mask_roi_size * finer): []
        for geometry, finer in ((config.geometry, 1), *itertools.product((fitting,), (1, 2, 4)))
    }
    places = [(part, i) for part in splits.values() for i in np.flatnonzero(part.object_counts()).tolist()]
    rng, left, unreadable = np.random.default_rng(seed), SAMPLE, 0
    for k in rng.permutation(len(places)).tolist():
        part, i = places[k]
        try:
            target = part.target(i)
        except InputError:  # the full pass, which opens each image, names it
            unreadable += 1
            continue
        boxes, masks = target["boxes"], target["masks"]
        whole = (boxes[:, 2:] > boxes[:, :2]).all(1) & (masks.boxes[:, 2:] > masks.boxes[:, :2]).all(1)
        own = (whole & (target["iscrowd"] == 0)).nonzero()[:, 0]
        own = own[rng.permutation(len(own))[:left]]
        left -= len(own)
        for (geometry, roi_size), ious in kinds.items():
            ious += _there_and_back(boxes[own], masks[own], config, 2 * roi_size, geometry)
        if not left:
            break
    return [MaskReach(*kind, np.array(ious), unreadable) for kind, ious in kinds.items() if ious]


def _there_and_back(
    boxes: torch.Tensor, masks: CroppedMasks, config: MaskRCNNConfig, cells: int, geometry: str
) -> list[float]:
    """Returns the IoU of each mask with its own target, pasted back into its box [N, 4]."""
    size = resized_size(*masks.size, config.min_size[-1], config.max_size, config.fixed_size)
    rois = scale_boxes(boxes, masks.size, size)
    targets = mask_targets([masks], [rois], [torch.arange(len(boxes))], [size], cells, geometry)
    return ious(masks, mask_probs_to_bool(targets, boxes, masks.size, geometry))


def ious(ones: CroppedMasks, others: CroppedMasks) -> list[float]:
    """Returns the IoU of each of N masks, none of them empty, with its other."""
    shared = []
    pairs = zip(ones.crops(), ones.boxes.tolist(), others.crops(), others.boxes.tolist(), strict=True)
    for one, (ax1, ay1, ax2, ay2), other, (bx1, by1, bx2, by2) in pairs:
        x1, y1 = max(ax1, bx1), max(ay1, by1)
        x2, y2 = max(min(ax2, bx2), x1), max(min(ay2, by2), y1)
        both = one[y1 - ay1 : y2 - ay1, x1 - ax1 : x2 - ax1] & other[y1 - by1 : y2 - by1, x1 - bx1 : x2 - bx1]
        shared.append(int(both.sum()))
    areas = (ones.areas() + others.areas()).tolist()
    return [both / (area - both) for both, area in zip(shared, areas, strict=True)]
