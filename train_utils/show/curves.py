"""Draws the curves of a run as PNGs: each names what is drawn, its unit and its run, and marks the best value."""

import math
import textwrap
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from train_utils.io.files import atomic_file

BEST = {"marker": "*", "markersize": 15, "markeredgecolor": "black", "linestyle": "none"}
FEW = 50  # a line of fewer points has a mark at each
LONGEST = 100  # letters that fit in a line
SMOOTHED = 0.05  # the window of the running mean, as a share of all steps


def plot_loss_and_lr(
    path: str | Path,
    losses: Sequence[float],
    learning_rates: Sequence[float],
    steps_per_epoch: int,
    val: Mapping[int, float | None] | None = None,
    about: str = "",
    stride: int = 1,
) -> None:
    """Writes a PNG of the training loss and the learning rate, one value of each per `stride` steps.

    val: the validation losses {epoch: loss}, drawn at the epochs' ends; about: a line that says which run it is.
    """
    figure, (axes,) = _new_figure("Training loss and learning rate", about)
    steps = range(stride, stride * len(losses) + 1, stride)
    window = round(len(losses) * SMOOTHED)
    counted = "a step" if stride == 1 else f"{stride} steps"
    marker = "." if len(losses) < FEW else None  # a line through one point would not be seen
    light = {"alpha": 0.35 if window > 1 else 1, "linewidth": 1}
    lines = axes.plot(steps, losses, color="tab:red", marker=marker, label=f"training loss of {counted}", **light)
    if window > 1:
        lines += axes.plot(
            steps, running_mean(losses, window), color="tab:red", label=f"mean of {window * stride} steps"
        )
    known = {epoch: loss for epoch, loss in (val or {}).items() if loss is not None and math.isfinite(loss)}
    if known:
        at = [(epoch + 1) * steps_per_epoch for epoch in known]
        lines += axes.plot(at, list(known.values()), color="tab:green", marker="o", label="validation loss")
        lines += _mark_best(axes, at, list(known.values()), list(known), min, "lowest validation loss")
    axes.set(xlabel="optimiser step", ylabel="loss (sum of the five, no unit)")
    _from_zero(axes)
    _whole_numbers(axes)
    epochs = axes.secondary_xaxis("top", functions=(lambda x: x / steps_per_epoch, lambda x: x * steps_per_epoch))
    epochs.set_xlabel("epochs done")
    _whole_numbers(epochs)
    rates = axes.twinx()
    lines += rates.plot(steps, learning_rates, color="tab:blue", linewidth=1, marker=marker, label="learning rate")
    rates.set_ylabel("learning rate (per step)")
    _from_zero(rates)
    figure.legend(handles=lines, loc="outside lower center", ncols=3)
    _save(figure, path)


def plot_average_precision(
    path: str | Path, epochs: Sequence[int], numbers: Mapping[str, Sequence[float]], best: str, about: str = ""
) -> None:
    """Writes a PNG of average precisions in 0..1 after each of the epochs.

    numbers: name -> values, -1 where one is absent, which leaves a gap; best: the name whose best epoch is marked.
    """
    figure, (axes,) = _new_figure("Average precision on the validation images", about)
    for i, (name, values) in enumerate(numbers.items()):
        values = [value if value >= 0 else math.nan for value in values]
        axes.plot(epochs, values, color=f"C{i // 2}", linestyle=("-", "--")[i % 2], marker=".", label=name)
        if name == best:
            _mark_best(axes, epochs, values, epochs, max, f"best {name}")
    axes.set(xlabel="epoch (the first is 0)", ylabel="average precision (0 to 1)")
    _from_zero(axes)
    _whole_numbers(axes)
    figure.legend(loc="outside lower center", ncols=3)
    _save(figure, path)


def plot_losses(
    path: str | Path,
    names: Sequence[str],
    epochs: Sequence[int],
    train: Sequence[dict],
    val: Sequence[dict],
    about: str = "",
) -> None:
    """Writes a PNG of 3 x 2 plots: the sum and the five losses (`names`) over the epochs, in training and validation.

    train, val: {name: mean over the epoch} of each epoch; what an epoch lacks, or has as None, leaves a gap. The
    lowest validation loss of each is marked.
    """
    figure, plots = _new_figure("Losses, means over each epoch", about, 3, 2)
    for plot, name in zip(plots, ("sum of the losses", *names), strict=True):
        for losses, label, color in ((train, "training", "tab:red"), (val, "validation", "tab:blue")):
            parts = names if plot is plots[0] else [name]
            known = [[epoch.get(part) for part in parts] for epoch in losses]
            values = [math.nan if None in some else sum(some) for some in known]
            plot.plot(epochs, values, color=color, marker=".", label=label)
            if losses is val:
                _mark_best(plot, epochs, values, epochs, min, "lowest validation loss", brief=True)
        plot.set(xlabel="epoch (the first is 0)", ylabel="loss (no unit)", title=name)
        _from_zero(plot)
        _whole_numbers(plot)
    figure.legend(*plots[0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    _save(figure, path)


def running_mean(values: Sequence[float], window: int) -> list[float]:
    """Returns the mean of each value and the window - 1 before it; NaN is left out."""
    known = np.isfinite(values)
    sums, counts = (np.cumsum(np.concatenate(([0], part))) for part in (np.where(known, values, 0), known))
    starts = np.maximum(np.arange(len(values)) + 1 - window, 0)
    sums, counts = sums[1:] - sums[starts], counts[1:] - counts[starts]
    return np.divide(sums, counts, out=np.full(len(values), math.nan), where=counts > 0).tolist()


def _mark_best(
    plot: Any,
    x: Sequence[float],
    values: Sequence[float],
    epochs: Sequence[int],
    choose: Callable,
    what: str,
    brief: bool = False,
) -> list:
    """Draws a star at the best value, the first of equal ones, and names it in the legend (brief: beside the star)."""
    known = [i for i, value in enumerate(values) if math.isfinite(value)]
    if not known:
        return []
    best = choose(known, key=values.__getitem__)
    number = f"{values[best]:.3f}, epoch {epochs[best]}"
    if brief:
        plot.annotate(
            number, (x[best], values[best]), textcoords="offset points", xytext=(0, -18), ha="center", fontsize=8
        )
    label = what if brief else f"{what}: {number}"
    return plot.plot([x[best]], [values[best]], color="gold", label=label, **BEST)


def _whole_numbers(plot: Any) -> None:
    plot.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)  # also of one epoch, or one step


def _from_zero(plot: Any) -> None:
    """Starts the y axis at 0, and leaves room above for marks."""
    plot.set_ylim(0, plot.get_ylim()[1] * 1.05)


def _new_figure(title: str, about: str, rows: int = 1, columns: int = 1) -> tuple[Any, list]:
    """Returns a figure and its plots."""
    # Imported here, as matplotlib is slow to load. A Figure without pyplot needs no display and leaves no state.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5.4) if rows == 1 else (10, 11), dpi=120, layout="constrained")
    figure.suptitle("\n".join([title, *textwrap.wrap(about, LONGEST)]), fontsize=11, parse_math=False)
    plots = list(figure.subplots(rows, columns, squeeze=False).flat)
    for plot in plots:
        plot.grid(alpha=0.3)
    return figure, plots


def _save(figure: Any, path: str | Path) -> None:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # a letter of the run's name is a box then
        with atomic_file(path) as file:
            figure.savefig(file)
