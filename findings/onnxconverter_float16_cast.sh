#!/usr/bin/env bash
# onnxconverter-common 1.16.0: float16 of a model that casts to float, as detectors do with sizes and indices.
#
# One would guess: convert_float_to_float16(model) gives a model that runs, as its README says; Cast is among the commonest
#                  operators.
# It does:         the type of the result of a Cast to FLOAT is set to float16, but the Cast itself goes on giving float32.
#                  onnx.checker passes the file, onnxruntime refuses it. With "Cast" added to op_block_list it runs.
# Seen:            as given runs; converted "Type (tensor(float16)) of output arg (f) of node (cast) does not match
#                  expected type (tensor(float))"; with Cast blocked runs
set -euo pipefail
room=$(mktemp -d)
trap 'rm -rf "$room"' EXIT
python3 -m venv "$room/venv"
"$room/venv/bin/pip" install --quiet --disable-pip-version-check \
    onnxconverter-common==1.16.0 onnx==1.23.2 onnxruntime==1.32.0 numpy==2.4.6
"$room/venv/bin/python" - << 'PY'
from importlib.metadata import version

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper
from onnxconverter_common import float16


def model():
    """Half the height and width of x, as float."""
    nodes = [
        helper.make_node("Shape", ["x"], ["s"], name="shape"),
        helper.make_node("Cast", ["s"], ["f"], name="cast", to=TensorProto.FLOAT),
        helper.make_node("Mul", ["f", "half"], ["y"], name="half"),
    ]
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, [4, 6])]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, [2])]
    graph = helper.make_graph(nodes, "sizes", inputs, outputs, [numpy_helper.from_array(np.float32([0.5]), "half")])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def outcome(converted):
    onnx.checker.check_model(converted, full_check=False)
    try:
        session = onnxruntime.InferenceSession(converted.SerializeToString(), providers=["CPUExecutionProvider"])
    except Exception as error:
        return str(error).split("Type Error: ")[-1].strip()
    return session.run(None, {"x": np.zeros((4, 6), np.float32)})[0].tolist()


blocked = [*float16.DEFAULT_OP_BLOCK_LIST, "Cast"]
found = {
    "as given": outcome(model()),
    "float16": outcome(float16.convert_float_to_float16(model(), keep_io_types=True)),
    "Cast blocked": outcome(float16.convert_float_to_float16(model(), keep_io_types=True, op_block_list=blocked)),
}
print("onnxconverter-common", version("onnxconverter-common"), "onnxruntime", onnxruntime.__version__, found)
assert found["as given"] == found["Cast blocked"] == [2.0, 3.0], found
assert "(tensor(float16)) of output arg (f) of node (cast) does not match" in found["float16"], found
PY
