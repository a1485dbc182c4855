"""A COCO json, checked and packed into flat arrays.

Python lists of a million annotations take gigabytes, and a forked loader worker copies every page of them
whose reference counts it touches. Flat arrays take a fifteenth of it and are shared with workers as they are.
The json is read in batches (`json_stream.py`), so that it never stands in memory as a whole, and what a large
one gave is kept for the next time (`annotation_cache.py`).
I images, A annotations (those of one image next to one another), in the json's order; R polygons or RLEs.
"""

import json
import os

import numpy as np

from backbone.errors import InputError
from train_utils.data import cache as annotation_cache
from train_utils.data.formats.coco.checks import (
    as_id,
    check_categories,
    check_different,
    check_image,
    check_is_coco,
    given_categories,
)
from train_utils.data.formats.coco.packer import Packer
from train_utils.data.formats.coco.segmentation import (
    LONGEST_OUTLINE,
    NO_SEGMENTATION,
    RLE,
    outline,
    rasterise,
    unpack_polygon,
)
from train_utils.data.labels import read_json
from train_utils.io.json_stream import BATCH, Unusual, no_collection, read_lists

DTYPES = {
    "image_ids": np.int64,
    "sizes": np.int64,
    "name_bytes": np.uint8,
    "name_first": np.int64,
    "given_bytes": np.uint8,
    "given_first": np.int64,
    "first": np.int64,
    "annotation_ids": np.int64,
    "category_ids": np.int64,
    "iscrowd": np.uint8,
    "boxes": np.float64,
    "areas": np.float64,
    "kinds": np.uint8,
    "first_part": np.int64,
    "part_bytes": np.uint8,
    "part_first": np.int64,
}
NO_MASKS = "no annotation has a segmentation; polygons or RLE masks are needed"
STANDS_TWICE = "stands twice; give each annotation an id of its own"


class Ragged:
    """Byte strings of different lengths in one uint8 array; string i is values[first[i] : first[i + 1]]."""

    def __init__(self, values: np.ndarray, first: np.ndarray):
        self.values, self.first = values, first

    def __getitem__(self, i: int) -> bytes:
        return self.values[self.first[i] : self.first[i + 1]].tobytes()


