"""Augmentations that cover parts of an image: objects of another image, or plain rectangles."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from network_files.operators.cropped_masks import CroppedMasks
from train_utils.data.augmentations.common import (
    MEAN_COLOUR,
    MIN_VISIBLE,
    PER_OBJECT,
    Sample,
    chance,
    cropped,
    fill_of,
    hidden_behind,
    in_form_of,
    top_of,
    uniform,
)
from train_utils.data.images import ImageError


class CopyPaste:
    """Puts objects of another training image on top, with probability p (Ghiasi et al. 2021, "Simple Copy-Paste").

    others: the training samples, others[i] -> (image, target). Which one is drawn from the same generator. It is
    scaled so that its longer side is the image's times a factor of `scale`, mirrored or not, and put at a random
    place; each of its objects is taken with the chance `share`, at least one, but no crowd regions and none of which
    less than MIN_VISIBLE is inside. They hide what is below them: see `common.hidden_behind`. Pasted boxes and areas
    are those of the pixels. An image that cannot be read gives nothing: it is named when its own turn comes.
    """

    def __init__(
        self, others: Sequence[Sample], p: float = 0.5, scale: tuple[float, float] = (0.5, 1.5), share: float = 0.5
    ) -> None:
        self.others, self.p, self.scale, self.share = others, p, tuple(scale), share

    def __call__(self, image: Tensor, target: dict, rng: Generator) -> Sample:
        """Returns the image with more objects, or as it is."""
        # one seed for what depends on the other image, so that the draws after it do not
        used, seed = chance(self.p, rng), int(torch.randint(2**62, (), generator=rng))
        if not used:
            return image, dict(target)
        rng = torch.Generator().manual_seed(seed)
        try:
            other, its = self.others[int(uniform(0, len(self.others), rng))]
        except ImageError:
            return image, dict(target)
        return self._paste(image, target, *self._objects(other, its, tuple(image.shape[1:]), rng))

    def _objects(self, other: Tensor, its: dict, frame: tuple[int, int], rng: Generator) -> tuple[Tensor, dict]:
        """Returns the other image within the frame (H, W), and the target of the objects chosen, in it."""
        height, width = other.shape[1:]
        ratio = max(frame) / max(height, width) * uniform(*self.scale, rng)
        size = max(1, round(height * ratio)), max(1, round(width * ratio))
        mirrored = chance(0.5, rng)
        y, x = (_corner(old, new, rng) for old, new in zip(size, frame, strict=True))
        chosen = torch.rand(len(its["labels"]), generator=rng) < self.share
        one = int(uniform(0, max(1, len(chosen)), rng))
        chosen[one : one + 1] |= not chosen.any()
        if "iscrowd" in its:
            chosen &= ~its["iscrowd"].bool()

        pixels = F.interpolate(other[None].float(), size=size, mode="bilinear", antialias=ratio < 1)[0]
        whole = cropped(its["masks"])[chosen].resize(size)
        if mirrored:
            pixels, whole = pixels.flip(2), whole.hflip()
        masks = whole.window(x, y, frame[1], frame[0])
        seen = (masks.areas() >= MIN_VISIBLE * whole.areas()) & (masks.areas() > 0)
        masks, labels = masks[seen], its["labels"][chosen][seen]
        placed = torch.zeros(len(other), *frame)
        top, left = max(0, -y), max(0, -x)
        part = pixels[:, max(0, y) : max(0, y) + frame[0] - top, max(0, x) : max(0, x) + frame[1] - left]
        placed[:, top : top + part.shape[1], left : left + part.shape[2]] = part
        return placed / top_of(other), {"masks": masks, "labels": labels}

    def _paste(self, image: Tensor, target: dict, other: Tensor, its: dict) -> Sample:
        """Returns the image with the objects of `other` (values in 0..1) in front."""
        masks = its["masks"]
        front = torch.zeros(image.shape[1:], dtype=torch.bool)
        for crop, (x1, y1, x2, y2) in zip(masks.crops(), masks.boxes.tolist(), strict=True):
            front[y1:y2, x1:x2] |= crop.bool()
        values = (other * top_of(image)).clamp(0, top_of(image))
        values = values if image.is_floating_point() else values.round()
        behind = hidden_behind(target, front)
        own = cropped(behind["masks"])
        joined = CroppedMasks(torch.cat((own.pixels, masks.pixels)), torch.cat((own.boxes, masks.boxes)), own.size)
        added = {
            "boxes": masks.boxes.float(), "labels": its["labels"], "area": masks.areas().float(),
            "iscrowd": torch.zeros(len(masks), dtype=torch.uint8),
        }  # fmt: skip
        per_object = {key: torch.cat((behind[key], added[key])) for key in PER_OBJECT if key in behind and key in added}
        image = torch.where(front, values.to(image.dtype), image)
        return image, {**behind, **per_object, "masks": in_form_of(target["masks"], joined)}

    def __repr__(self) -> str:
        return f"CopyPaste(p={self.p}, scale={self.scale}, share={self.share})"


def _corner(length: int, frame: int, rng: Generator) -> int:
    """Draws where a frame begins on an axis of a length: within it, or before it where the frame is longer."""
    room = length - frame
    return int(uniform(0, abs(room) + 1, rng)) + min(0, room)


class Cutout:
    """Covers up to `count` rectangles with `fill` (bytes), with probability p (DeVries and Taylor 2017).

    Their sides are 0.05 to `most` of the image's. Masks, boxes and areas are of what is still seen, and objects of
    which less than MIN_VISIBLE is seen are left out.
    """

    def __init__(self, count: int = 3, most: float = 0.2, fill: tuple[int, ...] = MEAN_COLOUR, p: float = 0.5) -> None:
        self.count, self.most, self.fill, self.p = count, most, tuple(fill), p

    def __call__(self, image: Tensor, target: dict, rng: Generator) -> Sample:
        """Returns image and target with rectangles covered, or as they are."""
        used, count = chance(self.p, rng), 1 + int(uniform(0, self.count, rng))
        places = torch.rand(max(1, self.count), 4, generator=rng).tolist()
        if not used or not self.count:
            return image, dict(target)
        height, width = image.shape[1:]
        hidden = torch.zeros(height, width, dtype=torch.bool)
        for x, y, across, down in places[:count]:
            wide, high = (
                max(1, round(s * (0.05 + (self.most - 0.05) * u))) for s, u in ((width, across), (height, down))
            )
            left, top = int(x * (width - wide + 1)), int(y * (height - high + 1))
            hidden[top : top + high, left : left + wide] = True
        return torch.where(hidden, fill_of(image, self.fill), image), dict(hidden_behind(target, hidden))

    def __repr__(self) -> str:
        return f"Cutout({self.count}, p={self.p})"
