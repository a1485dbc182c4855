"""How long a run is and how its learning rate rises and falls, from the number of its images.

The schedule of torchvision's references (26 epochs, 1000 steps of warm-up but at most an epoch, falls at 16 and 22) is
made for 118,000 images. A short run that follows it is at its full rate for few of its steps.
"""

from __future__ import annotations

import math

from backbone.errors import InputError
from train_utils.io.plain_text import counted
from train_utils.run.config import REFERENCE, SMALL, RunConfig

EPOCHS = 26  # of torchvision's references, and of all data with that many samples in EPOCHS epochs:
SAMPLES = 6000  # what a run has at least, images of all epochs, as far as MOST_EPOCHS allow
MOST_EPOCHS = 100
SMALL_EPOCHS, SMALL_SAMPLES = 12, 3200  # the same of --recipe small
FALLS = (16 / 26, 22 / 26)  # shares of the run, of torchvision's references
SHORT, SHORT_FALLS = 1000, (0.85,)  # of a run of fewer steps, so that most of them are at the full rate
SHORT_CLIP = 10.0  # gradient norm of such a run by sgd: a short warm-up with new heads bursts without it
WARMUP = 1000  # steps, of torchvision's references; at most an epoch
LEAST_WARMUP = 50  # steps: the heads are new, and bursts come from rates that rise faster


def reference_warmup(steps_per_epoch: int) -> int:
    """Returns torchvision's steps of warm-up, which earlier versions had too."""
    return min(WARMUP, steps_per_epoch)


def warmup_steps(epochs: int, steps_per_epoch: int) -> int:
    """Returns over how many steps the rate rises: torchvision's, at most a tenth of the run.

    No fewer than LEAST_WARMUP, as the first epochs of tiny sets have few, unless that is a quarter of the run.
    """
    total = epochs * steps_per_epoch
    return max(min(reference_warmup(steps_per_epoch), total // 10), min(LEAST_WARMUP, total // 4))


def default_epochs(samples: int, small: bool = False) -> int:
    """Returns the passes over so many images that a run makes without --epochs; small: by --recipe small."""
    least, shown = (SMALL_EPOCHS, SMALL_SAMPLES) if small else (EPOCHS, SAMPLES)
    return min(MOST_EPOCHS, max(least, math.ceil(shown / samples)))


def with_length(
    config: RunConfig, samples: int, steps_per_epoch: int, resumed: bool = False
) -> tuple[RunConfig, list[str]]:
    """Returns a resolved config with epochs, warm-up, falls and clipping, and a line about epochs that were not given.

    samples: images of an epoch; resumed: the run goes on, and keeps to clip or not.
    """
    lines, reference = [], config.recipe == REFERENCE
    if config.epochs is None:
        epochs = EPOCHS if reference else default_epochs(samples, config.recipe == SMALL)
        config = config.replaced({"epochs": epochs})
        if not reference:
            of = counted(samples, "image")
            lines = [f"epochs: {config.epochs}, as an epoch has {of} (--epochs says another number)"]
    if config.lr_step_size is not None:
        config = config.replaced({"lr_steps": lr_steps(config, config.epochs)})
    short = not reference and config.epochs * steps_per_epoch < SHORT
    shares = SHORT_FALLS if short else FALLS
    if short and config.optimizer == "sgd" and not resumed:
        config = config.filled({"clip_grad_norm": SHORT_CLIP})
    warmup = reference_warmup(steps_per_epoch) if reference else warmup_steps(config.epochs, steps_per_epoch)
    falls = tuple(share * config.epochs for share in shares)
    return config.filled({"lr_steps": falls, "warmup_iters": warmup}), lines


def lr_steps(config: RunConfig, epochs: int) -> tuple[int, ...]:
    """Returns --lr-step-size as --lr-steps. InputError where both are given and differ."""
    size = config.lr_step_size
    steps = tuple(range(size, epochs, size))
    if config.lr_steps not in (None, steps):
        shown = " ".join(f"{step:g}" for step in config.lr_steps)
        raise InputError(f"--lr-step-size {size} and --lr-steps {shown}: give one of them")
    return steps


def fall_steps(config: RunConfig, steps_per_epoch: int) -> list[int]:
    """Returns the steps of a resolved config at which the rate falls, beyond the run's end too."""
    return [round(epoch * steps_per_epoch) for epoch in config.lr_steps]


def describe(config: RunConfig, steps_per_epoch: int) -> str:
    """Returns what the rate does, in steps: `50 steps of warm-up, the rate falls after steps 214 and 294`."""
    total, warmup = config.epochs * steps_per_epoch, f"{counted(config.warmup_iters, 'step')} of warm-up"
    if config.clip_grad_norm:
        warmup += f", gradients clipped to a norm of {config.clip_grad_norm:g}"
    if config.lr_schedule == "cosine":
        return f"{warmup}, then half a cosine to 0"
    falls = [str(step) for step in fall_steps(config, steps_per_epoch) if step < total]
    steps = f"step{'s' if len(falls) > 1 else ''} {' and '.join(falls)}"
    return f"{warmup}, " + (f"the rate falls after {steps}" if falls else "the rate never falls")
