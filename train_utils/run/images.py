"""What a run takes of image files: channels, pages, value range, mean and deviation, before its model is built.

A resumed run keeps its checkpoint's, --test-only those of the weights that it scores, and a run that begins with a
checkpoint's weights its channels and pages. All else that is not given follows from the training images.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from backbone.errors import InputError
from network_files.config import EACH_PAGE, MaskRCNNConfig, as_value_range
from train_utils.checkpoints.checkpoint import is_checkpoint, load_file
from train_utils.data.images.reading import Reading
from train_utils.data.images.survey import advise
from train_utils.data.opening import DataSplits
from train_utils.io.files import user_path
from train_utils.processes.distributed import World
from train_utils.run.config import RunConfig

OF_FILES = ("channels", "pages")
OF_VALUES = ("value_range", "image_mean", "image_std")
AUTO = "auto"


def with_images(
    config: RunConfig, splits: DataSplits, resumed: dict[str, Any] | None, world: World
) -> tuple[RunConfig, DataSplits, list[str]]:
    """Returns a resolved config with what its model takes of images, the data read so, and lines that say what is new.

    resumed: the checkpoint that the run goes on from.
    """
    if resumed or config.test_only:
        config = config.filled(_of_weights(config, resumed, OF_FILES + OF_VALUES))
    else:
        config = config.filled(_of_weights(config, None, OF_FILES))
    asked, lines = is_auto(config.value("value_range")), []
    if asked:
        config = config.without("value_range")
    if config.value("pages") == EACH_PAGE:
        raise InputError(
            "--pages each: is for prediction; in training give --pages channels, or save the pages as files"
        )
    reading = Reading(
        config.value("channels") or 3,
        config.value("pages") or Reading.pages,
        as_value_range(config.value("value_range")),
    )
    if not resumed and not config.test_only:
        wants_mean = all(config.value(name) is None for name in ("image_mean", "image_std"))
        advice = world.on_main(advise, splits.train, reading, asked, wants_mean)
        config, lines = config.filled(advice.fields), advice.lines
        reading = replace(reading, value_range=as_value_range(config.value("value_range")))
        if reading.channels not in (1, 3) and config.weights != "none":
            config = config.filled({"trainable_layers": 5})  # no published stem knows such channels
    read = {role: part.read_as(reading) for role, part in splits.by_role().items()}
    return config, splits._replace(**read), lines


def is_auto(value_range: Any) -> bool:
    """Says whether a value range is to be measured."""
    return value_range == AUTO or (isinstance(value_range, tuple | list) and list(value_range) == [AUTO])


def fixed_range(value_range: Any) -> tuple[float, ...] | None:
    """Returns a value range as numbers; None for one that is to be measured."""
    return None if is_auto(value_range) else as_value_range(value_range)


def _of_weights(config: RunConfig, resumed: dict[str, Any] | None, names: tuple[str, ...]) -> dict[str, Any]:
    """Returns these fields of the config of the checkpoint that a run begins with, as far as they are not usual."""
    weights = user_path(config.weights)
    content = resumed or (load_file(weights) if weights.is_file() else {})
    own = content.get("config") if is_checkpoint(content) else None
    if not isinstance(own, dict):
        return {}
    usual = MaskRCNNConfig()
    return {name: own[name] for name in names if name in own and tuple_of(own[name]) != getattr(usual, name)}


def tuple_of(value: Any) -> Any:
    """Returns a list of a checkpoint as the tuple that a config has."""
    return tuple(value) if isinstance(value, list) else value
