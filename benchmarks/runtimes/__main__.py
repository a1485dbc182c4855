"""A ResNet-50-FPN as a checkpoint and as each exported file -> seconds, memory, size, and time to the first result.

    python -m benchmarks runtimes                    a table; some minutes on 2 quiet cores
    python -m benchmarks runtimes --beside 2         the same with two busy processes beside it
    python -m benchmarks runtimes --room FOLDER      keeps the files there, and takes those that are there

One photo of 640x480, resized to 1088x800, to detections with masks as run-length codes; weights are random but alive
(`torchvision_model.live_state`), so 8 bits are measured for time, not for accuracy. Each side is a process of its own,
which waits while others have their turn. To the first result: from the start of the process, imports included.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from unittest import mock

import numpy as np
import torch

from backbone.errors import InputError
from benchmarks.harness import Settings, describe_machine
from benchmarks.machine.busy import SPIN
from benchmarks.models import Case, build_sides
from benchmarks.runtimes.side import FILES, PHOTO, TORCHVISION, WEIGHTS
from train_utils.checkpoints.checkpoint import default_label_map
from train_utils.cli.command import run_command
from train_utils.cli.flags import number
from train_utils.cli.parser import Parser
from train_utils.prediction.exporting import export
from train_utils.prediction.exporting.int8 import Int8
from train_utils.prediction.exporting.proof import Proof

NAMES = {
    TORCHVISION: "torchvision, eager",
    "eager": "this project, eager",
    "torch_export": "torch.export",
    "onnx": "ONNX Runtime",
    "openvino": "OpenVINO",
    "onnx_int8": "ONNX Runtime, 8 bits",
    "openvino_int8": "OpenVINO, 8 bits",
}
COLUMNS = "what", "seconds", "of torchvision", "CPU s", "to the first result", "of it", "peak memory", "of it", "file"
CALIBRATED = 4  # images: time does not depend on the ranges


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Reads the command line."""
    parser = Parser(description=__doc__)
    parser.add_argument("sides", nargs="*", metavar="SIDE", help=f"some of {', '.join(NAMES)} (default: all)")
    parser.add_argument("--turns", type=number(int, least=1), default=7, help="measured turns (default: 7)")
    parser.add_argument("--loads", type=number(int, least=1), default=3, help="times that each is opened (default: 3)")
    parser.add_argument("--beside", type=number(int, least=0), default=0, help="busy processes (default: none)")
    parser.add_argument("--threads", type=number(int, least=1), help="of each side (default: torch's own choice)")
    parser.add_argument("--room", type=Path, help="keep the files there (default: a folder that is removed)")
    parser.add_argument("--data", type=Path, help="a folder with coco_mini/ in it (default: drawn images)")
    parser.add_argument("--backbone", choices=("resnet50", "resnet18"), default="resnet50")
    return parser.parse_args(argv)


def write_files(room: Path, sides: Sequence[str], case: Case, data: Path | None) -> None:
    """Writes the photo, the weights and the sides' files, as far as they are lacking; one trace serves them all."""
    if all((room / name).exists() for name in (PHOTO, WEIGHTS, *(FILES[side] for side in sides))):
        return
    model, _, pairs = build_sides(case, Settings(torch.device("cpu"), data, 1), training=False)
    torch.save(model.state_dict(), room / WEIGHTS)
    np.save(room / PHOTO, pairs[0][0].numpy())
    labels, int8 = default_label_map(model.config.num_classes), Int8([image for image, _ in pairs], lambda model: {})
    program = export.trace(model, 1)
    made = []

    def in_onnx(program: torch.export.ExportedProgram) -> object:
        """Returns a copy of the model in ONNX, which a trace becomes but once."""
        made[:] = made or [export_once(program)]
        return copy.deepcopy(made[0])

    export_once = export.to_onnx
    with ExitStack() as patches:
        patches.enter_context(mock.patch.object(export, "trace", lambda *_: program))
        patches.enter_context(mock.patch.object(export, "to_onnx", in_onnx))
        # random weights give many proposals the score 1, of which each keeps others: it is printed, and no fault
        patches.enter_context(mock.patch.object(Proof, "faults", lambda proof: []))
        patches.enter_context(mock.patch.object(export, "check_images", lambda *_: []))  # the photo is enough
        for side in sorted(set(sides) - {TORCHVISION, "eager"}, key=list(NAMES).index):  # torch's file first
            path, form = room / FILES[side], side.removesuffix("_int8")
            if not path.exists():
                start = time.perf_counter()
                to = export.Export(path, form, 1, int8 if form != side else None)
                line = export.export_model(model, labels, {}, to, [pairs[0][0]]).line
                print(f"{NAMES[side]}: {line} ({time.perf_counter() - start:.0f} s)", flush=True)