class CocoAnnotations:
    """The content of one json. Index `row` counts images, `k` annotations.

    path str; categories {id: name}; image_ids int64 [I]; sizes int64 [I, 2] (height, width); names Ragged [I];
    first int64 [I + 1] (annotations of image row: first[row] .. first[row + 1]); annotation_ids int64 [A]
    (NO_ID where missing); category_ids int64 [A]; boxes float64 [A, 4] x y w h as in the json; areas float64 [A]
    (NaN where missing); iscrowd uint8 [A]; kinds uint8 [A] and parts Ragged [R] (first_part int64 [A + 1]) as
    `coco_segmentation` has them; skipped {reason: count}, first_skipped {reason: which one}; given_categories
    {id: what the json has}, for ids that are not integers there (`given_id` has those of images); cache_note: why
    no index could be kept, or None. Made by `read_annotations`; arrays may be read-only.
    """

    def __init__(self, path, values: dict, arrays: dict[str, np.ndarray]):
        self.path = str(path)
        self.categories, self.given_categories = dict(values["categories"]), dict(values["given"])
        self.skipped, self.first_skipped = values["skipped"], values["first_skipped"]
        self.cache_note: str | None = None
        self.given = Ragged(arrays["given_bytes"], arrays["given_first"])
        self.names = Ragged(arrays["name_bytes"], arrays["name_first"])
        self.parts = Ragged(arrays["part_bytes"], arrays["part_first"])
        self.image_ids, self.sizes, self.first = arrays["image_ids"], arrays["sizes"], arrays["first"]
        self.annotation_ids, self.category_ids = arrays["annotation_ids"], arrays["category_ids"]
        self.iscrowd, self.boxes, self.areas = arrays["iscrowd"], arrays["boxes"], arrays["areas"]
        self.kinds, self.first_part = arrays["kinds"], arrays["first_part"]

    def __len__(self) -> int:
        return len(self.image_ids)

    def file_name(self, row: int) -> str:
        return self.names[row].decode()

    def file_names(self) -> list[str]:
        """The file names of all images."""
        content, bounds = self.names.values.tobytes(), self.names.first.tolist()
        return [content[a:b].decode() for a, b in zip(bounds, bounds[1:], strict=False)]

    def given_id(self, row: int):
        """The id of image `row` as it stands in the json."""
        text = self.given[row] if len(self.given.values) else b""
        return json.loads(text) if text else int(self.image_ids[row])

    def objects(self, row: int) -> slice:
        """The annotations of image `row`."""
        return slice(int(self.first[row]), int(self.first[row + 1]))

    def clipped_boxes(self, objects: slice, size) -> np.ndarray:
        """Boxes x1 y1 x2 y2 within an image of `size` (H, W), float32 [N, 4]."""
        return clip_boxes(self.boxes[objects], size)

    def segmentation(self, k: int, size):
        """Annotation k's polygons [[x1, y1, x2, y2, ...], ...] or compressed RLE {"size", "counts": str}."""
        parts = self._parts(k)
        if self.kinds[k] == RLE:
            return {"size": list(size), "counts": parts[0].decode()}
        return [unpack_polygon(self.kinds[k], part).tolist() for part in parts]

    def rle(self, k: int, size) -> dict:
        """Annotation k as compressed RLE (counts: bytes) of an image of `size` (H, W), rasterised by pycocotools.

        InputError for polygons with an outline of more than LONGEST_OUTLINE pixels, which would take all memory.
        """
        parts = self._parts(k)
        if self.kinds[k] == RLE:
            return {"size": list(size), "counts": parts[0]}
        polygons = [unpack_polygon(self.kinds[k], part) for part in parts]
        if outline(polygons, size) > LONGEST_OUTLINE:
            raise InputError(
                f"{self.path}: annotation {self.annotation_ids[k]}: its polygons go to and fro for more "
                f"than {LONGEST_OUTLINE} pixels; draw it anew, or take it out"
            )
        return rasterise(polygons, size)

    def _parts(self, k: int) -> list[bytes]:
        return [self.parts[p] for p in range(int(self.first_part[k]), int(self.first_part[k + 1]))]


def read_annotations(path, raw: dict | None = None, size_of=None) -> CocoAnnotations:
    """Read and check a COCO json (`raw`: its content, when already parsed).

    size_of: file name -> (H, W), asked for images that have no height and width in the json.
    Skipped and counted: annotations without segmentation, without area (zero-width boxes, polygons of fewer
    than 3 points, boxes or polygons outside the image), with an odd number of coordinates, or of an image that
    the json does not list. InputError names file and annotation id for everything else that is wrong.
    """
    if raw is None:
        found = read_indexed(path)
        if found is not None:
            return found
        raw = read_json(path)
    check_is_coco(raw, path)
    categories = check_categories(raw["categories"], path)
    images = [check_image(image, path, size_of) for image in raw["images"]]
    check_different(images, path)
    packer = Packer(path, images, categories)
    for start in range(0, len(raw["annotations"]), BATCH):
        packer.add(raw["annotations"][start : start + BATCH])
    if packer.skipped.get(NO_SEGMENTATION) == packer.count > 0:
        raise InputError(f"{path}: {NO_MASKS}")
    repeated = packer.repeated_id()
    if repeated is not None:
        given = (a["id"] for a in raw["annotations"] if a.get("id") is not None and as_id(a["id"], "id") == repeated)
        raise InputError(f"{path}: annotation id {next(given)} {STANDS_TWICE}")
    return CocoAnnotations(path, *packed_values(raw["categories"], categories, images, packer))


