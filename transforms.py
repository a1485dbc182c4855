"""Augmentations: functions of (image, target, rng) that return a new image and a new target.

    image   uint8 [3, H, W] (0..255) or float [3, H, W] (0..1), RGB
    target  the dict of one image: boxes float32 [N, 4] (x1 y1 x2 y2, pixels), labels int64 [N],
            masks (CroppedMasks of N masks, or uint8 [N, H, W]), area float32 [N], iscrowd uint8 [N]; other
            entries, such as image_id, are handed on as they are
    rng     a torch.Generator: every random choice comes from it, so that the same generator state gives the
            same result whichever process works on the image

Laws: nothing is changed in place; the i-th box, label, mask, area and crowd flag always belong to one object;
a flip applied twice is the identity.
"""

import math

import torch
import torch.nn.functional as F

from network_files.operators.cropped_masks import CroppedMasks

PER_OBJECT = ("boxes", "labels", "masks", "area", "iscrowd")

# ImageNet's mean colour as bytes: after normalisation it is about 0, which is what batching pads with.
MEAN_COLOUR = (124, 116, 104)

# Luma, and two colour-difference axes (NTSC's YIQ, as in Python's colorsys): a hue shift is a rotation of the
# latter two, and a saturation change scales them, both at constant luma.
RGB_TO_YIQ = torch.tensor([[0.299, 0.587, 0.114], [0.5959, -0.2746, -0.3213], [0.2115, -0.5227, 0.3112]])
YIQ_TO_RGB = torch.linalg.inv(RGB_TO_YIQ.double()).float()


def uniform(low, high, rng):
    """One float drawn evenly from [low, high)."""
    return low + (high - low) * torch.rand((), generator=rng).item()


def chance(p, rng):
    """True with probability p; always takes exactly one number from the generator."""
    return torch.rand((), generator=rng).item() < p


def on_masks(masks, function):
    """Apply a function of CroppedMasks to masks of either form; the form is kept."""
    if isinstance(masks, CroppedMasks):
        return function(masks)
    return function(CroppedMasks.from_masks(masks)).to_masks()  # [N, H', W']


class Compose:
    """The given transforms one after another, all drawing from one generator."""

    def __init__(self, transforms):
        self.transforms = list(transforms)

    def __call__(self, image, target, rng):
        for transform in self.transforms:
            image, target = transform(image, target, rng)
        return image, target

    def __repr__(self):
        return f"Compose({', '.join(map(repr, self.transforms))})"


class HorizontalFlip:
    """Mirror left and right with probability p. Law: twice is the identity."""

    def __init__(self, p=0.5):
        self.p = p

    def __call__(self, image, target, rng):
        if not chance(self.p, rng):
            return image, dict(target)
        x1, y1, x2, y2 = target["boxes"].unbind(1)
        width = image.shape[2]
        boxes = torch.stack((width - x2, y1, width - x1, y2), dim=1)  # [N, 4]
        masks = on_masks(target["masks"], CroppedMasks.hflip)
        return image.flip(2), {**target, "boxes": boxes, "masks": masks}

    def __repr__(self):
        return f"HorizontalFlip(p={self.p})"


class VerticalFlip:
    """Mirror top and bottom with probability p. Law: twice is the identity."""

    def __init__(self, p=0.5):
        self.p = p

    def __call__(self, image, target, rng):
        if not chance(self.p, rng):
            return image, dict(target)
        x1, y1, x2, y2 = target["boxes"].unbind(1)
        height = image.shape[1]
        boxes = torch.stack((x1, height - y2, x2, height - y1), dim=1)  # [N, 4]
        masks = on_masks(target["masks"], CroppedMasks.vflip)
        return image.flip(1), {**target, "boxes": boxes, "masks": masks}

    def __repr__(self):
        return f"VerticalFlip(p={self.p})"


