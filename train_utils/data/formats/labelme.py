"""LabelMe's jsons, one for each image -> a table.

    DATA/7.json   DATA/7.jpg          or in train/ and val/, or the jsons in a folder beside that of the images

A shape is an object; shapes of one label and one group_id are parts of one. Polygons, rectangles and circles stay
polygons, masks become run-length codes. All jsons are read once, when the data is opened.
"""

import base64
import binascii
import math
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from pycocotools import mask as coco_mask
from tqdm import tqdm

from backbone.errors import InputError
from train_utils.data.annotations import Annotations, ImageFiles
from train_utils.data.formats.coco.checks import as_integer, is_text
from train_utils.data.formats.coco.layout import is_inside, role_of
from train_utils.data.formats.coco.segmentation import Skip, box_of, finite, read_segmentation
from train_utils.data.formats.found import (
    NOT_IMAGE,
    Found,
    FoundObject,
    folders_in,
    holds_coco,
    images_below,
    kept,
    note_unread,
    one_of_each,
    refuse_links,
    size_of,
    table_of,
)
from train_utils.data.formats.npy_folder import NO_ANNOTATION
from train_utils.data.images import ImageError, read_image
from train_utils.data.images.reading import USUAL, Reading
from train_utils.data.labels import note_on_blanks, read_json, trimmed
from train_utils.data.masks import RLE, rasterise, unpack_polygon
from train_utils.data.options import DataOptions
from train_utils.data.problems import StopAtFirst
from train_utils.io.plain_text import brief, counted, visible

UNUSED = {
    "label_json_path": "whose classes have names",
    "split_components": "which has a shape for each object",
    **dict.fromkeys(("image_dir", "year"), "whose jsons say where images are"),
}
CACHED = "labelme 3"  # to be raised when arrays, or what is checked or skipped, change
POLYGONS = ("polygon", "oriented_rectangle", "rotation", "", None)  # version 3 has no type; rotation: X-AnyLabeling's
NO_AREA = ("point", "points", "line", "linestrip")
NOT_ONE, LINES = "json files that are not LabelMe's", "points and lines, which have no area"
UNLABELLED = "shapes labelled _background_ or __ignore__"
IGNORED = ("_background_", "__ignore__")  # as LabelMe's own converters have them
MOST_JSON = 2**26  # bytes of a json that is looked into to tell whose it is
ARC = 1.0  # pixels between the corners of a circle's polygon


class Place(NamedTuple):
    """Where a split lies: root, of the data; folder: of its jsons, at any depth; others: of the other splits.

    note: what is not read of the data, "" where all is.
    """

    root: Path
    folder: Path
    others: tuple[Path, ...] = ()
    note: str = ""


def recognises(path: Path) -> bool:
    """Returns whether LabelMe's jsons are among the first of a folder, or of the folders in it."""
    if not path.is_dir():
        return False
    inner, looked_at = folders_in(path), 0
    for folder in [path, *inner, *(deeper for each in inner for deeper in folders_in(each))]:
        jsons = sorted(name for name in os.listdir(folder) if name.endswith(".json"))
        if any(_looks_like_one(folder / name) for name in jsons[:3]):
            return not holds_coco(path)
        looked_at += bool(jsons)
        if looked_at == 3:
            break
    return False


def find_splits(path: Path, options: DataOptions, split: str | None) -> dict[str, Place]:
    """Returns {"train" | "val" | "all": where it lies}; a test set stands for a val set that there is not."""
    if not path.is_dir() or not any(_jsons_below(path)):
        raise InputError(f"{path}: no LabelMe data found; looked for a json beside each image")
    for base in (path, *folders_in(path)):
        holding = [(role_of(folder, base), folder) for folder in folders_in(base) if any(_jsons_below(folder))]
        folders = one_of_each(((role, folder, folder) for role, folder in holding), path)
        if folders:
            note = _beside(path, {folder for role, folder in holding if role != "all"})
            places = {
                role: Place(path, folder, tuple(other for other in folders.values() if other != folder))
                for role, folder in folders.items()
            }
            first = next(iter(places))
            return places | {first: places[first]._replace(note=note)}
    return {"all": Place(path, path)}


def _beside(root: Path, folders: set[Path]) -> str:
    """Returns a note on the jsons that lie in none of the splits' folders."""
    others = (path for path in _jsons_below(root) if folders.isdisjoint(path.parents) and _looks_like_one(path))
    return note_unread(Counter(str(path.parent.relative_to(root.parent)) for path in others), "json")


