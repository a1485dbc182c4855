"""Convolutions with gradients of their own: of a folded weight, and of any weight where a CPU's library is slow at it.

Shapes: N images, C channels in, O out, H x W cells in, h x w out, kernel K x K, stride S.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx, once_differentiable

# With AVX2 alone oneDNN is slow at the weight gradient of large channels-last maps: of a ResNet-50's 3x3 convolutions
# it makes 4 to 17 billion multiplications a second on a core whose products make 26 to 36 (torch 2.14, AMD EPYC), of
# maps of 32 x 32 cells 24 beside 26. With AVX-512 its own are kept: there a step took 0.62 of torchvision's time.
SLOW = torch.backends.cpu.get_cpu_capability() == "AVX2"
LEAST_CHANNELS, LEAST_CELLS = 16, 1500  # in and out, and of an output's map, from which on products are quicker
PORTION = 1 << 21  # numbers that are copied at a time, so that they stay near


class Conv2d(nn.Conv2d):
    """nn.Conv2d, with `Convolution`'s gradients where those are quicker."""

    def forward(self, x: Tensor) -> Tensor:
        """Convolves."""
        geometry = self.stride, self.padding, self.dilation
        if torch.is_grad_enabled() and by_products(x, self.weight, geometry, self.groups):
            return Convolution.apply(x, self.weight, None, self.bias, geometry, self.groups)
        return super().forward(x)


class Convolution(torch.autograd.Function):
    """The convolution of x with weight * scale and a bias; no folded weight is kept for the backward pass.

    scale [O, 1, 1, 1] is a constant, None: 1; geometry: stride, padding, dilation.
    """

    @staticmethod
    def forward(
        ctx: FunctionCtx,
        x: Tensor,
        weight: Tensor,
        scale: Tensor | None,
        bias: Tensor | None,
        geometry: tuple,
        groups: int,
    ) -> Tensor:
        """Convolves with the folded weight."""
        ctx.save_for_backward(x, weight, scale)
        ctx.geometry, ctx.groups = geometry, groups
        return F.conv2d(x, weight if scale is None else weight * scale, bias, *geometry, groups)

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Folds the weight again, and returns the gradients of x, weight and bias."""
        x, weight, scale = ctx.saved_tensors
        folded = weight if scale is None else weight * scale
        wanted = [ctx.needs_input_grad[i] for i in (0, 1, 3)]
        own = wanted[1] and x.dtype == grad.dtype and by_products(x, weight, ctx.geometry, ctx.groups)
        if own:
            (stride, _), (padding, _), _ = ctx.geometry
            weight_grad = weight_gradient(x, grad, weight.shape[-1], stride, padding)
            bias_grad = grad.sum((0, 2, 3)) if wanted[2] else None
            wanted[1:] = False, False  # for the bias's alone the library computes the weight's, too
        values = grad, x.to(grad.dtype), folded.to(grad.dtype), [len(weight)]
        x_grad, *others = torch.ops.aten.convolution_backward(*values, *ctx.geometry, False, [0, 0], ctx.groups, wanted)
        if not own:
            weight_grad, bias_grad = others
        if weight_grad is not None:
            weight_grad = weight_grad.to(weight.dtype)
            weight_grad = weight_grad if scale is None else weight_grad.mul_(scale)
        # autograd casts the other two where autocast made the convolution's type another
        return x_grad, weight_grad, None, bias_grad, None, None


def by_products(x: Tensor, weight: Tensor, geometry: tuple, groups: int) -> bool:
    """Says whether `weight_gradient` suits a convolution, and is quicker than the library's."""
    stride, padding, dilation = geometry
    return (
        SLOW
        and x.device.type == "cpu"
        and x.dtype == weight.dtype == torch.float32
        and groups == 1
        and weight.shape[2] == weight.shape[3] > 1
        and dilation == (1, 1)
        and stride[0] == stride[1]
        and padding[0] == padding[1]
        and min(weight.shape[:2]) >= LEAST_CHANNELS
        and x.shape[2] * x.shape[3] >= LEAST_CELLS * stride[0] ** 2
        and x.is_contiguous(memory_format=torch.channels_last)
    )


def weight_gradient(x: Tensor, grad: Tensor, kernel: int, stride: int, padding: int) -> Tensor:
    """Returns the gradient [O, C, K, K] of a convolution's weight: a matrix product for each of its K x K places.

    x [N, C, H, W]; grad [N, O, h, w]. Both are laid out with so much zero beside them that the cells which a place
    reads are one run of rows in memory: cell (y, x) of the output is row y w' + x, and reads row y w' + x + the
    place's own offset. Where the stride is S, each of the S x S cells below an output's cell has a run of its own.
    """
    x, grad = x.permute(0, 2, 3, 1), grad.permute(0, 2, 3, 1)
    (count, height, width, c_in), (_, rows, columns, c_out) = x.shape, grad.shape
    beside = (kernel - 1) // stride
    across = columns + beside
    per_row = across * (c_in * stride**2 + c_out)
    some_rows = min(max(PORTION // per_row, 1), rows)
    some = max(PORTION // (per_row * (rows + beside)), 1) if some_rows == rows else 1
    found = x.new_zeros(kernel, kernel, c_out, c_in)
    right = min(width, across * stride - padding)
    for first in range(0, count, some):
        for top in range(0, rows, some_rows):
            of_grad = grad[first : first + some, top : top + some_rows]
            down = of_grad.shape[1] + beside
            of_grad = F.pad(of_grad, (0, 0, 0, beside, 0, beside)).reshape(-1, c_out)
            start, end = top * stride - padding, (top + down) * stride - padding
            inside = x[first : first + some, max(start, 0) : min(end, height), :right]
            edges = padding, across * stride - padding - right, max(-start, 0), max(end - height, 0)
            runs = F.pad(inside, (0, 0, *edges))
            runs = runs.view(-1, down, stride, across, stride, c_in).permute(2, 4, 0, 1, 3, 5)
            runs = runs.reshape(stride, stride, -1, c_in)
            for i in range(kernel):
                for j in range(kernel):
                    offset = i // stride * across + j // stride
                    run = runs[i % stride, j % stride][offset:]
                    found[i, j].addmm_(of_grad[: len(run)].t(), run)
    return found.permute(2, 3, 0, 1)
