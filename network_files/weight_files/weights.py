"""A name, file or state dict -> weights in a model: published files are fetched and verified, older keys renamed."""

import hashlib
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from urllib.error import URLError
from urllib.request import Request, urlopen

import torch
from torch import Tensor

from backbone import InputError
from network_files.config import MaskRCNNConfig
from network_files.mask_rcnn import MaskRCNN
from network_files.operators.boxes import TORCHVISION
from network_files.weight_files.architecture import OF_SHAPES, describe, of_classes, state_of, stem_of
from network_files.weight_files.torch_file import read_torch_file

SITE = "https://download.pytorch.org/models/"
# torchvision's published files; the eight hex digits before .pth begin the file's SHA-256
COCO = {
    ("resnet50", "v1"): SITE + "maskrcnn_resnet50_fpn_coco-bf2d0c1e.pth",
    ("resnet50", "v2"): SITE + "maskrcnn_resnet50_fpn_v2_coco-73cbd019.pth",
}
# what a weights flag calls them
PUBLISHED = {"coco": ("resnet50", "v1"), "coco_v2": ("resnet50", "v2")}
IMAGENET = {
    "resnet18": SITE + "resnet18-f37072fd.pth",
    "resnet34": SITE + "resnet34-b627a593.pth",
    "resnet50": SITE + "resnet50-0676ba61.pth",
    "resnet101": SITE + "resnet101-63fe2227.pth",
    "resnet152": SITE + "resnet152-394f9c45.pth",
    "mobilenet_v2": SITE + "mobilenet_v2-b0353104.pth",
}
PATIENCE = 30  # seconds that the site has to answer
V1_COCO_HASH = "bf2d0c1e"  # trained with an epsilon of 0 in its frozen batch norm

COCO_CLASSES = 91  # that the published ones know, background counted
SCORES = "box_predictor.cls_score.weight"  # [classes, features]
PREDICTORS = ("roi_heads.box_predictor.", "roi_heads.mask_predictor.mask_fcn_logits.")


def load_weights(
    model: MaskRCNN, source: str | Path | dict, replace_predictors: bool = False, content: dict | None = None
) -> list[str]:
    """Loads weights into a model, in place; returns lines that say what was loaded, replaced and left out.

    source: "coco", "coco_v2", "imagenet", the path of a file, or a dict (a state dict, or a checkpoint of this project,
    whose averaged weights are taken where it has them). A file of a classification network, whole or
    partial, goes into the backbone. The first convolution is brought to the model's channels, see `for_channels`.
    replace_predictors: weights for another class count keep everything but the predictors of classes, boxes and masks,
    which stay random; otherwise they are an error.
    content: of that file, where it has been read.
    Raises InputError for what cannot be fetched, read, or does not fit.
    """
    url = None
    if isinstance(source, dict):
        content, name, path = source, "the given weights", None
    else:
        url = published(model, str(source)) if source in (*PUBLISHED, "imagenet") else None
        try:
            path = fetch(url) if url else Path(source)
        except InputError as error:
            raise InputError(
                f"{error}, or give weights FILE, a file that is here, or weights none, to start from random ones"
            ) from error
        if not path.is_file():
            raise InputError(f"{path}: there is no such weights file (coco, coco_v2, imagenet, none, or a path)")
        content, name = read_torch_file(path) if content is None else content, str(path)
    lines = _load(model, content, name, replace_predictors)
    lines += foreign_line(url, path) if url else []
    config = content.get("config")  # a checkpoint notes what it was trained with
    own, theirs = model.config.geometry, config.get("geometry", TORCHVISION) if isinstance(config, dict) else None
    if theirs not in (None, own) and holds_heads(content):
        theirs = str(theirs)[:20]
        lines.append(f"{name}: its geometry is {theirs!r}, this model's {own!r}: half a pixel apart")
    if model.config.norm == "frozen":
        eps = config.get("frozen_bn_eps") if isinstance(config, dict) else None
        if path and _sha256(path).startswith(V1_COCO_HASH):
            eps = 0.0
        if isinstance(eps, int | float):
            model.set_frozen_bn_eps(eps)
    return lines


def holds_heads(content: Mapping) -> bool:
    """Says whether the content of a weights file, a state dict or something around one, has the heads of a detector."""
    return any("roi_heads." in str(key) for part in _parts(content) for key in part)


def classes_of(content: Mapping) -> int | None:
    """Returns for how many classes, background counted, such a content has predictors; None where it has none."""
    rows = (v for part in _parts(content) for key, v in part.items() if str(key).endswith(f"roi_heads.{SCORES}"))
    return next((len(value) for value in rows if isinstance(value, Tensor) and value.ndim), None)


