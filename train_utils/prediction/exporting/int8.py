"""An ONNX model and images -> the same with its layers in 8 bits, by onnxruntime's static quantisation.

The range of every activation is the mean of its ranges in calibration images: that of all of them grows with their
number, and one bright spot would coarsen all. An image in which nothing is found has no range where masks are made, so
it is left out. Weights have a scale for each channel. The first convolution, which reads the image, and predictors,
whose numbers are boxes and scores, stay in float. OpenVINO reads the result as it reads any ONNX model, and computes in
8 bits as well.
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

from network_files import InputError, MaskRCNN
from train_utils.io.plain_text import counted
from train_utils.io.unfinished import new_file
from train_utils.prediction.predictor import detect
from train_utils.prediction.runtimes.packages import optional_package

MOST_LOST = 0.005  # of an AP
PREPARED = {"key": "onnx.quant.pre_process", "value": "onnxruntime.quant"}  # weights are folded: no advice is needed
LAYERS = ("Conv", "Gemm")
ACTIVATIONS = ("Relu", "Clip")  # a layer's result is rounded after its activation, of which none is left
PREDICTORS = ("cls_logits", "bbox_pred", "cls_score")  # parts of the names of weights


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


def quantised(onnx_model: Any, model: MaskRCNN, images: Sequence[Tensor], room: Path, at_once: int = 1) -> Any:
    """Returns an onnx.ModelProto in 8 bits; images [C, H, W]: to calibrate with; room: a folder to work in.

    at_once: images that the model takes, which each is repeated for.
    """
    names = "onnx", "onnxruntime", "onnxruntime.quantization"
    onnx, onnxruntime, quantization = (optional_package(name, "int8") for name in names)
    onnxruntime.set_default_logger_severity(3)  # errors alone: it warns of weights that it has replaced itself
    onnx_model.metadata_props.add(**PREPARED)
    with new_file(room / "float.onnx") as file:  # a model that is not of a file would lose its weights to one
        file.write(onnx_model.SerializeToString())
    quantization.quantize_static(
        room / "float.onnx",
        room / "model.onnx",
        _Calibration(model, images, at_once),
        quant_format=quantization.QuantFormat.QDQ,
        op_types_to_quantize=[*LAYERS, *ACTIVATIONS],
        nodes_to_exclude=_in_float(onnx_model),
        per_channel=True,
        # weights of 7 bits: without AVX512-VNNI a CPU adds two products of 8 bits in 16, which overflow
        reduce_range=True,
        activation_type=quantization.QuantType.QUInt8,
        weight_type=quantization.QuantType.QInt8,
        extra_options={"CalibMovingAverage": True},
    )
    made = onnx.load(room / "model.onnx")
    del made.metadata_props[:]
    return made


def _in_float(onnx_model: Any) -> list[str]:
    """Returns the names of the layers that stay in float: the first one and predictors."""
    first, *others = (node for node in onnx_model.graph.node if node.op_type in LAYERS)
    return [first.name, *(node.name for node in others if any(name in node.input[1] for name in PREDICTORS))]


class _Calibration:
    """What onnxruntime reads calibration images from: one batch after another, None at the end."""

    def __init__(self, model: MaskRCNN, images: Sequence[Tensor], at_once: int = 1) -> None:
        cpu = torch.device("cpu")
        telling = [image for image in images if len(detect(model, [image], cpu)[0]["boxes"])]
        if not telling:
            raise InputError(
                f"int8: the model finds nothing in {counted(len(images), 'image')} to calibrate on; give others"
            )
        self.batches = self._batches(model, telling, at_once)

    @staticmethod
    def _batches(model: MaskRCNN, images: Sequence[Tensor], at_once: int) -> Iterator[dict[str, np.ndarray]]:
        for image in tqdm(images, desc="calibration", unit="image", disable=None):
            batch = model.transform.batch([image] * at_once, None, False, torch.float32)
            yield {"images": batch.images.contiguous().numpy(), "sizes": np.float32(batch.sizes)}

    def get_next(self) -> dict[str, np.ndarray] | None:
        """Returns the inputs of the next image."""
        return next(self.batches, None)

    def set_range(self, start_index: int, end_index: int) -> None:
        """Limits what is left to a range of images."""
        self.batches = itertools.islice(self.batches, start_index, end_index)
