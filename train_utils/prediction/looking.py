"""What commands say about how a trained model looks at images, in tiles and mirrored -> a model that does so."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from backbone.errors import InputError
from backbone.settings import Settings, setting
from network_files import MaskRCNN, MaskRCNNConfig
from train_utils.checkpoints.checkpoint import is_checkpoint
from train_utils.cli.flags import given_settings
from train_utils.data.augmentations.options import FUNCTION, Augmentation
from train_utils.data.tiles.tiling import LEAST_SIDE, MOST_OVERLAP, OVERLAP, Tiling, TrainingTiles
from train_utils.evaluation.mirrored_model import MirroredModel
from train_utils.evaluation.tiled_model import TiledModel
from train_utils.prediction.runtimes.exported_model import WholeModel

AUTO, FLIPS = "auto", "flips"
AUTO_SIDES, AUTO_MOST = 8, 1024  # of an automatic tile as the network sees it: sides of a training image, pixels


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


@dataclass(frozen=True)
class LookingOptions(TileOptions):
    """Surer detections: averages over several looks at an image."""

    tta: str | None = setting(
        None,
        "flips: average boxes and masks over the mirror images that training had, in two times the time, four where "
        "it had --vertical-flip",
        choices=(FLIPS,),
    )

    def notes(self, content: Mapping[str, Any]) -> list[str]:
        """Returns lines on what has no effect, and on what of training is not known; content: of the weights' file."""
        given = {"--overlap": self.overlap is not None, "--tile-empty": self.tile_empty != 0}
        idle = " ".join(name for name, is_given in given.items() if is_given and self.tile is None)
        lines = [f"{idle}: without effect, there is no --tile"] if idle else []
        if self.tta is not None and (own := augmented_by(content)) is not None:
            lines.append(
                f"--tta {self.tta}: mirrors left and right; whether training did is not known (--augment {own})"
            )
        return lines

    def looking(
        self, model: nn.Module, content: Mapping[str, Any], mask_threshold: float = 0.5
    ) -> nn.Module | MirroredModel | TiledModel:
        """Returns a model that looks at images as asked for: the given one, or one around it.

        content: of its file; mask_threshold: see TiledModel. Raises InputError for what cannot be.
        """
        config = model.config
        if self.tta is not None:
            if not isinstance(model, MaskRCNN):
                raise InputError(f"--tta {self.tta}: an exported file looks at an image once; give the checkpoint")
            model = MirroredModel(model, trained_flips(content))
        if self.tile is None:
            return model
        if isinstance(model, WholeModel):
            raise InputError("tile: a file of --postprocess gives whole masks; export it without, or leave tiles out")
        sides = AUTO_SIDES if isinstance(model, MaskRCNN | MirroredModel) else 1  # a file has no more room
        tiling = tiling_of(self.tile, self.overlap, self.tile_empty, config, content, sides)
        return TiledModel(model, tiling, mask_threshold)


def tiling_of(
    tile: str | int,
    overlap: float | None,
    empty: float,
    config: MaskRCNNConfig,
    content: Mapping[str, Any],
    sides: int = AUTO_SIDES,
) -> Tiling:
    """Returns the tiling that is asked for: pixels a side, or auto: `sides` as wide as the largest training image.

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
    side = round(max(min(sides * own, AUTO_MOST), own) / least)
    return Tiling(max(side, LEAST_SIDE), overlap, empty, least if side * least > own else None)


def trained_tiling(content: Mapping[str, Any]) -> Tiling | None:
    """Returns how the training of a checkpoint cut its images, None where it did not; content: of the weights' file."""
    args = content.get("args") if is_checkpoint(dict(content)) else None
    named = given_settings(TrainingTiles, args) if isinstance(args, dict) else {}
    return TrainingTiles(**{name: value for name, value in named.items() if value is not None}).tiling


def augmented_by(content: Mapping[str, Any]) -> str | None:
    """Returns the name of a user's function that augmented in the training of a checkpoint, or None."""
    args = content.get("args") if is_checkpoint(dict(content)) else None
    if not isinstance(args, dict):
        return None
    names = content.get(FUNCTION), args.get("augment")  # of maskrcnn.train, and my_file.py:name
    return names[0] or (names[1] if ".py:" in str(names[1]) else None)


def trained_flips(content: Mapping[str, Any]) -> tuple[tuple[int, ...], ...]:
    """Returns the axes of the mirror images that the training of a checkpoint had.

    Left and right where it is not known; content: of the weights' file. Raises InputError where training had none.
    """
    args = content.get("args") if is_checkpoint(dict(content)) else None
    named = given_settings(Augmentation, args) if isinstance(args, dict) else {}
    axes = [axis for axis, name in ((2, "horizontal_flip"), (1, "vertical_flip")) if named.get(name)]
    if named.get("quarter_turns"):
        axes = [2, 1]
    if "horizontal_flip" not in named or augmented_by(content) is not None:
        axes = [2]
    if not axes:
        raise InputError(
            f"--tta {FLIPS}: training mirrored no image (--horizontal-flip 0): the model does not know them"
        )
    both = ((2, 1),) if len(axes) == 2 else ()
    return (*((axis,) for axis in axes), *both)
