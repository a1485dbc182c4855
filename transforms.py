"""Augmentations: functions of (image, target, rng) that return a new image and a new target.

    image   uint8 [C, H, W] (0..255) or float [C, H, W] (0..1), RGB where C is 3
    target  the dict of one image: boxes float32 [N, 4] (x1 y1 x2 y2, pixels), labels int64 [N],
            masks (CroppedMasks of N masks, or uint8 [N, H, W]), area float32 [N], iscrowd uint8 [N]; other
            entries, such as image_id, stay as they are; "removed" counts objects that were left out
    rng     a torch.Generator: every random choice comes from it, so that the same generator state gives the
            same result in any process

Laws: nothing is changed in place; the i-th box, label, mask, area and crowd flag always belong to one object;
a flip applied twice is the identity, and so is every augmentation without strength. Where masks change other than by
flips and turns, boxes and areas are those of their pixels; but large-scale jitter and Expand move the boxes that are
annotated, where no pixel is cut off, and the first keeps an object of which a pixel is left, as the paper's does.

Here are flips, large-scale jitter and photometric jitter; other families are in train_utils/data/augmentations.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import fields
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from network_files.operators.cropped_masks import CroppedMasks
from train_utils.data.augmentations.colours import Blur, ChannelJitter, Contrast, Gamma, Noise, StainJitter
from train_utils.data.augmentations.common import (
    MEAN_COLOUR,
    PER_OBJECT,
    Sample,
    Transform,
    chance,
    cropped,
    kept,
    on_canvas,
    on_masks,
    top_of,
    uniform,
    with_masks,
)
from train_utils.data.augmentations.occlusion import CopyPaste, Cutout
from train_utils.data.augmentations.options import Augmentation, with_preset
from train_utils.data.augmentations.own import OwnAugmentation, from_albumentations, from_torchvision, own_augmentation
from train_utils.data.augmentations.warps import Affine, QuarterTurns

__all__ = [
    "MEAN_COLOUR", "PER_OBJECT", "Affine", "Augmentation", "Blur", "ChannelJitter", "Compose", "Contrast", "CopyPaste",
    "Cutout", "Expand", "Gamma", "HorizontalFlip", "LargeScaleJitter", "MiniMasks", "Noise", "OwnAugmentation",
    "PhotometricJitter", "QuarterTurns", "Sample", "StainJitter", "Transform", "VerticalFlip", "augmentation_of",
    "build_augment",     "colour_matrix", "from_albumentations", "from_torchvision", "uniform",
]  # fmt: skip

# Luma, and two colour-difference axes (NTSC's YIQ, as in Python's colorsys): a hue shift is a rotation of the
# latter two, and a saturation change scales them, both at constant luma.
RGB_TO_YIQ = torch.tensor([[0.299, 0.587, 0.114], [0.5959, -0.2746, -0.3213], [0.2115, -0.5227, 0.3112]])
YIQ_TO_RGB = torch.linalg.inv(RGB_TO_YIQ.double()).float()


class Compose:
    """Applies the given transforms one after another; all draw from one generator."""

    def __init__(self, transforms: Iterable[Transform]) -> None:
        self.transforms = list(transforms)

    def __call__(self, image: Tensor, target: dict, rng: Generator) -> Sample:
        """Returns image and target after all transforms."""
        for transform in self.transforms:
            image, target = transform(image, target, rng)
        return image, target

    def __repr__(self) -> str:
        return f"Compose({', '.join(map(repr, self.transforms))})"


class _Flip:
    """Mirrors along an axis of the image; columns: of the boxes, the two coordinates along this axis."""

    axis: ClassVar[int]
    columns: ClassVar[list[int]]
    flip_masks: ClassVar[Callable[[CroppedMasks], CroppedMasks]]

    def __init__(self, p: float = 0.5) -> None:
        self.p = p

    def __call__(self, image: Tensor, target: dict, rng: Generator) -> Sample:
        """Returns image and target, mirrored or as they are."""
        if not chance(self.p, rng):
            return image, dict(target)
        boxes = target["boxes"].clone()  # [N, 4]
        boxes[:, self.columns] = image.shape[self.axis] - boxes[:, self.columns[::-1]]
        masks = on_masks(target["masks"], self.flip_masks)
        return image.flip(self.axis), {**target, "boxes": boxes, "masks": masks}

    def __repr__(self) -> str:
        return f"{type(self).__name__}(p={self.p})"


class HorizontalFlip(_Flip):
    """Mirrors left and right with probability p. Law: twice is the identity."""

    axis, columns, flip_masks = 2, [0, 2], staticmethod(CroppedMasks.hflip)


class VerticalFlip(_Flip):
    """Mirrors top and bottom with probability p. Law: twice is the identity."""

    axis, columns, flip_masks = 1, [1, 3], staticmethod(CroppedMasks.vflip)


class PhotometricJitter:
    """Changes brightness, contrast, saturation and hue, each with probability p; boxes and masks stay.

    Ranges are those of SSD's distortion (Liu et al. 2016, section 2.2) as torchvision's
    RandomPhotometricDistort has them. `hue` is in turns: 0.05 is 18 degrees either way. Hue and saturation
    work at constant luma (YIQ) instead of in HSV: one 3x3 matrix does both.
    """

    def __init__(
        self,
        brightness: tuple[float, float] = (0.875, 1.125),
        contrast: tuple[float, float] = (0.5, 1.5),
        saturation: tuple[float, float] = (0.5, 1.5),
        hue: float = 0.05,
        p: float = 0.5,
    ) -> None:
        self.brightness, self.contrast, self.saturation = brightness, contrast, saturation
        self.hue, self.p = hue, p

    def __call__(self, image: Tensor, target: dict, rng: Generator) -> Sample:
        """Returns the image in other colours, and the target as it is."""
        # Every number is drawn whether used or not, so that each knob's draw is independent of the others.
        brightness = self._factor(self.brightness, 1.0, rng)
        contrast = self._factor(self.contrast, 1.0, rng)
        saturation = self._factor(self.saturation, 1.0, rng)
        hue = self._factor((-self.hue, self.hue), 0.0, rng)
        if (brightness, contrast, saturation, hue) == (1.0, 1.0, 1.0, 0.0):
            return image.clone(), dict(target)

        top = top_of(image)
        colours = (image.float() * brightness).clamp_(0, top)
        in_colour = len(colours) == 3
        mean_luma = (torch.einsum("c,chw->hw", RGB_TO_YIQ[0], colours) if in_colour else colours).mean()
        colours = ((colours - mean_luma) * contrast + mean_luma).clamp_(0, top)
        if in_colour:  # other channels have no hue
            colours = torch.einsum("dc,chw->dhw", colour_matrix(saturation, hue), colours).clamp_(0, top)
        if not image.is_floating_point():
            colours = colours.round_()
        return colours.to(image.dtype), dict(target)

    def _factor(self, interval: tuple[float, float], neutral: float, rng: Generator) -> float:
        used, value = chance(self.p, rng), uniform(*interval, rng)
        return value if used else neutral

    def __repr__(self) -> str:
        return (
            f"PhotometricJitter(brightness={self.brightness}, contrast={self.contrast}, "
            f"saturation={self.saturation}, hue={self.hue}, p={self.p})"
        )


def colour_matrix(saturation: float, hue: float) -> Tensor:
    """Returns the [3, 3] matrix on RGB that scales saturation and turns hue by `hue` turns at constant luma."""
    cos, sin = (saturation * f(2 * math.pi * hue) for f in (math.cos, math.sin))
    turn = torch.tensor([[1.0, 0.0, 0.0], [0.0, cos, sin], [0.0, -sin, cos]])  # red to green, as in HSV
    return YIQ_TO_RGB @ turn @ RGB_TO_YIQ


class LargeScaleJitter:
    """Resizes by a random factor, then cuts or pads to size x size (Ghiasi et al. 2021, "Simple Copy-Paste").

    The image first fits the square (longest side = size), then is scaled by a factor drawn evenly from
    `scale`. A larger image is cut at a random place, a smaller one is padded at the right and bottom with
    `fill` (bytes, RGB). Of an object that loses pixels to the cut, the box is that of the others, as in Detectron2's
    recipes with this jitter: the clipped one may reach over much that is another object's. An object is dropped, with
    all its entries, where no mask pixel is left, or less than `min_side` pixels of its box in either direction. `area`
    is the mask's new area.
    """

    def __init__(
        self,
        size: int = 1024,
        scale: tuple[float, float] = (0.1, 2.0),
        fill: tuple[int, int, int] = MEAN_COLOUR,
        min_side: float = 1.0,
    ) -> None:
        if not 0 < scale[0] <= scale[1] < math.inf:
            raise ValueError(f"scale is {tuple(scale)}: two positive numbers are needed, the lower one first")
        self.size, self.scale, self.fill, self.min_side = size, tuple(scale), tuple(fill), min_side

    def __call__(self, image: Tensor, target: dict, rng: Generator) -> Sample:
        """Returns a square image and the target of what it shows."""
        height, width = image.shape[1:]
        ratio = self.size / max(height, width) * uniform(*self.scale, rng)
        resized = max(1, round(height * ratio)), max(1, round(width * ratio))
        top, left = (int(uniform(0, max(0, side - self.size) + 1, rng)) for side in resized)
        return (
            self._cut_image(image, resized, top, left),
            self._cut_target(target, (height, width), resized, top, left),
        )

    def _cut_image(self, image: Tensor, resized: tuple[int, int], top: int, left: int) -> Tensor:
        # torch resizes no uint16, and makes no 1 x 1 image of bytes: an assertion fails inside
        deep = image.dtype == torch.uint16
        given = image.float() if deep or resized == (1, 1) else image
        resized_image = F.interpolate(given[None], size=resized, mode="bilinear", antialias=True)[0]
        resized_image = resized_image.round_() if deep else resized_image
        image = resized_image.to(image.dtype)[:, top : top + self.size, left : left + self.size]
        return on_canvas(image, self.fill, (self.size, self.size))

    def _cut_target(
        self, target: dict, original: tuple[int, int], resized: tuple[int, int], top: int, left: int
    ) -> dict:
        (height, width), (new_height, new_width) = original, resized
        scale = torch.tensor([new_width / width, new_height / height] * 2)
        boxes = target["boxes"] * scale - torch.tensor([left, top] * 2, dtype=torch.float32)
        whole = cropped(target["masks"]).resize(resized)
        masks = whole.window(left, top, self.size, self.size)
        area = masks.areas()  # [N]
        moved = {**target, "boxes": boxes.clamp(0, self.size), "area": area.float()}
        changed = with_masks(moved, masks, changed=area < whole.areas())
        sides = changed["boxes"][:, 2:] - changed["boxes"][:, :2]  # [N, 2]
        return kept(changed, (sides >= self.min_side).all(dim=1) & (area > 0))

    def __repr__(self) -> str:
        return f"LargeScaleJitter(size={self.size}, scale={self.scale})"


class Expand:
    """Puts the image, with probability p, at a random place of a larger canvas: objects become smaller.

    The canvas has the image's ratio and 1 to `most` times its sides, filled with `fill` (bytes, RGB). As in SSD
    (Liu et al. 2016, section 3.6).
    """

    def __init__(self, most: float = 4.0, fill: tuple[int, int, int] = MEAN_COLOUR, p: float = 0.5) -> None:
        self.most, self.fill, self.p = most, tuple(fill), p

    def __call__(self, image: Tensor, target: dict, rng: Generator) -> Sample:
        """Returns image and target on a larger canvas, or as they are."""
        used, ratio = chance(self.p, rng), uniform(1, self.most, rng)
        sides = image.shape[1:]
        height, width = (int(side * ratio) for side in sides)
        top, left = (int(uniform(0, new - old + 1, rng)) for new, old in zip((height, width), sides, strict=True))
        if not used:
            return image, dict(target)
        boxes = target["boxes"] + torch.tensor([left, top] * 2)
        masks = on_masks(target["masks"], lambda masks: masks.window(-left, -top, width, height))
        image = on_canvas(image, self.fill, (height, width), top, left)
        return image, {**target, "boxes": boxes, "masks": masks}

    def __repr__(self) -> str:
        return f"Expand(most={self.most}, p={self.p})"


class MiniMasks:
    """Keeps each mask in at most size x size cells of its box. Comes last: others would enlarge it again."""

    def __init__(self, size: int) -> None:
        self.size = size

    def __call__(self, image: Tensor, target: dict, rng: Generator) -> Sample:
        """Returns the image as it is, and the target with smaller masks."""
        return image, {**target, "masks": cropped(target["masks"]).limited(self.size)}

    def __repr__(self) -> str:
        return f"MiniMasks({self.size})"


def build_augment(others: Sequence[Sample] = (), **options: Any) -> Compose:
    """Builds the training augmentation from the options of `Augmentation`; with all off it is a Compose of nothing.

    others: the training samples, from which `copy_paste` takes objects. Raises InputError for a value out of bounds.
    """
    chosen = Augmentation(**with_preset(options))
    affine = chosen.rotate, chosen.zoom, chosen.shift
    # Objects first, then their colours, before padding, so that padding keeps the mean colour; then what moves them;
    # what gives the image its final size comes before what covers parts of it, and mini masks last.
    transforms = [
        CopyPaste(others, chosen.copy_paste) if chosen.copy_paste and len(others) else None,
        PhotometricJitter() if chosen.photometric else None,
        StainJitter(chosen.stain_jitter) if chosen.stain_jitter else None,
        ChannelJitter(chosen.channel_jitter) if chosen.channel_jitter else None,
        Contrast(chosen.contrast) if chosen.contrast != 1 else None,
        Gamma(chosen.gamma) if chosen.gamma != 1 else None,
        Affine(*affine) if affine != (0, (1, 1), 0) else None,
        Expand(chosen.expand) if chosen.expand else None,
        LargeScaleJitter(chosen.large_scale_jitter, chosen.jitter_scale) if chosen.large_scale_jitter else None,
        QuarterTurns(chosen.quarter_turns) if chosen.quarter_turns else None,
        HorizontalFlip(chosen.horizontal_flip) if chosen.horizontal_flip else None,
        VerticalFlip(chosen.vertical_flip) if chosen.vertical_flip else None,
        Blur(chosen.blur) if chosen.blur else None,
        Noise(chosen.noise) if chosen.noise else None,
        Cutout(chosen.cutout) if chosen.cutout else None,
        MiniMasks(chosen.mini_mask) if chosen.mini_mask else None,
    ]
    return Compose(transform for transform in transforms if transform is not None)


def augmentation_of(settings: Augmentation, others: Sequence[Sample] = ()) -> Compose | OwnAugmentation:
    """Returns what a run with these settings does to its training samples, which are `others` to `copy_paste`."""
    if settings.own:
        return own_augmentation(settings.augment)
    return build_augment(others, **{f.name: getattr(settings, f.name) for f in fields(Augmentation)})
