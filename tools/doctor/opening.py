"""A data set as train.py would open it, and where it would not: every mistake, and what is sound of it.

The loader itself (`open_data`) has the first and the last word: its message is the verdict. Only where it stops
or skips is the data read again item by item. (A large json with a mistake is only read item by item.)
"""

import os
from pathlib import Path
from typing import NamedTuple

from backbone.errors import InputError
from tools.conversion import open_splits
from tools.doctor.coco_listing import MISSING, list_coco, list_missing, list_skips
from tools.doctor.finds import ERROR, WARNING, Finds, Kind, of_several
from tools.doctor.images import images_below
from tools.doctor.voc_listing import list_voc
from train_utils.data import cache as annotation_cache
from train_utils.data.cache import cache_folder
from train_utils.data.formats.coco.annotations import read_indexed
from train_utils.data.formats.npy import find_npy_folders, pair_files
from train_utils.data.formats.npy_dataset import scan_pair
from train_utils.data.links import links_out_of
from train_utils.data.opening import coco_files, layout_of, merged_categories
from train_utils.data.options import DataOptions
from train_utils.io.files import user_path

NO_TRAINING = Kind(WARNING, "no training data", "validation.py can use it, train.py cannot.")
LEFT_OUT = "Training leaves them out; the first of them is named."


class Opened(NamedTuple):
    """path: of the data; layout: coco, voc, npy, packed, images or "no known layout"; splits: {"train" | "val" |
    "all": data set} as far as they are sound; verdict: the error that train.py would end with, or None; images:
    files, where there are no annotations."""

    path: Path
    layout: str
    splits: dict
    verdict: str | None
    images: list[Path]


def open_all(
    path, finds: Finds, dataset="auto", image_dir=None, year=None, label_json=None, follow_links=False
) -> Opened:
    """InputError where there is nothing to look at."""
    path = user_path(path)
    if not path.exists():
        raise InputError(f"{path}: no such file or folder")
    layout = layout_of(path, dataset)
    options = dict(image_dir=image_dir, year=year, label_json_path=label_json, follow_links=follow_links)
    splits, verdict, roles, listed = {}, None, (), False
    try:
        roles = _roles(path, layout, year)
        if layout == "coco" and _is_large_and_wrong(path, year):
            splits, listed = _list_coco(path, finds, image_dir, year, follow_links), True
            verdict = next(iter(finds.texts(ERROR)), None)  # the first in the loader's order
        if verdict is None:
            splits = open_splits(DataOptions(path, layout, **options), roles)
            splits = {split or "all": data_set for split, data_set in splits.items()}
        if not {"train", "all"} & set(roles):
            finds.add(NO_TRAINING, f"{path}: no training data beside the validation data")
    except InputError as error:
        verdict = str(error)
    if layout == "coco" and roles and not listed:
        if verdict:
            splits = _list_coco(path, finds, image_dir, year, follow_links)
        for split, data_set in splits.items():
            if data_set.skipped and not verdict:
                list_skips(data_set, split, finds)
    elif layout == "voc":
        splits = list_voc(path, year, follow_links, splits, verdict, finds)
    elif layout == "npy" and roles:
        _list_npy(path, splits, verdict, follow_links, finds)
    images = []
    if verdict and not splits and not finds.total(ERROR) and path.is_dir():
        images = images_below(path)
        if not follow_links:
            folders = {image.parent for image in images}
            for error in links_out_of(sorted(folders), path):
                finds.mistake(str(error))
            images = [image for image in images if path.resolve() in image.resolve().parents]
    if verdict and verdict not in finds.texts(ERROR) and not (finds[MISSING] and "files are missing" in verdict):
        finds.mistake(verdict)
    is_other_file = path.is_file() and path.suffix.lower() != ".json"
    if dataset == "auto" and layout == "coco" and not splits and (not roles or is_other_file):
        layout = "no known layout"
    return Opened(path, "images" if images else layout, splits, verdict, images)


def _roles(path: Path, layout: str, year) -> tuple:
    """The splits that the data has, before it is read; "all": a whole that is split by chance."""
    if layout == "coco":
        return tuple(coco_files(path, year)[1])
    if layout == "npy":
        return tuple(find_npy_folders(path)) if path.is_dir() else ()
    if layout == "packed" and path.is_file():
        return ("all",)
    return ("train", "val")


def _is_large_and_wrong(path: Path, year) -> bool:
    """Whether the loader would read a large json as a whole, for the sake of a mistake: gigabytes of memory that
    reading it piece by piece does not take."""
    if cache_folder() is None:  # a json that is well would be read twice
        return False
    jsons = coco_files(path, year)[1].values()
    return any(os.path.getsize(json) >= annotation_cache.WORTHWHILE and read_indexed(json) is None for json in jsons)


def _list_coco(path, finds, image_dir, year, follow_links) -> dict:
    """{split: what is sound} of COCO data that the loader stops at."""
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
            text = f"{data_set.source}: {count} {of_several(count, reason)} (first: {data_set.first_skipped[reason]})"
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
        for image, annotation in pairs:
            try:
                scan_pair(image_dir / image, annotation_dir / annotation)
            except InputError as error:
                finds.mistake(str(error), split=split)
