"""SIGTERM, SIGINT and SIGHUP to one process, to all, and to the launcher, in every phase of a run."""

import contextlib
import itertools
import os
import shutil
import signal
import subprocess
import sys
import time

import torch

from tests.faults import KEPT_LOGS, Outcome, progress
from tests.faults.processes import PAUSE, PHASES, children, end_all, finished_steps, lives, start_all, wait_for
from tests.small_runs import ROOT, TORCHRUN, flags
from train_utils.checkpoints.run_folder import newest_checkpoint
from train_utils.data.formats.shapes import make_shapes

WHAT = "SIGTERM, SIGINT and SIGHUP in each phase: the step is finished and saved, exit status 128 + signal, in time"
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
# whom the signal goes to: (ranks, loader workers)
TARGETS = {"process": (1, 0), "group with workers": (1, 2), "rank 1 of 2": (2, 0), "launcher": (2, 0),
           "launcher's group": (2, 0)}  # fmt: skip
BEYOND_A_STEP = 5.0  # seconds, as promised; a step takes a fraction of a second here
CALLS = {"loading": 2, "step": 3, "evaluation": 2, "saving": 1}  # which call of a phase is paused


def run(full, folder):
    data = make_shapes(folder / "shapes", train=12, val=4, size=48)
    cases = list(itertools.product(TARGETS, SIGNALS, PHASES))
    if not full:
        cases = [("group with workers", signal.SIGHUP, "step"), ("rank 1 of 2", signal.SIGTERM, "evaluation")]
    failures, slowest = [], 0.0
    for number, (target, signum, phase) in enumerate(cases):
        place = folder / f"run{number}"
        seconds, problems = one_case(data, place, target, signum, phase)
        slowest = max(slowest, seconds)
        if problems:
            failures.append(f"{signum.name} to {target} while {phase}: {', '.join(problems)}")
            shutil.copy(f"{place}.log", KEPT_LOGS / f"signals-{target}-{signum.name}-{phase}.log".replace(" ", "_"))
        progress(f"{number + 1}/{len(cases)} {target}, {signum.name}, {phase}: {problems or 'well'}")
    return Outcome(len(cases) - len(failures), len(cases), failures,
                   f"signals x phases with no step lost; slowest exit {slowest:.1f} s after the signal")  # fmt: skip


def one_case(data, folder, target, signum, phase):
    """(seconds from the signal to the end, what went wrong)."""
    size, workers = TARGETS[target]
    marker = folder.with_suffix(".marker")
    fault = ("pause", phase, CALLS.get(phase, 1), str(marker))
    more = ("--log-steps", "--workers", workers, "--batch-size", 2 // size)
    if "launcher" in target:
        return launched(data, folder, more, fault, marker, signum, whole_group="group" in target)
    faulty = 0 if phase in ("summary", "report", "saving") else size - 1  # the main process alone does these
    processes = start_all(data, folder, *more, log=f"{folder}.log", size=size, fault=fault, faulty=faulty)
    if not wait_for(marker.exists):
        return 0.0, [f"the phase was not reached: {end_all(processes, 1)}"]
    time.sleep(PAUSE / 4)
    begin = time.monotonic()
    if "group" in target:
        os.killpg(processes[-1].pid, signum)
    else:
        os.kill(processes[-1].pid, signum)
    codes = end_all(processes, 40)
    seconds = time.monotonic() - begin
    allowed = {128 + signum, -signum if phase == "start" else 128 + signum}
    if size > 1 and phase == "start":
        allowed |= {1, 2}  # the other one says that it lost a process
    problems = [] if set(codes) <= allowed else [f"exit status {codes}"]
    return seconds, problems + check(folder, seconds, phase)


def launched(data, folder, more, fault, marker, signum, whole_group):
    """The same under torchrun, whose own exit status is 1 whatever happens."""
    program = ["-m", "tests.faults.faulty_rank", *fault]
    command = [sys.executable, *TORCHRUN, "--nproc_per_node=2", *program, *flags(data, folder, *more)]
    with open(f"{folder}.log", "w") as log:
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        launcher = subprocess.Popen(
            [str(word) for word in command], stdout=log, stderr=log, env=environment, start_new_session=True
        )
    if not wait_for(marker.exists, 120):
        os.killpg(launcher.pid, signal.SIGKILL)
        return 0.0, ["the phase was not reached"]
    time.sleep(PAUSE / 4)
    begin, ranks = time.monotonic(), children(launcher.pid)
    (os.killpg if whole_group else os.kill)(launcher.pid, signum)
    wait_for(lambda: not any(map(lives, ranks)), 40)
    seconds = time.monotonic() - begin
    with contextlib.suppress(subprocess.TimeoutExpired):
        launcher.wait(40)
    problems = [] if launcher.poll() else [f"the launcher's exit status is {launcher.poll()}"]
    if not wait_for(lambda: not group_lives(launcher.pid), 2):
        os.killpg(launcher.pid, signal.SIGKILL)
        problems.append("processes were left")
    return seconds, problems + check(folder, seconds, fault[1])


def group_lives(group):
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def check(folder, seconds, phase):
    """What went wrong with the time and with what was saved."""
    problems = [] if seconds < PAUSE + BEYOND_A_STEP else [f"it took {seconds:.1f} s"]
    steps, path = finished_steps(folder), newest_checkpoint(folder)
    saved = torch.load(path, weights_only=True)["step"] if path else 0
    if saved != steps or (phase != "start" and not saved):
        problems.append(f"{steps} steps done, {saved} saved")
    if str(ROOT / "train_utils") in folder.with_suffix(".log").read_text():  # torchrun has one of its own
        problems.append("a traceback")
    return problems
