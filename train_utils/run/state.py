"""What a run knows between two steps, its way into a checkpoint and back. A resumed run needs no more."""

from contextlib import contextmanager
from dataclasses import dataclass, field

import torch

from backbone.errors import InputError
from train_utils.checkpoints.checkpoint import FORMAT_VERSION
from train_utils.io.memory import first_line


@dataclass
class Progress:
    """How far a run has come."""

    steps_per_epoch: int
    step: int = 0  # optimiser steps done
    epochs_done: int = 0  # epochs trained and evaluated
    best_ap: float = -1.0  # of masks; -1 as long as there is none, as in pycocotools
    epochs_since_best: int = 0
    lowest_val_loss: float = float("inf")
    global_batch: int = 0  # images per step
    world_size: int = 1
    data: str = ""  # resume.fingerprint of the training images
    skipped: int = 0  # training images met that could not be read
    bad_batches: int = 0  # steps passed over because a loss was not finite
    overflows: int = 0  # steps left out because the gradient overflowed float16
    meters: dict | None = None  # MetricLogger.state_dict() of an epoch in progress
    curve: list = field(default_factory=list)  # (loss, lr) of each step

    def take_in(self, record):
        """Count a StepRecord."""
        self.step = record.step + 1
        self.skipped += record.skipped
        self.bad_batches += record.bad is not None
        self.overflows += record.overflow
        loss = sum(record.losses.values()) if record.losses else float("nan")
        self.curve.append((loss, record.lr))

    def end_epoch(self, epoch, mask_ap, val_loss):
        """Count an evaluated epoch; returns the names that its checkpoint deserves beside its number."""
        better = mask_ap > self.best_ap
        self.best_ap = max(self.best_ap, mask_ap)
        self.epochs_since_best = 0 if better else self.epochs_since_best + 1
        lower = val_loss < self.lowest_val_loss
        if lower:  # never so for NaN
            self.lowest_val_loss = val_loss
        self.epochs_done, self.meters = epoch + 1, None
        return ["best"] * better + ["min_val_loss"] * lower

    def to_dict(self):
        return {**vars(self), "curve": torch.tensor(self.curve, dtype=torch.float64)}

    @classmethod
    def from_dict(cls, values):
        return cls(**{**values, "curve": [tuple(pair) for pair in values["curve"].tolist()]})


def to_checkpoint(learner, progress, names, label_map, args, environment):
    """Everything of a run as plain values and tensors. names: its epoch, and others that the file gets; args,
    environment: plain values."""
    checkpoint = {
        "format_version": FORMAT_VERSION,
        "model": learner.model.state_dict(),
        "optimizer": learner.optimizer.state_dict(),
        "lr_scheduler": learner.schedule.state_dict(),
        "epoch": names[-1],
        "names": names,
        "step": progress.step,
        "progress": progress.to_dict(),
        "config": learner.model.config.to_dict(),
        "label_map": label_map.to_dict(),
        "args": args,
        "environment": environment,
    }
    if learner.ema:
        checkpoint["ema"] = learner.ema.state_dict()
    if learner.precision.scaler:
        checkpoint["scaler"] = learner.precision.scaler.state_dict()
    return checkpoint


@contextmanager
def reading_training_state():
    """Turn what a checkpoint without all of its training state leads to into an InputError."""
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
def from_checkpoint(checkpoint, learner, start):
    """Bring the learner (but for its model, loaded when built) where the checkpoint was; returns Progress.

    Rates, momentum and the like are this run's flags, which `resume.take_over` has made the checkpoint's, but
    for those that may differ. start: the Progress of a run that begins. Where its steps are others, the epoch
    that was cut begins anew. Raises InputError where the parameters are not the checkpoint's.
    """
    progress = Progress.from_dict(checkpoint["progress"])
    if progress.steps_per_epoch != start.steps_per_epoch:
        progress.step, progress.meters = progress.epochs_done * start.steps_per_epoch, None
    for name in ("steps_per_epoch", "global_batch", "world_size", "data"):
        setattr(progress, name, getattr(start, name))

    optimizer, saved = learner.optimizer, checkpoint["optimizer"]
    groups = optimizer.state_dict()["param_groups"]
    if [len(group["params"]) for group in groups] != [len(group["params"]) for group in saved["param_groups"]]:
        raise InputError("--resume: other parameters are trained than before; give the same --trainable-layers")
    # else it starts anew; the keys of its groups don't tell: other versions of torch have others
    if type(optimizer).__name__.lower() == checkpoint["args"]["optimizer"]:
        optimizer.load_state_dict({"state": saved["state"], "param_groups": groups})
    _set_rates(learner, progress.step, checkpoint["lr_scheduler"])
    if learner.ema:
        learner.ema.load_state_dict(checkpoint.get("ema", checkpoint["model"]))
    if learner.precision.scaler and "scaler" in checkpoint:
        learner.precision.scaler.load_state_dict(checkpoint["scaler"])
    return progress


def begin_at(epoch, learner, progress):
    """Let a run begin with `epoch`, in place: its steps before count as done, and the rate is as after them."""
    progress.epochs_done, progress.step = epoch, epoch * progress.steps_per_epoch
    _set_rates(learner, progress.step, learner.schedule.state_dict())


def _set_rates(learner, step, state):
    """Bring the schedule (`state`: what else belongs to it) and the optimiser's learning rates to a step."""
    schedule = learner.schedule
    rates = [base * factor(step) for base, factor in zip(schedule.base_lrs, schedule.lr_lambdas, strict=True)]
    own = {"base_lrs": schedule.base_lrs, "last_epoch": step, "_last_lr": rates}
    schedule.load_state_dict({**state, **own})
    for group, rate in zip(learner.optimizer.param_groups, rates, strict=True):
        group["lr"] = rate
