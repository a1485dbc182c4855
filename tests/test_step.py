"""One step is what it says, whatever it is made of: micro-batches, empty ones, dropout, a resumed epoch."""

import dataclasses
import math
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from torch import nn

from backbone.errors import InputError
from network_files import MaskRCNNConfig
from network_files.losses import LOSS_NAMES
from network_files.operators import padded
from tests.tiny_model import tiny
from train_utils.data.labels import LabelMap
from train_utils.data.loaders import Batch
from train_utils.processes.distributed import World
from train_utils.run import step as step_module
from train_utils.run.ema import EMA
from train_utils.run.evaluation import evaluate
from train_utils.run.optimization import (
    Precision,
    TrainState,
    amp_dtype,
    build_optimizer,
    build_schedule,
    lr_factor,
    why_left_off,
)
from train_utils.run.state import Progress
from train_utils.run.step import NonFiniteLoss, OutOfMemory, StepHooks, train_one_epoch, zero_weighted_step

CPU = torch.device("cpu")


class StandIn(nn.Module):
    """A model as small as can be: five losses from the images' mean colours."""

    config = MaskRCNNConfig()

    def __init__(self, dropout=0.0):
        super().__init__()
        self.norm, self.dropout = nn.BatchNorm2d(3), nn.Dropout(dropout)
        self.layer, self.frozen = nn.Linear(3, len(LOSS_NAMES)), nn.Linear(1, 1)
        self.frozen.requires_grad_(False)

    def forward(self, images, targets, paste_masks=True, recorder=None):
        stacked = torch.stack(images).to(self.layer.weight.dtype) / 255
        normal = self.norm(stacked).mean(dim=(2, 3))  # [N, 3]
        values = self.layer(self.dropout(normal)).square().mean(dim=0)  # [5]
        losses = dict(zip(LOSS_NAMES, values, strict=True))
        if self.training:
            return losses
        one = {"boxes": torch.tensor([[0.0, 0.0, 8.0, 8.0]]), "labels": torch.tensor([1])}
        one |= {"scores": torch.tensor([0.9]), "mask_probs": torch.ones(1, 28, 28)}
        return losses, [one] * len(images)


def test_a_step_without_images_has_the_models_channels():
    """On several ranks each run begins with such a step."""
    model = tiny(2, channels=1).train()
    state = TrainState(model, model, None, None, Precision(CPU))
    losses = zero_weighted_step(state, Batch([], [], [], []), World.single(CPU)).read()
    grads = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    assert losses.isfinite().all() and grads and not any(grad.any() for grad in grads)


class Loader:
    """Micro-batches of images; `spoil`: {(step, micro-step): function of a Batch}."""

    def __init__(self, steps=4, accumulate_steps=1, batch_size=2, spoil=None):
        self.steps_per_epoch, self.accumulate_steps, self.batch_size = steps, accumulate_steps, batch_size
        self.spoil = spoil or {}

    def epoch(self, epoch, first_step=0):
        for step in range(first_step, self.steps_per_epoch):
            for micro in range(self.accumulate_steps):
                batches_before = (epoch * self.steps_per_epoch + step) * self.accumulate_steps + micro
                first = batches_before * self.batch_size
                batch = make_batch(range(first, first + self.batch_size))
                yield self.spoil.get((step, micro), lambda b: b)(batch)


def make_batch(indices):
    images = [image(i) for i in indices]
    targets = [{"image_id": i, "boxes": torch.zeros(0, 4)} for i in indices]
    return Batch(images, targets, list(indices), [])


def image(index):
    generator = torch.Generator().manual_seed(index)
    return torch.randint(256, (3, 8, 8), dtype=torch.uint8, generator=generator)


def empty(batch):
    return Batch([], [], [], [f"{index}.png: cut off" for index in batch.indices])


def make_state(dropout=0.0, lr=0.1, ema=False, clip=None, optimizer="sgd", precision=None):
    torch.manual_seed(0)
    model = StandIn(dropout)
    optimizer = build_optimizer(model, optimizer, lr)
    schedule = build_schedule(optimizer, total_steps=8, warmup_steps=2)
    average = EMA(model, 0.5) if ema else None
    return TrainState(model, model, optimizer, schedule, precision or Precision(CPU), average, clip)


