"""A training step and a detection -> how many operators they dispatch, and how often the host waits for a result.

    python -m benchmarks launches              the table, beside torchvision's
    python -m benchmarks launches --places 20  and where most of ours come from

On a GPU each operator is a launch or two, and each wait leaves it idle. Counts do not depend on the machine. They are
taken on a CPU, on small images, with ours going the way that it goes on a GPU (`padded.CHEAP` empty): a training step
with its losses read at the end, and a detection before masks are pasted.
"""

import argparse
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks import torchvision_model
from benchmarks.harness.inputs import as_torchvision, photos
from network_files import create_model
from network_files.operators import padded
from train_utils.cli.command import run_command
from train_utils.cli.flags import number
from train_utils.cli.parser import Parser
from train_utils.run.optimization import Precision, build_optimizer

SMALL = {"min_size": 128, "max_size": 192, "anchor_sizes": (8, 16, 32, 64, 128)}
IMAGES = (1, 4, 8)
ROOT = Path(__file__).resolve().parents[2]
aten = torch.ops.aten
WAITING = {
    aten._local_scalar_dense, aten.item, aten.is_nonzero, aten.equal, aten.nonzero, aten.masked_select, aten._unique2,
    aten.unique_dim, aten.unique_consecutive, aten.bincount,
}  # fmt: skip


class Launches(TorchDispatchMode):
    """Counts what runs under it, backward passes too.

    operators: dispatched ones; waits: of the host, for a value or a length that an operator must find out; places:
    what was counted where, "operator file:line function" or "wait ...", if they are asked for.
    """

    def __init__(self, with_places: bool = False) -> None:
        super().__init__()
        self.operators, self.waits, self.with_places = 0, 0, with_places
        self.places: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        """Counts an operator, and runs it."""
        packet, kwargs = func.overloadpacket, kwargs or {}
        self.operators += 1
        self._note("operator")
        if packet in WAITING or _has_unknown_length(packet, args, kwargs):
            self.wait(packet.__name__)
        return func(*args, **kwargs)

    def wait(self, what: str) -> None:
        """Counts a wait."""
        self.waits += 1
        self._note(f"wait {what}")

    def _note(self, what: str) -> None:
        if self.with_places:
            frame = sys._getframe(1)
            while frame.f_code.co_filename == __file__ or not frame.f_code.co_filename.startswith(str(ROOT)):
                frame = frame.f_back
            path = Path(frame.f_code.co_filename).relative_to(ROOT)
            self.places[f"{what} {path}:{frame.f_lineno} {frame.f_code.co_name}"] += 1


def _has_unknown_length(packet: Any, args: tuple, kwargs: dict) -> bool:
    if packet in (aten.index, aten.index_put, aten.index_put_, aten._index_put_impl_):
        return any(isinstance(index, Tensor) and index.dtype in (torch.bool, torch.uint8) for index in args[1])
    return packet is aten.repeat_interleave and kwargs.get("output_size") is None


@contextmanager
def counting(with_places: bool = False) -> Iterator[Launches]:
    """Counts what runs inside, with waits dear; `Tensor.tolist` is a wait too, but dispatches nothing."""
    launches, tolist = Launches(with_places), Tensor.tolist

    def counted(tensor: Tensor) -> Any:
        launches.wait("tolist")
        return tolist(tensor)

    with mock.patch.object(padded, "CHEAP", ()), mock.patch.object(Tensor, "tolist", counted), launches:
        yield launches


def training_step(model: nn.Module, images: list[Tensor], targets: list[dict]) -> Callable[[], None]:
    """Returns a training step of a model: forward, backward, SGD, and the losses read at its end."""
    optimizer, precision = build_optimizer(model.train(), "sgd", 1e-9), Precision(torch.device("cpu"))

    def run() -> None:
        losses = model(images, targets)
        precision.backward(sum(losses.values()))
        precision.step(optimizer)
        torch.stack([loss.detach() for loss in losses.values()]).tolist()

    return run


def detection(model: nn.Module, images: list[Tensor], ours: bool) -> Callable[[], None]:
    """Returns a detection of a model before its masks are pasted."""
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


def counted(run: Callable[[], None], with_places: bool = False) -> Launches:
    """Returns what a second run dispatches: the first may make what is kept."""
    run()
    with counting(with_places) as launches:
        run()
    return launches


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
    own_images = [image for image, _ in pairs]
    own_targets = [{**target, "sample_seed": i} for i, (_, target) in enumerate(pairs)]
    print("| operators / host waits | images | ours | torchvision |\n|---|---|---|---|", flush=True)
    for what in ("training step", "detection before pasting"):
        for n in args.images:
            if what == "training step":
                runs = (
                    training_step(ours, own_images[:n], own_targets[:n]),
                    training_step(theirs, images[:n], targets[:n]),
                )
            else:
                runs = detection(ours, own_images[:n], True), detection(theirs, images[:n], False)
            found = [counted(run, bool(args.places) and run is runs[0]) for run in runs]
            print(f"| {what} | {n} | {' | '.join(f'{f.operators:,} / {f.waits}' for f in found)} |", flush=True)
            for place, count in found[0].places.most_common(args.places):
                print(f"    {count:5} {place}")


if __name__ == "__main__":
    sys.exit(run_command(main))
