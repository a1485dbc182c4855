"""--device, and what torchrun says -> the device that a command computes on, and the processes that share its work."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from backbone.errors import InputError
from train_utils.io.plain_text import counted
from train_utils.processes.distributed import TIMEOUT, World

PATIENCE = 7 * 24 * 3600.0  # seconds that a process waits for another's share, which may be a long video


def pick_device(name: str = "auto") -> torch.device:
    """Returns the device of `auto` (a GPU where there is one), `cpu`, `cuda` or `cuda:i`; else InputError."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    kind, _, index = name.partition(":")
    if kind not in ("cpu", "cuda") or (":" in name and not (kind == "cuda" and index.isdecimal())):
        raise InputError(f"--device {name}: give auto, cpu, cuda or cuda:0, cuda:1, ...")
    if kind == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if count == 0:
            raise InputError(f"--device {name}: torch sees no CUDA GPU here; give --device cpu")
        if index and int(index) >= count:
            raise InputError(f"--device {name}: torch sees {counted(count, 'GPU')}, up to cuda:{count - 1}")
    return torch.device(name)


@contextmanager
def shared_world(device: str, advice: str) -> Iterator[World]:
    """Joins the processes that torchrun started for a command; without it the world is of one process.

    advice: what helps when a process is lost. Raises InputError as `pick_device`.
    """
    if "RANK" in os.environ and int(os.environ.get("WORLD_SIZE", 1)) > 1:
        world = World.from_environment(device, PATIENCE, advice, TIMEOUT)
    else:
        world = World.single(pick_device(device))
    try:
        yield world
    finally:
        world.close()
