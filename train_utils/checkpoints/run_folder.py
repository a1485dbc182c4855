"""Flags -> the folder that a run writes to, and the checkpoint that it continues from."""

import glob
import itertools
import json
import math
import os
import re
import shutil
import sys
import time
import zipfile
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from backbone.errors import InputError
from network_files.weight_files.file_stamp import find_damage, saved_at
from train_utils.checkpoints.checkpoint import copy_checkpoint, load_checkpoint
from train_utils.checkpoints.run_lock import BEGUN, NAME, RunLock, busy, holder, launcher_name, restarts
from train_utils.io.files import make_folder, missing_folders, user_path, write_text, writing
from train_utils.io.plain_text import counted, pasted, visible
from train_utils.io.unfinished import clear_leftovers

CHECKPOINT_NAME = re.compile(r"model_(\d+|best|min_val_loss|previous)\.pth")
BEST = {"best": "best_ap", "min_val_loss": "lowest_val_loss"}  # name -> what progress knows of it
LASTING = re.compile(r"model_(\d+|best|min_val_loss)(_\d{8}-\d{6})?\.pth")  # also of epochs left behind
BEFORE_STEPS = (NAME, "steps.jsonl", "tensorboard")  # what is in the folder of a run that has not done a step
MOST_RUNS = 4  # that a message names


class RunFolder(NamedTuple):
    """Where a run writes, the lock that it holds there, and the folders that were made for it, the inner one first."""

    path: Path
    lock: RunLock
    made: list[Path]

    def remove_unused(self) -> None:
        """Removes the folders that were made, where the run has failed before its first step: they hold nothing.

        To be called while the lock is held, so that no other run is in them. (Windows keeps them: the lock's file is
        open.)
        """
        with suppress(OSError):  # another run has come meanwhile
            if not self.made or {path.name for path in self.path.iterdir()} - {*BEFORE_STEPS}:
                return
            shutil.rmtree(self.path / "tensorboard", ignore_errors=True)
            for name in ("steps.jsonl", NAME):
                (self.path / name).unlink(missing_ok=True)
            for folder in self.made:
                folder.rmdir()


def checkpoint_path(folder: str | Path, epoch: int | str) -> Path:
    """Returns `model_{epoch}.pth` in the run folder; epoch may be "best", "min_val_loss" or "previous"."""
    return Path(folder) / f"model_{epoch}.pth"


def newest_checkpoint(folder: str | Path) -> Path | None:
    """Returns the checkpoint in `folder` that was saved last and is not damaged; None if there is no checkpoint.

    The file holds its time of saving, so that a copied folder and a run set back to an earlier epoch keep their order.
    Damaged files are named on stderr, with the one that is used in their place. Raises InputError if all are damaged.
    """
    found = [p for p in Path(folder).glob("model_*.pth") if CHECKPOINT_NAME.fullmatch(p.name)]
    damaged = {}
    for path in sorted(found, key=_age_key, reverse=True):
        damage = find_damage(path) or (None if zipfile.is_zipfile(path) else "it was cut off")
        if damage is None:
            for other, what in damaged.items():
                line = f"warning: {other} is damaged ({what}); {path} is used in its place"
                print(visible(line), file=sys.stderr, flush=True)
            return path
        damaged[path] = damage
    if found:
        names = ", ".join(f"{path.name} ({what})" for path, what in damaged.items())
        raise InputError(f"{folder}: all checkpoints are damaged: {names}; give another --output-dir")
    return None


def best_checkpoint(folder: str | Path) -> Path:
    """Returns a run's checkpoint with the highest mask AP; where none has one, with the lowest validation loss.

    Where there is neither, as after a cut first epoch, the newest. Raises InputError for a folder without checkpoints.
    """
    folder = Path(folder)
    best = next((path for name in ("best", "min_val_loss") if (path := checkpoint_path(folder, name)).exists()), None)
    if best := best or newest_checkpoint(folder):
        return best
    runs = sorted({path.parent for path in folder.glob("*/model_*.pth") if CHECKPOINT_NAME.fullmatch(path.name)})
    instead = f"give a run in it: {pasted(*runs[-MOST_RUNS:])}" if runs else "give a run's folder, or a file"
    raise InputError(f"{folder}: this folder holds no checkpoint (model_best.pth, model_0.pth, ...); {instead}")


