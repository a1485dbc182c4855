"""Data -> its splits, and images where converted data wants them: what the converters share."""

import os
import shutil
from pathlib import Path

from train_utils.data.dataset import ImageDataset
from train_utils.data.demands import refuse_skips, report_missing
from train_utils.data.opening import find_places, read_parts
from train_utils.data.options import DataOptions
from train_utils.io.files import user_path
from train_utils.io.unfinished import new_file


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


def content_in_annotations(data_set: ImageDataset, i: int) -> bytes | None:
    """Returns the file of image i where the annotations hold it, as LabelMe's jsons may; None where it is one."""
    source = data_set.annotations.images
    return source.content(data_set.annotations.file_name(data_set.rows[i])) if hasattr(source, "content") else None


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
