"""One optimiser step: micro-batches -> losses -> gradient -> new weights, and the epoch that repeats it.

A step takes `accumulate_steps` micro-batches on each of the world's ranks. Its gradient is the mean over all of
them, so that 2 ranks equal 1 rank with twice the accumulation. The 5 losses are LOSS_NAMES, in this order.
"""

import functools
import itertools
import math
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from backbone.errors import InputError
from backbone.norm import UNCOUNTED, sync_norms
from network_files.losses import LOSS_NAMES
from network_files.operators.padded import HostCopy, waits_are_cheap
from train_utils.data.loaders import Batch, TrainLoader, sample_seed
from train_utils.io.memory import is_lack_of_memory
from train_utils.logs.step_counts import StepCounts
from train_utils.processes.distributed import World
from train_utils.run.optimization import TrainState

DROPOUT_STREAM = 3  # beside those of loaders.py: the generator that dropout draws from
DUMMY_SIZE = 64  # pixels a side: the image of a batch that is left without any


class NonFiniteLoss(InputError):
    """A loss that is infinite or not a number; batch and losses [5]: this rank's, None where another rank met it."""

    def __init__(self, step: int, batch: Batch | None = None, losses: Tensor | None = None) -> None:
        super().__init__(f"step {step}: a loss is not finite")
        self.step, self.batch, self.losses = step, batch, losses


class OutOfMemory(InputError):
    """A step that did not fit into the memory; batches: this rank's micro-batches of it."""

    def __init__(self, step: int, batches: list[Batch]) -> None:
        super().__init__(f"step {step}: out of memory")
        self.step, self.batches = step, batches


@dataclass(frozen=True)
class StepHooks:
    """What a step asks its run."""

    stop_requested: Callable[[], bool] = lambda: False  # was this process asked to stop?
    may_skip: Callable[[], bool] = lambda: False  # may one more step with a non-finite loss be skipped?
    recorder_for: Callable[[int], StepCounts | None] = lambda step: None  # what this rank's passes of a step are given


NO_HOOKS = StepHooks()


@dataclass(frozen=True)
class RankRecord:
    """What one rank did in a step."""

    indices: list[int]  # positions in the data set
    skipped_files: list[str]
    dropped: Counter[str]  # what reading left out of images
    seconds: float
    data_seconds: float  # of these, until the images were there
    measures: dict[str, HostCopy]  # the norm of a gradient that was used (before clipping), and StepCounts.means


@dataclass(frozen=True)
class StepRecord:
    """One finished step: the same on every rank, except `own` and the batch in `bad`."""

    step: int
    losses: dict[str, float] | None  # mean over all micro-batches; None: no image could be read
    lr: float
    skipped: int  # images that could not be read
    stop: bool  # some rank was asked to stop
    overflow: bool  # the gradient overflowed float16: the weights stayed as they were
    bad: NonFiniteLoss | None  # a loss was not finite, and the step was skipped
    own: RankRecord


def train_one_epoch(
    state: TrainState, loader: TrainLoader, world: World, epoch: int, first_step: int = 0, hooks: StepHooks = NO_HOOKS
) -> Iterator[StepRecord]:
    """Trains from step `first_step` of `epoch` to its end; yields after each step, to log and to save.

    Where the host's waits are dear, a step's losses are read when the next one's gradient is on its way; its record is
    yielded before that gradient is used, so that what is saved then is the state after the step.
    """
    state.parallel.train()
    micro_batches, unread = iter(loader.epoch(epoch, first_step)), None
    for index in range(first_step, loader.steps_per_epoch):
        number, start = epoch * loader.steps_per_epoch + index, time.perf_counter()
        world.phase(f"loading the images of step {number}")
        batches = list(itertools.islice(micro_batches, loader.accumulate_steps))
        step = Step(state, batches, world, number, start)
        try:
            step.compute(hooks)
        except OutOfMemory:
            if unread:
                yield unread.finish(hooks)
            raise
        if unread:
            yield unread.finish(hooks)
        unread = step if step.use_unread() else None
        if not unread:
            yield step.finish(hooks)
    if unread:
        yield unread.finish(hooks)


