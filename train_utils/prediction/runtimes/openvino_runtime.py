"""A folder of OpenVINO's model.xml and model.bin -> a function that runs on the CPU, and what it says of itself."""

import json
import threading
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from train_utils.prediction.runtimes.exported_model import Run
from train_utils.prediction.runtimes.packages import optional_package

MODEL, KEY = "model.xml", "maskrcnn"


def open_openvino(folder: Path, in_flight: int = 1, mapped: bool = True) -> tuple[Run, dict[str, Any]]:
    """Opens a folder, with as many threads as torch has.

    in_flight: threads that call it at once, each with a stream and its share of these; mapped: the weights stay in
    their file, which must not change. Raises RuntimeError for what is no such folder.
    """
    openvino = optional_package("openvino", "an OpenVINO model")
    core = openvino.Core()
    core.set_property({"ENABLE_MMAP": mapped})
    model = core.read_model(folder / MODEL)
    about = json.loads(model.get_rt_info(KEY).astype(str)) if model.has_rt_info(KEY) else {}
    # left to itself OpenVINO computes in bf16 where the CPU has AVX512-BF16: errors of percents
    hints = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": torch.get_num_threads()}
    hints |= {"PERFORMANCE_HINT": "LATENCY"}
    if in_flight > 1:
        hints |= {"PERFORMANCE_HINT": "THROUGHPUT", "NUM_STREAMS": in_flight}
    compiled = core.compile_model(model, "CPU", hints)
    own = threading.local()  # a request serves one thread

    def run(*inputs: Tensor) -> list[Tensor]:
        if not hasattr(own, "request"):
            own.request = compiled.create_infer_request()
        own.request.infer([value.contiguous().numpy() for value in inputs])
        return [torch.from_numpy(own.request.get_output_tensor(i).data.copy()) for i in range(len(compiled.outputs))]

    return run, about
