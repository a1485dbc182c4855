"""What commands on trained models say about data -> the data that goes with a model."""

from __future__ import annotations

from typing import Any

from train_utils.checkpoints.checkpoint import is_checkpoint
from train_utils.checkpoints.held_out import OF_TRAINING, SHARE, Scored, check_same_classes, open_scored
from train_utils.cli.flags import add_flags, given_settings
from train_utils.cli.parser import Parser
from train_utils.data.dataset import ImageDataset
from train_utils.data.labels import LabelMap
from train_utils.data.opening import open_data
from train_utils.data.options import OF_PLACE, PLACES, DataOptions
from train_utils.data.problems import few_counts
from train_utils.io.plain_text import counted, visible

OF_DATA = (*OF_TRAINING, "follow_links", "strict")


def add_data_flags(parser: Parser) -> None:
    """Adds the flags that name data: those that are absent are as in training, see `data_options`."""
    add_flags(parser, DataOptions, only=OF_DATA, defaults=False)


def data_options(given: dict[str, Any], trained: dict[str, Any]) -> DataOptions:
    """Returns the options of the data that is given, else of that of the training options `trained`."""
    names = OF_TRAINING if given.keys().isdisjoint(PLACES) else [name for name in OF_TRAINING if name not in OF_PLACE]
    of_training = {name: trained[name] for name in names if trained.get(name) is not None}
    return DataOptions(**{**of_training, **given_settings(DataOptions, given)})


def open_split_of(
    content: dict[str, Any], split: str, given: dict[str, Any], label_map: LabelMap
) -> tuple[Scored, dict[str, Any]]:
    """Returns the split of the data that goes with a model, and the training options; InputError for other classes.

    content: of the weights' file; given: the settings of the command; label_map: the model's.
    """
    whole = is_checkpoint(content)
    trained = content.get("args", {}) if whole else {}  # other projects' are not our flags
    # A bare state dict knows no category ids: the data's own are taken unless the user names the classes.
    named = whole or "label_json_path" in given
    wanted = data_options({name: value for name, value in given.items() if name in OF_DATA}, trained)
    classes = label_map if named else None
    if split == "val":
        scored = open_scored(wanted, content, not given.keys().isdisjoint(SHARE), classes)
    else:
        data_set = getattr(open_data(wanted, split, classes), split)
        scored = Scored(data_set, len(data_set), [data_set.describe()])
    check_same_classes(given["weights_path"], label_map, scored.data_set, named)
    print(*map(visible, scored.lines), sep="\n")
    return scored, trained


def notes_on_classes(data_set: ImageDataset) -> list[str]:
    """Returns what is said of the classes that results are written with, where the data has others than the model."""
    table, label_map = data_set.annotations, data_set.label_map
    lines, model = list(table.notes), dict(zip(label_map.category_ids, label_map.names, strict=True))
    other = [i for i, name in table.categories.items() if name not in (model.get(i, name), str(i))]
    if other:
        names = f"category {other[0]} is {table.categories[other[0]]!r} there and {model[other[0]]!r} in the model"
        lines.append(
            f"{counted(len(other), 'class', 'have')} the model's ids, but other names: {names}; ids are gone by"
        )
    lacking = {name: i for i, name in model.items() if i not in table.categories}
    if lacking:
        lines.append(f"not there: {counted(len(lacking), 'class')} of the model, whose ids stay: {few_counts(lacking)}")
    return [f"{table.source}: {line}" for line in lines]
