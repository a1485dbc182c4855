"""kill -9 of random ranks under torchrun, which starts them again."""

import os
import random
import signal
import subprocess
import sys
import time

from tests.faults import Outcome, progress
from tests.faults.processes import children, finished_steps, lives, wait_for
from tests.small_runs import ROOT, TORCHRUN, differences, flags
from train_utils.data.formats.shapes import make_shapes

WHAT = "kill -9 of a rank: the others leave within 10 s, torchrun starts all again, training goes on"
LEAVE_WITHIN = 10.0  # seconds


def run(full, folder):
    kills, rng, failures = 50 if full else 1, random.Random(0), []
    epochs = 24 if full else 2
    data = make_shapes(folder / "shapes", train=12, val=2, size=48)
    more = ("--batch-size", 1, "--epochs", epochs, "--log-steps", "--save-every-steps", 1, "--keep", 2)
    uncut = torchrun(data, folder / "uncut", *more)
    cut = torchrun(data, folder / "cut", *more, restarts=kills + 5)
    good, slowest = 0, 0.0
    for kill in range(kills):
        before = finished_steps(folder / "cut")
        if not wait_for(lambda b=before: finished_steps(folder / "cut") > b or cut.poll() is not None, 120):
            failures.append(f"kill {kill}: no step was made after the restart")
            break
        if cut.poll() is not None:
            failures.append(f"kill {kill}: the run ended before it, with {cut.poll()}")
            break
        ranks = children(cut.pid)
        os.kill(rng.choice(ranks), signal.SIGKILL)
        begin = time.monotonic()
        if not wait_for(lambda r=ranks: not any(map(lives, r)), LEAVE_WITHIN):
            failures.append(f"kill {kill}: ranks still lived after {LEAVE_WITHIN:.0f} s")
            break
        slowest = max(slowest, time.monotonic() - begin)
        progress(f"kill {kill + 1} of {kills}")
        good += 1
    codes = [process.wait(600) for process in (cut, uncut)]
    if any(codes):
        failures.append(f"exit status {codes}")
    elif differences(folder / "uncut", folder / "cut", epochs - 1):
        failures.append(f"{differences(folder / 'uncut', folder / 'cut', epochs - 1)} differ from the uncut run's")
    note = f"in-job restarts that trained on, the end as uncut; ranks gone at most {slowest:.1f} s after a kill"
    return Outcome(good, kills, failures, note)


def torchrun(data, folder, *more, restarts=0):
    """A launcher with 2 ranks in a session of its own."""
    program = [f"--max-restarts={restarts}", "--nproc_per_node=2", ROOT / "train_multi_GPU.py"]
    command = [sys.executable, *TORCHRUN, *program, *flags(data, folder, *more)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    with open(f"{folder}.log", "w") as log:
        return subprocess.Popen(
            [str(word) for word in command], stdout=log, stderr=log, env=environment, start_new_session=True
        )
