"""Feature Pyramid Network (Lin et al. 2017) on any body, with torchvision's parameter names."""

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor, nn

from backbone.norm import ConvNorm


class FeaturePyramidNetwork(nn.Module):
    """[C2, C3, C4, C5] -> [P2, P3, P4, P5, P6], all of `out_channels`, at strides 4, 8, 16, 32, 64.

    Each map gets a 1x1 convolution, the coarser map is added to it (nearest neighbour), and a 3x3
    convolution smooths the sum. P6 takes every other cell of P5 (a max-pool of size 1 and stride 2).
    """

    def __init__(
        self, in_channels: list[int], out_channels: int, norm: Callable[[int], nn.Module] | None = None
    ):
        super().__init__()
        self.inner_blocks = nn.ModuleList(ConvNorm(c, out_channels, 1, norm) for c in in_channels)
        self.layer_blocks = nn.ModuleList(ConvNorm(out_channels, out_channels, 3, norm) for _ in in_channels)
        for block in (*self.inner_blocks, *self.layer_blocks):
            nn.init.kaiming_uniform_(block[0].weight, a=1)

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        inner = self.inner_blocks[-1](maps[-1])
        pyramid = [self.layer_blocks[-1](inner)]
        for i in range(len(maps) - 2, -1, -1):
            lateral = self.inner_blocks[i](maps[i])
            inner = lateral + F.interpolate(inner, size=lateral.shape[-2:], mode="nearest")
            pyramid.insert(0, self.layer_blocks[i](inner))
        return [*pyramid, F.max_pool2d(pyramid[-1], 1, 2)]
