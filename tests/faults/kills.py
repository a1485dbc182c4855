"""Runs killed at random moments, resumed until they end, and compared bit for bit with uncut ones."""

import random
import shutil
import time

from network_files.weight_files.file_stamp import find_damage
from tests.faults import KEPT_LOGS, Outcome, progress
from tests.faults.processes import end_all, start_all
from tests.small_runs import differences
from train_utils.data.formats.shapes import make_shapes

WHAT = "kill -9 at random moments (also within a save); resumed, the run ends bit for bit as the uncut one"
# name -> (ranks, flags, whether in bfloat16)
RUNS = {
    "plain": (1, (), False),
    "2 workers, saved each step": (1, ("--workers", 2, "--save-every-steps", 1), False),
    "accumulated, AMP": (1, ("--batch-size", 1, "--accumulate-steps", 2, "--amp", "--save-every-steps", 2), True),
    "2 ranks": (2, ("--batch-size", 1, "--save-every-steps", 1), False),
    "4 ranks": (4, ("--batch-size", 1, "--save-every-steps", 1), False),
}
IN_A_SAVE = ("replace", "fsync", "link")  # calls of os
CALLS = 10  # a run has more of these calls
SHORT = {"2 workers, saved each step": 2, "2 ranks": 1}  # kills of the short version
MOST = 6  # kills of one run, after which it may end


def run(full, folder):
    rng, kills, good, failures, runs = random.Random(0), 0, 0, [], 0
    data = make_shapes(folder / "shapes", train=12, val=3, size=48)
    wanted = {"plain": 40, "2 workers, saved each step": 60, "accumulated, AMP": 40, "2 ranks": 50, "4 ranks": 20}
    for name, (size, flags, bf16) in RUNS.items():
        if not full and name not in SHORT:
            continue
        uncut = folder / f"uncut {name}"
        begin = time.monotonic()
        codes = train(data, uncut, flags, size, ("bf16",) if bf16 else None)
        duration = time.monotonic() - begin
        if any(codes):
            failures.append(f"{name}: the uncut run ended with {codes}, see {uncut}.log")
            continue
        done, wanted_here = 0, (wanted if full else SHORT)[name]
        while done < wanted_here:
            runs += 1
            cut = folder / f"cut {runs}"
            most = MOST if full else wanted_here
            count, problems = kill_and_resume(data, cut, flags, size, bf16, duration, rng, most)
            problems += [f"{what} differ" for what in differences(uncut, cut)] if not problems else []
            done, kills = done + count, kills + count
            good += 0 if problems else count
            progress(f"{name}: {done} of {wanted_here} kills, {problems or 'well'}")
            if problems:
                shutil.copy(f"{cut}.log", KEPT_LOGS / f"kills-{runs}.log")
                failures.append(f"{name}, run {runs} of seed 0 ({count} kills): {', '.join(problems)}")
    return Outcome(good, kills, failures, f"kills whose run was resumed bit-identical, in {runs} runs")


def train(data, folder, flags, size, fault=None, timeout=300.0):
    processes = start_all(
        data, folder, "--log-steps", "--resume", "auto", *flags, log=f"{folder}.log", size=size, fault=fault
    )
    return end_all(processes, timeout)


def kill_and_resume(data, folder, flags, size, bf16, duration, rng, most):
    """(number of kills, what went wrong) of a run that is killed up to `most` times."""
    kills = 0
    flags = ("--log-steps", "--resume", "auto", *flags)
    while True:
        inside = not bf16 and rng.random() < (0.4 if most == MOST else 0.9)
        fault = ("bf16",) if bf16 else None
        if inside and kills < most:
            fault = ("kill", rng.choice(IN_A_SAVE), rng.randint(1 if most == MOST else 4, CALLS))
        processes = start_all(data, folder, *flags, log=f"{folder}.log", size=size, fault=fault)
        if kills < most and not inside:
            time.sleep(rng.uniform(0.05, 0.6 * duration))  # rather early: a run that has ended can't be killed
            rng.choice(processes).kill()
        codes = end_all(processes)
        if None in codes:
            return kills, [f"a rank did not end: {codes}"]
        damaged = [path.name for path in folder.glob("model_*.pth") if find_damage(path)]
        if damaged:
            return kills, [f"damaged after the kill: {damaged}"]
        if -9 in codes:
            kills += 1
        elif any(codes):
            return kills, [f"exit status {codes}, see the log"]
        else:
            return kills, []
