"""Folder -> data sets. The one way in which every command opens data."""

import hashlib
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np

from backbone.errors import InputError
from train_utils.data.annotations import Annotations
from train_utils.data.dataset import ImageDataset
from train_utils.data.demands import refuse_nothing_to_learn, refuse_skips, report_missing
from train_utils.data.formats import FORMATS
from train_utils.data.formats.coco.layout import LOOKED_FOR, jsons_in
from train_utils.data.formats.coco.other_data import nothing_found
from train_utils.data.formats.shapes import make_shapes
from train_utils.data.labels import LabelMap, match_names
from train_utils.data.options import DataOptions
from train_utils.data.problems import STOP, StopAtFirst
from train_utils.io.files import user_path
from train_utils.io.plain_text import counted

LAYOUTS = ("auto", *FORMATS)
KNOWN = f"looked for data of {', '.join(FORMATS)}; --dataset with one of these says which files"


class DataSplits(NamedTuple):
    """Data sets of one label map. `train` is None when only "val" was asked for, and the other way round."""

    train: ImageDataset | None
    val: ImageDataset | None
    label_map: LabelMap

    def by_role(self) -> dict[str, ImageDataset]:
        """Returns {"train", "val": data set} of those that were opened."""
        return {role: part for role, part in (("train", self.train), ("val", self.val)) if part is not None}


def open_data(
    data: DataOptions | str | Path | None = None,
    split: str | None = None,
    label_map: LabelMap | None = None,
    **options: Any,
) -> DataSplits:
    """Opens the data of a folder, or of one file; None opens the built-in shapes.

    data: a DataOptions, or its data_path, and the other fields as keywords. split: open "train" or "val" alone.
    label_map: take these labels (a checkpoint's), not the data's own.
    Raises InputError that names the file for everything that cannot be used.
    """
    wanted = data if isinstance(data, DataOptions) else DataOptions(data, **options)
    path, module, places = find_places(wanted, split)
    if split != "val" and not {"train", "all"} & places.keys():
        raise InputError(f"{path}: no training data beside the validation data; a part named train is needed")
    places = undivided(places)
    if split is not None:
        places = {role: place for role, place in places.items() if role in (split, "all")}
    parts = read_parts(module, places, wanted, label_map)
    if "all" in parts:
        if split is None:
            refuse_single(path, parts["all"])
        halves = split_positions(parts["all"], wanted.val_fraction, wanted.seed)
        train, val = (parts["all"].subset(positions) for positions in halves)
        parts = {"train": train, "val": val} if split is None else {split: train if split == "train" else val}
    if wanted.drop_empty and "train" in parts:
        refuse_nothing_to_learn(parts["train"])
        kept = np.flatnonzero(parts["train"].object_counts())
        dropped = len(parts["train"]) - len(kept)
        parts["train"] = parts["train"].subset(kept)
        if dropped:
            note = f"{counted(dropped, 'image')} without objects left out (--drop-empty)"
            parts["train"] = parts["train"].noted(note)
    for role, part in parts.items():
        refuse_no_image(path, role, part)
        report_missing(part)
        if wanted.strict:
            refuse_skips(part)
    return DataSplits(parts.get("train"), parts.get("val"), next(iter(parts.values())).label_map)


def undivided(places: dict[str, Any]) -> dict[str, Any]:
    """Returns {role: place}; training data alone is "all": it is divided, as a whole without a name is."""
    return places if "val" in places else dict(zip(["all"], places.values(), strict=True))


def refuse_single(path: str | Path, whole: ImageDataset) -> None:
    """Raises InputError for data that cannot be divided."""
    if len(whole) == 1:
        raise InputError(
            f"{path}: has one image, which cannot be divided into training and validation data: give validation "
            "data beside it, or at least two images"
        )


def refuse_no_image(source: str | Path, role: str, part: ImageDataset) -> None:
    """Raises InputError for a part of data ("train" or "val") without an image."""
    if not len(part):
        use = {"train": "training", "val": "validation"}[role]
        raise InputError(f"{source}: no image is left for {use}; check --val-fraction and --drop-empty")


def find_places(options: DataOptions, split: str | None = None) -> tuple[Path, ModuleType, dict[str, Any]]:
    """Returns (path of the data, its format, {role: place} of what is to be read). InputError where there is none."""
    path, name = find_data(options)
    places = FORMATS[name].find_splits(path, options, split)
    if not places:
        own = format_of(path)
        seen = f"it is {own} data, which --dataset {own} opens"
        if own == name:
            seen = nothing_found(path, lambda folder: format_of(folder) != "coco" or bool(jsons_in(folder)))
        raise InputError(f"{path}: no data set found; {seen or (KNOWN if options.dataset == 'auto' else LOOKED_FOR)}")
    return path, FORMATS[name], places


