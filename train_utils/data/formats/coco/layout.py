"""A COCO-format folder, however it is laid out -> its jsons and its folders of images.

annotations/instances_train2017.json      train2017/            COCO's own
instances_train.json                      images/               flat
train/_annotations.coco.json              train/                images beside their json
train/annotations/instances_default.json  train/images/         an export for each split
anything.json                             any folder near it    one json, to be split
"""

import mmap
import os
import re
from collections.abc import Callable
from pathlib import Path

from backbone.errors import InputError
from train_utils.data.images import image_size
from train_utils.io.plain_text import counted, visible

ROLE = re.compile(r"(?<![a-z])(train|training|val|valid|validation|minival|test)(?![a-z])")
ROLES = {"training": "train", "valid": "val", "validation": "val", "minival": "val"}
ITSELF = {*ROLES, "train", "val"} - {"minival"}  # names of folders that are a split, and not a part of one
# COCO's jsons for other tasks, which lie beside the instances
OTHER_TASKS = ("captions_", "person_keypoints_", "image_info_", "panoptic_", "stuff_")
FEW = 1000  # images that are looked up one by one: their folder may hold many more
LOOKED_FOR = (
    "looked for annotations/instances_train2017.json with train2017/, instances_train.json with images/, "
    "train/_annotations.coco.json, or a single COCO json"
)


def find_jsons(root: Path, year: str | int | None = None) -> dict[str, Path]:
    """Returns {"train" | "val" | "all": json} of a folder. "all" stands alone: one json that is to be split.

    The first place that holds COCO jsons counts: annotations/, the folder itself, its subfolders, their annotations/.
    Of several years the newest is taken, or `year`; of several folders the one named train, val or valid. Empty
    where there is none; InputError if the choice is not clear.
    """
    found = jsons_in(root)
    if year is not None and found:
        found = [path for path in found if str(year) in path.stem]
        if not found:
            raise InputError(f"{root}: no json of year {year}; leave --year out, or give a json")
    by_role: dict[str, list[Path]] = {}
    for path in found:
        by_role.setdefault(role_of(path, root), []).append(path)
    if "train" in by_role or "val" in by_role:
        return {role: _newest(by_role[role], root) for role in ("train", "val") if role in by_role}
    if len(found) == 1:
        return {"all": found[0]}
    if found:
        listed = ", ".join(str(path.relative_to(root)) for path in found)
        raise InputError(f"{root}: several jsons, none named train or val: {listed}; give one as --data-path")
    return {}


def note_on_others(root: Path, chosen: dict[str, Path], year: str | int | None = None) -> str:
    """Returns a note on the jsons beside those that `find_jsons` returns for a folder; empty where there are none.

    A test json is meant to be left beside train's and val's.
    """
    others = [path for path in jsons_in(root) if path not in chosen.values() and str(year or "") in path.stem]
    others = [path for path in others if "val" not in chosen or role_of(path, root) != "test"]
    names = [str(path.relative_to(root)) for path in others]
    listed = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
    return f"not read: {counted(len(names), 'json')} beside it, {visible(listed)}" if names else ""


def jsons_in(root: Path) -> list[Path]:
    """Returns the COCO jsons of the first place of a folder that has any."""
    subfolders = sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))
    places = ([root / "annotations"], [root], subfolders, [folder / "annotations" for folder in subfolders])
    listed = ([path for folder in folders for path in _coco_jsons(folder)] for folders in places)
    return next(filter(None, listed), [])


def role_of(path: Path, root: Path | None = None) -> str:
    """Returns "train", "val", "test" or "all" (says neither), from a json's name, else from its folder's.

    root: the folder of the data, whose own name says nothing.
    """
    folder = _split_folder(path) if root else path.parent
    for name in (path.stem, folder.name if folder != root else ""):
        match = ROLE.search(name.lower())
        if match:
            return ROLES.get(match[1], match[1])
    return "all"


def _split_folder(path: Path) -> Path:
    """Returns the folder that may have the name of a json's split: train of train/x.json, train/annotations/x.json."""
    return path.parent.parent if path.parent.name == "annotations" else path.parent


def _newest(paths: list[Path], root: Path) -> Path:
    years = {path: max(re.findall(r"(?<!\d)\d{4}(?!\d)", path.stem), default="") for path in paths}
    latest = [path for path in paths if years[path] == max(years.values())]
    whole = [path for path in latest if _split_folder(path).name.lower() in ITSELF]  # valid/ rather than valid-mini/
    latest = whole if len(whole) == 1 else latest
    if len(latest) > 1:
        raise InputError(
            f"{root}: cannot choose between {', '.join(str(path.relative_to(root)) for path in latest)}; "
            "give one as --data-path, or remove the others"
        )
    return latest[0]


def _coco_jsons(folder: Path) -> list[Path]:
    """Returns the jsons directly in a folder that look like COCO instances."""
    if not folder.is_dir():
        return []
    paths = [p for p in sorted(folder.glob("*.json")) if not p.name.startswith((".", *OTHER_TASKS))]
    paths = [p for p in paths if p.name.startswith("instances")] or paths
    return [p for p in paths if _mentions(p, b'"images"') and _mentions(p, b'"annotations"')]


def _mentions(path: Path, key: bytes) -> bool:
    """Returns whether the file contains `key`, without parsing what may be half a gigabyte."""
    if not path.is_file() or path.stat().st_size == 0:
        return False
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        return content.find(key) >= 0


def data_root(json_path: Path) -> Path:
    """Returns the data folder of a json that was given by its own path."""
    return json_path.parent.parent if json_path.parent.name in ("annotations", "labels") else json_path.parent


def listed_names(images: list) -> list[str]:
    """Returns the file names in a json's list of images, as far as they are text."""
    names = [image.get("file_name") for image in images if isinstance(image, dict)]
    return [name for name in names if isinstance(name, str) and name]


def image_path(image_dir: str | Path, name: str, root: str | Path) -> str:
    """Returns the path of `name` in `image_dir`; InputError if it leaves `root`."""
    path, root = os.path.abspath(os.path.join(image_dir, name)), os.path.abspath(root)
    if not is_inside(path, root):
        raise InputError(f"file_name {name!r} leaves the data folder {root}; use names inside it")
    return path


def is_inside(path: str, root: str) -> bool:
    """Returns whether an absolute path lies in an absolute folder."""
    try:
        return os.path.commonpath([root, path]) == root
    except ValueError:  # Windows: another drive
        return False


def files_in(folder: str | Path) -> frozenset[str]:
    """Returns the names of the files directly in a folder: one look, not one for each name."""
    try:
        with os.scandir(folder) as entries:
            return frozenset(entry.name for entry in entries if entry.is_file())
    except OSError:  # no such folder, or not to be listed: then each name is looked up
        return frozenset()


def size_reader(image_dir: str | Path, root: str | Path) -> Callable[[str], tuple[int, int]]:
    """Returns a function from file name to (H, W), for images whose json does not give their size."""
    return lambda name: image_size(image_path(image_dir, name, root))
