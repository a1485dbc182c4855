"""A packed data set: one file of images and cropped masks, mapped into memory -> (image, target) pairs.

`python -m tools.pack_dataset` writes such files, from any data set; each gives the samples that its data set gave.

    MAGIC, padded to ALIGNED bytes
    a record for each image: its pixels (uint8 3 x H x W) or the bytes of its file, then the masks' bits
    an index (array_block.py): INDEX's arrays, the label map and other plain values
    a tail: place and size of the index, and its SHA-256

A crop's bits are its pixels row by row, the first in the highest bit, filled up to whole bytes. The index is
checked when the file is opened, a record's checksum each time it is read.

N objects of one image of H x W pixels, P images and A objects in all.
"""

import copy
import hashlib
import mmap
import os
import struct
import zlib

import numpy as np
import torch

from backbone.errors import InputError
from network_files.operators.cropped_masks import CroppedMasks
from network_files.operators.instance_masks import encode_crop
from train_utils.data.images import read_image
from train_utils.data.labels import LabelMap
from train_utils.data.problems import describe_skips
from train_utils.io.array_block import ALIGNED, read_block
from train_utils.io.plain_text import visible

MAGIC = b"maskrcnn packed data set 1\n".ljust(ALIGNED, b"\0")
TAIL = struct.Struct("<QQ32s")
PIXELS, UPRIGHT, AS_STORED = range(3)  # a record's image: pixels; a file, to be turned by its EXIF orientation or not
INDEX = {
    "sizes": np.int64,  # [P, 2] height, width
    "image_ids": np.int64,  # [P]
    "records": np.int64,  # [P, 3] place, bytes of the image, bytes of the masks
    "checksums": np.uint32,  # [P, 2] CRC-32 of the two
    "kinds": np.uint8,  # [P] PIXELS, UPRIGHT or AS_STORED
    "first": np.int64,  # [P + 1] an image's first object
    "boxes": np.float32, "labels": np.int64, "areas": np.float32, "iscrowd": np.uint8,  # [A, 4], [A]: the target's
    "crops": np.int64,  # [A, 4] CroppedMasks.boxes
    # as ground truth: the annotation's id, x y w h and area as they were given, and whether it counts as a crowd
    "annotation_ids": np.int64, "given_boxes": np.float64, "given_areas": np.float64, "ignored": np.uint8,
}  # fmt: skip


