"""An image of any depth and number of channels -> uint8 RGB, to be drawn on and looked at by people."""

from collections.abc import Sequence

import torch

DARK = 0.5  # where nearly all values lie below it, they are stretched over the whole range
SHARES = 0.001, 0.999  # of the values: what stretching makes black and white
SAMPLE = 1 << 18  # values that they are taken of, at most


def shown(image: torch.Tensor, channels: Sequence[int] | None = None) -> torch.Tensor:
    """Returns an image [C, H, W], uint8, uint16 or float in 0..1, as uint8 [3, H, W]; uint8 RGB as it is.

    channels: which are red, green and blue, or one that is grey; None: the first three, of two red and green, of one
    grey. Floats and uint16 that would come out dark are stretched.
    """
    if image.dtype == torch.uint8 and len(image) == 3 and channels is None:
        return image
    some = [c for c in (range(len(image)) if channels is None else channels) if c < len(image)][:3] or [0]
    image = image[some]
    if image.dtype != torch.uint8:
        image = _in_bytes(image.float() / 65535 if image.dtype == torch.uint16 else image.float())
    if len(image) == 2:
        return torch.cat([image, torch.zeros_like(image[:1])])
    return image.expand(3, -1, -1).contiguous()  # [3, H, W]


def _in_bytes(image: torch.Tensor) -> torch.Tensor:
    """Returns floats [C, H, W] as bytes: 0..1 as 0..255, dark ones stretched."""
    sample = image.reshape(-1)[:: max(1, image.numel() // SAMPLE)]
    low, high = (float(sample.quantile(share)) for share in SHARES)
    if high < DARK and high > low:
        image = (image - low) / (high - low)
    return (image.clamp(0, 1) * 255).round().to(torch.uint8)
