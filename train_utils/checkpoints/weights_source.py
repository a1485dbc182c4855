"""What a weights flag names -> a file: published weights, a run folder's best checkpoint, or the file itself."""

import json
import re
import time
from pathlib import Path
from typing import NamedTuple

from network_files.weight_files.file_stamp import saved_at
from network_files.weight_files.weights import PUBLISHED, fetch_published
from train_utils.checkpoints.run_folder import CHECKPOINT_NAME, best_checkpoint
from train_utils.io.files import user_path
from train_utils.io.plain_text import pasted, visible

FROM_NAMES = (*PUBLISHED, "imagenet", "none")  # what training may begin from, beside files


class OtherRun(NamedTuple):
    """A run beside another; saved: of its newest checkpoint, in nanoseconds since 1970."""

    folder: Path
    saved: int

    def line(self) -> str:
        """Returns a line that says where it lies, when it was saved, on which data, and how it is taken."""
        when = time.strftime("%Y-%m-%d %H:%M", time.localtime(self.saved / 1e9))
        about = f"{visible(str(self.folder))}, {when}, on {_data_of(self.folder)}"
        return f"note: there is a newer run: {about}; --weights-path {pasted(self.folder)} takes it"


def weights_file(named: str | Path) -> Path:
    """Returns the file of weights to look at; published ones are fetched, of a run folder it is the best checkpoint.

    A published name comes before a file or folder of that name, which is ./coco. Raises InputError where it cannot be
    fetched, and for a folder without a checkpoint.
    """
    return fetch_published(str(named)) if str(named) in PUBLISHED else _file_of(named)


def weights_to_begin_from(named: str | Path) -> str | Path:
    """Returns what `load_weights` takes of a training's --weights: a name as it is, else the file (`weights_file`)."""
    return named if str(named) in FROM_NAMES else _file_of(named)


def _file_of(named: str | Path) -> Path:
    path = user_path(named)
    return best_checkpoint(path) if path.is_dir() else path


def newer_run(path: Path) -> OtherRun | None:
    """Returns the newest run beside the one of a checkpoint; None where there is none, or it is of an older time.

    Runs are beside each other where training numbered them: save_weights, save_weights-2, save_weights-3.
    """
    folder = path.resolve().parent
    if CHECKPOINT_NAME.fullmatch(path.name) is None:
        return None
    base = re.sub(r"-\d+$", "", folder.name)
    numbered = re.compile(rf"{re.escape(base)}(-\d+)?")
    places = [p for p in folder.parent.iterdir() if numbered.fullmatch(p.name) and p.is_dir()]
    found = [OtherRun(place, saved) for place in places if (saved := _last_saved(place))]
    newest = max(found, key=lambda run: run.saved, default=None)
    if newest is None or newest.folder.samefile(folder):
        return None
    return newest._replace(folder=path.parent.parent / newest.folder.name)  # as the user would type it


def _last_saved(folder: Path) -> int:
    """Returns when a run folder's newest checkpoint was saved; 0 where there is none that can be read."""
    try:
        return max((saved_at(p) for p in folder.glob("model_*.pth") if CHECKPOINT_NAME.fullmatch(p.name)), default=0)
    except OSError:
        return 0


def _data_of(folder: Path) -> str:
    try:
        args = json.loads((folder / "args.json").read_bytes())
    except (OSError, ValueError):
        return "unknown data"
    data = args.get("data_path") if isinstance(args, dict) else None
    return visible(str(data)) if data else "the built-in data"
