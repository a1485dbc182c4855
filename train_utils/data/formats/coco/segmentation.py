"""Segmentations of COCO annotations: polygons and RLE, checked, and turned into bytes and back into RLE.

A segmentation belongs to an image of `size` (H, W). InputError says what is wrong with one, `Skip` that it
is to be left out and counted.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from backbone.errors import InputError
from train_utils.data.masks import FAR, RLE, pack_polygons, unpack_polygon
from train_utils.data.problems import NO_SEGMENTATION
from train_utils.data.rle import decode_counts


class Skip(Exception):
    """An annotation that is left out and counted; the message is the reason."""


def read_segmentation(segmentation: Any, size: tuple[int, int]) -> tuple[int, list[bytes]]:
    """Returns (kind, parts as bytes): polygons as `pack_polygons` has them, or the counts of one compressed RLE."""
    if not segmentation:
        raise Skip(NO_SEGMENTATION)
    if isinstance(segmentation, dict):
        counts = rle_counts(segmentation, size)
        if coco_mask.area({"size": list(size), "counts": counts}) == 0:
            raise Skip("annotations whose mask is empty")
        return RLE, [counts]
    if not isinstance(segmentation, list):
        raise InputError("segmentation is neither a list of polygons nor an RLE")
    parts = polygon_points(segmentation, size)
    if any(len(points) % 2 for points in parts):
        raise Skip("annotations with a polygon of an odd number of values")
    # fewer than 3 points have no area (and pycocotools takes 4 numbers for a box)
    parts = [points for points in parts if len(points) >= 6]
    if not parts and len(segmentation) >= 3 and all(isinstance(p, list) and len(p) == 2 for p in segmentation):
        raise Skip("annotations whose polygon is a list of points (write each as one list: [[x1, y1, x2, y2, ...]])")
    if not parts:
        raise Skip("annotations whose polygons have fewer than 3 points")
    points = np.concatenate(parts).reshape(-1, 2)
    low, extent = points.min(0), points.max(0) - points.min(0)
    if not (overlaps(low[0], extent[0], size[1]) and overlaps(low[1], extent[1], size[0])):
        raise Skip("annotations whose polygons have no area in the image")
    return pack_polygons(parts)


def polygon_points(segmentation: list, size: Sequence[int]) -> list[np.ndarray]:
    """Returns x y x y ... of each polygon, float64; InputError for what is no list of numbers, or reaches far out."""
    if not isinstance(segmentation[0], list):
        segmentation = [segmentation]  # one polygon, not in a list
    parts = [numbers_of(polygon, "polygon") for polygon in segmentation]
    for points in parts:
        if len(points) and np.abs(points).max() > FAR * max(size):  # rasterising it could take all memory
            raise InputError(f"polygon reaches {np.abs(points).max():g}, the image is {size[1]}x{size[0]}")
    return parts


def overlaps(start: float, extent: float, side: int) -> bool:
    """Returns whether [start, start + extent] cut to [0, side] keeps a length, also in float32."""
    end = min(start + extent, side)
    return end - max(start, 0) > 1e-6 * side


def finite(values: object, what: str) -> list[float]:
    """Returns a short flat list of finite numbers (for a long one `numbers_of` is faster)."""
    if not isinstance(values, list) or any(type(value) not in (int, float) for value in values):
        raise InputError(f"{what} is not a list of numbers")
    if not all(-1e300 < value < 1e300 for value in values):  # json has integers of any length
        raise InputError(f"{what} holds a number that is not finite")
    return [float(value) for value in values]


def numbers_of(values: Any, what: str) -> np.ndarray:
    """Returns a flat list of finite numbers as float64."""
    try:
        numbers = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError, OverflowError) as error:
        raise InputError(f"{what} is not a list of numbers") from error
    if numbers.ndim != 1:
        raise InputError(f"{what} is not a flat list of numbers")
    if not np.isfinite(numbers).all():
        raise InputError(f"{what} holds a number that is not finite")
    return numbers


def rle_counts(rle: dict, size: tuple[int, int]) -> bytes:
    """Returns the counts of an RLE, compressed or not, as a compressed string; checked against `size` (H, W).

    rle: as json has it; its counts may be an array too.
    """
    given, counts = rle.get("size"), rle.get("counts")
    if given is None or list(numbers_of(given, "RLE size")) != list(size):
        raise InputError(f"RLE is for a size of {given} (height, width), but the image's is {list(size)}")
    if isinstance(counts, str):
        counts = counts.encode(errors="surrogatepass")
        runs = decode_counts(counts)
    elif isinstance(counts, list | np.ndarray):
        runs = numbers_of(counts, "RLE counts")
    else:
        raise InputError("RLE has no counts")
    pixels = size[0] * size[1]
    # each run too: the sum of many could go round 2^64
    if (runs < 0).any() or (runs > pixels).any() or (runs != np.floor(runs)).any() or runs.sum() != pixels:
        raise InputError(
            f"RLE does not fit its size: its runs cover {runs.sum():.0f} pixels, {size[0]} x {size[1]} "
            f"are {size[0] * size[1]}"
        )
    if not isinstance(counts, bytes):
        whole = {"size": list(size), "counts": runs.astype(np.uint32)}  # of a list pycocotools would make an array
        counts = coco_mask.frPyObjects(whole, *size)["counts"]
    return counts


def box_of(kind: int, parts: list[bytes], size: tuple[int, int]) -> list[float]:
    """Returns x y w h around polygons (their points) or an RLE (its pixels)."""
    if kind == RLE:
        return coco_mask.toBbox({"size": list(size), "counts": parts[0]}).tolist()
    points = np.concatenate([unpack_polygon(kind, part).reshape(-1, 2) for part in parts])  # [points, 2]
    low, high = points.min(0), points.max(0)
    return [*low.tolist(), *(high - low).tolist()]
