"""Folders of images and .npy annotations -> which files belong together, and what one .npy says.

    images_train/7.jpg   annotations_train/7.npy   or images/ and annotations/, or image and annotation for either
    images_val/8.jpg     annotations_val/8.npy     the val split, where there is one; _valid and _test too

A .npy holds a dict of boxes [N, 4] (x1 y1 x2 y2), labels [N] (1..C), masks [N, H, W] or [N, W, H], and, where
there are crowd regions, iscrowd [N]; arrays or lists. Other keys are ignored.
"""

import os
from collections.abc import Container, Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from backbone.errors import InputError
from train_utils.data.formats.coco.checks import is_text
from train_utils.data.formats.coco.file_names import settle_stems
from train_utils.data.formats.npy_file import read_npy
from train_utils.data.images.file_formats import image_suffixes
from train_utils.data.labels import LabelMap
from train_utils.io.files import user_path
from train_utils.io.plain_text import brief, counted, visible

SPLITS = {"train": ("_train", ""), "val": ("_val", "_valid", "_test")}
IMAGES, ANNOTATIONS = ("images", "image"), ("annotations", "annotation")
CLASS_FILE = "classes.txt"
MOST_CLASSES = 10_000  # of data that names none: a label of 10^9 is a mistake, not a class
FAR = 1e300  # box coordinates beyond overflow when they are subtracted
KEYS = {"boxes", "labels", "masks"}
NO_ANNOTATION, NO_IMAGE = "images without annotation", "annotations without an image"
OTHER_FILES = "files that are neither images nor .npy"
SHOWN = 5  # names


class Objects(NamedTuple):
    """What one .npy holds: boxes float64 [N, 4] as given, labels and iscrowd lists of N, masks [N, ., .] as given."""

    boxes: np.ndarray
    labels: list[int]
    masks: np.ndarray
    iscrowd: list[int]


def is_npy(root: Path) -> bool:
    """Returns whether a folder has a folder of .npy annotations (and no json in it, which would be COCO's)."""
    names = [word + suffix for suffixes in SPLITS.values() for suffix in suffixes for word in ANNOTATIONS]
    folders = [root / name for name in names]
    return any(any(f.glob("*.npy")) and not any(f.glob("*.json")) for f in folders if f.is_dir())


def find_npy_folders(root: Path) -> dict[str, tuple[Path, Path]]:
    """Returns {"train" | "val": (folder of images, folder of annotations)}; "all": one without "val", to be split.

    Raises InputError where one of two is missing, or the choice is not clear.
    """
    pairs = {}
    for role, suffixes in SPLITS.items():
        for suffix in suffixes:
            pair = [_folder(root, words, suffix) for words in (IMAGES, ANNOTATIONS)]
            if all(pair):
                pairs[role] = tuple(pair)
                break
            if any(pair) and suffix not in ("", "_test"):  # a test set often has no annotations
                missing = f"{ANNOTATIONS[0] if pair[0] else IMAGES[0]}{suffix}"
                raise InputError(
                    f"{pair[0] or pair[1]}: there is no folder {missing} beside it; put it there, or rename this one"
                )
    if not pairs:
        raise InputError(
            f"{root}: no .npy data found; looked for images_train/ with annotations_train/, "
            "and images/ with annotations/"
        )
    return pairs if "val" in pairs else {"all": pairs["train"]}


def _folder(root: Path, words: tuple[str, ...], suffix: str) -> Path | None:
    found = [root / (word + suffix) for word in words if (root / (word + suffix)).is_dir()]
    if len(found) > 1:
        raise InputError(f"{root}: has both {found[0].name} and {found[1].name}; remove or rename one of them")
    return found[0] if found else None


