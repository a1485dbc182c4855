"""kill -9 of random ranks under torchrun, which starts them again."""

import os
import random
import signal
import time

import train_multi_GPU
from tests.faults import Outcome, progress
from tests.faults.processes import children, end_all, finished_steps, launch, lives, start_all, start_nodes, wait_for
from tests.small_runs import differences, flags
from train_utils.data.formats.shapes import make_shapes

WHAT = "kill -9 of a rank: the others leave within 10 s, torchrun starts all again, training goes on"
LEAVE_WITHIN = 10.0  # seconds


def run(full, folder):
    kills, rng, failures = 50 if full else 1, random.Random(0), []
    epochs = 24 if full else 2
    data = make_shapes(folder / "shapes", train=12, val=2, size=48)
    more = ("--batch-size", 1, "--epochs", epochs, "--log-steps", "--save-every-steps", 1, "--keep", 2)
    uncut = start_all(data, folder / "uncut", *more, log=folder / "uncut.log", size=2)
    log, restarts = folder / "cut.log", kills + 5
    if full:
        cut = launch(data, folder / "cut", *more, log=log, restarts=restarts)
    else:
        words, how = flags(data, folder / "cut", *more), {"started": 1, "nodes": 1, "ranks": 2, "restarts": restarts}
        (cut,) = start_nodes(train_multi_GPU, *words, log=log, **how)
    good, slowest = 0, 0.0
    for kill in range(kills):
        before = finished_steps(folder / "cut")
        if not wait_for(lambda b=before: finished_steps(folder / "cut") > b or not cut.is_alive(), 120):
            failures.append(f"kill {kill}: no step was made after the restart")
            break
        if not cut.is_alive():
            failures.append(f"kill {kill}: the run ended before it, with {cut.exitcode}")
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
    codes = end_all([cut, *uncut], 600)
    if any(codes):
        failures.append(f"exit status {codes}")
    elif differences(folder / "uncut", folder / "cut", epochs - 1):
        failures.append(f"{differences(folder / 'uncut', folder / 'cut', epochs - 1)} differ from the uncut run's")
    note = f"in-job restarts that trained on, the end as uncut; ranks gone at most {slowest:.1f} s after a kill"
    return Outcome(good, kills, failures, note)
