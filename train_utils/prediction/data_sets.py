"""Detections of images -> a data set that train.py opens, and a tool for correction: the way back from a prediction.

    coco      FOLDER/instances.json, images/               compressed RLE: the masks as they are
    masks     FOLDER/images/7.jpg, masks/CLASS/7.png       label images of 16 bits: shared pixels are the surer's
    labelme   FOLDER/7.jpg, 7.json                         polygons, parts in a group; a mask where there are holes
    yolo      FOLDER/data.yaml, images/, labels/7.txt      a polygon each, whose parts and holes are joined by lines
    voc       FOLDER/VOC2012/...                           as masks, with XML; at most 254 objects an image

Outlines follow the pixels' edges within TOLERANCE, which changes no mask of a usual size.
"""

import base64
import io
import json
import shutil
from collections.abc import Iterable, Mapping
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
from lxml import etree
from PIL import Image
from pycocotools import mask as coco_mask
from tqdm import tqdm

from backbone.errors import InputError
from train_utils.data.images import ImageError, image_size
from train_utils.data.labels import LabelMap
from train_utils.io.files import atomic_file, make_folder, new_folder, write_text
from train_utils.io.plain_text import counted
from train_utils.prediction.outlines import bridged, outlines

FORMS = ("coco", "labelme", "yolo", "masks", "voc")
TOLERANCE = 0.5  # pixels
MOST_OF_VOC = 254  # numbers of an 8-bit index image, without 0 and 255
VERSION = "5.5.0"  # of LabelMe, whose jsons these are


class Detected(NamedTuple):
    """One detection: its mask as RLE, score, and its class's row in the label map."""

    rle: dict
    score: float
    row: int

    @property
    def mask(self) -> np.ndarray:
        """The mask, bool [H, W], decoded each time: those of a large image together would take its memory."""
        return coco_mask.decode(self.rle).astype(bool)


class Written(NamedTuple):
    """One image in the data set: its file name there, (H, W), its detections, the surest first."""

    name: str
    size: tuple[int, int]
    detected: list[Detected]


def write_data_set(
    form: str, folder: str | Path, images: Iterable[str | Path], results: Iterable[Mapping], label_map: LabelMap
) -> str:
    """Writes images and their results as a data set of one of FORMS; returns a line that says what is in it.

    images: paths; the results of the n-th have the image_id n, from 1. results: COCO results with RLEs, categories as
    the data had them. Images that cannot be read are left out. The folder appears when it is complete. Raises
    InputError as `check_place`.
    """
    folder, paths = Path(folder), [Path(path) for path in images]
    check_place(form, folder, paths)
    check_classes(form, label_map)
    rows = {label_map.given.get(number, number): row for row, number in enumerate(label_map.category_ids)}
    of_image: dict[int, list[Mapping]] = {}
    for result in results:
        of_image.setdefault(result["image_id"], []).append(result)
    counts = [0, 0]
    with new_folder(folder) as room:
        writer = WRITERS[form](room, label_map)
        for number, path in enumerate(tqdm(paths, desc=folder.name, unit="image", disable=None, leave=False), 1):
            try:
                size = image_size(path, guarded=False)  # --tile reads any
            except ImageError:  # said when it was to be predicted
                continue
            found = sorted(of_image.get(number, ()), key=lambda result: -result["score"])
            detected = [_detected(result, rows) for result in found]
            image = Written(path.name, size, [each for each in detected if coco_mask.area(each.rle)])
            with atomic_file(make_folder(writer.images) / path.name) as file, path.open("rb") as source:
                shutil.copyfileobj(source, file)
            writer.add(image)
            counts = [counts[0] + 1, counts[1] + len(image.detected)]
        writer.finish()
    notes = "".join(f"; {note}" for note in writer.notes())
    written = f"{counted(counts[0], 'image')} with {counted(counts[1], 'object')}"
    return f"{written} written as {form} data to {folder}{notes}"


def check_place(form: str, folder: str | Path, images: Iterable[str | Path]) -> None:
    """Raises InputError where the folder is there already, or two images have one name: rather now than after hours."""
    if form not in FORMS:
        raise InputError(f"--write {form}: {', '.join(FORMS)} can be written")
    if Path(folder).exists():
        raise InputError(f"{folder}: exists already; move it away, or give another --output-dir")
    names: dict[str, Path] = {}
    for path in map(Path, images):
        if (other := names.setdefault(path.stem, path)) is not path:
            raise InputError(f"--write {form}: {other} and {path} would have one name; rename one of them")
        if form == "voc" and not _is_text(path.name):
            raise InputError(f"--write voc: {path}: its lists name files, and this name is no UTF-8; rename it")


def check_classes(form: str, label_map: LabelMap) -> None:
    """Raises InputError where a data set of this form cannot have so many classes."""
    if form == "voc" and len(label_map.names) > MOST_OF_VOC:
        many = counted(len(label_map.names), "class")
        raise InputError(f"--write voc: the model knows {many}, its images number {MOST_OF_VOC}; --write masks has all")