def pair_files(
    image_dir: Path, annotation_dir: Path
) -> tuple[list[tuple[str, str]], dict[str, list[str]], tuple[str, ...]]:
    """Returns ([(image's name, its .npy's name)] in order of their numbers, {reason: names of files left over}, notes).

    They belong together by their stems, in whose capitals and spelling of accented letters they may differ. InputError
    where two have the same stem, it is not clear which belong together, or none has a partner.
    """
    images, others = _by_stem(image_dir, image_suffixes())
    annotations, more = _by_stem(annotation_dir, {".npy"})
    settled = settle_stems(annotations, images)
    for mistake in settled.mistakes(annotation_dir, "the name"):
        raise InputError(mistake)
    images |= {stem: images.pop(other) for stem, other in settled.renamed.items()}
    pairs = [(images[stem], annotations[stem]) for stem in _sorted(images.keys() & annotations.keys())]
    if not pairs:
        raise InputError(
            f"{annotation_dir}: none of its {counted(len(annotations), '.npy file')} has the name of one of the "
            f"{counted(len(images), 'image')} in {image_dir}; 7.npy belongs to 7.jpg"
        )
    left = {
        NO_ANNOTATION: [images[stem] for stem in _sorted(images.keys() - annotations.keys())],
        NO_IMAGE: [annotations[stem] for stem in _sorted(annotations.keys() - images.keys())],
        OTHER_FILES: sorted(others + more),
    }
    return pairs, {reason: names for reason, names in left.items() if names}, settled.notes()


def _by_stem(folder: Path, suffixes: Container[str]) -> tuple[dict[str, str], list[str]]:
    """Returns ({stem: name} of the files with one of these suffixes, names of everything else that is not hidden)."""
    found: dict[str, str] = {}
    others = []
    for name in sorted(name for name in os.listdir(folder) if not name.startswith(".")):
        stem, suffix = os.path.splitext(name)
        if suffix.lower() not in suffixes or not (folder / name).is_file():
            others.append(name)
        elif not is_text(name):
            raise InputError(f"{folder}: file name {name!a} is not text; rename it")
        elif stem in found:
            raise InputError(f"{folder}: {found[stem]} and {name} would both belong to {stem}.npy; rename one of them")
        else:
            found[stem] = name
    return found, others


def _sorted(stems: Iterable[str]) -> list[str]:
    return sorted(stems, key=lambda stem: (0, int(stem), stem) if is_number(stem) else (1, 0, stem))


def is_number(stem: str) -> bool:
    """Returns whether a stem is a number such as 7 or 000000000139."""
    return stem.isascii() and stem.isdigit() and len(stem) <= 18


def few(names: list[str]) -> str:
    """Returns the first few of some file names."""
    return visible(", ".join(names[:SHOWN]) + (", ..." if len(names) > SHOWN else ""))


def read_objects(path: str | Path) -> Objects:
    """Reads and checks a .npy. InputError names it, and the object's index where it is about one."""
    content = read_npy(path)
    if isinstance(content, np.ndarray) and content.dtype == object and content.size == 1:  # np.save(path, [{...}])
        content = content.reshape(-1)[0]
    if not isinstance(content, dict) or KEYS - content.keys():
        what = (
            f"a dict without {', '.join(sorted(KEYS - content.keys()))}"
            if isinstance(content, dict)
            else (f"a {type(content).__name__}")
        )
        raise InputError(
            f'{path}: holds {what}; np.save(path, {{"boxes": ..., "labels": ..., "masks": ...}}) writes what is needed'
        )
    labels, boxes, masks = (_numbers(path, content, key) for key in ("labels", "boxes", "masks"))
    count = len(labels) if labels.ndim == 1 else -1
    crowd = _numbers(path, content, "iscrowd") if content.get("iscrowd") is not None else np.zeros(max(count, 0))
    if count == 0 and len(masks) == 0 and boxes.size == 0:  # an empty list has lost its other sides
        boxes, masks = boxes.reshape(0, 4), masks.reshape(0, 0, 0)
    if count < 0 or boxes.shape != (count, 4) or masks.ndim != 3 or len(masks) != count or crowd.shape != (count,):
        shapes = ", ".join(
            f"{key} {list(array.shape)}"
            for key, array in (
                ("boxes", boxes),
                ("labels", labels),
                ("masks", masks),
                *([("iscrowd", crowd)] if count >= 0 else []),
            )
        )
        raise InputError(
            f"{path}: shapes do not fit: {shapes}; boxes [n, 4], labels [n] and masks [n, height, width] are needed"
        )
    boxes = boxes.astype(np.float64)
    far = ~(np.abs(boxes) < FAR).all(1)  # NaN too
    if far.any():
        i = int(far.argmax())
        raise InputError(f"{path}: boxes[{i}] is {boxes[i].tolist()}; correct it: x1 y1 x2 y2 in pixels are needed")
    unclear = (crowd != 0) & (crowd != 1)
    if unclear.any():
        i = int(unclear.argmax())
        raise InputError(f"{path}: iscrowd[{i}] is {brief(crowd[i].item())}; correct it: 0 or 1 is needed")
    return Objects(
        boxes, [_label(path, i, value) for i, value in enumerate(labels.tolist())], masks, crowd.astype(int).tolist()
    )


