"""One optimiser step: micro-batches -> losses -> gradient -> new weights, and the epoch that repeats it.

A step takes `accumulate_steps` micro-batches on each of the world's ranks. Its gradient is the mean over all of
them, so that 2 ranks equal 1 rank with twice the accumulation. The 5 losses are LOSS_NAMES, in this order.
"""

import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from backbone.errors import InputError
from network_files.losses import LOSS_NAMES
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
    seconds: float
    data_seconds: float  # of these, until the images were there
    measures: "dict[str, HostCopy]"  # the norm of a gradient that was used (before clipping), and StepCounts.means


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
    """Trains from step `first_step` of `epoch` to its end; yields after each step, to log and to save."""
    state.parallel.train()
    micro_batches = iter(loader.epoch(epoch, first_step))
    for index in range(first_step, loader.steps_per_epoch):
        step, start = epoch * loader.steps_per_epoch + index, time.perf_counter()
        world.phase(f"loading the images of step {step}")
        batches = list(itertools.islice(micro_batches, loader.accumulate_steps))
        yield train_step(state, batches, world, step, start, hooks)


def train_step(
    state: TrainState, batches: list[Batch], world: World, step: int, start: float, hooks: StepHooks
) -> StepRecord:
    """Computes the gradient of one step and uses it; start: when the loading of its images began.

    The gradient of a loss that is not finite is not used: with hooks.may_skip() the step is skipped and the running
    means are put back, else NonFiniteLoss is raised. Raises OutOfMemory where an allocation fails.
    """
    data_seconds = time.perf_counter() - start
    world.phase(f"step {step}")
    torch.manual_seed(sample_seed(state.seed, step, world.rank, stream=DROPOUT_STREAM))
    statistics = running_statistics(state.model) if hooks.may_skip() else []
    with reporting_lack_of_memory(step, batches), world.together(waits=False):
        recorder = hooks.recorder_for(step)
        losses = accumulate_gradients(state, batches, world, recorder)  # [accumulate_steps, 5]
    measures = recorder.means() if recorder else {}
    with_images = [len(batch.images) > 0 for batch in batches]
    skipped_files = [name for batch in batches for name in batch.skipped]
    counts = torch.tensor([sum(with_images), len(skipped_files), hooks.stop_requested()], dtype=torch.float64)
    total = world.sum(torch.cat([losses[with_images].sum(dim=0), counts]))  # [5 + 3]
    *sums, used, skipped, stop = total.tolist()

    lr, bad, overflow = state.schedule.get_last_lr()[0], None, False
    if total.isfinite().all():
        measures["gradient norm"], overflow = state.update(step)
    else:
        bad = non_finite(step, batches, losses)
        if not hooks.may_skip():
            raise bad
        state.skip(statistics)
    return StepRecord(
        step,
        losses={n: s / used for n, s in zip(LOSS_NAMES, sums, strict=True)} if used and not bad else None,
        lr=lr,
        skipped=int(skipped),
        stop=bool(stop),
        overflow=overflow,
        bad=bad,
        own=RankRecord(
            indices=[index for batch in batches for index in batch.indices],
            skipped_files=skipped_files,
            seconds=time.perf_counter() - start,
            data_seconds=data_seconds,
            measures={name: HostCopy(torch.as_tensor(value)) for name, value in measures.items()},
        ),
    )


def non_finite(step: int, batches: list[Batch], losses: Tensor) -> NonFiniteLoss:
    """Returns the NonFiniteLoss of this rank, with its first micro-batch that has such a loss, if any."""
    bad = (~losses.isfinite().all(dim=1)).nonzero().flatten().tolist()
    return NonFiniteLoss(step, batches[bad[0]], losses[bad[0]]) if bad else NonFiniteLoss(step)


def running_statistics(model: nn.Module) -> list[tuple[Tensor, Tensor]]:
    """Returns (buffer, copy) of what a forward pass in training mode changes: means and variances of batch norm."""
    modules = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    return [(buffer, buffer.clone()) for module in modules for buffer in module.buffers()]


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
) -> Tensor:
    """Runs each micro-batch forward and backward; returns their losses, float64 [len(batches), 5] on the CPU."""
    losses = []
    for index, batch in enumerate(batches):
        with world.no_sync(state.parallel, last=index == len(batches) - 1):
            if batch.images:
                losses.append(forward_backward(state, batch, world, 1 / len(batches), recorder))
            else:
                losses.append(zero_weighted_step(state, batch, world))
    return torch.stack([copy.read() for copy in losses]).double()


def forward_backward(
    state: TrainState, batch: Batch, world: World, weight: float, recorder: StepCounts | None = None
) -> "HostCopy":
    """Adds the gradient of one micro-batch's loss, times weight; returns its losses [5]."""
    images, targets = batch.to(world.device)
    with state.precision.autocast():
        losses = state.parallel(images, targets, recorder=recorder)
    copy = HostCopy(torch.stack([losses[name].detach() for name in LOSS_NAMES]))
    with world.together():  # gradients are exchanged while they are computed
        state.precision.backward(sum(losses.values()) * weight)
    return copy


def zero_weighted_step(state: TrainState, batch: Batch, world: World) -> "HostCopy":
    """Takes part in the exchange of gradients without an image: by a dummy image, weighted 0."""
    buffers = [buffer.clone() for buffer in state.model.buffers()]
    target = {
        "boxes": torch.zeros(0, 4),
        "labels": torch.zeros(0, dtype=torch.int64),
        "masks": torch.zeros(0, DUMMY_SIZE, DUMMY_SIZE, dtype=torch.uint8),
        "iscrowd": torch.zeros(0, dtype=torch.uint8),
        "sample_seed": 0,
    }
    image = torch.zeros(3, DUMMY_SIZE, DUMMY_SIZE, dtype=torch.uint8)
    copy = forward_backward(state, batch._replace(images=[image], targets=[target]), world, 0.0)
    with torch.no_grad():
        for buffer, before in zip(state.model.buffers(), buffers, strict=True):
            buffer.copy_(before)
    return copy


class HostCopy:
    """A small tensor on its way to the host: sent before the backward pass is queued, read after it."""

    def __init__(self, tensor: Tensor) -> None:
        self.value, self.event = tensor.to("cpu", non_blocking=True), None
        if tensor.is_cuda:
            self.event = torch.cuda.Event()
            self.event.record()

    def read(self) -> Tensor:
        """Returns the tensor, on the CPU, as soon as it is there."""
        if self.event:
            self.event.synchronize()
        return self.value
