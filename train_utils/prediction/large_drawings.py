"""Detections of an image that was looked at in tiles -> a reduced overview, and the fullest tiles at full size.

A drawing of a whole slide takes gigabytes and no viewer opens it: an overview has at most OVERVIEW pixels a side, and
at most PARTS tiles are drawn beside it, however large the image is.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from network_files.operators.cropped_masks import CroppedMasks
from train_utils.data.tiles.tiling import Size, Tiling
from train_utils.io.files import atomic_file, make_folder
from train_utils.io.plain_text import counted
from train_utils.prediction.predictor import OVERVIEW, Predictor
from train_utils.show.drawing import Style

PARTS = 16  # tiles that are drawn beside the overview
QUALITY: dict[str, Any] = {"format": "JPEG", "quality": 92, "subsampling": 0}  # subsampled colour blurs small text


def is_large(size: Size, tiling: Tiling | None) -> bool:
    """Returns whether an image of `size` (H, W) is drawn as an overview and parts."""
    return tiling is not None and max(size) > OVERVIEW and len(tiling.boxes(size)) > 1


def fullest(tiles: Tensor, boxes: Tensor, most: int = PARTS) -> list[int]:
    """Returns at most so many of the tiles [T, 4], those in which most detections [D, 4] have their centre first."""
    centres = (boxes[:, :2] + boxes[:, 2:]) / 2
    counts = torch.stack([within(centres, tile).sum() for tile in tiles])
    order = torch.argsort(counts, descending=True, stable=True)[:most]
    return order[counts[order] > 0].tolist()


def within(centres: Tensor, window: Tensor) -> Tensor:
    """Returns which points [D, 2] lie in a window x1 y1 x2 y2, bool [D]."""
    return ((centres >= window[:2]) & (centres < window[2:])).all(1)


def parts(
    predictor: Predictor, found: dict, image: Tensor, style: Style, masks: CroppedMasks, tiling: Tiling
) -> Iterator[tuple[tuple[int, int], Image.Image]]:
    """Yields (x, y) of a tile's corner and the tile with what of the detections lies in it, for the fullest tiles."""
    tiles = tiling.boxes(tuple(image.shape[-2:]))
    for t in fullest(tiles, found["boxes"]):
        x1, y1, x2, y2 = tiles[t].tolist()
        boxes = found["boxes"] - torch.tensor([x1, y1] * 2)
        boxes = boxes.clamp(min=0).minimum(torch.tensor([x2 - x1, y2 - y1] * 2))
        seen = (boxes[:, 2:] > boxes[:, :2]).all(1)
        near = masks[seen]
        own = near.window(x1, y1, x2 - x1, y2 - y1)
        there = (own.boxes[:, 2] > 0) | (near.boxes[:, 2] == 0)  # a box may be here without a pixel of its mask
        seen, own = torch.nonzero(seen)[there, 0], own[there]
        here = {"boxes": boxes[seen], **{key: found[key][seen] for key in ("labels", "scores")}}
        yield (x1, y1), predictor.draw({**here, "masks": own}, image[:, y1:y2, x1:x2], style, own)[0]


def draw_parts(
    predictor: Predictor, found: dict, image: Tensor, style: Style, masks: CroppedMasks, target: Path
) -> str:
    """Writes the parts into a folder beside the overview `target`; returns what is said of both."""
    tiling, folder = predictor.tiled.tiling, target.with_name(f"{target.stem}_tiles")
    make_folder(folder)
    for old in folder.iterdir():  # of an earlier call, whose tiles lay elsewhere
        if re.fullmatch(r"x\d+_y\d+\.jpg", old.name):
            old.unlink()
    count = 0
    for (x, y), drawn in parts(predictor, found, image, style, masks, tiling):
        with atomic_file(folder / f"x{x}_y{y}.jpg") as file:
            drawn.save(file, **QUALITY)
        count += 1
    tiles = len(tiling.boxes(tuple(image.shape[-2:])))
    if not count:
        return "an overview, without a tile at full size, as none has a detection"
    return f"an overview; the fullest {count} of {counted(tiles, 'tile')} at full size in {folder}"
