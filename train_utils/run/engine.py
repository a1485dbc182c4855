"""One epoch of training and one evaluation: what happens between the loaders and the model.

A step is one optimiser step: `accumulate_steps` micro-batches on each of the world's ranks. Its gradient is
the mean over all of them, so that 2 ranks equal 1 rank with twice the accumulation.
"""

import itertools
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch

from backbone.errors import InputError
from train_utils.data.opening import Batch, sample_seed
from train_utils.evaluation.numbers import IouTypeResult, evaluate_results, to_coco_results
from train_utils.io.memory import is_lack_of_memory
from train_utils.logs.step_counts import StepCounts
from train_utils.run.optimization import Precision

LOSS_NAMES = ("loss_classifier", "loss_box_reg", "loss_mask", "loss_objectness", "loss_rpn_box_reg")
DROPOUT_STREAM = 3  # beside those of loaders.py: the generator that dropout draws from
DUMMY_SIZE = 64  # pixels: the image of a batch that is left without any


class NonFiniteLoss(InputError):
    """A loss that is infinite or not a number. batch, losses: this rank's, None where another rank met it."""

    def __init__(self, step, batch=None, losses=None):
        super().__init__(f"step {step}: a loss is not finite")
        self.step, self.batch, self.losses = step, batch, losses


class OutOfMemory(InputError):
    """A step that did not fit into the memory. batches: this rank's micro-batches of it."""

    def __init__(self, step, batches):
        super().__init__(f"step {step}: out of memory")
        self.step, self.batches = step, batches


@dataclass
class Learner:
    """What a step changes, and how."""

    model: torch.nn.Module  # the model itself: to evaluate and to save
    parallel: torch.nn.Module  # world.wrap(model): to train
    optimizer: torch.optim.Optimizer
    schedule: torch.optim.lr_scheduler.LRScheduler
    precision: Precision
    ema: object = None
    clip_grad_norm: float | None = None
    seed: int = 0

    def step(self, step):
        """Use the gradient; returns its norm, and whether it overflowed float16 and was left out."""
        norm, overflow = self.precision.step(self.optimizer, self.clip_grad_norm)
        self.schedule.step()
        if self.ema:
            self.ema.update(self.model, step)
        return norm, overflow

    def pass_over(self, statistics):
        """Count a step without its gradient; statistics: running_statistics of before."""
        self.optimizer.zero_grad()
        with warnings.catch_warnings():  # at the very first step it suspects a wrong order of calls
            warnings.simplefilter("ignore", UserWarning)
            self.schedule.step()
        with torch.no_grad():
            for buffer, before in statistics:
                buffer.copy_(before)


@dataclass(frozen=True)
class StepRecord:
    """One finished step; from `indices` on it is this rank's own, before that the same on every rank."""

    step: int
    losses: dict[str, float] | None  # mean over all micro-batches; None: no image could be read
    lr: float
    skipped: int  # images that could not be read
    stop: bool  # some rank was asked to stop
    overflow: bool  # the gradient overflowed float16: the weights were left as they were
    bad: NonFiniteLoss | None  # a loss was not finite, and they were too
    indices: list[int]  # positions in the data set
    skipped_files: list[str]
    seconds: float
    data_seconds: float
    measures: "dict[str, HostCopy]"  # the norm of a gradient that was used (before clipping), and StepCounts.means


def train_one_epoch(
    learner: Learner,
    loader,
    world,
    epoch: int,
    first_step: int = 0,
    stop_requested: Callable[[], bool] = bool,
    may_skip: Callable[[], bool] = bool,
    counts_of: Callable[[int], StepCounts | None] = lambda step: None,
) -> Iterator[StepRecord]:
    """Train from step `first_step` of `epoch` to its end, yielding after each step, to log and to save.

    Where a loss is not finite the optimiser does not use the gradient: with may_skip() the step is done
    without it and the running means are put back, else NonFiniteLoss is raised. OutOfMemory is raised too.
    counts_of(step): the recorder that this rank's passes of that step are given.
    """
    learner.parallel.train()
    micro_batches = iter(loader.epoch(epoch, first_step))
    for index in range(first_step, loader.steps_per_epoch):
        step, start = epoch * loader.steps_per_epoch + index, time.perf_counter()
        world.phase(f"loading the images of step {step}")
        batches = list(itertools.islice(micro_batches, loader.accumulate_steps))
        data_seconds = time.perf_counter() - start

        world.phase(f"step {step}")
        torch.manual_seed(sample_seed(learner.seed, step, world.rank, stream=DROPOUT_STREAM))
        statistics = running_statistics(learner.model) if may_skip() else []
        with reporting_lack_of_memory(step, batches), world.together(waits=False):
            counts = counts_of(step)
            losses = accumulate_gradients(learner, batches, world, counts)  # [accumulate_steps, 5]
        used = [len(batch.images) > 0 for batch in batches]
        skipped = [name for batch in batches for name in batch.skipped]
        others = torch.tensor([sum(used), len(skipped), stop_requested()], dtype=torch.float64)
        total = world.sum(torch.cat([losses[used].sum(dim=0), others]))  # [5 + 3]
        lr, bad, overflow = learner.schedule.get_last_lr()[0], None, False
        measures = counts.means() if counts else {}
        if total.isfinite().all():
            measures["gradient norm"], overflow = learner.step(step)
        else:
            bad = non_finite(step, batches, losses)
            if not may_skip():
                raise bad
            learner.pass_over(statistics)
        *sums, used, skips, stop = total.tolist()
        means = {n: s / used for n, s in zip(LOSS_NAMES, sums, strict=True)} if used and not bad else None
        indices = [index for batch in batches for index in batch.indices]
        seconds = time.perf_counter() - start
        yield StepRecord(
            step,
            means,
            lr,
            int(skips),
            stop > 0,
            overflow,
            bad,
            indices,
            skipped,
            seconds,
            data_seconds,
            {name: HostCopy(torch.as_tensor(value)) for name, value in measures.items()},
        )


