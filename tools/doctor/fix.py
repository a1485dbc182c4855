"""A corrected copy of COCO jsons, with a list of every change. Nothing is guessed: what can't be meant otherwise is
corrected, what the loader would skip is taken out, and all else stays as it is and is listed as left to you.

Law: corrected data is not changed by a second run, and has none of the finds that were corrected.
"""

import json
import os
from argparse import Namespace
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import numpy as np
from pycocotools import mask as coco_mask

from backbone.errors import InputError
from my_dataset_coco import picture_path, size_reader
from tools.conversion import new_folder
from tools.doctor import looks
from tools.doctor.finds import ERROR, WARNING, Finds
from tools.doctor.opening import Opened, open_all
from tools.doctor.table import outlines, table_of
from train_utils.coco_checks import as_id, check_image, check_is_coco
from train_utils.coco_layout import find_image_dir
from train_utils.coco_segmentation import (
    LONGEST_OUTLINE,
    RLE,
    Skip,
    box_of,
    finite,
    outline,
    overlaps,
    rasterise,
    read_segmentation,
    unpack_polygon,
)
from train_utils.data_sets import coco_files
from train_utils.files import user_path, write_text
from train_utils.label_map import read_json
from train_utils.plain_text import brief, one_line


class Change(NamedTuple):
    """about: image, annotation or category; what: the key, or "entry" where it is taken out (after: None)."""

    file: str
    about: str
    id: object
    what: str
    before: object
    after: object
    why: str

    def __str__(self):
        if self.what == "entry":
            return one_line(f"{self.file}: {self.about} {self.id}: taken out: {self.why}")
        told = f"{self.what} {brief(self.before)} -> {brief(self.after)}"
        return one_line(f"{self.file}: {self.about} {self.id}: {told}: {self.why}")


def write(opened: Opened, args: Namespace) -> Path:
    """Write OUT/instances_train.json and so on, changes.json and changes.txt; returns OUT.

    InputError where the data is no COCO json that can be read.
    """
    if opened.layout != "coco":
        raise InputError(f"--fix: {opened.path} is {opened.layout} data; only COCO jsons are corrected, so correct the "
                         "files that are named by hand")
    root, jsons = coco_files(opened.path, args.year)
    changes: list[Change] = []
    fixed, folders = {}, {}
    for split, path in jsons.items():
        raw = read_json(path)
        check_is_coco(raw, path)
        names = [image.get("file_name") for image in raw["images"] if isinstance(image, dict)]
        names = [name for name in names if isinstance(name, str) and name]
        given = user_path(args.image_dir) if args.image_dir else None
        folders[split] = given or find_image_dir(root, path, names or [""])
        fixed[split] = Corrector(path, folders[split], given or root, changes).correct(raw)
    image_dir = Path(os.path.commonpath([folder.resolve() for folder in folders.values()]))
    for split, folder in folders.items():
        _move_names(fixed[split], jsons[split], Path(os.path.relpath(folder.resolve(), image_dir)), changes)
    with new_folder(args.fix) as out:
        for split, content in fixed.items():
            write_text(out / f"instances{'' if split == 'all' else f'_{split}'}.json", json.dumps(content))
        left = _left(out, image_dir, args)
        listed = [{**change._asdict(), "before": _plain(change.before)} for change in changes]
        whole = {"data": str(opened.path), "image_dir": str(image_dir), "changes": listed,
                 "left_to_you": left.to_list()}
        write_text(out / "changes.json", json.dumps(whole, indent=1) + "\n")
        write_text(out / "changes.txt", "".join(f"{change}\n" for change in changes))
    _show(changes, left, args, image_dir)
    return user_path(args.fix)


