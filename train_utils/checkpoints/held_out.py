"""What a checkpoint's training held out of data without a validation split -> the images that validation scores.

Data with a split of its own is scored by that split. Other data is scored whole, but for the data that the checkpoint
was trained on: of that the share which training held out. It is recognised by its place, or by the training images.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from backbone.errors import InputError
from train_utils.checkpoints.checkpoint import is_checkpoint
from train_utils.data.dataset import ImageDataset
from train_utils.data.demands import without_objects
from train_utils.data.labels import LabelMap
from train_utils.data.opening import find_places, open_data, split_positions
from train_utils.data.options import PLACES, DataOptions
from train_utils.io.plain_text import counted

SHARE = ("val_fraction", "seed")
OF_TRAINING = (*PLACES, *SHARE, "crowd_as_objects", "split_components")  # what a checkpoint says about its data


class Scored(NamedTuple):
    """Validation images; of: how many the data has, of which they may be a share; lines: what is said of them."""

    data_set: ImageDataset
    of: int
    lines: list[str]

    def counts(self, unreadable: int = 0) -> dict[str, Any]:
        """Returns what a record says of them."""
        scored = len(self.data_set) - unreadable
        counts = {"images": scored, "of": self.of, "unreadable": unreadable}
        notes = list(self.data_set.annotations.notes)  # what was matched by name, and how files were found
        return {"source": self.data_set.source, **counts, "skipped": self.data_set.skipped, "notes": notes}


def open_scored(
    options: DataOptions, content: Mapping[str, Any], asked: bool, label_map: LabelMap | None = None
) -> Scored:
    """Opens the images that validation scores.

    content: of the weights' file, which may be no checkpoint; asked: whether options name the share themselves;
    label_map: the weights' own, or None for the data's.
    """
    trained = content.get("args", {}) if is_checkpoint(content) else {}
    path, _, places = find_places(options, "val")
    data_set = open_data(replace(options, val_fraction=1.0), "val", label_map).val
    whole, lines = len(data_set), [data_set.describe()]
    if not (path.is_dir() and "val" in places):
        if not asked:
            of_training = {name: trained[name] for name in SHARE if trained.get(name) is not None}
            options = replace(options, **of_training)
        train, val = split_positions(data_set, options.val_fraction, options.seed)
        if asked or was_divided(trained, places) or _are_its_images(content, trained, data_set.subset(train)):
            data_set = data_set.subset(val)
            if not len(data_set):
                raise InputError(f"{path}: no image is left for validation; check --val-fraction")
            by = "that the command asks for" if asked else "that training held out"
            of = f"{len(data_set)} of the {counted(whole, 'image')}"
            lines.append(f"scored: {of}, the share of {options.val_fraction:g} {by}")
        else:
            lines.append(f"scored: all {counted(whole, 'image')}")
    cause = without_objects(data_set)
    return Scored(data_set, whole, [*lines, f"AP is n/a: {cause}"] if cause else lines)


def check_same_classes(weights_path: str | Path, label_map: LabelMap, data_set: ImageDataset, named: bool) -> None:
    """Raises InputError unless the weights' labels are the data's; named: whether the weights' names are known."""
    data_map = data_set.label_map
    if data_map.num_labels != label_map.num_labels:
        raise InputError(
            f"{weights_path}: was trained for {counted(label_map.num_labels - 1, 'class')} (without "
            f"background), the data has {data_map.num_labels - 1}; give the data's own weights"
        )
    if not named:
        return
    for category in data_set.ground_truth()["categories"]:
        if not label_map.has_category(category["id"]):
            continue  # nothing is annotated with it: else the data set would have refused the label map
        name = label_map.name(label_map.to_label(category["id"]))
        if name != category["name"]:
            raise InputError(
                f"{weights_path}: its category {category['id']} is {name!r}, the data's is "
                f"{category['name']!r}; give the weights' own data (--label-json-path renames)"
            )


def options_of(args: Mapping[str, Any]) -> DataOptions:
    """Returns where the data of a checkpoint's training lies, of its args."""
    return DataOptions(**{name: args[name] for name in OF_TRAINING if args.get(name) is not None})


def was_divided(trained: Mapping[str, Any], places: Mapping[str, Any]) -> bool:
    """Returns whether training divided the data of one of these places; False where that is gone."""
    try:
        theirs = find_places(options_of(trained))[2] if trained else {}
    except InputError:
        return False
    return "val" not in theirs and bool({*map(_resolved, theirs.values())} & {*map(_resolved, places.values())})


def _resolved(place: Any) -> Any:
    """Returns a place with whole paths, and without what is only said about it."""
    if isinstance(place, tuple):
        place = place._replace(note="") if hasattr(place, "note") else place
        return tuple(map(_resolved, place))
    return Path(place).resolve() if isinstance(place, str | Path) else place


def _are_its_images(content: Mapping[str, Any], trained: Mapping[str, Any], data_set: ImageDataset) -> bool:
    """Returns whether these are the images of the checkpoint's training, wherever they lie now."""
    if trained.get("drop_empty"):
        data_set = data_set.subset(np.flatnonzero(data_set.object_counts()))
    progress = content.get("progress") if trained else None
    return isinstance(progress, dict) and progress.get("data") == fingerprint(data_set)


def fingerprint(data_set: ImageDataset) -> str:
    """Returns a hash of the training images' names, sizes and numbers of objects, in their order."""
    state = hashlib.sha256()
    for i in range(len(data_set)):
        state.update(Path(data_set.file_name(i)).name.encode(errors="surrogateescape") + b"\0")
    state.update(np.asarray(data_set.sizes, dtype=np.int64).tobytes())
    state.update(np.asarray(data_set.object_counts(), dtype=np.int64).tobytes())
    return state.hexdigest()
