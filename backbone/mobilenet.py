"""Images -> maps at strides 4, 8, 16, 32: MobileNetV1 and V2 (Howard et al. 2017, Sandler et al. 2018).

V2 has torchvision's parameter names. Shapes: N images, C channels, H x W cells.
"""

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor, nn

from backbone.block import Block
from backbone.errors import InputError
from backbone.norm import ConvNorm, conv_norm

Norm = Callable[[int], nn.Module]

STEM = 32  # channels of the stem at a multiplier of 1
# V1, table 1: channels and stride of each block
V1_BLOCKS = ((64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), *[(512, 1)] * 5, (1024, 2), (1024, 1))
# V2, table 2: expansion, channels, blocks, stride of the first
V2_BLOCKS = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))
V2_LAST = 1280


def scaled(channels: int, multiplier: float) -> int:
    """Returns channels x multiplier, rounded to a multiple of 8, never more than a tenth down (torchvision)."""
    value = channels * multiplier
    rounded = max(8, int(value + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * value else rounded


class ConvNormReLU6(ConvNorm):
    """A convolution, its norm, and a ReLU that is cut at 6."""

    def forward(self, x: Tensor) -> Tensor:
        """Runs the layers."""
        return F.relu6(super().forward(x), inplace=True)


class SeparableBlock(Block):
    """V1: a 3x3 convolution of each channel by itself, and a 1x1 convolution."""

    def __init__(self, c_in: int, c_out: int, stride: int, norm: Norm) -> None:
        super().__init__()
        self.depthwise = ConvNormReLU6(c_in, c_in, 3, norm, stride, groups=c_in)
        self.pointwise = ConvNorm(c_in, c_out, 1, norm)

    def branch(self, x: Tensor) -> Tensor:
        """Returns what the ReLU gets."""
        return self.pointwise(self.depthwise(x))

    def forward(self, x: Tensor) -> Tensor:
        """Runs the block."""
        return F.relu6(self.run_branch(x), inplace=True)


class InvertedResidual(Block):
    """V2: 1x1 to `expansion` x c_in, 3x3 of each channel by itself, 1x1 to c_out without ReLU.

    A shortcut leads around them where the shape stays.
    """

    def __init__(self, c_in: int, c_out: int, stride: int, expansion: int, norm: Norm) -> None:
        super().__init__()
        hidden = c_in * expansion
        self.conv = nn.Sequential(
            *([ConvNormReLU6(c_in, hidden, 1, norm)] if expansion > 1 else []),
            ConvNormReLU6(hidden, hidden, 3, norm, stride, groups=hidden),
            nn.Conv2d(hidden, c_out, 1, bias=False),
            norm(c_out),  # in torchvision's places, for its names
        )
        self.shortcut = stride == 1 and c_in == c_out

    def branch(self, x: Tensor) -> Tensor:
        """Returns what the shortcut is added to."""
        *inner, conv, norm = self.conv
        for layer in inner:
            x = layer(x)
        return conv_norm(x, conv, norm)

    def forward(self, x: Tensor) -> Tensor:
        """Runs the block."""
        return self.joined(x, x) if self.shortcut else self.run_branch(x)


class MobileNet(nn.Module):
    """Images [N, 3, H, W] -> [C2, C3, C4, C5] at strides 4, 8, 16, 32.

    width: channels of the stem, 32 in the papers and a multiple of 8; every other layer's scale with it.
    `out_channels` lists the channels of the four maps; `ends` the last layer of each of the five stages.
    """

    def __init__(self, layers: list[nn.Module], ends: tuple[int, ...], out_channels: list[int]) -> None:
        super().__init__()
        self.features = nn.Sequential(*layers)
        self.ends, self.out_channels = ends, out_channels
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> list[Tensor]:
        """Returns the maps of an image batch."""
        maps = []
        for i, layer in enumerate(self.features):
            x = layer(x)
            if i in self.ends[1:]:
                maps.append(x)
        return maps

    def freeze(self, trainable_layers: int) -> None:
        """Takes gradients away from all but the last `trainable_layers` (0..5) of the five stages."""
        for i, layer in enumerate(self.features):
            stage = sum(end < i for end in self.ends)
            layer.requires_grad_(stage >= len(self.ends) - trainable_layers)


def multiplier(width: int) -> float:
    """Returns the factor of every channel count for a stem of `width` channels. Raises InputError unless it fits."""
    if width % 8:
        raise InputError(f"backbone_width is {width}: a MobileNet's is a multiple of 8 ({STEM} in the papers)")
    return width / STEM


def mobilenet_v1(norm: Norm, width: int = STEM) -> MobileNet:
    """Builds MobileNetV1; its maps are the ends of the blocks with 128, 256, 512, 1024 channels."""
    factor, c_in = multiplier(width), width
    layers = [ConvNormReLU6(3, width, 3, norm, 2)]
    for channels, stride in V1_BLOCKS:
        c_out = scaled(channels, factor)
        layers.append(SeparableBlock(c_in, c_out, stride, norm))
        c_in = c_out
    return MobileNet(layers, (1, 3, 5, 11, 13), [scaled(c, factor) for c in (128, 256, 512, 1024)])


def mobilenet_v2(norm: Norm, width: int = STEM) -> MobileNet:
    """Builds MobileNetV2; its maps are the ends of the stages with 24, 32, 96 and 1280 channels.

    The last is the one after the 1x1 convolution, as torchvision's detectors take it: the published weights are
    used whole, and the 320 channels before it are a bottleneck without a ReLU.
    """
    factor, c_in = multiplier(width), width
    layers = [ConvNormReLU6(3, width, 3, norm, 2)]
    for expansion, channels, blocks, stride in V2_BLOCKS:
        for i in range(blocks):
            c_out = scaled(channels, factor)
            layers.append(InvertedResidual(c_in, c_out, stride if i == 0 else 1, expansion, norm))
            c_in = c_out
    last = scaled(V2_LAST, max(1.0, factor))  # not fewer in a narrow network (section 4 of the paper)
    layers.append(ConvNormReLU6(c_in, last, 1, norm))
    return MobileNet(layers, (1, 3, 6, 13, 18), [*(scaled(c, factor) for c in (24, 32, 96)), last])


MOBILENETS = {"mobilenet_v1": mobilenet_v1, "mobilenet_v2": mobilenet_v2}
