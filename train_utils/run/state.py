"""What a run knows between two steps: into a checkpoint, and back. A resumed run needs no more."""

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch

from backbone.errors import InputError
from train_utils.checkpoints.checkpoint import FORMAT_VERSION
from train_utils.data.labels import LabelMap
from train_utils.io.memory import first_line
from train_utils.run.optimization import TrainState
from train_utils.run.step import StepRecord

LONGEST = 2**13  # points of a curve, at which their number is halved; more than a drawing shows


@dataclass
class Progress:
    """How far a run has come."""

    steps_per_epoch: int
    step: int = 0  # optimiser steps done
    epochs_done: int = 0  # epochs trained and evaluated
    best_ap: float = -1.0  # of masks; -1 before the first, as in pycocotools
    epochs_since_best: int = 0
    lowest_val_loss: float = float("inf")
    global_batch: int = 0  # images per step
    world_size: int = 1
    data: str = ""  # held_out.fingerprint of the training images
    skipped: int = 0  # training images met that could not be read
    bad_batches: int = 0  # steps skipped because a loss was not finite
    overflows: int = 0  # steps skipped because the gradient overflowed float16
    meters: dict | None = None  # MetricLogger.state_dict() of an epoch in progress
    curve: list = field(default_factory=list)  # (mean loss, last lr) of each `curve_stride` steps, in order
    curve_stride: int = 1  # doubled as a run grows, so that its checkpoints do not
    curve_steps: int = 0  # steps in the curve

    def end_step(self, record: StepRecord) -> None:
        """Counts a finished step."""
        self.step = record.step + 1
        self.skipped += record.skipped
        self.bad_batches += record.bad is not None
        self.overflows += record.overflow
        loss = sum(record.losses.values()) if record.losses else float("nan")
        self._add_to_curve(loss, record.lr)

    def _add_to_curve(self, loss: float, lr: float) -> None:
        done = self.curve_steps % self.curve_stride  # steps in the last point, 0: it is complete
        if done:
            self.curve[-1] = (_mean(self.curve[-1][0], loss, done), lr)
        else:
            self.curve.append((loss, lr))
        self.curve_steps += 1
        self._bound_curve()

    def _bound_curve(self) -> None:
        """Joins two points each where there are LONGEST."""
        while len(self.curve) >= LONGEST and self.curve_steps >= LONGEST * self.curve_stride:
            left = self.curve[len(self.curve) // 2 * 2 :]
            pairs = zip(self.curve[::2], self.curve[1::2], strict=False)
            self.curve = [(_mean(one, two), lr) for (one, _), (two, lr) in pairs] + left
            self.curve_stride *= 2

    def end_epoch(self, epoch: int, mask_ap: float, val_loss: float) -> list[str]:
        """Counts an evaluated epoch; returns the names that its checkpoint gets beside its number.

        Where the AP is n/a (-1: no object), the validation loss says whether an epoch is better.
        """
        better, lower = mask_ap > self.best_ap, val_loss < self.lowest_val_loss  # never lower for NaN
        self.best_ap = max(self.best_ap, mask_ap)
        self.epochs_since_best = 0 if better or (lower and self.best_ap < 0) else self.epochs_since_best + 1
        if lower:
            self.lowest_val_loss = val_loss
        self.epochs_done, self.meters = epoch + 1, None
        return ["best"] * better + ["min_val_loss"] * lower

    def to_dict(self) -> dict:
        """Returns plain values and a tensor, for a checkpoint."""
        return {**vars(self), "curve": torch.tensor(self.curve, dtype=torch.float64)}

    @classmethod
    def from_dict(cls, values: Mapping) -> "Progress":
        """Returns what `to_dict` was called on."""
        curve = [tuple(pair) for pair in values["curve"].tolist()]
        progress = cls(**{"curve_steps": len(curve), **values, "curve": curve})  # older files have each step
        progress._bound_curve()
        return progress


def _mean(mean: float, value: float, count: int = 1) -> float:
    """Returns the mean of `count` values and one more; NaN, of a step without a loss, does not count."""
    if math.isnan(mean) or math.isnan(value):
        return mean if math.isnan(value) else value
    return mean + (value - mean) / (count + 1)


def to_checkpoint(
    state: TrainState, progress: Progress, names: list, label_map: LabelMap, args: dict, environment: dict
) -> dict:
    """Returns all of a run as plain values and tensors.

    names: those of the file, its epoch last; args, environment: plain values.
    """
    checkpoint = {
        "format_version": FORMAT_VERSION,
        "model": state.model.state_dict(),
        "optimizer": state.optimizer.state_dict(),
        "lr_scheduler": state.schedule.state_dict(),
        "epoch": names[-1],
        "names": names,
        "step": progress.step,
        "progress": progress.to_dict(),
        "config": state.model.config.to_dict(),
        "label_map": label_map.to_dict(),
        "args": args,
        "environment": environment,
    }
    if state.ema:
        checkpoint["ema"] = state.ema.state_dict()
    if state.precision.scaler:
        checkpoint["scaler"] = state.precision.scaler.state_dict()
    return checkpoint


@contextmanager
def reading_training_state() -> Iterator[None]:
    """Turns an error that a checkpoint with an incomplete training state causes into an InputError."""
    try:
        yield
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, RuntimeError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(
            f"--resume: the checkpoint's training state is missing or damaged ({type(error).__name__}: "
            f"{first_line(error, 80)}); take another checkpoint, or start from its weights with --weights"
        ) from error


@reading_training_state()
def from_checkpoint(checkpoint: Mapping, state: TrainState, start: Progress) -> Progress:
    """Brings the train state to the checkpoint's (except the model, which is loaded when built); returns its Progress.

    Rates, momentum and the like come from this run's settings: `resume` has taken them from the checkpoint, except
    those that may differ. start: the Progress of a run that begins. If it has other steps per epoch, the epoch that
    was interrupted begins again. Raises InputError where other parameters are trained.
    """
    progress = Progress.from_dict(checkpoint["progress"])
    if progress.steps_per_epoch != start.steps_per_epoch:
        progress.step, progress.meters = progress.epochs_done * start.steps_per_epoch, None
    for name in ("steps_per_epoch", "global_batch", "world_size", "data"):
        setattr(progress, name, getattr(start, name))

    optimizer, saved = state.optimizer, checkpoint["optimizer"]
    groups = optimizer.state_dict()["param_groups"]
    if [len(group["params"]) for group in groups] != [len(group["params"]) for group in saved["param_groups"]]:
        raise InputError("--resume: other parameters are trained than before; give the same --trainable-layers")
    # else it starts from zero; its groups' keys differ between versions of torch, so they don't show it
    if type(optimizer).__name__.lower() == checkpoint["args"]["optimizer"]:
        optimizer.load_state_dict({"state": saved["state"], "param_groups": groups})
    _set_rates(state, progress.step, checkpoint["lr_scheduler"])
    if state.ema:
        state.ema.load_state_dict(checkpoint.get("ema", checkpoint["model"]))
    if state.precision.scaler and "scaler" in checkpoint:
        state.precision.scaler.load_state_dict(checkpoint["scaler"])
    return progress


def start_at(epoch: int, state: TrainState, progress: Progress) -> None:
    """Lets a run start with `epoch`, in place: the steps before it count as done, and the rate is as after them."""
    progress.epochs_done, progress.step = epoch, epoch * progress.steps_per_epoch
    _set_rates(state, progress.step, state.schedule.state_dict())


def _set_rates(state: TrainState, step: int, other: Mapping) -> None:
    """Brings the schedule (`other`: what else belongs to its state dict) and the learning rates to a step."""
    schedule = state.schedule
    rates = [base * factor(step) for base, factor in zip(schedule.base_lrs, schedule.lr_lambdas, strict=True)]
    own = {"base_lrs": schedule.base_lrs, "last_epoch": step, "_last_lr": rates}
    schedule.load_state_dict({**other, **own})
    for group, rate in zip(state.optimizer.param_groups, rates, strict=True):
        group["lr"] = rate
