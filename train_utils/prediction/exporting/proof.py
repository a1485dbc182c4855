"""A model and its exported file -> how far their detections are from each other, on check images.

Detections are paired: one of each of the same class, the nearest box. One alone is no fault where its score is the
least that counts: within tolerance of the score threshold, or of the last where as many were found as may be.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from network_files import MaskRCNN
from network_files.operators.instance_masks import paste_masks
from train_utils.io.plain_text import counted
from train_utils.logs.console import ImageProgress
from train_utils.prediction.predictor import detect

LIMITS = {"boxes": 1e-2, "scores": 1e-4, "masks": 1e-3}  # pixels of the image, score, probability


class Proof(NamedTuple):
    """Largest differences of the detections on some images; alone: those without a counterpart."""

    images: int
    empty: int  # images without a detection
    detections: int
    alone: int
    boxes: float  # pixels
    scores: float
    masks: float  # probability of a cell; of masks of the image's size: from a half, where a pixel is set in one alone

    @property
    def line(self) -> str:
        """What is printed."""
        numbers = f"boxes differ by {self.boxes:.1e} px at most, scores by {self.scores:.1e}, masks by {self.masks:.1e}"
        few = "" if self.empty else "; none of them is without a detection"
        few = few if self.detections else "; they hold nothing to compare: give images to check"
        labels = f"{self.alone} without a counterpart" if self.alone else "labels are equal"
        compared = f"{counted(self.detections, 'detection')} in {counted(self.images, 'image')}"
        return f"proof: {compared}: {numbers}, {labels}{few}"

    def faults(self) -> list[str]:
        """Returns what is above its limit."""
        values = self._asdict()
        above = [f"{name} differ by {values[name]:.2g}" for name, most in LIMITS.items() if not values[name] <= most]
        return above + ([f"{counted(self.alone, 'detection')} without a counterpart"] if self.alone else [])

    def record(self) -> dict[str, Any]:
        """Returns plain values."""
        return self._asdict()


def prove(model: MaskRCNN, exported: nn.Module, images: Sequence[Tensor], shown: bool = False) -> Proof:
    """Returns the differences between a model on the CPU and its exported file, over images [C, H, W].

    shown: show how many images are done, where that takes long.
    """
    cpu, parts = torch.device("cpu"), []
    progress = ImageProgress("proof", len(images), enabled=shown)
    for image in images:
        one, other = (detect(of, [image], cpu)[0] for of in (model, exported))
        if "masks" in other:
            where = one["boxes"], tuple(image.shape[-2:]), model.config.geometry
            one["masks"] = paste_masks(one["mask_probs"], *where)[:, 0]
        parts.append(_compared(one, other, model))
        progress.add(1)
    progress.close()
    empty = sum(not part.detections for part in parts)
    counts = [sum(column) for column in zip(*(part[2:4] for part in parts), strict=True)]
    return Proof(
        len(parts), empty, *counts, *(max(column) for column in zip(*(part[4:] for part in parts), strict=True))
    )


def _compared(one: dict[str, Tensor], other: dict[str, Any], model: MaskRCNN) -> Proof:
    same = one["labels"][:, None] == other["labels"]  # [D, E]
    distance = (one["boxes"][:, None] - other["boxes"]).abs().amax(2)
    distance += (one["scores"][:, None] - other["scores"]).abs()  # of two equal boxes, that of the same score
    distance = torch.where(same, distance, torch.inf)
    pairs = []
    for i in range(len(one["labels"])):
        nearest = int(distance[i].argmin()) if len(other["labels"]) else 0
        if len(other["labels"]) and distance[i, nearest] < 1:
            pairs.append((i, nearest))
            distance[:, nearest] = torch.inf
    i, j = torch.tensor(pairs, dtype=torch.int64).reshape(-1, 2).unbind(1)
    alone = _alone(one, i, model) + _alone(other, j, model)
    apart = [(one[key][i] - other[key][j]).abs() for key in ("boxes", "scores")]
    apart.append(_masks_apart(one, other, i, j))
    largest = (float(values.max()) if values.numel() else 0.0 for values in apart)
    return Proof(1, 0, len(one["labels"]), alone, *largest)


def _masks_apart(one: dict[str, Tensor], other: dict[str, Any], i: Tensor, j: Tensor) -> Tensor:
    """Returns how far the masks of pairs are apart: cells, or pixels that are set in one of both alone."""
    if "masks" not in other:
        return (one["mask_probs"][i] - other["mask_probs"][j]).abs()
    from_half = one["masks"][i] - 0.5
    return from_half[(from_half > 0) != other["masks"].to_masks()[j].bool()].abs()


def _alone(found: dict[str, Tensor], paired: Tensor, model: MaskRCNN) -> int:
    """Returns how many detections have no counterpart, and a score that is above the least."""
    scores, config = found["scores"], model.config
    least = float(scores[-1]) if len(scores) >= config.box_detections_per_img else config.box_score_thresh
    alone = torch.ones(len(scores), dtype=torch.bool)
    alone[paired] = False
    return int((alone & (scores > least + LIMITS["scores"])).sum())


def check_images(channels: int, side: int) -> list[Tensor]:
    """Returns images drawn for a proof, uint8 [channels, H, W], of three sizes and one that shows nothing.

    side: pixels of the longer side. Rectangles and ovals of one colour each lie on smooth noise; seeded.
    """
    draw = torch.Generator().manual_seed(0)
    sizes, images = [(side * 3 // 4, side), (side, side * 3 // 4), (side, side)], []
    for height, width in sizes:
        noise = torch.rand(1, channels, 6, 6, generator=draw)
        image = nn.functional.interpolate(noise, (height, width), mode="bilinear")[0] * 160 + 40
        y, x = torch.arange(height)[:, None], torch.arange(width)
        for k in range(6):
            centre, half = torch.rand(2, generator=draw), torch.rand(2, generator=draw) * 0.2 + 0.05
            dy, dx = (y / height - centre[0]) / half[0], (x / width - centre[1]) / half[1]
            inside = dy**2 + dx**2 < 1 if k % 2 else (dy.abs() < 1) & (dx.abs() < 1)
            colour = torch.rand(channels, 1, 1, generator=draw) * 255
            image = torch.where(inside, colour, image)
        images.append(image.to(torch.uint8))
    return [*images, torch.zeros(channels, side // 2, side // 2, dtype=torch.uint8)]
