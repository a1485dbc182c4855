#!/usr/bin/env bash
# onnxruntime 1.32.0: quantize_static of a model in memory.
#
# One would guess: quantize_static(model_input=an onnx.ModelProto) leaves that model as it is, as it leaves a file.
# It does:         the given model's weights are moved to a file of a folder that is removed when the call returns: the
#                  model can neither be saved whole, nor run, nor quantised again.
# Seen:            before: weights in the model, runs; after: weights in an external file that is gone, does not run
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
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import quantize_static

SIDE = 64  # weights of 1024 bytes and more are moved
weight = numpy_helper.from_array(np.ones((SIDE, 3, 3, 3), np.float32), "weight")
graph = helper.make_graph(
    [helper.make_node("Conv", ["x", "weight"], ["y"], name="conv")],
    "one convolution",
    [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 8, 8])],
    [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, SIDE, 6, 6])],
    [weight],
)
model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


class Images:
    def __init__(self):
        self.left = iter([{"x": np.ones((1, 3, 8, 8), np.float32)}])

    def get_next(self):
        return next(self.left, None)


def state():
    try:
        onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    except Exception as error:
        return len(model.graph.initializer[0].raw_data), f"does not run ({type(error).__name__})"
    return len(model.graph.initializer[0].raw_data), "runs"


before = state()
quantize_static(model, "int8.onnx", Images())
after = state()
print("onnxruntime", onnxruntime.__version__, "onnx", onnx.__version__, "before:", before, "after:", after)
assert before == (SIDE * 27 * 4, "runs") and after[0] == 0 and after[1].startswith("does not run"), (before, after)
PY