def read_indexed(path) -> CocoAnnotations | None:
    """The annotations of a json that is well in itself, from the cache or in batches of the file.

    None for any other, which `read_annotations` reads as a whole: with a mistake (which that names), images
    without a size, annotations before the images, or where it can't be opened.
    """
    content = None
    try:
        with open(path, "rb") as file:
            if os.fstat(file.fileno()).st_size >= annotation_cache.WORTHWHILE and annotation_cache.cache_folder():
                content = annotation_cache.file_hash(file)
                found = _from_index(path, content)
                if found is not None:
                    return found
                file.seek(0)
            with no_collection():
                read, parsed = _read_in_batches(path, file)
    except (Unusual, InputError, OSError):
        return None
    if content is None or parsed != content:  # too small, or written while it was read
        return CocoAnnotations(path, *read)
    note = annotation_cache.store(content, *read)
    found = None if note else _from_index(path, content)  # whose memory other processes share
    if found is None:
        found = CocoAnnotations(path, *read)
    found.cache_note = note
    return found


def _from_index(path, content: str) -> CocoAnnotations | None:
    found = annotation_cache.load(content, DTYPES)
    if found is None:
        return None
    return CocoAnnotations(path, *found)


def _read_in_batches(path, file) -> tuple[tuple, str]:
    """((values, arrays), hash of what was read); Unusual or InputError where it isn't all well."""
    state = annotation_cache.new_hash()
    images: list[tuple] = []
    listed: list = []
    packer: Packer | None = None

    def add_images(batch):
        images.extend(check_image(image, path, None) for image in batch)

    def add_annotations(batch):
        nonlocal packer
        if not images:
            raise Unusual("annotations before images")
        packer = packer or Packer(path, images)
        packer.add(batch)

    takers = {"images": add_images, "annotations": add_annotations, "categories": listed.extend}
    read_lists(file, takers, state.update)
    packer = packer or Packer(path, images)
    categories = check_categories(listed, path)
    if len(packer.row_of) < len(images) or packer.skipped.get(NO_SEGMENTATION) == packer.count > 0:
        raise Unusual("a mistake")
    if not packer.category_ids <= categories.keys():
        raise Unusual("a category that is not listed")
    if packer.repeated_id() is not None:
        raise Unusual("an id that stands twice")
    return packed_values(listed, categories, images, packer), state.hexdigest()


def packed_values(listed: list, categories: dict[int, str], images: list[tuple], packer: Packer) -> tuple[dict, dict]:
    """(plain values as json has them, arrays): what CocoAnnotations is made of, and the cache keeps."""
    values = {
        "categories": list(categories.items()),
        "given": list(given_categories(listed).items()),
        "skipped": packer.skipped,
        "first_skipped": packer.first_skipped,
    }
    return values, {**image_arrays(images), **packer.arrays()}


def image_arrays(images: list[tuple]) -> dict[str, np.ndarray]:
    """What `CocoAnnotations` has of its images: (id, file name, (H, W), `given_id`) each."""
    names, given = [image[1].encode() for image in images], [image[3].encode() for image in images]
    return {
        "image_ids": np.array([image[0] for image in images], dtype=np.int64),
        "sizes": np.array([image[2] for image in images], dtype=np.int64).reshape(-1, 2),
        "name_bytes": np.frombuffer(b"".join(names), dtype=np.uint8),
        "name_first": np.cumsum([0, *map(len, names)], dtype=np.int64),
        "given_bytes": np.frombuffer(b"".join(given), dtype=np.uint8),
        "given_first": np.cumsum([0, *map(len, given)], dtype=np.int64) if any(given) else np.zeros(1, np.int64),
    }


def clip_boxes(boxes: np.ndarray, size) -> np.ndarray:
    """Boxes x y w h [N, 4] -> x1 y1 x2 y2 within an image of `size` (H, W), float32."""
    corners = np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1)  # [N, 4]
    height, width = size
    return np.clip(corners, 0, [width, height, width, height]).astype(np.float32)