def run_steps(state, loader, epoch=0, first_step=0):
    return list(train_one_epoch(state, loader, World.single("cpu"), epoch, first_step))


def weights(state):
    return {name: value.clone() for name, value in state.model.state_dict().items()}


def assert_equal(first, second, **tolerance):
    torch.testing.assert_close(first, second, **tolerance or {"rtol": 0, "atol": 0})


# --- steps ---


def test_accumulated_micro_batches_give_the_mean_gradient():
    """Two micro-batches of one image are one batch of two, where no norm looks at the batch."""
    outcomes = []
    for accumulate, size in ((1, 2), (2, 1)):
        state = make_state()
        state.model.norm = nn.Identity()
        records = run_steps(state, Loader(accumulate_steps=accumulate, batch_size=size))
        outcomes.append((weights(state), records))
    assert_equal(outcomes[0][0], outcomes[1][0], rtol=1e-5, atol=1e-6)
    for one, two in zip(outcomes[0][1], outcomes[1][1], strict=True):
        assert one.losses == pytest.approx(two.losses, rel=1e-5)


def test_each_step_changes_what_trains_and_only_that():
    state = make_state()
    before = weights(state)
    records = run_steps(state, Loader())
    after = weights(state)
    assert not torch.equal(before["layer.weight"], after["layer.weight"])
    assert_equal(before["frozen.weight"], after["frozen.weight"])
    driven = {id(p) for group in state.optimizer.param_groups for p in group["params"]}
    assert driven == {id(p) for p in state.model.parameters() if p.requires_grad}
    assert [record.step for record in records] == [0, 1, 2, 3]
    assert all(list(record.losses) == list(LOSS_NAMES) and record.own.seconds > 0 for record in records)
    assert records[0].lr == pytest.approx(0.1 * 0.001) and records[2].lr == pytest.approx(0.1)


def test_an_epoch_entered_in_its_middle_gives_the_same_weights():
    """Dropout included: it is drawn by step, so nothing about random states needs saving."""
    whole, halves = make_state(dropout=0.5), make_state(dropout=0.5)
    run_steps(whole, Loader())
    for record in train_one_epoch(halves, Loader(), World.single("cpu"), 0):
        if record.step == 1:
            break
    torch.manual_seed(99)
    run_steps(halves, Loader(), first_step=2)
    assert_equal(weights(whole), weights(halves))
    assert run_steps(whole, Loader(), epoch=1, first_step=4) == []


def test_dropout_differs_between_steps_and_ranks():
    def first_loss(rank, step):
        state, world = make_state(dropout=0.5), World(rank, 1, rank, CPU)
        loader = Loader(batch_size=16, steps=3)
        loader.epoch = lambda epoch, first_step: iter([make_batch(range(16))])
        return next(train_one_epoch(state, loader, world, 0, step)).losses

    assert first_loss(0, 0) == first_loss(0, 0)
    assert first_loss(0, 0) != first_loss(0, 1)
    assert first_loss(0, 0) != first_loss(1, 0)


def test_a_batch_without_images_is_a_step_of_weight_zero():
    state = make_state()
    before = weights(state)
    zero_weighted_step(state, empty(make_batch(range(2))), World.single(CPU))
    assert_equal(before, weights(state))
    assert (state.model.layer.weight.grad == 0).all()


def test_unreadable_images_are_counted_and_leave_the_losses_alone():
    spoilt = run_steps(make_state(), Loader(steps=1, accumulate_steps=2, spoil={(0, 1): empty}))[0]
    whole = run_steps(make_state(), Loader(steps=1))[0]
    assert spoilt.losses == pytest.approx(whole.losses)
    assert (spoilt.skipped, spoilt.own.skipped_files) == (2, ["2.png: cut off", "3.png: cut off"])
    nothing = run_steps(make_state(), Loader(steps=1, spoil={(0, 0): empty}))[0]
    assert nothing.losses is None and nothing.skipped == 2


