"""YOLO segmentation data (Ultralytics' and Roboflow's layouts) -> a table.

    DATA/data.yaml                 names, and where train and val are: folders, lists of folders, or lists in a txt
    DATA/images/train/7.jpg        DATA/labels/train/7.txt; or train/images/7.jpg and train/labels/7.txt
    DATA/images/7.jpg              DATA/labels/7.txt, names in classes.txt: without a data.yaml

A line of a txt is an object: its class, then x y of each corner as shares of the image's width and height. An image
without a txt, or with an empty one, has no objects. All files are read once, when the data is opened.
"""

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from backbone.errors import InputError
from train_utils.data.annotations import Annotations, ImageFiles
from train_utils.data.formats import npy_folder
from train_utils.data.formats.coco.file_names import FileNames, settle
from train_utils.data.formats.coco.layout import files_in, is_inside, role_of
from train_utils.data.formats.coco.segmentation import Skip, box_of, overlaps, read_segmentation
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
from train_utils.data.formats.yolo.data_yaml import Value, read_yaml
from train_utils.data.labels import note_on_blanks, trimmed
from train_utils.data.links import ADVICE
from train_utils.data.options import DataOptions
from train_utils.data.problems import NO_SEGMENTATION, StopAtFirst
from train_utils.io.files import read_text
from train_utils.io.plain_text import brief, counted, visible

UNUSED = {
    "label_json_path": "whose classes have names",
    "split_components": "which has a polygon for each object",
    **dict.fromkeys(("image_dir", "year"), "whose data.yaml says where images are"),
}
CACHED = "yolo 2"  # to be raised when arrays, or what is checked or skipped, change
YAMLS = ("data.yaml", "dataset.yaml", "data.yml", "dataset.yml")
ROLES = {  # the entries that say where a split is, the first that is there counts
    "train": ("train", "Train"),
    "val": ("val", "valid", "validation", "Val", "Valid", "Validation", "test", "Test"),
}
ENTRIES = ("path", *ROLES["train"], *ROLES["val"], "names", "nc", "kpt_shape")
LEAVE_OUT = {"train": "", "val": "; without val in the yaml a share of the training images is held out"}
TXT = "*.[tT][xX][tT]"
PAST = 0.05  # of the image's side: how far a corner may lie outside, where a mask is cut at the edge
TWICE = "lines that are there twice"
SAME = "train and val are the same images, so that validation scores what was trained on"
LOOKED_FOR = "looked for data.yaml with names, train and val, and for images/ with labels/ that hold .txt files"


class Place(NamedTuple):
    """Where a split lies: root, of the data; yaml: its file, "" without one; lists: folders of images, or txt files.

    note: what is good to know of them.
    """

    root: Path
    yaml: str
    lists: tuple[Path, ...]
    note: str = ""


def recognises(path: Path) -> bool:
    """Returns whether a path is a data.yaml, a folder that has one, or a folder of images and of txt files."""
    if path.is_file():
        return path.suffix in (".yaml", ".yml")
    try:
        return bool(_yaml_of(path) or _plain_places(path)) and not holds_coco(path)
    except InputError:  # which opening it then says
        return not holds_coco(path)


def find_splits(path: Path, options: DataOptions, split: str | None) -> dict[str, Place]:
    """Returns {"train" | "val" | "all": where it lies}; a test set stands for a val set that there is not."""
    root, yaml = (path.parent, path) if path.is_file() else (path, _yaml_of(path))
    if yaml is None:
        places = _plain_places(root)
        if not places:
            raise InputError(f"{path}: no YOLO data found; {LOOKED_FOR}")
        return places
    entries = read_yaml(yaml, ENTRIES)
    if entries.get("kpt_shape"):
        raise InputError(
            f"{yaml}: has kpt_shape: pose data has boxes with keypoints, and no polygons; export polygons (YOLO "
            "segmentation)"
        )
    places = {}
    for role, words in ROLES.items():
        given = next((entries[word] for word in words if entries.get(word)), None)
        if given is not None:
            found = list(_resolved((root, yaml), entries, role, given))
            if not options.follow_links:
                _refuse_outside(root, yaml, role, found)
            moved = [
                f"{role}: {visible(text)} of another machine is {path}"
                for text, path in found
                if _is_whole(text) and os.path.normpath(text) != os.path.abspath(path)
            ]
            places[role] = Place(root, str(yaml), tuple(path for _, path in found), "; ".join(moved))
    if not places:  # as supervision writes it
        places = {role: place._replace(yaml=str(yaml)) for role, place in _plain_places(root).items()}
    if not places:
        raise InputError(f"{yaml}: names neither train nor val; write where the images are, as train: images/train")
    if len(places) == 2 and places["train"].lists == places["val"].lists:
        places["val"] = places["val"]._replace(note="; ".join(filter(None, [places["val"].note, SAME])))
    return places


