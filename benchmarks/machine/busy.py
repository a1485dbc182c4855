"""Measures what OpenMP's threads cost on a quiet machine and on a busy one, under settings that say how long they spin.

    python -m benchmarks.machine.busy                      the machine as it is, then with two busy processes beside it
    python -m benchmarks.machine.busy --beside 0           the machine as it is alone
    python -m benchmarks.machine.busy --train --turns 9

A setting is read when torch is loaded, so each has a process of its own, which waits while others have their turn. The
model is that of the built-in data. Below 1: faster than without a setting.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from backbone.errors import InputError
from backbone.waiting import WAIT_VARIABLES
from network_files import create_model
from train_utils.cli.command import run_command
from train_utils.cli.flags import number
from train_utils.cli.parser import Parser
from train_utils.io.plain_text import counted
from train_utils.run.defaults import BUILT_IN_MODEL

SETTINGS = {
    "none": {},
    "GOMP_SPINCOUNT=100000": {"GOMP_SPINCOUNT": "100000"},
    "GOMP_SPINCOUNT=10000": {"GOMP_SPINCOUNT": "10000"},
    "GOMP_SPINCOUNT=1000": {"GOMP_SPINCOUNT": "1000"},
    "OMP_WAIT_POLICY=PASSIVE": {"OMP_WAIT_POLICY": "PASSIVE"},
    "OMP_NUM_THREADS=1": {"OMP_NUM_THREADS": "1"},
}
SPIN = "while True: pass"


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Reads the command line."""
    parser = Parser(description=__doc__)
    parser.add_argument("settings", nargs="*", metavar="SETTING", help="some of the settings (default: all)")
    parser.add_argument("--turns", type=number(int, least=1), default=5, help="measured turns (default: 5)")
    parser.add_argument("--beside", type=number(int, least=0), default=2, help="busy processes (default: 2)")
    parser.add_argument("--train", action="store_true", help="training steps in place of predictions")
    parser.add_argument("--steps", type=number(int, least=1), default=4, help="steps in a turn (default: 4)")
    parser.add_argument("--work", action="store_true", help=argparse.SUPPRESS)  # a process that is measured
    return parser.parse_args(argv)


def work(args: argparse.Namespace) -> None:
    """Does a turn for each line that it reads; prints seconds and CPU seconds of a step."""
    torch.manual_seed(0)
    model = create_model(4, **BUILT_IN_MODEL, norm="batch", trainable_layers=5).train(args.train)
    images = list(torch.randint(0, 256, (2, 3, 128, 128), dtype=torch.uint8))
    masks = torch.zeros(1, 128, 128, dtype=torch.uint8)
    masks[:, 20:90, 30:100] = 1
    target = {"boxes": torch.tensor([[30.0, 20, 100, 90]]), "labels": torch.tensor([1]), "masks": masks}

    def step() -> None:
        if args.train:
            model.zero_grad()
            sum(model(images, [target, target]).values()).backward()
        else:
            with torch.inference_mode():
                model(images)

    step()
    for _ in sys.stdin:
        wall, cpu = time.perf_counter(), time.process_time()
        for _ in range(args.steps):
            step()
        took = (time.perf_counter() - wall) / args.steps, (time.process_time() - cpu) / args.steps
        print(*took, flush=True)


@contextmanager
def processes(argv: list[str], settings: list[str]) -> Iterator[dict[str, subprocess.Popen]]:
    """Starts a process for each setting; they end with the block."""
    clean = {name: value for name, value in os.environ.items() if name not in (*WAIT_VARIABLES, "OMP_NUM_THREADS")}
    command = [sys.executable, "-m", "benchmarks.machine.busy", "--work", *argv]
    chosen = {name: more for name, more in SETTINGS.items() if name == "none" or name in settings or not settings}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "bufsize": 1}
    started = {name: subprocess.Popen(command, env=clean | more, **pipes) for name, more in chosen.items()}
    try:
        yield started
    finally:
        for process in started.values():
            process.stdin.close()
            process.wait()


def measured(started: dict[str, subprocess.Popen], turns: int) -> dict[str, list[tuple[float, float]]]:
    """Returns (seconds, CPU seconds) of a step for each setting and turn; a first turn warms up."""
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in started}
    for turn in range(turns + 1):
        for name, process in started.items():
            process.stdin.write("go\n")
            process.stdin.flush()
            seconds, cpu = map(float, process.stdout.readline().split())
            if turn:
                found[name].append((seconds, cpu))
    return found


def report(what: str, found: dict[str, list[tuple[float, float]]]) -> None:
    """Prints a table; ratios are medians over the turns of each turn's ratio."""
    load = os.getloadavg()[0]
    print(f"\n{what}; load average {load:.1f} on {os.cpu_count()} cores")
    print("| setting | s a step | of none | CPU s a step | of none |\n|---|---|---|---|---|")
    base = found["none"]
    for name, values in found.items():
        cells = [name]
        for k in (0, 1):
            ratios = [own[k] / of[k] for own, of in zip(values, base, strict=True)]
            cells += [f"{statistics.median(v[k] for v in values):.3f}", f"{statistics.median(ratios):.2f}"]
        print(f"| {' | '.join(cells)} |", flush=True)


def main(argv: list[str] | None = None) -> None:
    """Prints the tables."""
    argv = sys.argv[1:] if argv is None else argv
    args = parse_args(argv)
    if args.work:
        work(args)
        return
    what = "training step" if args.train else "prediction"
    unknown = [name for name in args.settings if name not in SETTINGS]
    if unknown:
        raise InputError(f"no setting is called {unknown[0]}; there are {', '.join(SETTINGS)}")
    with processes(argv, args.settings) as started:
        report(f"{what}, 2 images as the built-in data's, the machine as it is", measured(started, args.turns))
        if args.beside:
            beside = [subprocess.Popen([sys.executable, "-c", SPIN]) for _ in range(args.beside)]
            try:
                report(f"{what}, {counted(args.beside, 'busy process')} beside it", measured(started, args.turns))
            finally:
                for process in beside:
                    process.kill()
                    process.wait()


if __name__ == "__main__":
    sys.exit(run_command(main))