class Corrector:
    """Corrects the content of one json; `changes` is added to."""

    def __init__(self, path, image_dir: Path, root: Path, changes: list[Change]):
        self.path, self.image_dir, self.root, self.changes = str(path), image_dir, root, changes
        self.sizes: dict[int, tuple[int, int]] = {}  # of sound images, by id
        self.dropped: set[int] = set()  # images
        self.known: set[int] = set()  # all ids of images, sound or not

    def correct(self, raw: dict) -> dict:
        images = self._kept("image", raw["images"], self._image)
        annotations = self._kept("annotation", raw["annotations"], self._annotation)
        return {**raw, "images": images, "annotations": self._numbered(annotations),
                "categories": self._kept("category", raw["categories"], lambda category: category)}

    def _kept(self, about: str, entries: list, correct) -> list:
        """The entries that stay, corrected; one that is the same as another in everything is taken out."""
        kept, seen = [], set()
        for entry in entries:
            key = json.dumps({**entry, "id": None} if about == "annotation" and isinstance(entry, dict) else entry)
            if isinstance(entry, dict) and key in seen:
                self._change(about, entry, "entry", entry, None, "it is the same as another")
                continue
            seen.add(key)
            corrected = correct(entry) if isinstance(entry, dict) else entry
            if corrected is not None:
                kept.append(corrected)
        return kept

    def _change(self, about, entry, what, before, after, why) -> None:
        self.changes.append(Change(self.path, about, entry.get("id"), what, before, after, why))

    def _image(self, image: dict) -> dict | None:
        number = _number(image, "id")
        if number is None:
            return image
        self.known.add(number)
        name = image.get("file_name")
        try:
            place = picture_path(self.image_dir, name, self.root) if isinstance(name, str) and name else None
        except InputError:  # it leaves the data
            return image
        if place and not os.path.isfile(place):
            self.dropped.add(number)
            self._change("image", image, "entry", image, None, "its picture is missing")
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
            self._change("image", image, "width, height", before, [wide, high], "as the picture is")
            image = candidate
        self.sizes[number] = size
        return image

    def _annotation(self, annotation: dict) -> dict | None:
        number = _number(annotation, "image_id")
        if number in self.dropped or number is not None and number not in self.known:
            why = "its picture is missing" if number in self.dropped else "its image is not listed"
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
        rle = {"size": list(size), "counts": parts[0]} if mask is None else None
        rough = float(coco_mask.area(rle)) if rle else _shoelace(mask)
        pixels = rough
        if rle is None and (rough < 2 or self._is_doubtful(annotation.get("area"), rough)):
            pixels = float(coco_mask.area(rasterise(mask, size)))  # as training has it
            if pixels == 0:
                self._change("annotation", annotation, "entry", annotation, None, "its polygons cover no pixel")
                return None
        annotation = self._with_box(annotation, _clip(box_of(kind, parts, size), size), size)
        return self._with_area(annotation, pixels)

    def _with_crowd(self, annotation: dict) -> dict:
        crowd = annotation.get("iscrowd")
        if crowd in ("0", "1"):
            self._change("annotation", annotation, "iscrowd", crowd, int(crowd), "a number is needed")
            annotation = {**annotation, "iscrowd": int(crowd)}
        return annotation

    def _with_box(self, annotation: dict, tight: list[float], size) -> dict:
        given = annotation.get("bbox")
        if not given:
            return annotation  # the loader takes the mask's
        try:
            box = finite(given, "bbox")
            if len(box) != 4:
                raise InputError(f"it has {len(box)} numbers")
        except InputError as error:
            return self._boxed(annotation, tight, f"the mask's box is taken, as {error}")
        clipped = _clip(box, size)
        inside = overlaps(box[0], box[2], size[1]) and overlaps(box[1], box[3], size[0])
        if not inside or looks.iou(_corners(clipped), _corners(tight))[0] < looks.OTHER_IOU:
            return self._boxed(annotation, tight, "the mask lies elsewhere, and its box is taken")
        if looks.beyond(_corners(box), np.array([size[::-1]]))[0] > looks.allowed(np.array([size[::-1]]))[0]:
            return self._boxed(annotation, clipped, "clipped to the picture")
        return annotation

    def _boxed(self, annotation, box, why) -> dict:
        box = [round(value, 4) for value in box]
        self._change("annotation", annotation, "bbox", annotation["bbox"], box, why)
        return {**annotation, "bbox": box}

    def _is_doubtful(self, area, pixels: float) -> bool:
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
        """An id that stands twice is a new one the second time."""
        numbers = [_number(annotation, "id") for annotation in annotations]
        new = max([number for number in numbers if number is not None], default=0) + 1
        seen: set[int] = set()
        for i, number in enumerate(numbers):
            if number in seen:
                self._change("annotation", annotations[i], "id", annotations[i]["id"], new, "it stood twice")
                annotations[i], new = {**annotations[i], "id": new}, new + 1
            elif number is not None:
                seen.add(number)
        return annotations


def _move_names(content: dict, path, prefix: Path, changes: list[Change]) -> None:
    """File names that begin at the folder that the pictures of all splits lie in."""
    if prefix == Path("."):
        return
    for i, image in enumerate(content["images"]):
        if isinstance(image, dict) and isinstance(image.get("file_name"), str):
            content["images"][i] = {**image, "file_name": f"{prefix.as_posix()}/{image['file_name']}"}
    changes.append(Change(str(path), "all images", "", "file_name", "NAME", f"{prefix.as_posix()}/NAME",
                          "one --image-dir serves all splits"))


def _left(out: Path, image_dir: Path, args: Namespace) -> Finds:
    """What is still found in the corrected jsons, but for notes and what only pictures tell."""
    finds = Finds()
    opened = open_all(out, finds, "coco", str(image_dir), follow_links=args.follow_links)
    for split, part in opened.splits.items():
        table = table_of(part)
        looks.look_at_objects(table, outlines(table), split, finds)
    return finds


def _show(changes: list[Change], left: Finds, args: Namespace, image_dir: Path) -> None:
    counts = Counter((change.about, change.what, change.why) for change in changes)
    for (about, what, why), count in counts.most_common():
        print(one_line(f"fixed: {about}: {'taken out' if what == 'entry' else what}: {why}: {count:,}"))
    for severity in (ERROR, WARNING):
        for kind, count in left.counts():
            if kind.severity == severity:
                print(one_line(f"left to you: {severity}: {kind.title}: {count:,}"))
    print(f"written: {args.fix} with {len(changes):,} changes, all in changes.txt and changes.json")
    print(f"train on it: python train.py --data-path {args.fix} --image-dir {image_dir}")


def _number(entry, key: str) -> int | None:
    try:
        return as_id(entry.get(key), key) if isinstance(entry, dict) else None
    except InputError:
        return None


def _shoelace(polygons: list[np.ndarray]) -> float:
    corners = [(points[::2], points[1::2]) for points in polygons]
    return sum(abs(float(x @ np.roll(y, -1) - y @ np.roll(x, -1))) / 2 for x, y in corners)


def _clip(box, size) -> list[float]:
    """x y w h within a picture of `size` (H, W)."""
    x1, y1 = (min(max(value, 0.0), side) for value, side in zip(box[:2], size[::-1], strict=True))
    x2, y2 = (min(max(box[k] + box[k + 2], 0.0), side) for k, side in zip((0, 1), size[::-1], strict=True))
    return [x1, y1, max(x2 - x1, 0.0), max(y2 - y1, 0.0)]


def _corners(box) -> np.ndarray:
    x, y, w, h = box
    return np.array([[x, y, x + w, y + h]])


def _plain(value):
    """Of an entry that was taken out, what tells it: long segmentations are cut."""
    if isinstance(value, dict):
        return {key: brief(part) if key == "segmentation" else part for key, part in value.items()}
    return value
