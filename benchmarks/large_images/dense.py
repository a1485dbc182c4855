"""Measures what many objects in an image cost: a training step by their number, NMS, and masks to RLE.

    python -m benchmarks.large_images.dense                            a table, some two minutes
    python -m benchmarks.large_images.dense --objects 10 3000 --size 800

The step is of one image of --size pixels a side on a narrow ResNet-18-FPN with random weights, so that its convolutions
do not hide what objects cost, and the usual numbers of samples; each number of objects has a process of its own.
Seconds are CPU time (medians), memory is the step's peak beyond what the model took. NMS is within 80 classes on 3,000
boxes; masks are 3,000 of 28 x 28 cells in an image of 1333x800, pasted and written as COCO results.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.harness import in_fresh_process, release_freed_memory, resident_mib
from network_files import create_model
from network_files.operators.boxes import HALF_PIXEL
from network_files.operators.cropped_masks import CroppedMasks
from network_files.operators.nms import batched_nms
from train_utils.cli.command import run_command
from train_utils.cli.flags import number
from train_utils.cli.parser import Parser
from train_utils.data.labels import LabelMap
from train_utils.evaluation.numbers import to_coco_results
from train_utils.io.memory import returning_freed_memory
from train_utils.run.optimization import build_optimizer

CLASSES = 80
NARROW = {"backbone_width": 16, "fpn_channels": 32, "box_head_channels": 128, "mask_head_channels": 32}
MANY = 3000  # boxes, and masks


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Reads the command line."""
    parser = Parser(description=__doc__)
    parser.add_argument("--objects", type=number(int, least=1), nargs="+", default=[10, 100, 1000, 3000])
    parser.add_argument("--size", type=number(int, least=64), default=384)
    parser.add_argument("--repeats", type=number(int, least=1), default=3)
    return parser.parse_args(argv)


def scattered(count: int, size: tuple[int, int], sides: tuple[int, int]) -> Tensor:
    """Returns boxes int64 [count, 4] of sides between these two at random places of an image of `size` (H, W)."""
    generator = torch.Generator().manual_seed(0)
    side = torch.randint(*sides, (count, 2), generator=generator)
    corner = (torch.rand(count, 2, generator=generator) * (torch.tensor(size[::-1]) - side)).long()
    return torch.cat((corner, corner + side), 1)


def target_of(count: int, size: int) -> dict:
    """Returns a target of ellipses of 8 to 40 pixels a side."""
    boxes, crops = scattered(count, (size, size), (8, 40)), []
    for x1, y1, x2, y2 in boxes.tolist():
        y, x = torch.meshgrid(torch.linspace(-1, 1, y2 - y1), torch.linspace(-1, 1, x2 - x1), indexing="ij")
        crops.append(x**2 + y**2 <= 1)
    labels = torch.arange(count) % CLASSES + 1
    masks = CroppedMasks.from_crops(crops, boxes, (size, size))
    return {"boxes": boxes.float(), "labels": labels, "masks": masks, "sample_seed": 0}


def seconds_of(run: Callable[[], Any], repeats: int) -> float:
    """Returns the median of a call's CPU seconds, after one to warm up."""
    run()
    seconds = []
    for _ in range(repeats):
        start = time.process_time()
        run()
        seconds.append(time.process_time() - start)
    return statistics.median(seconds)


def measure_step(objects: int, size: int, repeats: int, sender: Connection) -> None:
    """Sends (seconds, MiB) of a training step on an image of so many objects."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = create_model(CLASSES + 1, "resnet18", norm="batch", min_size=size, max_size=size, **NARROW).train()
    optimizer = build_optimizer(model, "sgd", 1e-9)
    image, target = torch.randint(0, 256, (3, size, size), dtype=torch.uint8), target_of(objects, size)

    @returning_freed_memory()  # so that the peak is that of what lives at the same time
    def step() -> None:
        optimizer.zero_grad()
        sum(model([image], [target]).values()).backward()
        optimizer.step()

    seconds = seconds_of(step, repeats)
    optimizer.zero_grad()
    release_freed_memory()
    Path("/proc/self/clear_refs").write_text("5")  # Linux: the peak starts again from what is resident now
    before = resident_mib("VmRSS")
    step()
    sender.send((seconds, resident_mib("VmHWM") - before))


def detections(size: tuple[int, int]) -> dict[str, Tensor]:
    """Returns MANY detections of an image of `size` (H, W), their masks discs with soft borders."""
    y, x = torch.meshgrid(torch.linspace(-1, 1, 28), torch.linspace(-1, 1, 28), indexing="ij")
    probs = torch.sigmoid(8 * (0.9 - (x**2 + y**2).sqrt())).expand(MANY, 28, 28)
    labels = torch.arange(MANY) % CLASSES + 1
    scores = torch.linspace(1, 0.05, MANY)
    return {
        "boxes": scattered(MANY, size, (8, 120)).float(), "labels": labels, "scores": scores, "mask_probs": probs
    }  # fmt: skip


def main() -> int:
    """Prints the table."""
    args = parse_args()
    torch.set_num_threads(1)
    print("| objects | CPU s of a training step | MiB |\n|---|---|---|")
    for objects in args.objects:
        seconds, mib = in_fresh_process(measure_step, objects, args.size, args.repeats)
        print(f"| {objects:,} | {seconds:.2f} | {mib:.0f} |", flush=True)
    size, label_map = (800, 1333), LabelMap.from_names({i: f"class {i}" for i in range(1, CLASSES + 1)})
    found = detections(size)
    boxes = found["boxes"], found["scores"], found["labels"], 0.5
    print(f"NMS within classes, {MANY:,} boxes: {1e3 * seconds_of(lambda: batched_nms(*boxes), args.repeats):.1f} ms")
    results = seconds_of(lambda: to_coco_results([found], [1], [size], label_map, HALF_PIXEL), args.repeats)
    print(f"pasting and RLE of {MANY:,} masks: {results:.2f} s")
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
