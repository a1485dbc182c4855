"""All images and objects of a split in one frozen table of flat arrays, whatever the format of the data.

Python lists of a million annotations take gigabytes, and a forked loader worker copies every page of them whose
reference counts it touches. Flat arrays take a fifteenth of it and are shared with workers as they are.

I images in the data's order; A objects, those of one image next to one another.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from backbone.errors import InputError
from train_utils.data.images.reading import USUAL, Reading
from train_utils.data.images.windows import open_image
from train_utils.data.labels import LabelMap
from train_utils.data.masks import MaskSource, PolygonsAndRle, Ragged
from train_utils.io.plain_text import counted

# The arrays of a table whose masks are polygons and RLEs, as a cache keeps them.
DTYPES = {
    "image_ids": np.int64, "sizes": np.int64, "name_bytes": np.uint8, "name_first": np.int64,
    "given_bytes": np.uint8, "given_first": np.int64, "first": np.int64,
    "annotation_ids": np.int64, "category_ids": np.int64, "iscrowd": np.uint8, "boxes": np.float64,
    "areas": np.float64, "kinds": np.uint8, "first_part": np.int64, "part_bytes": np.uint8, "part_first": np.int64,
}  # fmt: skip


class ImageSource(Protocol):
    """What a format needs for its images; row: of the image in the table, name: its file name there.

    One whose images are no files of their own may have `image_checksums() -> uint32 [I]`, by which a change is noticed;
    one that gives other images and objects each time it is asked, `varies = True`: these are not compared.
    """

    def path(self, name: str) -> str:
        """Returns the path of an image's file."""
        ...

    def read(self, row: int, name: str, size: tuple[int, int], reading: Reading = USUAL) -> torch.Tensor:
        """Returns an image in the frame of its annotations, [C, H, W] as `reading` says, where that can be.

        Raises ImageError where its file is broken.
        """
        ...

    def claim(self, name: str, size: tuple[int, int], image_id: int | str) -> str:
        """Returns what says that the image has another size than its file, and what to do about it."""
        ...


class ImageFiles:
    """Images as files below a folder; source: what lists them."""

    def __init__(self, image_dir: str | Path, source: str) -> None:
        self.image_dir, self.source = Path(image_dir), source

    def path(self, name: str) -> str:
        """Returns the path below the folder."""
        return str(self.image_dir / name)

    def read(self, row: int, name: str, size: tuple[int, int], reading: Reading = USUAL) -> torch.Tensor:
        """Reads the file upright, or as stored where only that has the annotated size."""
        path = self.path(name)
        image = open_image(path, reading)
        if tuple(image.shape[1:]) != size and tuple(image.shape[:0:-1]) == size:
            return open_image(path, reading, rotate=False)
        return image

    def claim(self, name: str, size: tuple[int, int], image_id: int | str) -> str:
        """Returns the size that the source says."""
        return (
            f"{self.source} says {size[1]}x{size[0]} for image id {image_id}; correct the json or put back the "
            "original image"
        )


@dataclass(frozen=True, eq=False)
class Annotations:
    """The content of one split. `row` counts images, `k` objects. Arrays may be read-only, or mapped from a file."""

    source: str  # the json, list, folder or file that messages name
    image_ids: np.ndarray  # int64 [I]
    sizes: np.ndarray  # int64 [I, 2], height and width
    names: Ragged  # [I] file names
    first: np.ndarray  # int64 [I + 1]: the objects of image row are first[row] .. first[row + 1]
    annotation_ids: np.ndarray  # int64 [A], NO_ID where there is none
    category_ids: np.ndarray  # int64 [A]
    boxes: np.ndarray  # float64 [A, 4], x y w h as annotated
    areas: np.ndarray  # float64 [A] as annotated, NaN where it is not
    iscrowd: np.ndarray  # uint8 [A]: crowd regions, which are never trained on
    ignored: np.ndarray  # uint8 [A]: what evaluation counts neither for nor against; crowds, VOC's difficult objects
    masks: MaskSource
    images: ImageSource
    label_map: LabelMap
    categories: dict[int, str]  # {id: name}
    missing: np.ndarray  # bool [I]: image files that are not there
    usable: np.ndarray | None = None  # bool [I], where mistakes were collected: images without one; None: all
    given: Ragged | None = None  # [I] ids as json text where the data has something else than the number; None: nowhere
    given_categories: dict[int, str | int] = field(default_factory=dict)  # {id: what the data has}, where it is else
    skipped: dict[str, int] = field(default_factory=dict)  # {reason: annotations left out}
    first_skipped: dict[str, str] = field(default_factory=dict)  # {reason: which was the first}
    skipped_of: dict[int, int] = field(default_factory=dict)  # {category id: annotations left out}
    # objects that have a box, but no usable mask: image id, category id, x, y, w, h, area, iscrowd each
    unmasked: Sequence[list] = ()
    notes: tuple[str, ...] = ()  # what the reader decided
    fixed_labels: bool = False  # whether the data's own label map is the only one
    named: bool = True  # whether the data names its classes

    def __len__(self) -> int:
        return len(self.image_ids)

    def file_name(self, row: int) -> str:
        """Returns the name of an image, as the data has it."""
        return self.names.text(row)

    def file_names(self) -> list[str]:
        """Returns the names of all images."""
        return self.names.texts()

    def given_id(self, row: int) -> int | str:
        """Returns the id of an image as the data has it."""
        text = self.given[row] if self.given is not None else b""
        return json.loads(text) if text else int(self.image_ids[row])

    def objects(self, row: int) -> slice:
        """Returns the objects of an image."""
        return slice(int(self.first[row]), int(self.first[row + 1]))