def test_a_loss_that_is_not_finite_stops_before_the_weights_change():
    state = make_state()
    poison = {(1, 1): lambda b: b._replace(images=[torch.full((3, 8, 8), math.nan)] * 2)}
    steps = train_one_epoch(state, Loader(accumulate_steps=2, spoil=poison), World.single("cpu"), 0)
    next(steps)
    before = {name: p.detach().clone() for name, p in state.model.named_parameters()}
    with pytest.raises(NonFiniteLoss) as caught:
        next(steps)
    assert caught.value.step == 1 and caught.value.batch.indices == [6, 7]
    assert not caught.value.losses.isfinite().any()
    assert_equal(before, dict(state.model.named_parameters()))


def snapshots(poisoned, optimizer, stop_at=None):
    """What a run of 4 steps knows at each record: step, losses, bad, stop, weights, average, momentum, rate."""
    poison = {(n, 0): lambda b: b._replace(images=[torch.full((3, 8, 8), math.nan)] * 2) for n in poisoned}
    state, left = make_state(ema=True, clip=1.0, optimizer=optimizer), [len(poisoned)]
    state.model.norm = nn.Identity()
    hooks = StepHooks(lambda: stop_at is not None and len(seen) >= stop_at, lambda: left[0] > 0)
    seen = []
    for record in train_one_epoch(state, Loader(spoil=poison), World.single("cpu"), 0, hooks=hooks):
        left[0] -= record.bad is not None
        momentum = [v.clone() for slot in state.optimizer.state.values() for v in slot.values()]
        average = {name: value.clone() for name, value in state.ema.average.items()}
        about = (record.step, record.losses, record.lr, record.bad and record.bad.batch.indices, record.stop)
        measures = {name: value.read() for name, value in record.own.measures.items()}
        seen.append((about, weights(state), average, momentum, measures, state.schedule.state_dict()["last_epoch"]))
        if record.stop:
            break
    return seen


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize(("poisoned", "stop_at"), [((), None), ((1, 2), None), ((3,), None), ((), 2)])
def test_losses_read_a_step_late_change_nothing(poisoned, stop_at, optimizer, monkeypatch):
    """What a checkpoint would hold at each record is the same, with steps that are skipped and a stop."""
    at_once = snapshots(poisoned, optimizer, stop_at)
    monkeypatch.setattr(padded, "CHEAP", ())
    late = snapshots(poisoned, optimizer, stop_at)
    for one, other in zip(at_once, late, strict=True):
        assert one[0] == other[0] and one[-1] == other[-1]
        assert_equal(one[1:-1], other[1:-1])
    assert len(at_once) == (4 if stop_at is None else stop_at + 1)


def test_losses_are_read_when_the_next_gradient_is_on_its_way(monkeypatch):
    monkeypatch.setattr(padded, "CHEAP", ())
    told, compute, read = [], step_module.accumulate_gradients, padded.HostCopy.read
    monkeypatch.setattr(step_module, "accumulate_gradients", lambda *args: told.append("compute") or compute(*args))
    monkeypatch.setattr(padded.HostCopy, "read", lambda copy: told.append("read") or read(copy))
    state = make_state()
    state.model.norm = nn.Identity()
    run_steps(state, Loader(steps=3))  # the first one makes the momentum
    assert told == ["compute", "read", "compute", "compute", "read", "read"]
    told.clear()
    run_steps(make_state(), Loader(steps=2))  # batch norm: its running means are those of the step that is saved
    assert told == ["compute", "read"] * 2


def test_a_loss_that_is_not_finite_stops_a_run_that_reads_late(monkeypatch):
    monkeypatch.setattr(padded, "CHEAP", ())
    state, computed = make_state(), step_module.accumulate_gradients
    state.model.norm = nn.Identity()
    poison = {(1, 0): lambda b: b._replace(images=[torch.full((3, 8, 8), math.nan)] * 2)}
    steps = train_one_epoch(state, Loader(spoil=poison), World.single("cpu"), 0)
    next(steps)
    before = weights(state)
    with pytest.raises(NonFiniteLoss, match="step 1") as caught:
        next(steps)
    assert caught.value.batch.indices == [2, 3]
    assert_equal(before, weights(state))

    def scarce(state, batches, *more):
        if batches[0].indices == [4, 5]:
            raise MemoryError
        return computed(state, batches, *more)

    monkeypatch.setattr(step_module, "accumulate_gradients", scarce)
    steps = train_one_epoch(state, Loader(), World.single("cpu"), 0)
    assert [next(steps).step, next(steps).step] == [0, 1]  # the record of what was done comes first
    with pytest.raises(OutOfMemory, match="step 2"):
        next(steps)


