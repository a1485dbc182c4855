"""A traced graph -> an ONNX model: what its two operators are in ONNX.

ONNX's NonMaxSuppression takes groups of boxes as its batch; its RoiAlign reads one level and one image batch.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from network_files.operators.boxes import HALF_PIXEL
from train_utils.prediction.exporting.graph import INPUTS, OUTPUTS
from train_utils.prediction.runtimes.operators import DROPPED
from train_utils.prediction.runtimes.packages import optional_package

OPSET = 18
MOST_FOLDED = 1 << 30  # bytes of a constant
STRIDES = (4, 8, 16, 32)
LEAST_SCORE = DROPPED / 2  # between what is no box and what is one: runtimes differ at a score equal to the limit


def to_onnx(program: torch.export.ExportedProgram) -> Any:
    """Returns the ONNX model of a trace of CoreGraph, an onnx.ModelProto; the trace can not be used again."""
    onnxscript = optional_package("onnxscript", "the export to ONNX")
    table = {
        torch.ops.maskrcnn.kept_scores.default: _kept_scores(onnxscript.opset18),
        torch.ops.maskrcnn.pooled_rois.default: _pooled_rois(onnxscript.opset18),
    }
    made = torch.onnx.export(
        program,
        dynamo=True,
        opset_version=OPSET,
        input_names=INPUTS,
        output_names=OUTPUTS,
        custom_translation_table=table,
        external_data=False,
        verbose=False,
    )
    # weights are multiplied with norms' scales here, once, and not where the file is opened: what quantises a file
    # takes a weight that is computed there for an activation
    model, most = made.model_proto, {"input_size_limit": MOST_FOLDED, "output_size_limit": MOST_FOLDED}
    onnxscript.optimizer.fold_constants(model, **most)
    onnxscript.optimizer.remove_unused_nodes(model)
    return model


def nudge_thresholds(model: Any) -> Any:
    """Raises each NMS's threshold to the next float32, for a runtime that drops boxes at an equal overlap, too."""
    onnx = optional_package("onnx", "the export to OpenVINO")
    for i, node in enumerate(node for node in model.graph.node if node.op_type == "NonMaxSuppression"):
        (own,) = (tensor for tensor in model.graph.initializer if tensor.name == node.input[3])
        next_one = np.nextafter(onnx.numpy_helper.to_array(own), np.float32(np.inf))
        node.input[3] = f"threshold_{i}"  # the constant may be another node's as well
        model.graph.initializer.append(onnx.numpy_helper.from_array(next_one, node.input[3]))
    return model


def _kept_scores(op: Any) -> Callable:
    """Returns `operators.kept_scores` in ONNX."""

    def kept_scores(boxes, scores, iou_threshold: float):  # noqa: ANN001, ANN202  an exporter reads the signature
        most = op.Shape(scores, start=1, end=2)  # [1]: K
        threshold = op.Constant(value_floats=[_float_threshold(iou_threshold)])
        least = op.Constant(value_floats=[LEAST_SCORE])
        chosen = op.NonMaxSuppression(boxes, op.Unsqueeze(scores, [1]), most, threshold, least)  # [S, 3]
        place = op.Gather(chosen, [0, 2], axis=1)  # [S, 2]: group, box
        none = op.Expand(op.Constant(value_float=DROPPED), op.Shape(scores))
        return op.ScatterND(none, place, op.GatherND(scores, place))

    return kept_scores


def _float_threshold(threshold: float) -> float:
    """Returns the largest float32 that is not above the threshold: an overlap is then above both or neither."""
    rounded = np.float32(threshold)
    return float(np.nextafter(rounded, np.float32(-np.inf)) if float(rounded) > threshold else rounded)


def _pooled_rois(op: Any) -> Callable:
    """Returns `operators.pooled_rois` in ONNX: the RoIs of each level, which stand in that order already."""

    def pooled_rois(maps, rois, image, level, cells: int, sampling_ratio: int, geometry: str):  # noqa: ANN001, ANN202
        mode = "half_pixel" if geometry == HALF_PIXEL else "output_half_pixel"
        parts = []
        for i, (features, stride) in enumerate(zip(maps, STRIDES, strict=True)):
            own = op.Squeeze(op.NonZero(op.Equal(level, op.Constant(value_int=i))), [0])  # [R_i]
            parts.append(
                op.RoiAlign(
                    features,
                    op.Gather(rois, own),
                    op.Gather(image, own),
                    coordinate_transformation_mode=mode,
                    mode="avg",
                    output_height=cells,
                    output_width=cells,
                    sampling_ratio=sampling_ratio,
                    spatial_scale=1 / stride,
                )
            )
        return op.Concat(*parts, axis=0)

    return pooled_rois
