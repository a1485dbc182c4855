"""Checkpoints: written atomically, verified when read, describing themselves; and the folder of a run.

A checkpoint is a plain dict that `torch.load(weights_only=True)` reads: `model, optimizer, lr_scheduler,
epoch, step, progress, config, label_map, args, format_version`, and `ema`, `scaler` where they are used.
The file is torch's zip. Its archive comment (which zip readers, torch among them, pass over) holds the
SHA-256 of all bytes before the comment's length, and when it was saved:

    sha256=<64 hex digits> saved=<nanoseconds since 1970>
"""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import re
import shutil
import sys
import time
import zipfile
from pathlib import Path
from typing import BinaryIO, NamedTuple

import torch

from backbone.errors import InputError
from network_files import MaskRCNN, create_model, load_weights
from train_utils.architecture import infer_architecture
from train_utils.files import atomic_file, make_folder, write_text
from train_utils.label_map import LabelMap, coco_names

FORMAT_VERSION = 1
STAMP = re.compile(rb"sha256=([0-9a-f]{64}) saved=(\d+)")
ZIP_END, ZIP_END_SIZE = b"PK\x05\x06", 22  # the record that ends a zip, before its comment
CHECKPOINT_NAME = re.compile(r"model_(\d+|best)\.pth")
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
    if checkpoint["format_version"] > FORMAT_VERSION:
        raise InputError(f"{path}: written by a newer version (format {checkpoint['format_version']}, known "
                         f"up to {FORMAT_VERSION}); update this program")


def is_checkpoint(content: dict) -> bool:
    """Whether a loaded dict is a checkpoint of this project (and not a bare state dict)."""
    return all(key in content for key in ("format_version", "model", "config"))


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


# --- the folder of a run -----------------------------------------------------------------------------------


class RunFolder(NamedTuple):
    """Where a run writes, and the checkpoint it goes on from (None: it starts fresh)."""

    path: Path
    checkpoint: Path | None


def checkpoint_path(folder: str | Path, epoch: int | str) -> Path:
    """`model_{epoch}.pth` in the run folder; epoch may be "best"."""
    return Path(folder) / f"model_{epoch}.pth"


def newest_checkpoint(folder: str | Path) -> Path | None:
    """The checkpoint saved last among those in `folder` that are whole; None where there is none at all.

    The time of saving stands in the file, so that a copied folder and a run taken back to an earlier epoch
    keep their order. Damaged files are named on stderr.

    Raises:
        InputError: there are checkpoints, and every one is damaged.
    """
    found = [p for p in Path(folder).glob("model_*.pth") if CHECKPOINT_NAME.fullmatch(p.name)]
    for path in sorted(found, key=_age_key, reverse=True):
        damage = find_damage(path) or (None if zipfile.is_zipfile(path) else "it was cut off")
        if damage is None:
            return path
        print(f"warning: {path} is damaged ({damage}) and left out", file=sys.stderr, flush=True)
    if found:
        raise InputError(f"{folder}: all {len(found)} checkpoint(s) are damaged; give another --output-dir")
    return None


def _age_key(path: Path) -> tuple[int, bool, str]:
    """Sorts by time of saving; between two names of one file the numbered one comes last (is preferred)."""
    with open(path, "rb") as file:
        stamp = STAMP.fullmatch(_read_comment(file)[1] or b"")
    return (int(stamp[2]) if stamp else path.stat().st_mtime_ns, path.name != "model_best.pth", path.name)


def prepare_run_folder(output_dir: str | Path | None, resume: str | Path | None = None,
                       default: str | Path = "./save_weights") -> RunFolder:
    """Choose and create the folder that a run writes to; only the main process calls this.

    resume None: `output_dir`, or, where that holds a run, the first free numbered sibling (printed).
    resume "auto": the newest checkpoint of `output_dir`; a fresh start where it holds no run.
    resume PATH (a checkpoint or a run folder): that checkpoint. The run goes on in the checkpoint's own
    folder when `output_dir` is that folder or None, and else in `output_dir` as above.

    Raises:
        InputError: PATH does not exist or is damaged, all checkpoints are damaged, the folder cannot be made.
    """
    folder = Path(output_dir or default).expanduser()
    if folder.exists() and not folder.is_dir():
        raise InputError(f"--output-dir {folder}: is a file, not a folder")
    if resume is None:
        return RunFolder(_free_folder(folder), None)
    if str(resume) == "auto":
        checkpoint = newest_checkpoint(folder) if folder.is_dir() else None
        if checkpoint is None and _has_results(folder):  # lines of a run whose checkpoints were deleted
            folder = _free_folder(folder)
    else:
        checkpoint = _resume_path(Path(resume).expanduser())
        if output_dir is None or folder.resolve() == checkpoint.parent.resolve():
            folder = checkpoint.parent
        else:
            folder = _free_folder(folder)
    for leftover in folder.glob("*.pth.tmp"):  # of a run killed while it saved
        leftover.unlink(missing_ok=True)
    if checkpoint is not None:
        print(f"resuming from {checkpoint}", flush=True)
    elif str(resume) == "auto":
        print(f"--resume auto: no checkpoint in {folder}, starting fresh", flush=True)
    return RunFolder(make_folder(folder), checkpoint)


