"""Notices in the first steps of a run that it is about to diverge, and says what to change."""

from collections.abc import Sequence

FIRST = 100  # steps in which it is looked for: later bursts come from single images
FEW = 10  # steps whose mean is compared
RISEN = 2.0  # times the mean of the first FEW steps: healthy runs stay below their beginning


def warning(curve: Sequence[tuple[float, float]]) -> str | None:
    """Returns a line where the loss has risen too far; curve: (loss, rate) of each step so far."""
    steps = len(curve)
    if not 2 * FEW <= steps <= FIRST:
        return None
    losses = [loss for loss, _ in curve]
    before, now, rate = sum(losses[:FEW]) / FEW, sum(losses[-FEW:]) / FEW, max(rate for _, rate in curve)
    if not now > RISEN * before:  # never for NaN
        return None
    return (
        f"the loss has risen from {before:.3g} to {now:.3g} in {steps} steps: this run is about to diverge. Stop it, "
        f"and give --lr {rate / 4:.2g}, more --warmup-iters, or --clip-grad-norm 10"
    )
