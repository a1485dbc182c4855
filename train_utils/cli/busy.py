"""How busy the machine is, and what torch's threads were told -> a line on what helps, where something does."""

import os
import sys

import torch

from backbone.waiting import chosen_by_user
from train_utils.processes.distributed import World

HELPS = "OMP_WAIT_POLICY=PASSIVE"  # measured by benchmarks/machine/busy.py
MANY = 20  # images from which on predicting them takes so long that the line is worth reading
MARGIN = 1.0  # processes that wait for each core, from which on the machine is called busy


def busy_line(device: torch.device) -> str | None:
    """Returns what to say where a CPU's threads will wait for each other in vain; None for a quiet machine.

    Threads of OpenMP spin while they wait. Where other processes want the cores, those that wait keep them from those
    that are waited for. One who has set how they wait, or has one thread, is told nothing.
    """
    threads, cores = torch.get_num_threads(), os.cpu_count() or 1
    if device.type != "cpu" or threads == 1 or chosen_by_user(os.environ):
        return None
    if not hasattr(os, "getloadavg"):  # Windows
        return None
    load = os.getloadavg()[0]
    if load <= (1 + MARGIN) * cores:
        return None
    return (
        f"this machine is busy (load average {load:.1f}, {cores} cores): {threads} threads here wait for each other "
        f"for long; {HELPS} before the command helps, a quiet machine is faster without"
    )


def say_if_busy(world: World, images: int | None = None) -> None:
    """Prints `busy_line` to stderr, on the main process, before work that takes long.

    images: to be predicted, of which few take no time to speak of; None: it takes long anyway, as training.
    """
    is_long = images is None or images >= MANY
    line = busy_line(world.device) if world.is_main and is_long else None
    if line:
        print(line, file=sys.stderr, flush=True)