def _numbers(path: str | Path, content: dict, key: str) -> np.ndarray:
    try:
        array = np.asarray(content[key])
    except (ValueError, TypeError, OverflowError) as error:
        raise InputError(
            f"{path}: {key} is not an array: its rows differ in length; save an array of numbers"
        ) from error
    if array.dtype.kind not in "biuf" or array.ndim == 0:
        what = "a single value" if array.ndim == 0 else f"an array of {array.dtype}"
        raise InputError(f"{path}: {key} is {what}; an array of numbers is needed")
    return array


def _label(path: str | Path, i: int, value: float) -> int:
    if type(value) is bool or not float(value).is_integer():
        raise InputError(f"{path}: labels[{i}] is {value}, not an integer; correct it")
    if not 1 <= value <= MOST_CLASSES:
        why = "0 is background" if value == 0 else f"they go from 1 to at most {MOST_CLASSES}"
        raise InputError(f"{path}: labels[{i}] is {brief(int(value))}, but {why}; number the classes from 1")
    return int(value)


def set_pixels(path: str | Path, i: int, mask: np.ndarray) -> np.ndarray:
    """Returns a mask of any type as bool: set above half of its greatest value (floats: and above 0.5).

    So 0 and 1, 0 and 255, 0 and an object's number, and probabilities mean what they say.
    """
    if mask.dtype == bool or not mask.size:
        return mask.astype(bool, copy=False)
    low, top = mask.min(), mask.max()
    is_float = mask.dtype.kind == "f"
    if not low >= 0 or is_float and not top <= 255:  # NaN too
        raise InputError(f"{path}: masks[{i}] holds values from {low} to {top}; save it with True and False")
    return mask > (max(0.5, float(top) / 2) if is_float else int(top) // 2)


def read_class_names(root: Path, label_json: str | Path | None = None) -> dict[int, str] | None:
    """Reads {label: name} of classes.txt in `root` (a line a class, from label 1) or of a json that `LabelMap` reads.

    None where neither is there. InputError for an empty line, and where both are there and differ.
    """
    path, names = root / CLASS_FILE, None
    if path.is_file():
        try:
            lines = path.read_text(encoding="utf-8-sig").rstrip().split("\n")
        except UnicodeDecodeError as error:
            raise InputError(f"{path}: is not UTF-8 text; save it again, a line a class") from error
        names = {number: visible(line.strip()) for number, line in enumerate(lines, 1)}
        empty = [number for number, name in names.items() if not name]
        if empty:
            raise InputError(f"{path}: line {empty[0]} is empty; a line a class is needed, the first is label 1's")
    if label_json is None:
        return names
    label_map = LabelMap.from_json(user_path(label_json))
    given = dict(zip(label_map.category_ids, label_map.names, strict=True))
    if names not in (None, given):
        raise InputError(
            f"--label-json-path {label_json}: its names are not those of {path}; correct one, or take the latter away"
        )
    return given
