"""Polygons and RLEs of a json, or images of instance numbers -> the masks of one image at a time.

A mask source gives `crops` for training, `segmentations` for ground truth.
H x W is an image's size; objects are a slice of the table's A objects, N of them.
"""

import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from pycocotools import mask as coco_mask

from backbone.errors import InputError
from network_files.operators.cropped_masks import CroppedMasks
from network_files.operators.instance_masks import encode_crop
from train_utils.data.rle import cropped_masks
from train_utils.io.checksums import part_checksums

NO_ID = -(2**63)  # an annotation without id; no id is that low
POLYGON, RLE, HUNDREDTHS = 0, 1, 2  # HUNDREDTHS: polygons whose numbers are k / 100, k in 0..65535, as COCO's are
LONGEST_OUTLINE = 2_000_000  # pixels: pycocotools takes 80 bytes and more for each
FAR = 10  # times the image's longer side: polygons that reach farther count as broken


class Ragged:
    """Byte strings of different lengths in one uint8 array; string i is values[first[i] : first[i + 1]]."""

    def __init__(self, values: np.ndarray, first: np.ndarray) -> None:
        self.values, self.first = values, first

    def __getitem__(self, i: int) -> bytes:
        return self.values[self.first[i] : self.first[i + 1]].tobytes()

    def text(self, i: int) -> str:
        """Returns string i, decoded as file names are."""
        return os.fsdecode(self[i])

    def texts(self) -> list[str]:
        """Returns all strings, decoded as file names are."""
        content, bounds = self.values.tobytes(), self.first.tolist()
        return [os.fsdecode(content[a:b]) for a, b in zip(bounds, bounds[1:], strict=False)]

    @staticmethod
    def of(strings: Iterable[str]) -> "Ragged":
        """Joins strings, encoded as file names are."""
        parts = [os.fsencode(string) for string in strings]
        return Ragged(np.frombuffer(b"".join(parts), np.uint8), np.cumsum([0, *map(len, parts)], dtype=np.int64))


class MaskSource(Protocol):
    """What a format needs for its masks; row: of the image in the table, size: its (H, W).

    It may have more: two by which a change of the data is noticed: `mask_checksums(first) -> uint32 [I]`, of each
    image's masks as the table has them, and `mask_path(row)`, where an image's masks are a file. And `crops_of(numbers,
    size)`, where some objects of an image (int64 [N]) are sooner at hand than all; `bounds(objects, size)`, where boxes
    may be annotated otherwise: x1 y1 x2 y2 that hold the masks of an image's objects, float64 [N, 4], nan if unknown.
    """

    def crops(self, row: int, objects: slice, size: tuple[int, int]) -> CroppedMasks:
        """Returns the masks of an image's objects."""
        ...

    def segmentations(self, row: int, objects: slice, size: tuple[int, int]) -> list:
        """Returns N masks as COCO has them: polygons [[x1, y1, x2, y2, ...], ...] or an RLE {"size", "counts": str}."""
        ...


def some_crops(masks: MaskSource, row: int, objects: slice, numbers: np.ndarray, size: tuple[int, int]) -> CroppedMasks:
    """Returns the masks of these objects, int64 [N], of an image that has `objects`."""
    if hasattr(masks, "crops_of"):
        return masks.crops_of(numbers, size)
    return masks.crops(row, objects, size)[torch.from_numpy(numbers - objects.start)]


