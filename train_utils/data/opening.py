"""Folder -> data sets. The one way in which every command opens data."""

import hashlib
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from backbone.errors import InputError
from train_utils.data.formats.coco.annotations import read_annotations, read_indexed
from train_utils.data.formats.coco.checks import check_is_coco
from train_utils.data.formats.coco.layout import LOOKED_FOR, data_root, find_jsons, image_folder, listed_names, role_of
from train_utils.data.formats.npy import CLASS_FILE, find_npy_folders, is_npy, read_class_names
from train_utils.data.formats.voc import find_voc_folder
from train_utils.data.images import ImageError, read_image
from train_utils.data.labels import LabelMap, read_json
from train_utils.data.links import refuse_links, refuse_links_in
from train_utils.data.loaders import Batch, EvalLoader, TrainLoader, sample_rng, sample_seed
from train_utils.data.options import FORMATS, DataOptions
from train_utils.data.problems import refuse_skips
from train_utils.io.files import user_path

__all__ = [
    "Batch",
    "DataSplits",
    "EvalLoader",
    "LabelMap",
    "ImageError",
    "TrainLoader",
    "open_data",
    "DataOptions",
    "read_image",
    "sample_rng",
    "sample_seed",
]
SHAPES_FOLDER = "data/shapes"
SPLITS = ("train", "val")
VOC_FOLDERS = ("JPEGImages", "SegmentationObject", "SegmentationClass", "Annotations")


class DataSplits(NamedTuple):
    """Data sets of one label map. `train` is None when only "val" was asked for, and the other way round."""

    train: Any
    val: Any
    label_map: LabelMap


def open_data(
    data: DataOptions | str | Path | None = None,
    split: str | None = None,
    label_map: LabelMap | None = None,
    **options: Any,
) -> DataSplits:
    """Open the data of a folder, or of one file; None opens the built-in shapes.

    data: a DataOptions, or its data_path, and the other fields as keywords. split: open "train" or "val" alone.
    label_map: take these labels (a checkpoint's), not the data's own.
    Raises InputError that names the file for everything that cannot be used.
    """
    wanted = data if isinstance(data, DataOptions) else DataOptions(data, **options)
    path, dataset = wanted.data_path, wanted.dataset
    if path is None:
        from train_utils.data.formats.shapes import make_shapes

        path, dataset = make_shapes(wanted.shapes_dir), "coco"
    path = user_path(path)
    if not path.exists():
        raise InputError(f"{path}: no such file or folder; check --data-path")
    if path.is_dir() and not any(path.iterdir()):
        raise InputError(f"{path}: the folder is empty; {LOOKED_FOR}")
    dataset = layout_of(path, dataset)
    image_dir, year, label_json, follow_links = (
        wanted.image_dir,
        wanted.year,
        wanted.label_json_path,
        wanted.follow_links,
    )
    val_fraction, seed = wanted.val_fraction, wanted.seed
    refuse_flags(path, dataset, {"--image-dir": image_dir, "--year": year, "--label-json-path": label_json})
    if dataset == "voc":
        splits = _open_voc(path, year, split, label_map, follow_links)
    elif dataset == "packed":
        splits = _open_packed(path, split, label_map)
    elif dataset == "coco":
        splits = _open_coco(path, image_dir, val_fraction, seed, year, split, label_map, follow_links)
    elif dataset == "npy":
        splits = _open_npy(path, val_fraction, seed, split, label_map, label_json, follow_links)
    else:
        raise InputError(f"--dataset {dataset}: {', '.join(FORMATS)} can be opened")
    if wanted.drop_empty and splits.train is not None:
        kept = np.flatnonzero(splits.train.object_counts())
        splits = splits._replace(train=splits.train.subset(kept))
    for part, use in ((splits.train, "training"), (splits.val, "validation")):
        if part is not None and not len(part):
            raise InputError(f"{path}: no image is left for {use}; check --val-fraction and --drop-empty")
        if part is not None:
            refuse_missing(part)
            if wanted.strict:
                refuse_skips(part)
    return splits