def polygon_table(
    source: str | Path, values: dict, arrays: dict[str, np.ndarray], images: ImageSource, **more: Any
) -> Annotations:
    """Makes a table from plain values and DTYPES' arrays; its masks are polygons and RLEs.

    values: `categories`, `given` and `skipped_of` as lists of pairs, `skipped`, `first_skipped`, `unmasked`;
    more: other fields of the table.
    """
    given = Ragged(arrays["given_bytes"], arrays["given_first"]) if len(arrays["given_bytes"]) else None
    parts = Ragged(arrays["part_bytes"], arrays["part_first"])
    categories, given_categories = dict(values["categories"]), dict(values["given"])
    own = ("image_ids", "sizes", "first", "annotation_ids", "category_ids", "boxes", "areas", "iscrowd")
    fields = {
        "label_map": LabelMap.from_categories(categories, given_categories) if categories else None,
        "missing": np.zeros(len(arrays["image_ids"]), dtype=bool),
        **{name: arrays[name] for name in own},
        **more,
    }
    return Annotations(
        source=str(source),
        names=Ragged(arrays["name_bytes"], arrays["name_first"]),
        ignored=arrays["iscrowd"],
        masks=PolygonsAndRle(arrays["kinds"], arrays["first_part"], parts, arrays["annotation_ids"], str(source)),
        images=images,
        categories=categories,
        given=given,
        given_categories=given_categories,
        skipped=values["skipped"],
        first_skipped=values["first_skipped"],
        skipped_of=dict(values["skipped_of"]),
        unmasked=values.get("unmasked", ()),
        **fields,
    )


def image_arrays(images: Sequence[tuple]) -> dict[str, np.ndarray]:
    """Returns DTYPES' arrays of images: (id, file name, (H, W), id as json text or "") each."""
    names, given = Ragged.of(image[1] for image in images), Ragged.of(image[3] for image in images)
    return {
        "image_ids": np.array([image[0] for image in images], dtype=np.int64),
        "sizes": np.array([image[2] for image in images], dtype=np.int64).reshape(-1, 2),
        "name_bytes": names.values,
        "name_first": names.first,
        "given_bytes": given.values,
        "given_first": given.first if len(given.values) else np.zeros(1, np.int64),
    }


def clip_boxes(boxes: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Turns boxes x y w h [N, 4] into x1 y1 x2 y2 within an image of `size` (H, W), float32."""
    corners = np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1)  # [N, 4]
    height, width = size
    return np.clip(corners, 0, [width, height, width, height]).astype(np.float32)


def check_labels(table: Annotations, label_map: LabelMap) -> None:
    """Raises InputError if an object's category is not in the label map."""
    for category in np.unique(table.category_ids).tolist():
        if not label_map.has_category(category):
            k = int((table.category_ids == category).argmax())
            row = int(np.searchsorted(table.first, k, side="right")) - 1
            known = counted(len(label_map), "category")
            raise InputError(
                f"{table.source}: category {category} ({table.categories[category]}) of image id {table.given_id(row)} "
                f"is not one of the {known} of the label map; use data with the same categories"
            )
