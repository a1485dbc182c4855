"""Gradients of convolutions by matrix products, beside the library's."""

import itertools

import pytest
import torch
from torch import nn

from backbone import convolution
from backbone.convolution import Conv2d, weight_gradient
from backbone.norm import FrozenBatchNorm2d, conv_norm


@pytest.fixture(autouse=True)
def always_by_products(monkeypatch):
    """Lets any processor, and maps of any size, take the path of matrix products."""
    monkeypatch.setattr(convolution, "SLOW", True)
    monkeypatch.setattr(convolution, "LEAST_CELLS", 1)


def near(tensor: torch.Tensor) -> torch.Tensor:
    """Returns it in the channels-last order."""
    return tensor.contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("portion", [1, 4000, 1 << 21], ids=["a row", "some rows", "all"])
def test_the_weight_gradient_is_the_librarys(monkeypatch, portion):
    monkeypatch.setattr(convolution, "PORTION", portion)
    sizes = itertools.product((1, 3), (5, 8), (6,), (2, 3), (1, 2, 3), (0, 1))
    for count, height, width, kernel, stride, padding in sizes:
        x = near(torch.randn(count, 16, height, width, dtype=torch.float64))
        weight = torch.randn(24, 16, kernel, kernel, dtype=torch.float64, requires_grad=True)
        y = nn.functional.conv2d(x, weight, None, stride, padding)
        grad = torch.randn_like(y)
        y.backward(grad)
        own = weight_gradient(x, grad, kernel, stride, padding)
        torch.testing.assert_close(own, weight.grad, msg=f"{x.shape}, {kernel}, {stride}, {padding}")


@pytest.fixture
def products(monkeypatch):
    """Counts the calls of `weight_gradient`."""
    calls = []
    real = convolution.weight_gradient
    monkeypatch.setattr(convolution, "weight_gradient", lambda *args: calls.append(args) or real(*args))
    return calls


@pytest.mark.parametrize("frozen", [False, True], ids=["a bias", "a folded norm"])
@pytest.mark.parametrize("stride", [1, 2])
def test_a_layer_has_all_gradients(products, frozen, stride):
    conv = Conv2d(16, 16, 3, stride, 1, bias=not frozen).to(memory_format=torch.channels_last)
    norm = FrozenBatchNorm2d(16) if frozen else None
    if frozen:
        for buffer in (norm.weight, norm.bias, norm.running_mean, norm.running_var):
            buffer.copy_(torch.rand(16) + 0.5)
    x = near(torch.randn(2, 16, 9, 12)).requires_grad_()
    y = conv_norm(x, conv, norm)
    grad = torch.randn_like(y)
    y.backward(grad)
    assert len(products) == 1

    twin = nn.Conv2d(16, 16, 3, stride, 1, bias=not frozen).double()
    twin.load_state_dict(conv.state_dict())
    other = x.detach().double().requires_grad_()
    z = twin(other) if norm is None else norm.double()(twin(other))
    z.backward(grad.double())
    torch.testing.assert_close(y.double(), z, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(x.grad.double(), other.grad, atol=1e-5, rtol=1e-5)
    for one, its in zip(conv.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(one.grad.double(), its.grad, atol=1e-4, rtol=1e-5)


def test_what_does_not_suit_is_left_to_the_library(products, monkeypatch):
    """1x1, few channels, groups, other types, another order of memory, a frozen weight, a small map, autocast."""
    x = near(torch.randn(1, 16, 8, 8))
    layers = [Conv2d(16, 16, 1), Conv2d(16, 8, 3), Conv2d(16, 16, 3, groups=16), Conv2d(16, 16, 3, dilation=2)]
    for layer in [*layers, Conv2d(16, 16, (3, 1)), Conv2d(16, 16, 3, (1, 2)), Conv2d(16, 16, 3, padding=(0, 1))]:
        layer(x).sum().backward()
    Conv2d(16, 16, 3)(x.contiguous()).sum().backward()
    Conv2d(16, 16, 3).double()(x.double()).sum().backward()
    Conv2d(16, 16, 3).requires_grad_(False)(x.clone().requires_grad_()).sum().backward()
    with torch.autocast("cpu", torch.bfloat16):
        Conv2d(16, 16, 3)(x).float().sum().backward()
    monkeypatch.setattr(convolution, "LEAST_CELLS", 65)
    Conv2d(16, 16, 3)(x).sum().backward()
    assert not products
    monkeypatch.setattr(convolution, "LEAST_CELLS", 64)
    Conv2d(16, 16, 3)(x).sum().backward()
    assert len(products) == 1


def test_no_gradient_costs_nothing():
    """Without gradients, and in an exported graph, the layer is nn.Conv2d."""
    conv, x = Conv2d(16, 16, 3), near(torch.randn(1, 16, 8, 8))
    with torch.no_grad():
        assert conv(x).grad_fn is None
    assert type(conv(x).grad_fn).__name__ == "ConvolutionBackward"
    graph = torch.export.export(conv, (x,)).graph_module.code
    assert "conv2d" in graph and "autograd_function" not in graph