def non_finite(step, batches, losses):
    """The NonFiniteLoss of this rank: its first micro-batch with such a loss, if it has one."""
    bad = (~losses.isfinite().all(dim=1)).nonzero().flatten().tolist()
    return NonFiniteLoss(step, batches[bad[0]], losses[bad[0]]) if bad else NonFiniteLoss(step)


def running_statistics(model):
    """(buffer, copy) of what a forward pass in training mode changes: means and variances of batch norm."""
    modules = [m for m in model.modules() if isinstance(m, torch.nn.modules.batchnorm._BatchNorm)]
    return [(buffer, buffer.clone()) for module in modules for buffer in module.buffers()]


@contextmanager
def reporting_lack_of_memory(step, batches):
    """Turn an allocation that failed, on a GPU or in the host's memory, into OutOfMemory."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_lack_of_memory(error):
            raise
        raise OutOfMemory(step, batches) from error


def settle_gradient_exchange(learner, world):
    """Let DDP choose its buckets now, by a step that changes nothing.

    It chooses them anew after its first backward pass, and so the order of sums: a resumed run of 3 or more
    ranks would not go on bit for bit.
    """
    if world.size > 1:
        learner.parallel.train()
        with world.together(waits=False):
            zero_weighted_step(learner, Batch([], [], [], []), world)
        learner.optimizer.zero_grad()


def accumulate_gradients(learner, batches, world, recorder=None):
    """Forward and backward of each micro-batch -> their losses, float64 [len(batches), 5] on the CPU."""
    losses = []
    for index, batch in enumerate(batches):
        with world.no_sync(learner.parallel, last=index == len(batches) - 1):
            if batch.images:
                losses.append(forward_backward(learner, batch, world, 1 / len(batches), recorder))
            else:
                losses.append(zero_weighted_step(learner, batch, world))
    return torch.stack([copy.read() for copy in losses]).double()


def forward_backward(learner, batch, world, weight, recorder=None):
    """Add the gradient of one micro-batch's loss, times weight; returns the HostCopy of its losses [5]."""
    images, targets = to_device(batch, world.device)
    with learner.precision.autocast():
        losses = learner.parallel(images, targets, recorder=recorder)
    copy = HostCopy(torch.stack([losses[name].detach() for name in LOSS_NAMES]))
    with world.together():  # gradients are exchanged while they are computed
        learner.precision.backward(sum(losses.values()) * weight)
    return copy


def zero_weighted_step(learner, batch, world):
    """Take part in the exchange of gradients without an image: by a dummy one, weighted 0."""
    buffers = [buffer.clone() for buffer in learner.model.buffers()]
    target = {
        "boxes": torch.zeros(0, 4),
        "labels": torch.zeros(0, dtype=torch.int64),
        "masks": torch.zeros(0, DUMMY_SIZE, DUMMY_SIZE, dtype=torch.uint8),
        "iscrowd": torch.zeros(0, dtype=torch.uint8),
        "sample_seed": 0,
    }
    image = torch.zeros(3, DUMMY_SIZE, DUMMY_SIZE, dtype=torch.uint8)
    copy = forward_backward(learner, batch._replace(images=[image], targets=[target]), world, 0.0)
    with torch.no_grad():
        for buffer, before in zip(learner.model.buffers(), buffers, strict=True):
            buffer.copy_(before)
    return copy


class HostCopy:
    """A small tensor on its way to the host: sent before the backward pass is queued, read after it."""

    def __init__(self, tensor):
        self.value, self.event = tensor.to("cpu", non_blocking=True), None
        if tensor.is_cuda:
            self.event = torch.cuda.Event()
            self.event.record()

    def read(self):
        if self.event:
            self.event.synchronize()
        return self.value


