"""An ONNX file -> a function that onnxruntime runs on the CPU, and what the file says of itself."""

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from train_utils.prediction.runtimes.exported_model import Run
from train_utils.prediction.runtimes.packages import optional_package

KEY = "maskrcnn"  # of the description, in the file's metadata


def open_onnx(source: Path | bytes, in_flight: int = 1) -> tuple[Run, dict[str, Any]]:
    """Opens a file, or its content, with as many threads as torch has. Raises RuntimeError for what is no such file.

    in_flight: threads that call it at once, among whom these are shared.
    """
    onnxruntime = optional_package("onnxruntime", "an ONNX file")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = max(torch.get_num_threads() // in_flight, 1)
    options.log_severity_level = 3  # errors alone
    content = source if isinstance(source, bytes) else str(source)
    try:
        session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # its errors have no common class
        raise RuntimeError(str(error)) from error

    names = [value.name for value in session.get_inputs()]

    def run(*inputs: Tensor) -> list[Tensor]:
        arrays = (value.contiguous().numpy() for value in inputs)
        found = session.run(None, dict(zip(names, arrays, strict=True)))
        return [torch.from_numpy(array) for array in found]

    return run, json.loads(session.get_modelmeta().custom_metadata_map.get(KEY, "{}"))
