"""A training step and a detection -> how many operators they dispatch, and how often the host waits for a result.

    python -m benchmarks launches              the table, beside torchvision's
    python -m benchmarks launches --places 20  and where most of ours come from

On a GPU each operator is a launch or two, and each wait leaves it idle. Counts do not depend on the machine. They are
taken on a device that is not there (`benchmarks/device/pretended.py`), on small images: one step of the training loop
(torchvision's: forward, backward, SGD, losses read), and a detection before masks are pasted.
"""

import argparse
import sys
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from benchmarks import torchvision_model
from benchmarks.device.pretended import DEVICE, Pretended, to_device
from benchmarks.harness.inputs import as_torchvision, photos
from network_files import create_model
from train_utils.cli.command import run_command
from train_utils.cli.flags import number
from train_utils.cli.parser import Parser
from train_utils.data.loaders import Batch
from train_utils.processes.distributed import World
from train_utils.run.optimization import Precision, TrainState, build_optimizer, build_schedule
from train_utils.run.step import train_one_epoch

SMALL = {"min_size": 128, "max_size": 192, "anchor_sizes": (8, 16, 32, 64, 128)}
IMAGES = (1, 4, 8)
STEPS = 10  # of the loop that is begun


class Repeated:
    """A loader of one batch again and again."""

    steps_per_epoch, accumulate_steps = STEPS, 1

    def __init__(self, images: list[Tensor], targets: list[dict]) -> None:
        self.batch = Batch(images, targets, list(range(len(images))), [])

    def epoch(self, epoch: int, first_step: int = 0) -> Iterator[Batch]:
        """Yields it."""
        return iter([self.batch] * STEPS)


def loop_step(model: nn.Module, images: list[Tensor], targets: list[dict]) -> Callable[[], object]:
    """Returns what does a step of the training loop: images and targets of the host, a model on the device."""
    optimizer = build_optimizer(model.train(), "sgd", 1e-9)
    schedule = build_schedule(optimizer, total_steps=STEPS, warmup_steps=2)
    state = TrainState(model, model, optimizer, schedule, Precision(DEVICE))
    steps = train_one_epoch(state, Repeated(images, targets), World.single(DEVICE), 0)
    next(steps)  # it makes the momentum, and its losses are read at once
    return steps.__next__


def training_step(model: nn.Module, images: list[Tensor], targets: list[dict]) -> Callable[[], None]:
    """Returns a training step as torchvision's reference does it, of images and targets on the device."""
    optimizer = build_optimizer(model.train(), "sgd", 1e-9)

    def run() -> None:
        losses = model(images, targets)
        sum(losses.values()).backward()
        optimizer.step()
        optimizer.zero_grad()
        torch.stack([loss.detach() for loss in losses.values()]).tolist()

    return run


def detection(model: nn.Module, images: list[Tensor], ours: bool) -> Callable[[], None]:
    """Returns a detection of a model before its masks are pasted, of images on the device."""
    model.eval()

    @torch.no_grad()
    def run() -> None:
        if ours:
            model(images, paste_masks=False)
            return
        batch, _ = model.transform(images)
        maps = model.backbone(batch.tensors)
        proposals, _ = model.rpn(batch, maps)
        model.roi_heads(maps, proposals, batch.image_sizes)

    return run


def counted(device: Pretended, run: Callable[[], object]) -> tuple[int, int]:
    """Returns the operators and waits of a second run: the first may make what is kept."""
    run()
    device.operators, device.waits = 0, 0
    device.places.clear()
    run()
    return device.operators, device.waits


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Reads the command line."""
    parser = Parser(prog="python -m benchmarks launches", description=__doc__)
    parser.add_argument("--images", type=number(int, least=1), nargs="+", default=IMAGES, help="in a batch")
    parser.add_argument(
        "--places", type=number(int, least=1), help="how many places in our code to show (default: none)"
    )
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    """Prints the table."""
    args = parse_args(argv)
    pairs = photos(None, max(args.images), (96, 128))
    options = {"backbone": "resnet18", **SMALL}
    images, targets = as_torchvision(pairs, torch.device("cpu"))
    state = torchvision_model.live_state([(images[0], targets[0])], **options, trainable=3)
    ours, theirs = create_model(91, **options, trainable_layers=3), torchvision_model.build(**options, trainable=3)
    for model in (ours, theirs):
        model.load_state_dict(state)
    print("| operators / host waits | images | ours | torchvision |\n|---|---|---|---|", flush=True)
    with Pretended(bool(args.places)) as device:
        ours, theirs = to_device(ours), to_device(theirs)
        own_images, images, targets = (to_device(list(v)) for v in ([image for image, _ in pairs], images, targets))
        for what in ("training step", "detection before pasting"):
            for n in args.images:
                if what == "training step":
                    own = [{**target, "sample_seed": i} for i, (_, target) in enumerate(pairs[:n])]
                    runs = (
                        loop_step(ours, [image for image, _ in pairs[:n]], own),
                        training_step(theirs, images[:n], targets[:n]),
                    )
                else:
                    runs = detection(ours, own_images[:n], True), detection(theirs, images[:n], False)
                found, places = [], None
                for run in runs:
                    found.append("{:,} / {}".format(*counted(device, run)))
                    places = places or device.places.most_common(args.places)
                print(f"| {what} | {n} | {' | '.join(found)} |", flush=True)
                for place, count in places if args.places else ():
                    print(f"    {count:5} {place}")


if __name__ == "__main__":
    sys.exit(run_command(main))
