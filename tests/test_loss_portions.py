"""The law of loss_in_portions: the loss of all rows and its gradients, one portion's activations at a time."""

import pytest
import torch

from network_files import loss_portions
from network_files.loss_portions import loss_in_portions


@pytest.mark.parametrize("fp16", [False, True])
def test_value_and_gradients_are_those_of_the_whole_loss(fp16, monkeypatch):
    monkeypatch.setattr(loss_portions, "in_float16", lambda _: fp16)  # then gradients wait for the backward pass
    layer = torch.nn.Linear(3, 2).double()
    layer.bias.requires_grad_(False)
    x = torch.randn(7, 3, dtype=torch.float64, requires_grad=True)
    y, sizes = torch.randn(7, 2, dtype=torch.float64), []

    def loss(x, y):
        sizes.append(len(x))
        return (layer(x) - y).square().sum()

    whole = 2 * loss(x, y)
    portions = 2 * loss_in_portions(loss, (x, y), 3, layer.parameters())
    assert sizes == [7, 3, 3, 1]
    torch.testing.assert_close(portions, whole, rtol=1e-12, atol=0)
    expected = torch.autograd.grad(whole, [x, layer.weight])
    for _ in range(2):  # also when the graph is used twice
        found = torch.autograd.grad(portions, [x, layer.weight], retain_graph=True)
        for a, b in zip(found, expected, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)
    with torch.no_grad():
        assert not loss_in_portions(loss, (x, y), 3, []).requires_grad


@pytest.mark.parametrize("rows", [0, 3])
def test_few_rows_are_one_portion(rows):
    x, sizes = torch.randn(rows, 2, requires_grad=True), []
    loss_in_portions(lambda x: (sizes.append(len(x)), x.sum())[1], (x,), 3, []).backward()
    assert sizes == [rows] and torch.equal(x.grad, torch.ones(rows, 2))