class PhotometricJitter:
    """Change brightness, contrast, saturation and hue, each with probability p; boxes and masks stay.

    Ranges are those of SSD's distortion (Liu et al. 2016, section 2.2) as torchvision's
    RandomPhotometricDistort has them. `hue` is in turns: 0.05 is 18 degrees either way. Hue and saturation
    work at constant luma (YIQ) instead of in HSV: one 3x3 matrix does both.
    """

    def __init__(self, brightness=(0.875, 1.125), contrast=(0.5, 1.5), saturation=(0.5, 1.5), hue=0.05, p=0.5):
        self.brightness, self.contrast, self.saturation = brightness, contrast, saturation
        self.hue, self.p = hue, p

    def __call__(self, image, target, rng):
        # Every number is drawn whether used or not, so that each knob's draw is independent of the others.
        brightness = self._factor(self.brightness, 1.0, rng)
        contrast = self._factor(self.contrast, 1.0, rng)
        saturation = self._factor(self.saturation, 1.0, rng)
        hue = self._factor((-self.hue, self.hue), 0.0, rng)
        if (brightness, contrast, saturation, hue) == (1.0, 1.0, 1.0, 0.0):
            return image.clone(), dict(target)

        top = 1.0 if image.is_floating_point() else 255.0
        colours = (image.float() * brightness).clamp_(0, top)
        mean_luma = torch.einsum("c,chw->hw", RGB_TO_YIQ[0], colours).mean()
        colours = ((colours - mean_luma) * contrast + mean_luma).clamp_(0, top)
        colours = torch.einsum("dc,chw->dhw", colour_matrix(saturation, hue), colours).clamp_(0, top)
        if not image.is_floating_point():
            colours = colours.round_()
        return colours.to(image.dtype), dict(target)

    def _factor(self, interval, neutral, rng):
        used, value = chance(self.p, rng), uniform(*interval, rng)
        return value if used else neutral

    def __repr__(self):
        return (
            f"PhotometricJitter(brightness={self.brightness}, contrast={self.contrast}, "
            f"saturation={self.saturation}, hue={self.hue}, p={self.p})"
        )


def colour_matrix(saturation, hue):
    """The [3, 3] matrix on RGB that scales saturation and turns the hue by `hue` turns at constant luma."""
    cos, sin = (saturation * f(2 * math.pi * hue) for f in (math.cos, math.sin))
    turn = torch.tensor([[1.0, 0.0, 0.0], [0.0, cos, sin], [0.0, -sin, cos]])  # red to green, as in HSV
    return YIQ_TO_RGB @ turn @ RGB_TO_YIQ


class LargeScaleJitter:
    """Resize by a random factor, then cut or pad to size x size (Ghiasi et al. 2021, "Simple Copy-Paste").

    The image first fits the square (longest side = size), then is scaled by a factor drawn evenly from
    `scale`. What is larger is cut at a random place, what is smaller is padded at the right and bottom with
    `fill` (bytes, RGB). Boxes are clipped to the cut; objects of which no mask pixel, or less than `min_side`
    pixels of box in either direction, are left go with all their entries. `area` is the mask's new area.
    """

    def __init__(self, size=1024, scale=(0.1, 2.0), fill=MEAN_COLOUR, min_side=1.0):
        self.size, self.scale, self.fill, self.min_side = size, tuple(scale), tuple(fill), min_side

    def __call__(self, image, target, rng):
        height, width = image.shape[1:]
        ratio = self.size / max(height, width) * uniform(*self.scale, rng)
        resized = max(1, round(height * ratio)), max(1, round(width * ratio))
        top, left = (int(uniform(0, max(0, side - self.size) + 1, rng)) for side in resized)
        return (
            self._cut_image(image, resized, top, left),
            self._cut_target(target, (height, width), resized, top, left),
        )

    def _cut_image(self, image, resized, top, left):
        image = F.interpolate(image[None], size=resized, mode="bilinear", antialias=True)[0]
        image = image[:, top : top + self.size, left : left + self.size]
        return on_canvas(image, self.fill, self.size, self.size)

    def _cut_target(self, target, original, resized, top, left):
        (height, width), (new_height, new_width) = original, resized
        scale = torch.tensor([new_width / width, new_height / height] * 2)
        boxes = target["boxes"] * scale - torch.tensor([left, top] * 2, dtype=torch.float32)
        boxes = boxes.clamp(0, self.size)  # [N, 4]
        sides = boxes[:, 2:] - boxes[:, :2]  # [N, 2]

        as_cropped = isinstance(target["masks"], CroppedMasks)
        masks = target["masks"] if as_cropped else CroppedMasks.from_masks(target["masks"])
        masks = masks.resize(resized).window(left, top, self.size, self.size)
        area = masks.areas()  # [N]
        keep = (sides >= self.min_side).all(dim=1) & (area > 0)

        changed = {**target, "boxes": boxes, "masks": masks, "area": area.float()}
        changed.update({key: changed[key][keep] for key in PER_OBJECT if key in changed})
        if not as_cropped:
            changed["masks"] = changed["masks"].to_masks()  # [N', size, size]
        return changed

    def __repr__(self):
        return f"LargeScaleJitter(size={self.size}, scale={self.scale})"