def refuse_flags(path, dataset, given: dict) -> None:
    """InputError for a flag that this layout has no use for; given: {flag: value or None}."""
    for flag, value in given.items():
        reason = UNUSED.get(dataset, {}).get(flag)
        if reason and value is not None:
            raise InputError(f"{flag}: {path} is {dataset} data, {reason}; leave the flag out")


def refuse_missing(data_set) -> None:
    """InputError if image files of the data set are missing."""
    if data_set.missing.any():
        first = int(data_set.missing.argmax())
        raise InputError(
            f"{data_set.source}: {int(data_set.missing.sum())} of its {len(data_set)} image files are missing, the "
            f"first is {data_set.file_name(first)} (image id {data_set.given_id(first)}); put them there, or take "
            "them out of the list"
        )


def layout_of(path: Path, dataset: str = "auto") -> str:
    """The layout of the data in `path`, where `dataset` does not say it."""
    if dataset != "auto":
        return dataset
    return next((name for name, found in FOUND_BY.items() if found(path)), "coco")


def is_voc(path: Path) -> bool:
    """Whether a folder is a VOCdevkit, holds one, or is a year's folder of one."""
    folder = "ImageSets/Segmentation"
    places = (folder, f"VOC*/{folder}", f"VOCdevkit/VOC*/{folder}")
    return any(match.is_dir() for place in places for match in path.glob(place))


def is_packed(path: Path) -> bool:
    """Whether a path is a file of tools.pack_dataset, or a folder of such."""
    return path.suffix == ".pack" if path.is_file() else any((path / f"{name}.pack").is_file() for name in SPLITS)


FOUND_BY = {"packed": is_packed, "voc": is_voc, "npy": is_npy}  # each tells whether a path is such data
NAMED = "whose classes have names"
UNUSED = {
    "coco": {"--label-json-path": NAMED},
    "voc": {"--label-json-path": NAMED, "--image-dir": "whose images are in JPEGImages"},
    "npy": dict.fromkeys(("--image-dir", "--year"), "which is found by the names of its folders"),
    "packed": dict.fromkeys(("--label-json-path", "--image-dir", "--year"), "which holds all that it needs"),
}


def _open_packed(path, split, label_map) -> DataSplits:
    from train_utils.data.formats.packed import PackedDataset

    if path.is_file() and split is None:
        raise InputError(f"{path}: a single packed file has no validation split; give the folder of both")
    wanted = [name for name in SPLITS if split in (None, name)]
    parts = {name: PackedDataset(path if path.is_file() else path / f"{name}.pack") for name in wanted}
    for part in parts.values():
        label_map = label_map or part.label_map
        if part.label_map != label_map:
            raise InputError(
                f"{part.source}: its {len(part.label_map)} classes are not those of the others, or of the weights"
            )
    return DataSplits(parts.get("train"), parts.get("val"), label_map)


def _open_voc(path, year, split, label_map, follow_links) -> DataSplits:
    from my_dataset_voc import VocDataset

    if not follow_links:
        folder = find_voc_folder(path, year)
        refuse_links_in([folder / part for part in VOC_FOLDERS], folder)
    names = [name if split in (None, name) else None for name in ("train", "val")]
    train, val = (VocDataset(path, year, name) if name else None for name in names)
    own = (train or val).label_map
    if label_map is not None and label_map != own:
        raise InputError(f"{path}: its {len(own)} classes are not those of the label map given")
    return DataSplits(train, val, own)


def _open_coco(path, image_dir, val_fraction, seed, year, split, label_map, follow_links) -> DataSplits:
    root, jsons = coco_files(path, year, split)
    return _open_splits(
        jsons,
        lambda json_path, labels: _read_coco(json_path, root, image_dir, labels, follow_links),
        path,
        val_fraction,
        seed,
        split,
        label_map,
    )


def coco_files(path: Path, year=None, split=None) -> tuple[Path, dict[str, Path]]:
    """(folder of the data, {"train" | "val" | "all": json}) of a folder or of one json."""
    if path.is_file():
        as_val = split == "val" and role_of(path) in ("val", "test")
        return data_root(path), {"val" if as_val else "all": path}
    root = path.parent if path.name == "annotations" else path
    return root, find_jsons(root, year)


