"""What a run tells of each step and each epoch, and the protocol of what is told: TensorBoard, and functions in Python.

A callback may do anything with the numbers; whatever it raises ends the run.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

Row = dict[str, Any]


class StepNumbers(NamedTuple):
    """A finished optimiser step.

    step: 0-based, over all epochs; losses: mean over the step, None where it had none; on_the_way: name -> an object
    whose read() returns the number once its device has computed it.
    """

    epoch: int
    step: int
    losses: Mapping[str, float] | None
    lr: float
    on_the_way: Mapping[str, Any] = {}

    def row(self) -> Row:
        """Returns epoch, step, lr, loss (the sum) and each loss."""
        losses = self.losses or {}
        total = {"loss": sum(losses.values())} if losses else {}
        return {"epoch": self.epoch, "step": self.step, "lr": self.lr, **total, **losses}


class EpochNumbers(NamedTuple):
    """An evaluated epoch.

    steps_done: at its end; stats: IoU type -> 12 COCO numbers; val_losses: by name; per_class: IoU type -> class name
    -> AP at IoU 0.5, None without ground truth; row: what `result_files.history` gives of it.
    """

    epoch: int
    steps_done: int
    stats: Mapping[str, Sequence[float]]
    val_losses: Mapping[str, float]
    per_class: Mapping[str, Mapping[str, float | None]]
    row: Row


class Callback(Protocol):
    """What is told of a run, in its main process."""

    def on_step(self, numbers: StepNumbers) -> None:
        """Is told of a finished step."""
        ...

    def on_epoch(self, numbers: EpochNumbers) -> None:
        """Is told of an evaluated epoch, whose results are written."""
        ...


class Functions:
    """Functions of plain dicts as a callback; None for what nobody wants to be told."""

    def __init__(self, on_step: Callable[[Row], Any] | None, on_epoch: Callable[[Row], Any] | None) -> None:
        self._on_step, self._on_epoch = on_step, on_epoch

    def on_step(self, numbers: StepNumbers) -> None:
        """Passes the step's row on."""
        if self._on_step:
            self._on_step(numbers.row())

    def on_epoch(self, numbers: EpochNumbers) -> None:
        """Passes the epoch's row on."""
        if self._on_epoch:
            self._on_epoch(dict(numbers.row))
