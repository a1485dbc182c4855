"""Measures training on 2 CPU ranks beside one, a thread each, through the code that train_multi_GPU.py runs.

    python -m benchmarks.distributed --data-path DATA                     a ResNet-50 at 800 px
    python -m benchmarks.distributed --data-path DATA --backbone resnet18 --min-size 256 --batch-size 4

The model's flags are train.py's.

By turns: one rank alone; every rank for itself (what the machine's cores and memory can give, nothing exchanged);
all ranks as one run. Each rank takes --batch-size images a step; a step's seconds are the slowest rank's.
"""

import argparse
import os
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import torch

from network_files import MaskRCNNConfig, create_model
from train_utils.cli.command import run_command
from train_utils.cli.flags import add_model_flags, given_model, number
from train_utils.cli.parser import Parser
from train_utils.data.loaders import TrainLoader
from train_utils.data.opening import DataSplits, open_data
from train_utils.data.options import LoaderOptions
from train_utils.processes.distributed import World
from train_utils.run.optimization import Precision, TrainState, build_optimizer, build_schedule
from train_utils.run.step import train_one_epoch
from transforms import build_augment

MODES = ("one rank", "ranks for themselves", "ranks together")


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Reads the command line."""
    parser = Parser(description=__doc__)
    parser.add_argument("--data-path", type=Path, required=True)
    parser.add_argument("--ranks", type=number(int, least=1), default=2)
    parser.add_argument("--turns", type=number(int, least=1), default=3, help="measured turns (default: 3)")
    parser.add_argument("--steps", type=number(int, least=1), default=3, help="steps of a mode in a turn (default: 3)")
    parser.add_argument("--batch-size", type=number(int, least=1), default=1, help="images per rank (default: 1)")
    add_model_flags(parser)
    return argparse.Namespace(**parser.given(argv))


def train_state(world: World, args: argparse.Namespace, num_classes: int) -> TrainState:
    """Builds a model and what trains it."""
    torch.manual_seed(0)
    model = create_model(num_classes, **given_model(vars(args)))
    optimizer = build_optimizer(model, "sgd", 1e-4)
    schedule = build_schedule(optimizer, total_steps=10**6, warmup_steps=0)
    return TrainState(model, world.wrap(model), optimizer, schedule, Precision(world.device))


def steps_of(world: World, args: argparse.Namespace, data: DataSplits) -> Iterator[float]:
    """Yields the seconds of one step after another, without end."""
    state = train_state(world, args, data.label_map.num_labels)
    loader = TrainLoader(data.train, build_augment(), world, LoaderOptions(args.batch_size))
    for epoch in range(10**6):
        start = time.perf_counter()
        for _ in train_one_epoch(state, loader, world, epoch):
            yield time.perf_counter() - start
            start = time.perf_counter()


def work(args: argparse.Namespace) -> dict[str, float] | None:
    """Does one rank's part; rank 0 returns the median seconds of a step in each mode, of the slowest rank."""
    torch.set_num_threads(1)
    world = World.from_environment("cpu")
    data = open_data(args.data_path)
    single = World.single("cpu")
    modes = {mode: steps_of(where, args, data) for mode, where in zip(MODES, (single, single, world), strict=True)}
    seconds: dict[str, list[float]] = {mode: [] for mode in MODES}
    for turn in range(args.turns + 1):  # the first one warms up
        for mode, steps in modes.items():
            world.gather(None)  # nobody starts before the others are done
            taken = [] if mode == "one rank" and not world.is_main else [next(steps) for _ in range(args.steps)]
            slowest = [max(step) for step in zip(*filter(None, world.gather(taken)), strict=True)]
            seconds[mode] += slowest if turn else []
            if world.is_main:
                print(f"turn {turn}: {mode}: {', '.join(f'{s:.2f}' for s in slowest)} s a step", flush=True)
    world.close()
    return {mode: statistics.median(steps) for mode, steps in seconds.items()} if world.is_main else None


def launch(argv: list[str], ranks: int) -> int:
    """Starts the ranks as torchrun does; returns the worst exit status."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    shared = os.environ | {
        "WORLD_SIZE": str(ranks),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, "-m", "benchmarks.distributed", *argv]
    started = [subprocess.Popen(command, env=shared | {"RANK": str(r), "LOCAL_RANK": str(r)}) for r in range(ranks)]
    return max(abs(process.wait()) for process in started)  # negative where a signal ended it


def main(argv: list[str] | None = None) -> int:
    """Prints the rates of all modes; returns the exit status."""
    argv = sys.argv[1:] if argv is None else argv
    args = parse_args(argv)
    if "RANK" not in os.environ:
        return launch(argv, args.ranks)
    seconds = work(args)
    if seconds:
        config = MaskRCNNConfig.from_dict({"num_classes": 2, **given_model(vars(args))})
        print(
            f"torch {torch.__version__}, {config.backbone}, {config.min_size[-1]} px, batch size {args.batch_size} "
            f"per rank, {args.ranks} ranks of one thread, {os.cpu_count()} cores"
        )
        for mode, median in seconds.items():
            share = seconds["one rank"] / median * (1 if mode == "one rank" else args.ranks)
            rate = args.batch_size / median * (1 if mode == "one rank" else args.ranks)
            print(f"{mode:22} {median:.3f} s a step, {rate:.2f} images/s, {share:.2f} x one rank")
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