def test_a_stop_is_granted_after_the_step():
    steps = train_one_epoch(make_state(), Loader(), World.single("cpu"), 0, hooks=StepHooks(lambda: True))
    assert next(steps).stop
    assert not run_steps(make_state(), Loader(steps=1))[0].stop


def test_gradient_clipping_and_averages():
    plain, clipped = make_state(), make_state(clip=0.01, ema=True)
    start = weights(plain)["layer.weight"]
    run_steps(plain, Loader(batch_size=4))
    run_steps(clipped, Loader(batch_size=4))
    moved = [(weights(state)["layer.weight"] - start).norm() for state in (plain, clipped)]
    assert moved[1] < moved[0] / 10
    assert_equal(clipped.ema.average["norm.running_mean"], clipped.model.norm.running_mean)
    assert not torch.equal(clipped.ema.average["layer.weight"], clipped.model.layer.weight)


def test_half_precision_scales_and_bfloat16_does_not():
    assert Precision(CPU, torch.float16).scaler is not None
    precision = Precision(CPU, torch.bfloat16)
    assert precision.scaler is None
    with precision.autocast():
        assert nn.Linear(2, 2)(torch.ones(1, 2)).dtype == torch.bfloat16
    with Precision(CPU).autocast() as region:
        assert isinstance(Precision(CPU).autocast(), nullcontext) and region is None
    assert amp_dtype(CPU) in (torch.bfloat16, None) and amp_dtype(CPU, False) is None
    scaled, plain = make_state(precision=Precision(CPU, torch.float16)), make_state()
    scaled.precision.dtype = None  # the scaler alone: float16 arithmetic would round
    norms = [
        [record.own.measures["gradient norm"].read() for record in run_steps(state, Loader())]
        for state in (scaled, plain)
    ]
    assert_equal(weights(scaled), weights(plain), rtol=1e-4, atol=1e-6)
    assert_equal(torch.stack(norms[0]), torch.stack(norms[1]), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("flags", "fast", "why"),
    [
        ("avx2", False, "no bfloat16 of its own"),
        ("avx512f avx512_bf16", False, "without AMX, which is slower"),
        ("avx512_bf16 amx_bf16 amx_tile", True, None),
        ("asimd svebf16", True, None),
    ],
)
def test_a_cpu_takes_bfloat16_where_it_is_faster(flags, fast, why, monkeypatch):
    monkeypatch.setattr(Path, "read_text", lambda path: f"flags\t\t: fpu {flags}\n")
    assert (amp_dtype(CPU) == torch.bfloat16) == fast and amp_dtype(CPU, "force") == torch.bfloat16
    assert amp_dtype(CPU, False) is None and (fast or why in why_left_off())


@pytest.mark.parametrize("clip", [None, 0.01])
def test_the_gradient_norm_is_that_before_clipping(clip):
    state, twin = make_state(clip=clip), make_state()
    batch = make_batch(range(2))
    sum(twin.model(batch.images, batch.targets).values()).backward()
    expected = torch.cat([p.grad.flatten() for p in twin.model.parameters() if p.grad is not None]).norm()
    first = run_steps(state, Loader(batch_size=2))[0]
    assert_equal(first.own.measures["gradient norm"].read(), expected, rtol=1e-6, atol=0)


# --- learning rate ---


def test_learning_rate_by_hand():
    steps = dict(total_steps=100, warmup_steps=10, milestones=[60, 80])
    assert lr_factor(0, **steps) == pytest.approx(0.001)
    assert lr_factor(5, **steps) == pytest.approx(0.5005)
    assert [lr_factor(s, **steps) for s in (10, 59)] == [1, 1]
    assert [lr_factor(s, **steps) for s in (60, 79, 80, 99)] == pytest.approx([0.1, 0.1, 0.01, 0.01])
    cosine = dict(total_steps=110, warmup_steps=10, schedule="cosine")
    assert [lr_factor(s, **cosine) for s in (10, 60, 110)] == pytest.approx([1, 0.5, 0])


