"""What commands on trained models say about the model -> the model and its label map."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from backbone.errors import InputError
from backbone.settings import Settings, setting
from network_files import MaskRCNN
from train_utils.checkpoints.checkpoint import check_classes, is_checkpoint, load_file, model_from_checkpoint
from train_utils.checkpoints.weights_source import newer_run, weights_file
from train_utils.data.labels import LabelMap, check_num_classes
from train_utils.io.files import user_path
from train_utils.io.plain_text import counted, visible
from train_utils.prediction.runtimes.exported_model import ExportedModel
from train_utils.prediction.runtimes.opening import is_exported, open_exported

KNOWN = 12  # classes that are named
WRITTEN = "written"  # in a checkpoint's content, once it is read: when its file was written, in seconds since 1970
LATEST = 2.0**33  # seconds, in the year 2242


@dataclass(frozen=True)
class ModelOptions(Settings):
    """Weights: a checkpoint, or a bare state dict with what it does not say by itself."""

    weights_path: str | Path | None = setting(
        None,
        "a run folder (its best checkpoint), a checkpoint (it has classes and architecture), a bare state dict, an "
        "exported file (.onnx, .pt2, OpenVINO's folder), or "
        "coco or coco_v2: published weights, which are fetched once",
        metavar="W",
        required=True,
    )
    device: str = setting("auto", "auto, cpu, cuda or cuda:i")
    output_dir: str | Path = setting(".", "where files are written (.: the working folder)", metavar="O")
    num_classes: int | None = setting(None, "classes, without background, of a bare state dict", least=1)
    label_json_path: str | Path | None = setting(None, 'class names: a json file {"1": "person", ...}', metavar="J")
    model: dict[str, Any] = field(default_factory=dict)  # fields of MaskRCNNConfig that precede the checkpoint's

    @cached_property
    def weights_file(self) -> Path:
        """The file that --weights-path names; published weights are fetched when it is first asked for."""
        path = user_path(self.weights_path)
        return path if is_exported(path) else weights_file(self.weights_path)


def load_model(
    options: ModelOptions, device: torch.device
) -> tuple[MaskRCNN | ExportedModel, LabelMap, dict[str, Any]]:
    """Returns the model, in eval mode on the device, its label map, and what its file says, which is read once.

    An exported file's model computes on the CPU.
    """
    path, names = options.weights_file, options.label_json_path
    label_map = None if names is None else LabelMap.from_json(names)
    if is_exported(path):
        if options.device not in ("auto", "cpu"):
            raise InputError(f"--device {options.device}: an exported file runs on the CPU; leave it out")
        model, label_map = exported_with_classes(path, label_map, **options.model)
        content = model.content
    else:
        content = with_date(path, load_file(path))
        model, label_map = model_from_checkpoint(path, device, label_map, content, **options.model)
    check_num_classes(options.num_classes, label_map, f"{path} was trained for", "leave the flag out")
    return model, label_map, content


def with_date(path: str | Path, content: dict[str, Any]) -> dict[str, Any]:
    """Returns a checkpoint's content with the time of its file, which an exported file then keeps; others as given."""
    return {**content, WRITTEN: Path(path).stat().st_mtime} if is_checkpoint(content) else content


def exported_with_classes(path: Path, label_map: LabelMap | None, **config: Any) -> tuple[ExportedModel, LabelMap]:
    """Opens an exported file; returns it and its classes, or label_map, which is to have as many."""
    model = open_exported(path, **config)
    label_map = label_map or model.label_map
    check_classes(path, model.config.num_classes, label_map)
    return model, label_map


def about_weights(path: Path, content: dict[str, Any], label_map: LabelMap) -> str:
    """Returns a line that says which weights these are: of which epoch, when, of which data, for which classes.

    The date is that of the checkpoint; of an exported file, that of the export stands beside it. Further lines name the
    classes that are renamed, and a newer run beside theirs. content: of the file, see `with_date`.
    """
    parts = []
    if is_checkpoint(content):
        written = _day(content.get(WRITTEN))
        args = content.get("args")
        data = (args.get("data_path") if isinstance(args, dict) else None) or "the built-in data"
        parts.append(", ".join(filter(None, [f"epoch {content.get('epoch')} of a run on {data}", written])))
        parts += unfinished(content)
        parts += ["its averaged weights (--ema)"] if "ema" in content else []
    parts += [f"exported {_day(path.stat().st_mtime)}"] if is_exported(path) else []
    line = visible(f"weights: {path}: {', '.join([*parts, f'knows {known_classes(label_map)}'])}")
    newer = newer_run(path)
    return "\n".join([line, *renamed(content, label_map), *([newer.line()] if newer else [])])


def _day(seconds: object) -> str:
    """Returns a time as day and minute; "" for what is none: older exported files say nothing of it."""
    is_time = isinstance(seconds, float) and 0 <= seconds < LATEST
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(seconds)) if is_time else ""


def unfinished(content: Mapping[str, Any]) -> list[str]:
    """Returns that a checkpoint is of the middle of an epoch, where it is; content: of the file."""
    progress = content.get("progress")
    step, of, done = (
        (progress.get(name) for name in ("step", "steps_per_epoch", "epochs_done"))
        if isinstance(progress, dict)
        else (None,) * 3
    )
    if not all(isinstance(value, int) for value in (step, of, done)) or step <= done * of:
        return []
    return [f"saved after {step - done * of} of the {counted(of, 'step')} of that epoch (--resume goes on)"]


def known_classes(label_map: LabelMap) -> str:
    """Returns the names of the classes; of many, the first."""
    names = [label_map.name(label) for label in label_map.labels()]
    return ", ".join(names[:KNOWN]) + (f" and {len(names) - KNOWN} more" if len(names) > KNOWN else "")


def renamed(content: dict[str, Any], label_map: LabelMap) -> list[str]:
    """Returns a line on the classes that are called otherwise than in a checkpoint, by --label-json-path; else none.

    Where ids change, it has them, too, as results are written with the new ones. content: of the weights' file.
    """
    if not is_checkpoint(content):
        return []
    own = LabelMap.from_dict(content["label_map"])
    ids_change = any(label_map.has_label(i) and label_map.to_category(i) != own.to_category(i) for i in own.labels())

    def called(labels: LabelMap, i: int) -> str:
        return f"{labels.to_category(i)} {labels.name(i)}" if ids_change and labels.has_label(i) else labels.name(i)

    pairs = ((called(own, i), called(label_map, i)) for i in own.labels())
    other = [f"{was} -> {now}" for was, now in pairs if was != now]
    more = f" and {len(other) - KNOWN} more" if len(other) > KNOWN else ""
    line = f"{counted(len(other), 'class', 'are')} called otherwise than in the checkpoint: "
    return [visible(line + ", ".join(other[:KNOWN]) + more)] if other else []
