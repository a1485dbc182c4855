"""The folder of a run: which one a run writes to, and the checkpoint that it goes on from."""

from __future__ import annotations

import json
import re
import sys
import zipfile
from pathlib import Path
from typing import NamedTuple

from backbone.errors import InputError
from network_files.file_stamp import find_damage, saved_at
from train_utils.files import make_folder, user_path, write_text

CHECKPOINT_NAME = re.compile(r"model_(\d+|best)\.pth")


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
    return saved_at(path), path.name != "model_best.pth", path.name


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
    folder = user_path(output_dir or default)
    if folder.name in ("", ".."):  # "." has no name that a sibling's could be made from
        folder = folder.resolve()
    if folder.exists() and not folder.is_dir():
        raise InputError(f"--output-dir {folder}: is a file, not a folder")
    if resume is None:
        return RunFolder(_free_folder(folder), None)
    if str(resume) == "auto":
        checkpoint = newest_checkpoint(folder) if folder.is_dir() else None
        if checkpoint is None and _has_results(folder):  # lines of a run whose checkpoints were deleted
            folder = _free_folder(folder)
    else:
        checkpoint = _resume_path(user_path(resume))
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
