"""A ResNet-50-FPN as a checkpoint and as each exported file -> seconds, memory, size, and time to the first result.

    python -m benchmarks runtimes                    two tables; 20 minutes or so on 2 quiet cores
    python -m benchmarks runtimes --beside 2         the same with two busy processes beside it
    python -m benchmarks runtimes --photos 0         one photo alone; --turns 0 --loads 0: a folder alone
    python -m benchmarks runtimes --room FOLDER      keeps the files there, and takes those that are there

Photos of 640x480, resized to 1088x800, to detections with masks as run-length codes; weights are random but alive
(`torchvision_model.live_state`), so 8 bits are measured for time, not for accuracy. Each side is a process of its own,
which waits while others have their turn; torchvision's threads wait as torch has them wait, this project's as it sets
them. To the first result: from the start of the process, imports included. The second table is of a folder, files read:
torchvision takes photo after photo, this project as predict.py does, which has several in flight of an exported file.
torchvision's ONNX file is of torch's older exporter, the one that can export it.
"""

from __future__ import annotations

import argparse
import copy
import os
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import cache
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from PIL import Image

from backbone.errors import InputError
from backbone.waiting import without_wait
from benchmarks import torchvision_model
from benchmarks.harness import Settings, describe_machine
from benchmarks.harness.inputs import photos
from benchmarks.machine.busy import SPIN
from benchmarks.models import TRAINED, Case, build_sides
from benchmarks.runtimes.side import FILES, PHOTO, PHOTOS, TORCHVISION, TORCHVISION_ONNX, WEIGHTS, as_torchvision_takes
from network_files import create_model
from train_utils.checkpoints.checkpoint import default_label_map
from train_utils.cli.command import run_command
from train_utils.cli.flags import number
from train_utils.cli.parser import Parser
from train_utils.prediction.exporting import export
from train_utils.prediction.exporting.int8 import Int8
from train_utils.prediction.exporting.proof import Proof

NAMES = {
    TORCHVISION: "torchvision, eager",
    TORCHVISION_ONNX: "torchvision, ONNX Runtime",
    "eager": "this project, eager",
    "torch_export": "torch.export",
    "onnx": "ONNX Runtime",
    "openvino": "OpenVINO",
    "onnx_int8": "ONNX Runtime, 8 bits",
    "openvino_int8": "OpenVINO, 8 bits",
}
COLUMNS = "what", "seconds", "of torchvision", "CPU s", "to the first result", "of it", "peak memory", "of it", "file"
OF_FOLDER = (
    "what",
    "photos a second",
    "of torchvision's",
    "of its ONNX's",
    "CPU s each",
    "peak memory",
    "of torchvision",
)
CALIBRATED = 4  # images: time does not depend on the ranges


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Reads the command line."""
    parser = Parser(description=__doc__)
    parser.add_argument("sides", nargs="*", metavar="SIDE", help=f"some of {', '.join(NAMES)} (default: all)")
    parser.add_argument(
        "--turns", type=number(int, least=0), default=5, help="measured turns of one photo (default: 5)"
    )
    parser.add_argument("--loads", type=number(int, least=0), default=3, help="times that each is opened (default: 3)")
    parser.add_argument("--photos", type=number(int, least=0), default=16, help="photos of the folder (default: 16)")
    parser.add_argument("--beside", type=number(int, least=0), default=0, help="busy processes (default: none)")
    parser.add_argument("--threads", type=number(int, least=1), help="of each side (default: torch's own choice)")
    parser.add_argument("--room", type=Path, help="keep the files there (default: a folder that is removed)")
    parser.add_argument("--data", type=Path, help="a folder with coco_mini/ in it (default: drawn images)")
    parser.add_argument("--backbone", choices=("resnet50", "resnet18"), default="resnet50")
    return parser.parse_args(argv)


def write_photos(room: Path, data: Path | None, count: int) -> None:
    """Writes the photos of the folder that are lacking."""
    (room / PHOTOS).mkdir(exist_ok=True)
    if len(list((room / PHOTOS).iterdir())) < count:
        for i, (image, _) in enumerate(photos(data, count)):
            Image.fromarray(image.permute(1, 2, 0).numpy()).save(room / PHOTOS / f"{i:04}.png")


def write_files(room: Path, sides: Sequence[str], case: Case, data: Path | None) -> None:
    """Writes the photo, the weights and the sides' files, as far as they are lacking; one trace serves them all."""
    if not (room / WEIGHTS).exists():
        model, _, _ = build_sides(case, Settings(torch.device("cpu"), data, 1), training=False)
        torch.save(model.state_dict(), room / WEIGHTS)
    images = [image for image, _ in photos(data, case.images)]
    if not (room / PHOTO).exists():
        np.save(room / PHOTO, images[0].numpy())
    if all((room / FILES[side]).exists() for side in sides):
        return
    state = torch.load(room / WEIGHTS, weights_only=True)
    if TORCHVISION_ONNX in sides and not (room / FILES[TORCHVISION_ONNX]).exists():
        write_torchvision(room, state, case, images[0])
    model = create_model(91, backbone=case.backbone, trainable_layers=TRAINED).eval()
    model.load_state_dict(state)
    labels, int8 = default_label_map(model.config.num_classes), Int8(images, lambda model: {})
    program = cache(lambda: export.trace(model, 1))
    made = []

    def in_onnx(program: torch.export.ExportedProgram) -> object:
        """Returns a copy of the model in ONNX, which a trace becomes but once."""
        made[:] = made or [export_once(program)]
        return copy.deepcopy(made[0])

    export_once = export.to_onnx
    with ExitStack() as patches:
        patches.enter_context(mock.patch.object(export, "trace", lambda *_: program()))
        patches.enter_context(mock.patch.object(export, "to_onnx", in_onnx))
        # random weights give many proposals the score 1, of which each keeps others: it is printed, and no fault
        patches.enter_context(mock.patch.object(Proof, "faults", lambda proof: []))
        patches.enter_context(mock.patch.object(export, "check_images", lambda *_: []))  # the photo is enough
        for side in sorted(
            set(sides) - {TORCHVISION, TORCHVISION_ONNX, "eager"}, key=list(NAMES).index
        ):  # torch's file first
            path, form = room / FILES[side], side.removesuffix("_int8")
            if not path.exists():
                start = time.perf_counter()
                to = export.Export(path, form, 1, int8 if form != side else None)
                line = export.export_model(model, labels, {}, to, images[:1]).line
                print(f"{NAMES[side]}: {line} ({time.perf_counter() - start:.0f} s)", flush=True)


