"""Images -> maps at strides 4, 8, 16, 32: ResNet-18/34/50/101/152 (He et al. 2015), with torchvision's parameter names.

The stride of a bottleneck sits in its 3x3 convolution, as in torchvision and in the published weights.
"""

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor, nn

from backbone.block import Block
from backbone.convolution import Conv2d
from backbone.norm import ConvNorm, conv_norm

Norm = Callable[[int], nn.Module]


def conv(c_in: int, c_out: int, kernel: int, stride: int = 1) -> Conv2d:
    """Returns a convolution without bias that keeps the size (at stride 1)."""
    return Conv2d(c_in, c_out, kernel, stride, padding=kernel // 2, bias=False)


def projection(c_in: int, c_out: int, stride: int, norm: Norm) -> ConvNorm | None:
    """Returns the 1x1 convolution of a shortcut whose shape changes, else None."""
    return None if stride == 1 and c_in == c_out else ConvNorm(c_in, c_out, 1, norm, stride)


class ResidualBlock(Block):
    """A branch of convolutions beside a shortcut, and a ReLU over their sum."""

    def forward(self, x: Tensor) -> Tensor:
        """Runs the block."""
        shortcut = x if self.downsample is None else self.downsample(x)
        return F.relu(self.joined(x, shortcut), inplace=True)


class BasicBlock(ResidualBlock):
    """Two 3x3 convolutions and a shortcut."""

    expansion = 1

    def __init__(self, c_in: int, width: int, stride: int, norm: Norm) -> None:
        super().__init__()
        self.conv1, self.bn1 = conv(c_in, width, 3, stride), norm(width)
        self.conv2, self.bn2 = conv(width, width, 3), norm(width)
        self.downsample = projection(c_in, width, stride, norm)

    def branch(self, x: Tensor) -> Tensor:
        """Returns what the shortcut is added to."""
        x = F.relu(conv_norm(x, self.conv1, self.bn1), inplace=True)
        return conv_norm(x, self.conv2, self.bn2)


class Bottleneck(ResidualBlock):
    """1x1 to `width`, 3x3, 1x1 to 4 x `width`, and a shortcut."""

    expansion = 4

    def __init__(self, c_in: int, width: int, stride: int, norm: Norm) -> None:
        super().__init__()
        c_out = width * self.expansion
        self.conv1, self.bn1 = conv(c_in, width, 1), norm(width)
        self.conv2, self.bn2 = conv(width, width, 3, stride), norm(width)
        self.conv3, self.bn3 = conv(width, c_out, 1), norm(c_out)
        self.downsample = projection(c_in, c_out, stride, norm)

    def branch(self, x: Tensor) -> Tensor:
        """Returns what the shortcut is added to."""
        x = F.relu(conv_norm(x, self.conv1, self.bn1), inplace=True)
        x = F.relu(conv_norm(x, self.conv2, self.bn2), inplace=True)
        return conv_norm(x, self.conv3, self.bn3)


class ResNet(nn.Module):
    """Images [N, 3, H, W] -> [C2, C3, C4, C5] at strides 4, 8, 16, 32.

    width: channels of the stem, 64 in the paper; every other layer's scale with it.
    `out_channels` lists the channels of the four maps; `stages` names the parts from the image upwards,
    in the order in which they are frozen.
    """

    stages = ("conv1", "layer1", "layer2", "layer3", "layer4")

    def __init__(
        self, block: type[BasicBlock] | type[Bottleneck], depths: tuple[int, ...], norm: Norm, width: int = 64
    ) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, width, 7, 2, 3, bias=False), norm(width)
        c_in, self.out_channels = width, []
        for i, depth in enumerate(depths):
            blocks = []
            for j in range(depth):
                blocks.append(block(c_in, width * 2**i, 2 if i > 0 and j == 0 else 1, norm))
                c_in = width * 2**i * block.expansion
            self.add_module(f"layer{i + 1}", nn.Sequential(*blocks))
            self.out_channels.append(c_in)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> list[Tensor]:
        """Returns the maps of an image batch."""
        x = F.relu(conv_norm(x, self.conv1, self.bn1), inplace=True)  # [N, width, H/2, W/2]
        x = F.max_pool2d(x, 3, 2, 1)  # [N, width, H/4, W/4]
        maps = []
        for layer in (self.layer1, self.layer2, self.layer3, self.layer4):
            x = layer(x)
            maps.append(x)
        return maps

    def freeze(self, trainable_layers: int) -> None:
        """Takes gradients away from all but the last `trainable_layers` (0..5) of the five stages.

        The first norm belongs to the stem, and trains with it, as in torchvision.
        """
        trained = self.stages[len(self.stages) - trainable_layers :]
        trained += ("bn1",) if "conv1" in trained else ()
        for name, parameter in self.named_parameters():
            parameter.requires_grad_(name.split(".")[0] in trained)


RESNETS = {
    "resnet18": (BasicBlock, (2, 2, 2, 2)),
    "resnet34": (BasicBlock, (3, 4, 6, 3)),
    "resnet50": (Bottleneck, (3, 4, 6, 3)),
    "resnet101": (Bottleneck, (3, 4, 23, 3)),
    "resnet152": (Bottleneck, (3, 8, 36, 3)),
}
