"""What training would make of a data set, before it starts: mistakes, oddities, sizes, anchors, doubles.

    python -m tools.check_data D                       any data that train.py reads; a json; a folder of images
    python -m tools.check_data D --min-size 512        as the model would see it: its flags are train.py's
    python -m tools.check_data D --weights-path W      as the model of a checkpoint would see it
    python -m tools.check_data D --full                also open every image (by itself up to 2,000 images)
    python -m tools.check_data D --fix OUT             write corrected copies of COCO jsons, and a list of changes

Writes check_data.html (a page to look at) and check_data.json (every find, for programs) to --output-dir. What
the loader refuses or skips is reported in its own words: every annotation, not only the first. The data is never
changed. Exit status: 0 nothing to complain of; 1 warnings; 2 errors, at which training would stop.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

from backbone.errors import InputError
from tools.doctor import fix
from tools.doctor.finds import ERROR, WARNING
from tools.doctor.report.found import Report
from tools.doctor.report.options import Options
from tools.doctor.report.summary import show
from tools.doctor.report.writing import write
from train_utils.cli.command import EXIT_OK, EXIT_SOME_UNUSABLE, EXIT_WRONG_INPUT, run_command
from train_utils.cli.flags import add_flags, add_model_flags, given_model, given_settings
from train_utils.cli.parser import Parser
from train_utils.data.augmentations.options import Augmentation, with_preset
from train_utils.data.objects.fitting import FITTED
from train_utils.io.files import user_path
from train_utils.io.plain_text import visible

USED_MOST = (
    "data_path", "output_dir", "full", "workers", "weights_path", "min_size", "max_size", "anchor_sizes", "fix"
)  # fmt: skip


def parse() -> Options:
    """Returns the options that the command names."""
    parser = Parser(description=__doc__, first=USED_MOST)
    add_flags(parser, Options, leave_out=("val_fraction", "drop_empty", "strict"))
    add_flags(parser, Augmentation, leave_out=("mini_mask",))
    add_model_flags(parser, training=False, may_be_auto=FITTED)
    given = parser.given()
    augmentation = Augmentation(**given_settings(Augmentation, with_preset(given)))
    options = Options(**given_settings(Options, given), model=given_model(given), augmentation=augmentation)
    if options.full and options.quick:
        parser.error("argument --quick: not allowed with argument --full")
    return options


def output_folder(options: Options) -> Path:
    """Returns --output-dir. Raises InputError if it lies in the data."""
    folder, data = user_path(options.output_dir), user_path(options.data_path)
    root = data.resolve() if data.is_dir() else data.resolve().parent
    if folder.resolve() == root or (data.is_dir() and root in folder.resolve().parents):
        raise InputError(f"--output-dir {folder}: lies in the data; give a folder outside of it")
    return folder


def main() -> int:
    """Runs the command; returns its exit status."""
    options = parse()
    start = time.monotonic()
    folder = output_folder(options)
    if options.fix and os.path.lexists(user_path(options.fix)):
        raise InputError(f"--fix {options.fix}: exists already; give a new folder")
    report = Report(options)
    report.look()
    if report.full:
        report.open_images()
    advice = write(report, folder)
    show(report)
    for line in advice:
        print(visible(line))
    written = f"{folder / 'check_data.html'}, {folder / 'check_data.json'}"
    print(visible(f"written: {written} ({time.monotonic() - start:.1f} s)"))
    if options.fix:
        fix.write(report.opened, options, user_path(options.fix), report.config, report.finds, report.of_images)
    if report.finds.total(ERROR):
        return EXIT_WRONG_INPUT
    return EXIT_SOME_UNUSABLE if report.finds.total(WARNING) else EXIT_OK


if __name__ == "__main__":
    sys.exit(run_command(main))