def read(place: Place, options: DataOptions, problems: StopAtFirst) -> Annotations | None:
    """Reads one split; None where nothing of it is sound (and `problems` collects).

    The classes are the labels of all splits, in sorted order.
    """
    jsons, pictures = list(_jsons_below(place.folder)), list(images_below(place.folder))
    folders = {path.parent for path in (*jsons, *pictures)}
    if refuse_links(sorted(folders), place.root, options, problems):
        return None
    others = [path for folder in place.others for path in _jsons_below(folder)]
    content = kept(
        (CACHED, len(jsons), sorted(map(str, pictures))),
        [*jsons, *others],
        problems,
        lambda: _read_files(place, (jsons, pictures), others, problems),
    )
    values = content[0]
    categories = dict(enumerate(values["labels"], 1))
    source = str(place.folder)
    if not categories:
        none = f"none of its {counted(len(jsons), 'json')} has a shape with an area"
        problems.mistake(f"{source}: {none}; nothing can be learnt")
        return None
    images = LabelmeImages(place.root, source, dict(values["jsons"]), frozenset(values["embedded"]))
    table = table_of(source, content, categories, images)
    if table is None:
        return None
    absent = [name not in images.embedded and not (place.root / name).is_file() for name in table.file_names()]
    notes = (*filter(None, [place.note]), *table.notes)
    return replace(table, missing=np.array(absent, dtype=bool), notes=notes)


class LabelmeImages(ImageFiles):
    """Images as files, or within the jsons where the files are missing.

    jsons: {file name: json}; embedded: the names of those without a file.
    """

    def __init__(self, root: Path, source: str, jsons: dict[str, str], embedded: frozenset[str]) -> None:
        super().__init__(root, source)
        self.jsons, self.embedded = jsons, embedded

    def read(self, row: int, name: str, size: tuple[int, int], reading: Reading = USUAL) -> torch.Tensor:
        """Reads the file, or what the json has in its place."""
        if name not in self.embedded:
            return super().read(row, name, size, reading)
        return read_image(self.image_dir / self.jsons[name], content=self.content(name), reading=reading)

    def content(self, name: str) -> bytes | None:
        """Returns the file that a json has in its place, None of an image that is a file."""
        path = self.image_dir / self.jsons[name]
        return _embedded(path, read_json(path)) if name in self.embedded else None

    def claim(self, name: str, size: tuple[int, int], image_id: int | str) -> str:
        """Returns the size that the json says."""
        return (
            f"{self.image_dir / self.jsons[name]} says {size[1]}x{size[0]}; correct it or put back the original image"
        )


def _jsons_below(folder: Path) -> Iterator[Path]:
    for parent, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (Path(parent, name) for name in sorted(names) if name.endswith(".json") and not name.startswith("."))


def _looks_like_one(path: Path) -> bool:
    if not path.is_file() or path.stat().st_size > MOST_JSON:
        return False
    content = path.read_bytes()
    return b'"shapes"' in content and b'"imagePath"' in content


class Entry(NamedTuple):
    """One json: the image's file name below the root, its size, its objects by label, whether the image is in it."""

    name: str
    size: tuple[int, int]
    objects: list[tuple[str, FoundObject]]
    embedded: bool


def _read_files(
    place: Place, files: tuple[list[Path], list[Path]], others: list[Path], problems: StopAtFirst
) -> tuple[dict, dict[str, np.ndarray]]:
    """Reads all jsons of a split, and the labels of the others; returns plain values and arrays.

    files: jsons and images.
    """
    jsons, pictures = files
    found = Found(place.folder, problems)
    images: dict[str, tuple[Entry, Path]] = {}
    given: set[str] = set()  # labels as they stand in the jsons
    for path in tqdm(jsons, desc=place.folder.name, unit="file", disable=None, leave=False):
        try:
            content = read_json(path)
            if not _is_labelme(content):
                found.leave_out(NOT_ONE, [str(path.relative_to(place.root))])
                continue
            given |= _labels_of(content)
            image = _entry_of(place.root, path, content, found)
            if image.name in images:
                raise InputError(
                    f"{path}: {image.name} is annotated in {images[image.name][1]} too; take one of them out"
                )
            images[image.name] = image, path
        except InputError as error:
            problems.mistake(error, image=path.stem)
    for path in others:
        given |= _labels_in(path)
    labels = sorted(set(map(trimmed, given)) - set(IGNORED))
    numbers = {label: number for number, label in enumerate(labels, 1)}
    for image, _ in images.values():
        found.add(image.name, image.size, [of._replace(category=numbers[label]) for label, of in image.objects])
    without = sorted(str(path.relative_to(place.root)) for path in pictures)
    found.leave_out(NO_ANNOTATION, [name for name in without if name not in images])
    values = found.values(
        labels=labels,
        jsons=[[name, str(path.relative_to(place.root))] for name, (_, path) in images.items()],
        embedded=[name for name, (image, _) in images.items() if image.embedded],
        notes=[*note_on_blanks(sorted(given)), *_notes(images)],
    )
    return values, found.arrays()