def find_data(options: DataOptions) -> tuple[Path, str]:
    """Returns (path of the data, name of its format). InputError where there is none, or a flag has no use for it."""
    path, name = options.data_path, options.dataset
    if name not in LAYOUTS:
        raise InputError(f"--dataset {name}: {', '.join(LAYOUTS)} can be opened")
    if path is None:
        path, name = make_shapes(options.shapes_dir), "coco"
    path = user_path(path)
    if not path.exists():
        raise InputError(f"{path}: no such file or folder; check --data-path")
    if path.is_dir() and not any(path.iterdir()):
        raise InputError(f"{path}: the folder is empty; {KNOWN}")
    if name == "auto":
        name = format_of(path)
    refuse_unused(path, name, options)
    return path, name


def refuse_unused(path: Path, name: str, options: DataOptions) -> None:
    """Raises InputError for an option that the format has no use for."""
    for field, reason in FORMATS[name].UNUSED.items():
        if getattr(options, field) is not None:
            flag = "--" + field.replace("_", "-")
            raise InputError(f"{flag}: {path} is {name} data, {reason}; leave the flag out")


def format_of(path: Path) -> str:
    """Returns the name of the format that recognises the path, the last registered first."""
    return next(name for name, module in reversed(FORMATS.items()) if module.recognises(path))


def read_parts(
    module: ModuleType,
    places: dict[str, Any],
    options: DataOptions,
    label_map: LabelMap | None = None,
    problems: StopAtFirst = STOP,
) -> dict[str, ImageDataset]:
    """Reads {role: place} of a format; returns {role: data set} of one label map, as far as they are sound."""
    parts: dict[str, ImageDataset] = {}
    for role, place in places.items():
        sink = problems.of(role)
        try:
            table = module.read(place, options, sink)
        except InputError as error:
            sink.mistake(error)
            continue
        if table is not None:
            parts[role] = ImageDataset(crowds_as_objects(table) if options.crowd_as_objects else table)
    if parts and (note := _note_on_formats(module, options)):
        first = next(iter(parts))
        parts[first] = parts[first].noted(note)
    try:
        label_map = label_map or _common_labels(list(parts.values()))
        return {role: part.labelled(label_map) for role, part in parts.items()}
    except InputError as error:
        problems.mistake(error)
        return parts


def _note_on_formats(module: ModuleType, options: DataOptions) -> str:
    """Returns a note on what other formats would read of a folder whose format was found; empty where none would.

    COCO's is not asked, as it recognises everything; beside COCO jsons no other counts.
    """
    path = user_path(options.data_path) if options.data_path and options.dataset == "auto" else None
    if path is None or not path.is_dir():
        return ""
    others = [name for name, other in FORMATS.items() if other not in (module, FORMATS["coco"])]
    others = [name for name in others if FORMATS[name].recognises(path)]
    flags = " or ".join(f"--dataset {name}" for name in others)
    return f"not read: what {flags} would read of the same folder" if others else ""


def crowds_as_objects(table: Annotations) -> Annotations:
    """Returns the table with its crowd regions as objects, and a note that says how many."""
    note = f"{counted(int(table.iscrowd.sum()), 'crowd region', 'are')} read as objects"
    none = np.zeros_like(table.iscrowd)
    return replace(table, iscrowd=none, ignored=table.ignored & (1 - table.iscrowd), notes=(*table.notes, note))


def _common_labels(parts: list[ImageDataset]) -> LabelMap | None:
    """Returns the label map of all categories of the parts; None without parts.

    Raises InputError where parts contradict one another.
    """
    if len(parts) < 2 or parts[0].annotations.fixed_labels:
        return parts[0].label_map if parts else None
    merged: dict[int, str] = {}
    given: dict[int, str | int] = {}
    source: dict[int, str] = {}
    for part in parts:
        table = part.annotations
        named = match_names(table.categories, merged, part.source, parts[0].source) if table.named else {}
        given |= {number: value for number, value in part.label_map.given.items() if number not in named}
        for category, name in table.categories.items():
            if category in named:
                continue
            if merged.setdefault(category, name) != name:
                raise InputError(
                    f"category {category} is {merged[category]!r} in {source[category]} but {name!r} in {part.source}; "
                    "make them agree"
                )
            source.setdefault(category, part.source)
    return LabelMap.from_categories(dict(sorted(merged.items())), given)


def split_positions(data_set: ImageDataset, val_fraction: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns sorted positions of training and of validation images, chosen by a hash of seed and image id.

    So the choice depends neither on the data's order nor on library versions. At least one image is on each side where
    there are two and 0 < val_fraction < 1.
    """
    count = len(data_set)
    hashes = [hashlib.sha256(f"{seed} {data_set.image_id(i)}".encode()).digest() for i in range(count)]
    order = np.array(sorted(range(count), key=hashes.__getitem__), dtype=np.int64)
    held_out = round(count * val_fraction)
    if 0 < val_fraction < 1 and count > 1:
        held_out = min(max(held_out, 1), count - 1)
    return np.sort(order[held_out:]), np.sort(order[:held_out])
