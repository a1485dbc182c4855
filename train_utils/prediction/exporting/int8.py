"""An ONNX model and images -> the same with its convolutions in 8 bits, by onnxruntime's static quantisation.

The range of every activation is taken over calibration images; weights have a scale for each channel. The first
convolution, which reads the image, predictors, whose numbers are boxes and scores, depthwise convolutions, which
compute little, and all but convolutions stay in float. OpenVINO reads the result as it reads any ONNX model, and
computes in 8 bits as well.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from network_files import MaskRCNN
from train_utils.io.unfinished import new_file
from train_utils.prediction.runtimes.packages import optional_package

MOST_LOST = 0.005  # of an AP
PREDICTORS = ("cls_logits", "bbox_pred")  # parts of the names of weights


class Scores(NamedTuple):
    """The AP of a model and of its file in 8 bits, by IoU type: "bbox", "segm"."""

    model: dict[str, float]
    int8: dict[str, float]

    @property
    def line(self) -> str:
        """What is printed."""
        parts = (f"{t} AP {self.int8[t]:.4f}, of the model {ap:.4f}" for t, ap in self.model.items())
        return f"proof in 8 bits: {'; '.join(parts)}"

    def faults(self) -> list[str]:
        """Returns the types that lose more than MOST_LOST."""
        lost = {t: ap - self.int8[t] for t, ap in self.model.items()}
        return [f"{t} AP falls by {less:.4f}" for t, less in lost.items() if not less <= MOST_LOST]

    def record(self) -> dict[str, Any]:
        """Returns plain values."""
        return self._asdict()


@dataclass(frozen=True)
class Int8:
    """What 8 bits need; images [C, H, W]: to calibrate with; score: a model's AP, by IoU type."""

    images: Sequence[Tensor]
    score: Callable[[nn.Module], dict[str, float]]

    def judge(self, model: nn.Module, exported: nn.Module) -> Scores:
        """Returns the AP of both."""
        return Scores(self.score(model), self.score(exported))


def quantised(onnx_model: Any, model: MaskRCNN, images: Sequence[Tensor], room: Path) -> Any:
    """Returns an onnx.ModelProto in 8 bits; images [C, H, W]: to calibrate with; room: a folder to work in."""
    names = "onnx", "onnxruntime", "onnxruntime.quantization"
    onnx, onnxruntime, quantization = (optional_package(name, "int8") for name in names)
    onnxruntime.set_default_logger_severity(3)  # errors alone: it warns of weights that it has replaced itself
    with new_file(room / "float.onnx") as file:  # a model that is not of a file would lose its weights to one
        file.write(onnx_model.SerializeToString())
    quantization.quantize_static(
        room / "float.onnx",
        room / "model.onnx",
        _Calibration(model, images),
        quant_format=quantization.QuantFormat.QDQ,
        op_types_to_quantize=["Conv"],
        nodes_to_exclude=_in_float(onnx_model),
        per_channel=True,
        # weights of 7 bits: without AVX512-VNNI a CPU adds two products of 8 bits in 16, which overflow
        reduce_range=True,
        activation_type=quantization.QuantType.QUInt8,
        weight_type=quantization.QuantType.QInt8,
    )
    return onnx.load(room / "model.onnx")


def _in_float(onnx_model: Any) -> list[str]:
    """Returns the names of what stays in float: the first convolution, predictors, depthwise convolutions."""
    first, *others = (node for node in onnx_model.graph.node if node.op_type == "Conv")
    grouped = [node for node in others if any(a.name == "group" and a.i > 1 for a in node.attribute)]
    predictors = [node for node in others if any(name in node.input[1] for name in PREDICTORS)]
    return [node.name for node in (first, *grouped, *predictors)]


class _Calibration:
    """What onnxruntime reads calibration images from: one batch after another, None at the end."""

    def __init__(self, model: MaskRCNN, images: Sequence[Tensor]) -> None:
        self.batches = self._batches(model, images)

    @staticmethod
    def _batches(model: MaskRCNN, images: Sequence[Tensor]) -> Iterator[dict[str, np.ndarray]]:
        for image in tqdm(images, desc="calibration", unit="image", disable=None):
            batch = model.transform.batch([image], None, False, torch.float32)
            yield {"images": batch.images.contiguous().numpy(), "sizes": np.float32(batch.sizes)}

    def get_next(self) -> dict[str, np.ndarray] | None:
        """Returns the inputs of the next image."""
        return next(self.batches, None)

    def set_range(self, start_index: int, end_index: int) -> None:
        """Limits what is left to a range of images."""
        self.batches = itertools.islice(self.batches, start_index, end_index)
