"""Measures how well anchors can fit the objects of a data set: each object's best IoU with any anchor of its image.

An anchor's IoU with a box depends on the distances of their centres in x and y, each for itself, and falls with both;
so of one size and ratio the anchor on the nearest cell is the best, and no other is looked at.
A objects, L levels, R aspect ratios.
"""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np

from network_files.anchors import cell_anchors
from network_files.config import MaskRCNNConfig
from network_files.transform import padded_size, resized_size
from train_utils.data.dataset import ImageDataset

STRIDES = (4, 8, 16, 32)  # of the body's levels; the last level has every other cell of the one below it
LOW, GAIN = 0.9, 0.02  # share of objects at IoU 0.5 below which other sizes are tried; what these must gain
MORE_RATIOS = (0.25, 0.5, 1.0, 2.0, 4.0)
SAMPLE = 5000  # objects that sizes are tried on


class Placed(Protocol):
    """Objects of I images: sizes int64 [I, 2] (height, width); image int64 [A], clipped float64 [A, 4], crowd bool [A].

    clipped: boxes x1 y1 x2 y2 within their images.
    """

    sizes: np.ndarray
    image: np.ndarray
    clipped: np.ndarray
    crowd: np.ndarray


class Objects(NamedTuple):
    """The same as plain arrays."""

    sizes: np.ndarray
    image: np.ndarray
    clipped: np.ndarray
    crowd: np.ndarray


def objects_of(data_set: ImageDataset) -> Objects:
    """Returns the objects of a data set's images."""
    rows, image = data_set.object_rows()
    table = data_set.annotations
    sizes, boxes = table.sizes[data_set.rows], table.boxes[rows]
    boxes[:, 2:] += boxes[:, :2]
    return Objects(sizes, image, np.clip(boxes, 0, sizes[image][:, [1, 0, 1, 0]]), table.iscrowd[rows].astype(bool))


class Scene(NamedTuple):
    """Objects in the frame of their resized images.

    boxes float64 [A, 4] x1 y1 x2 y2; steps [A, L, 2] pixels between the cells of each level in y and x; grids
    [A, L, 2] numbers of cells.
    """

    boxes: np.ndarray
    steps: np.ndarray
    grids: np.ndarray

    def take(self, chosen: np.ndarray) -> "Scene":
        """Returns the chosen objects."""
        return Scene(self.boxes[chosen], self.steps[chosen], self.grids[chosen])


def resized(table: Placed, config: MaskRCNNConfig) -> tuple[np.ndarray, np.ndarray]:
    """Returns height and width of each image after resizing, and of what it alone is padded to: int64 [I, 2] each."""
    found, inverse = np.unique(table.sizes, axis=0, return_inverse=True)
    sizing = config.min_size[-1], config.max_size
    small = [resized_size(h, w, *sizing, config.fixed_size) for h, w in found.tolist()]
    padded = [padded_size(h, w, *sizing, config.size_divisible, config.fixed_size) for h, w in found.tolist()]
    inverse = inverse.reshape(-1)
    return tuple(np.array(sizes, dtype=np.int64).reshape(-1, 2)[inverse] for sizes in (small, padded))