class Step:
    """One optimiser step, in three parts: `compute` its gradient, maybe `use_unread`, `finish`.

    start: when the loading of its images began.
    """

    def __init__(self, state: TrainState, batches: list[Batch], world: World, number: int, start: float) -> None:
        self.state, self.batches, self.world, self.number, self.start = state, batches, world, number, start
        self.data_seconds, self.seconds = time.perf_counter() - start, None
        self.copies: list[HostCopy] = []  # the losses of each micro-batch
        self.statistics: list[tuple[Tensor, Tensor]] = []
        self.measures: dict[str, Any] = {}
        self.lr, self.overflow, self.used = state.schedule.get_last_lr()[0], False, False

    def compute(self, hooks: StepHooks) -> None:
        """Computes the gradient. Raises OutOfMemory where an allocation fails."""
        state, world, number = self.state, self.world, self.number
        world.phase(f"step {number}")
        torch.manual_seed(sample_seed(state.seed, number, world.rank, stream=DROPOUT_STREAM))
        self.statistics = running_statistics(state.model) if hooks.may_skip() else []
        with reporting_lack_of_memory(number, self.batches), world.together(waits=False):
            recorder = hooks.recorder_for(number)
            self.copies = accumulate_gradients(state, self.batches, world, recorder)
        self.measures = dict(recorder.means()) if recorder else {}

    def use_unread(self) -> bool:
        """Uses the gradient before the losses are read, where that is worth it and possible; says whether it did.

        The device leaves the weights as they are where a loss of some rank is not finite. Running means would be
        changed by the next step before it is known, float16's scaler waits anyway, and a momentum is made by a step
        that is taken.
        """
        state = self.state
        if waits_are_cheap(self.world.device) or state.precision.scaler or not state.optimizer.state:
            return False
        if any(True for _ in batch_norms(state.model)):
            return False
        losses = [copy.sent for copy, batch in zip(self.copies, self.batches, strict=True) if batch.images]
        bad = (~torch.stack(losses).isfinite()).any().float() if losses else torch.zeros((), device=self.world.device)
        self._use(self.world.largest(bad))
        self.seconds = time.perf_counter() - self.start
        return True

    def _use(self, bad: Tensor | None = None) -> None:
        self.measures["gradient norm"], self.overflow = self.state.update(bad)
        self.used = True

    def finish(self, hooks: StepHooks) -> StepRecord:
        """Reads the losses, and uses the gradient where it is not used yet.

        The gradient of a loss that is not finite is not used: with hooks.may_skip() the step is skipped and the
        running means are put back, else NonFiniteLoss is raised.
        """
        state, batches = self.state, self.batches
        losses = torch.stack([copy.read() for copy in self.copies]).double()  # [accumulate_steps, 5]
        with_images = [len(batch.images) > 0 for batch in batches]
        skipped_files = [name for batch in batches for name in batch.skipped]
        counts = torch.tensor([sum(with_images), len(skipped_files), hooks.stop_requested()], dtype=torch.float64)
        present = losses if all(with_images) else losses[with_images]
        total = self.world.sum(torch.cat([present.sum(dim=0), counts]))  # [5 + 3]
        *sums, used, skipped, stop = total.tolist()

        bad = None if all(map(math.isfinite, sums)) else non_finite(self.number, batches, losses)
        if bad and not hooks.may_skip():
            raise bad
        if not self.used:
            if bad:
                state.skip(self.statistics)
            else:
                self._use()
        if bad:
            self.measures.pop("gradient norm", None)
        else:
            state.average(self.number)
        return StepRecord(
            self.number,
            losses={n: s / used for n, s in zip(LOSS_NAMES, sums, strict=True)} if used and not bad else None,
            lr=self.lr,
            skipped=int(skipped),
            stop=bool(stop),
            overflow=self.overflow,
            bad=bad,
            own=RankRecord(
                indices=[index for batch in batches for index in batch.indices],
                skipped_files=skipped_files,
                dropped=sum((batch.dropped for batch in batches), Counter()),
                seconds=self.seconds or time.perf_counter() - self.start,
                data_seconds=self.data_seconds,
                measures={name: HostCopy(torch.as_tensor(value)) for name, value in self.measures.items()},
            ),
        )


