"""Image batch -> feature pyramid. `BACKBONES` names the bodies; a new one is one more entry."""

import os
from collections.abc import Callable
from functools import partial

from backbone.waiting import usual_wait

os.environ.update(usual_wait(os.environ))

import torch
from torch import Tensor, nn

from backbone.block import Block
from backbone.errors import InputError
from backbone.feature_pyramid_network import FeaturePyramidNetwork
from backbone.mobilenet import MOBILENETS, STEM
from backbone.norm import NORMS, ConvNorm, FrozenBatchNorm2d, norm_layer
from backbone.resnet import RESNETS, ResNet

__all__ = [
    "BACKBONES",
    "NORMS",
    "Backbone",
    "Block",
    "ConvNorm",
    "FrozenBatchNorm2d",
    "InputError",
    "build_backbone",
    "norm_layer",
    "usual_width",
]

# name -> builder(norm, width) of a body with `out_channels` (four counts) and `freeze(trainable_layers)`
BACKBONES: dict[str, Callable[..., nn.Module]] = {
    name: partial(ResNet, block, depths) for name, (block, depths) in RESNETS.items()
} | MOBILENETS


def usual_width(name: str) -> int:
    """Returns the channels of the stem in the papers and in the published weights."""
    return STEM if name in MOBILENETS else 64


class Backbone(nn.Module):
    """A body and its FPN: images [N, C, H, W] -> [P2 .. P6], each [N, out_channels, H / stride, W / stride].

    C is 3 unless `set_channels` changes it. H and W are multiples of 32. Maps are channels-last in memory, which is
    what the convolutions are fastest with and what RoIAlign reads without a copy.
    """

    strides = (4, 8, 16, 32, 64)

    def __init__(self, body: nn.Module, fpn: FeaturePyramidNetwork, out_channels: int) -> None:
        super().__init__()
        self.body, self.fpn, self.out_channels = body, fpn, out_channels

    def forward(self, images: Tensor) -> list[Tensor]:
        """Returns the pyramid of an image batch."""
        return self.fpn(self.body(images.contiguous(memory_format=torch.channels_last)))

    def set_channels(self, channels: int) -> None:
        """Gives the body's first convolution another number of input channels, and random weights."""
        stem = next(module for module in self.body.modules() if isinstance(module, nn.Conv2d))
        weight = stem.weight.new_empty(len(stem.weight), channels, *stem.kernel_size)
        nn.init.kaiming_normal_(weight, mode="fan_out", nonlinearity="relu")  # as the bodies do
        stem.weight = nn.Parameter(weight, requires_grad=stem.weight.requires_grad)
        stem.in_channels = channels


def build_backbone(
    name: str,
    norm: str,
    trainable_layers: int,
    fpn_channels: int = 256,
    fpn_norm: bool = False,
    frozen_eps: float = 1e-5,
    width: int | None = None,
) -> Backbone:
    """Builds a body by name on an FPN.

    norm: of the body (and of the FPN with `fpn_norm`): frozen, batch, sync or group.
    trainable_layers: 0 (none) .. 5 (all) stages of the body that train, counted from the top.
    width: channels of the body's stem (None: those of the published weights).
    Raises InputError for an unknown name or norm, a count outside 0..5, a width that the body can't have.
    """
    if name not in BACKBONES:
        raise InputError(f"backbone {name!r} is not known: choose one of {', '.join(BACKBONES)}")
    if trainable_layers not in range(6):
        raise InputError(f"trainable_layers is {trainable_layers}: it must be 0 to 5")
    layer = norm_layer(norm, frozen_eps)
    body = BACKBONES[name](layer, width or usual_width(name))
    body.freeze(trainable_layers)
    fpn = FeaturePyramidNetwork(body.out_channels, fpn_channels, layer if fpn_norm else None)
    return Backbone(body, fpn, fpn_channels)
