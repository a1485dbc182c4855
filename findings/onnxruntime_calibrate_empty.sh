#!/usr/bin/env bash
# onnxruntime 1.32.0: static quantisation calibrated with CalibMovingAverage, where a tensor of one image is empty.
#
# One would guess: an image in which nothing is left of a tensor (a detector that finds nothing) adds nothing to its
#                  range, as it does without CalibMovingAverage.
# It does:         the empty tensor has the range inf to -inf, and so has the mean over all images; no word is said, and
#                  the quantised model computes garbage from there on. Leave such images out.
# Seen:            without: 1 to 4; with: inf to -inf
set -euo pipefail
room=$(mktemp -d)
trap 'rm -rf "$room"' EXIT
python3 -m venv "$room/venv"
"$room/venv/bin/pip" install --quiet --disable-pip-version-check onnxruntime==1.32.0 onnx==1.23.2 numpy==2.4.6
cd "$room"
"$room/venv/bin/python" - << 'PY'
import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper
from onnxruntime.quantization.calibrate import create_calibrator

nodes = [
    helper.make_node("Greater", ["x", "zero"], ["above"]),
    helper.make_node("Compress", ["x", "above"], ["found"], axis=0),
    helper.make_node("Relu", ["found"], ["y"]),
]
zero = onnx.numpy_helper.from_array(np.float32(0), "zero")
info = helper.make_tensor_value_info
graph = helper.make_graph(
    nodes, "what is above zero", [info("x", TensorProto.FLOAT, [4])], [info("y", TensorProto.FLOAT, ["n"])], [zero]
)
model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
onnx.save(model, "model.onnx")


class Images:
    def __init__(self):
        self.left = iter([{"x": np.float32([1, 2, 3, 4])}, {"x": np.float32([-1, -1, -1, -1])}])

    def get_next(self):
        return next(self.left, None)


def range_of(average):
    calibrator = create_calibrator(
        "model.onnx", ["Relu"], augmented_model_path="augmented.onnx", extra_options={"moving_average": average}
    )
    calibrator.collect_data(Images())
    low, high = calibrator.compute_data().data["y"].range_value
    return float(np.squeeze(low)), float(np.squeeze(high))


found = [range_of(False), range_of(True)]
print("onnxruntime", onnxruntime.__version__, "range without and with the average:", *found)
assert found == [(1.0, 4.0), (float("inf"), float("-inf"))], found
PY
