"""The maps of a body -> a pyramid of equal channels (FPN, Lin et al. 2017), with torchvision's parameter names."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from backbone.norm import ConvNorm


class FeaturePyramidNetwork(nn.Module):
    """[C2, C3, C4, C5] -> [P2, P3, P4, P5, P6], all of `out_channels`, at strides 4, 8, 16, 32, 64.

    Each map gets a 1x1 convolution, the coarser map is added to it (nearest neighbour), and a 3x3
    convolution smooths the sum. P6 takes every other cell of P5 (a max-pool of size 1 and stride 2).
    """

    def __init__(
        self, in_channels: list[int], out_channels: int, norm: Callable[[int], nn.Module] | None = None
    ) -> None:
        super().__init__()
        self.inner_blocks = nn.ModuleList(ConvNorm(c, out_channels, 1, norm) for c in in_channels)
        self.layer_blocks = nn.ModuleList(ConvNorm(out_channels, out_channels, 3, norm) for _ in in_channels)
        # batch norm takes statistics over all images, and would count an image again where P2 is recomputed
        self.over_images = any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in self.modules())
        for block in (*self.inner_blocks, *self.layer_blocks):
            nn.init.kaiming_uniform_(block[0].weight, a=1)

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        """Returns the pyramid of a body's maps."""
        inner = self.inner_blocks[-1](maps[-1])
        pyramid = [self.layer_blocks[-1](inner)]
        for i in range(len(maps) - 2, 0, -1):
            inner = self._inner(i, maps[i], inner)
            pyramid.insert(0, self.layer_blocks[i](inner))
        return [self._finest(maps[0], inner), *pyramid, F.max_pool2d(pyramid[-1], 1, 2)]

    def _inner(self, i: int, body: Tensor, coarser: Tensor) -> Tensor:
        """Returns the map that layer_blocks[i] smooths, from the body's map and the coarser inner one."""
        lateral = self.inner_blocks[i](body)
        return lateral.add_(F.interpolate(coarser, size=lateral.shape[-2:], mode="nearest"))  # nothing else reads it

    def _finest(self, body: Tensor, coarser: Tensor) -> Tensor:
        """Returns P2, whose inner map is the largest activation of all, and cheap.

        On a CPU, where memory is what limits, the backward pass computes it again, image by image.
        """

        def smoothed(body: Tensor, coarser: Tensor) -> Tensor:
            return self.layer_blocks[0](self._inner(0, body, coarser))

        if body.device.type != "cpu" or not torch.is_grad_enabled() or self.over_images:
            return smoothed(body, coarser)
        parts = zip(body.split(1), coarser.split(1), strict=True)
        return torch.cat([checkpoint(smoothed, *part, use_reentrant=False, preserve_rng_state=False) for part in parts])
