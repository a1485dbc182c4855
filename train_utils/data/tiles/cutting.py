"""A data set of large images -> a data set of their tiles, for training.

T tiles of all images, A' parts of objects in them. An object that a tile's border cuts keeps its part; where that is
less than MIN_VISIBLE of the object's pixels it becomes a crowd region, which is ignored: neither object nor background.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch
from torch import Generator, Tensor
from tqdm import tqdm

from network_files.operators.cropped_masks import CroppedMasks
from train_utils.data.annotations import Annotations, clip_boxes
from train_utils.data.augmentations.common import MIN_VISIBLE, PER_OBJECT, cropped, uniform, with_masks
from train_utils.data.dataset import ImageDataset
from train_utils.data.images.reading import Reading
from train_utils.data.masks import Ragged, encoded, some_crops
from train_utils.data.tiles.tiling import Size, Tiling
from train_utils.io.plain_text import counted

Window = tuple[int, int, int, int]  # x1 y1 x2 y2 in an image's pixels


def cut_target(target: dict, window: Window) -> dict:
    """Returns the target of what a window of its image shows, in the window's pixels.

    Objects without a pixel in it are absent. Of those that are cut, box and area are of the pixels in it, and those of
    which less than MIN_VISIBLE is in it are crowd regions. Whole ones keep box and area as annotated.
    """
    x1, y1, x2, y2 = window
    places = cropped(target["masks"]).boxes  # tight
    near = (places[:, :2] < torch.tensor([x2, y2])).all(1) & (places[:, 2:] > torch.tensor([x1, y1])).all(1)
    if not near.all():  # a tile has few of an image's many objects
        target = {**target, **{key: target[key][near] for key in PER_OBJECT}}
    masks = cropped(target["masks"])
    before, seen = masks.areas(), masks.window(x1, y1, x2 - x1, y2 - y1)
    area = seen.areas()  # [N]
    frame = torch.tensor([x2 - x1, y2 - y1] * 2)
    boxes = (target["boxes"] - torch.tensor([x1, y1] * 2)).clamp(min=0).minimum(frame)  # [N, 4]
    lost = (boxes[:, 2:] <= boxes[:, :2]).any(1)  # a box as annotated need not hold the mask
    cut = with_masks({**target, "boxes": boxes}, seen, (area < before) | lost)
    cut["iscrowd"] = torch.where(area < MIN_VISIBLE * before, 1, target["iscrowd"]).to(target["iscrowd"].dtype)
    return {**cut, **{key: cut[key][area > 0] for key in PER_OBJECT}}


class Tiles(ImageDataset):
    """The tiles of a data set's images: `ds[i]` is (tile, the objects in it), without augmentation.

    Its table has the parts of objects as the tiles show their boxes, from which sizes and counts follow; targets are
    cut by the masks. A tile is without objects where no box has MIN_VISIBLE of its area in it.

    whole: the data set that is cut, images after one another; negatives: see `TrainingTiles`.
    """

    def __init__(self, whole: ImageDataset, tiling: Tiling, negatives: float) -> None:
        self._boxes, self._grown = _holding(whole)
        cut = _cut(whole, tiling, self._boxes)
        super().__init__(_table(whole.annotations, cut, whole.rows[cut.images]))
        self.label_map, self.reading = whole.label_map, whole.reading
        whole = in_parts(whole, whole.reading)
        self._whole, self.tiling, self.negatives, self._cut = whole, tiling, negatives, cut

    @property
    def whole(self) -> ImageDataset:
        """The data set that is cut."""
        return self._whole

    @cached_property
    def factors(self) -> np.ndarray:
        """How often an epoch has each tile, float64 [len]: those without objects by chance, others each epoch."""
        own = self.object_counts() > 0
        return np.where(own, 1.0, min(1.0, self.negatives * own.sum() / max((~own).sum(), 1)))

    def __getitem__(self, i: int) -> tuple[Tensor, dict]:
        return self.image(i), self.target(i)

    def image(self, i: int) -> Tensor:
        """Reads image i, and cuts the tile out."""
        return self._image_in(i, self.window(i))

    def target(self, i: int) -> dict:
        """Returns the target of `ds[i]`, without reading the image."""
        return self._target_in(i, self.window(i))

    def drawn(self, i: int, rng: Generator) -> tuple[Tensor, dict]:
        """Returns tile i, moved by up to half of what neighbours share, so that borders cut elsewhere each time."""
        (x1, y1, x2, y2), (height, width) = self.window(i), self._image_size(i)
        most = self.tiling.side * self.tiling.overlap / 2
        x, y = (round(uniform(-most, most, rng)) for _ in range(2))
        x, y = min(max(x, -x1), width - x2), min(max(y, -y1), height - y2)  # within the image
        window = x1 + x, y1 + y, x2 + x, y2 + y
        return self._image_in(i, window), self._target_in(i, window)

    def window(self, i: int) -> Window:
        """Returns where tile i lies in its image."""
        return tuple(self._cut.windows[self.rows[i]].tolist())

    def place(self, i: int) -> int:
        """Returns the position in `whole` of tile i's image."""
        return int(self._cut.images[self.rows[i]])

    def read_as(self, reading: Reading) -> Tiles:
        """Returns the same tiles as a model takes them."""
        part = super().read_as(reading)
        part._whole = in_parts(self.whole, reading)
        return part

    def describe_cut(self) -> str:
        """Returns a line that says how the images are cut, and what an epoch has of the tiles."""
        own, cut = self.object_counts() > 0, self._cut
        empty, taken = int((~own).sum()), int(self.factors[~own].sum() + 1e-9)
        line = (
            f"{counted(len(self.whole), 'image')} cut into {counted(len(self), 'tile')} of at most "
            f"{self.tiling.side}x{self.tiling.side} pixels (--tile), {int(own.sum()):,} with objects"
        )
        if empty:
            line += f"; of the {empty:,} without an epoch has {taken:,}, others each time (--tile-negatives)"
        below = int((cut.shares < MIN_VISIBLE).sum())
        if self._grown:
            what = counted(self._grown, "object")
            line += f"; the boxes of {what} do not hold their masks, by which tiles go instead"
        return (
            f"{line}; borders cut {int((cut.shares < 1).sum()):,} of {counted(len(cut.shares), 'part')} of objects, "
            f"{below:,} of which are less than {MIN_VISIBLE:.0%} of the object, and ignored"
        )

    def _image_size(self, i: int) -> Size:
        return tuple(self.whole.sizes[self.place(i)].tolist())

    def _is_whole(self, i: int, window: Window) -> bool:
        height, width = self._image_size(i)
        return window == (0, 0, width, height)

    def _image_in(self, i: int, window: Window) -> Tensor:
        image, (x1, y1, x2, y2) = self.whole.image(self.place(i)), window  # a large one is read here
        return image[:, y1:y2, x1:x2].clone()  # not a view, which keeps it all

    def _target_in(self, i: int, window: Window) -> dict:
        place = self.place(i)
        if self._is_whole(i, window):
            return self.whole.target(place)
        table = self.whole.annotations
        objects = table.objects(self.whole.rows[place])
        corners = clip_boxes(self._boxes[objects], self._image_size(i))
        seen = (corners[:, :2] < window[2:]).all(1) & (corners[:, 2:] > window[:2]).all(1)
        return cut_target(self.whole.target(place, objects.start + np.flatnonzero(seen)), window)


