"""The console command `maskrcnn`: its first word names a script, the rest are the script's flags.

maskrcnn train --data-path DATA          as `python train.py --data-path DATA` in a clone
maskrcnn validate | predict | check ...  validation.py, predict.py, tools.check_data
"""

import importlib
import os
import sys

from train_utils.cli.command import EXIT_OK, EXIT_WRONG_INPUT, run_command
from train_utils.io.plain_text import pasted
from train_utils.io.version import __version__

COMMANDS = {"train": "train", "validate": "validation", "predict": "predict", "check": "tools.check_data"}


def start_of(module: str) -> str:
    """Returns how a script is started where this program was: `python predict.py`, `maskrcnn predict`."""
    if sys.argv[0].startswith("maskrcnn "):
        return f"maskrcnn {next(name for name, script in COMMANDS.items() if script == module)}"
    if "." in module:
        return f"python -m {module}"
    return f"python {script_path(module)}"


def script_path(module: str) -> str:
    """Returns the path of a script beside the one that runs, quoted for a shell; its name alone for other programs."""
    folder, name = os.path.split(sys.argv[0])
    ours = name.removesuffix(".py") in (*COMMANDS.values(), "train_multi_GPU")
    return pasted(os.path.join(folder if ours else "", f"{module}.py"))


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
