"""Measures this project beside torchvision, in one process, on the same weights and inputs.

    python -m benchmarks --list
    python -m benchmarks nms_2000 roi_align        these
    python -m benchmarks                           all but those that take minutes a turn
    python -m benchmarks --figures                 the same, and their table into docs/figures.md
    python -m benchmarks launches                  operators and waits, counted (see `benchmarks/device/launches.py`)
    python -m benchmarks profile                   where a CPU's time goes in a prediction and in a training step
    python -m benchmarks gpu                       one GPU: fidelity, resume, images a second, a profile
    python -m benchmarks runtimes                  exported files: seconds, memory, size, time to the first result

Prints one table row and one line of JSON per benchmark. Ratio: our median over theirs, below 1 is faster.
"""

import argparse
import os
import sys
from pathlib import Path

import torch

from backbone.errors import InputError
from benchmarks import annotations, evaluation, loading, models, operators
from benchmarks.device import gpu, launches
from benchmarks.harness import HEADER, LeftOut, Settings, describe_machine, measure
from benchmarks.machine import profile
from benchmarks.runtimes import __main__ as runtimes
from train_utils.cli.command import run_command
from train_utils.cli.device import pick_device
from train_utils.cli.flags import number
from train_utils.cli.parser import Parser
from train_utils.io.files import write_text

BENCHMARKS = [one for part in (operators, models, loading, evaluation, annotations) for one in part.BENCHMARKS]
PROGRAMS = {"launches": launches.main, "profile": profile.main, "gpu": gpu.main, "runtimes": runtimes.main}
FIGURES = Path(__file__).resolve().parents[1] / "docs" / "figures.md"
DATA = Path(os.environ.get("MASKRCNN_DATA", Path(__file__).resolve().parents[2] / "shared" / "data"))


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Reads the command line."""
    parser = Parser(description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help="which to run")
    parser.add_argument("--list", action="store_true", help="name them and stop")
    parser.add_argument("--repeats", type=number(int, least=1), default=9, help="measured turns (default: 9)")
    parser.add_argument("--threads", type=number(int, least=1), help="torch's threads (default: torch's own choice)")
    parser.add_argument("--device", default="cpu", help="cpu, cuda or cuda:i (default: cpu)")
    parser.add_argument(
        "--data",
        type=Path,
        default=DATA,
        help="a folder with coco_mini/ in it; drawn images are taken where it is missing",
    )
    parser.add_argument("--figures", action="store_true", help="put the table into docs/figures.md")
    parser.add_argument("--no-memory", action="store_true", help="leave the memory columns empty")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int | None:
    """Runs the benchmarks that are asked for, or one of PROGRAMS."""
    words = sys.argv[1:] if argv is None else argv
    if words and words[0] in PROGRAMS:
        return PROGRAMS[words[0]](words[1:])
    args = parse_args(argv)
    by_name = {benchmark.name: benchmark for benchmark in BENCHMARKS}
    unknown = [name for name in args.names if name not in by_name]
    if unknown:
        raise InputError(f"no benchmark is called {unknown[0]}; there are {', '.join(by_name)}")
    if args.list:
        for benchmark in BENCHMARKS:
            print(f"{benchmark.name:20} {benchmark.what}")
        return None
    if args.threads:
        torch.set_num_threads(args.threads)
    device = pick_device(args.device)
    data = args.data if (args.data / "coco_mini").is_dir() else None
    head = f"{describe_machine(device)}; {'photos of COCO' if data else 'drawn images'}"
    print(f"{head}\n\n{HEADER}", flush=True)
    rows, left_out = [], []
    for name in args.names or [benchmark.name for benchmark in BENCHMARKS if not benchmark.takes_minutes]:
        try:
            rows.append(measure(by_name[name], Settings(device, data, args.repeats), memory=not args.no_memory))
        except LeftOut as reason:
            left_out.append(f"left out: {name}: {reason}")
        else:
            print(rows[-1].markdown(), flush=True)
    for line in (*left_out, "", *(row.json() for row in rows)):
        print(line)
    if args.figures:
        write_table(FIGURES, [f"{head}; medians of {args.repeats} turns:", "", HEADER, *(r.markdown() for r in rows)])
    return None


def write_table(path: Path, lines: list[str]) -> None:
    """Replaces what is between the two marks in `path`."""
    before, start, rest = path.read_text().partition("<!-- benchmarks -->\n")
    _, end, after = rest.partition("<!-- end of benchmarks -->")
    if not start or not end:
        raise InputError(f"{path}: the marks that the table belongs between are missing")
    write_text(path, "\n".join([before + start.strip(), *lines, end + after]))


if __name__ == "__main__":
    sys.exit(run_command(main))