class PolygonsAndRle:
    """Masks of a COCO json: as it has them, or as RLEs that another format was turned into.

    kinds uint8 [A]; parts Ragged [R]: polygons as `pack_polygons` has them, or the counts of one compressed RLE;
    first_part int64 [A + 1]; annotation_ids int64 [A] and source name an annotation that is refused.
    """

    def __init__(
        self, kinds: np.ndarray, first_part: np.ndarray, parts: Ragged, annotation_ids: np.ndarray, source: str
    ) -> None:
        self.kinds, self.first_part, self.parts = kinds, first_part, parts
        self.annotation_ids, self.source = annotation_ids, source

    def crops(self, row: int, objects: slice, size: tuple[int, int]) -> CroppedMasks:
        """Decodes the RLEs, and the polygons by way of RLEs."""
        return self.crops_of(np.arange(objects.start, objects.stop), size)

    def crops_of(self, numbers: np.ndarray, size: tuple[int, int]) -> CroppedMasks:
        """Returns the masks of some objects of one image, int64 [N]."""
        return cropped_masks([self.rle(k, size) for k in numbers.tolist()], size)

    def bounds(self, objects: slice, size: tuple[int, int]) -> np.ndarray:
        """Returns what holds the masks, float64 [N, 4], by polygons' corners and RLEs, without decoding any."""
        kinds, starts = self.kinds[objects], self.parts.first[self.first_part[objects.start : objects.stop + 1]]
        if not len(kinds):
            return np.zeros((0, 4))
        if (kinds == RLE).all():
            boxes = coco_mask.toBbox([self.rle(k, size) for k in range(objects.start, objects.stop)])
            return np.concatenate((boxes[:, :2], boxes[:, :2] + boxes[:, 2:]), 1)
        if (kinds != kinds[0]).any() or not np.diff(starts).all():  # one by one
            if len(kinds) == 1:
                return np.full((1, 4), np.nan)  # without a polygon
            return np.concatenate([self.bounds(slice(k, k + 1), size) for k in range(objects.start, objects.stop)])
        content = self.parts.values[starts[0] : starts[-1]].tobytes()
        points = unpack_polygon(kinds[0], content).reshape(-1, 2)
        first = (starts[:-1] - starts[0]) * len(points) // len(content)
        return np.concatenate((np.minimum.reduceat(points, first), np.maximum.reduceat(points, first)), 1)

    def segmentations(self, row: int, objects: slice, size: tuple[int, int]) -> list:
        """Returns polygons and RLEs as the data has them."""
        return [self.segmentation(k, size) for k in range(objects.start, objects.stop)]

    def segmentation(self, k: int, size: tuple[int, int]) -> list | dict:
        """Returns object k's polygons or compressed RLE, as COCO has them."""
        parts = self._parts(k)
        if self.kinds[k] == RLE:
            return {"size": list(size), "counts": parts[0].decode()}
        return [unpack_polygon(self.kinds[k], part).tolist() for part in parts]

    def mask_checksums(self, first: np.ndarray) -> np.ndarray:
        """Returns a checksum of each image's polygons and RLEs, uint32 [I]; first: as in `Annotations`."""
        parts = self.first_part[first]  # [I + 1]
        return part_checksums(
            (first, self.kinds),
            (first, np.diff(self.first_part)),
            (parts, np.diff(self.parts.first)),
            (self.parts.first[parts], self.parts.values),
        )

    def rle(self, k: int, size: tuple[int, int]) -> dict:
        """Returns object k as compressed RLE (counts: bytes); pycocotools rasterises its polygons.

        Raises InputError for polygons with an outline of more than LONGEST_OUTLINE pixels: they would take all memory.
        """
        parts = self._parts(k)
        if self.kinds[k] == RLE:
            return {"size": list(size), "counts": parts[0]}
        polygons = [unpack_polygon(self.kinds[k], part) for part in parts]
        if outline(polygons, size) > LONGEST_OUTLINE:
            number = int(self.annotation_ids[k])
            named = f"object {k + 1}" if number == NO_ID else f"annotation {number}"
            raise InputError(
                f"{self.source}: {named}: its polygons go to and fro for more "
                f"than {LONGEST_OUTLINE} pixels; draw it anew, or take it out"
            )
        return rasterise(polygons, size)

    def _parts(self, k: int) -> list[bytes]:
        return [self.parts[p] for p in range(int(self.first_part[k]), int(self.first_part[k + 1]))]