def _notes(images: dict[str, tuple[Entry, Path]]) -> list[str]:
    count = sum(image.embedded for image, _ in images.values())
    return [f"{counted(count, 'image', 'have')} no file: read from the json"] if count else []


def _is_labelme(content: Any) -> bool:
    return isinstance(content, dict) and isinstance(content.get("shapes"), list)


def _labels_in(path: Path) -> set[str]:
    """Returns `_labels_of` a json of another split; what is wrong with it is said where that is read."""
    try:
        content = read_json(path)
    except InputError:
        return set()
    return _labels_of(content) if _is_labelme(content) else set()


def _labels_of(content: dict) -> set[str]:
    """Returns the labels of a json's shapes that have an area, as they stand there."""
    shapes = [shape for shape in content["shapes"] if isinstance(shape, dict) and isinstance(shape.get("label"), str)]
    return {shape["label"] for shape in shapes if shape.get("shape_type") not in NO_AREA}


def _entry_of(root: Path, path: Path, content: dict, found: Found) -> Entry:
    """Reads what one json says."""
    name, embedded = _image_name(root, path, content)
    size = _size(root, path, content, name, embedded)
    shapes: dict[tuple, list[tuple[int, list[bytes]]]] = {}
    for k, shape in enumerate(content["shapes"]):
        where = f"{path}: shapes[{k}]"
        try:
            label, group = _label(shape)
            if label in IGNORED:
                raise Skip(UNLABELLED)
            part = _part(shape, size)
            shapes.setdefault((label, k if group is None else str(group), group is None), []).append(part)
        except Skip as reason:
            found.skip(str(reason), f"{path.relative_to(root)}: shapes[{k}]", path.stem)
        except InputError as error:
            found.problems.mistake(f"{where}: {error}", image=path.stem, annotation=k)
    return Entry(name, size, [(label, _joined(parts, size)) for (label, *_), parts in shapes.items()], embedded)


def _label(shape: Any) -> tuple[str, int | str | None]:
    """Returns the label and the group_id of a shape."""
    if not isinstance(shape, dict):
        raise InputError(f"{brief(shape)} is no shape")
    label, group = shape.get("label"), shape.get("group_id")
    if not isinstance(label, str) or not label.strip() or not is_text(label):
        raise InputError(f"its label {brief(label)} is no name of a class; give it one")
    if group is not None and type(group) not in (int, str):
        raise InputError(f"its group_id {brief(group)} is no number")
    return trimmed(label), group


def _part(shape: dict, size: tuple[int, int]) -> tuple[int, list[bytes]]:
    """Returns kind and parts of a shape; Skip for one without an area."""
    kind = shape.get("shape_type")
    if kind in NO_AREA:
        raise Skip(LINES)
    given = shape.get("points")
    if not isinstance(given, list) or not given:
        raise InputError("has no points; draw it anew, or take it out")
    points = []
    for point in given:
        if len(numbers := finite(point, "a point")) != 2:
            raise InputError(f"a point has {counted(len(numbers), 'number')}, x y are 2")
        points.append(numbers)
    if kind == "mask":
        return _mask(shape, np.array(points), size)
    if kind in ("rectangle", "circle") and len(points) != 2 and not (kind == "rectangle" and len(points) == 4):
        raise InputError(f"a {kind} has 2 points, this one has {len(points)}")
    if kind == "rectangle" and len(points) == 2:
        (x1, y1), (x2, y2) = points
        points = [[x1, y1], [x2, y1], [x2, y2], [x1, y2]]
    elif kind == "circle":
        points = _circle(*points)
    elif kind not in (*POLYGONS, "rectangle"):
        raise InputError(f"its shape_type {brief(kind)} is none of LabelMe's; draw it as a polygon")
    return read_segmentation([np.array(points).reshape(-1).tolist()], size)


def _circle(centre: list[float], edge: list[float]) -> list[list[float]]:
    """Returns the corners of a circle: as many as lie ARC apart, 12 to 720, among them those at its box."""
    radius = math.dist(centre, edge)
    quarter = int(np.clip(math.pi / 2 * radius / ARC, 3, 180))
    angles = np.linspace(0, 2 * math.pi, 4 * quarter, endpoint=False)
    return (np.array(centre) + radius * np.stack([np.cos(angles), np.sin(angles)], axis=1)).tolist()


