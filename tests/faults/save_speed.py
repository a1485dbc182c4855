"""How long a durable save and a verified load take, beside torch.save and torch.load of the same dict, by turns.

The long version's checkpoint is that of a ResNet-50 for COCO with SGD's momentum. Each file is in the page cache
when it is loaded.
"""

import statistics
import time
from pathlib import Path

import torch

from network_files import create_model
from tests.faults import Outcome
from tests.tiny_model import tiny
from train_utils.checkpoints.checkpoint import load_file, save_checkpoint

WHAT = "seconds of a durable save and a verified load, beside torch's own"


def checkpoint(full: bool) -> dict:
    model = create_model(91, "resnet50") if full else tiny(91, backbone_width=8)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.01, momentum=0.9)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    return {
        "format_version": 1,
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "epoch": 0,
        "config": model.config.to_dict(),
        "label_map": {},
    }


def run(full: bool, folder: Path) -> Outcome:
    content, ours, torchs = checkpoint(full), folder / "ours.pth", folder / "torchs.pth"
    actions = {
        "save": lambda: save_checkpoint(ours, content),
        "torch.save": lambda: torch.save(content, torchs),
        "load": lambda: load_file(ours),
        "torch.load": lambda: torch.load(torchs, map_location="cpu", weights_only=True),
    }
    seconds = {name: [] for name in actions}
    for _ in range(5 if full else 1):
        for name, action in actions.items():
            start = time.perf_counter()
            loaded = action()
            seconds[name].append(time.perf_counter() - start)
            if loaded is not None and not torch.equal(first(loaded), first(content)):
                return Outcome(0, 1, [f"{name} gave other weights"])
            del loaded
    note = ", ".join(f"{name} {statistics.median(values):.2f} s" for name, values in seconds.items())
    return Outcome(1, 1, [], f"{ours.stat().st_size / 1e6:.0f} MB, median of {len(values_of(seconds))}: {note}")


def first(content: dict) -> torch.Tensor:
    return next(iter(content["model"].values()))


def values_of(seconds: dict) -> list:
    return next(iter(seconds.values()))
