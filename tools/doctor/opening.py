"""A data set as train.py would open it, and where it would not: every mistake, and what is sound of it.

The loader itself (`open_data_set`) has the first and the last word: its message is the verdict. Only where it stops
or skips is the data read again item by item.
"""

from pathlib import Path
from typing import NamedTuple

from backbone.errors import InputError
from my_dataset_npy import scan_pair
from tools.conversion import open_splits
from tools.doctor.coco_listing import MISSING, list_coco, list_missing, list_skips
from tools.doctor.finds import WARNING, Finds, Kind
from tools.doctor.pictures import pictures_below
from tools.doctor.voc_listing import list_voc
from train_utils.data_sets import coco_files, layout_of, merged_categories
from train_utils.files import user_path
from train_utils.links import links_out_of
from train_utils.npy_format import find_npy_folders, pair_files

NO_TRAINING = Kind(WARNING, "no training data", "validation.py can use it, train.py cannot.")
LEFT_OUT = "Training leaves them out; the first of them is named."


class Opened(NamedTuple):
    """path: of the data; layout: coco, voc, npy, packed or pictures; splits: {"train" | "val" | "all": data set} as
    far as they are sound; verdict: the error that train.py would end with, or None; pictures: files, where there are
    no annotations."""

    path: Path
    layout: str
    splits: dict
    verdict: str | None
    pictures: list[Path]


def open_all(path, finds: Finds, dataset="auto", image_dir=None, year=None, label_json=None,
             follow_links=False) -> Opened:
    """InputError where there is nothing to look at."""
    path = user_path(path)
    if not path.exists():
        raise InputError(f"{path}: no such file or folder")
    layout = layout_of(path, dataset)
    options = dict(image_dir=image_dir, year=year, label_json=label_json, follow_links=follow_links)
    splits, verdict, roles = {}, None, ()
    try:
        roles = _roles(path, layout, year)
        splits = open_splits(path, layout, roles, **options)
        if not {"train", "all"} & set(roles):
            finds.add(NO_TRAINING, f"{path}: no training data beside the validation data")
    except InputError as error:
        verdict = str(error)
    splits = {split or "all": data_set for split, data_set in splits.items()}
    if layout == "coco" and roles and (verdict or any(data_set.skipped for data_set in splits.values())):
        splits = _look_closer(path, splits, verdict, finds, image_dir, year, follow_links)
    elif layout == "voc":
        splits = list_voc(path, year, follow_links, splits, verdict, finds)
    elif layout == "npy" and roles:
        _list_npy(path, splits, verdict, follow_links, finds)
    pictures = []
    if verdict and not splits and not finds.total("error") and path.is_dir():
        pictures = pictures_below(path)
        if not follow_links:
            folders = {picture.parent for picture in pictures}
            for error in links_out_of(sorted(folders), path):
                finds.mistake(str(error))
            pictures = [picture for picture in pictures if path.resolve() in picture.resolve().parents]
    if verdict and verdict not in finds.texts("error") and not (finds[MISSING] and "files are missing" in verdict):
        finds.mistake(verdict)
    return Opened(path, "pictures" if pictures else layout, splits, verdict, pictures)


def _roles(path: Path, layout: str, year) -> tuple:
    """The splits that the data has, before it is read; "all": a whole that is split by chance."""
    if layout == "coco":
        return tuple(coco_files(path, year)[1])
    if layout == "npy":
        return tuple(find_npy_folders(path)) if path.is_dir() else ()
    if layout == "packed" and path.is_file():
        return ("all",)
    return ("train", "val")


def _look_closer(path, splits, verdict, finds, image_dir, year, follow_links) -> dict:
    """COCO data that the loader stops at, or skips something of."""
    if verdict is None:
        for split, data_set in splits.items():
            if data_set.skipped:
                list_skips(data_set, split, finds)
        return splits
    root, jsons = coco_files(path, year)
    splits = list_coco(root, jsons, image_dir, follow_links, finds)
    if {"train", "val"} <= splits.keys():
        try:
            merged_categories(splits["train"], splits["val"])
        except InputError as error:
            finds.mistake(str(error))
    for split, data_set in splits.items():
        list_missing(data_set, split, finds)
    return splits


def _list_npy(path, splits, verdict, follow_links, finds) -> None:
    """The loader's counts of what it skips; where it stops, every file that can't be used."""
    for split, data_set in splits.items():
        for reason, count in data_set.skipped.items():
            text = f"{data_set.source}: {count} {reason} (first: {data_set.first_skipped[reason]})"
            finds.add(Kind(WARNING, f"skipped: {reason}", LEFT_OUT), text, split, count=count)
    if verdict is None:
        return
    for split, (image_dir, annotation_dir) in find_npy_folders(path).items():
        if not follow_links:
            for error in links_out_of([image_dir, annotation_dir], path):
                finds.mistake(str(error), split=split)
        try:
            pairs, _ = pair_files(image_dir, annotation_dir)
        except InputError as error:
            finds.mistake(str(error), split=split)
            continue
        for picture, annotation in pairs:
            try:
                scan_pair(image_dir / picture, annotation_dir / annotation)
            except InputError as error:
                finds.mistake(str(error), split=split)
