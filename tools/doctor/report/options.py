"""The flags of tools.check_data."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from backbone.settings import setting
from train_utils.data.augmentations.options import Augmentation
from train_utils.data.options import BELOW_SEED, SHAPES_FOLDER, DataOptions
from train_utils.data.tiles.tiling import TrainingTiles
from train_utils.io.files import user_path


@dataclass(frozen=True)
class Options(TrainingTiles, DataOptions):
    """Checks: how much is looked at, for which model, and what is written."""

    data_path: str | None = setting(
        None, "a data set as train.py's --data-path, a json, or a folder of images", positional=True, metavar="data"
    )
    seed: int = setting(0, "of the choice of --samples", least=0, below=BELOW_SEED)
    full: bool = setting(False, "open every image")
    quick: bool = setting(False, "open only those of the contact sheet")
    workers: int = setting(0, "processes that open images; 0: this one", least=0, short="-j")
    weights_path: str | None = setting(
        None, "a checkpoint, a run folder, coco or coco_v2: sizes and anchors are looked at for its model", metavar="W"
    )
    samples: int = setting(18, "images of the contact sheet", least=0)
    output_dir: str = setting("check_data", "where page and json go")
    fix: str | None = setting(None, "a new folder for corrected annotations (COCO)", metavar="OUT")
    model: dict[str, Any] = field(default_factory=dict)  # fields of MaskRCNNConfig
    augmentation: Augmentation = Augmentation()  # of the training images on the contact sheet

    @property
    def built_in(self) -> bool:
        """Whether the data are the built-in shapes, which have a model of their own."""
        return user_path(self.data_path).resolve() == user_path(SHAPES_FOLDER).resolve()
