"""What the converters share: the splits of their data, and a folder that appears only when it is complete."""

import os
import shutil
import tempfile
from collections.abc import Container, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from backbone.errors import InputError
from train_utils.data.opening import open_data
from train_utils.data.options import DataOptions
from train_utils.io.files import make_folder, user_path


def open_splits(options: DataOptions, roles: Container[str]) -> dict[str, Any]:
    """Returns {"train" | "val" | "": data set}; "" is all of data without a split. roles: those that the folder has."""
    if "all" in roles:
        return {"": open_data(replace(options, val_fraction=0), "train").train}
    splits = open_data(options, None if "train" in roles else "val")
    return {name: part for name, part in (("train", splits.train), ("val", splits.val)) if part is not None}


@contextmanager
def new_folder(path: str | Path) -> Iterator[Path]:
    """A folder to be filled, which becomes `path` when the block ends without an error, and is removed otherwise.

    InputError where `path` exists, or cannot be written.
    """
    path = user_path(path)
    if os.path.lexists(path):
        raise InputError(f"{path}: exists already; give another folder, or remove it")
    make_folder(path.parent)
    try:
        with tempfile.TemporaryDirectory(prefix=f".{path.name}-unfinished-", dir=path.parent) as room:
            unfinished = Path(room) / path.name  # with the user's umask, as `room` is not
            unfinished.mkdir()
            yield unfinished
            os.rename(unfinished, path)
    except OSError as error:
        raise InputError(f"{path}: could not be written: {error}; nothing is left of it") from error


def place_image(source: str | Path, target: Path, link: bool) -> bool:
    """Copy an image, or link it: hard where that can be, else by a symbolic link. Returns whether by the latter."""
    if not link:
        shutil.copyfile(source, target)
        return False
    try:
        os.link(os.path.realpath(source), target)
        return False
    except OSError:  # another disk, or one without hard links
        target.symlink_to(os.path.realpath(source))
        return True
