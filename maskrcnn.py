"""Mask R-CNN in Python: all that a notebook imports.

    import maskrcnn

    detector = maskrcnn.load("coco")                         or "runs/mine/model_best.pth"
    results = detector("photo.jpg")                          a path, bytes, a PIL image, an array, a tensor, or many
    results.names, results.scores, results.masks[0], results.polygons(max_points=40), results.draw()

docs/python.md has ten tasks. What cannot be meant raises InputError, a ValueError of one line.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from network_files import InputError, create_model, load_weights
from train_utils import __version__
from train_utils.checkpoints.checkpoint import COCO_LABELS, default_label_map, load_file, model_from_checkpoint
from train_utils.cli.device import pick_device
from train_utils.cli.in_python import speaking_python
from train_utils.data.labels import LabelMap
from train_utils.io.files import user_path
from train_utils.prediction.detector import Detector
from train_utils.prediction.results import Results

__all__ = ["Detector", "InputError", "Results", "__version__", "load"]

Weights = str | Path | dict[str, Any]
Names = Sequence[str] | Mapping[int, str]


@speaking_python()
def load(
    weights: Weights, device: str | torch.device | None = None, names: Names | None = None, **config: Any
) -> Detector:
    """Returns a detector.

    weights: "coco" (torchvision's, fetched once), the path of a checkpoint, of a state dict or of safetensors, or a
    state dict; device: None takes a GPU where there is one; names: of the classes in the order of their labels, for
    weights that don't know them; config: fields of MaskRCNNConfig that precede the file's (box_score_thresh, ...).
    Raises InputError for what is no such file, or does not fit.
    """
    device = pick_device("auto" if device is None else str(device))
    label_map = None if names is None else label_map_of(names)
    if isinstance(weights, str) and weights == "coco":
        model = create_model(COCO_LABELS, **config)
        load_weights(model, "coco")
        return Detector(model.to(device), label_map or default_label_map(COCO_LABELS), {})
    content = weights if isinstance(weights, dict) else load_file(user_path(weights))
    source = weights if isinstance(weights, dict) else user_path(weights)
    model, label_map = model_from_checkpoint(source, device, label_map, **config)
    return Detector(model, label_map, content)


def label_map_of(names: Names) -> LabelMap:
    """Returns the label map of names in the order of labels 1..C, or by label."""
    if isinstance(names, str):
        raise InputError(f"names {names!r}: give a list of names, or a dict by label")
    return LabelMap.from_names(dict(names) if isinstance(names, Mapping) else dict(enumerate(names, start=1)))
