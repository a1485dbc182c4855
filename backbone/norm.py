"""Normalisation layers, and the folding of a frozen one into the convolution before it.

Shapes: N images, C channels, H x W cells.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from backbone.convolution import Conv2d, Convolution
from backbone.errors import InputError
from backbone.tracing import is_traced

NOTHING_KEPT = (), (), ()
NORMS = ("frozen", "batch", "sync", "group")
TOGETHER, UNCOUNTED, APART = "together", "uncounted", "apart"  # how a process takes part in a sync norm


class FrozenBatchNorm2d(nn.Module):
    """Batch norm whose statistics and affine parameters are constants: y = x * scale + shift, per channel.

    Its state has BatchNorm2d's names (weight, bias, running_mean, running_var), as torchvision's has;
    `num_batches_tracked` in a loaded state is ignored. All four are buffers, so that no optimiser sees them.
    """

    def __init__(self, channels: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        self._kept: tuple = NOTHING_KEPT  # key, buffers and values in one: other threads see all of them
        self.register_buffer("weight", torch.ones(channels))
        self.register_buffer("bias", torch.zeros(channels))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))

    def scale_and_shift(self) -> tuple[Tensor, Tensor]:
        """Returns scale [C, 1, 1, 1], for a convolution's weight, and shift [C].

        They are kept until a buffer changes, as autograd counts changes: one through `.data` is not seen.
        """
        buffers = self.weight, self.bias, self.running_mean, self.running_var
        if is_traced(self.weight) or any(buffer.is_inference() for buffer in buffers):
            return self._scale_and_shift()
        key = self.eps, *(buffer._version for buffer in buffers)
        kept, of, values = self._kept
        if key != kept or any(one is not other for one, other in zip(of, buffers, strict=False)):
            with torch.inference_mode(False), torch.no_grad():  # else no backward pass could keep them
                values = self._scale_and_shift()
            self._kept = key, buffers, values
        return values

    def _scale_and_shift(self) -> tuple[Tensor, Tensor]:
        scale = self.weight * (self.running_var + self.eps).rsqrt()
        return scale.view(-1, 1, 1, 1), self.bias - self.running_mean * scale

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_kept": NOTHING_KEPT}  # a copy has other buffers

    def forward(self, x: Tensor) -> Tensor:  # [N, C, H, W]
        """Scales and shifts each channel."""
        scale, shift = self.scale_and_shift()
        return x * scale[:, 0].to(x.dtype) + shift.to(x.dtype)[:, None, None]

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *args: Any) -> None:
        state_dict.pop(prefix + "num_batches_tracked", None)
        super()._load_from_state_dict(state_dict, prefix, *args)


class SyncBatchNorm(nn.SyncBatchNorm):
    """Batch norm over the images of all processes together, on GPUs. Each process waits for all others, in every pass.

    part: TOGETHER; UNCOUNTED: the others don't wait in vain for a process that has no images of its own: what it
    computes counts for nothing in means and variances, and is scaled by the running ones; APART: a pass of this process
    alone, by its own means and variances, which changes no running one.
    """

    part = TOGETHER

    def forward(self, x: Tensor) -> Tensor:  # [N, C, H, W]
        """Normalises each channel by mean and variance over all counted values of all processes."""
        if not self.training or (self.part == TOGETHER and x.numel()):
            return super().forward(x)
        if self.part == APART:
            one_value = x.numel() <= x.shape[1]  # of each channel, or none: they have no variance
            running = (self.running_mean, self.running_var) if one_value else (None, None)
            return F.batch_norm(x, *running, self.weight, self.bias, not one_value, eps=self.eps)
        running = self.running_mean.clone(), self.running_var.clone()  # the backward pass needs them as they are
        own = F.batch_norm(x, *running, self.weight, self.bias, eps=self.eps)
        return own + self._without_values(x).to(own.dtype)

    def _without_values(self, x: Tensor) -> Tensor:
        """Takes part in the exchanges of both passes without a value; returns a 0 that the loss has to depend on."""
        running, momentum = (self.running_mean, self.running_var), self.momentum
        before = [values.clone() for values in running]
        self.momentum = 1.0  # the running ones become those of the other processes
        try:
            # torch sends zeros of the type it is given; the others send float32 where x is less
            nothing = super().forward(x[:0].to(torch.promote_types(x.dtype, torch.float32)))
        finally:
            self.momentum = momentum
        some = (self.running_var > 0).any()  # else no process had a value
        for values, old in zip(running, before, strict=True):
            values.copy_(torch.where(some, old.lerp(values, momentum), old))
        return nothing.sum()


@contextmanager
def sync_norms(model: nn.Module, part: str) -> Iterator[None]:
    """Lets this process's sync norms take part UNCOUNTED, or stay APART, within the context."""
    layers = [module for module in model.modules() if isinstance(module, SyncBatchNorm)]
    for layer in layers:
        layer.part = part
    try:
        yield
    finally:
        for layer in layers:
            layer.part = TOGETHER


def conv_norm(x: Tensor, conv: nn.Conv2d, norm: nn.Module | None) -> Tensor:
    """Returns norm(conv(x)); a frozen norm is folded into the convolution.

    Folding multiplies the small weight instead of the large activation, and saves the activation that
    autograd would otherwise keep between the two.
    """
    if not isinstance(norm, FrozenBatchNorm2d):
        x = conv(x)
        return x if norm is None else norm(x)
    scale, shift = norm.scale_and_shift()
    if conv.bias is not None:
        shift = shift + conv.bias * scale.flatten()
    geometry = conv.stride, conv.padding, conv.dilation
    return Convolution.apply(x, conv.weight, scale, shift, geometry, conv.groups)


class ConvNorm(nn.Sequential):
    """A convolution that keeps the size (at stride 1), and its norm where there is one (then without a bias)."""

    def __init__(
        self,
        c_in: int,
        c_out: int,
        kernel: int,
        norm: Callable[[int], nn.Module] | None,
        stride: int = 1,
        groups: int = 1,
    ) -> None:
        conv = Conv2d(c_in, c_out, kernel, stride, kernel // 2, groups=groups, bias=norm is None)
        super().__init__(*([conv] if norm is None else [conv, norm(c_out)]))
        if conv.bias is not None:
            nn.init.zeros_(conv.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Runs the layers, with a frozen norm folded."""
        return conv_norm(x, self[0], self[1] if len(self) > 1 else None)


def norm_layer(kind: str, frozen_eps: float = 1e-5) -> Callable[[int], nn.Module]:
    """Returns a function from a channel count to a norm layer of this kind: frozen, batch, sync or group.

    Group norm takes 32 groups (Wu & He 2018), or the largest number of groups that divides both 32 and
    the channels. Raises InputError for another kind.
    """
    layers = {
        "frozen": lambda channels: FrozenBatchNorm2d(channels, frozen_eps),
        "batch": nn.BatchNorm2d,
        "sync": SyncBatchNorm,
        "group": lambda channels: nn.GroupNorm(math.gcd(32, channels), channels),
    }
    if kind not in layers:
        raise InputError(f"norm {kind!r} is not known: choose one of {', '.join(NORMS)}")
    return layers[kind]