def write_torchvision(room: Path, state: dict[str, torch.Tensor], case: Case, image: torch.Tensor) -> None:
    """Writes torchvision's model in ONNX, by torch's older exporter: the newer one stops in its NMS."""
    start, model = time.perf_counter(), torchvision_model.build(backbone=case.backbone, trainable=TRAINED).eval()
    model.load_state_dict(state)
    sides = {"image": {1: "height", 2: "width"}}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it is old, and that it keeps what it calls constants
        torch.onnx.export(model, ([as_torchvision_takes(image.numpy())],), room / FILES[TORCHVISION_ONNX],
                          dynamo=False, opset_version=17, input_names=["image"], dynamic_axes=sides)  # fmt: skip
    print(f"{NAMES[TORCHVISION_ONNX]}: written ({time.perf_counter() - start:.0f} s)", flush=True)


@contextmanager
def process(side: str, room: Path, args: argparse.Namespace) -> Iterator[subprocess.Popen]:
    """Starts a side; it ends with the block."""
    command = [sys.executable, "-m", "benchmarks.runtimes.side", side, room, args.backbone]
    command += [args.threads] if args.threads else []
    env = without_wait(os.environ) if side.startswith(TORCHVISION) else None
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "bufsize": 1}
    started = subprocess.Popen(list(map(str, command)), cwd=Path(__file__).resolve().parents[2], env=env, **pipes)
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


def of_folder(sides: Sequence[str], room: Path, args: argparse.Namespace) -> dict[str, tuple[float, ...]]:
    """Returns (seconds, CPU seconds, peak MiB) of each side with the folder, after a first photo."""
    found = {}
    for side in sides:
        with process(side, room, args) as started:
            started.stdout.readline()
            started.stdin.write(f"{args.photos}\n")
            started.stdin.flush()
            line = started.stdout.readline()
        if not line:
            raise InputError(f"{side}: its process ended before the folder was done; see above")
        found[side] = tuple(map(float, line.split()))
    return found


def report_folder(count: int, found: dict[str, tuple[float, ...]]) -> None:
    """Prints the table of the folder: photos a second beside both of torchvision's."""
    print(f"\n| {' | '.join(OF_FOLDER)} |\n|{'---|' * len(OF_FOLDER)}")
    for side, (seconds, cpu, peak) in found.items():
        faster = [f"{found[to][0] / seconds:.2f}x" if to in found else "" for to in (TORCHVISION, TORCHVISION_ONNX)]
        of_peak = f"{peak / found[TORCHVISION][2]:.2f}" if TORCHVISION in found else ""
        cells = [NAMES[side], f"{count / seconds:.3f}", *faster, f"{cpu / count:.2f}", f"{peak:.0f} MiB", of_peak]
        print(f"| {' | '.join(cells)} |", flush=True)


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
        write_photos(room, args.data, args.photos)
        with beside(args.beside):
            if args.turns and args.loads:
                report(room, first_results(sides, room, args), by_turns(sides, room, args))
            if args.photos:
                report_folder(args.photos, of_folder(sides, room, args))
    print(f"\n{describe_machine(torch.device('cpu'))}; {args.backbone}-FPN; {args.beside} busy processes beside it; "
          f"medians of {args.turns} turns and of {args.loads} starts; {args.photos} photos in the folder; "
          f"{time.perf_counter() - start:.0f} s")  # fmt: skip


if __name__ == "__main__":
    sys.exit(run_command(main))
