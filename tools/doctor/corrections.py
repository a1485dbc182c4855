"""The content of a COCO json -> the same, corrected entry by entry; nothing is guessed, and every change is noted.

What the loader would skip is taken out, what can't be meant otherwise is corrected, all else stays as it is.
"""

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from pycocotools import mask as coco_mask

from backbone.errors import InputError
from tools.doctor import looks
from train_utils.data.formats.coco.checks import check_image, number_of
from train_utils.data.formats.coco.file_names import settle
from train_utils.data.formats.coco.layout import image_path, listed_names, size_reader
from train_utils.data.formats.coco.segmentation import Skip, box_of, finite, overlaps, read_segmentation
from train_utils.data.masks import LONGEST_OUTLINE, RLE, outline, rasterise, unpack_polygon
from train_utils.io.plain_text import brief, counted, one_line


class Change(NamedTuple):
    """One change.

    about: image, annotation or category; what: the key, or "entry" where it is taken out (after: None).
    """

    file: str
    about: str
    id: object
    what: str
    before: object
    after: object
    why: str

    def __str__(self) -> str:
        if self.what == "entry":
            return one_line(f"{self.file}: {self.about} {self.id}: taken out: {self.why}")
        change = f"{self.what} {brief(self.before)} -> {brief(self.after)}"
        return one_line(f"{self.file}: {self.about} {self.id}: {change}: {self.why}")


class Corrector:
    """Corrects the content of one json; `changes` is added to."""

    def __init__(self, path: Path, image_dir: Path, root: Path, changes: list[Change], uncrowd: bool) -> None:
        self.path, self.image_dir, self.root, self.changes = str(path), image_dir, root, changes
        self.uncrowd = uncrowd  # whether crowd regions become objects
        self.sizes: dict[int, tuple[int, int]] = {}  # of sound images, by id
        self.dropped: set[int] = set()  # images
        self.known: set[int] = set()  # all ids of images, sound or not

    def correct(self, raw: dict) -> dict:
        """Returns the content, corrected."""
        self.renamed = settle(listed_names(raw["images"]), self.image_dir, self.root).renamed
        images = self._kept("image", raw["images"], self._image)
        annotations = self._kept("annotation", raw["annotations"], self._annotation)
        return {
            **raw,
            "images": images,
            "annotations": self._numbered(annotations),
            "categories": self._kept("category", raw["categories"], lambda category: category),
        }

    def _kept(self, about: str, entries: list, correct: Callable[[dict], dict | None]) -> list:
        """Returns the entries that stay, corrected; one that is the same as another in everything is taken out."""
        kept, seen = [], set()  # content of entries as they were and as they are corrected
        for entry in entries:
            if not isinstance(entry, dict):
                kept.append(entry)
                continue
            before = _content(about, entry)
            corrected = None if before in seen else correct(entry)
            after = before if corrected is None else _content(about, corrected)
            if before in seen or (after != before and after in seen):
                self._change(about, entry, "entry", entry, None, "it is the same as another")
            elif corrected is not None:
                kept.append(corrected)
            seen |= {before, after}
        return kept

    def _change(self, about: str, entry: dict, what: str, before: object, after: object, why: str) -> None:
        self.changes.append(Change(self.path, about, entry.get("id"), what, before, after, why))

    def _image(self, image: dict) -> dict | None:
        number = number_of(image, "id")
        if number is None:
            return image
        self.known.add(number)
        name = image.get("file_name")
        if isinstance(name, str) and name in self.renamed:
            self._change("image", image, "file_name", name, self.renamed[name], "as the file is named")
            name = self.renamed[name]
            image = {**image, "file_name": name}
        try:
            place = image_path(self.image_dir, name, self.root) if isinstance(name, str) and name else None
        except InputError:  # it leaves the data
            return image
        if place and not os.path.isfile(place):
            self.dropped.add(number)
            self._change("image", image, "entry", image, None, "its image is missing")
            return None
        try:
            _, _, size, _ = check_image(image, self.path, None)
        except InputError:
            try:
                high, wide = size_reader(self.image_dir, self.root)(name) if place else (0, 0)
                candidate = {**image, "height": high, "width": wide}
                _, _, size, _ = check_image(candidate, self.path, None)
            except InputError:
                return image
            before = [image.get("width"), image.get("height")]
            self._change("image", image, "width, height", before, [wide, high], "as the image is")
            image = candidate
        self.sizes[number] = size
        return image

    def _annotation(self, annotation: dict) -> dict | None:
        number = number_of(annotation, "image_id")
        if number in self.dropped or number is not None and number not in self.known:
            why = "its image is missing" if number in self.dropped else "its image is not listed"
            self._change("annotation", annotation, "entry", annotation, None, why)
            return None
        if number not in self.sizes:
            return annotation
        size = self.sizes[number]
        try:
            kind, parts = read_segmentation(annotation.get("segmentation"), size)
            mask = None if kind == RLE else [unpack_polygon(kind, part) for part in parts]
            if mask is not None and outline(mask, size) > LONGEST_OUTLINE:
                return annotation
        except Skip as reason:
            self._change("annotation", annotation, "entry", annotation, None, f"training skips it: {reason}")
            return None
        except (InputError, TypeError, AttributeError, OverflowError):  # left to the user
            return annotation
        annotation = self._with_crowd(annotation)
        tight = _clip(box_of(kind, parts, size), size)
        if _contradict(annotation.get("bbox"), tight, size):
            return annotation  # nothing tells which of the two is right
        rle = {"size": list(size), "counts": parts[0]} if mask is None else None
        rough = float(coco_mask.area(rle)) if rle else _shoelace(mask)
        pixels = rough
        if rle is None and (rough < 2 or self._is_doubtful(annotation.get("area"), rough)):
            pixels = float(coco_mask.area(rasterise(mask, size)))  # as training has it
            if pixels == 0:
                self._change("annotation", annotation, "entry", annotation, None, "its polygons cover no pixel")
                return None
        annotation = self._with_box(annotation, tight, size)
        return self._with_area(annotation, pixels)

    def _with_crowd(self, annotation: dict) -> dict:
        crowd = annotation.get("iscrowd")
        if crowd in ("0", "1"):
            self._change("annotation", annotation, "iscrowd", crowd, int(crowd), "a number is needed")
            crowd, annotation = int(crowd), {**annotation, "iscrowd": int(crowd)}
        if crowd == 1 and self.uncrowd:
            self._change("annotation", annotation, "iscrowd", 1, 0, "crowd regions are read as objects")
            annotation = {**annotation, "iscrowd": 0}
        return annotation

    def _with_box(self, annotation: dict, tight: list[float], size: tuple[int, int]) -> dict:
        given = annotation.get("bbox")
        if not given:
            return annotation  # the loader takes the mask's
        try:
            box = finite(given, "bbox")
            if len(box) != 4:
                raise InputError(f"it has {counted(len(box), 'number')}")
        except InputError as error:
            return self._boxed(annotation, tight, f"the mask's box is taken, as {error}")
        clipped = _clip(box, size)
        if not _is_inside(box, size):
            return self._boxed(annotation, tight, "it has no area in the image, and the mask's is taken")
        x, y, w, h = box
        out = max(-x, -y, x + w - size[1], y + h - size[0])
        if out > 0 and out > looks.allowed(np.array([size]))[0]:
            return self._boxed(annotation, clipped, "clipped to the image")
        return annotation

    def _boxed(self, annotation: dict, box: list[float], why: str) -> dict:
        box = [round(value, 4) for value in box]
        self._change("annotation", annotation, "bbox", annotation["bbox"], box, why)
        return {**annotation, "bbox": box}

    def _is_doubtful(self, area: object, pixels: float) -> bool:
        try:
            return area is not None and looks.area_differs(finite([area], "area")[0], pixels)
        except InputError:
            return True

    def _with_area(self, annotation: dict, pixels: float) -> dict:
        area = annotation.get("area")
        if not self._is_doubtful(area, pixels):
            return annotation
        self._change("annotation", annotation, "area", area, pixels, "the mask's pixels are counted")
        return {**annotation, "area": pixels}

    def _numbered(self, annotations: list) -> list:
        """Gives a duplicated id a new number the second time."""
        numbers = [number_of(annotation, "id") for annotation in annotations]
        new = max([number for number in numbers if number is not None], default=0) + 1
        seen: set[int] = set()
        for i, number in enumerate(numbers):
            if number in seen:
                self._change("annotation", annotations[i], "id", annotations[i]["id"], new, "it was duplicated")
                annotations[i], new = {**annotations[i], "id": new}, new + 1
            elif number is not None:
                seen.add(number)
        return annotations