def read(place: Place, options: DataOptions, problems: StopAtFirst) -> Annotations | None:
    """Reads one split; None where nothing of it is sound (and `problems` collects)."""
    names, notes = _class_names(place)
    source = str(place.lists[0]) if len(place.lists) == 1 else place.yaml
    images, absent, found_by_name = _listed(place)
    labels = _in_capitals(place.root, {image: _label_file(image) for image in images})
    folders = sorted({(place.root / name).parent for name in [*images, *labels.values()]})
    if refuse_links(filter(os.path.isdir, folders), place.root, options, problems):
        return None
    content = kept(
        (CACHED, labels, absent, names),
        [place.root / name for pair in labels.items() for name in pair],
        problems,
        lambda: _read_files(place, Found(source, problems), labels, names, absent),
    )
    unmasked = (category for _, category, *_ in content[0]["unmasked"])
    highest = max(int(content[1]["category_ids"].max(initial=0)), *unmasked, 0)
    categories = names or {number: f"class_{number}" for number in range(highest + 1)}
    table = table_of(source, content, categories, YoloImages(place.root, source), named=names is not None)
    if table is None:
        return None
    missing = np.array([name in absent for name in table.file_names()], dtype=bool)
    return replace(table, missing=missing, notes=(*filter(None, [place.note]), *found_by_name, *notes, *table.notes))


class YoloImages(ImageFiles):
    """Images whose sizes were read from their files when the data was opened."""

    def claim(self, name: str, size: tuple[int, int], image_id: int | str) -> str:
        """Returns the size that the image had when the data was opened."""
        return f"it was {size[1]}x{size[0]} when the data was opened; start again"


def _yaml_of(folder: Path) -> Path | None:
    """Returns the folder's data.yaml, or its only yaml that names classes and where they are."""
    found = next((folder / name for name in YAMLS if (folder / name).is_file()), None)
    if found is not None or not folder.is_dir():
        return found
    others = [path for path in sorted([*folder.glob("*.yaml"), *folder.glob("*.yml")]) if _is_data(path)]
    if len(others) > 1:
        raise InputError(f"{folder}: has {' and '.join(path.name for path in others)}; give one as --data-path")
    return others[0] if others else None


def _is_data(path: Path) -> bool:
    try:
        return {"names", "train"} <= read_yaml(path, ENTRIES).keys()
    except InputError:  # some other yaml
        return False


def _plain_places(root: Path) -> dict[str, Place]:
    """Returns the places of data without a data.yaml; empty where there is none."""
    by_name = {path.name.casefold(): path.name for path in folders_in(root)}
    images, labels = by_name.get("images"), by_name.get("labels")
    if images and labels and (images, labels) != ("images", "labels") and _holds_texts(root / labels):
        raise InputError(f"{root}: {images} and {labels} hold YOLO data; call them images and labels")
    if _holds_texts(root / "labels") and (root / "images").is_dir():
        return {"all": Place(root, "", (root / "images",))}
    found, unread = [], {}
    for folder in folders_in(root / "labels") if (root / "labels").is_dir() else folders_in(root):
        role = role_of(folder, folder.parent)
        pair = (root / "images" / folder.name, folder)
        pair = pair if folder.parent.name == "labels" else (folder / "images", folder / "labels")
        if role == "all":
            unread[str(pair[1].relative_to(root))] = len(list(pair[1].glob(TXT))) * pair[0].is_dir()
        elif pair[0].is_dir() and _holds_texts(pair[1]):
            found.append((role, pair[1], Place(root, "", (pair[0],))))
    places = one_of_each(found, root)
    if places:
        first = next(iter(places))
        places[first] = places[first]._replace(note=note_unread(unread, "txt file"))
    return places


