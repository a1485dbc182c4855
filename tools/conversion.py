"""Data -> its splits, and a folder that appears only when it is complete: what the converters share."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from backbone.errors import InputError
from train_utils.data.dataset import ImageDataset
from train_utils.data.demands import refuse_skips, report_missing
from train_utils.data.opening import find_places, read_parts
from train_utils.data.options import DataOptions
from train_utils.io.files import make_folder, user_path, writing
from train_utils.io.unfinished import clear_leftovers, new_file, unfinished_folder


def open_splits(options: DataOptions) -> dict[str, ImageDataset]:
    """Opens {"train" | "val" | "": data set}; "" is all of data without a split."""
    path = user_path(options.data_path)
    _, module, places = find_places(options, "train" if path.is_file() else None)
    parts = read_parts(module, places, options)
    for part in parts.values():
        report_missing(part)
        if options.strict:
            refuse_skips(part)
    return {"" if role == "all" else role: part for role, part in parts.items()}


@contextmanager
def new_folder(path: str | Path) -> Iterator[Path]:
    """Makes a folder to fill, which becomes `path` when the block ends without an error, and is removed otherwise.

    Raises InputError where `path` exists, or cannot be written.
    """
    path = user_path(path)
    if os.path.lexists(path):
        raise InputError(f"{path}: exists already; give another folder, or remove it")
    make_folder(path.parent)
    clear_leftovers(path.parent)
    with writing(path), unfinished_folder(path.parent) as unfinished:
        yield unfinished
        os.rename(unfinished, path)


def place_image(source: str | Path, target: Path, link: bool) -> bool:
    """Copies an image, or links it: hard where that can be, else by a symbolic link; returns whether by the latter."""
    if not link:
        with open(source, "rb") as content, new_file(target) as file:
            shutil.copyfileobj(content, file)
        return False
    try:
        os.link(os.path.realpath(source), target)
        return False
    except OSError:  # another disk, or one without hard links
        target.symlink_to(os.path.realpath(source))
        return True
