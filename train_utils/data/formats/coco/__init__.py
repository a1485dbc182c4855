"""COCO's format: one json for each split, and folders of images."""

from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from backbone.errors import InputError
from train_utils.data.annotations import Annotations
from train_utils.data.formats.coco.file_names import image_folder, nearest
from train_utils.data.formats.coco.layout import data_root, find_jsons, note_on_others, role_of
from train_utils.data.formats.coco.other_data import other_file
from train_utils.data.formats.coco.reading import read_annotations
from train_utils.data.options import DataOptions
from train_utils.data.problems import StopAtFirst
from train_utils.io.plain_text import counted

UNUSED = {"label_json_path": "whose classes have names", "split_components": "which has a mask for each object"}


class Place(NamedTuple):
    """Where a split lies: its json, the folder of the data; note: what is not read beside it, "" where all is."""

    json: Path
    root: Path
    note: str = ""


def recognises(path: Path) -> bool:
    """Returns True: what no other format recognises is read as COCO data."""
    return True


def find_splits(path: Path, options: DataOptions, split: str | None) -> dict[str, Place]:
    """Returns {"train" | "val" | "all": where it lies} of a folder or of one json; empty without any."""
    if path.is_file():
        if said := other_file(path):
            raise InputError(f"{path}: not a COCO json, but {said}")
        as_val = split == "val" and role_of(path) in ("val", "test")
        return {"val" if as_val else "all": Place(path, data_root(path))}
    root = path.parent if path.name == "annotations" else path
    jsons = find_jsons(root, options.year)
    note = note_on_others(root, jsons, options.year)
    return {role: Place(path, root, note * (role == next(iter(jsons)))) for role, path in jsons.items()}


def read(place: Place, options: DataOptions, problems: StopAtFirst) -> Annotations | None:
    """Reads one json; None where nothing of it is sound (and `problems` collects)."""
    json_path, root, note = place

    def find_images(names: list[str]) -> tuple[Path, Path]:
        return image_folder(root, json_path, options.image_dir, names)

    table = read_annotations(json_path, find_images, options.follow_links, problems)
    if table is not None and len(table) and table.missing.all():
        problems.mistake(
            f"{json_path}: none of its {counted(len(table), 'image')} (as {table.file_name(0)}"
            f"{nearest(table.file_name(0), [table.images.image_dir])}) is in {table.images.image_dir}; "
            "check --image-dir"
        )
    return replace(table, notes=(*table.notes, note)) if table and note else table
