"""Checkpoints: written atomically, verified when read, describing themselves.

A checkpoint is a plain dict that `torch.load(weights_only=True)` reads: `model, optimizer, lr_scheduler,
epoch, step, progress, config, label_map, args, format_version`, and `ema`, `scaler` where they are used.
The file is torch's zip. Its archive comment (which zip readers, torch among them, pass over) holds the
SHA-256 of all bytes before the comment's length, and when it was saved:

    sha256=<64 hex digits> saved=<nanoseconds since 1970>
"""

from __future__ import annotations

import hashlib
import os
import pickle
import re
import shutil
import time
from pathlib import Path
from typing import BinaryIO

import torch

from backbone.errors import InputError
from network_files import MaskRCNN, create_model, load_weights
from train_utils.architecture import infer_architecture
from train_utils.files import atomic_file
from train_utils.label_map import LabelMap, coco_names

FORMAT_VERSION = 1
STAMP = re.compile(rb"sha256=([0-9a-f]{64}) saved=(\d+)")
ZIP_END, ZIP_END_SIZE = b"PK\x05\x06", 22  # the record that ends a zip, before its comment
CHUNK = 1 << 20
COCO_LABELS = 91  # background, and ids 1..90
UNREADABLE = (OSError, EOFError, RuntimeError, ValueError, KeyError, TypeError, AttributeError, IndexError,
              pickle.UnpicklingError)


# --- one file ----------------------------------------------------------------------------------------------


class _HashingWriter:
    """A file for torch.save that hashes what passes, the last two bytes (the comment's length) apart."""

    def __init__(self, file: BinaryIO) -> None:
        self.file, self.sha256, self.last, self.error = file, hashlib.sha256(), b"", None

    def write(self, data) -> int:
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
        self.file.flush()


def save_checkpoint(path: str | Path, checkpoint: dict) -> None:
    """Write `checkpoint` to `path`; killed at any moment, `path` holds the old file or the new one, whole.

    Raises:
        InputError: the file cannot be written (full disk, read-only folder, ...).
    """
    with atomic_file(path) as file:
        writer = _HashingWriter(file)
        try:
            torch.save(checkpoint, writer)
        except RuntimeError:
            if writer.error is not None:
                raise writer.error from None
            raise
        stamp = f"sha256={writer.sha256.hexdigest()} saved={time.time_ns()}".encode()
        file.seek(-2, os.SEEK_END)
        file.write(len(stamp).to_bytes(2, "little") + stamp)


def copy_checkpoint(path: str | Path, to: str | Path) -> None:
    """Give the file `path` a second name atomically (a hard link where the disk has them, else a copy).

    Files are only ever replaced, never written into, so the two names stay independent.
    """
    to = Path(to)
    temporary = to.with_name(to.name + ".tmp")
    temporary.unlink(missing_ok=True)
    try:
        os.link(path, temporary)
    except OSError:
        with open(path, "rb") as source, atomic_file(to) as target:
            shutil.copyfileobj(source, target, CHUNK)
        return
    os.replace(temporary, to)
    # where both names already were one file, replace leaves the temporary name behind (POSIX rename)
    temporary.unlink(missing_ok=True)