def _parts(content: Mapping) -> list[Mapping]:
    return [content, *(part for part in content.values() if isinstance(part, Mapping))]


def published(model: MaskRCNN, name: str) -> str:
    """Returns the address of the published file "coco", "coco_v2" or "imagenet" for this model.

    Raises InputError where there is none.
    """
    config = model.config
    have = {"coco": COCO, "imagenet": IMAGENET}.get(name) or {PUBLISHED[name]: COCO[PUBLISHED[name]]}
    url = have.get(config.backbone if name == "imagenet" else (config.backbone, config.variant))
    if url is None:
        have = ", ".join(" ".join(key) if isinstance(key, tuple) else key for key in have)
        raise InputError(
            f"there are no {name} weights for {config.backbone} {config.variant} "
            f"(there are for: {have}): choose other weights, or none"
        )
    return url


def fetch_published(name: str) -> Path:
    """Returns the file of a name in PUBLISHED (see `fetch`); says of one in the working folder if it is another."""
    url = COCO[PUBLISHED[name]]
    path = fetch(url)
    for line in foreign_line(url, path):
        print(line, file=sys.stderr)
    return path


def foreign_line(url: str, path: Path) -> list[str]:
    """Returns a line about a file that is taken for the published one but has another hash; else nothing."""
    prefix = _hash_in(url)
    line = f"{path}: of the working folder; its SHA-256 does not begin with {prefix}, so it is not torchvision's file"
    return [] if _sha256(path).startswith(prefix) else [line]


def fetch(url: str) -> Path:
    """Returns the file at an address: from torch.hub's cache, the working folder, or fetched into the cache with a bar.

    A line on stderr says its size before it is fetched.

    In the working folder its name may lack the hash (resnet50.pth), as some projects have their users save it, and
    it may be a file of the user's own; elsewhere the hash is checked. Raises InputError for a file that cannot be
    fetched or is damaged.
    """
    folder = Path(torch.hub.get_dir()) / "checkpoints"
    path = folder / url.rsplit("/", 1)[-1]
    prefix = _hash_in(url)
    own = [Path(name) for name in (path.name, path.name.replace(f"-{prefix}", "")) if Path(name).is_file()]
    if own and not path.is_file():
        return own[0]
    if not path.is_file():
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with urlopen(Request(url, method="HEAD"), timeout=PATIENCE) as answer:
                size = int(answer.headers.get("Content-Length") or 0)
            print(f"fetching {url} ({size / 1e6:.0f} MB), once, into {folder}", file=sys.stderr, flush=True)
            torch.hub.download_url_to_file(url, str(path), hash_prefix=prefix, progress=True)
        except (URLError, OSError, RuntimeError) as error:
            reason = (str(getattr(error, "reason", error)).splitlines() or [type(error).__name__])[0]
            raise InputError(
                f"cannot fetch {url} ({reason}): put that file into {folder} or the working folder"
            ) from error
    elif not _sha256(path).startswith(prefix):
        raise InputError(f"{path}: the file is damaged (its SHA-256 does not begin with {prefix}): delete it")
    return path


def _hash_in(url: str) -> str:
    """Returns the first digits of the file's SHA-256, as its name has them."""
    return url.removesuffix(".pth").rpartition("-")[2]


def _load(model: MaskRCNN, content: dict, name: str, replace_predictors: bool) -> list[str]:
    try:
        state = state_of(content)
    except InputError as error:
        raise InputError(f"{name}: {error}") from error
    own = model.state_dict()
    backbone_only = not any(key.startswith(("backbone.", "rpn.", "roi_heads.")) for key in state)
    if backbone_only:
        state = {
            f"backbone.body.{key}": value for key, value in state.items() if not key.startswith(("fc.", "classifier."))
        }
    _check_norm(model, state, name)
    replaced = [] if backbone_only else _drop_predictors(model, state, own, name, replace_predictors)
    state = {key: value for key, value in state.items() if key in own or not key.endswith("num_batches_tracked")}
    about_stem = _fit_stem(state, own)
    _check_fit(state, own, replaced, name, backbone_only, _other_fields(model.config, content))
    model.load_state_dict(state, strict=False)
    return [*_report(state, own, replaced, name, backbone_only), *about_stem]


def for_channels(weight: torch.Tensor, channels: int) -> torch.Tensor:
    """Returns the weight [O, M, k, k] of a first convolution for another number of input channels, [O, channels, k, k].

    Each channel gets the sum over M, divided by their number: where all channels are equal, as in a grey image, the
    outputs are those of the M equal ones before (given the same mean and deviation for all).
    """
    return (weight.sum(1, keepdim=True) / channels).repeat(1, channels, 1, 1)


