"""COCO's format: one json for each split, and folders of images."""

from pathlib import Path

from backbone.errors import InputError
from train_utils.data.annotations import Annotations
from train_utils.data.formats.coco.file_names import image_folder, nearest
from train_utils.data.formats.coco.layout import data_root, find_jsons, role_of
from train_utils.data.formats.coco.other_data import other_file
from train_utils.data.formats.coco.reading import read_annotations
from train_utils.data.options import DataOptions
from train_utils.data.problems import StopAtFirst

UNUSED = {"label_json_path": "whose classes have names"}


def recognises(path: Path) -> bool:
    """Returns True: what no other format recognises is read as COCO data."""
    return True


def find_splits(path: Path, options: DataOptions, split: str | None) -> dict[str, tuple[Path, Path]]:
    """Returns {"train" | "val" | "all": (json, folder of the data)} of a folder or of one json; empty without any."""
    if path.is_file():
        if said := other_file(path):
            raise InputError(f"{path}: not a COCO json, but {said}")
        as_val = split == "val" and role_of(path) in ("val", "test")
        return {"val" if as_val else "all": (path, data_root(path))}
    root = path.parent if path.name == "annotations" else path
    return {role: (json_path, root) for role, json_path in find_jsons(root, options.year).items()}


def read(place: tuple[Path, Path], options: DataOptions, problems: StopAtFirst) -> Annotations | None:
    """Reads one json; None where nothing of it is sound (and `problems` collects)."""
    json_path, root = place

    def find_images(names: list[str]) -> tuple[Path, Path]:
        return image_folder(root, json_path, options.image_dir, names)

    table = read_annotations(json_path, find_images, options.follow_links, problems)
    if table is not None and len(table) and table.missing.all():
        problems.mistake(
            f"{json_path}: none of its {len(table)} images (as {table.file_name(0)}"
            f"{nearest(table.file_name(0), [table.images.image_dir])}) is in {table.images.image_dir}; "
            "check --image-dir"
        )
    return table