def scene(table: Placed, config: MaskRCNNConfig) -> Scene:
    """Returns all objects that are not crowds and have a side in the image."""
    small, padded = resized(table, config)
    boxes = table.clipped
    kept = ~table.crowd & (boxes[:, 2:] > boxes[:, :2]).all(1)
    image = table.image[kept]
    scale = (small / np.maximum(table.sizes, 1))[image]  # [A, 2] y, x
    grids = [padded // stride for stride in STRIDES]
    grids.append((grids[-1] - 1) // 2 + 1)
    grids = np.stack(grids, axis=1)  # [I, L, 2]
    steps = padded[:, None] // grids
    return Scene(boxes[kept] * scale[:, [1, 0, 1, 0]], steps[image], grids[image])


def best_iou(objects: Scene, sizes: Sequence[float], aspect_ratios: Sequence[float]) -> np.ndarray:
    """Returns each object's best IoU with an anchor: float64 [A]."""
    x1, y1, x2, y2 = np.ascontiguousarray(objects.boxes.T)  # [A] each, which is far faster than [A, 4]
    area, best = (x2 - x1) * (y2 - y1), np.zeros(len(objects.boxes))
    for level, size in enumerate(sizes):
        halves = cell_anchors(size, tuple(aspect_ratios))[:, 2:].double().tolist()  # x, y of each ratio
        across = [_overlaps(x1, x2, objects, level, 1, half) for half, _ in halves]
        down = [_overlaps(y1, y2, objects, level, 0, half) for _, half in halves]
        for wide, high, (half_x, half_y) in zip(across, down, halves, strict=True):
            shared = wide * high
            np.maximum(best, shared / (area + 4 * half_x * half_y - shared), out=best)
    return best


def _overlaps(low: np.ndarray, high: np.ndarray, objects: Scene, level: int, axis: int, half: float) -> np.ndarray:
    """Returns the pixels along an axis (0: y, 1: x) that each object shares with the nearest anchor of a half side."""
    step = objects.steps[:, level, axis].astype(np.float64)
    nearest = np.minimum(np.rint((low + high) / 2 / step).clip(0), objects.grids[:, level, axis] - 1) * step
    return (np.minimum(high, nearest + half) - np.maximum(low, nearest - half)).clip(0)


def suggest(objects: Scene, sizes: Sequence[float], ratios: Sequence[float], seed: int = 0) -> tuple[int, ...]:
    """Returns one size per level with which more objects are reached.

    It is the best of several spreads over the objects' sides; then each size becomes a little smaller or larger while
    that helps. Tried on a sample.
    """
    rng = np.random.default_rng(seed)
    if len(objects.boxes) > SAMPLE:
        objects = objects.take(np.sort(rng.choice(len(objects.boxes), SAMPLE, replace=False)))
    sides = np.sqrt((objects.boxes[:, 2:] - objects.boxes[:, :2]).prod(1))
    levels = len(sizes)
    starts = [np.quantile(sides, np.linspace(edge, 1 - edge, levels)) for edge in (0.03, 0.1, 0.2)]
    starts += [np.array(sizes) * 2.0**power for power in np.arange(-4, 2.1, 0.5)]
    tried: dict[tuple, float] = {}

    def score(given: tuple[int, ...]) -> float:
        if given not in tried:
            found = best_iou(objects, given, ratios)
            tried[given] = float((found >= 0.5).mean() + 0.5 * (found >= 0.7).mean())
        return tried[given]

    best = max((_whole(start) for start in starts), key=score)
    improved = True
    while improved:
        improved = False
        for level in range(levels):
            for factor in (0.7, 0.85, 1.2, 1.4):
                other = _whole([size * (factor if i == level else 1) for i, size in enumerate(best)])
                if score(other) > score(best) + 1e-4:
                    best, improved = other, True
    return best


def _whole(sizes: Sequence[float]) -> tuple[int, ...]:
    return tuple(sorted(max(2, round(float(size))) for size in sizes))


class Reach(NamedTuple):
    """How far anchors reach the objects.

    sizes, one per level, and aspect ratios of the anchors; ious [A]: each object's best with one of them.
    """

    sizes: tuple[int, ...]
    ratios: tuple[float, ...]
    ious: np.ndarray

    def share(self, least: float) -> float:
        """Returns the share of the objects that have an anchor of so much IoU."""
        return float((self.ious >= least).mean())

    def flags(self) -> str:
        """Returns the flags that train with these anchors."""
        sizes, ratios = (" ".join(f"{value:g}" for value in values) for values in (self.sizes, self.ratios))
        return f"--anchor-sizes {sizes} --aspect-ratios {ratios}"


def reach(tables: Sequence[Placed], config: MaskRCNNConfig) -> list[Reach]:
    """Returns how far the configured anchors reach; where that is little, also better sizes and more ratios.

    Empty without objects.
    """
    scenes = [scene(table, config) for table in tables]
    objects = Scene(*(np.concatenate(parts) for parts in zip(*scenes, strict=True)))
    if not len(objects.boxes):
        return []

    def of(sizes: tuple[int, ...], ratios: tuple[float, ...]) -> Reach:
        return Reach(sizes, ratios, best_iou(objects, sizes, ratios))

    found = [of(config.anchor_sizes, config.aspect_ratios)]
    for ratios in (config.aspect_ratios, MORE_RATIOS):
        best = found[-1]
        if best.share(0.5) >= LOW:
            break
        other = of(suggest(objects, best.sizes, ratios), ratios)
        if other.share(0.5) >= best.share(0.5) + GAIN:
            found.append(other)
    return found
