"""Training runs of seconds, started as a user starts them, and whether two of them came to the same."""

import os
import runpy
import subprocess
import sys
import traceback
from pathlib import Path
from unittest.mock import patch

import torch

from tests.tiny_model import train_flags
from train_utils.cli.command import run_command

ROOT = Path(__file__).resolve().parent.parent
SMALL = train_flags(
    backbone_width=16, min_size=48, max_size=48, anchor_sizes=(4, 8, 16, 32, 64),
    epochs=2, print_freq=1, dropout=0.1, ema=True, photometric=True,
    copy_paste=0.7, rotate=20,
)  # fmt: skip
TORCHRUN = ["-m", "torch.distributed.run", "--standalone"]


def flags(data, output, *more):
    return ["--data-path", str(data), *SMALL, "--output-dir", str(output), *map(str, more)]


def start(script, arguments, folder, threads=None, **more):
    """A process of [script, ...] with arguments, in folder; its output is piped."""
    threads = threads or torch.get_num_threads()
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "PYTHONPATH": str(ROOT)}
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **more}
    command = [sys.executable, *map(str, script), *map(str, arguments)]
    return subprocess.Popen(command, cwd=folder, env=environment, text=True, **streams)


def call(script, *words):
    """A script's main in this process; returns the exit status.

    Training draws no curves: they would take most of its time. Runs that `start` starts draw them.
    """
    argv = patch.object(sys, "argv", [f"{script.__name__}.py", *map(str, words)])
    with argv, patch("train_utils.run.epochs.write_curves"):
        try:
            return run_command(script.main)
        except SystemExit as stop:  # a flag that argparse refuses
            return stop.code


def in_fork(function):
    """Calls function() in a fork of this process, which has all imported; returns the exit status that it gives.

    A function that raises gives 70, with the traceback on standard error.
    """
    child = os.fork()
    if child == 0:
        status = 70
        try:
            status = function()
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(status or 0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


class Forked:
    """Stands in for subprocess.Popen where a Python is to run a script: a fork does, which has all imported.

    A new process would take seconds for that. The script must need no gradients: torch computes none in a fork of a
    process that has computed some.
    """

    def __init__(self, command, cwd=None, **_):
        sys.stdout.flush()
        self.args, self.returncode, self.pid = command, None, os.fork()
        if self.pid == 0:
            status = 70
            try:
                os.chdir(cwd or ".")
                sys.argv = list(map(str, command[1:]))
                runpy.run_path(sys.argv[0], run_name="__main__")
                status = 0
            except SystemExit as stop:
                status = stop.code
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(status or 0)

    def wait(self):
        if self.returncode is None:
            self.returncode = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        return self.returncode


def same(one, other):
    """Whether two plain values agree bit for bit, tensors and NaN included."""
    if isinstance(one, torch.Tensor):
        return one.dtype == other.dtype and torch.equal(torch.nan_to_num(one), torch.nan_to_num(other))
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(value, other[key]) for key, value in one.items())
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(same, one, other))
    return one == other or (one != one and other != other)


def differences(folder, other, epoch=1):
    """Names of what differs between two finished runs: in the last checkpoint, results and steps.jsonl."""
    one, two = (torch.load(run / f"model_{epoch}.pth", weights_only=True) for run in (folder, other))
    found = [
        key
        for key in ("model", "optimizer", "lr_scheduler", "step", "epoch", "progress", "ema", "scaler")
        if not same(one.get(key), two.get(key))
    ]
    for pattern in ("det_results*.txt", "seg_results*.txt", "steps.jsonl"):
        texts = [[path.read_text() for path in sorted(run.glob(pattern))] for run in (folder, other)]
        if texts[0] != texts[1] or len(texts[0]) > 1:
            found.append(pattern)
    return found


def files_of(folder: str | Path) -> dict[str, bytes]:
    """Returns the content of each file below a folder, by name."""
    return {path.name: path.read_bytes() for path in sorted(Path(folder).rglob("*")) if path.is_file()}