def _is_text(name: str) -> bool:
    """Returns whether a file's name is UTF-8: others are read with surrogates, which no text file takes."""
    return name.encode(errors="replace").decode() == name


def _detected(result: Mapping, rows: dict[int | str, int]) -> Detected:
    rle = result["segmentation"]
    return Detected(rle, result["score"], rows[result["category_id"]])


class CocoWriter:
    """Writes one json of all images; images: the folder of their files."""

    def __init__(self, folder: Path, label_map: LabelMap) -> None:
        self.folder, self.label_map, self.images = folder, label_map, folder / "images"
        self.content = {"images": [], "annotations": []}

    def add(self, image: Written) -> None:
        """Adds an image and its detections."""
        number = len(self.content["images"]) + 1
        height, width = image.size
        self.content["images"].append({"id": number, "file_name": image.name, "height": height, "width": width})
        for one in image.detected:
            category = self.label_map.category_ids[one.row]
            self.content["annotations"].append(
                {
                    "id": len(self.content["annotations"]) + 1,
                    "image_id": number,
                    "category_id": self.label_map.given.get(category, category),
                    "bbox": coco_mask.toBbox(one.rle).tolist(),
                    "area": int(coco_mask.area(one.rle)),
                    "iscrowd": 0,
                    "segmentation": one.rle,
                    "score": one.score,
                }
            )

    def finish(self) -> None:
        """Writes the json."""
        pairs = zip(self.label_map.category_ids, self.label_map.names, strict=True)
        self.content["categories"] = [{"id": self.label_map.given.get(i, i), "name": name} for i, name in pairs]
        write_text(make_folder(self.folder) / "instances.json", json.dumps(self.content))

    def notes(self) -> list[str]:
        """Returns what is good to know of what was written."""
        return []


class LabelmeWriter(CocoWriter):
    """Writes a json beside each image."""

    def __init__(self, folder: Path, label_map: LabelMap) -> None:
        super().__init__(folder, label_map)
        self.images = folder

    def add(self, image: Written) -> None:
        """Writes the json of an image."""
        shapes = []
        for group, one in enumerate(image.detected, 1):
            common = {"label": self.label_map.names[one.row], "flags": {}, "description": f"score {one.score:.3f}"}
            loops = outlines(one.mask, TOLERANCE)
            if any(_turn(loop) < 0 for loop in loops):
                shapes.append({**common, "group_id": None, **_mask_shape(one.mask)})
                continue
            group_id = group if len(loops) > 1 else None
            shapes += [
                {**common, "group_id": group_id, "shape_type": "polygon", "points": loop.tolist()} for loop in loops
            ]
        content = {"version": VERSION, "flags": {}, "shapes": shapes, "imagePath": image.name, "imageData": None}
        content |= {"imageHeight": image.size[0], "imageWidth": image.size[1]}
        write_text(self.folder / f"{Path(image.name).stem}.json", json.dumps(content))

    def finish(self) -> None:
        """Leaves all as it is: each image has its json."""


def _turn(loop: np.ndarray) -> float:
    """Returns twice the area of an outline, negative for a hole's."""
    x, y = loop.T
    return float((x * np.roll(y, -1) - np.roll(x, -1) * y).sum())


def _mask_shape(mask: np.ndarray) -> dict:
    """Returns a mask as LabelMe has it: the corners of its box, the last pixel included, and a PNG."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    (y1, y2), (x1, x2) = rows[[0, -1]].tolist(), columns[[0, -1]].tolist()
    file = io.BytesIO()
    Image.fromarray(mask[y1 : y2 + 1, x1 : x2 + 1]).save(file, "PNG")
    picture = base64.b64encode(file.getvalue()).decode()
    return {"shape_type": "mask", "points": [[x1, y1], [x2, y2]], "mask": picture}


class YoloWriter(CocoWriter):
    """Writes a txt for each image, and a data.yaml."""

    def add(self, image: Written) -> None:
        """Writes the txt of an image."""
        lines = []
        for one in image.detected:
            shares = bridged(outlines(one.mask, TOLERANCE)) / image.size[::-1]
            lines.append(" ".join([str(one.row), *(f"{value:.7g}" for value in shares.reshape(-1).tolist())]))
        write_text(make_folder(self.folder / "labels") / f"{Path(image.name).stem}.txt", "\n".join(lines))

    def finish(self) -> None:
        """Writes the data.yaml."""
        names = "".join(
            f"  {row}: {json.dumps(name, ensure_ascii=False)}\n" for row, name in enumerate(self.label_map.names)
        )
        text = f"path: .\ntrain: images\nval: images  # of your own choice\nnames:\n{names}"
        write_text(make_folder(self.folder) / "data.yaml", text)


class MasksWriter(CocoWriter):
    """Writes a label image for each image, or one for each class."""

    lost = 0  # pixels of detections that surer ones cover

    @cached_property
    def folders(self) -> list[str]:
        """The folder of each class: no two have one, also on disks that ignore case."""
        made: dict[str, str] = {}
        for name in self.label_map.names:
            base = folder = _folder_name(name)
            while folder.lower() in made:
                folder = f"{base}_{len(made) + 1}"
            made[folder.lower()] = folder
        return list(made.values())

    def add(self, image: Written) -> None:
        """Writes the label images of an image."""
        several = len(self.label_map.names) > 1
        for row in range(len(self.label_map.names)):
            labels, lost = painted(image.size, [one for one in image.detected if one.row == row], np.uint16)
            self.lost += lost
            if several and not labels.any() and row:
                continue  # a class without an object needs no file where another has one
            path = make_folder(self.folder / "masks" / (self.folders[row] if several else ""))
            with atomic_file(path / f"{Path(image.name).stem}.png") as file:
                Image.fromarray(labels).save(file, "PNG")

    def finish(self) -> None:
        """Writes the names of the classes."""
        names = self.folders if len(self.label_map.names) > 1 else self.label_map.names
        write_text(make_folder(self.folder) / "classes.txt", "".join(f"{name}\n" for name in names))

    def notes(self) -> list[str]:
        """Returns how many pixels overlap."""
        return [f"{counted(self.lost, 'pixel')} shared by detections became the surer one's"] if self.lost else []


def _folder_name(name: str) -> str:
    """Returns a class's name as a folder can have it."""
    return "".join("_" if character in '/\\:*?"<>|' else character for character in name).strip(". ") or "_"


