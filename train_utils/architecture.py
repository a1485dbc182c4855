"""What a bare Mask R-CNN state dict tells about its architecture, from keys and shapes alone."""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch

from backbone.errors import InputError

# blocks in layer1..layer4, and whether they are bottlenecks (ResNet paper, table 1)
RESNETS = {
    ((2, 2, 2, 2), False): "resnet18",
    ((3, 4, 6, 3), False): "resnet34",
    ((3, 4, 6, 3), True): "resnet50",
    ((3, 4, 23, 3), True): "resnet101",
    ((3, 8, 36, 3), True): "resnet152",
}
CLASSES = "roi_heads.box_predictor.cls_score.weight"
OLD_OR_NEW = {  # what is asked for -> its key in the newer spelling, or in the older one
    "fpn_channels": ("backbone.fpn.inner_blocks.0.0.weight", "backbone.fpn.inner_blocks.0.weight"),
    "mask_head_channels": ("roi_heads.mask_head.0.0.weight", "roi_heads.mask_head.mask_fcn1.weight"),
}


def infer_architecture(content: Mapping, origin: str = "the state dict") -> dict:
    """Arguments for `create_model` that make a model into which the state dict fits.

    Found: num_classes (counts background), backbone, variant, norm, and the widths and depth of FPN and
    heads. Keys may be torchvision's (both spellings) or DDP's ("module." in front), the dict may lie under
    "model" as training scripts write it.

    Raises:
        InputError: not the weights of a Mask R-CNN on a ResNet-FPN.
    """
    state = bare_state(content)
    if CLASSES not in state:
        raise InputError(f"{origin}: not the weights of a Mask R-CNN (no {CLASSES})")
    found = {"num_classes": _rows(state, CLASSES), "backbone": _backbone(state, origin), "norm": _norm(state)}
    found["variant"] = "v1" if "roi_heads.box_head.fc6.weight" in state else "v2"
    for name, keys in OLD_OR_NEW.items():
        key = next((k for k in keys if k in state), None)
        if key is None:
            raise InputError(f"{origin}: not the weights of a Mask R-CNN with FPN (no {keys[0]})")
        found[name] = _rows(state, key)
    fc6 = "roi_heads.box_head.fc6.weight"  # v2: four convolutions, then the linear layer at index 5
    found["box_head_channels"] = _rows(state, fc6 if fc6 in state else "roi_heads.box_head.5.weight", origin)
    mask_convs = _matches(r"roi_heads\.mask_head\.(?:(\d+)\.0|mask_fcn(\d+))\.weight", state)
    found["mask_head_layers"] = len(mask_convs)
    return found


def bare_state(content: Mapping) -> dict[str, torch.Tensor]:
    """The state dict in a loaded file: taken out of "model", without DDP's "module." prefix."""
    state = content.get("model", content)
    return {key.removeprefix("module."): value for key, value in state.items()}


def _rows(state: Mapping, key: str, origin: str = "") -> int:
    if key not in state:
        raise InputError(f"{origin}: not the weights of a Mask R-CNN of variant v1 or v2 (no {key})")
    return int(state[key].shape[0])


def _matches(pattern: str, state: Mapping) -> set[tuple[str, ...]]:
    return {m.groups() for m in (re.fullmatch(pattern, key) for key in state) if m}


def _backbone(state: Mapping, origin: str) -> str:
    blocks = _matches(r"backbone\.body\.layer(\d)\.(\d+)\.conv1\.weight", state)
    counts = tuple(sum(layer == str(i) for layer, _ in blocks) for i in range(1, 5))
    name = RESNETS.get((counts, "backbone.body.layer1.0.conv3.weight" in state))
    if name is None:
        raise InputError(f"{origin}: its backbone is no known ResNet (blocks per layer: {counts})")
    return name


def _norm(state: Mapping) -> str:
    """Batch norm counts its batches, frozen norm does not, group norm has no running statistics."""
    if "backbone.body.bn1.running_mean" not in state:
        return "group"
    return "batch" if "backbone.body.bn1.num_batches_tracked" in state else "frozen"