def _holds_texts(folder: Path) -> bool:
    return folder.is_dir() and any(folder.glob(TXT))


def _class_names(place: Place) -> tuple[dict[int, str] | None, tuple[str, ...]]:
    """Returns ({class number from 0: name}, None where nothing names them; notes on the names)."""
    if not place.yaml:
        names = npy_folder.read_class_names(place.root)
        return names and {number - 1: name for number, name in names.items()}, ()
    entries = read_yaml(Path(place.yaml), ENTRIES)
    given, count = entries.get("names"), entries.get("nc")
    if given is None and count is None:
        raise InputError(f"{place.yaml}: has no names of the classes; add names: [first, second, ...]")
    if count is not None and not (isinstance(count, str) and count.isdecimal() and 0 < int(count) < 10_000):
        raise InputError(f"{place.yaml}: nc {brief(count)} is no number of classes; correct it, or take it out")
    if given is None:
        return {number: f"class_{number}" for number in range(int(count))}, ()
    rows = list(given.items()) if isinstance(given, dict) else list(enumerate(given if isinstance(given, list) else ()))
    for number, name in rows:
        if not str(number).isdecimal() or not name:
            raise InputError(f"{place.yaml}: names: {brief(number)}: {brief(name)} is no number and name of a class")
    if not rows:
        raise InputError(f"{place.yaml}: names is no list of names; write names: [first, second, ...]")
    if count is not None and int(count) != len(rows):
        raise InputError(f"{place.yaml}: nc is {count}, but names has {counted(len(rows), 'class')}; make them agree")
    return {int(number): visible(trimmed(name)) for number, name in rows}, note_on_blanks(name for _, name in rows)


def _is_whole(text: str) -> bool:
    """Returns whether a path is absolute, on Linux or on Windows."""
    return text.startswith("/") or text[1:2] == ":"


def _refuse_outside(root: Path, yaml: Path, role: str, found: list[tuple[str, Path]]) -> None:
    """Raises InputError for a folder or txt file that a link takes out of the data's folder."""
    for text, path in found:
        if not is_inside(os.path.realpath(path), os.path.realpath(root)):
            raise InputError(f"{yaml}: {role}: {visible(text)} is a link out of {root}; {ADVICE}")


def _resolved(
    place: tuple[Path, Path], entries: dict[str, Value], role: str, given: Value
) -> Iterator[tuple[str, Path]]:
    """Yields (as it is given, where it is) of the folders and txt files of a split, all inside the data's folder.

    place: that folder and the yaml. `path` counts where it is inside; else, as on another machine, the yaml's folder
    stands for it, and for the beginning of a whole path. Roboflow's ../train/images is train/images beside the yaml,
    as Ultralytics takes it.
    """
    root, yaml = place
    base, home = entries.get("path") or ".", os.path.abspath(root)
    if not isinstance(base, str) or isinstance(given, dict):
        raise InputError(f"{yaml}: {role} must be a folder, a txt file, or a list of these, and path a folder")
    for text in given if isinstance(given, list) else [given]:
        text = text.replace("\\", "/")
        stripped = text
        while stripped.startswith("../"):
            stripped = stripped[3:]
        tries = [root / base / text, root / text, root / stripped]
        parts = text.split("/") if _is_whole(text) else []
        ends = [root / "/".join(parts[k:]) for k in range(1, len(parts)) if parts[k]]
        fitting = [path for path in (*tries, *ends) if is_inside(os.path.abspath(path), home) and path.exists()]
        outside = [os.path.normpath(path) for path in tries if path.exists()]
        if outside and not fitting:
            raise InputError(
                f"{yaml}: {role}: {visible(text)} is {outside[0]}, outside of {root}, and nothing outside the yaml's "
                "folder is read; put the yaml into the folder of the data"
            )
        if not fitting:
            raise InputError(
                f"{yaml}: {role}: {visible(text)} is not there; looked for "
                f"{' and '.join(dict.fromkeys(os.path.normpath(path) for path in tries))} inside {root}"
                f"{LEAVE_OUT[role]}"
            )
        yield text, Path(os.path.normpath(fitting[0]))


