"""Where the CPU's time goes in a prediction and in a training step of a ResNet-50: seconds by kind of work.

    python -m benchmarks profile                  640x480, an image, and a step of one
    python -m benchmarks profile --size 480 640 --images 2

One thread, after a pass that warms up. Each operator's own time counts for the function of ours that it runs in, else
for its kind. The backward pass is outside of nearly all of them: its operators count by their kinds.
"""

import argparse
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import torch
from torch.autograd.profiler_util import FunctionEvent

from backbone import convolution
from benchmarks.harness import Settings, describe_machine
from benchmarks.models import Case, prepare_inference, prepare_training
from network_files import mask_rcnn, matching, roi_heads, rpn
from network_files.heads import detections
from train_utils.cli.command import run_command
from train_utils.cli.flags import number
from train_utils.cli.parser import Parser

# what is told apart -> the functions of it
PARTS = {
    "convolutions": [(convolution, "weight_gradient")],
    "NMS": [(rpn, "nms_of_rows"), (detections, "nms_of_rows")],
    "RoIAlign": [(roi_heads, "roi_align")],
    "matching, sampling": [(matching, "match_boxes"), (matching, "sample_balanced")],
    "mask targets": [(roi_heads, "mask_targets")],
    "pasting": [(mask_rcnn, "paste_masks")],
}
# what is told apart of the rest -> parts of its operators' names
KINDS = {
    "convolutions": ("conv",),
    "linear layers": ("mm",),
    "RoIAlign": ("embedding_bag",),
    "optimiser": ("fused_sgd", "norm"),
    "pooling, upsampling": ("pool", "upsample"),
    "ReLU": ("relu", "clamp_min", "threshold"),
    "copies, new memory": ("copy", "cat", "clone", "empty", "zero", "fill", "index", "resize"),
    "sums, products": ("add", "mul", "sub", "div"),
}
REST = "the rest"


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Reads the command line."""
    parser = Parser(prog="python -m benchmarks profile", description=__doc__)
    size = number(int, least=1)
    parser.add_argument("--size", type=size, nargs=2, default=(480, 640), metavar=("H", "W"), help="of the images")
    parser.add_argument("--min-size", type=size, default=480, help="of the resized images (default: 480)")
    parser.add_argument("--images", type=size, default=1, help="in a batch (default: 1)")
    parser.add_argument("--backbone", default="resnet50")
    return parser.parse_args(argv)


@contextmanager
def parts_named() -> Iterator[None]:
    """Makes the profiler see PARTS in a block."""
    with ExitStack() as patches:
        for name, places in PARTS.items():
            for module, function in places:
                patches.enter_context(mock.patch.object(module, function, _named(getattr(module, function), name)))
        yield


def _named(function: Callable, name: str) -> Callable:
    def named(*args: Any, **kwargs: Any) -> Any:
        with torch.profiler.record_function(name):
            return function(*args, **kwargs)

    return named


def kind_of(event: FunctionEvent) -> str:
    """Returns what an operator's own time counts for."""
    parent = event
    while parent is not None:
        if parent.name in PARTS:
            return parent.name
        parent = parent.cpu_parent
    return next((kind for kind, parts in KINDS.items() if any(part in event.name for part in parts)), REST)


def seconds_by_kind(run: Callable[[], object]) -> Counter[str]:
    """Returns the seconds of each kind of work in a second call: the first warms up."""
    run()
    with parts_named(), torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as seen:
        run()
    found: Counter[str] = Counter()
    for event in seen.events():
        found[kind_of(event)] += event.self_cpu_time_total / 1e6
    return found


def main(argv: list[str] | None = None) -> None:
    """Prints the table."""
    args = parse_args(argv)
    torch.set_num_threads(1)
    settings = Settings(torch.device("cpu"), None, 1)
    options = {"min_size": args.min_size, "max_size": args.min_size * 5 // 3}
    case = Case(args.images, tuple(args.size), backbone=args.backbone, options=options)
    print(f"{describe_machine(settings.device)}; {args.backbone}, {args.images} image(s)\n", flush=True)
    columns = [seconds_by_kind(prepare(settings, case)[0]) for prepare in (prepare_inference, prepare_training)]
    totals = [sum(column.values()) for column in columns]
    print("| where the time goes | prediction | training step |\n|---|---|---|")
    print(f"| all | {' | '.join(f'{total:.2f} s' for total in totals)} |")
    for kind in sorted(set().union(*columns), key=lambda kind: -columns[1][kind]):
        shares = (f"{column[kind] / total:.1%}" for column, total in zip(columns, totals, strict=True))
        print(f"| {kind} | {' | '.join(shares)} |")


if __name__ == "__main__":
    sys.exit(run_command(main))
