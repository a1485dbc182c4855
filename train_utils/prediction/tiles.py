"""What commands on trained models say about tiles -> how images are cut, which suits the images of training."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from backbone.errors import InputError
from backbone.settings import Settings, setting
from network_files import MaskRCNNConfig
from train_utils.checkpoints.checkpoint import is_checkpoint
from train_utils.cli.flags import given_settings
from train_utils.data.tiles.tiling import LEAST_SIDE, MOST_OVERLAP, OVERLAP, Tiling, TrainingTiles

AUTO = "auto"
AUTO_SIDES, AUTO_MOST = 4, 1024  # of an automatic tile as the network sees it: sides of a training image, pixels


@dataclass(frozen=True)
class TileOptions(Settings):
    """Large images: looked at in tiles, whose detections are joined."""

    tile: str | None = setting(
        None,
        "look at images in tiles of so many pixels a side and join what they show; auto: those of training, or of a "
        "size that suits its images",
        metavar="SIZE",
    )
    overlap: float | None = setting(
        None,
        f"share of a tile's side that neighbours have in common (default: {OVERLAP}; --tile auto: that of training)",
        least=0,
        most=MOST_OVERLAP,
    )
    tile_empty: float = setting(
        0.0, "a tile whose values differ by at most this in each channel is left out (of 255; below 0: none is)"
    )

    def tiling(self, config: MaskRCNNConfig, content: Mapping[str, Any]) -> Tiling | None:
        """Returns how images are cut, None without --tile; config: the model's, content: of its file."""
        return None if self.tile is None else tiling_of(self.tile, self.overlap, self.tile_empty, config, content)


def tiling_of(
    tile: str | int, overlap: float | None, empty: float, config: MaskRCNNConfig, content: Mapping[str, Any]
) -> Tiling:
    """Returns the tiling that is asked for: pixels a side, or auto: AUTO_SIDES as wide as the largest training image.

    Where training cut its images, auto is as it did, and tiles of that size are seen as there. Else where images as
    large as a tile would be shrunk more than those of training were, tiles are seen at the scale of these. config: the
    model's; content: of its file, which says what that is; overlap: None: as training's, or OVERLAP. Raises InputError
    for other words, and where auto is not known.
    """
    trained = trained_tiling(content)
    if overlap is None:
        overlap = trained.overlap if trained and str(tile) == AUTO else OVERLAP
    if trained and str(tile) in (AUTO, str(trained.side)):
        return Tiling(trained.side, overlap, empty)
    least, own = content.get("smallest_scale"), config.min_size[-1]
    least = least if isinstance(least, float) and not config.fixed_size else None
    if str(tile) != AUTO:
        if not str(tile).isdecimal():
            raise InputError(f"--tile {tile}: give the pixels of a tile's side, or auto")
        return Tiling(int(tile), overlap, empty, least if least and int(tile) * least > own else None)
    if not least:
        raise InputError("--tile auto: these weights do not say how large the images of training were; give pixels")
    side = round(max(min(AUTO_SIDES * own, AUTO_MOST), own) / least)
    return Tiling(max(side, LEAST_SIDE), overlap, empty, least if side * least > own else None)


def trained_tiling(content: Mapping[str, Any]) -> Tiling | None:
    """Returns how the training of a checkpoint cut its images, None where it did not; content: of the weights' file."""
    args = content.get("args") if is_checkpoint(dict(content)) else None
    named = given_settings(TrainingTiles, args) if isinstance(args, dict) else {}
    return TrainingTiles(**{name: value for name, value in named.items() if value is not None}).tiling
