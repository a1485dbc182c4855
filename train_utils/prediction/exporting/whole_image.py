"""An ONNX core -> the same from an image of any size to boxes and masks in its pixels: resize before, paste after.

For users without Python: what `Transform.batch`, `MaskRCNN.to_original` and `paste_masks` do, in ONNX's operators.

Shapes: C channels, H x W the image, h x w the resized one, D detections, m cells a side of a mask.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np

from network_files import MaskRCNNConfig
from network_files.operators.boxes import TORCHVISION
from network_files.operators.instance_masks import TINY
from train_utils.prediction.exporting.graph import INPUTS, OUTPUTS
from train_utils.prediction.runtimes.packages import optional_package

PHOTO = "photo"  # the input, [C, H, W]
PHOTOS = ("uint8", "float")  # its type: values in 0..255, or in 0..1
LONGEST = 65_535  # pixels of a side, up to which sizes are exact
THRESHOLD = 0.5  # of a mask's probability, above which a pixel is set
FLOAT, UINT8, INT64 = 1, 2, 7  # ONNX's numbers of types


class _Nodes:
    """Adds nodes by the name of their operator: `op.Add(one, 1)` returns the name of the sum.

    What is no name of a value becomes a constant: whole numbers int64, or uint8 as they are, others float32; None: an
    input left out.
    """

    def __init__(self) -> None:
        self.onnx, self.nodes = optional_package("onnx", "the export to ONNX"), []
        self.numbers = itertools.count()

    def __getattr__(self, kind: str) -> Callable[..., str]:
        return lambda *inputs, **attributes: self._add(kind, [self._named(value) for value in inputs], attributes)

    def taken(self) -> list[Any]:
        """Returns the nodes since the last call."""
        nodes, self.nodes = self.nodes, []
        return nodes

    def _named(self, value: Any) -> str:
        if value is None or isinstance(value, str):
            return value or ""
        array = np.asarray(value)
        array = array.astype({"u": np.uint8, "i": np.int64}.get(array.dtype.kind, np.float32))
        return self._add("Constant", [], {"value": self.onnx.numpy_helper.from_array(array)})

    def _add(self, kind: str, inputs: list[str], attributes: dict[str, Any]) -> str:
        name = f"whole_{next(self.numbers)}"
        self.nodes.append(self.onnx.helper.make_node(kind, inputs, [name], name=name, **attributes))
        return name


def with_whole_image(core: Any, config: MaskRCNNConfig, photo: str) -> Any:
    """Returns an onnx.ModelProto from photo [C, H, W], of a type of PHOTOS, to boxes, labels, scores, masks.

    Masks are uint8 [D, H, W], 1 where the object is. core: `onnx_file.to_onnx`'s, of any batch, which is changed.
    """
    op, graph = _Nodes(), core.graph
    boxes, labels, scores, masks, _ = OUTPUTS
    inside = {name: f"core_{name}" for name in (*INPUTS, boxes, masks)}
    for node in graph.node:
        for names in (node.input, node.output):
            names[:] = [inside.get(name, name) for name in names]
    outputs = {value.name: value for value in graph.output}
    cells = outputs[masks].type.tensor_type.shape.dim[-1].dim_value
    side = op.Shape(PHOTO, start=1)  # [2]: H, W
    resized = _resized(op, config, side)
    _name(op, inside, INPUTS, _prepared(op, config, photo, resized))
    before = op.taken()
    ratio = op.Div(op.Cast(side, to=FLOAT), op.Cast(resized, to=FLOAT))  # of y and x
    moved = op.Mul(inside[boxes], op.Gather(ratio, [1, 0, 1, 0]))
    pasted = _pasted(op, config.geometry, moved, inside[masks], cells, side)
    _name(op, {}, (boxes, masks), (moved, pasted))
    nodes = [*before, *graph.node, *op.taken()]
    del graph.node[:], graph.input[:], graph.output[:]
    graph.node.extend(nodes)
    info = op.onnx.helper.make_tensor_value_info
    graph.input.append(info(PHOTO, UINT8 if photo == "uint8" else FLOAT, [config.channels, "H", "W"]))
    outputs[masks] = info(masks, UINT8, ["D", "H", "W"])
    graph.output.extend(outputs[name] for name in (boxes, labels, scores, masks))
    return core


def _name(op: _Nodes, inside: dict[str, str], names: tuple[str, ...], values: tuple[str, ...]) -> None:
    """Gives values their names in the graph."""
    for name, value in zip(names, values, strict=True):
        op.nodes.append(op.onnx.helper.make_node("Identity", [value], [inside.get(name, name)]))


def _resized(op: _Nodes, config: MaskRCNNConfig, side: str) -> str:
    """Returns `transform.resized_size` of the side int64 [2]: h, w int64 [2]."""
    if config.fixed_size:  # the other side, or what is in the image's ratio to it
        products = op.Mul(side, op.Gather(list(config.fixed_size), [1, 0]))
        shares = op.Max(op.Div(products, op.Gather(side, [1, 0])), [1])
        return op.Min(list(config.fixed_size), shares)
    # in whole numbers: OpenVINO computes in float32 what is given in double, and is a pixel off for one size in seven
    shorter, longer = op.ReduceMin(side, keepdims=1), op.ReduceMax(side, keepdims=1)
    limits = config.min_size[-1], config.max_size
    by_shorter = op.LessOrEqual(op.Mul(longer, limits[0]), op.Mul(shorter, limits[1]))
    limit, own = op.Where(by_shorter, *limits), op.Where(by_shorter, shorter, longer)
    lost = op.Where(by_shorter, *(op.Gather(_lost(most), op.Min(own, LONGEST)) for most in limits))  # [1]
    exact = op.Div(op.Mul(side, limit), own)
    return op.Max(op.Sub(exact, op.Where(op.Equal(side, own), op.Cast(lost, to=INT64), 0)), 1)


def _lost(limit: int) -> np.ndarray:
    """Returns how many pixels of a limit are lost where a side becomes it, uint8 [LONGEST + 1], by the side.

    Python's 49 * (800 / 49) is less than 800, of which `resized_size` makes 799.
    """
    side = np.maximum(np.arange(LONGEST + 1), 1)
    return (limit - np.floor(side * (limit / side))).astype(np.uint8)


def _prepared(op: _Nodes, config: MaskRCNNConfig, photo: str, resized: str) -> tuple[str, str]:
    """Returns images [1, C, ph, pw] and sizes [1, 2], as CoreGraph takes them."""
    values = op.Div(op.Cast(PHOTO, to=FLOAT), 255.0) if photo == "uint8" else PHOTO
    mean, std = (np.float32(of)[:, None, None] for of in (config.image_mean, config.image_std))
    image = op.Unsqueeze(op.Div(op.Sub(values, mean), std), [0])
    size = op.Concat([1, config.channels], resized, axis=0)
    image = op.Resize(image, None, None, size, mode="linear", coordinate_transformation_mode="half_pixel")
    divisor = config.size_divisible
    steps = op.Div(op.Add(resized, divisor - 1), divisor)
    padded = list(config.fixed_size) if config.fixed_size else op.Mul(steps, divisor)
    image = op.Pad(image, op.Concat([0] * 6, op.Sub(padded, resized), axis=0))
    return image, op.Unsqueeze(op.Cast(resized, to=FLOAT), [0])


def _pasted(op: _Nodes, geometry: str, boxes: str, probs: str, cells: int, side: str) -> str:
    """Returns the masks uint8 [D, H, W] of boxes [D, 4] in the image: `instance_masks.paste_masks` above THRESHOLD."""
    start, end = op.Gather(boxes, [0, 1], axis=1), op.Gather(boxes, [2, 3], axis=1)  # [D, 2]: x, y
    if geometry == TORCHVISION:  # padded by a cell; the box grows with it, to whole pixels
        growth, cells = (cells + 2) / cells, cells + 2
        probs = op.Pad(probs, [0, 1, 1, 0, 1, 1])
        centre, half = op.Mul(op.Add(start, end), 0.5), op.Mul(op.Mul(op.Sub(end, start), 0.5), growth)
        whole = (op.Cast(corner, to=INT64) for corner in (op.Sub(centre, half), op.Add(centre, half)))
        first, last = (op.Cast(corner, to=FLOAT) for corner in whole)
        origin, extent = first, op.Max(op.Add(op.Sub(last, first), 1.0), 1.0)
    else:
        first, last = op.Ceil(op.Sub(start, 0.5)), op.Floor(op.Sub(end, 0.5))
        origin, extent = start, op.Max(op.Sub(end, start), TINY)
    ratio, weights = op.Div(float(cells), extent), []
    for axis, length in enumerate((1, 0)):  # x along W, y along H
        pixel = op.Range(0.0, op.Cast(op.Gather(side, length), to=FLOAT), 1.0)  # [W]
        own = [op.Gather(value, [axis], axis=1) for value in (origin, ratio, first, last)]  # [D, 1]
        position = op.Sub(op.Mul(op.Add(op.Sub(pixel, own[0]), 0.5), own[1]), 0.5)
        position = op.Unsqueeze(op.Clip(position, 0.0, cells - 1.0), [-1])
        # bilinear: a cell weighs less the farther it is, and nothing from the next one on
        near = op.Relu(op.Sub(1.0, op.Abs(op.Sub(position, np.arange(cells, dtype=np.float32)))))  # [D, W, m]
        seen = op.And(op.GreaterOrEqual(pixel, own[2]), op.LessOrEqual(pixel, own[3]))
        weights.append(op.Mul(near, op.Unsqueeze(op.Cast(seen, to=FLOAT), [-1])))
    columns, rows = weights
    values = op.MatMul(op.MatMul(rows, probs), op.Transpose(columns, perm=[0, 2, 1]))
    return op.Cast(op.Greater(values, THRESHOLD), to=UINT8)
