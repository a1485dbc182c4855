"""A run's state <-> a checkpoint file -> a model: written atomically, verified when read.

A checkpoint is a plain dict that `torch.load(weights_only=True)` reads: `model, optimizer, lr_scheduler,
epoch, step, progress, config, label_map, args, format_version`, `smallest_scale` (by which training
resized images), `data` (checksums of its images, `data_state.py`), and `ema`, `scaler` where they are used.
The file is torch's zip, with its checksum in the archive comment (`network_files/weight_files/file_stamp.py`).
"""

import hashlib
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch

from backbone.errors import InputError
from network_files import MaskRCNN, create_model, load_weights
from network_files.weight_files.architecture import describe, infer_architecture, state_of
from network_files.weight_files.file_stamp import make_stamp
from network_files.weight_files.torch_file import UNREADABLE, read_torch_file
from train_utils.data.labels import LabelMap, coco_names
from train_utils.io.files import atomic_file, second_name
from train_utils.io.plain_text import counted

FORMAT_VERSION = 1
COCO_LABELS = 91  # background, and ids 1..90


class _HashingWriter:
    """A file for torch.save that hashes what is written, except the last two bytes (the comment's length)."""

    def __init__(self, file: BinaryIO) -> None:
        self.file, self.sha256, self.last, self.error = file, hashlib.sha256(), b"", None

    def write(self, data: Any) -> int:
        """Writes a bytes-like object; returns its length."""
        try:
            self.file.write(data)
        except OSError as error:
            self.error = error  # torch reports it as a RuntimeError about the zip
            raise
        view = memoryview(data).cast("B")
        if len(view) >= 2:
            self.sha256.update(self.last)
            self.sha256.update(view[:-2])
            self.last = bytes(view[-2:])
        else:
            held = self.last + bytes(view)
            self.sha256.update(held[:-2])
            self.last = held[-2:]
        return len(view)

    def flush(self) -> None:
        """Flushes the file."""
        self.file.flush()


def save_checkpoint(path: str | Path, checkpoint: dict) -> None:
    """Writes `checkpoint` to `path`; after a kill at any moment, `path` holds the whole old file or the whole new one.

    Raises InputError where the file cannot be written (full disk, read-only folder, ...).
    """
    with atomic_file(path, _size_of(checkpoint)) as file:
        writer = _HashingWriter(file)
        try:
            torch.save(checkpoint, writer)
        except RuntimeError:
            if writer.error is not None:
                raise writer.error from None
            raise
        stamp = make_stamp(writer.sha256.hexdigest(), time.time_ns())
        file.seek(-2, os.SEEK_END)
        file.write(len(stamp).to_bytes(2, "little") + stamp)


def _size_of(content: Any) -> int:
    """Returns the bytes of the tensors in a checkpoint: nearly all of its file."""
    if isinstance(content, torch.Tensor):
        return content.nbytes
    values = content.values() if isinstance(content, dict) else content if isinstance(content, (list, tuple)) else ()
    return sum(map(_size_of, values))


def copy_checkpoint(path: str | Path, to: str | Path) -> None:
    """Gives the file `path` a second name atomically; files are always replaced, so the two stay independent."""
    second_name(Path(path), Path(to))


