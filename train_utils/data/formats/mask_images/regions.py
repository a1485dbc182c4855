"""A label image -> its objects as RLEs with boxes and areas, and the connected regions of its values.

A label image [H, W] has a number for each pixel, 0 for background. All is done on its runs: the pixels of one value
that follow one another down a column. An image has far fewer runs than pixels, and an RLE is made of them.

R runs, in column order; N values beside 0.
"""

from typing import NamedTuple

import numpy as np
from pycocotools import mask as coco_mask

from train_utils.data.rle import encode_many


class Runs(NamedTuple):
    """Runs of values beside 0: value, first pixel and end of each, counted down the columns; int64 [R] each."""

    values: np.ndarray
    starts: np.ndarray
    stops: np.ndarray


class Objects(NamedTuple):
    """N objects in the order of their values int64 [N]: boxes int64 [N, 4] x y w h, areas int64 [N], RLE counts."""

    values: np.ndarray
    boxes: np.ndarray
    areas: np.ndarray
    counts: list[bytes]


def find_runs(labels: np.ndarray) -> Runs:
    """Returns the runs of a label image."""
    height, flat = labels.shape[0], labels.ravel(order="F")
    begins = np.empty(flat.size, dtype=bool)
    np.not_equal(flat[1:], flat[:-1], out=begins[1:])
    begins[::height] = True
    starts = np.flatnonzero(begins)
    stops, values = np.append(starts[1:], flat.size), flat[starts].astype(np.int64)
    inside = values != 0
    return Runs(values[inside], starts[inside], stops[inside])


def objects_of(runs: Runs, size: tuple[int, int]) -> Objects:
    """Returns one object for each value of an image of `size` (H, W)."""
    if not len(runs.values):
        return Objects(runs.values, np.zeros((0, 4), np.int64), runs.values, [])
    order = np.argsort(runs.values, kind="stable")
    values, starts, stops = (column[order] for column in runs)
    first = np.flatnonzero(np.append(True, values[1:] != values[:-1]))  # each value's first run
    column = starts // size[0]
    last_row = stops - column * size[0]
    low = [np.minimum.reduceat(each, first) for each in (column, starts - column * size[0])]
    high = [np.maximum.reduceat(each, first) for each in (column + 1, last_row)]
    boxes = np.stack([*low, high[0] - low[0], high[1] - low[1]], axis=1)  # [N, 4]
    areas = np.add.reduceat(stops - starts, first)
    return Objects(values[first], boxes, areas, _encoded(starts, stops, first, size[0] * size[1]))


def single_object(labels: np.ndarray) -> Objects | None:
    """Returns the one object, or none, of a label image that has one value at most; None where it has several."""
    value = int(labels.max(initial=0))
    inside = labels == value if value else np.zeros(labels.shape, dtype=bool)
    area = np.count_nonzero(labels)
    if area != np.count_nonzero(inside):
        return None
    rle = coco_mask.encode(np.asfortranarray(inside).view(np.uint8))
    kept = int(area > 0)
    box = coco_mask.toBbox(rle).astype(np.int64)[None][:kept]
    return Objects(np.array([value][:kept]), box, np.array([area][:kept]), [rle["counts"]][:kept])


def _encoded(starts: np.ndarray, stops: np.ndarray, first: np.ndarray, pixels: int) -> list[bytes]:
    """Returns the RLE of each object; first: the object's first run [N]."""
    goes_on = np.append(False, starts[1:] == stops[:-1])  # from one column into the next
    goes_on[first] = False
    begins = np.flatnonzero(~goes_on)
    ends = np.append(begins[1:], len(starts)) - 1
    starts, stops = starts[begins], stops[ends]
    first = np.searchsorted(begins, first)
    before = np.append(0, stops[:-1])  # where the object's last run ended
    before[first] = 0
    last = np.append(first[1:], len(starts)) - 1  # each object's last run
    runs = np.stack([starts - before, stops - starts], axis=1).reshape(-1)  # unset and set by turns
    rest = pixels - stops[last]
    where = 2 * (last + 1)
    counts = 2 * np.diff(np.append(first, len(starts))) + (rest > 0)
    runs = np.insert(runs, where[rest > 0], rest[rest > 0])
    return encode_many(runs, np.append(0, counts.cumsum()))


def regions_of(runs: Runs, height: int) -> np.ndarray:
    """Returns for each run the first run of its connected region, int64 [R]: pixels of one value that touch.

    Pixels that touch at a corner are connected (8 neighbours).
    """
    count = len(runs.starts)
    column = runs.starts // height
    # In the next column, the runs that reach from a pixel above a run to one below it follow one another.
    low = np.maximum(
        np.searchsorted(runs.stops, runs.starts + height), np.searchsorted(runs.starts, (column + 1) * height)
    )
    high = np.minimum(
        np.searchsorted(runs.starts, runs.stops + height, side="right"),
        np.searchsorted(runs.starts, (column + 2) * height),
    )
    several = np.maximum(high - low, 0)
    one = np.repeat(np.arange(count), several)  # pairs of runs that touch
    other = np.arange(len(one)) - np.repeat(several.cumsum() - several, several) + np.repeat(low, several)
    same = runs.values[one] == runs.values[other]
    # A run within a column ends where the next one begins only where their values differ, so that is all that touches.
    one, other = one[same], other[same]
    root = np.arange(count)
    while True:  # each round joins every region to the least of those that it touches
        a, b = root[one], root[other]
        apart = a != b
        if not apart.any():
            return root
        np.minimum.at(root, np.maximum(a, b)[apart], np.minimum(a, b)[apart])
        while not np.array_equal(shorter := root[root], root):
            root = shorter


def split_regions(labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns (a label image whose values 1..M are the connected regions, int32 [H, W]; the value of each, int64 [M]).

    Regions are numbered by their first pixel, column by column.
    """
    runs = find_runs(labels)
    roots, number = np.unique(regions_of(runs, labels.shape[0]), return_inverse=True)
    lengths = runs.stops - runs.starts
    flat = np.zeros(labels.size, dtype=np.int32)
    pixels = np.arange(lengths.sum()) + np.repeat(runs.starts - (lengths.cumsum() - lengths), lengths)
    flat[pixels] = np.repeat(number.reshape(-1) + 1, lengths)
    return flat.reshape(labels.shape[::-1]).T, runs.values[roots]