def in_parts(whole: ImageDataset, reading: Reading) -> ImageDataset:
    """Returns the images as `reading` says, large ones read in parts."""
    return whole.read_as(replace(reading, by_windows=True))


class _Cut(NamedTuple):
    """Tiles, image by image, and the parts of objects in them, tile by tile.

    images int64 [T]: positions in the data set; windows int64 [T, 4]; first int64 [T + 1]: the parts of tile t are
    first[t] .. first[t + 1]; objects int64 [A']: rows of the table; boxes float64 [A', 4]: x1 y1 x2 y2 in the tile;
    shares float64 [A']: of the objects' boxes.
    """

    images: np.ndarray
    windows: np.ndarray
    first: np.ndarray
    objects: np.ndarray
    boxes: np.ndarray
    shares: np.ndarray


def _holding(whole: ImageDataset) -> tuple[np.ndarray, int]:
    """Returns boxes x y w h [A, 4] that hold their masks too, and of how many objects the annotated ones do not.

    What a tile shows of an object would else be background where a box is wrong. Less than a pixel is rounding.
    """
    table, grown = whole.annotations, 0
    boxes = table.boxes
    if not hasattr(table.masks, "bounds"):
        return boxes, grown
    each = zip(whole.rows.tolist(), whole.sizes.tolist(), strict=True)
    for row, (height, width) in tqdm(each, "masks in tiles", len(whole), unit="image", disable=None, leave=False):
        own = table.objects(row)
        low, high = np.split(np.clip(table.masks.bounds(own, (height, width)), 0, [width, height] * 2), 2, 1)
        corner, end = boxes[own, :2], boxes[own, :2] + boxes[own, 2:]
        beyond = ((corner - low > 1) | (high - end > 1)).any(1)
        if beyond.any():
            boxes, grown = boxes if grown else boxes.copy(), grown + int(beyond.sum())
            corner, end = np.minimum(corner, low), np.maximum(end, high)
            boxes[own] = np.where(beyond[:, None], np.concatenate((corner, end - corner), 1), boxes[own])
    return boxes, grown


