"""Measures images a second of two or more trained models on the same images, by turns: detection, and training steps.

    python -m benchmarks.compare_models W1.pth W2.pth --data-path DATA

Takes the first --images of the val split, uint8 as read; detection one by one up to cropped masks, a training step
(forward, backward, SGD) on batches of --batch-size. Prints medians over --turns, and each model's ratio to the first.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Sequence

import torch

from network_files import MaskRCNN
from train_utils.checkpoints.checkpoint import model_from_checkpoint
from train_utils.cli.command import run_command
from train_utils.cli.device import pick_device
from train_utils.cli.flags import number
from train_utils.cli.parser import Parser
from train_utils.data.loaders import Batch, sample_seed
from train_utils.data.opening import LAYOUTS, open_data
from train_utils.run.optimization import Precision, build_optimizer


def parse_args(words: list[str] | None = None) -> argparse.Namespace:
    """Reads the command line."""
    parser = Parser(description=__doc__)
    parser.add_argument("weights", nargs="+", metavar="W", help="checkpoints")
    parser.add_argument("--data-path", required=True, metavar="DATA")
    parser.add_argument("--dataset", choices=LAYOUTS, default="auto")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--images", type=number(int, least=1), default=8)
    parser.add_argument("--batch-size", type=number(int, least=1), default=4)
    parser.add_argument("--turns", type=number(int, least=1), default=5)
    return parser.parse_args(words)


def detect(model: MaskRCNN, batches: Sequence[tuple[list, list]]) -> None:
    """Detects on all images, one by one."""
    model.eval()
    with torch.inference_mode():
        for images, _ in batches:
            for image in images:
                model([image], paste_masks=False)


def train(
    model: MaskRCNN, batches: Sequence[tuple[list, list]], optimizer: torch.optim.Optimizer, precision: Precision
) -> None:
    """Takes a training step on each batch."""
    model.train()
    for images, targets in batches:
        precision.backward(sum(model(images, targets).values()))
        precision.step(optimizer)


def main(words: list[str] | None = None) -> None:
    """Prints the rates of each model."""
    args = parse_args(words)
    device = pick_device(args.device)
    data = open_data(args.data_path, dataset=args.dataset, split="val").val
    samples = [data[i] for i in range(min(args.images, len(data)))]
    batches = []
    for start in range(0, len(samples), args.batch_size):
        images, targets = zip(*samples[start : start + args.batch_size], strict=True)
        seeded = [{**target, "sample_seed": sample_seed(0, 0, start + i)} for i, target in enumerate(targets)]
        batches.append(Batch(list(images), seeded, [], []).to(device))
    seconds: dict = {}
    models = {path: model_from_checkpoint(path, device)[0] for path in args.weights}
    for turn in range(args.turns + 1):
        for path, model in models.items():
            # so small a rate that the weights stay what they are
            tools = build_optimizer(model, "sgd", 1e-9), Precision(device)
            for what, run in (("detection", detect), ("training", lambda *a, own=tools: train(*a, *own))):
                start = time.perf_counter()
                run(model, batches)
                if device.type == "cuda":
                    torch.cuda.synchronize(device)
                if turn:  # the first one warms up
                    seconds.setdefault((what, path), []).append(time.perf_counter() - start)
    for what in ("detection", "training"):
        first = statistics.median(seconds[what, args.weights[0]])
        for path in args.weights:
            median = statistics.median(seconds[what, path])
            print(f"{what}: {path}: {len(samples) / median:.2f} images/s, {first / median:.2f} times the first")


if __name__ == "__main__":
    sys.exit(run_command(main))
