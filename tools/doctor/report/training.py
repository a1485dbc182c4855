"""A report -> how train.py fits the data best: lines of advice, and its command."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np

from network_files.transform import resized_size
from tools.doctor import advice
from tools.doctor.report.found import Report
from tools.doctor.report.options import Options
from train_utils.cli.console import start_of
from train_utils.cli.flags import settings_of
from train_utils.data.loaders import image_factors
from train_utils.data.objects.balance import samples_per_epoch
from train_utils.data.options import OF_PLACE, DataOptions, LoaderOptions
from train_utils.data.tiles.tiling import TrainingTiles
from train_utils.io.plain_text import pasted


def advise(report: Report) -> list[str]:
    """Returns lines that say how train.py fits the data best, its command last; none where it would not open it."""
    trained, options = report.trained, report.options
    if report.verdict or trained is None or not len(trained.sizes) or options.weights_path or options.built_in:
        return []
    config, counts = report.config, np.concatenate([table.counts() for table in report.seen.values()])
    lines, flags = advice.on_size(report.choices, trained, config, report.typical)
    of_limit = advice.on_limit(counts, config)
    lines, flags = lines + of_limit[0], flags + of_limit[1]
    count = samples_per_epoch(image_factors(trained.data_set, LoaderOptions()))
    if "all" in report.tables:  # training holds a share out
        count -= round(count * DataOptions().val_fraction)
    chosen = report.choices[-1].config
    resized = resized_size(*report.typical.size, chosen.min_size[-1], chosen.max_size, chosen.fixed_size)
    lines += advice.on_length(count, resized, config.backbone)
    out = ["--output-dir", f"runs/{report.opened.path.resolve().stem}"]
    own = *data_flags(options), *given_flags(options, flags)
    command = pasted("--data-path", options.data_path, *own, *flags, *out)
    return [*filter(None, lines), f"train with: {start_of('train')} {command}"]


def data_flags(options: Options) -> list[str]:
    """Returns the flags that say how the data is read, as train.py has them, too."""
    words = []
    for name in ("dataset", *OF_PLACE[2:], "label_json_path", "crowd_as_objects", "follow_links"):
        value = getattr(options, name)
        if value != getattr(DataOptions(), name):
            words += ["--" + name.replace("_", "-"), str(value)]
    for name in settings_of(TrainingTiles):
        value = getattr(options, name)
        words += [] if value == getattr(TrainingTiles(), name) else ["--" + name.replace("_", "-"), str(value)]
    return words


def given_flags(options: Options, instead: Collection[str]) -> list[str]:
    """Returns the flags of the model that were given, but those that are among others which take their place."""
    words = []
    for name, value in options.model.items():
        values, flag = value if isinstance(value, tuple) else (value,), "--" + name.replace("_", "-")
        words += [] if flag in instead else [flag, *("none" if v is None else str(v) for v in values)]
    return words
