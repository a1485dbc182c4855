"""What augmentations share: draws from a generator, masks of either form, objects that are left out and counted.

N objects in an image of C channels and H x W pixels; image and target as in transforms.py.
"""

from collections.abc import Callable

import torch
from torch import Generator, Tensor

from network_files.operators.cropped_masks import CroppedMasks

Sample = tuple[Tensor, dict]  # an image and its target
Transform = Callable[[Tensor, dict, Generator], Sample]

PER_OBJECT = ("boxes", "labels", "masks", "area", "iscrowd")
REMOVED = "removed"  # a target's entry: how many objects augmentations have left out; absent: none
MIN_VISIBLE = 0.25  # of an object's pixels: with fewer left it cannot be told any more, and is left out

# ImageNet's mean colour as bytes: after normalisation it is about 0, which is what batching pads with.
MEAN_COLOUR = (124, 116, 104)


def uniform(low: float, high: float, rng: Generator) -> float:
    """Draws one number evenly from [low, high)."""
    return low + (high - low) * torch.rand((), generator=rng).item()


def chance(p: float, rng: Generator) -> bool:
    """Returns True with probability p; always takes exactly one number from the generator."""
    return torch.rand((), generator=rng).item() < p


def cropped(masks: CroppedMasks | Tensor) -> CroppedMasks:
    """Returns masks of either form (see transforms.py) as CroppedMasks."""
    return masks if isinstance(masks, CroppedMasks) else CroppedMasks.from_masks(masks)


def in_form_of(masks: CroppedMasks | Tensor, changed: CroppedMasks) -> CroppedMasks | Tensor:
    """Returns changed masks in the form that `masks` have."""
    return changed if isinstance(masks, CroppedMasks) else changed.to_masks()  # [N, H', W']


def on_masks(masks: CroppedMasks | Tensor, function: Callable[[CroppedMasks], CroppedMasks]) -> CroppedMasks | Tensor:
    """Applies a function of CroppedMasks to masks of either form, and keeps the form."""
    return in_form_of(masks, function(cropped(masks)))


def top_of(image: Tensor) -> float:
    """Returns an image's largest value: 1 of a float, 255 of a byte."""
    return 1.0 if image.is_floating_point() else float(torch.iinfo(image.dtype).max)


def fill_of(image: Tensor, fill: tuple[int, ...]) -> Tensor:
    """Returns a colour (bytes) as the image has it, [C, 1, 1]; its mean where it has another number of channels."""
    colour = torch.tensor(fill, dtype=torch.float32)
    if image.dtype != torch.uint8:
        colour = colour * (top_of(image) / 255)
    if len(colour) != image.shape[0]:
        colour = colour.mean().expand(image.shape[0])
    return colour.to(image.dtype)[:, None, None]


def on_canvas(image: Tensor, fill: tuple[int, ...], size: tuple[int, int], top: int = 0, left: int = 0) -> Tensor:
    """Puts an image [C, h, w] on a canvas [C, *size] of colour fill (bytes), its left upper corner at (left, top)."""
    canvas = fill_of(image, fill).repeat(1, *size)
    canvas[:, top : top + image.shape[1], left : left + image.shape[2]] = image
    return canvas


def kept(target: dict, keep: Tensor) -> dict:
    """Returns the target with the objects where keep (bool [N]) is set; REMOVED counts the others."""
    if keep.all():
        return target
    removed = target.get(REMOVED, 0) + int((~keep).sum())
    return {**target, **{key: target[key][keep] for key in PER_OBJECT if key in target}, REMOVED: removed}


def with_masks(target: dict, masks: CroppedMasks, changed: Tensor | None = None) -> dict:
    """Returns the target with other masks, and with boxes and areas of their pixels.

    changed: bool [N], of which objects; None: of all. The others keep theirs, which may be as annotated.
    """
    boxes, area = masks.boxes.float(), masks.areas().float()
    if changed is not None:
        boxes = torch.where(changed[:, None], boxes, target["boxes"])
        area = torch.where(changed, area, target["area"])
    return {**target, "masks": in_form_of(target["masks"], masks), "boxes": boxes, "area": area}


def large_enough(target: dict, area: Tensor, before: Tensor) -> Tensor:
    """Returns which objects to keep, bool [N]: with MIN_VISIBLE of the pixels that they had; crowds with any pixel."""
    crowd = target["iscrowd"].bool() if "iscrowd" in target else torch.zeros(len(area), dtype=torch.bool)
    return (area > 0) & (crowd | (area >= MIN_VISIBLE * before))


def hidden_behind(target: dict, hidden: Tensor) -> dict:
    """Returns the target of what is still seen where pixels (bool [H, W]) are hidden.

    Masks lose exactly these pixels. Boxes and areas of the objects that lost some are those of the visible pixels.
    Objects that are no longer `large_enough` are left out.
    """
    masks = cropped(target["masks"])
    seen, touched = [], []
    for crop, (x1, y1, x2, y2) in zip(masks.crops(), masks.boxes.tolist(), strict=True):
        visible = crop.bool() & ~hidden[y1:y2, x1:x2]
        seen.append(visible)
        touched.append(bool((visible != crop.bool()).any()))
    touched = torch.tensor(touched, dtype=torch.bool)
    if not touched.any():
        return target
    left = CroppedMasks.from_crops(seen, masks.boxes, masks.size)
    changed = with_masks(target, left, touched)
    return kept(changed, ~touched | large_enough(target, left.areas(), masks.areas()))