def prune(folder: str | Path, keep: int | None, every: int) -> None:
    """Deletes `model_{epoch}.pth` files, except the newest and, of every `every`-th epoch, `keep` files (None: all).

    Files without a number stay.
    """
    found = [p for p in Path(folder).glob("model_*.pth") if re.fullmatch(r"model_\d+\.pth", p.name)]
    found.sort(key=_age_key)
    regular = [path for path in found if (int(path.stem.removeprefix("model_")) + 1) % every == 0]
    for path in set(found[:-1]) - set(regular[-keep:] if keep else regular):
        with writing(path):
            path.unlink()


def complete_names(folder: Path, path: Path, names: Iterable[int | str]) -> None:
    """Gives the checkpoint at `path` those of its names in `folder` that it lacks after a kill."""
    for other in (checkpoint_path(folder, name) for name in names):
        if not other.exists() or saved_at(other) < saved_at(path):
            copy_checkpoint(path, other)


def set_back(folder: Path, path: Path, progress: Mapping[str, Any]) -> list[str]:
    """Brings a folder back to what it was when the checkpoint at `path` was saved; returns lines that say so.

    A run that goes on from an earlier epoch leaves later ones behind: their checkpoints stay beside the others under
    the time at which they were saved, so that --resume auto does not take one of them; a damaged epoch keeps its name.
    model_best.pth and model_min_val_loss.pth are those that the checkpoint's progress knows. Nothing is done for a
    checkpoint of another folder.
    """
    if path.parent.resolve() != folder.resolve():
        return []
    found = [p for p in folder.glob("model_*.pth") if CHECKPOINT_NAME.fullmatch(p.name)]
    left = {old: _left_behind(old) for old in sorted(found, key=_age_key) if saved_at(old) > saved_at(path)}
    left = {old: new for old, new in left.items() if _name_of(old) in BEST or not find_damage(old)}
    for old, new in left.items():  # the newest last: a run that is killed before goes on with it, as if not set back
        with writing(old):
            os.replace(old, new)
    begin, lines = f"set back to {path.name}:", []
    if epochs := [old for old in left if _name_of(old) not in BEST]:
        more = f", {epochs[-1].name} {left[epochs[-1]].name}" * (len(epochs) > 1)
        what = f"{counted(len(epochs), 'checkpoint', 'stay')} under the time of saving"
        lines.append(f"{begin} of the epochs left behind {what}: {epochs[0].name} is {left[epochs[0]].name}{more}")
    for name, measure in BEST.items():
        named = checkpoint_path(folder, name)
        if named.exists() or not 0 <= (value := progress.get(measure, -1.0)) < math.inf:
            earlier = None
        elif earlier := _earlier(folder, path, name, value):
            copy_checkpoint(earlier, named)
        now = f"is that of {earlier.name} again" if earlier else "comes with the next better epoch"
        if named in left:
            lines.append(f"{begin} {named.name} {now}; that of the epochs left behind is {left[named].name}")
        elif earlier:
            lines.append(f"{begin} {named.name} {now}")
    return lines


def _name_of(path: Path) -> str:
    return path.stem.removeprefix("model_")


def _left_behind(path: Path) -> Path:
    """Returns what a checkpoint of epochs left behind is called."""
    date = time.strftime("%Y%m%d-%H%M%S", time.localtime(saved_at(path) / 1e9))
    return path.with_name(f"{path.stem}_{date}.pth")


def _earlier(folder: Path, path: Path, name: str, value: float) -> Path | None:
    """Returns the checkpoint that had a name of BEST when the one at `path` was saved; None where it is not kept.

    value: its measure, by which it is known beside those of other epochs that were left behind.
    """
    found = [p for p in sorted(folder.glob("model_*.pth"), key=_age_key, reverse=True) if LASTING.fullmatch(p.name)]
    for other in found:
        if saved_at(other) <= saved_at(path) and not find_damage(other):
            content = load_checkpoint(other)
            if name in content.get("names", ()) and content["progress"].get(BEST[name]) == value:
                return other
    return None


def _age_key(path: Path) -> tuple[int, bool, str]:
    """Returns a key that sorts by time of saving; of two names of one file the numbered one is last, so it is used."""
    return saved_at(path), path.name[6:-4].isdecimal(), path.name