def _cut(whole: ImageDataset, tiling: Tiling, all_boxes: np.ndarray) -> _Cut:
    """Cuts each image; all_boxes x y w h [A, 4]: of the table's objects."""
    table, images, windows, objects, tiles, count = whole.annotations, [], [], [], [], 0
    for i, size in enumerate(whole.sizes.tolist()):
        boxes, own = tiling.boxes(size).numpy(), table.objects(whole.rows[i])
        some, places = _parts(clip_boxes(all_boxes[own], size), size, tiling)
        images.append(np.full(len(boxes), i))
        windows.append(boxes)
        objects.append(own.start + some)
        tiles.append(count + places)
        count += len(boxes)
    images, windows, objects, tiles = map(np.concatenate, (images, windows, objects, tiles))
    order = np.argsort(tiles, kind="stable")
    objects, tiles = objects[order], tiles[order]
    height, width = table.sizes[whole.rows[images[tiles]]].T
    corners = all_boxes[objects]  # [A', 4]
    corners[:, 2:] += corners[:, :2]
    corners = np.clip(corners, 0, np.stack((width, height, width, height), 1))
    corner = windows[tiles][:, [0, 1, 0, 1]]
    parts = np.clip(corners, corner, windows[tiles][:, [2, 3, 2, 3]])
    inside, whole_areas = ((box[:, 2:] - box[:, :2]).prod(1) for box in (parts, corners))
    shares = np.divide(inside, whole_areas, out=np.ones(len(parts)), where=whole_areas > 0)
    first = np.searchsorted(tiles, np.arange(count + 1))
    return _Cut(images, windows, first, objects, parts - corner, shares)


def _parts(corners: np.ndarray, size: Sequence[int], tiling: Tiling) -> tuple[np.ndarray, np.ndarray]:
    """Returns which objects (of boxes x1 y1 x2 y2 [O, 4]) lie in which tiles of an image: two int64 [pairs]."""
    ranges = []
    for axis, length in ((0, size[1]), (1, size[0])):
        starts, side = tiling.along(length)
        begin = np.searchsorted(np.array(starts) + side, corners[:, axis], side="right")
        end = np.searchsorted(np.array(starts), corners[:, axis + 2], side="left")
        ranges.append((begin, np.maximum(end - begin, 0), len(starts)))
    (x, columns, across), (y, rows, _) = ranges
    count = columns * rows  # tiles of each object
    objects = np.repeat(np.arange(len(corners)), count)
    place = np.arange(len(objects)) - np.repeat(np.cumsum(count) - count, count)
    wide = np.maximum(columns[objects], 1)
    return objects, (y[objects] + place // wide) * across + x[objects] + place % wide


def _table(whole: Annotations, cut: _Cut, rows: np.ndarray) -> Annotations:
    """Returns the table of the tiles; rows int64 [T]: of their images."""
    height, width = (cut.windows[:, 3] - cut.windows[:, 1]), (cut.windows[:, 2] - cut.windows[:, 0])
    below = (cut.shares < MIN_VISIBLE).astype(np.uint8)
    given = whole.given
    return replace(
        whole,
        image_ids=whole.image_ids[rows],
        sizes=np.stack((height, width), 1),
        names=Ragged.of(whole.file_name(row) for row in rows.tolist()),
        first=cut.first,
        annotation_ids=whole.annotation_ids[cut.objects],
        category_ids=whole.category_ids[cut.objects],
        boxes=np.concatenate((cut.boxes[:, :2], cut.boxes[:, 2:] - cut.boxes[:, :2]), 1),
        areas=whole.areas[cut.objects] * cut.shares,
        iscrowd=whole.iscrowd[cut.objects] | below,
        ignored=whole.ignored[cut.objects] | below,
        masks=_PartsOfMasks(whole, cut, rows),
        missing=whole.missing[rows],
        usable=None,
        given=None if given is None else Ragged.of(given[row].decode() for row in rows.tolist()),
    )


class _PartsOfMasks:
    """The masks of a table of tiles; see `MaskSource`."""

    def __init__(self, whole: Annotations, cut: _Cut, rows: np.ndarray) -> None:
        self.whole, self.cut, self.rows = whole, cut, rows

    def crops(self, row: int, objects: slice, size: Size) -> CroppedMasks:
        """Cuts the masks of an image to a tile."""
        own, (x1, y1, x2, y2) = int(self.rows[row]), self.cut.windows[row].tolist()
        where = own, self.whole.objects(own), self.cut.objects[objects], tuple(self.whole.sizes[own].tolist())
        masks = some_crops(self.whole.masks, *where)
        return masks.window(x1, y1, x2 - x1, y2 - y1)

    def segmentations(self, row: int, objects: slice, size: Size) -> list:
        """Returns RLEs of the crops."""
        return encoded(self.crops(row, objects, size))
