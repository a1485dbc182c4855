"""A COCO json, checked and packed into flat arrays.

Python lists of a million annotations take gigabytes, and a forked loader worker copies every page of them
whose reference counts it touches. Flat arrays take a tenth of it and are shared with workers as they are.
I images, A annotations (those of one image next to one another), in the json's order.
"""

import math

import numpy as np

from backbone.errors import InputError
from train_utils.coco_segmentation import (
    NO_SEGMENTATION,
    POLYGON,
    Skip,
    box_of,
    finite,
    read_segmentation,
    to_rle,
)
from train_utils.label_map import read_json


class Ragged:
    """Byte strings of different lengths in one uint8 array."""

    def __init__(self, parts: list[bytes]):
        self.values = np.frombuffer(b"".join(parts), dtype=np.uint8)
        self.first = np.cumsum([0] + [len(part) for part in parts], dtype=np.int64)

    def __getitem__(self, i: int) -> bytes:
        return self.values[self.first[i] : self.first[i + 1]].tobytes()


class CocoAnnotations:
    """The content of one json. Index `row` counts images, `k` annotations.

    path str; categories {id: name}; image_ids int64 [I]; sizes int64 [I, 2] (height, width); names Ragged;
    first int64 [I + 1] (annotations of image row: first[row] .. first[row + 1]); annotation_ids int64 [A]
    (0 where missing); category_ids int64 [A]; boxes float64 [A, 4] x y w h as in the json; areas float64 [A]
    (NaN where missing); iscrowd uint8 [A]; skipped {reason: count}. Made by `read_annotations`.
    """

    def __init__(self, path, categories, images: list[tuple], annotations: list[list[tuple]], skipped):
        self.path, self.categories, self.skipped = str(path), categories, skipped
        self.image_ids = np.array([image[0] for image in images], dtype=np.int64)
        self.names = Ragged([image[1].encode() for image in images])
        self.sizes = np.array([image[2] for image in images], dtype=np.int64).reshape(-1, 2)
        self.first = np.cumsum([0] + [len(group) for group in annotations], dtype=np.int64)
        rows = [annotation for group in annotations for annotation in group]
        self.annotation_ids = np.array([row[0] for row in rows], dtype=np.int64)
        self.category_ids = np.array([row[1] for row in rows], dtype=np.int64)
        self.iscrowd = np.array([row[2] for row in rows], dtype=np.uint8)
        self.boxes = np.array([row[3] for row in rows], dtype=np.float64).reshape(-1, 4)
        self.areas = np.array([row[4] for row in rows], dtype=np.float64)
        self.kinds = np.array([row[5] for row in rows], dtype=np.uint8)
        self.first_part = np.cumsum([0] + [len(row[6]) for row in rows], dtype=np.int64)
        self.parts = Ragged([part for row in rows for part in row[6]])

    def __len__(self) -> int:
        return len(self.image_ids)

    def file_name(self, row: int) -> str:
        return self.names[row].decode()

    def objects(self, row: int) -> slice:
        """The annotations of image `row`."""
        return slice(int(self.first[row]), int(self.first[row + 1]))

    def clipped_boxes(self, objects: slice, size) -> np.ndarray:
        """Boxes x1 y1 x2 y2 within a picture of `size` (H, W), float32 [N, 4]."""
        return clip_boxes(self.boxes[objects], size)

    def segmentation(self, k: int, size):
        """Annotation k's polygons [[x1, y1, x2, y2, ...], ...] or compressed RLE {"size", "counts": str}."""
        parts = [self.parts[p] for p in range(self.first_part[k], self.first_part[k + 1])]
        if self.kinds[k] == POLYGON:
            return [np.frombuffer(part, dtype=np.float64).tolist() for part in parts]
        return {"size": list(size), "counts": parts[0].decode()}

    def rle(self, k: int, size) -> dict:
        """Annotation k as compressed RLE for a picture of `size` (H, W), rasterised by pycocotools."""
        return to_rle(self.segmentation(k, size), size)


def read_annotations(path, raw: dict | None = None, size_of=None) -> CocoAnnotations:
    """Read and check a COCO json (`raw`: its content, when already parsed).

    size_of: file name -> (H, W), asked for images that have no height and width in the json.
    Skipped and counted: annotations without segmentation, without area (zero-width boxes, polygons of fewer
    than 3 points, boxes outside the picture), or of an image that the json does not list. InputError names
    file and annotation id for everything else that is wrong.
    """
    raw = read_json(path) if raw is None else raw
    check_is_coco(raw, path)
    categories = _read_categories(raw["categories"], path)
    images = [_read_image(image, path, size_of) for image in raw["images"]]
    row_of = {image[0]: row for row, image in enumerate(images)}
    if len(row_of) < len(images):
        raise InputError(f"{path}: {len(images) - len(row_of)} image ids stand twice; ids must differ")
    groups: list[list[tuple]] = [[] for _ in images]
    skipped: dict[str, int] = {}
    for annotation in raw["annotations"]:
        try:
            if not isinstance(annotation, dict):
                raise InputError("is not an object with image_id, category_id, ...")
            row = row_of.get(as_id(annotation["image_id"], "image_id"))
            if row is None:
                raise Skip("annotations of images that are not listed")
            groups[row].append(_read_annotation(annotation, categories, images[row][2]))
        except Skip as reason:
            skipped[str(reason)] = skipped.get(str(reason), 0) + 1
        except (InputError, KeyError, TypeError, AttributeError, OverflowError) as error:
            what = f"{error} is missing" if isinstance(error, KeyError) else error
            name = annotation.get("id", "without id") if isinstance(annotation, dict) else annotation
            raise InputError(f"{path}: annotation {name}: {what}") from error
    if skipped.get(NO_SEGMENTATION) == len(raw["annotations"]) > 0:
        raise InputError(f"{path}: no annotation has a segmentation; polygons or RLE masks are needed")
    return CocoAnnotations(path, categories, images, groups, skipped)


