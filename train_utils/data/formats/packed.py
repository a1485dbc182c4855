"""A packed data set: one file of images and cropped masks -> a table.

`python -m tools.pack_dataset` writes such files, from any data set; each gives the samples that its data set gave.

    MAGIC, padded to ALIGNED bytes
    a record for each image: its pixels (uint8 3 x H x W) or the bytes of its file, then the masks' bits
    an index (array_block.py): INDEX's arrays, the label map and other plain values
    a tail: place and size of the index, and its SHA-256

A crop's bits are its pixels row by row, the first in the highest bit, filled up to whole bytes. The index is checked
when the file is opened, a record's checksum each time it is read. Nothing is mapped into memory: a file that is cut
while a run reads it would end that by a bus error, without a line. Reading costs about 0.1 ms an image more.

N objects of one image of H x W pixels, I images and A objects in all.
"""

import hashlib
import json
import os
import struct
import threading
import weakref
import zlib
from io import FileIO
from pathlib import Path

import numpy as np
import torch

from backbone.errors import InputError
from network_files.operators.cropped_masks import CroppedMasks
from train_utils.data.annotations import Annotations
from train_utils.data.images import read_image
from train_utils.data.images.reading import ANY_CHANNELS, USUAL, Reading
from train_utils.data.labels import LabelMap
from train_utils.data.masks import Ragged, encoded
from train_utils.data.options import DataOptions
from train_utils.data.problems import StopAtFirst
from train_utils.io.array_block import ALIGNED, read_block
from train_utils.io.plain_text import counted

UNUSED = dict.fromkeys(("label_json_path", "image_dir", "year", "split_components"), "which holds all that it needs")
SPLITS = ("train", "val")
MAGIC = b"maskrcnn packed data set 1\n".ljust(ALIGNED, b"\0")
TAIL = struct.Struct("<QQ32s")
_ONE_READS = threading.Lock()
PIXELS, UPRIGHT, AS_STORED = range(3)  # a record's image: pixels; a file, to be turned by its EXIF orientation or not
INDEX = {
    "sizes": np.int64,  # [I, 2] height, width
    "image_ids": np.int64,  # [I]
    "records": np.int64,  # [I, 3] place, bytes of the image, bytes of the masks
    "checksums": np.uint32,  # [I, 2] CRC-32 of the two
    "kinds": np.uint8,  # [I] PIXELS, UPRIGHT or AS_STORED
    "first": np.int64,  # [I + 1] an image's first object
    "boxes": np.float32, "labels": np.int64, "areas": np.float32, "iscrowd": np.uint8,  # [A, 4], [A]: the target's
    "crops": np.int64,  # [A, 4] CroppedMasks.boxes
    # as ground truth: the annotation's id, x y w h and area as they were given, and whether it counts as a crowd
    "annotation_ids": np.int64, "given_boxes": np.float64, "given_areas": np.float64, "ignored": np.uint8,
}  # fmt: skip


def recognises(path: Path) -> bool:
    """Returns whether a path is a file of tools.pack_dataset, or a folder of such."""
    return path.suffix == ".pack" if path.is_file() else any((path / f"{name}.pack").is_file() for name in SPLITS)


def find_splits(path: Path, options: DataOptions, split: str | None) -> dict[str, Path]:
    """Returns {"train", "val": file}; a single file is the split that is asked for."""
    if path.is_file() and split is None:
        raise InputError(f"{path}: a single packed file has no validation split; give the folder of both")
    return {name: path if path.is_file() else path / f"{name}.pack" for name in SPLITS}


