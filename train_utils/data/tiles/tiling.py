"""The size of an image -> where its tiles lie; neighbours overlap. T tiles of an image of H x W pixels."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from backbone.errors import InputError
from backbone.settings import Settings, setting
from network_files.transform import WHITE

Size = tuple[int, int]  # height, width

OVERLAP, MOST_OVERLAP = 0.2, 0.5  # of a side: with more, tiles would overlap that are no neighbours
LEAST_SIDE = 32  # pixels
EVEN = 32  # pixels: sides of tiles are multiples of it, as networks pad to one


@dataclass(frozen=True)
class Tiling:
    """How an image is cut: tiles of at most `side` pixels a side, of which neighbours share `overlap` of that or more.

    empty: a tile whose values differ by at most so much in each channel is not looked at (of 255; below 0: all are);
    scale: at which the network sees tiles, which are then no larger than they need be; None: at that of images of their
    size. Raises InputError for what cannot be.
    """

    side: int
    overlap: float = OVERLAP
    empty: float = 0.0
    scale: float | None = None

    def __post_init__(self) -> None:
        if self.side < LEAST_SIDE:
            raise InputError(f"--tile {self.side}: a tile has at least {LEAST_SIDE} pixels a side")
        if not 0 <= self.overlap <= MOST_OVERLAP:
            raise InputError(f"--overlap {self.overlap:g}: it is a share of a tile's side, 0 to {MOST_OVERLAP:g}")

    def tile_size(self, size: Size) -> Size:
        """Returns (h, w) of each tile of an image of `size` (H, W): no more than its tiles need to share `overlap`."""
        return tuple(self.along(length)[1] for length in size)

    def boxes(self, size: Size) -> Tensor:
        """Returns the tiles of an image of `size` (H, W), int64 [T, 4] x1 y1 x2 y2, row by row, of equal sizes."""
        (ys, high), (xs, wide) = (self.along(length) for length in size)
        return torch.tensor([[x, y, x + wide, y + high] for y in ys for x in xs])

    def along(self, length: int) -> tuple[list[int], int]:
        """Returns where tiles begin along a side, evenly from border to border, and how long they are."""
        if length <= self.side:
            return [0], length
        shared = math.ceil(self.side * self.overlap)
        count = math.ceil((length - shared) / max(self.side - shared, 1))
        side = self.side
        if self.scale is not None:
            side = min(math.ceil((length + (count - 1) * shared) / count / EVEN) * EVEN, side)
        return [round(i * (length - side) / (count - 1)) for i in range(count)], side

    def is_empty(self, tile: Tensor) -> bool:
        """Returns whether a tile [C, h, w] shows too little to be looked at."""
        if self.empty < 0:
            return False
        values = tile.int() if tile.dtype == torch.uint16 else tile  # torch compares no uint16
        low, high = (value.double() for value in values.flatten(1).aminmax(dim=1))
        white = WHITE.get(tile.dtype, 1)
        return float((high - low).max()) * 255 / white <= self.empty


@dataclass(frozen=True)
class TrainingTiles(Settings):
    """Tiles: large images are cut, and each tile is an image of training."""

    tile: int | None = setting(
        None,
        "cut training images into tiles of so many pixels a side, and look at validation images in such tiles",
        least=LEAST_SIDE,
        metavar="SIZE",
    )
    overlap: float = setting(
        OVERLAP, "share of a tile's side that neighbours have in common", least=0, most=MOST_OVERLAP, metavar="SHARE"
    )
    tile_negatives: float = setting(
        0.25, "tiles without objects that an epoch has for each with objects, others each time", least=0, metavar="N"
    )

    @property
    def tiling(self) -> Tiling | None:
        """How images are cut; None without --tile."""
        return None if self.tile is None else Tiling(self.tile, self.overlap)