def find_checkpoint(
    output_dir: str | Path | None, resume: str | Path | None, default: str | Path = "./save_weights"
) -> Path | None:
    """Returns the checkpoint that a run continues from: with "auto" the newest of its folder, if any; writes nothing.

    A run that torchrun has restarted continues from the folder of its first start, whatever `resume` is, once it has
    saved there. Raises InputError if `resume` is a path that does not exist or is damaged, or all checkpoints are
    damaged.
    """
    folder = _chosen(output_dir, default)
    own = _folder_of_restarted(folder, resume)
    if own is not None:
        found = newest_checkpoint(own)
        if resume in (None, "auto") or (found is not None and saved_at(found) >= holder(own).get(BEGUN, 0)):
            return found  # else it is of before the first start, which has saved nothing yet
    if resume is None:
        return None
    if str(resume) == "auto":
        return newest_checkpoint(folder) if folder.is_dir() else None
    return _resume_path(user_path(resume))


def prepare_run_folder(
    output_dir: str | Path | None,
    resume: str | Path | None = None,
    checkpoint: Path | None = None,
    default: str | Path = "./save_weights",
) -> RunFolder:
    """Chooses, creates and locks the folder that a run writes to; only the main process calls this.

    resume None: `output_dir`, or, if that holds a run, its first free numbered sibling (printed). resume "auto":
    `output_dir`. resume PATH (a checkpoint or a run folder): the checkpoint's own folder if `output_dir` is that
    folder or None, else `output_dir` as for None. checkpoint: what `find_checkpoint` returned for the same flags.
    Raises InputError if another run writes to the folder, or it cannot be created.
    """
    folder, free = _chosen(output_dir, default), False
    own = _folder_of_restarted(folder, resume)
    if own is not None:
        folder = own
    elif resume is None:
        free = True
    elif str(resume) == "auto":
        free = checkpoint is None and _has_results(folder)  # lines of a run whose checkpoints were deleted
    elif output_dir is None or folder.resolve() == checkpoint.parent.resolve():
        folder = checkpoint.parent
    else:
        free = True
    run = _free_folder(folder) if free else _locked(folder)
    if run is None:
        raise InputError(f"{folder}: {busy(folder)}; wait for it, or give another --output-dir")
    clear_leftovers(run.path)
    if checkpoint is not None:
        print(visible(f"resuming from {checkpoint}"), flush=True)
    elif resume is not None:
        print(visible(f"--resume auto: no checkpoint in {run.path}, starting fresh"), flush=True)
    return run


def _chosen(output_dir: str | Path | None, default: str | Path) -> Path:
    folder = user_path(output_dir or default)
    if folder.name in ("", ".."):  # "." has no name to make a sibling's of
        folder = folder.resolve()
    if folder.exists() and not folder.is_dir():
        raise InputError(f"--output-dir {folder}: is a file, not a folder")
    return folder


def _folder_of_restarted(folder: Path, resume: str | Path | None) -> Path | None:
    """Returns, after a restart by torchrun, the folder of its first start, of all that these flags can lead to."""
    if restarts() == 0:
        return None
    places = [folder, *folder.parent.glob(f"{glob.escape(folder.name)}-*")]
    if resume is not None and str(resume) != "auto":
        path = user_path(resume)
        places.append(path if path.is_dir() else path.parent)
    # the latest: in containers the launchers of several runs can have the same host and pid
    own = [place for place in places if holder(place).get("launcher") == launcher_name()]
    return max(own, key=lambda place: str(holder(place).get("since")), default=None)


def _locked(folder: Path) -> RunFolder | None:
    """Creates and locks a folder; returns None if another run writes there."""
    made = missing_folders(folder)
    make_folder(folder)
    lock = RunLock.take(folder)
    return None if lock is None else RunFolder(folder, lock, made)


def write_args(folder: str | Path, args: dict) -> None:
    """Writes args.json, by which a folder holds a run; args: plain values."""
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


def _free_folder(folder: Path) -> RunFolder:
    """Creates and locks `folder`, or its first free numbered sibling if it holds a run."""
    made = missing_folders(folder.parent)
    make_folder(folder.parent)
    for number in itertools.count(1):
        place = folder if number == 1 else folder.with_name(f"{folder.name}-{number}")
        run = None if _holds_run(place) else _locked(place)
        if run is not None:
            if number > 1:
                line = f"{visible(str(folder))} holds a run already: writing to {visible(str(place))}"
                goes_on = f"--output-dir {pasted(folder)} --resume auto"
                print(f"{line} (to go on with the run of the former: {goes_on})", flush=True)
            return run._replace(made=run.made + made)


def _holds_run(folder: Path) -> bool:
    return (folder / "args.json").exists() or any(folder.glob("model_*.pth")) or _has_results(folder)


def _has_results(folder: Path) -> bool:
    files = [*folder.glob("det_results*.txt"), *folder.glob("seg_results*.txt")]
    return any(f.stat().st_size > 0 for f in files)
