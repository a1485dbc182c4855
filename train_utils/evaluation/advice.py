"""Sizes of images and objects, and a network's config -> what does not fit, and the flags that fit better.

I images, A objects. Sizes are (height, width) in pixels.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from network_files import MaskRCNNConfig
from network_files.transform import resized_size
from train_utils.data.dataset import ImageDataset
from train_utils.data.objects.anchors import objects_of, scene
from train_utils.evaluation.limits import scale_of

ENLARGED, SHRUNK = 2.0, 0.5  # factors of resizing that are worth a line; COCO's photos are enlarged 1.7 times
TINY = 0.1  # share of the objects that are too small for any anchor, from which that is worth a line
LEAST_ANCHOR = 4  # pixels
# of a training step on a CPU in float32, ResNet-50 with FPN: docs/figures.md has 1261 MiB for 2 images of 800x1088
GRADIENTS, BYTES_PER_PIXEL = 170 * 2**20, (1261 - 170) * 2**20 / (2 * 800 * 1088)


class Sizing(NamedTuple):
    """How a network resizes the typical image; flags: with which it keeps its size, "" where none are advised."""

    size: tuple[int, int]
    resized: tuple[int, int]
    scale: float
    flags: str

    def line(self) -> str:
        """Returns a line that says so; empty where the images keep about their size."""
        (h, w), (new_h, new_w) = self.size, self.resized
        said = f"images are {w}x{h} (the median)"
        if self.flags:
            pixels = new_h * new_w / (h * w)
            return f"{said}, enlarged to {new_w}x{new_h}, {pixels:.0f} times the pixels: {self.flags} keeps their size"
        if self.scale <= SHRUNK:
            what = "small objects may be lost, a larger --min-size and --max-size keeps more of them"
            return f"{said}, shrunk to {new_w}x{new_h}: {what}"
        return ""


def sizing(sizes: np.ndarray, config: MaskRCNNConfig) -> Sizing:
    """Returns how images are resized; sizes: int64 [I, 2], I > 0."""
    size = tuple(np.median(sizes, axis=0).astype(int).tolist())
    resized = resized_size(*size, config.min_size[-1], config.max_size, config.fixed_size)
    scale, flags = scale_of(size, config), ""
    if scale > ENLARGED and config.fixed_size is None:
        sides = np.sort(sizes, axis=1)
        short, long = int(np.median(sides[:, 0])), int(np.quantile(sides[:, 1], 0.95))
        flags = f"--min-size {short} --max-size {max(short, long)}"
    return Sizing(size, tuple(resized), scale, flags)


def step_memory(images: int, size: tuple[int, int]) -> float:
    """Returns the bytes that a training step of ResNet-50 takes about, beside weights and program: by its pixels."""
    return GRADIENTS + images * size[0] * size[1] * BYTES_PER_PIXEL


def lines_on_fit(data_set: ImageDataset, config: MaskRCNNConfig) -> list[str]:
    """Returns lines about images that a network enlarges or shrinks much, and objects too small for its anchors."""
    lines = [sizing(data_set.annotations.sizes[data_set.rows], config).line()]
    sides = resized_sides(data_set, config)
    anchors = np.array(config.anchor_sizes)
    if len(sides) and (share := _too_small(sides, anchors)) >= TINY:
        while _too_small(sides, anchors) >= TINY and anchors.min() > LEAST_ANCHOR:
            anchors = anchors // 2
        smaller = f"below half of the smallest anchor's side, {min(config.anchor_sizes)} pixels"
        lines.append(f"{share:.0%} of the objects are {smaller}: --anchor-sizes {' '.join(map(str, anchors.tolist()))}")
    return [line for line in lines if line]


def resized_sides(data_set: ImageDataset, config: MaskRCNNConfig) -> np.ndarray:
    """Returns the square root of each object's box area, float64 [A], in pixels of its resized image; crowds apart."""
    boxes = scene(objects_of(data_set), config).boxes
    return np.sqrt((boxes[:, 2:] - boxes[:, :2]).prod(axis=1))


def _too_small(sides: np.ndarray, anchors: np.ndarray) -> float:
    """Returns the share of objects of which any anchor that holds them is more than 4 times as large: IoU below 1/4."""
    return float((sides < anchors.min() / 2).mean())