def check_is_coco(raw, path):
    """InputError unless `raw` is a dict with lists of images, annotations and categories."""
    missing = [key for key in ("images", "annotations", "categories")
               if not isinstance(raw, dict) or not isinstance(raw.get(key), list)]
    if missing:
        raise InputError(f"{path}: not a COCO instances json: it has no list of {', '.join(missing)}")


def as_id(value, what: str) -> int:
    """An integer id; 7.0 counts as 7, as tables exported to json have it."""
    if isinstance(value, (int, float)) and abs(value) < 2**63 and value == int(value):
        return int(value)
    raise InputError(f"{what} {value!r} is not an integer")


def is_text(text: str) -> bool:
    """Whether a string can be written as UTF-8: json may hold halves of surrogate pairs."""
    return not any("\ud800" <= character <= "\udfff" for character in text)


def _read_categories(categories: list, path) -> dict[int, str]:
    names: dict[int, str] = {}
    for category in categories:
        if not isinstance(category, dict) or "id" not in category:
            raise InputError(f"{path}: category {category!r} has no id")
        try:
            i = as_id(category["id"], "id")
        except InputError as error:
            raise InputError(f"{path}: category {category.get('name')!r}: {error}") from error
        if i in names:
            raise InputError(f"{path}: category id {i} stands twice")
        names[i] = str(category.get("name", i))
        if not is_text(names[i]):
            raise InputError(f"{path}: category id {i}: name {names[i]!a} is not text")
    if not names:
        raise InputError(f"{path}: its list of categories is empty")
    return dict(sorted(names.items()))


def _read_image(image, path, size_of) -> tuple[int, str, tuple[int, int]]:
    """(id, file name, (H, W))."""
    if not isinstance(image, dict) or "id" not in image:
        raise InputError(f"{path}: image {image!r} has no id")
    try:
        image_id = as_id(image["id"], "id")
        name = image.get("file_name")
        if not isinstance(name, str) or not name or "\0" in name or not is_text(name):
            raise InputError(f"file_name {name!r} is not a file name")
        size = image.get("height"), image.get("width")
        if None in size and size_of is not None:
            size = size_of(name)
        size = as_id(size[0], "height"), as_id(size[1], "width")
        if min(size) < 1:
            raise InputError(f"a size of {size[1]}x{size[0]}")
    except InputError as error:
        raise InputError(f"{path}: image id {image['id']}: {error}") from error
    return image_id, name, size


def _read_annotation(annotation: dict, categories: dict, size: tuple[int, int]) -> tuple:
    """(annotation id, category id, iscrowd, xywh, area, kind, parts) as `CocoAnnotations` packs them."""
    category = as_id(annotation["category_id"], "category_id")
    if category not in categories:
        raise InputError(f"category_id {category} is not in the json's list of categories")
    kind, parts = read_segmentation(annotation.get("segmentation"), size)
    box = annotation.get("bbox")
    box = finite(box, "bbox") if box else box_of(kind, parts, size)
    if len(box) != 4:
        raise InputError(f"bbox has {len(box)} numbers, x y width height are 4")
    if not (_overlaps(box[0], box[2], size[1]) and _overlaps(box[1], box[3], size[0])):
        raise Skip("annotations whose box has no area in the picture")
    area = annotation.get("area")
    area = math.nan if area is None else finite([area], "area")[0]
    crowd = annotation.get("iscrowd")
    if crowd not in (None, 0, 1):  # "0" as text would count as true
        raise InputError(f"iscrowd {crowd!r} is neither 0 nor 1")
    number = annotation.get("id")
    number = int(number) if isinstance(number, (int, float)) and 0 < number < 2**63 else 0
    return number, category, int(bool(crowd)), box, area, kind, parts


def clip_boxes(boxes: np.ndarray, size) -> np.ndarray:
    """Boxes x y w h [N, 4] -> x1 y1 x2 y2 within a picture of `size` (H, W), float32."""
    corners = np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1)  # [N, 4]
    height, width = size
    return np.clip(corners, 0, [width, height, width, height]).astype(np.float32)


def _overlaps(start: float, extent: float, side: int) -> bool:
    """Whether [start, start + extent] cut to [0, side] keeps a length, also in float32."""
    end = min(start + extent, side)
    return end - max(start, 0) > 1e-6 * side
