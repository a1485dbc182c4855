"""A detections file (COCO results json) of any program -> results, checked entry by entry against the data set."""

import os
from collections import Counter
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from backbone.errors import InputError
from train_utils.data.dataset import ImageDataset
from train_utils.data.formats.coco.checks import as_id
from train_utils.data.formats.coco.file_names import folded
from train_utils.data.formats.coco.segmentation import finite, polygon_points, rle_counts
from train_utils.data.labels import read_json
from train_utils.data.masks import LONGEST_OUTLINE, outline, rasterise
from train_utils.data.rle import rles_fit
from train_utils.io.json_stream import RepeatedKey, object_of
from train_utils.io.plain_text import brief, counted

AT_ONCE = 4096  # masks checked together


class _Known:
    """What entries may name: images of a data set by id, else by file name, and categories; others are counted."""

    def __init__(self, data_set: ImageDataset, categories: set[int]) -> None:
        self.data_set, self.categories = data_set, categories
        self.sizes = {data_set.image_id(i): tuple(size) for i, size in enumerate(data_set.sizes.tolist())}
        self.foreign: Counter[str] = Counter()  # entries of categories that the data lacks
        self.foreign_images: set[int] = set()  # that these are of
        self.by_name = 0  # entries whose image is known by its file name alone

    @cached_property
    def names(self) -> dict[str, int | None]:
        """Image ids by file name, by its last part, and by that without its ending; None where several have it."""
        names: dict[str, int | None] = {}
        for i in range(len(self.data_set)):
            image_id, name = self.data_set.image_id(i), self.data_set.annotations.file_name(self.data_set.rows[i])
            base = folded(os.path.basename(name))
            for key in {folded(name), base, os.path.splitext(base)[0]}:
                names[key] = image_id if names.get(key, image_id) == image_id else None
        return names

    def image_of(self, entry: dict) -> int:
        """Returns the id of an entry's image."""
        given = entry.get("image_id")
        number = None if given is None else as_id(given, "image_id")
        if number in self.sizes:
            return number
        for text in (entry.get("file_name"), given):
            whole = folded(text.replace("\\", "/")) if isinstance(text, str) else ""
            key = whole if whole in self.names else os.path.basename(whole)
            if key in self.names:
                if self.names[key] is None:
                    raise InputError(f"{brief(text)} is the name of several images; give image_id")
                self.by_name += 1
                return self.names[key]
        what = f"image_id {brief(given)}" if given is not None else f"file_name {brief(entry.get('file_name'))}"
        raise InputError(f"{what} is none of the {len(self.sizes)} images that are scored")

    def record(self) -> dict[str, Any]:
        """Returns the same for a record: entries by category, as the file has it, and their images."""
        left_out = {"categories": dict(self.foreign.most_common()), "images": len(self.foreign_images)}
        return {"left_out": left_out if self.foreign else {}, "by_file_name": self.by_name}

    def notes(self) -> list[str]:
        """Returns what is to be said about the file."""
        notes = [f"{counted(self.by_name, 'result', 'name')} the image by its file name"] if self.by_name else []
        if self.foreign:
            each = ", ".join(f"{category} ({count})" for category, count in self.foreign.most_common(10))
            more = ", ..." if len(self.foreign) > 10 else ""
            notes.append(
                f"left out: {counted(self.foreign.total(), 'result')} of categories that the data lacks: {each}{more}"
            )
        return notes


def read_detections(
    path: str | Path, data_set: ImageDataset, categories: set[int]
) -> tuple[dict[str, list[dict]], list[str], dict[str, Any]]:
    """Reads {"bbox": [...], "segm": [...]}: the results of each IoU type that the file has; both for an empty list.

    Boxes are those of the entries with a bbox; if no entry has one, "bbox" is the masks, around which boxes are made
    as in pycocotools. Polygons become RLEs. Results of categories that the data lacks are left out, also as there.
    data_set: its images may be named, by id or file name; categories: the ids that the data has. Also returns what is
    to be said, and what a record says of it. Raises InputError with file and entry.
    """
    entries = read_json(path, _kept)
    if not isinstance(entries, list):
        raise InputError(f"{path}: not a list of detections (COCO results json), as predict.py --coco-json writes it")
    known = _Known(data_set, categories)
    i, mistake = _check_all(entries, known)
    if mistake is not None:
        raise InputError(f"{path}: entry {i} (the first is 0): {mistake}") from mistake
    if entries and known.foreign.total() == len(entries):
        raise InputError(f"{path}: not one result is of the data's categories; {known.notes()[-1]}")
    entries = [entry for entry in entries if entry]
    found = {"bbox": [e for e in entries if "bbox" in e], "segm": [e for e in entries if "segmentation" in e]}
    if not found["bbox"]:
        found["bbox"] = found["segm"]
    return (
        {iou_type: results for iou_type, results in found.items() if results or not entries},
        known.notes(),
        known.record(),
    )


