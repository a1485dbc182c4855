"""The console command `maskrcnn`: its first word names a script, the rest are the script's flags.

maskrcnn train --data-path DATA          as `python train.py --data-path DATA` in a clone
maskrcnn validate | predict | check ...  validation.py, predict.py, tools.check_data
"""

import importlib
import sys

from train_utils.cli.command import EXIT_OK, EXIT_WRONG_INPUT, run_command
from train_utils.io.version import __version__

COMMANDS = {"train": "train", "validate": "validation", "predict": "predict", "check": "tools.check_data"}


def main() -> int:
    """Runs the script that the command names, in this process; returns its exit status."""
    name, *words = sys.argv[1:] or ["--help"]
    if name in ("-h", "--help"):
        print(__doc__.strip(), "\n\n`maskrcnn train --help` and so on list the flags; --version")
        return EXIT_OK
    if name == "--version":
        print(f"maskrcnn {__version__}")
        return EXIT_OK
    if name not in COMMANDS:
        print(f"error: maskrcnn {name}: give one of {', '.join(COMMANDS)}", file=sys.stderr)
        return EXIT_WRONG_INPUT
    sys.argv = [f"maskrcnn {name}", *words]
    return run_command(importlib.import_module(COMMANDS[name]).main)