def _open_npy(path, val_fraction, seed, split, label_map, label_json, follow_links) -> DataSplits:
    from train_utils.data.formats.npy_dataset import NpyDataset

    if not path.is_dir():
        raise InputError(f"{path}: --dataset npy: give the folder that holds images/ and annotations/")
    folders = find_npy_folders(path)
    if not follow_links:
        refuse_links_in([folder for pair in folders.values() for folder in pair], path)
        refuse_links(path, path, path, [CLASS_FILE])
    names = read_class_names(path, label_json)
    return _open_splits(
        folders, lambda pair, labels: NpyDataset(*pair, names, labels), path, val_fraction, seed, split, label_map
    )


def _open_splits(found: dict, read, path, val_fraction, seed, split, label_map) -> DataSplits:
    """found: {"train" | "val" | other: a place}; read(place, label map or None) -> data set. One place is split."""
    if "val" not in found:
        (place,) = found.values()
        whole = read(place, label_map)
        train, val = (whole.subset(rows) for rows in split_positions(whole, val_fraction, seed))
        train, val = train if split != "val" else None, val if split != "train" else None
        return DataSplits(train, val, whole.label_map)
    if split != "val" and "train" not in found:
        raise InputError(f"{path}: no training data beside the validation data; {LOOKED_FOR}")
    wanted = [role for role in ("train", "val") if split in (None, role)]
    parts = {role: read(found[role], label_map) for role in wanted}
    if len(parts) == 2 and label_map is None:
        given = {**parts["train"].label_map.given, **parts["val"].label_map.given}
        label_map = LabelMap.from_categories(merged_categories(parts["train"], parts["val"]), given)
        for part in parts.values():
            part.label_map = label_map
    label_map = label_map or parts[wanted[0]].label_map
    return DataSplits(parts.get("train"), parts.get("val"), label_map)


def _read_coco(json_path, root, image_dir, label_map, follow_links):
    from my_dataset_coco import CocoDataset, size_reader

    annotations = read_indexed(json_path)
    if annotations is not None:
        names = annotations.file_names()
    else:
        raw = read_json(json_path)
        check_is_coco(raw, json_path)
        names = listed_names(raw["images"])
    image_dir, root = image_folder(root, json_path, image_dir, names)
    if not follow_links:
        refuse_links(json_path, image_dir, root, names)
    if annotations is None:
        annotations = read_annotations(json_path, raw, size_reader(image_dir, root))
    data = CocoDataset(annotations, image_dir, root, label_map)
    if data.missing.all() and len(data):
        raise InputError(
            f"{json_path}: none of its {len(data)} images (as {names[0]}) is in {image_dir}; check --image-dir"
        )
    return data


def merged_categories(train, val) -> dict[int, str]:
    """Categories of both jsons, which may not contradict one another."""
    merged = dict(train.annotations.categories)
    for category, name in val.annotations.categories.items():
        if merged.setdefault(category, name) != name:
            raise InputError(
                f"category {category} is {merged[category]!r} in {train.annotations.path} but "
                f"{name!r} in {val.annotations.path}; make them agree"
            )
    return dict(sorted(merged.items()))


def split_positions(data_set, val_fraction: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Sorted positions of training and of validation images, chosen by a hash of seed and image id.

    So the choice depends neither on the json's order nor on library versions. At least one image is on each
    side where there are two and 0 < val_fraction < 1.
    """
    if not 0 <= val_fraction <= 1:
        raise InputError(f"--val-fraction {val_fraction}: a share from 0 to 1 is needed")
    count = len(data_set)
    hashes = [hashlib.sha256(f"{seed} {data_set.image_id(i)}".encode()).digest() for i in range(count)]
    order = np.array(sorted(range(count), key=hashes.__getitem__), dtype=np.int64)
    held_out = round(count * val_fraction)
    if 0 < val_fraction < 1 and count > 1:
        held_out = min(max(held_out, 1), count - 1)
    return np.sort(order[held_out:]), np.sort(order[:held_out])
