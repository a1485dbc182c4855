"""Augmentations of an image's values alone: blur, noise, gamma, contrast, channels, stains; boxes and masks stay.

Each works with probability p on values in 0..1 and gives them back in the image's own type. Law: without strength it
changes nothing.
"""

import math

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from train_utils.data.augmentations.common import Sample, chance, top_of, uniform

# Optical densities of haematoxylin, eosin and DAB in red, green and blue (Ruifrok and Johnston 2001, table 1).
STAINS = torch.tensor([[0.65, 0.70, 0.29], [0.07, 0.99, 0.11], [0.27, 0.57, 0.78]])


class _Colours:
    """Changes values with probability p; most: the largest strength, whose unit each class names."""

    def __init__(self, most: float, p: float = 0.5) -> None:
        self.most, self.p = most, p

    def __call__(self, image: Tensor, target: dict, rng: Generator) -> Sample:
        """Returns the image with other values, and the target as it is."""
        # one seed for all that is drawn: what comes after does not depend on whether this is used
        used, seed = chance(self.p, rng), int(torch.randint(2**62, (), generator=rng))
        if not used:
            return image, dict(target)
        top = top_of(image)
        values = self.change(image.float() / top, torch.Generator().manual_seed(seed)).clamp(0, 1) * top
        return (values if image.is_floating_point() else values.round()).to(image.dtype), dict(target)

    def change(self, values: Tensor, rng: Generator) -> Tensor:
        """Returns other values of float [C, H, W] in 0..1."""
        raise NotImplementedError

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.most}, p={self.p})"


class Blur(_Colours):
    """Smooths by a Gaussian with a deviation of up to `most` pixels."""

    def change(self, values: Tensor, rng: Generator) -> Tensor:
        """Returns smoothed values."""
        sigma = uniform(0, self.most, rng)
        if sigma == 0:
            return values
        radius = math.ceil(3 * sigma)
        kernel = torch.exp(-0.5 * (torch.arange(-radius, radius + 1) / sigma) ** 2)
        kernel = (kernel / kernel.sum()).repeat(len(values), 1, 1, 1)  # [C, 1, 1, k]
        padded = F.pad(values[None], [radius] * 4, mode="replicate")
        across = F.conv2d(padded, kernel, groups=len(values))
        return F.conv2d(across, kernel.transpose(2, 3), groups=len(values))[0]


class Noise(_Colours):
    """Adds to every value a normal number with a deviation of up to `most`, a share of the range."""

    def change(self, values: Tensor, rng: Generator) -> Tensor:
        """Returns noisy values."""
        deviation = uniform(0, self.most, rng)
        return values + deviation * torch.randn(values.shape, generator=rng)


class Gamma(_Colours):
    """Raises values to a power between 1 / most and most: darker or lighter mid-tones."""

    def change(self, values: Tensor, rng: Generator) -> Tensor:
        """Returns values to a power."""
        return values ** _factor(self.most, rng)


class Contrast(_Colours):
    """Moves values away from their mean, or towards it, by a factor between 1 / most and most."""

    def change(self, values: Tensor, rng: Generator) -> Tensor:
        """Returns values about the same mean."""
        mean = values.mean()
        return mean + (values - mean) * _factor(self.most, rng)


class ChannelJitter(_Colours):
    """Multiplies each channel by 1 - most to 1 + most, and adds up to half of `most` of the range either way."""

    def change(self, values: Tensor, rng: Generator) -> Tensor:
        """Returns channels, each changed by itself."""
        gain, offset = self.most * (2 * torch.rand(2, len(values), 1, 1, generator=rng) - 1)
        return values * (1 + gain) + offset / 2


class StainJitter(_Colours):
    """Makes the stains of histology (haematoxylin, eosin, DAB) stronger or weaker by up to a share of `most` each.

    As Tellez et al. 2018 do: optical density is split into the three stains, each is multiplied and shifted, and all
    are put together again. Needs images of three channels.
    """

    def change(self, values: Tensor, rng: Generator) -> Tensor:
        """Returns the colours of other amounts of stain."""
        if len(values) != 3:
            raise ValueError(f"stain_jitter splits red, green and blue; the image has {len(values)} channels")
        stains = STAINS / STAINS.norm(dim=1, keepdim=True)
        gain, offset = self.most * (2 * torch.rand(2, 3, 1, 1, generator=rng) - 1)
        density = -torch.log((values * 255 + 1) / 256)
        amounts = torch.einsum("sc,chw->shw", torch.linalg.inv(stains).T, density)
        changed = torch.einsum("cs,shw->chw", stains.T, amounts * (1 + gain) + offset / 10)
        return (torch.exp(-changed) * 256 - 1) / 255


def _factor(most: float, rng: Generator) -> float:
    return math.exp(uniform(-math.log(most), math.log(most), rng))
