"""What commands on trained models say about data -> the data that goes with a model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from backbone.errors import InputError
from train_utils.checkpoints.checkpoint import is_checkpoint
from train_utils.cli.flags import add_flags, given_settings
from train_utils.cli.parser import Parser
from train_utils.data.dataset import ImageDataset
from train_utils.data.labels import LabelMap
from train_utils.data.opening import open_data
from train_utils.data.options import PLACES, DataOptions

OF_TRAINING = (*PLACES, "val_fraction", "seed", "crowd_as_objects")  # what a checkpoint says about its data
OF_DATA = (*OF_TRAINING, "follow_links", "strict")


def add_data_flags(parser: Parser) -> None:
    """Adds the flags that name data: those that are absent are as in training, see `open_split`."""
    add_flags(parser, DataOptions, only=OF_DATA, defaults=False)


def data_options(given: dict[str, Any], trained: dict[str, Any]) -> DataOptions:
    """Returns the options of the data that is given, else of that of the training options `trained`."""
    names = OF_TRAINING if given.keys().isdisjoint(PLACES) else [name for name in OF_TRAINING if name not in PLACES]
    of_training = {name: trained[name] for name in names if trained.get(name) is not None}
    return DataOptions(**{**of_training, **given_settings(DataOptions, given)})


def open_split(split: str, options: DataOptions, label_map: LabelMap | None) -> ImageDataset:
    """Returns a split, "train" or "val", of the data. label_map: the weights' own, or None for the data's."""
    return getattr(open_data(options, split, label_map), split)


def open_split_of(
    content: dict[str, Any], split: str, given: dict[str, Any], label_map: LabelMap
) -> tuple[ImageDataset, dict[str, Any]]:
    """Returns the split of the data that goes with a model, and the training options; InputError for other classes.

    content: of the weights' file; given: the settings of the command; label_map: the model's.
    """
    whole = is_checkpoint(content)
    trained = content.get("args", {}) if whole else {}  # other projects' are not our flags
    # A bare state dict knows no category ids: the data's own are taken unless the user names the classes.
    named = whole or "label_json_path" in given
    of_data = {name: value for name, value in given.items() if name in OF_DATA}
    data_set = open_split(split, data_options(of_data, trained), label_map if named else None)
    check_same_classes(given["weights_path"], label_map, data_set, named)
    print(data_set.describe())
    return data_set, trained


def check_same_classes(weights_path: str | Path, label_map: LabelMap, data_set: ImageDataset, named: bool) -> None:
    """Raises InputError unless the weights' labels are the data's; named: whether the weights' names are known."""
    data_map = data_set.label_map
    if data_map.num_labels != label_map.num_labels:
        raise InputError(
            f"{weights_path}: was trained for {label_map.num_labels - 1} classes (without "
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