def _fit_stem(state: dict, own: dict) -> list[str]:
    """Brings the first convolution in a state to the model's channels, in place; returns a line that says so."""
    key = stem_of(state)
    theirs, ours = state.get(key), own.get(key)
    if theirs is None or ours is None or theirs.dim() != 4 or theirs.shape[1] == ours.shape[1]:
        return []
    state[key] = for_channels(theirs, ours.shape[1])
    how = "their sum" if ours.shape[1] == 1 else f"each their sum / {ours.shape[1]}"
    return [f"first convolution: {theirs.shape[1]} channels become {ours.shape[1]}, {how}"]


def _check_norm(model: MaskRCNN, state: dict, name: str) -> None:
    has_statistics = any(key.endswith("running_mean") for key in state)
    if has_statistics and model.config.norm == "group":
        raise InputError(
            f"{name}: batch-norm weights do not work under group norm: choose norm frozen or batch, or weights none"
        )
    if (
        not has_statistics
        and model.config.norm != "group"
        and any(stem in key for stem in (".bn1.", ".features.0.1.") for key in state)
    ):
        raise InputError(f"{name}: group-norm weights need norm group")


def _drop_predictors(model: MaskRCNN, state: dict, own: dict, name: str, replace: bool) -> list[str]:
    """Takes the predictors for another class count out of the state, and returns their keys.

    Raises InputError where there are some and they are not to be replaced.
    """
    scores = state.get(f"roi_heads.{SCORES}")
    if scores is None or scores.ndim and len(scores) == model.config.num_classes:
        return []
    if not replace:
        theirs, ours = len(scores) - 1, model.config.num_classes - 1
        raise InputError(
            f"{name}: is for {of_classes(theirs)}, not {ours} (background not counted): take a model of as many, "
            "or fine-tune, which replaces the predictors"
        )
    dropped = [key for key in own if key.startswith(PREDICTORS)]
    for key in dropped:
        state.pop(key, None)
    return dropped


def _other_fields(config: MaskRCNNConfig, content: Mapping) -> str:
    """Returns the fields that a checkpoint was made with, and this model is not; of other content which to look at."""
    theirs, ours = content.get("config"), config.to_dict()
    shaping = [name for name in OF_SHAPES if name != "norm"] if isinstance(theirs, dict) else []
    names = [name for name in shaping if theirs.get(name, ours[name]) != ours[name]]
    values = (theirs[name] if isinstance(theirs[name], list) else [theirs[name]] for name in names)
    other = [f"{name} {' '.join(map(str, value))[:40]}" for name, value in zip(names, values, strict=True)]
    return f"it was made with {', '.join(other)}" if other else "check backbone, variant, backbone_width"


def _check_fit(state: dict, own: dict, replaced: list[str], name: str, backbone_only: bool, advice: str) -> None:
    shapes = [key for key in state if key in own and state[key].shape != own[key].shape]
    foreign = [key for key in state if key not in own]
    # torchvision's ImageNet files lack nothing, a partial file lacks stages; a detector must be whole
    missing = (
        []
        if backbone_only
        else [
            key for key in own if key not in state and key not in replaced and not key.endswith("num_batches_tracked")
        ]
    )
    matched = len(state) - len(shapes) - len(foreign)
    if foreign or missing or shapes or not matched:
        example = shapes or foreign or missing
        what = "has another shape here" if shapes else "has no place here" if foreign else "is missing in the file"
        raise InputError(
            f"{name}: holds {describe(state)}, which does not fit this model, {describe(own)} "
            f"({len(shapes)} shapes differ, {len(foreign)} keys unknown, {len(missing)} missing; "
            f"{str((example or ['it'])[0])[:100]} {what}): {advice}"
        )


def _report(state: dict, own: dict, replaced: list[str], name: str, backbone_only: bool) -> list[str]:
    lines = [f"weights: {name} ({len(state)} tensors{' into the backbone' if backbone_only else ''})"]
    if replaced:
        lines.append(f"replaced for the new classes, random: {', '.join(replaced)}")
    if backbone_only:
        missing = [
            key
            for key in own
            if key.startswith("backbone.body.") and key not in state and not key.endswith("num_batches_tracked")
        ]
        stages = sorted({re.match(r"features\.\d+|\w+", key.removeprefix("backbone.body."))[0] for key in missing})
        if missing:
            lines.append(f"not in the file, random: {len(missing)} tensors of {', '.join(stages)}")
    return lines


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return (
            hashlib.file_digest(file, "sha256").hexdigest()
            if hasattr(hashlib, "file_digest")
            else (hashlib.sha256(file.read()).hexdigest())
        )