def load_file(path: str | Path) -> dict:
    """Reads any torch file that holds a dict: a checkpoint (verified) or a state dict; tensors on the CPU.

    Raises InputError where there is no such file, it is damaged, or not a torch file of plain values.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: no such checkpoint file")
    return read_torch_file(path)


def load_checkpoint(path: str | Path) -> dict:
    """Reads a checkpoint of this project; raises InputError for every other file (see `load_file`)."""
    checkpoint = load_file(path)
    if not is_checkpoint(checkpoint):
        raise InputError(f"{path}: holds weights but no training state; start from it with --weights {path}")
    _check_version(checkpoint, path)
    return checkpoint


def _check_version(checkpoint: dict, path: str | Path) -> None:
    version = checkpoint["format_version"]
    if type(version) is not int:
        shown = repr(version) if isinstance(version, str) else f"a {type(version).__name__}"
        raise InputError(f"{path}: its format version {shown[:40]} is not a number; not a checkpoint of this program")
    if version > FORMAT_VERSION:
        raise InputError(
            f"{path}: written by a newer version (format {version}, known up to {FORMAT_VERSION}); update this program"
        )


def is_checkpoint(content: dict) -> bool:
    """Returns whether a loaded dict is a checkpoint of this project (and not a bare state dict)."""
    return all(key in content for key in ("format_version", "model", "config", "label_map"))


def model_from_checkpoint(
    source: str | Path | dict,
    device: torch.device | str = "cpu",
    label_map: LabelMap | None = None,
    content: dict | None = None,
    **config: Any,
) -> tuple[MaskRCNN, LabelMap]:
    """Builds a model in eval mode on `device` from a checkpoint or a bare state dict; returns it and the label map.

    source: a file's path, or what is in it. A checkpoint holds all that is needed; its averaged weights ("ema") are
    preferred to the raw ones. For a bare state dict (this project's or torchvision's keys) the architecture follows
    from keys and shapes. label_map: names and ids in place of the file's; content: of the file, where it has been read;
    config: fields of MaskRCNNConfig in place of the file's (`box_score_thresh`, ...).
    Raises InputError for another file, and for a label_map that does not fit it.
    """
    path = "the given weights" if isinstance(source, dict) else source
    content = source if isinstance(source, dict) else load_file(source) if content is None else content
    if is_checkpoint(content):
        _check_version(content, path)
        own, state = content["config"], content.get("ema", content["model"])
        label_map = label_map or LabelMap.from_dict(content["label_map"])
    else:
        own, state = infer_architecture(content, str(path), config.get("backbone")), content
        label_map = label_map or default_label_map(own["num_classes"])
    settings = fitting_settings(path, own, config, state)
    check_classes(path, settings["num_classes"], label_map)
    model = create_model(**settings)
    if state is content:
        load_weights(model, source if isinstance(source, dict) else str(path), content=content)
    else:
        model.load_state_dict(state)
    return model.to(device).eval(), label_map


def fitting_settings(path: str | Path, own: Mapping, flags: Mapping, state: Mapping) -> dict:
    """Returns arguments for `create_model`: the file's own settings, overridden by the flags.

    Raises InputError unless the weights have the shapes of such a model. They are compared on the meta device:
    settings alone could ask for any amount of memory.
    """
    try:
        state = state_of(state)
        settings = {**own, **flags}
        depth = sum(settings.get(key, 0) for key in ("mask_head_layers", "box_head_convs"))
        if depth > len(state) + 8:
            raise InputError(f"{depth} layers in the heads, but {len(state)} tensors")
        with torch.device("meta"):
            wanted = create_model(**settings).state_dict()
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    except UNREADABLE as error:
        reason = f"its model settings are damaged ({type(error).__name__})"
        raise InputError(f"{path}: {reason}; take another file") from error
    differ = [key for key in wanted if key not in state or state[key].shape != wanted[key].shape]
    differ += [key for key in state if key not in wanted]
    differ = [key for key in differ if not key.endswith("num_batches_tracked")]
    if differ:
        what = "the model flags that were given" if flags else "its own settings"
        raise InputError(
            f"{path}: does not fit {what}: it holds {describe(state)}, they ask for {describe(wanted)} "
            f"({len(differ)} tensors differ, such as {str(differ[0])[:80]}); "
            f"{'leave those flags out' if flags else 'take another file'}"
        )
    return settings


def check_classes(path: str | Path, of_file: int, label_map: LabelMap) -> None:
    """Raises InputError unless a label map has as many labels, background included, as the weights' file."""
    if label_map.num_labels != of_file:
        raise InputError(
            f"{path}: made for {counted(of_file - 1, 'class')} (without background), the list of names "
            f"has {label_map.num_labels - 1}; give as many names"
        )


def default_label_map(num_classes: int) -> LabelMap:
    """Returns COCO's names for its 91 labels; "class 1", "class 2", ... for any other number."""
    if num_classes == COCO_LABELS:
        return LabelMap.from_categories(coco_names())
    return LabelMap.from_categories({i: f"class {i}" for i in range(1, num_classes)})
