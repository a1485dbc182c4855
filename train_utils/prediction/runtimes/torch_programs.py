"""A .pt2 file -> a function that torch runs without the model's code: a program of torch.export."""

import inspect
import io
import json
import zipfile
from pathlib import Path
from typing import Any

import torch

from train_utils.prediction.runtimes import operators  # noqa: F401  programs call them by name
from train_utils.prediction.runtimes.exported_model import Run

EXTRA = "maskrcnn.json"  # the description, a file of the zip


def open_program(source: Path | io.BytesIO) -> tuple[Run, dict[str, Any]]:
    """Opens a program, of a file or of its content.

    Raises RuntimeError, zipfile.BadZipFile or ValueError for what is none.
    """
    with zipfile.ZipFile(source) as archive:
        names = archive.namelist()
        found = [name for name in names if name.endswith(EXTRA)]
        about = json.loads(archive.read(found[0])) if found else {}
    if isinstance(source, Path):
        source = str(source)
    else:
        source.seek(0)
    program = torch.export.load(source)
    # a trace notes that sides and batches were above 1, which changes nothing here: newer versions of torch check it
    checks = {"check_guards": False} if "check_guards" in inspect.signature(program.module).parameters else {}
    program = program.module(**checks)
    return lambda *inputs: list(program(*inputs)), about