def read(place: Path, options: DataOptions, problems: StopAtFirst) -> Annotations:
    """Opens one file. Raises InputError for one that is damaged or none of these; its records are read later."""
    records = PackedRecords(str(place))
    index, label_map, given = records.index, records.label_map, records.given
    to_category = np.zeros(label_map.num_labels, dtype=np.int64)
    to_category[label_map.labels()] = label_map.category_ids
    return Annotations(
        source=str(place),
        image_ids=index["image_ids"],
        sizes=index["sizes"],
        names=Ragged.of(records.names),
        first=index["first"],
        annotation_ids=index["annotation_ids"],
        category_ids=to_category[index["labels"]],
        boxes=index["given_boxes"],
        areas=index["given_areas"],
        iscrowd=index["iscrowd"],
        ignored=index["ignored"],
        masks=records,
        images=records,
        label_map=label_map,
        categories=dict(zip(label_map.category_ids, label_map.names, strict=True)),
        missing=np.zeros(len(index["sizes"]), dtype=bool),
        given=Ragged.of(json.dumps(given[i]) if i in given else "" for i in index["image_ids"].tolist())
        if given
        else None,
        given_categories=label_map.given,
        skipped=records.skipped,
        first_skipped=records.first_skipped,
        skipped_of=records.skipped_of,
        unmasked=records.unmasked,
        fixed_labels=True,
    )