class Expand:
    """With probability p, put the image at a random place of a canvas of the same ratio and of 1 to `most` times
    its sides, filled with `fill` (bytes, RGB): objects become smaller (SSD, Liu et al. 2016, section 3.6)."""

    def __init__(self, most=4.0, fill=MEAN_COLOUR, p=0.5):
        self.most, self.fill, self.p = most, tuple(fill), p

    def __call__(self, image, target, rng):
        used, ratio = chance(self.p, rng), uniform(1, self.most, rng)
        sides = image.shape[1:]
        height, width = (int(side * ratio) for side in sides)
        top, left = (int(uniform(0, new - old + 1, rng)) for new, old in zip((height, width), sides, strict=True))
        if not used:
            return image, dict(target)
        boxes = target["boxes"] + torch.tensor([left, top] * 2)
        masks = on_masks(target["masks"], lambda masks: masks.window(-left, -top, width, height))
        return on_canvas(image, self.fill, height, width, top, left), {**target, "boxes": boxes, "masks": masks}

    def __repr__(self):
        return f"Expand(most={self.most}, p={self.p})"


def on_canvas(image, fill, height, width, top=0, left=0):
    """The image [3, h, w] with its left upper corner at (left, top) of [3, height, width] of colour fill (bytes)."""
    fill = torch.tensor(fill, dtype=torch.float32)
    if image.is_floating_point():
        fill = fill / 255
    canvas = fill.to(image.dtype)[:, None, None].repeat(1, height, width)
    canvas[:, top : top + image.shape[1], left : left + image.shape[2]] = image
    return canvas


class MiniMasks:
    """Keep each mask in at most size x size cells of its box. Comes last: others would enlarge it again."""

    def __init__(self, size):
        self.size = size

    def __call__(self, image, target, rng):
        masks = target["masks"]
        masks = masks if isinstance(masks, CroppedMasks) else CroppedMasks.from_masks(masks)
        return image, {**target, "masks": masks.limited(self.size)}

    def __repr__(self):
        return f"MiniMasks({self.size})"


def build_augment(
    horizontal_flip=0.5,
    vertical_flip=0.0,
    photometric=False,
    large_scale_jitter=None,
    jitter_scale=(0.1, 2.0),
    expand=None,
    mini_mask=None,
):
    """The training augmentation from plain options -> Compose (of nothing, when all are off).

    horizontal_flip, vertical_flip: probabilities; photometric: PhotometricJitter with its own ranges;
    large_scale_jitter: side in pixels of its square, None or 0 for none; jitter_scale: its range of factors;
    expand: largest factor of Expand; mini_mask: cells a side of MiniMasks (None for none of either).
    """
    transforms = []
    if photometric:
        transforms.append(PhotometricJitter())  # before padding, so that padding keeps the mean colour
    if expand:
        transforms.append(Expand(expand))  # before what gives the image its final size
    if large_scale_jitter:
        transforms.append(LargeScaleJitter(large_scale_jitter, jitter_scale))
    if horizontal_flip > 0:
        transforms.append(HorizontalFlip(horizontal_flip))
    if vertical_flip > 0:
        transforms.append(VerticalFlip(vertical_flip))
    if mini_mask:
        transforms.append(MiniMasks(mini_mask))
    return Compose(transforms)