def _mask(shape: dict, points: np.ndarray, size: tuple[int, int]) -> tuple[int, list[bytes]]:
    """Returns a mask that is a png in the json, beginning at the first point of its box."""
    text = shape.get("mask")
    if not isinstance(text, str) or points.shape != (2, 2):
        raise InputError("a mask needs its picture as text and the two points of its box; draw it anew")
    pixels = _picture(text).any(0).numpy()  # [h, w]
    (x, y), (height, width) = points.min(axis=0).astype(int).tolist(), pixels.shape
    sides = np.abs(np.diff(points.astype(int), axis=0)[0])[::-1]
    if np.abs(sides + 1 - pixels.shape).max() > 1:
        raise InputError(f"its mask is {width}x{height}, but its box is {sides[1] + 1}x{sides[0] + 1}; draw it anew")
    whole = np.zeros(size, dtype=np.uint8, order="F")
    inside = pixels[max(-y, 0) : max(size[0] - y, 0), max(-x, 0) : max(size[1] - x, 0)]
    whole[max(y, 0) : max(y, 0) + inside.shape[0], max(x, 0) : max(x, 0) + inside.shape[1]] = inside
    if not whole.any():
        raise Skip("annotations whose mask is empty")
    return RLE, [coco_mask.encode(whole)["counts"]]


def _picture(text: str) -> torch.Tensor:
    """Returns a picture of a json, uint8 [3, h, w]."""
    try:
        content = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise InputError(f"its picture is no base64 text ({error})") from error
    try:
        return read_image("its picture", rotate=False, content=content)
    except ImageError as error:
        raise InputError(str(error)) from error


def _joined(parts: list[tuple[int, list[bytes]]], size: tuple[int, int]) -> FoundObject:
    """Returns an object of several shapes; where one is a mask, all become one."""
    kinds = {kind for kind, _ in parts}
    if len(parts) == 1 or len(kinds) == 1 and RLE not in kinds:
        kind, joined = parts[0][0], [part for _, several in parts for part in several]
    else:
        rles = [
            {"size": list(size), "counts": several[0]}
            if kind == RLE
            else rasterise([unpack_polygon(kind, part) for part in several], size)
            for kind, several in parts
        ]
        kind, joined = RLE, [coco_mask.merge(rles)["counts"]]
    return FoundObject(0, kind, joined, box_of(kind, joined, size))


def _image_name(root: Path, path: Path, content: dict) -> tuple[str, bool]:
    """Returns (the image's file name below the root, whether the json has the image in place of a file).

    The file is where imagePath says, else beside the json under the same name.
    """
    given = content.get("imagePath")
    if not isinstance(given, str) or not given.strip() or "\0" in given or not is_text(given):
        raise InputError(f"{path}: imagePath {brief(given)} is not a file name")
    text = given.replace("\\", "/")
    if os.path.basename(text) in ("", ".", ".."):
        raise InputError(f"{path}: imagePath {brief(given)} is not a file name")
    tries = [path.parent / text, path.parent / os.path.basename(text)]
    inside = [each for each in map(os.path.abspath, tries) if is_inside(each, os.path.abspath(root))]
    there = next((each for each in inside if os.path.isfile(each)), None)
    name = os.path.relpath(there or inside[-1], os.path.abspath(root))
    if there is None and len(inside) < len(tries) and not content.get("imageData"):
        raise InputError(
            f"{path}: imagePath {visible(given)} leaves the data folder {root}; give the folder that holds both as "
            "--data-path"
        )
    return name, there is None and bool(content.get("imageData"))


def _embedded(path: Path, content: dict) -> bytes:
    """Returns the file that a json has in its imageData."""
    try:
        return base64.b64decode(content["imageData"], validate=True)
    except (binascii.Error, ValueError, TypeError, KeyError) as error:
        raise ImageError(path, f"its imageData is no base64 text ({error})") from error


def _size(root: Path, path: Path, content: dict, name: str, embedded: bool) -> tuple[int, int]:
    """Returns (H, W) as the json says, else as the image is."""
    given = content.get("imageHeight"), content.get("imageWidth")
    try:
        if None not in given:
            height, width = as_integer(given[0], "imageHeight"), as_integer(given[1], "imageWidth")
            if min(height, width) < 1 or height * width >= 2**31:
                raise InputError(f"a size of {width}x{height}")
            return height, width
        if embedded:
            return tuple(read_image(path, content=_embedded(path, content)).shape[1:])
    except ImageError:
        return NOT_IMAGE
    except InputError as error:
        raise InputError(f"{path}: {error}; correct it") from error
    return size_of(root / name) if (root / name).is_file() else NOT_IMAGE
