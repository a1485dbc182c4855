"""A data format written after CONTRIBUTING.md alone: a csv of rectangles and a folder of images -> a table.

FOLDER/train.csv, FOLDER/val.csv   lines of name,class number,x1,y1,x2,y2; a name alone is an image without objects
FOLDER/images/NAME
"""

from pathlib import Path

import numpy as np
import torch

from network_files.operators.cropped_masks import CroppedMasks
from train_utils.data.annotations import Annotations, ImageFiles
from train_utils.data.images import image_size
from train_utils.data.labels import LabelMap
from train_utils.data.masks import NO_ID, Ragged, encoded
from train_utils.data.options import DataOptions
from train_utils.data.problems import StopAtFirst

UNUSED = {"year": "which has none", "image_dir": "whose images are in images/", "label_json_path": "which has numbers"}


def recognises(path: Path) -> bool:
    return (path / "train.csv").is_file()


def find_splits(path: Path, options: DataOptions, split: str | None) -> dict[str, Path]:
    return {role: path / f"{role}.csv" for role in ("train", "val")}


def read(place: Path, options: DataOptions, problems: StopAtFirst) -> Annotations | None:
    objects: dict[str, list[list[int]]] = {}
    skipped, first_skipped = {}, {}
    for number, line in enumerate(place.read_text().split(), 1):
        name, *values = line.split(",")
        objects.setdefault(name, [])
        try:
            label, x1, y1, x2, y2 = map(int, values) if values else (0,) * 5
        except ValueError:
            problems.mistake(f"{place}: line {number}: {line} is not name,class,x1,y1,x2,y2; correct it", image=name)
            continue
        if values and (x2 <= x1 or y2 <= y1):
            skipped["boxes without area"] = skipped.get("boxes without area", 0) + 1
            first_skipped.setdefault("boxes without area", f"line {number}")
            problems.skip("boxes without area", f"{place}: line {number}: skipped: boxes without area", name)
        elif values:
            objects[name].append([label, x1, y1, x2, y2])
    files = [place.parent / "images" / name for name in objects]
    missing = np.array([not file.is_file() for file in files])
    table = np.array([row for rows in objects.values() for row in rows], dtype=np.int64).reshape(-1, 5)
    boxes = table[:, 1:].astype(np.float64)
    boxes[:, 2:] -= boxes[:, :2]
    names = {label: f"class {label}" for label in sorted(set(table[:, 0].tolist()) | {1, 2})}
    return Annotations(
        source=str(place),
        image_ids=np.arange(1, len(files) + 1),
        sizes=np.array([image_size(file) if file.is_file() else (1, 1) for file in files]),
        names=Ragged.of(objects),
        first=np.cumsum([0, *map(len, objects.values())]),
        annotation_ids=np.full(len(table), NO_ID),
        category_ids=table[:, 0],
        boxes=boxes,
        areas=boxes[:, 2] * boxes[:, 3],
        iscrowd=np.zeros(len(table), np.uint8),
        ignored=np.zeros(len(table), np.uint8),
        masks=Rectangles(table[:, 1:]),
        images=ImageFiles(place.parent / "images", str(place)),
        label_map=LabelMap.from_categories(names),
        categories=names,
        missing=missing,
        skipped=skipped,
        first_skipped=first_skipped,
    )


class Rectangles:
    """Masks that fill their boxes, int64 [A, 4]."""

    def __init__(self, boxes: np.ndarray):
        self.boxes = boxes

    def crops(self, row: int, objects: slice, size: tuple[int, int]) -> CroppedMasks:
        boxes = torch.from_numpy(self.boxes[objects])
        filled = [torch.ones(y2 - y1, x2 - x1) for x1, y1, x2, y2 in boxes.tolist()]
        return CroppedMasks.from_crops(filled, boxes, size)

    def segmentations(self, row: int, objects: slice, size: tuple[int, int]) -> list:
        return encoded(self.crops(row, objects, size))