def load_file(path: str | Path) -> dict:
    """Read any torch file that holds a dict: a checkpoint (verified) or a state dict; tensors on the CPU.

    Raises:
        InputError: no such file, damaged, not a torch file, or one that holds more than plain values.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: no such checkpoint file")
    damage = find_damage(path)
    if damage:
        raise InputError(f"{path}: the file is damaged ({damage}); take another checkpoint")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except UNREADABLE as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0][:120]
        raise InputError(f"{path}: not a checkpoint that torch can read ({reason})") from error
    if not isinstance(content, dict):
        raise InputError(f"{path}: holds a {type(content).__name__}, not a checkpoint or a state dict")
    return content


def load_checkpoint(path: str | Path) -> dict:
    """Read a checkpoint of this project; raises InputError for every other file (see `load_file`)."""
    checkpoint = load_file(path)
    if not is_checkpoint(checkpoint):
        raise InputError(f"{path}: holds weights but no training state; start from it with --weights {path}")
    _check_version(checkpoint, path)
    return checkpoint


def _check_version(checkpoint: dict, path: str | Path) -> None:
    version = checkpoint["format_version"]
    if not isinstance(version, int):
        raise InputError(f"{path}: its format version {version!r} is not a number; not a checkpoint of this program")
    if version > FORMAT_VERSION:
        raise InputError(f"{path}: written by a newer version (format {version}, known up to {FORMAT_VERSION}); "
                         "update this program")


def is_checkpoint(content: dict) -> bool:
    """Whether a loaded dict is a checkpoint of this project (and not a bare state dict)."""
    return all(key in content for key in ("format_version", "model", "config", "label_map"))


def find_damage(path: Path) -> str | None:
    """What is wrong with a stamped file's bytes, or None (also for a file without a stamp)."""
    try:
        with open(path, "rb") as file:
            size, comment = _read_comment(file)
            stamp = STAMP.fullmatch(comment or b"")
            if comment is None or size == 0:
                return "it is empty" if size == 0 else "it was cut off"
            if stamp is None:
                return None
            left = size - len(comment) - 2
            file.seek(0)
            sha256 = hashlib.sha256()
            while left > 0:
                chunk = file.read(min(CHUNK, left))
                sha256.update(chunk)
                left -= len(chunk)
    except OSError as error:
        return f"it cannot be read: {error.strerror}"
    return None if sha256.hexdigest() == stamp[1].decode() else "its SHA-256 does not match its content"


def saved_at(path: Path) -> int:
    """When a checkpoint was saved, in nanoseconds since 1970; the file's date where it does not say."""
    with open(path, "rb") as file:
        stamp = STAMP.fullmatch(_read_comment(file)[1] or b"")
    return int(stamp[2]) if stamp else path.stat().st_mtime_ns


def _read_comment(file: BinaryIO) -> tuple[int, bytes | None]:
    """(size of the file, its zip comment): b"" where it is no zip, None where the comment was cut off."""
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - 256))
    tail = file.read()
    start = tail.rfind(ZIP_END)
    if start < 0:
        return size, b""
    comment = tail[start + ZIP_END_SIZE:]
    length = int.from_bytes(tail[start + ZIP_END_SIZE - 2:start + ZIP_END_SIZE], "little")
    return size, comment if len(comment) == length else None


# --- a model for validation and prediction -----------------------------------------------------------------


def model_from_checkpoint(path: str | Path, device: torch.device | str = "cpu",
                          label_map: LabelMap | None = None, **config) -> tuple[MaskRCNN, LabelMap]:
    """A model in eval mode on `device`, and the label map, from a checkpoint or a bare state dict.

    A checkpoint tells everything; its averaged weights ("ema") are preferred to the raw ones. For a bare
    state dict (this project's or torchvision's keys) the architecture follows from keys and shapes.

    Args:
        label_map: names and ids to use in place of the file's.
        config: fields of MaskRCNNConfig in place of the file's (`box_score_thresh`, `min_size`, ...).

    Raises:
        InputError: not such a file, or `label_map` does not fit it.
    """
    content = load_file(path)
    if not is_checkpoint(content):
        settings = {**infer_architecture(content, str(path)), **config}
        label_map = label_map or default_label_map(settings["num_classes"])
        _check_classes(path, settings["num_classes"], label_map)
        model = create_model(**settings)
        load_weights(model, str(path))
        return model.to(device).eval(), label_map
    _check_version(content, path)
    settings = {**content["config"], **config}
    label_map = label_map or LabelMap.from_dict(content["label_map"])
    _check_classes(path, settings["num_classes"], label_map)
    model = create_model(**settings)
    try:
        model.load_state_dict(content.get("ema", content["model"]))
    except RuntimeError as error:  # its message has a line per tensor
        first = str(error).splitlines()[1].strip()[:160]
        raise InputError(f"{path}: does not fit the model flags that were given ({first})") from error
    return model.to(device).eval(), label_map


def _check_classes(path, of_file: int, label_map: LabelMap) -> None:
    if label_map.num_labels != of_file:
        raise InputError(f"{path}: made for {of_file - 1} classes (without background), the list of names "
                         f"has {label_map.num_labels - 1}; give the list that it was trained with")


def default_label_map(num_classes: int) -> LabelMap:
    """COCO's names for its 91 labels; "class 1", "class 2", ... for any other number."""
    if num_classes == COCO_LABELS:
        return LabelMap.from_categories(coco_names())
    return LabelMap.from_categories({i: f"class {i}" for i in range(1, num_classes)})
