"""Measures what each part of a training recipe is worth, alone and left out of the best, on held-out training images.

    python -m benchmarks.recipes --data-path instances_train.json --output-dir OUT                  each part alone
    python -m benchmarks.recipes --data-path J --output-dir OUT --best schedule zoom copy_paste     and left out
    python -m benchmarks.recipes --data-path J --output-dir OUT --epochs 8 -- --backbone resnet18 --max-size 256

Give a json or folder without a validation split: train.py then holds out a fifth of the images, others for each seed,
and the data's own validation images stay unseen. What follows `--` are flags of train.py that all runs have. The base
is torchvision's schedule and augmentation. Runs go on where they were cut: start the same command again. The table has
the mask AP after the last epoch, its mean difference to the base (left out: to the best) over the same seeds, and the
CPU time of that run beside it.
"""

import argparse
import json
import resource
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import mean

from backbone.errors import InputError
from train_utils.cli.command import run_command
from train_utils.cli.flags import number
from train_utils.cli.parser import Parser
from train_utils.io.files import make_folder, write_text
from train_utils.logs.result_files import history

ROOT = Path(__file__).resolve().parents[2]
BASE, BEST = "base", "best"
REFERENCE = ["--recipe", "reference"]
PARTS = {
    "schedule": [],  # the usual one, in place of REFERENCE
    "cosine": ["--lr-schedule", "cosine"],
    "rate": ["--lr", "auto"],
    "ema": ["--ema", "--ema-decay", "0.99"],
    "clip": ["--clip-grad-norm", "10"],
    "anchors": ["--anchor-sizes", "auto"],
    "size": ["--min-size", "auto"],
    "balance": ["--balance", "0.1"],
    "vertical_flip": ["--vertical-flip"],
    "quarter_turns": ["--quarter-turns"],
    "rotate": ["--rotate", "20"],
    "zoom": ["--zoom", "0.7", "1.4"],
    "shift": ["--shift", "0.1"],
    "copy_paste": ["--copy-paste", "0.5"],
    "cutout": ["--cutout", "3"],
    "photometric": ["--photometric"],
    "gamma": ["--gamma", "1.5"],
    "contrast": ["--contrast", "1.5"],
    "channels": ["--channel-jitter", "0.1"],
    "stains": ["--stain-jitter", "0.2"],
    "blur": ["--blur", "1.0"],
    "noise": ["--noise", "0.05"],
    "light": ["--augment", "light"],
    "medium": ["--augment", "medium"],
    "heavy": ["--augment", "heavy"],
}


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Reads the command line."""
    parser = Parser(description=__doc__)
    parser.add_argument("--data-path", type=Path, required=True)
    parser.add_argument("--output-dir", type=Path, required=True, help="a folder of each run, to go on with")
    parser.add_argument("--seeds", type=number(int, least=1), default=1, help="runs of each recipe (default: 1)")
    parser.add_argument("--epochs", type=number(int, least=1), default=8, help="of every run (default: 8)")
    parser.add_argument("--only", nargs="+", default=list(PARTS), metavar="PART", help="parts to measure alone")
    parser.add_argument("--best", nargs="+", default=[], metavar="PART", help="parts of the best recipe")
    parser.add_argument("--table", action="store_true", help="print the table of the runs that are done, and stop")
    parser.add_argument("flags", nargs="*", metavar="-- FLAG", help="flags of train.py that all runs have")
    args = parser.parse_args(argv)
    if unknown := {*args.only, *args.best} - PARTS.keys():
        raise InputError(f"no part of a recipe is called {min(unknown)}; there are {', '.join(PARTS)}")
    return args


def recipes(only: Sequence[str], best: Sequence[str]) -> dict[str, tuple[list[str], str]]:
    """Returns {name: (parts, the name of the recipe that it is compared with)}."""
    found = {BASE: ([], BASE), **{f"+ {part}": ([part], BASE) for part in only}}
    if best:
        found[BEST] = (list(best), BASE)
        found |= {f"best - {part}": ([other for other in best if other != part], BEST) for part in best}
    return found


def flags_of(parts: Sequence[str]) -> list[str]:
    """Returns the flags of a recipe."""
    return [*([] if "schedule" in parts else REFERENCE), *(flag for part in parts for flag in PARTS[part])]


def run_once(parts: Sequence[str], seed: int, args: argparse.Namespace) -> dict | None:
    """Trains a recipe, or goes on with it, unless it is done; returns {"ap", "cpu"}. None: not done, with --table."""
    name = f"{'+'.join(parts) or BASE}_{seed}"
    folder = args.output_dir / name
    done = folder / "done.json"
    if done.exists():
        return json.loads(done.read_text())
    if args.table:
        return None
    given = ["--data-path", args.data_path, "--epochs", args.epochs, "--seed", seed, *args.flags, *flags_of(parts)]
    command = [sys.executable, "train.py", *given, "--output-dir", folder.resolve()]
    started = any(folder.glob("model_*.pth"))
    log = make_folder(folder) / "log.txt"
    before = cpu_seconds()
    with log.open("a") as file:
        words = [str(word) for word in [*command, *(["--resume", "auto"] if started else [])]]
        status = subprocess.run(words, cwd=ROOT, stdout=file, stderr=subprocess.STDOUT).returncode
    if status:
        last = (log.read_text().strip().splitlines() or ["nothing was said"])[-1]
        print(f"{name}: ended with status {status}: {last}", flush=True)
        return None
    rows = history(folder)
    found = {"ap": rows[-1]["segm_AP"], "cpu": cpu_seconds() - before, "resumed": started}
    write_text(done, json.dumps(found))
    print(f"{name}: mask AP {found['ap']:.3f}, {found['cpu']:.0f} s of CPU time", flush=True)
    return found


def cpu_seconds() -> float:
    """Returns the CPU time of the processes that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def table(chosen: dict[str, tuple[list[str], str]], found: dict[str, dict[int, dict]]) -> str:
    """Returns the table of what is done; found: {recipe: {seed: what run_once returned}}."""
    lines = ["| recipe | seeds | mask AP | difference | CPU time |", "|---|---|---|---|---|"]
    for name, (_, other) in chosen.items():
        mine, theirs = found.get(name, {}), found.get(other, {})
        if not mine:
            continue
        both = sorted(mine.keys() & theirs.keys())
        gain = f"{mean(mine[s]['ap'] - theirs[s]['ap'] for s in both):+.3f}" if both and name != other else ""
        whole = [s for s in both if not (mine[s].get("resumed") or theirs[s].get("resumed"))]
        cost = f"{mean(mine[s]['cpu'] / theirs[s]['cpu'] for s in whole):.2f}" if whole else ""
        lines.append(f"| {name} | {len(mine)} | {mean(one['ap'] for one in mine.values()):.3f} | {gain} | {cost} |")
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> None:
    """Runs what is not done yet, seed by seed, and prints the table."""
    args = parse_args(argv)
    chosen, found = recipes(args.only, args.best), {}
    for seed in range(args.seeds):
        for name, (parts, _) in chosen.items():
            result = run_once(parts, seed, args)
            if result is not None:
                found.setdefault(name, {})[seed] = result
    print(table(chosen, found))


if __name__ == "__main__":
    sys.exit(run_command(main))
