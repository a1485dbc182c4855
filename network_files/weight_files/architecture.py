"""State dict -> its architecture, from keys and shapes alone; older key names -> today's."""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

from backbone.errors import InputError

# blocks in layer1..layer4, and whether they are bottlenecks (ResNet paper, table 1)
RESNETS = {
    ((2, 2, 2, 2), False): "resnet18",
    ((3, 4, 6, 3), False): "resnet34",
    ((3, 4, 6, 3), True): "resnet50",
    ((3, 4, 23, 3), True): "resnet101",
    ((3, 8, 36, 3), True): "resnet152",
}
# the fields of MaskRCNNConfig, beside num_classes and channels, that weights have their names and shapes from
OF_SHAPES = (
    "backbone", "variant", "backbone_width", "norm", "fpn_channels", "aspect_ratios", "box_roi_size",
    "box_head_channels", "box_head_convs", "mask_head_channels", "mask_head_layers",
)  # fmt: skip
CLASSES = "roi_heads.box_predictor.cls_score.weight"
STEMS = ("backbone.body.conv1.weight", "backbone.body.features.0.0.weight")  # of a ResNet and of a MobileNet
# a key that one MobileNet has and the other has not
MOBILENETS = {
    "backbone.body.features.1.depthwise.0.weight": "mobilenet_v1",
    "backbone.body.features.1.conv.0.0.weight": "mobilenet_v2",
}
FPN = "backbone.fpn.inner_blocks.0.0.weight"
MASK_HEAD = "roi_heads.mask_head.0.0.weight"

# older spelling -> newer, as torchvision renamed its modules
RENAMED = (
    (re.compile(r"^rpn\.head\.conv\.(weight|bias)$"), r"rpn.head.conv.0.0.\1"),
    (re.compile(r"^(backbone\.fpn\.(?:inner|layer)_blocks\.\d)\.(weight|bias)$"), r"\1.0.\2"),
)
OLD_MASK_HEAD = re.compile(r"^roi_heads\.mask_head\.mask_fcn(\d)\.(weight|bias)$")


def state_of(content: dict) -> dict[str, Tensor]:
    """Returns the weights in a checkpoint (averaged ones first) or bare state dict, under today's key names.

    Raises InputError where there are none.
    """
    found = [content.get(key) for key in ("ema", "model", "state_dict")]
    state = next((part for part in found if isinstance(part, dict) and part), content)
    if not state or not all(isinstance(k, str) and isinstance(v, Tensor) for k, v in state.items()):
        raise InputError("there are no weights in it: neither a state dict nor a checkpoint")
    return {newer_key(key): value for key, value in state.items()}


def newer_key(key: str) -> str:
    """Returns a state dict key in today's spelling, without DistributedDataParallel's prefix."""
    key = key.removeprefix("module.")
    for old, new in RENAMED:
        key = old.sub(new, key)
    return OLD_MASK_HEAD.sub(lambda m: f"roi_heads.mask_head.{int(m[1]) - 1}.0.{m[2]}", key)


def infer_architecture(content: Mapping, origin: str = "the state dict", backbone: str | None = None) -> dict:
    """Returns the arguments for `create_model` that make a model into which the state dict fits.

    Found: num_classes (counts background), backbone, variant, norm, and the widths and depth of FPN and
    heads. Read as `load_weights` reads it: older spellings of keys, DDP's "module." in front, and a state
    dict under "model" will do. backbone: the name of its body, where it is said; where its keys are not
    known here, the width of the stem is not found. Raises InputError where these are not the weights of a
    Mask R-CNN with FPN, or of an unknown body that has no name.
    """
    try:
        state = state_of(dict(content))
    except InputError as error:
        raise InputError(f"{origin}: {error}") from error
    found = {"num_classes": _rows(state, CLASSES, origin), "backbone": backbone or _backbone(state, origin)}
    found["variant"] = "v1" if "roi_heads.box_head.fc6.weight" in state else "v2"
    found["norm"] = _norm(state)
    stem = state.get(stem_of(state))
    if backbone is None or stem is not None:
        found["backbone_width"] = _rows(state, stem_of(state), origin)
        found |= {"channels": int(stem.shape[1])} if stem.dim() == 4 and stem.shape[1] != 3 else {}
    found["fpn_channels"] = _rows(state, FPN, origin)
    fc6 = "roi_heads.box_head.fc6.weight"
    if found["variant"] == "v2":  # convolutions at 0..n-1, flatten at n, the linear layer at n + 1
        found["box_head_convs"] = len(_matches(r"roi_heads\.box_head\.(\d+)\.0\.weight", state))
        fc6 = f"roi_heads.box_head.{found['box_head_convs'] + 1}.weight"
    found["box_head_channels"] = _rows(state, fc6, origin)
    found["mask_head_channels"] = _rows(state, MASK_HEAD, origin)
    found["mask_head_layers"] = len(_matches(r"roi_heads\.mask_head\.(\d+)\.0\.weight", state))
    return found


def describe(state: Mapping) -> str:
    """Describes weights in a few words: "resnet50 v1 for 90 classes (...)", or, of no whole Mask R-CNN, their count."""
    if not all(key in state and state[key].ndim for key in (CLASSES, stem_of(state), FPN)):
        return f"{len(state)} tensors ({str(next(iter(state), 'none'))[:60]}, ...)"
    name = _name(state) or "an unknown backbone"
    variant = "v1" if "roi_heads.box_head.fc6.weight" in state else "v2"
    widths = f"{state[stem_of(state)].shape[0]} channels in the stem, {state[FPN].shape[0]} in the pyramid"
    return f"{name} {variant} for {of_classes(len(state[CLASSES]) - 1)} ({widths})"


def of_classes(count: int) -> str:
    """Returns "1 class", "2 classes"."""
    return f"{count} class{'es' * (count != 1)}"


def _rows(state: Mapping, key: str, origin: str) -> int:
    if key not in state or not state[key].ndim:
        raise InputError(f"{origin}: not the weights of a Mask R-CNN with FPN (no {key})")
    return int(state[key].shape[0])


def _matches(pattern: str, state: Mapping) -> set[tuple[str, ...]]:
    return {m.groups() for m in (re.fullmatch(pattern, key) for key in state) if m}


def _backbone(state: Mapping, origin: str) -> str:
    name = _name(state)
    if name is None:
        raise InputError(
            f"{origin}: its backbone is no known ResNet or MobileNet (ResNet blocks per layer: {_blocks(state)[0]}); "
            "of another one give the name: backbone"
        )
    return name


def _name(state: Mapping) -> str | None:
    return next((name for key, name in MOBILENETS.items() if key in state), None) or RESNETS.get(_blocks(state))


def stem_of(state: Mapping) -> str:
    """Returns the key of the stem's convolution; a ResNet's where there is none."""
    return next((key for key in STEMS if key in state), STEMS[0])


def _blocks(state: Mapping) -> tuple[tuple[int, ...], bool]:
    """Counts the blocks in layer1..layer4, and says whether they are bottlenecks: a key of RESNETS."""
    blocks = _matches(r"backbone\.body\.layer(\d)\.(\d+)\.conv1\.weight", state)
    return tuple(sum(layer == str(i) for layer, _ in blocks) for i in range(1, 5)), (
        "backbone.body.layer1.0.conv3.weight" in state
    )


def _norm(state: Mapping) -> str:
    """Returns the kind of norm: batch counts its batches, frozen does not, group has no running statistics."""
    ends = {key.rpartition(".")[2] for key in state if key.startswith("backbone.body.")}
    if "running_mean" not in ends:
        return "group"
    return "batch" if "num_batches_tracked" in ends else "frozen"