def non_finite(step: int, batches: list[Batch], losses: Tensor) -> NonFiniteLoss:
    """Returns the NonFiniteLoss of this rank, with its first micro-batch that has such a loss, if any."""
    bad = (~losses.isfinite().all(dim=1)).nonzero().flatten().tolist()
    return NonFiniteLoss(step, batches[bad[0]], losses[bad[0]]) if bad else NonFiniteLoss(step)


def running_statistics(model: nn.Module) -> list[tuple[Tensor, Tensor]]:
    """Returns (buffer, copy) of what a forward pass in training mode changes: means and variances of batch norm."""
    return [(buffer, buffer.clone()) for module in batch_norms(model) for buffer in module.buffers()]


def batch_norms(model: nn.Module) -> Iterator[nn.Module]:
    """Yields the layers that keep running means."""
    return (m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm))


@contextmanager
def reporting_lack_of_memory(step: int, batches: list[Batch]) -> Iterator[None]:
    """Turns an allocation that failed, on a GPU or in the host's memory, into OutOfMemory."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_lack_of_memory(error):
            raise
        raise OutOfMemory(step, batches) from error


def settle_gradient_exchange(state: TrainState, world: World) -> None:
    """Lets DDP choose its buckets now, by a step that changes nothing.

    DDP chooses them again after its first backward pass, and with them the order of sums: without this a resumed run
    of 3 or more ranks would differ in the last bits.
    """
    if world.size > 1:
        state.parallel.train()
        with world.together(waits=False):
            zero_weighted_step(state, Batch([], [], [], []), world)
        state.optimizer.zero_grad()


def accumulate_gradients(
    state: TrainState, batches: Sequence[Batch], world: World, recorder: StepCounts | None = None
) -> list[HostCopy]:
    """Runs each micro-batch forward and backward; returns the losses [5] of each."""
    losses = []
    for index, batch in enumerate(batches):
        with world.no_sync(state.parallel, last=index == len(batches) - 1):
            if batch.images:
                losses.append(forward_backward(state, batch, world, 1 / len(batches), recorder))
            else:
                losses.append(zero_weighted_step(state, batch, world))
    return losses


def forward_backward(
    state: TrainState, batch: Batch, world: World, weight: float, recorder: StepCounts | None = None
) -> HostCopy:
    """Adds the gradient of one micro-batch's loss, times weight; returns its losses [5]."""
    images, targets = batch.to(world.device)
    with state.precision.autocast():
        losses = state.parallel(images, targets, recorder=recorder)
    with torch.no_grad():
        copy = HostCopy(torch.stack([losses[name] for name in LOSS_NAMES]))
    total = functools.reduce(torch.add, losses.values())
    with world.together():  # gradients are exchanged while they are computed
        state.precision.backward(total if weight == 1 else total * weight)
    return copy


def zero_weighted_step(state: TrainState, batch: Batch, world: World) -> HostCopy:
    """Takes part in the exchange of gradients without an image: by a dummy image, weighted 0.

    Norms over all processes leave it out, and running means stay as they were.
    """
    buffers = [buffer.clone() for buffer in state.model.buffers()]
    target = {
        "boxes": torch.zeros(0, 4),
        "labels": torch.zeros(0, dtype=torch.int64),
        "masks": torch.zeros(0, DUMMY_SIZE, DUMMY_SIZE, dtype=torch.uint8),
        "iscrowd": torch.zeros(0, dtype=torch.uint8),
        "sample_seed": 0,
    }
    image = torch.zeros(state.model.config.channels, DUMMY_SIZE, DUMMY_SIZE, dtype=torch.uint8)
    with sync_norms(state.model, UNCOUNTED):
        copy = forward_backward(state, batch._replace(images=[image], targets=[target]), world, 0.0)
    with torch.no_grad():
        for buffer, before in zip(state.model.buffers(), buffers, strict=True):
            buffer.copy_(before)
    return copy
