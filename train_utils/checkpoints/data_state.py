"""A data set -> checksums of each image, its objects and its files; two of these -> what has changed, by counts.

A run keeps the checksums of its data in each checkpoint: a resumed run says what is other than before. Processes that
train together compare them at the start. I images, 4 bytes of each in a column. Columns:

    names, sizes             the file's name, height and width
    labels, boxes, masks     of the image's objects, as the table has them
    F bytes, times, contents of file F, "image" or "mask": its length, when it was written, and its content, 0 where
                             that was not read (`io/checksums.py`)
"""

import hashlib
import os
import zlib
from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from train_utils.data.annotations import Annotations
from train_utils.data.dataset import ImageDataset
from train_utils.data.images.pages import file_of
from train_utils.io.checksums import Stamps, file_checksums, part_checksums, stamp_files
from train_utils.io.plain_text import counted

OF_TABLE = ("sizes", "labels", "boxes", "masks")
FILES = ("image", "mask")
State = dict[str, Any]  # "form": kind of images and masks; else columns, int32 [I]


def data_state(data_set: ImageDataset) -> State:
    """Returns the columns of the images of a data set, in its order, as a checkpoint keeps them."""
    table, rows = data_set.annotations, data_set.rows
    names, of_boxes = table.file_names(), (table.boxes, table.areas, table.iscrowd, table.ignored)
    form = f"{type(table.images).__name__} {type(table.masks).__name__}"
    columns = {"names": np.array([_crc(os.path.basename(names[row])) for row in rows], dtype=np.uint32)}
    if getattr(table.images, "varies", False):
        return _state(form, columns)
    columns |= {
        "sizes": _folded(table.sizes[rows, 0] << 32 | table.sizes[rows, 1]),
        "labels": part_checksums((table.first, table.category_ids))[rows],
        "boxes": part_checksums(*((table.first, array) for array in of_boxes))[rows],
    }
    if hasattr(table.masks, "mask_checksums"):
        columns["masks"] = table.masks.mask_checksums(table.first)[rows]
    if hasattr(table.images, "image_checksums"):
        columns["image contents"] = table.images.image_checksums()[rows]
    for file, paths in files_of(table, rows, names).items():
        stamps = stamp_files(paths)
        columns |= _stamp_columns(file, stamps)
        columns[f"{file} contents"] = file_checksums(paths, stamps.sizes)
    return _state(form, columns)


def _state(form: str, columns: dict[str, np.ndarray]) -> State:
    return {"form": form, **{name: torch.from_numpy(column.view(np.int32)) for name, column in columns.items()}}


def files_of(table: Annotations, rows: np.ndarray, names: list[str]) -> dict[str, list[str]]:
    """Returns {file: its path for each image}; none for images that lie in one file together."""
    files = {}
    if not hasattr(table.images, "image_checksums"):
        files["image"] = [file_of(table.images.path(names[row])) for row in rows]
    if hasattr(table.masks, "mask_path"):
        files["mask"] = [table.masks.mask_path(row) for row in rows]
    return files


def rewritten(data_set: ImageDataset, state: State) -> np.ndarray:
    """Returns which images' files are not as they were when `state` was made, by size and time: bool [I]."""
    table, changed = data_set.annotations, np.zeros(len(data_set), dtype=bool)
    for file, paths in files_of(table, data_set.rows, table.file_names()).items():
        for name, column in _stamp_columns(file, stamp_files(paths)).items() if f"{file} bytes" in state else ():
            changed |= _column(state, name) != column.view(np.int32)
    return changed


def compare(before: Mapping[str, Any], now: State, data_set: ImageDataset) -> tuple[list[str], list[str]]:
    """Returns (what has changed, what else is to be said), in words with counts.

    before: of a checkpoint; now: of data_set.
    """
    changed, said = [], []
    one, two = _common(_column(before, "names"), _column(now, "names"))
    counts = len(_column(before, "names")), len(_column(now, "names"))
    if len(one) < counts[0]:
        changed.append(f"{counts[0] - len(one)} of {counted(counts[0], 'image', 'are')} gone")
    if len(two) < counts[1]:
        changed.append(f"{counted(counts[1] - len(two), 'image', 'are')} new")
    if not changed and (one != two).any():
        changed.append("the images have another order")

    def differs(column: str) -> np.ndarray:
        return _column(before, column)[one] != _column(now, column)[two]

    def add(what: str, which: np.ndarray) -> None:
        if which.any():
            such = os.path.basename(data_set.file_name(int(two[which.argmax()])))
            changed.append(f"{what} of {counted(int(which.sum()), 'image')}, such as {such}")

    same_form = before["form"] == now["form"]
    for column in OF_TABLE if same_form else OF_TABLE[:-1]:
        if column in before and column in now:
            add(f"other {column}", differs(column))
    for file in FILES if same_form else ():
        if not all(f"{file} contents" in state for state in (before, now)):
            continue
        contents = [_column(before, f"{file} contents")[one], _column(now, f"{file} contents")[two]]
        known = (contents[0] != 0) & (contents[1] != 0)
        other = known & (contents[0] != contents[1])
        if f"{file} bytes" in now:
            other |= differs(f"{file} bytes")
            moved = ~other & differs(f"{file} times")
            unknown = moved & ~known
            if unknown.any() and (moved[known] | other[known]).all() and known.any() and not other.any():
                unknown[:] = False  # all were copied
            add(f"{file} files written anew", unknown)
            if moved.any() and not unknown.any():
                said.append(
                    f"the {file} files have other times, {int(moved.sum())} of {len(moved)}; their sizes are those of "
                    f"before, and so is the content of the {int((moved & known).sum())} that were compared"
                )
        add(f"other {file} files", other)
    if not same_form:
        said.append("the data has another form than before; masks and image files are not compared")
    return changed, said


def digests(data_set: ImageDataset, state: State) -> dict[str, str]:
    """Returns {column: a digest of it}, of those that are alike wherever the data lies; image ids too."""
    names = [name for name in state if name != "form" and not name.endswith("times")]
    columns = {name: _column(state, name) for name in names}
    columns["ids"] = data_set.annotations.image_ids[data_set.rows]
    return {name: hashlib.sha256(np.ascontiguousarray(c).tobytes()).hexdigest() for name, c in columns.items()}


def _column(state: Mapping[str, Any], name: str) -> np.ndarray:
    return state[name].numpy()


def _stamp_columns(file: str, stamps: Stamps) -> dict[str, np.ndarray]:
    return {f"{file} bytes": _folded(stamps.sizes), f"{file} times": _folded(stamps.times)}


def _folded(values: np.ndarray) -> np.ndarray:
    """Returns int64 [n] as uint32 [n], so that near values stay different."""
    wide = values.astype(np.uint64)
    return ((wide >> np.uint64(32)) * np.uint64(2654435761) ^ wide).astype(np.uint32)


def _crc(name: str) -> int:
    return zlib.crc32(os.fsencode(name))


def _common(before: np.ndarray, now: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the positions of the values that both have, in the order of `now`: int64 [n] each."""
    if np.array_equal(before, now):
        return np.arange(len(now)), np.arange(len(now))
    places = defaultdict(list)
    for i in reversed(range(len(before))):
        places[int(before[i])].append(i)
    pairs = [(places[value].pop(), i) for i, value in enumerate(now.tolist()) if places[value]]
    one, two = np.array(pairs, dtype=np.int64).reshape(-1, 2).T
    return one, two