class PackedDataset:
    """The images of one file; `ds[i]` is (image, target) as the packed data set had them, not augmented.

    rows: which images of the file belong to this data set (default: all). Raises InputError for a file that is
    damaged or none of these; `ds[i]` for a damaged record.
    """

    def __init__(self, path, rows=None):
        self.source = str(path)
        self._open()
        self.rows = np.arange(len(self.index["sizes"])) if rows is None else np.asarray(rows, dtype=np.int64)

    def __reduce__(self):  # a process that is not forked opens the file itself
        return PackedDataset, (self.source, self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, i: int):
        return self._image(i), self.target(i)

    @property
    def sizes(self) -> torch.Tensor:
        """Height and width of each image, int64 [len, 2]."""
        return torch.from_numpy(self.index["sizes"][self.rows])

    @property
    def missing(self) -> np.ndarray:
        """No image is missing: bool [len]."""
        return np.zeros(len(self), dtype=bool)

    def subset(self, positions) -> "PackedDataset":
        """The images at these positions, sharing the file."""
        part = copy.copy(self)
        part.rows = self.rows[np.asarray(positions, dtype=np.int64)]
        return part

    def target(self, i: int) -> dict:
        """The target of `ds[i]`, without its image."""
        objects = slice(*self._objects(i))
        boxes, labels, area, crowd = (
            torch.from_numpy(self.index[key][objects].copy()) for key in ("boxes", "labels", "areas", "iscrowd")
        )
        return {
            "boxes": boxes,
            "labels": labels,
            "masks": self._masks(i),
            "image_id": self.image_id(i),
            "area": area,
            "iscrowd": crowd,
        }

    def image_id(self, i: int) -> int:
        """As in the data that was packed."""
        return int(self.index["image_ids"][self.rows[i]])

    def given_id(self, i: int) -> int | str:
        """The id of image i as that data has it."""
        return self.given_ids.get(self.image_id(i), self.image_id(i))

    def file_name(self, i: int) -> str:
        """The path of image i when it was packed."""
        return self.names[self.rows[i]]

    def object_counts(self, crowd: bool = False) -> np.ndarray:
        """Objects that are not crowds, or crowd regions, per image: int64 [len]."""
        running = np.concatenate([[0], np.cumsum(self.index["iscrowd"] == crowd)])  # [A + 1]
        return np.diff(running[self.index["first"]])[self.rows]

    def with_given_ids(self, results: list[dict]) -> list[dict]:
        """COCO results with the ids of images and categories as the packed data has them."""
        return [
            {
                **result,
                "image_id": self.given_ids.get(result["image_id"], result["image_id"]),
                "category_id": self.label_map.given.get(result["category_id"], result["category_id"]),
            }
            for result in results
        ]

    def describe(self) -> str:
        """One line: images, objects, classes, and what was skipped before they were packed."""
        objects = self.object_counts()
        line = (
            f"{self.source} (packed): {len(self)} images ({int((objects == 0).sum())} without objects), "
            f"{int(objects.sum())} objects of {len(self.label_map)} classes, "
            f"{int(self.object_counts(crowd=True).sum())} crowd regions"
        )
        skips = describe_skips(self.skipped, self.first_skipped)
        return visible(line + (f"; skipped {skips}" if skips else ""))

    def ground_truth(self) -> dict:
        """A COCO dict of these images for evaluation, masks as RLE."""
        images, annotations, index = [], [], self.index
        for i, (height, width) in enumerate(self.sizes.tolist()):
            images.append({"id": self.image_id(i), "file_name": self.file_name(i), "height": height, "width": width})
            for k, crop in zip(range(*self._objects(i)), self._masks(i).crops(), strict=True):
                x, y = index["crops"][k, :2].tolist()
                annotations.append(
                    {
                        "id": int(index["annotation_ids"][k]),
                        "image_id": self.image_id(i),
                        "category_id": self.label_map.to_category(int(index["labels"][k])),
                        "bbox": index["given_boxes"][k].tolist(),
                        "area": float(index["given_areas"][k]),
                        "iscrowd": int(index["ignored"][k]),
                        "segmentation": encode_crop(crop.bool(), x, y, (height, width)),
                    }
                )
        pairs = zip(self.label_map.category_ids, self.label_map.names, strict=True)
        categories = [{"id": category, "name": name} for category, name in pairs]
        return {"info": {}, "images": images, "annotations": annotations, "categories": categories}

    def _size(self, i: int) -> tuple[int, int]:
        return tuple(self.index["sizes"][self.rows[i]].tolist())

    def _objects(self, i: int) -> list[int]:
        """The first object of image i, and the one after its last."""
        return self.index["first"][self.rows[i] :][:2].tolist()

    def _part(self, i: int, part: int) -> np.ndarray:
        """The bytes of image i (part 0) or of its masks' bits (1), uint8."""
        row = self.rows[i]
        place, *counts = self.index["records"][row].tolist()
        content = np.frombuffer(self._mapped, np.uint8, counts[part], place + part * counts[0])
        if zlib.crc32(content) != self.index["checksums"][row, part]:
            raise InputError(f"{self.source}: the record of {self.file_name(i)} is damaged; pack the data set again")
        return content

    def _image(self, i: int) -> torch.Tensor:
        size, kind, content = self._size(i), self.index["kinds"][self.rows[i]], self._part(i, 0)
        if kind == PIXELS:
            return torch.from_numpy(content.reshape(3, *size).copy())
        image = read_image(f"{self.source}: {self.file_name(i)}", kind == UPRIGHT, content)
        if tuple(image.shape[1:]) != size:
            raise InputError(f"{self.source}: {self.file_name(i)} is of another size than the index says")
        return image

    def _masks(self, i: int) -> CroppedMasks:
        boxes = self.index["crops"][slice(*self._objects(i))]  # [N, 4]
        counts = (boxes[:, 2:] - boxes[:, :2]).prod(axis=1)
        pixels = np.unpackbits(self._part(i, 1))  # crops begin at whole bytes
        if (counts % 8).any():
            starts = np.cumsum(-(-counts // 8) * 8) - -(-counts // 8) * 8
            parts = [pixels[start : start + count] for start, count in zip(starts, counts, strict=True)]
            pixels = np.concatenate(parts)
        return CroppedMasks(torch.from_numpy(pixels), torch.from_numpy(boxes.copy()), self._size(i))

    def _open(self):
        try:
            with open(self.source, "rb") as file:
                if file.read(len(MAGIC)) != MAGIC:
                    raise InputError(f"{self.source}: not a packed data set of this version; pack the data set again")
                end = file.seek(-TAIL.size, os.SEEK_END)
                place, size, digest = TAIL.unpack(file.read())
                self._mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            index = memoryview(self._mapped)[place:end]
            if place + size != end or hashlib.sha256(index).digest() != digest:
                raise ValueError("its checksum is wrong")
            values, self.index = read_block(self._mapped, place, INDEX)
            self.label_map = LabelMap.from_dict(values["label_map"])
            self.names, self.given_ids = values["names"], dict(values["given_ids"])
            self.skipped, self.first_skipped = values["skipped"], values["first_skipped"]
            self._check(place)
        except FileNotFoundError as error:
            raise InputError(f"{self.source}: no such file; train.pack and val.pack are needed") from error
        except (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError) as error:
            if isinstance(error, InputError):
                raise
            raise InputError(f"{self.source}: damaged or cut off ({error}); pack the data set again") from error

    def _check(self, end: int) -> None:
        """ValueError where the arrays, each sound as it is, do not fit one another or the file."""
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


def _need(what: str, *conditions) -> None:
    if not all(np.all(condition) for condition in conditions):
        raise ValueError(f"the {what} of its index contradict one another")
