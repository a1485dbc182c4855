"""Measures how long annotations of COCO's size take to open, beside pycocotools.

    python -m benchmarks annotations_first annotations_again --repeats 2    time and resident memory, 5 minutes
    python -m benchmarks.annotations                                        from 1,000 images to 118,287; workers

The data is drawn (`coco_size.py`) into maskrcnn_benchmarks/ of the system's folder for temporary files on first
use, 0.5 GB and a minute, and stays there. Its images are empty files.
"""

import contextlib
import gc
import io
import multiprocessing
import os
import shutil
import sys
import tempfile
import time
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch

from benchmarks import coco_size, harness
from benchmarks.harness import Benchmark, LeftOut, Settings, Sides, describe_machine, in_fresh_process, resident_mib
from train_utils.cli.command import run_command
from train_utils.cli.flags import number
from train_utils.cli.parser import Parser
from train_utils.data.loaders import TrainLoader
from train_utils.data.opening import open_data
from train_utils.data.options import LoaderOptions
from train_utils.processes.distributed import World

NEEDED = 2 * 2**30  # bytes of disk
COUNTS = (1_000, 10_000, coco_size.IMAGES)


def data_folder(images: int) -> Path:
    """Returns a folder in COCO's layout with that many training images and 50 for validation, drawn where missing."""
    place = Path(tempfile.gettempdir()) / "maskrcnn_benchmarks"
    folder = place / f"coco_{images}"
    if folder.is_dir():
        return folder
    place.mkdir(exist_ok=True)
    if shutil.disk_usage(place).free < NEEDED:
        raise LeftOut(f"less than 2 GiB are free in {place}")
    unfinished = Path(tempfile.mkdtemp(dir=place))
    for path, part in (
        (coco_size.write_train(unfinished, images), "train2017"),
        (coco_size.write_val(unfinished, 50, 1)[0], "val2017"),
    ):
        coco_size.write_image_files(path, unfinished / part)
    unfinished.rename(folder)
    return folder


def open_ours(folder: Path, cache: str) -> Any:
    """Opens the training data; cache: a folder, or "off"."""
    with patch.dict(os.environ, {"MASKRCNN_CACHE": cache}):
        return open_data(folder, split="train").train


def open_theirs(folder: Path) -> Any:
    """Opens the same with pycocotools."""
    from pycocotools.coco import COCO

    with contextlib.redirect_stdout(io.StringIO()):
        return COCO(str(folder / "annotations" / "instances_train2017.json"))


def prepare_opening(settings: Settings, again: bool) -> Sides:
    """Returns both openings; again: ours is from the cache, which is filled here."""
    folder = data_folder(coco_size.IMAGES)
    cache = str(folder / "cache") if again else "off"
    if again:
        open_ours(folder, cache)
        gc.collect()
    return partial(open_ours, folder, cache), partial(open_theirs, folder)


class Targets:
    """A data set's targets without its images: what a worker reads of the annotations."""

    def __init__(self, ds: Any) -> None:
        self.ds, self.sizes = ds, ds.sizes

    def __len__(self) -> int:
        return len(self.ds)

    def __getitem__(self, i: int) -> tuple[torch.Tensor, dict]:
        return torch.zeros(3, 1, 1, dtype=torch.uint8), self.ds.target(i)


def measure_opening(images: int, cache: str, sender: Connection) -> None:
    """Sends seconds, MiB kept and MiB at the peak of one opening in this fresh process."""
    folder = data_folder(images)
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts again
    before, start = resident_mib("VmRSS"), time.perf_counter()
    ds = open_ours(folder, cache)
    seconds = time.perf_counter() - start
    gc.collect()
    sender.send((len(ds), seconds, resident_mib("VmRSS") - before, resident_mib("VmHWM") - before))


def measure_workers(images: int, cache: str, workers: int, sender: Connection) -> None:
    """Sends each worker's private MiB after its first batch and after an epoch of targets."""
    ds = open_ours(data_folder(images), cache)
    loader = TrainLoader(Targets(ds), None, World.single("cpu"), LoaderOptions(8, workers=workers))
    batches = loader.epoch(0)
    next(batches)
    children = [child.pid for child in multiprocessing.active_children()]
    first = [private_mib(pid) for pid in children]
    start = time.perf_counter()
    objects = sum(len(target["labels"]) for batch in batches for target in batch.targets)
    sender.send((first, [private_mib(pid) for pid in children], objects, time.perf_counter() - start))


def private_mib(pid: int) -> float:
    """Returns the MiB of a process that it shares with no other and that no file holds (Linux)."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("Private_Dirty")) / 1024


def main(argv: list[str] | None = None) -> None:
    """Prints a table of openings, and what workers hold."""
    parser = Parser(description=__doc__)
    parser.add_argument("--images", type=number(int, least=1), nargs="+", default=COUNTS, help="sizes to open")
    parser.add_argument("--workers", type=number(int, least=0), default=2, help="loader workers; 0: no epoch")
    args = parser.parse_args(argv)
    print(describe_machine(torch.device("cpu")) + "\n")
    print("| images | opening | time | per 1,000 | memory kept | per 1,000 | peak |\n" + "|---" * 7 + "|")
    with tempfile.TemporaryDirectory() as cache:
        for images in args.images:
            data_folder(images)
            for what, place in (("no cache", "off"), ("first", cache), ("second", cache)):
                count, seconds, kept, peak = in_fresh_process(measure_opening, images, place)
                thousands = count / 1000
                print(
                    f"| {count} | {what} | {seconds:.2f} s | {seconds / thousands * 1e3:.0f} ms | {kept:.0f} MiB | "
                    f"{kept / thousands:.2f} MiB | {peak:.0f} MiB |",
                    flush=True,
                )
        for place in ("off", cache) if args.workers else ():
            first, last, objects, seconds = in_fresh_process(measure_workers, args.images[-1], place, args.workers)
            print(
                f"\n{'no cache' if place == 'off' else 'cache'}: an epoch of {objects} objects' targets by "
                f"{args.workers} workers, {seconds:.0f} s; private MiB of each after its first batch "
                f"{', '.join(f'{m:.1f}' for m in first)}, after the epoch {', '.join(f'{m:.1f}' for m in last)}"
            )


OPENINGS = {"first": "opening 118,287 images' annotations, no cache", "again": "the same, second opening"}
BENCHMARKS = [
    Benchmark(
        f"annotations_{name}",
        what,
        partial(prepare_opening, again=name == "again"),
        against="pycocotools",
        memory=harness.KEPT,
        takes_minutes=True,
    )
    for name, what in OPENINGS.items()
]

if __name__ == "__main__":
    sys.exit(run_command(main))