def _kept(pairs: list[tuple]) -> dict | RepeatedKey:
    """Returns the object of json's pairs, or the mistake, which is reported with the entry's number later."""
    try:
        return object_of(pairs)
    except RepeatedKey as error:
        return error


def _check_all(entries: list, known: _Known) -> tuple[int, InputError | None]:
    """Replaces entries by results as the evaluation takes them; returns (number, mistake) of the first wrong entry.

    Those that are left out become {}.
    """
    i, mistake = 0, None
    for i, entry in enumerate(entries):
        try:
            entries[i] = _check(entry, known)
        except InputError as error:
            mistake = error
            break
    good = entries if mistake is None else entries[:i]
    for start in range(0, len(good), AT_ONCE):
        some = enumerate(good[start : start + AT_ONCE], start)
        masks = {k: entry["segmentation"] for k, entry in some if "segmentation" in entry}
        pixels = np.array([mask["size"][0] * mask["size"][1] for mask in masks.values()], dtype=np.int64)
        fit = rles_fit([mask["counts"] for mask in masks.values()], pixels)
        if not fit.all():
            k, mask = list(masks.items())[int(fit.argmin())]
            try:
                rle_counts({**mask, "counts": mask["counts"].decode(errors="surrogatepass")}, mask["size"])
            except InputError as error:
                return k, error
    return i, mistake


def _check(entry: Any, known: _Known) -> dict:
    """Returns a result as the evaluation takes it; whether the runs of its mask fit the image is not checked yet."""
    segmentation = entry.get("segmentation") if isinstance(entry, dict) else None
    for part in (entry, segmentation):
        if isinstance(part, RepeatedKey):
            raise InputError(f"{part}; keep one of them")
    if not isinstance(entry, dict):
        raise InputError(f"{brief(entry)} is not an object with image_id, category_id, score, bbox or segmentation")
    needed = ("category_id", "score") if "file_name" in entry else ("image_id", "category_id", "score")
    missing = [key for key in needed if key not in entry]
    if missing:
        raise InputError(f"has no {', '.join(missing)}")
    result = {"image_id": known.image_of(entry), "category_id": as_id(entry["category_id"], "category_id")}
    if result["category_id"] not in known.categories:
        known.foreign[brief(entry["category_id"])] += 1
        known.foreign_images.add(result["image_id"])
        return {}
    if type(entry["score"]) not in (int, float):
        raise InputError(f"score {brief(entry['score'])} is not a number")
    (result["score"],) = finite([entry["score"]], "score")
    if entry.get("bbox"):
        result["bbox"] = finite(entry["bbox"], "bbox")
        if len(result["bbox"]) != 4 or min(result["bbox"][2:]) < 0:
            raise InputError(f"bbox {brief(entry['bbox'])} is not x y width height")
    if segmentation:
        size = list(known.sizes[result["image_id"]])
        if isinstance(segmentation, list):
            result["segmentation"] = _rasterised(segmentation, size)
            return result
        if not isinstance(segmentation, dict):
            raise InputError("segmentation is neither a list of polygons nor an RLE")
        counts = segmentation.get("counts")
        later = isinstance(counts, str) and segmentation.get("size") == size
        result["segmentation"] = {
            "size": size,
            "counts": counts.encode(errors="surrogatepass") if later else rle_counts(segmentation, size),
        }
    elif "bbox" not in result:
        raise InputError("has neither bbox nor segmentation")
    return result


def _rasterised(segmentation: list, size: list[int]) -> dict:
    """Turns a result's polygons into a compressed RLE (counts: bytes) of an image of `size` (H, W)."""
    polygons = polygon_points(segmentation, size)
    for points in polygons:
        if len(points) < 6 or len(points) % 2:
            raise InputError(f"a polygon of {counted(len(points), 'number')}; x and y of at least 3 points are needed")
    if outline(polygons, (size[0], size[1])) > LONGEST_OUTLINE:
        raise InputError(f"its polygons go to and fro for more than {LONGEST_OUTLINE} pixels")
    return rasterise(polygons, (size[0], size[1]))