@contextmanager
def process(side: str, room: Path, args: argparse.Namespace) -> Iterator[subprocess.Popen]:
    """Starts a side; it ends with the block."""
    command = [sys.executable, "-m", "benchmarks.runtimes.side", side, room, args.backbone]
    command += [args.threads] if args.threads else []
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "bufsize": 1}
    started = subprocess.Popen(list(map(str, command)), cwd=Path(__file__).resolve().parents[2], **pipes)
    try:
        yield started
    finally:
        started.stdin.close()
        started.wait()


def first_results(sides: Sequence[str], room: Path, args: argparse.Namespace) -> dict[str, list[float]]:
    """Returns the seconds from each side's start to its first result, by turns."""
    found: dict[str, list[float]] = {side: [] for side in sides}
    for _ in range(args.loads):
        for side in sides:
            start = time.perf_counter()
            with process(side, room, args) as started:
                line = started.stdout.readline()
                found[side].append(time.perf_counter() - start)
            if not line:
                raise InputError(f"{side}: its process ended before a result; see above")
    return found


def by_turns(sides: Sequence[str], room: Path, args: argparse.Namespace) -> dict[str, list[tuple[float, ...]]]:
    """Returns (seconds, CPU seconds, peak MiB so far) of each side's turns; a first turn warms up."""
    found: dict[str, list[tuple[float, ...]]] = {side: [] for side in sides}
    with ExitStack() as stack:
        started = {side: stack.enter_context(process(side, room, args)) for side in sides}
        for one in started.values():
            one.stdout.readline()
        for turn in range(args.turns + 1):
            for side, one in started.items():
                one.stdin.write("go\n")
                one.stdin.flush()
                took = tuple(map(float, one.stdout.readline().split()))
                if turn:
                    found[side].append(took)
    return found


def report(room: Path, first: dict[str, list[float]], turns: dict[str, list[tuple[float, ...]]]) -> None:
    """Prints the table: medians, and their ratios to torchvision's where it takes part."""
    print(f"| {' | '.join(COLUMNS)} |\n|{'---|' * len(COLUMNS)}")
    rows = {}
    for side, values in turns.items():
        seconds, cpu, _ = (statistics.median(column) for column in zip(*values, strict=True))
        rows[side] = seconds, cpu, statistics.median(first[side]), values[-1][2]
    base = rows.get(TORCHVISION)
    for side, (seconds, cpu, opened, peak) in rows.items():
        pairs = zip((seconds, opened, peak), (base[0], *base[2:]) if base else (0, 0, 0), strict=True)
        ratios = [f"{own / of:.2f}" if of else "" for own, of in pairs]
        path = room / FILES[side]
        size = sum(file.stat().st_size for file in ([path] if path.is_file() else path.iterdir())) / 1e6
        cells = [NAMES[side], f"{seconds:.3f}", ratios[0], f"{cpu:.2f}", f"{opened:.1f} s", ratios[1]]
        cells += [f"{peak:.0f} MiB", ratios[2], f"{size:.0f} MB"]
        print(f"| {' | '.join(cells)} |", flush=True)


@contextmanager
def beside(count: int) -> Iterator[None]:
    """Lets busy processes run beside the block."""
    busy = [subprocess.Popen([sys.executable, "-c", SPIN]) for _ in range(count)]
    try:
        yield
    finally:
        for one in busy:
            one.kill()
            one.wait()


def main(argv: list[str] | None = None) -> None:
    """Writes the files and prints the table."""
    args = parse_args(argv)
    unknown = [side for side in args.sides if side not in NAMES]
    if unknown:
        raise InputError(f"no side is called {unknown[0]}; there are {', '.join(NAMES)}")
    sides = [side for side in NAMES if side in args.sides or not args.sides]
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        room = args.room or Path(folder)
        room.mkdir(parents=True, exist_ok=True)
        write_files(room, sides, Case(images=CALIBRATED, backbone=args.backbone), args.data)
        print(f"files: {time.perf_counter() - start:.0f} s\n", flush=True)
        with beside(args.beside):
            first, turns = first_results(sides, room, args), by_turns(sides, room, args)
        report(room, first, turns)
    print(f"\n{describe_machine(torch.device('cpu'))}; {args.backbone}-FPN; {args.beside} busy processes beside it; "
          f"medians of {args.turns} turns and of {args.loads} starts; {time.perf_counter() - start:.0f} s")  # fmt: skip


if __name__ == "__main__":
    sys.exit(run_command(main))
