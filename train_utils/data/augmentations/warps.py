"""Augmentations that turn, scale and shift: images by interpolation, masks pixel for pixel."""

import math

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from network_files.operators.cropped_masks import CroppedMasks
from train_utils.data.augmentations.common import (
    MEAN_COLOUR,
    Sample,
    chance,
    cropped,
    fill_of,
    in_form_of,
    kept,
    large_enough,
    top_of,
    uniform,
    with_masks,
)


class QuarterTurns:
    """Turns by 90, 180 or 270 degrees with probability p. Law: exact; four turns of 90 degrees are the identity."""

    def __init__(self, p: float = 0.75) -> None:
        self.p = p

    def __call__(self, image: Tensor, target: dict, rng: Generator) -> Sample:
        """Returns image and target, turned or as they are."""
        used, turns = chance(self.p, rng), 1 + int(uniform(0, 3, rng))
        return turned(image, target, turns) if used else (image, dict(target))

    def __repr__(self) -> str:
        return f"QuarterTurns(p={self.p})"


def turned(image: Tensor, target: dict, turns: int) -> Sample:
    """Turns image and target by so many times 90 degrees to the left."""
    masks, boxes = cropped(target["masks"]), target["boxes"]
    crops, places, size = masks.crops(), masks.boxes, masks.size
    for _ in range(turns):
        crops = [crop.rot90(1, (0, 1)) for crop in crops]
        places, boxes = (_turned_boxes(each, size[1]) for each in (places, boxes))
        size = size[::-1]
    masks = CroppedMasks.from_crops(crops, places, size)
    return image.rot90(turns, (1, 2)), {**target, "boxes": boxes, "masks": in_form_of(target["masks"], masks)}


def _turned_boxes(boxes: Tensor, width: int) -> Tensor:
    x1, y1, x2, y2 = boxes.unbind(1)
    return torch.stack((y1, width - x2, y2, width - x1), 1)


class Affine:
    """Turns, scales and shifts about the centre, with probability p; the frame keeps its size.

    degrees: the most that it turns either way; scale: range of factors; shift: the most that it moves, as a share of
    height and width. What comes from outside is `fill` (bytes). Pixels are interpolated, smoothed where the image
    becomes smaller. A mask's pixel is set where its centre comes from a set pixel, and boxes and areas are those of
    the masks. Objects with less than MIN_VISIBLE of their pixels left are left out. Law: without strength it changes
    nothing.
    """

    def __init__(
        self,
        degrees: float = 0.0,
        scale: tuple[float, float] = (1.0, 1.0),
        shift: float = 0.0,
        fill: tuple[int, ...] = MEAN_COLOUR,
        p: float = 0.5,
    ) -> None:
        self.degrees, self.scale, self.shift, self.fill, self.p = degrees, tuple(scale), shift, tuple(fill), p

    def __call__(self, image: Tensor, target: dict, rng: Generator) -> Sample:
        """Returns image and target in the same frame, changed or as they are."""
        used, angle = chance(self.p, rng), math.radians(uniform(-self.degrees, self.degrees, rng))
        factor, across, down = uniform(*self.scale, rng), *(uniform(-self.shift, self.shift, rng) for _ in range(2))
        if not used or (angle, factor, across, down) == (0, 1, 0, 0):
            return image, dict(target)
        height, width = image.shape[1:]
        cos, sin = factor * math.cos(angle), factor * math.sin(angle)
        turn = torch.tensor([[cos, -sin], [sin, cos]], dtype=torch.float64)  # on (x, y)
        centre = torch.tensor([width / 2, height / 2], dtype=torch.float64)
        move = centre + centre * 2 * torch.tensor([across, down], dtype=torch.float64) - turn @ centre
        return warped_image(image, turn, move, self.fill), warped_target(target, turn, move)

    def __repr__(self) -> str:
        return f"Affine(degrees={self.degrees}, scale={self.scale}, shift={self.shift}, p={self.p})"


def sources(turn: Tensor, move: Tensor, window: tuple[int, int, int, int]) -> Tensor:
    """Returns where the centres of the pixels of a window (x1 y1 x2 y2) come from: x and y, float64 [h, w, 2].

    A point p goes to turn @ p + move.
    """
    x1, y1, x2, y2 = window
    ys, xs = torch.meshgrid(torch.arange(y1, y2) + 0.5, torch.arange(x1, x2) + 0.5, indexing="ij")
    return (torch.stack((xs, ys), -1).double() - move) @ torch.linalg.inv(turn).T


def warped_image(image: Tensor, turn: Tensor, move: Tensor, fill: tuple[int, ...]) -> Tensor:
    """Returns the image in its frame after turn and move; what comes from outside has the colour fill."""
    height, width = image.shape[1:]
    colour = fill_of(image, fill).float()
    pixels = (image.float() - colour)[None]  # outside, grid_sample takes 0
    factor = float(torch.linalg.det(turn).sqrt())
    if factor < 1:
        smaller = [max(1, round(side * factor)) for side in (height, width)]
        pixels = F.interpolate(pixels, size=smaller, mode="bilinear", antialias=True)
    grid = 2 * sources(turn, move, (0, 0, width, height)) / torch.tensor([width, height]) - 1  # -1..1 over the image
    warped = F.grid_sample(pixels, grid.float()[None], align_corners=False)[0] + colour
    warped = warped.clamp(0, top_of(image))
    return (warped if image.is_floating_point() else warped.round()).to(image.dtype)


def warped_target(target: dict, turn: Tensor, move: Tensor) -> dict:
    """Returns the target in its frame after turn and move."""
    masks = cropped(target["masks"])
    height, width = masks.size
    crops, places = [], []
    for crop, (x1, y1, x2, y2) in zip(masks.crops(), masks.boxes.tolist(), strict=True):
        corners = torch.tensor([[x1, y1], [x1, y2], [x2, y1], [x2, y2]], dtype=torch.float64) @ turn.T + move
        low, high = corners.amin(0).floor().int().tolist(), corners.amax(0).ceil().int().tolist()
        left, top = max(low[0], 0), max(low[1], 0)
        right, bottom = max(min(high[0], width), left), max(min(high[1], height), top)
        xs, ys = sources(turn, move, (left, top, right, bottom)).floor().long().unbind(-1)  # [h, w] each
        inside = (xs >= x1) & (xs < x2) & (ys >= y1) & (ys < y2)
        found = torch.zeros(inside.shape, dtype=torch.uint8)
        found[inside] = crop[ys[inside] - y1, xs[inside] - x1]
        crops.append(found)
        places.append((left, top, right, bottom))
    warped = CroppedMasks.from_crops(crops, torch.tensor(places, dtype=torch.int64).reshape(-1, 4), masks.size)
    before = masks.areas() * float(torch.linalg.det(turn))
    return kept(with_masks(target, warped), large_enough(target, warped.areas(), before))
