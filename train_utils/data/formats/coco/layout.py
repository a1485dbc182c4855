"""A COCO-format folder, however it is laid out -> its jsons and its folders of images.

annotations/instances_train2017.json   train2017/            COCO's own
instances_train.json                   images/               flat
train/_annotations.coco.json           train/                images beside their json
anything.json                          any folder near it    one json, to be split
"""

import mmap
import os
import re
from collections.abc import Callable
from pathlib import Path

from backbone.errors import InputError
from train_utils.data.images import image_size
from train_utils.io.files import user_path

ROLE = re.compile(r"(?<![a-z])(train|training|val|valid|validation|minival|test)(?![a-z])")
ROLES = {"training": "train", "valid": "val", "validation": "val", "minival": "val"}
# COCO's jsons for other tasks, which lie beside the instances
OTHER_TASKS = ("captions_", "person_keypoints_", "image_info_", "panoptic_", "stuff_")
PROBES = 32  # file names looked up in each candidate folder of images
LOOKED_FOR = (
    "looked for annotations/instances_train2017.json with train2017/, instances_train.json with images/, "
    "train/_annotations.coco.json, or a single COCO json; for VOC: VOC2012/ImageSets/Segmentation; "
    "for .npy: images_train/ with annotations_train/, or images/ with annotations/"
)


def find_jsons(root: Path, year: str | int | None = None) -> dict[str, Path]:
    """Returns {"train" | "val" | "all": json} of a folder. "all" stands alone: one json that is to be split.

    The first place that holds COCO jsons counts: annotations/, the folder itself, its subfolders. Of several
    years the newest is taken, or `year`. InputError if none is found, or the choice is not clear.
    """
    subfolders = sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))
    places = ([root / "annotations"], [root], subfolders)
    for folders in places:
        found = [path for folder in folders for path in _coco_jsons(folder)]
        if not found:
            continue
        if year is not None:
            found = [path for path in found if str(year) in path.stem]
            if not found:
                raise InputError(f"{root}: no json of year {year}; leave --year out, or give a json")
        by_role: dict[str, list[Path]] = {}
        for path in found:
            by_role.setdefault(role_of(path, root), []).append(path)
        if "train" in by_role or "val" in by_role:
            return {role: _newest(by_role[role]) for role in ("train", "val") if role in by_role}
        if len(found) == 1:
            return {"all": found[0]}
        listed = ", ".join(str(path.relative_to(root)) for path in found)
        raise InputError(f"{root}: several jsons, none named train or val: {listed}; give one as --data-path")
    raise InputError(f"{root}: no data set found; {LOOKED_FOR}")


def role_of(path: Path, root: Path | None = None) -> str:
    """Returns "train", "val", "test" or "all" (says neither), from a json's name, else from its folder's."""
    for name in (path.stem, path.parent.name if path.parent != root else ""):
        match = ROLE.search(name.lower())
        if match:
            return ROLES.get(match[1], match[1])
    return "all"


def _newest(paths: list[Path]) -> Path:
    if len(paths) == 1:
        return paths[0]
    years = {path: max(re.findall(r"(?<!\d)\d{4}(?!\d)", path.stem), default="") for path in paths}
    latest = [path for path in paths if years[path] == max(years.values())]
    if len(latest) > 1:
        raise InputError(
            f"{latest[0].parent}: cannot choose between {', '.join(p.name for p in latest)}; "
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


def image_folder(root: Path, json_path: Path, image_dir: str | Path | None, names: list[str]) -> tuple[Path, Path]:
    """Returns (folder where the images `names` of a json begin, folder that none may leave).

    They are around the json, or `image_dir`, the --image-dir of a command, where it is given. Raises InputError where
    there is none.
    """
    if not names:
        raise InputError(f"{json_path}: its list of images holds no file_name")
    if image_dir is None:
        return find_image_dir(root, json_path, names), root
    folder = user_path(image_dir)
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; check --image-dir")
    return folder, folder


def find_image_dir(root: Path, json_path: Path, names: list[str]) -> Path:
    """Returns the folder near `json_path` in which most of the images `names` lie. InputError if none holds any."""
    suffix = re.sub(r"^instances_?", "", json_path.stem)
    likely = [root / suffix, root / "images" / suffix, json_path.parent, root / "images", root]
    candidates = [*likely, *_subfolders(root), *_subfolders(root / "images"), *_subfolders(json_path.parent)]
    candidates = [path for path in dict.fromkeys(candidates) if path.is_dir()]
    probes = names[:: max(1, len(names) // PROBES)]
    found = {path: sum(os.path.isfile(path / name) for name in probes) for path in candidates}
    best = max(candidates, key=found.__getitem__)
    if not found[best]:
        looked = ", ".join(str(path) for path in candidates[:8])
        raise InputError(f"{json_path}: its images (as {probes[0]}) are not in {looked}; give --image-dir")
    return best


def _subfolders(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []


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
