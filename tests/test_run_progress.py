"""The curve that a checkpoint keeps: bounded, the means of equal parts, and the same over any number of resumptions."""

import math
import random
from types import SimpleNamespace

import pytest
import torch

from train_utils.run import state
from train_utils.run.state import Progress

FEW = 16


def record(step, loss):
    losses = None if loss is None else {"loss_mask": loss}
    return SimpleNamespace(step=step, losses=losses, lr=step / 1e3, skipped=0, bad=None, overflow=False)


@pytest.fixture(autouse=True)
def short(monkeypatch):
    monkeypatch.setattr(state, "LONGEST", FEW)


def test_a_long_run_keeps_a_short_curve_of_means():
    progress, rng = Progress(10), random.Random(0)
    losses = [rng.random() for _ in range(1000)]
    for step, loss in enumerate(losses):
        progress.end_step(record(step, loss))
        assert len(progress.curve) <= FEW and progress.curve[-1][1] == step / 1e3
        if step < FEW - 1:
            assert progress.curve == [(value, i / 1e3) for i, value in enumerate(losses[: step + 1])]
        stride = progress.curve_stride
        assert len(progress.curve) == math.ceil((step + 1) / stride) and progress.curve_steps == step + 1
    assert stride == 64
    for point, (loss, lr) in enumerate(progress.curve):
        part = losses[point * stride : (point + 1) * stride]
        assert loss == pytest.approx(sum(part) / len(part)) and lr == (point * stride + len(part) - 1) / 1e3


def test_it_is_the_same_however_often_the_run_was_resumed():
    uncut, cut, rng = Progress(10), Progress(10), random.Random(1)
    for step in range(300):
        loss = None if step % 7 == 0 else rng.random()
        for progress in (uncut, cut):
            progress.end_step(record(step, loss))
        if rng.random() < 0.2:
            cut = Progress.from_dict(cut.to_dict())
        one, two = (torch.tensor(progress.curve).nan_to_num(9.0) for progress in (uncut, cut))
        assert torch.equal(one, two)
    assert sum(map(math.isnan, torch.tensor(uncut.curve)[:, 0].tolist())) == 0


def test_a_curve_of_an_older_file_is_shortened():
    older = Progress(10, curve=[(float(i), i / 1e3) for i in range(5 * FEW + 3)]).to_dict()
    del older["curve_stride"], older["curve_steps"]
    progress = Progress.from_dict(older)
    assert progress.curve_stride == 8 and progress.curve_steps == 5 * FEW + 3 and len(progress.curve) == 11
    assert progress.curve[0] == (3.5, 0.007) and progress.curve[-1][1] == older["curve"][-1][1]