def _listed(place: Place) -> tuple[list[str], set[str], tuple[str, ...]]:
    """Returns (the images of a split, below the root; those of them that a txt names and that are not there; notes)."""
    found: dict[str, None] = {}
    absent: set[str] = set()
    notes: list[str] = []
    for path in place.lists:
        if path.is_dir():
            names = sorted(
                (str(file.relative_to(place.root)) for file in images_below(path, arrays=True)), key=_by_number
            )
            found |= dict.fromkeys(names)
            continue
        texts = {line.strip(): number for number, line in enumerate(read_text(path).splitlines(), 1) if line.strip()}
        names = {text: _in_root(place.root, path.parent, text) for text in texts}
        files = FileNames({}, {}, frozenset())
        if not all(name and (place.root / name).is_file() for name in names.values()):
            files = settle([name or text for text, name in names.items()], place.root, place.root)
        for mistake in files.mistakes(path, "name"):
            raise InputError(mistake)
        notes += files.notes()
        for text, name in names.items():
            if (settled := files.renamed.get(name or text, name)) is None:
                raise InputError(
                    f"{path}: line {texts[text]}: {visible(text)} leads out of {place.root}; nothing outside the data "
                    "is read: write paths that begin in the list's folder"
                )
            found[settled] = None
            if name in files.absent and name not in files.renamed:
                absent.add(name)
    if not found:
        raise InputError(
            f"{' and '.join(map(str, place.lists))}: no image found; put them there, or take it out of the yaml, "
            "if it is val's: a share of the training images is then held out"
        )
    by_stem: dict[str, str] = {}
    for name in found:
        other = by_stem.setdefault(os.path.splitext(name)[0], name)
        if other != name:
            raise InputError(
                f"{place.root}: {visible(other)} and {visible(name)} have one name but for the ending, and so one txt; "
                "rename one of them"
            )
    return list(found), absent, tuple(notes)


def _in_root(root: Path, folder: Path, text: str) -> str | None:
    """Returns an image of a list in `folder` as seen from the root, where it is there, else where it would be.

    None for one outside of the root.
    """
    text = text.replace("\\", "/")
    tries = [os.path.abspath(base / text) for base in (folder, root)]
    inside = [each for each in tries if is_inside(each, os.path.abspath(root))]
    there = next(filter(os.path.isfile, inside), next(iter(inside), None))
    return there and os.path.relpath(there, os.path.abspath(root))


def _by_number(name: str) -> tuple[str, int, int, str]:
    folder, stem = os.path.split(os.path.splitext(name)[0])
    return (folder, 0, int(stem), stem) if npy_folder.is_number(stem) else (folder, 1, 0, stem)


def _label_file(image: str) -> str:
    """Returns the txt of an image: in labels/ where the image is in images/, else beside it."""
    parts = list(Path(image).with_suffix(".txt").parts)
    if "images" in parts[:-1]:
        last = len(parts) - 2 - parts[-2::-1].index("images")
        parts[last] = "labels"
    return str(Path(*parts))


def _in_capitals(root: Path, labels: dict[str, str]) -> dict[str, str]:
    """Returns {image: its txt file}, where only 7.TXT is there that one."""
    folders = {os.path.dirname(name) for name in labels.values()}
    found = {os.path.join(folder, name) for folder in folders for name in files_in(root / folder)}
    others = {name[:-4] + ".txt": name for name in found if name.endswith(".TXT")}
    return {image: others.get(name, name) if name not in found else name for image, name in labels.items()}


def _without_image(place: Place, labels: dict[str, str]) -> list[str]:
    """Returns the txt files in the folders of a split that are no image's; those beside a list may be another's."""
    taken, folders = set(labels.values()), {os.path.dirname(name) for name in labels.values()}
    if not all(path.is_dir() for path in place.lists):
        return []
    texts = [os.path.join(folder, path.name) for folder in folders for path in (place.root / folder).glob(TXT)]
    return sorted(name for name in texts if name not in taken and os.path.basename(name) != npy_folder.CLASS_FILE)


