"""Averaged weights: the average, buffers, resuming, and lending them to the model."""

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from backbone.errors import InputError
from train_utils.run.ema import EMA


def small_model():
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2), nn.Linear(2, 1))
    model[0].bias.requires_grad_(False)
    return model


def change(model, by):
    with torch.no_grad():
        for p in model.parameters():
            p.add_(by)
        model[1].running_mean.add_(by)
        model[1].num_batches_tracked.add_(1)


def test_average_follows_the_formula_and_buffers_are_copied():
    model = small_model()
    expected = model[2].weight.detach().clone().double()
    ema = EMA(model, decay=0.3)
    for step in range(6):
        change(model, step + 1.0)
        ema.update(model, step)
        decay = min(0.3, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * model[2].weight.detach()
    average = ema.state_dict()
    assert torch.allclose(average["2.weight"].double(), expected, rtol=1e-6)
    assert not torch.equal(average["2.weight"], model[2].weight)
    for name in ("0.bias", "1.running_mean", "1.num_batches_tracked"):  # frozen, buffers
        assert torch.equal(average[name], model.state_dict()[name])
    assert average.keys() == model.state_dict().keys()


def test_an_update_is_as_many_operators_for_any_number_of_layers():
    counts = []
    for layers in (1, 5):
        model = nn.Sequential(*(nn.BatchNorm1d(2) for _ in range(layers)), nn.Linear(2, 1)).requires_grad_(False)
        model[-1].requires_grad_(True)
        ema = EMA(model)
        with Counted() as seen:
            ema.update(model, 0)
        counts.append(len(seen.operators))
    assert counts[0] == counts[1] > 0


class Counted(TorchDispatchMode):
    """Notes the operators of a block."""

    def __init__(self):
        super().__init__()
        self.operators = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if "detach" not in str(func):  # of state_dict: no work of a device
            self.operators.append(func)
        return func(*args, **(kwargs or {}))


def test_applied_lends_the_average_and_gives_the_weights_back():
    model = small_model()
    ema = EMA(model)
    change(model, 0.1)
    own = {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises(RuntimeError, match="stop"), ema.applied(model) as lent:
        assert all(torch.equal(v, ema.average[k]) for k, v in lent.state_dict().items())
        assert torch.is_grad_enabled()
        raise RuntimeError("stop")
    assert all(torch.equal(v, own[k]) for k, v in model.state_dict().items())
    assert model[2].weight.requires_grad and not model[0].bias.requires_grad


def test_resumed_average_is_bit_identical():
    def run(model, ema, steps):
        for step in steps:
            change(model, 0.37 * step)
            ema.update(model, step)

    whole_model = small_model()
    whole = EMA(whole_model, 0.9)
    run(whole_model, whole, range(7))

    model = small_model()
    first = EMA(model, 0.9)
    run(model, first, range(3))
    second = EMA(model, 0.9)
    second.load_state_dict({k: v.clone() for k, v in first.state_dict().items()})
    run(model, second, range(3, 7))
    assert all(torch.equal(v, whole.average[k]) for k, v in second.average.items())


def test_wrong_state_and_decay_are_refused():
    ema = EMA(small_model())
    with pytest.raises(InputError, match="of another model"):
        ema.load_state_dict({**ema.state_dict(), "2.weight": torch.zeros(2, 2)})
    for decay in (-0.1, 1.0, float("nan")):
        with pytest.raises(InputError, match="decay"):
            EMA(small_model(), decay)
