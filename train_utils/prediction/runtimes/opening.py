"""A path -> the exported model that lies there, whatever runtime it is for."""

import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from backbone.errors import InputError
from train_utils.io.plain_text import one_line
from train_utils.prediction.runtimes.exported_model import ExportedModel, Run, WholeModel
from train_utils.prediction.runtimes.onnx_runtime import open_onnx
from train_utils.prediction.runtimes.openvino_runtime import MODEL, open_openvino
from train_utils.prediction.runtimes.torch_programs import open_program

Opener = Callable[..., tuple[Run, dict[str, Any]]]
OPENERS: dict[str, Opener] = {".onnx": open_onnx, ".pt2": open_program}
VERSION = 1


def is_exported(path: str | Path) -> bool:
    """Returns whether a path names an exported file: .onnx, .pt2, or a folder that holds OpenVINO's model.xml."""
    path = Path(path)
    return path.suffix.lower() in OPENERS or (path / MODEL).is_file()


def open_exported(path: str | Path, **config: Any) -> ExportedModel:
    """Opens an exported file; config: fields of the model that precede the file's, as far as they are not built in.

    Raises InputError where there is no such file, its runtime is not installed, or it is not of this project.
    """
    path = Path(path)
    opener = open_openvino if path.is_dir() else OPENERS[path.suffix.lower()]
    if not path.exists():
        raise InputError(f"{path}: no such file")
    run, about = _by(opener, path)
    if about.get("format_version") != VERSION:
        raise InputError(f"{path}: is not of tools.export, or of another version of it; export it again")
    model = opened(run, about, **config)
    model.file = path
    if opener is not open_program:  # torch rounds differently on another number of threads
        model.open_again = lambda in_flight: _by(opener, path, in_flight)[0]
    return model


def _by(opener: Opener, path: Path, *options: int) -> tuple[Run, dict[str, Any]]:
    """Returns what an opener makes of a file; raises InputError for what is none of its runtime."""
    try:
        return opener(path, *options)
    except (RuntimeError, ValueError, OSError, zipfile.BadZipFile) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(
            f"{path}: its runtime cannot open it ({one_line(str(error))[:200]}); export it again"
        ) from error


def opened(run: Run, about: dict[str, Any], **config: Any) -> ExportedModel:
    """Returns the model of a file that is open, as its description says."""
    return (WholeModel if about.get("photo") else ExportedModel)(run, about, **config)