class PackedRecords:
    """The images and masks of one file; index: INDEX's arrays.

    Raises InputError for a file that is damaged or none of these; reading raises it for a damaged record.
    """

    def __init__(self, source: str) -> None:
        self.source = source
        try:
            self._open()
        except FileNotFoundError as error:
            raise InputError(f"{source}: no such file; train.pack and val.pack are needed") from error
        except (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError) as error:
            if isinstance(error, InputError):
                raise
            raise InputError(f"{source}: damaged or cut off ({error}); pack the data set again") from error

    def __reduce__(self) -> tuple[type, tuple[str]]:  # a process that is not forked opens the file itself
        return PackedRecords, (self.source,)

    def path(self, name: str) -> str:
        """Returns the path that the image had when it was packed."""
        return name

    def read(self, row: int, name: str, size: tuple[int, int], reading: Reading = USUAL) -> torch.Tensor:
        """Reads the record's pixels, or decodes its file."""
        kind, content = self.index["kinds"][row], self._part(row, 0)
        if kind == PIXELS:
            if reading.channels not in (ANY_CHANNELS, 3):
                what = f"holds RGB pixels, the model takes {counted(reading.channels, 'channel')}"
                raise InputError(f"{self.source}: {what}; pack the data again with --keep-encoded")
            return torch.from_numpy(content.reshape(3, *size))
        return read_image(f"{self.source}: {name}", kind == UPRIGHT, content, reading)

    def claim(self, name: str, size: tuple[int, int], image_id: int | str) -> str:
        """Returns the size that the index says."""
        return f"the index of {self.source} says {size[1]}x{size[0]}; pack the data set again"

    def crops(self, row: int, objects: slice, size: tuple[int, int]) -> CroppedMasks:
        """Unpacks the record's bits."""
        boxes = self.index["crops"][objects]  # [N, 4]
        counts = (boxes[:, 2:] - boxes[:, :2]).prod(axis=1)
        pixels = np.unpackbits(self._part(row, 1))  # crops begin at whole bytes
        if (counts % 8).any():
            starts = np.cumsum(-(-counts // 8) * 8) - -(-counts // 8) * 8
            parts = [pixels[start : start + count] for start, count in zip(starts, counts, strict=True)]
            pixels = np.concatenate(parts)
        return CroppedMasks(torch.from_numpy(pixels), torch.from_numpy(boxes.copy()), size)

    def bounds(self, objects: slice, size: tuple[int, int]) -> np.ndarray:
        """Returns the crops' boxes, float64 [N, 4]."""
        return self.index["crops"][objects].astype(np.float64)

    def segmentations(self, row: int, objects: slice, size: tuple[int, int]) -> list:
        """Returns RLEs of the crops."""
        return encoded(self.crops(row, objects, size))

    def image_checksums(self) -> np.ndarray:
        """Returns the checksum of each record's image, uint32 [I]."""
        return self.index["checksums"][:, 0]

    def mask_checksums(self, first: np.ndarray) -> np.ndarray:
        """Returns the checksum of each record's masks, uint32 [I]."""
        return self.index["checksums"][:, 1]

    def _part(self, row: int, part: int) -> np.ndarray:
        """Returns the bytes of an image (part 0) or of its masks' bits (1), uint8."""
        place, *counts = self.index["records"][row].tolist()
        content = read_at(self._file, place + part * counts[0], counts[part])
        if len(content) < counts[part]:
            raise InputError(f"{self.source}: has been cut off since it was opened; pack the data set again")
        if zlib.crc32(content) != self.index["checksums"][row, part]:
            raise InputError(f"{self.source}: the record of {self.names[row]} is damaged; pack the data set again")
        return content

    def _open(self) -> None:
        self._file = open(self.source, "rb", buffering=0)  # forked processes share it: read_at leaves its place alone
        weakref.finalize(self, self._file.close)
        if self._file.read(len(MAGIC)) != MAGIC:
            raise InputError(f"{self.source}: not a packed data set of this version; pack the data set again")
        end = self._file.seek(-TAIL.size, os.SEEK_END)
        place, size, digest = TAIL.unpack(self._file.read())
        if place + size != end:
            raise ValueError("its index lies elsewhere")
        index = read_at(self._file, place, size).tobytes()
        if hashlib.sha256(index).digest() != digest:
            raise ValueError("its checksum is wrong")
        values, self.index = read_block(index, 0, INDEX)
        self.label_map = LabelMap.from_dict(values["label_map"])
        self.names, self.given = values["names"], dict(values["given_ids"])
        self.skipped, self.first_skipped = values["skipped"], values["first_skipped"]
        self.skipped_of = dict(values.get("skipped_of", ()))
        self.unmasked = values.get("unmasked", ())
        self._check(place)

    def _check(self, end: int) -> None:
        """Raises ValueError where arrays that are sound do not fit one another or the file."""
        index, first = self.index, self.index["first"]
        images, objects = len(index["sizes"]), len(index["labels"])
        shapes = {"sizes": (images, 2), "records": (images, 3), "checksums": (images, 2)}
        shapes |= {"first": (images + 1,), "image_ids": (images,), "kinds": (images,)}
        shapes |= dict.fromkeys(("boxes", "crops", "given_boxes"), (objects, 4))
        _need("shapes", *(array.shape == shapes.get(name, (objects,)) for name, array in index.items()))
        _need("names", len(self.names) == images, all(isinstance(name, str) for name in self.names))
        _need(
            "objects",
            first[0] == 0,
            first[-1] == objects,
            np.diff(first) >= 0,
            np.isfinite(index["boxes"]),
            np.isin(index["labels"], self.label_map.labels()),
        )
        (height, width), (place, image, masks) = index["sizes"].T, index["records"].T
        _need(
            "records",
            height > 0,
            width > 0,
            place >= len(MAGIC),
            image >= 0,
            masks >= 0,
            place <= end,
            image <= end,
            masks <= end,
            place + image + masks <= end,
        )
        pixels = 3 * height.astype(object) * width if (index["kinds"] == PIXELS).any() else image
        _need("images", (index["kinds"] > PIXELS) | (image == pixels), index["kinds"] <= AS_STORED)
        owner, (x1, y1, x2, y2) = np.repeat(np.arange(images), np.diff(first)), index["crops"].T
        _need("crops", x1 >= 0, x1 <= x2, x2 <= width[owner], y1 >= 0, y1 <= y2, y2 <= height[owner])
        bits = np.zeros(images, dtype=np.int64)
        np.add.at(bits, owner, -(-(x2 - x1) * (y2 - y1) // 8))
        _need("masks", bits == masks)


def read_at(file: FileIO, place: int, count: int) -> np.ndarray:
    """Reads count bytes, uint8, from a place of a file on; fewer where it ends before."""
    content, done = np.empty(count, np.uint8), 0
    view = memoryview(content)
    while done < count and (got := _read_into(file, view[done:], place + done)):
        done += got
    return content[:done]


def _read_into(file: FileIO, view: memoryview, place: int) -> int:
    if hasattr(os, "preadv"):
        return os.preadv(file.fileno(), [view], place)
    with _ONE_READS:  # Windows, where each process has opened the file itself
        file.seek(place)
        return file.readinto(view) or 0


def _need(what: str, *conditions: object) -> None:
    if not all(np.all(condition) for condition in conditions):
        raise ValueError(f"the {what} of its index contradict one another")