def _contradict(given: Any, tight: list[float], size: tuple[int, int]) -> bool:
    """Returns whether an annotated box is one in the image, but another than its mask's."""
    try:
        box = finite(given, "bbox")
    except InputError:
        return False
    return len(box) == 4 and _is_inside(box, size) and _iou(_clip(box, size), tight) < looks.OTHER_IOU


def _is_inside(box: list[float], size: tuple[int, int]) -> bool:
    return overlaps(box[0], box[2], size[1]) and overlaps(box[1], box[3], size[0])


def _content(about: str, entry: dict) -> bytes:
    """Returns what distinguishes two entries; annotations that differ by their id alone are the same."""
    whole = {**entry, "id": None} if about == "annotation" else entry
    return hashlib.blake2b(json.dumps(whole).encode(), digest_size=16).digest()


def _shoelace(polygons: list[np.ndarray]) -> float:
    total = 0.0
    for points in polygons:
        x, y = points[::2], points[1::2]
        total += abs(float(x[:-1] @ y[1:] - y[:-1] @ x[1:] + x[-1] * y[0] - y[-1] * x[0])) / 2
    return total


def _clip(box: list[float], size: tuple[int, int]) -> list[float]:
    """Returns x y w h within an image of `size` (H, W)."""
    x1, y1 = (min(max(value, 0.0), side) for value, side in zip(box[:2], size[::-1], strict=True))
    x2, y2 = (min(max(box[k] + box[k + 2], 0.0), side) for k, side in zip((0, 1), size[::-1], strict=True))
    return [x1, y1, max(x2 - x1, 0.0), max(y2 - y1, 0.0)]


def _iou(one: list[float], other: list[float]) -> float:
    """Returns the IoU of two boxes x y w h (a million of them are too many for arrays of four)."""
    wide = min(one[0] + one[2], other[0] + other[2]) - max(one[0], other[0])
    high = min(one[1] + one[3], other[1] + other[3]) - max(one[1], other[1])
    shared = max(wide, 0) * max(high, 0)
    return shared / max(one[2] * one[3] + other[2] * other[3] - shared, 1e-9)