@pytest.mark.parametrize("schedule", ["steps", "cosine"])
@pytest.mark.parametrize(("total", "warmup"), [(1, 1), (1, 0), (1, 1000), (5, 5)])
def test_learning_rate_of_the_shortest_runs(schedule, total, warmup):
    for step in range(total + 1):
        factor = lr_factor(step, total_steps=total, warmup_steps=warmup, schedule=schedule)
        assert 0 <= factor <= 1


def test_optimisers():
    assert isinstance(build_optimizer(StandIn(), "adamw", 1.0), torch.optim.AdamW)
    group = build_optimizer(StandIn(), "sgd", 0.5, 0.8, 0.01).param_groups[0]
    assert (group["lr"], group["momentum"], group["weight_decay"]) == (0.5, 0.8, 0.01)
    with pytest.raises(InputError, match="sgd or adamw"):
        build_optimizer(StandIn(), "adam", 1.0)


# --- evaluation ---


class FullImages:
    """A data set of images that one object fills."""

    label_map = LabelMap.from_names({1: "square"})

    def __len__(self):
        return 3

    def file_name(self, i):
        return f"{i}.png"

    def ground_truth(self, unmasked=False):
        rle = {"size": [8, 8], "counts": [0, 64]}
        objects = [
            {"id": i + 1, "image_id": i, "category_id": 1, "bbox": [0, 0, 8, 8], "area": 64, "iscrowd": 0,
             "segmentation": rle} for i in range(3)
        ]  # fmt: skip
        images = [{"id": i, "height": 8, "width": 8} for i in range(3)]
        return {"images": images, "annotations": objects, "categories": [{"id": 1, "name": "square"}]}


class Batches(list):
    """Batches in place of a loader."""

    strict = False


def test_evaluation_by_hand():
    """Every detection is right: AP 1; the losses are means over images, not over batches."""
    batches, seen = Batches([make_batch([0, 1]), make_batch([2])]), []
    model = StandIn()
    result = evaluate(
        model, batches, FullImages(), World.single("cpu"), keep_samples=2, on_batch=lambda b: seen.append(b.indices)
    )
    assert [result.stats[t].stats[0] for t in ("bbox", "segm")] == pytest.approx([1, 1])
    assert result.mask_ap == result.stats["segm"].stats[0]
    assert [r["image_id"] for r in result.found.results] == [0, 1, 2] and seen == [[0, 1], [2]]
    assert len(result.samples) == 2 and torch.equal(result.samples[1][0], image(1))
    singles = [model([image(i)], None)[0] for i in range(3)]
    for name in LOSS_NAMES:
        assert result.losses[name] == pytest.approx(sum(s[name].item() for s in singles) / 3)


def test_unreadable_images_are_left_out_of_the_numbers():
    batches = Batches([make_batch([0]), empty(make_batch([1])), make_batch([2])])
    result = evaluate(StandIn(), batches, FullImages(), World.single("cpu"))
    assert result.found.skipped == ["1.png: cut off"] and result.stats["bbox"].stats[0] == pytest.approx(1)
    with pytest.raises(InputError, match="none of the 3 .* 0.png: cut off"):
        evaluate(StandIn(), Batches([empty(make_batch([0]))]), FullImages(), World.single("cpu"))


def test_an_overflow_of_float16_is_counted_and_leaves_the_weights():
    state = make_state()
    state.precision = Precision(CPU)
    state.precision.scaler = torch.amp.GradScaler("cpu", init_scale=2.0)
    original = state.precision.backward

    def overflowing(loss):
        original(loss)
        if state.precision.scaler.get_scale() == 2.0:
            state.model.layer.weight.grad.fill_(math.inf)

    state.precision.backward = overflowing
    steps = train_one_epoch(state, Loader(), World.single("cpu"), 0)
    before = weights(state)
    assert next(steps).overflow
    assert not state.optimizer.state  # fused SGD's momentum would be memory that was never written
    for name in ("layer.weight", "layer.bias"):
        assert_equal(before[name], weights(state)[name])
    assert not next(steps).overflow and state.precision.scaler.get_scale() == 1.0
    progress = Progress(4)
    for record in run_steps(state, Loader()):
        progress.end_step(dataclasses.replace(record, overflow=record.step < 2))
    assert progress.overflows == 2