class IndexImages:
    """Masks in image files whose pixels are instance numbers; a file is read again each time and never kept.

    folder, names: where the files are, one per image; numbers int64 [A]: the objects' pixel values; boxes int64 [A, 4]:
    x1 y1 x2 y2, tight; read: path -> indices uint8 [H, W].
    """

    def __init__(
        self, folder: Path, names: Ragged, numbers: np.ndarray, boxes: np.ndarray, read: Callable[[Path], np.ndarray]
    ) -> None:
        self.folder, self.names, self.numbers, self.boxes, self.read = folder, names, numbers, boxes, read

    def crops(self, row: int, objects: slice, size: tuple[int, int]) -> CroppedMasks:
        """Cuts the objects out of the image's file."""
        indices, boxes = torch.from_numpy(self.read(self.folder / self.names.text(row))), self.boxes[objects]
        crops = [
            indices[y1:y2, x1:x2] == number
            for number, (x1, y1, x2, y2) in zip(self.numbers[objects].tolist(), boxes.tolist(), strict=True)
        ]
        return CroppedMasks.from_crops(crops, torch.from_numpy(boxes.copy()), size)

    def segmentations(self, row: int, objects: slice, size: tuple[int, int]) -> list:
        """Returns RLEs of the crops."""
        return encoded(self.crops(row, objects, size))

    def bounds(self, objects: slice, size: tuple[int, int]) -> np.ndarray:
        """Returns the tight boxes, float64 [N, 4]."""
        return self.boxes[objects].astype(np.float64)

    def mask_checksums(self, first: np.ndarray) -> np.ndarray:
        """Returns a checksum of each image's pixel values and their boxes, uint32 [I]; first: as in `Annotations`."""
        return part_checksums((first, self.numbers), (first, self.boxes))

    def mask_path(self, row: int) -> Path:
        """Returns the file of an image's masks."""
        return self.folder / self.names.text(row)


def encoded(masks: CroppedMasks) -> list[dict]:
    """Returns masks as compressed RLEs {"size", "counts": str}."""
    corners = masks.boxes[:, :2].tolist()
    return [encode_crop(crop.bool(), x, y, masks.size) for crop, (x, y) in zip(masks.crops(), corners, strict=True)]


def pack_polygons(parts: list[np.ndarray]) -> tuple[int, list[bytes]]:
    """Returns (HUNDREDTHS, uint16 per number) where that loses nothing, else (POLYGON, float64).

    Hundredths take a quarter of the bytes.
    """
    hundredths = [np.rint(points * 100) for points in parts]
    if all(is_hundredths(points, rounded).all() for points, rounded in zip(parts, hundredths, strict=True)):
        return HUNDREDTHS, [rounded.astype(np.uint16).tobytes() for rounded in hundredths]
    return POLYGON, [points.tobytes() for points in parts]


def is_hundredths(numbers: np.ndarray, rounded: np.ndarray) -> np.ndarray:
    """Returns where `rounded` hundredths, as uint16, stand for exactly `numbers`."""
    return (rounded / 100 == numbers) & (rounded >= 0) & (rounded <= 65535)


def unpack_polygon(kind: int, part: bytes) -> np.ndarray:
    """Returns the numbers of one part, float64."""
    return np.frombuffer(part, np.uint16) / 100 if kind == HUNDREDTHS else np.frombuffer(part, np.float64)


def outline(polygons: list[np.ndarray], size: tuple[int, int]) -> float:
    """Returns the pixels along the polygons' edges, or an upper bound where that is below LONGEST_OUTLINE."""
    most = 2 * FAR * max(size) * sum(len(points) // 2 for points in polygons)
    if most <= LONGEST_OUTLINE:
        return most
    corners = [np.concatenate([points, points[:2]]).reshape(-1, 2) for points in polygons]  # closed, [points + 1, 2]
    return float(sum(np.abs(np.diff(xy, axis=0)).max(axis=1).sum() for xy in corners))


def rasterise(polygons: list[np.ndarray], size: tuple[int, int]) -> dict:
    """Turns one object's polygons into a compressed RLE (counts: bytes) of an image of `size` (H, W)."""
    return coco_mask.merge(coco_mask.frPyObjects(polygons, *size))
