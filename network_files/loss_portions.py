"""A loss over many rows, computed a portion of the rows at a time.

Law: value and gradients are those of loss(*inputs), where loss(*inputs) is the sum of the losses of the portions. Each
portion's gradient is made together with its loss, so that the activations of one portion live at a time.
"""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable


def loss_in_portions(
    loss: Callable[..., Tensor], inputs: tuple[Tensor, ...], at_once: int, parameters: Iterable[Tensor]
) -> Tensor:
    """Returns loss(*inputs), a scalar, computed `at_once` rows at a time.

    inputs: [K, ...] each; gradients reach the first of them and the parameters, all that the loss depends on.
    """
    if len(inputs[0]) <= at_once:
        return loss(*inputs)
    if in_float16(inputs[0].device.type) or not torch.is_grad_enabled():
        # under fp16 gradients wait for the backward pass: before the loss is scaled they would underflow
        return sum(loss(*portion) for portion in _split(inputs, at_once))
    return _LossInPortions.apply(loss, inputs[1:], at_once, inputs[0], *parameters)


def in_float16(device: str) -> bool:
    """Says whether autocast computes in float16 on that type of device."""
    return torch.is_autocast_enabled(device) and torch.get_autocast_dtype(device) == torch.float16


def _split(inputs: tuple[Tensor, ...], at_once: int) -> Iterable[tuple[Tensor, ...]]:
    return zip(*(t.split(at_once) for t in inputs), strict=True)


class _LossInPortions(torch.autograd.Function):
    """Makes all gradients in the forward pass, and multiplies them in the backward pass."""

    @staticmethod
    def forward(
        ctx: FunctionCtx,
        loss: Callable[..., Tensor],
        others: tuple[Tensor, ...],
        at_once: int,
        x: Tensor,
        *parameters: Tensor,
    ) -> Tensor:
        trained = [p for p in parameters if p.requires_grad]
        total, x_grads, sums = x.new_zeros(()), [], None
        for some, *rest in _split((x, *others), at_once):
            with torch.enable_grad():
                some = some.detach().requires_grad_()
                value = loss(some, *rest)
            x_grad, *grads = torch.autograd.grad(value, [some, *trained])
            total += value.detach()
            x_grads.append(x_grad)
            sums = grads if sums is None else [a.add_(b) for a, b in zip(sums, grads, strict=True)]
        ctx.save_for_backward(torch.cat(x_grads), *sums)
        ctx.trained = [p.requires_grad for p in parameters]
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, grad: Tensor) -> tuple[Tensor | None, ...]:
        x_grad, *sums = (saved * grad for saved in ctx.saved_tensors)
        return None, None, None, x_grad, *(sums.pop(0) if trained else None for trained in ctx.trained)