def to_device(batch, device):
    """(images, targets) of a batch with everything that has a place moved to device."""
    images = [image.to(device, non_blocking=True) for image in batch.images]
    targets = [
        {key: value.to(device) if hasattr(value, "to") else value for key, value in target.items()}
        for target in batch.targets
    ]
    return images, targets


@dataclass
class EvalResult:
    """One evaluation, the same on every rank but for what follows `seconds`, which rank 0 has alone."""

    stats: dict[str, IouTypeResult]  # "bbox", "segm"
    losses: dict[str, float]  # mean over the images
    skipped: list[str]  # images that could not be read: they are left out of the numbers
    seconds: float
    results: list[dict] = field(default_factory=list)  # COCO result dicts, both box and mask
    samples: list[tuple] = field(default_factory=list)  # (image, target, detection), on the CPU
    image_ids: list[int] = field(default_factory=list)  # the images that the numbers are about

    @property
    def mask_ap(self):
        return self.stats["segm"].stats[0]


@dataclass
class BatchOutcome:
    """What one batch adds to an evaluation."""

    image_ids: list
    results: list[dict]
    losses: list[float]
    skipped: list[str]


@torch.inference_mode()
def evaluate(
    model, loader, data_set, world, precision=None, mask_threshold=0.5, keep_samples=0, on_batch=None
) -> EvalResult:
    """Losses, detections and COCO numbers of `model` on a data set, from one pass shared among the ranks.

    loader: EvalLoader of data_set; precision: a Precision, default float32; keep_samples: how many images
    to hand back with their detections; on_batch: called after each batch. On a CPU the numbers depend neither
    on the batch size nor on the number of ranks; on a GPU the losses, which weigh a batch's images by their
    samples, depend on the batch size. Raises InputError where no image could be read.
    """
    start, precision = time.perf_counter(), precision or Precision(world.device)
    world.phase("evaluation")
    model.eval()
    outcomes, samples = [], []
    for batch in loader:
        outcome, detections, targets = evaluate_batch(
            model, batch, data_set.label_map, world.device, precision, mask_threshold
        )
        outcomes.append(outcome)
        missing = keep_samples - len(samples)
        samples += list(zip(batch.images, targets, detections, strict=True))[:missing]
        if on_batch:
            on_batch(batch)
    # Batch k was dealt to rank k % size: taken in turn they are in the loader's order again.
    turns = itertools.zip_longest(*world.gather_on_main(outcomes))
    outcomes = [outcome for turn in turns for outcome in turn if outcome is not None]
    stats, losses, skipped = world.on_main(summarize, outcomes, data_set)
    if stats is None:
        raise InputError(f"none of the {len(data_set)} validation images could be read; the first: {skipped[0]}")
    results = [result for outcome in outcomes for result in outcome.results]
    image_ids = sorted(i for outcome in outcomes for i in outcome.image_ids)
    return EvalResult(stats, losses, skipped, time.perf_counter() - start, results, samples, image_ids)


def evaluate_batch(model, batch, label_map, device, precision, mask_threshold):
    """-> (BatchOutcome, detections, targets): the latter two on the CPU, per image."""
    if not batch.images:
        return BatchOutcome([], [], [0.0] * len(LOSS_NAMES), batch.skipped), [], []
    images, targets = to_device(batch, device)
    # A CPU takes them one by one: its kernels round differently for another number of images.
    at_once, sums, detections = 1 if device.type == "cpu" else len(images), [0.0] * len(LOSS_NAMES), []
    for i in range(0, len(images), at_once):
        with precision.autocast():
            losses, found = model(images[i : i + at_once], targets[i : i + at_once], paste_masks=False)
        sums = [so_far + float(losses[n]) * len(found) for so_far, n in zip(sums, LOSS_NAMES, strict=True)]
        detections += found
    image_ids = [int(target["image_id"]) for target in batch.targets]
    sizes = [tuple(image.shape[-2:]) for image in batch.images]
    detections = [{key: value.cpu() for key, value in d.items()} for d in detections]
    results = to_coco_results(detections, image_ids, sizes, label_map, mask_threshold)
    return BatchOutcome(image_ids, results, sums, batch.skipped), detections, batch.targets


def summarize(outcomes, data_set):
    """(stats per IoU type, mean losses, skipped) of all batches; no stats where no image was read."""
    skipped = [name for outcome in outcomes for name in outcome.skipped]
    image_ids = [i for outcome in outcomes for i in outcome.image_ids]
    if not image_ids:
        return None, {}, skipped
    results = [result for outcome in outcomes for result in outcome.results]
    stats = evaluate_results(data_set.ground_truth(), results, image_ids=sorted(image_ids))
    sums = [sum(values) for values in zip(*(outcome.losses for outcome in outcomes), strict=True)]
    return stats, {n: s / len(image_ids) for n, s in zip(LOSS_NAMES, sums, strict=True)}, skipped