def write_args(folder: str | Path, args: dict) -> None:
    """Write args.json (`args`: plain values, as `command.plain_args` gives them)."""
    write_text(Path(folder) / "args.json", json.dumps(args, indent=2) + "\n")


def _resume_path(path: Path) -> Path:
    if path.is_dir():
        checkpoint = newest_checkpoint(path)
        if checkpoint is None:
            raise InputError(f"--resume {path}: no model_*.pth in this folder")
        return checkpoint
    if not path.is_file():
        raise InputError(f"--resume {path}: no such file or folder")
    return path


def _free_folder(folder: Path) -> Path:
    """`folder`, created, or its first numbered sibling where it holds a run."""
    if not _holds_run(folder):
        return make_folder(folder)
    make_folder(folder.parent)
    number = 2
    while True:
        sibling = folder.with_name(f"{folder.name}-{number}")
        if not _holds_run(sibling):
            print(f"{folder} holds a run already: writing to {sibling} "
                  f"(to go on with the run of a folder: --output-dir FOLDER --resume auto)", flush=True)
            return make_folder(sibling)
        number += 1


def _holds_run(folder: Path) -> bool:
    return (folder / "args.json").exists() or any(folder.glob("model_*.pth")) or _has_results(folder)


def _has_results(folder: Path) -> bool:
    files = [*folder.glob("det_results*.txt"), *folder.glob("seg_results*.txt")]
    return any(f.stat().st_size > 0 for f in files)


# --- a model for validation and prediction -----------------------------------------------------------------


def model_from_checkpoint(path: str | Path, device: torch.device | str = "cpu",
                          num_classes: int | None = None, label_map: LabelMap | None = None,
                          **config) -> tuple[MaskRCNN, LabelMap]:
    """A model in eval mode on `device`, and the label map, from a checkpoint or a bare state dict.

    A checkpoint tells everything; its averaged weights ("ema") are preferred to the raw ones. For a bare
    state dict (this project's or torchvision's keys) the architecture follows from keys and shapes.

    Args:
        num_classes: counts background; only checked, since every file tells it.
        label_map: names and ids to use in place of the file's.
        config: fields of MaskRCNNConfig in place of the file's (`box_score_thresh`, `min_size`, ...).

    Raises:
        InputError: not such a file, or `num_classes` or `label_map` do not fit it.
    """
    content = load_file(path)
    if not is_checkpoint(content):
        settings = {**infer_architecture(content, str(path)), **config}
        label_map = label_map or default_label_map(settings["num_classes"])
        _check_classes(path, settings["num_classes"], num_classes, label_map)
        model = create_model(**settings)
        load_weights(model, str(path))
        return model.to(device).eval(), label_map
    _check_version(content, path)
    settings = {**content["config"], **config}
    label_map = label_map or LabelMap.from_dict(content["label_map"])
    _check_classes(path, settings["num_classes"], num_classes, label_map)
    model = create_model(**settings)
    try:
        model.load_state_dict(content.get("ema", content["model"]))
    except RuntimeError as error:  # its message has a line per tensor
        first = str(error).splitlines()[1].strip()
        raise InputError(f"{path}: does not fit the model flags that were given ({first})") from error
    return model.to(device).eval(), label_map


def _check_classes(path, of_file: int, given: int | None, label_map: LabelMap) -> None:
    if given is not None and given != of_file:
        raise InputError(f"{path}: made for {of_file - 1} classes (without background), not {given - 1}; "
                         f"leave --num-classes out or give {of_file - 1}")
    if label_map.num_labels != of_file:
        raise InputError(f"{path}: made for {of_file - 1} classes (without background), the list of names "
                         f"has {label_map.num_labels - 1}; give the list that it was trained with")


def default_label_map(num_classes: int) -> LabelMap:
    """COCO's names for its 91 labels; "class 1", "class 2", ... for any other number."""
    if num_classes == COCO_LABELS:
        return LabelMap.from_categories(coco_names())
    return LabelMap.from_categories({i: f"class {i}" for i in range(1, num_classes)})