def painted(size: tuple[int, int], detected: list[Detected], dtype: type) -> tuple[np.ndarray, int]:
    """Returns (a label image of masks, the first above the others; how many pixels of masks others cover)."""
    labels, covered = np.zeros(size, dtype=dtype), 0
    if len(detected) > np.iinfo(dtype).max:
        raise InputError(f"--write: {len(detected)} objects of an image are more than a label image can number")
    for number, one in reversed(list(enumerate(detected, 1))):
        mask = one.mask
        covered += int(np.count_nonzero(labels[mask]))
        labels[mask] = number
    return labels, covered


class VocWriter(MasksWriter):
    """Writes VOC's folders; the surest objects of an image, as many as its index images can number."""

    def __init__(self, folder: Path, label_map: LabelMap) -> None:
        super().__init__(folder, label_map)
        self.root, self.images = folder / "VOC2012", folder / "VOC2012" / "JPEGImages"
        self.stems: list[str] = []
        self.cut = 0

    def add(self, image: Written) -> None:
        """Writes the index images and the XML of an image."""
        kept, stem = image.detected[:MOST_OF_VOC], Path(image.name).stem
        self.cut += len(image.detected) - len(kept)
        objects, lost = painted(image.size, kept, np.uint8)
        self.lost += lost
        classes = np.array([0, *(one.row + 1 for one in kept)], dtype=np.uint8)[objects]
        for kind, values in (("Object", objects), ("Class", classes)):
            folder = make_folder(self.root / f"Segmentation{kind}")
            with atomic_file(folder / f"{stem}.png") as file:
                Image.fromarray(values).save(file, "PNG")
        top = etree.Element("annotation")
        sides = {"width": image.size[1], "height": image.size[0], "depth": 3}
        _elements(top, {"filename": image.name, "size": sides})
        for one in kept:
            x, y, w, h = coco_mask.toBbox(one.rle).astype(int).tolist()
            box = {"xmin": x + 1, "ymin": y + 1, "xmax": x + w, "ymax": y + h}
            _elements(top, {"object": {"name": self.label_map.names[one.row], "difficult": 0, "bndbox": box}})
        folder = make_folder(self.root / "Annotations")
        write_text(folder / f"{stem}.xml", etree.tostring(top, encoding="unicode", pretty_print=True))
        self.stems.append(stem)

    def finish(self) -> None:
        """Writes the lists of images, both of all, and the classes."""
        folder = make_folder(self.root / "ImageSets" / "Segmentation")
        for name in ("train", "val"):
            write_text(folder / f"{name}.txt", "".join(f"{stem}\n" for stem in self.stems))
        numbers = {name: row for row, name in enumerate(self.label_map.names, 1)}
        write_text(self.root / "pascal_voc_indices.json", json.dumps(numbers))

    def notes(self) -> list[str]:
        """Returns what was left out."""
        cut = f"{counted(self.cut, 'object', 'are')} left out, as an image has room for {MOST_OF_VOC}"
        return [*super().notes(), *[cut] * bool(self.cut), "train.txt and val.txt both list all images"]


def _elements(parent: etree._Element, values: Mapping) -> None:
    """Adds elements of these names, with texts or elements in them."""
    for name, value in values.items():
        element = etree.SubElement(parent, name)
        if isinstance(value, Mapping):
            _elements(element, value)
        else:
            element.text = str(value)


WRITERS: dict[str, type[CocoWriter]] = {
    "coco": CocoWriter, "labelme": LabelmeWriter, "yolo": YoloWriter, "masks": MasksWriter, "voc": VocWriter
}  # fmt: skip
