"""What a run knows between two steps, its way into a checkpoint and back. A resumed run needs no more."""

from dataclasses import dataclass, field

import torch

from backbone.errors import InputError
from train_utils.checkpoint import FORMAT_VERSION


@dataclass
class Progress:
    """How far a run has come."""

    steps_per_epoch: int
    step: int = 0  # optimiser steps done
    epochs_done: int = 0  # epochs trained and evaluated
    best_ap: float = -1.0  # of masks; -1 as long as there is none, as in pycocotools
    epochs_since_best: int = 0
    skipped: int = 0  # training pictures met that could not be read
    meters: dict | None = None  # MetricLogger.state_dict() of an epoch in progress
    curve: list = field(default_factory=list)  # (loss, lr) of each step

    def take_in(self, record):
        """Count a StepRecord."""
        self.step = record.step + 1
        self.skipped += record.skipped
        loss = sum(record.losses.values()) if record.losses else float("nan")
        self.curve.append((loss, record.lr))

    def end_epoch(self, epoch, mask_ap):
        """Count an evaluated epoch; returns whether its mask AP is the best so far."""
        better = mask_ap > self.best_ap
        self.best_ap = max(self.best_ap, mask_ap)
        self.epochs_since_best = 0 if better else self.epochs_since_best + 1
        self.epochs_done, self.meters = epoch + 1, None
        return better

    def to_dict(self):
        return {**vars(self), "curve": torch.tensor(self.curve, dtype=torch.float64)}

    @classmethod
    def from_dict(cls, values):
        return cls(**{**values, "curve": [tuple(pair) for pair in values["curve"].tolist()]})


def to_checkpoint(learner, progress, epoch, label_map, args):
    """Everything of a run as plain values and tensors. args: plain values."""
    checkpoint = {
        "format_version": FORMAT_VERSION,
        "model": learner.model.state_dict(),
        "optimizer": learner.optimizer.state_dict(),
        "lr_scheduler": learner.schedule.state_dict(),
        "epoch": epoch,
        "step": progress.step,
        "progress": progress.to_dict(),
        "config": learner.model.config.to_dict(),
        "label_map": label_map.to_dict(),
        "args": args,
    }
    if learner.ema:
        checkpoint["ema"] = learner.ema.state_dict()
    if learner.precision.scaler:
        checkpoint["scaler"] = learner.precision.scaler.state_dict()
    return checkpoint


def from_checkpoint(checkpoint, learner, steps_per_epoch):
    """Bring the learner (but for its model, loaded when built) where the checkpoint was; returns Progress.

    Raises InputError where this run's steps or parameters are not the checkpoint's, or it lacks training state.
    """
    try:
        return _restore(checkpoint, learner, steps_per_epoch)
    except InputError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, RuntimeError) as error:
        reason = (str(error).splitlines() or [""])[0][:80]
        raise InputError(
            f"--resume: the checkpoint's training state is missing or damaged ({type(error).__name__}: {reason}); "
            "take another checkpoint, or start from its weights with --weights"
        ) from error


def _restore(checkpoint, learner, steps_per_epoch):
    progress = Progress.from_dict(checkpoint["progress"])
    if progress.steps_per_epoch != steps_per_epoch:
        raise InputError(
            f"--resume: the checkpoint has {progress.steps_per_epoch} steps per epoch, this run has "
            f"{steps_per_epoch}; give the same data and the same global batch (--batch-size x "
            "--accumulate-steps x processes)"
        )
    try:
        learner.optimizer.load_state_dict(checkpoint["optimizer"])
    except ValueError as error:
        raise InputError(
            "--resume: the checkpoint's optimiser does not fit; give the same --optimizer, --trainable-layers"
        ) from error
    learner.schedule.load_state_dict(checkpoint["lr_scheduler"])
    if learner.ema:
        learner.ema.load_state_dict(checkpoint.get("ema", checkpoint["model"]))
    if learner.precision.scaler and "scaler" in checkpoint:
        learner.precision.scaler.load_state_dict(checkpoint["scaler"])
    return progress
