"""`--lr auto`: the rate rises over a few steps until the loss stops falling (Smith 2017, "Cyclical Learning Rates").

Nothing of the test stays: weights, running means, momentum and scale are as before it. Its samples are those of epochs
-1, -2, ..., so it is a function of the seed, as the run is.
"""

import copy
import itertools
import math
from collections.abc import Iterator

import torch
from tqdm import tqdm

from train_utils.data.loaders import TrainLoader
from train_utils.processes.distributed import World
from train_utils.run.optimization import TrainState
from train_utils.run.step import NonFiniteLoss, StepRecord, train_one_epoch

STEPS = 40
LOWEST, HIGHEST = 1 / 16, 16.0  # times the usual rate, between which it rises evenly in its logarithm
SMOOTHED = 0.8  # share of what came before in the running mean of the losses
BURST = 2.0  # times the lowest mean, at which the test ends
BACK = 4.0  # the rate of the lowest mean is about to burst: how far below it training is safe
BOUND = 8.0  # times the usual rate or below, that the choice may reach


def range_test(state: TrainState, loader: TrainLoader, world: World, usual: float) -> tuple[float, str]:
    """Returns a rate, and a line about it; the state is as before, but for its schedule, which the caller sets.

    usual: the rate that a run without --lr has.
    """
    model = {name: value.clone() for name, value in state.model.state_dict().items()}
    scaler = copy.deepcopy(state.precision.scaler.state_dict()) if state.precision.scaler else None
    ema, state.ema = state.ema, None
    set_rate(state, usual)
    growth = (HIGHEST / LOWEST) ** (1 / (STEPS - 1))
    state.schedule = torch.optim.lr_scheduler.LambdaLR(state.optimizer, lambda step: LOWEST * growth**step)
    bar = {"total": STEPS, "desc": "--lr auto", "unit": "step", "leave": False}
    steps = itertools.islice(_means(state, loader, world), STEPS)
    found = list(tqdm(steps, **bar, disable=None if world.is_main else True))  # (rate, mean loss)

    state.model.load_state_dict(model)
    state.optimizer.zero_grad()
    state.optimizer.state.clear()
    state.ema = ema
    if scaler:
        state.precision.scaler.load_state_dict(scaler)
    if not found:
        return usual, f"learning rate: {usual:g}, the usual one: in the test of --lr auto no loss was finite"
    best = min(found, key=lambda pair: pair[1])
    rate = float(f"{min(max(best[0] / BACK, usual / BOUND), usual * BOUND):.2g}")
    return rate, (
        f"learning rate: {rate:g} (auto): in {len(found)} steps up to {found[-1][0]:.2g} the loss was lowest, "
        f"{best[1]:.3g}, at {best[0]:.2g}; the usual one is {usual:g}"
    )


def set_rate(state: TrainState, rate: float) -> None:
    """Gives the optimiser a rate that a new schedule multiplies."""
    for group in state.optimizer.param_groups:
        group["lr"] = group["initial_lr"] = rate


def _means(state: TrainState, loader: TrainLoader, world: World) -> Iterator[tuple[float, float]]:
    """Yields the rate and the running mean of the loss of each step, until the mean bursts."""
    mean, weight, lowest = 0.0, 0.0, math.inf
    try:
        for record in _steps(state, loader, world):
            if record.losses is None:
                continue
            mean = SMOOTHED * mean + (1 - SMOOTHED) * sum(record.losses.values())
            weight = SMOOTHED * weight + 1 - SMOOTHED
            yield record.lr, mean / weight
            lowest = min(lowest, mean / weight)
            if mean / weight > BURST * lowest:
                return
    except NonFiniteLoss:
        return


def _steps(state: TrainState, loader: TrainLoader, world: World) -> Iterator[StepRecord]:
    """Yields steps over epochs -1, -2, ... for ever."""
    for epoch in itertools.count(1):
        yield from train_one_epoch(state, loader, world, -epoch)