def _read_files(
    place: Place, found: Found, labels: dict[str, str], names: dict[int, str] | None, absent: set[str]
) -> tuple[dict, dict[str, np.ndarray]]:
    """Reads all images' sizes and all txt files; returns plain values and arrays."""
    root, past = place.root, []
    found.leave_out(npy_folder.NO_IMAGE, _without_image(place, labels))
    texts = lines = 0
    for image in tqdm(labels, desc=Path(found.source).name, unit="image", disable=None, leave=False):
        path = root / labels[image]
        objects: list[FoundObject] = []
        try:
            size = size_of(root / image) if image not in absent else NOT_IMAGE
            text = read_text(path).removeprefix("\ufeff") if path.is_file() else ""
        except InputError as error:
            found.problems.mistake(error, image=Path(image).stem)
            continue
        texts += path.is_file()
        seen: set[str] = set()
        for number, line in enumerate(text.splitlines(), 1):
            where = f"{labels[image]}: line {number}"
            if not line.strip():
                continue
            lines += 1
            try:
                category, corners = _numbers(f"{path}: line {number}", line, names)
                if len(corners) == 4:
                    _add_box(found, where, category, corners, size)
                elif line in seen:
                    found.skip(TWICE, where, Path(image).stem, category)
                else:
                    seen.add(line)
                    past += [float(max(corners.max() - 1, -corners.min()))] * bool(
                        corners.max() > 1 or corners.min() < 0
                    )
                    points = (corners.reshape(-1, 2) * size[::-1]).reshape(-1).tolist()
                    kind, parts = read_segmentation([points], size)
                    objects.append(FoundObject(category, kind, parts, box_of(kind, parts, size)))
            except Skip as reason:
                found.skip(str(reason), where, Path(image).stem, category)
            except InputError as error:
                found.problems.mistake(error, image=Path(image).stem, annotation=number)
        found.add(image, size, objects)
    if lines and found.skipped[NO_SEGMENTATION] == lines:
        found.problems.mistake(
            f"{found.source}: all {lines} lines of its txt files are boxes of 4 numbers, as detectors use them; export "
            "polygons (YOLO segmentation)"
        )
    notes = []
    if texts < len(labels):
        notes.append(f"{counted(len(labels) - texts, 'image', 'have')} no txt, and so no objects")
    if past:
        notes.append(
            f"{counted(len(past), 'polygon', 'are')} cut at the image's edge, reaching past it by {max(past):.2%} at "
            "most"
        )
    return found.values(notes=notes), found.arrays()


def _numbers(where: str, line: str, names: dict[int, str] | None) -> tuple[int, np.ndarray]:
    """Returns (class number, the other numbers float64) of a line. InputError says what is wrong with it."""
    words = line.split()
    try:
        numbers = np.array(words, dtype=np.float64)
    except ValueError as error:
        raise InputError(f"{where}: {brief(line)} are not numbers; correct it") from error
    category, corners = numbers[0], numbers[1:]
    if not np.isfinite(numbers).all():
        raise InputError(f"{where}: holds a number that is not finite; correct it")
    if category != np.floor(category) or not 0 <= category < npy_folder.MOST_CLASSES:
        raise InputError(f"{where}: class {words[0]} is no whole number from 0; correct it")
    if names is not None and int(category) not in names:
        raise InputError(
            f"{where}: class {int(category)} is none of the {counted(len(names), 'class')}, {min(names)} to "
            f"{max(names)} ({npy_folder.few(list(names.values()))}); complete the names, or correct the line"
        )
    if len(corners) % 2 or len(corners) in (0, 2):
        raise InputError(
            f"{where}: has {counted(len(corners), 'number')} behind its class; x y of three corners and more, or a "
            "box of 4 numbers, are needed"
        )
    low, high = corners.min(), corners.max()
    if max(high - 1, -low) > PAST:
        raise InputError(
            f"{where}: {high if high - 1 >= -low else low:g} is no share of the image's side: corners go from 0 to 1 "
            f"({PAST:.0%} past it are cut); divide pixels by width and height"
        )
    return int(category), corners


def _add_box(found: Found, where: str, category: int, box: np.ndarray, size: tuple[int, int]) -> None:
    """Skips a box without a polygon; it still counts among the boxes of evaluation. box: its centre and sides."""
    x, y, w, h = (box * np.tile(size[::-1], 2)).tolist()
    found.skip(NO_SEGMENTATION, where, category=category)
    if overlaps(x - w / 2, w, size[1]) and overlaps(y - h / 2, h, size[0]):
        found.unmasked.append((len(found.images), category, [x - w / 2, y - h / 2, w, h]))
