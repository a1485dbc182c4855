"""What a command, or a caller, says about its data: where it lies, how it is read, how it is loaded."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from backbone.errors import InputError
from backbone.settings import Settings, setting

SHAPES_FOLDER = "data/shapes"
PLACES = ("data_path", "dataset", "image_dir", "year")  # the options that say together where data lies
OF_PLACE = (*PLACES, "split_components")  # what other data has anew
STRICT = "unreadable images and unusable annotations are errors, not skipped"
BELOW_SEED = 2**63  # torch's generators take no larger seed


@dataclass(frozen=True)
class DataOptions(Settings):
    """Data: where it lies and how it is read."""

    data_path: str | Path | None = setting(
        None,
        "data set folder (COCO, VOC, .npy, mask images, YOLO, LabelMe), or a json; absent: the built-in shapes, drawn "
        "into ./data/shapes",
        metavar="DATA",
        resume="free",
    )
    dataset: str = setting(
        "auto", "layout of the data; a name that is none is answered with those that there are", resume="place"
    )
    image_dir: str | Path | None = setting(None, "folder of the images, where it is not the usual one", resume="place")
    year: str | None = setting(None, "VOC or COCO year, where the folder holds several", resume="place")
    label_json_path: str | Path | None = setting(
        None, 'class names of .npy data and mask images: a json file {"1": "person", ...}', metavar="J", resume="place"
    )
    val_fraction: float = setting(0.2, "validation share of data without a split", least=0, most=1)
    seed: int = setting(0, "chooses that share", least=0, below=BELOW_SEED)
    drop_empty: bool = setting(False, "leave out training images without objects")
    split_components: bool | None = setting(
        None, "mask images: whether each connected region of a value is an object; absent: an error where it is unclear"
    )
    crowd_as_objects: bool = setting(False, "read crowd regions (iscrowd 1) as objects: tools write it for each RLE")
    follow_links: bool = setting(False, "follow images that are links out of the data (else an error)", resume="own")
    strict: bool = setting(False, STRICT, resume="free")
    shapes_dir: str | Path = SHAPES_FOLDER  # where the built-in shapes are drawn

    def __post_init__(self) -> None:
        if not 0 <= self.val_fraction <= 1:
            raise InputError(f"--val-fraction {self.val_fraction}: a share from 0 to 1 is needed")
        super().__post_init__()


@dataclass(frozen=True)
class LoaderOptions(Settings):
    """Loading: how images become batches."""

    batch_size: int = setting(1, "images at a time", least=1, short="-b", resume="batch")
    accumulate_steps: int = setting(1, "batches per optimiser step", least=1, resume="batch")
    workers: int = setting(0, "processes that read images", least=0, most=1024, short="-j", resume="own")
    aspect_ratio_group_factor: int = setting(
        3, "groups of image shapes that batches are formed within; 0: none", least=0
    )
    repeat: int = setting(1, "times that an epoch has each image", least=1, metavar="N")
    balance: float | None = setting(
        None,
        "show images of classes that less than this share of the images have more often, by LVIS's rule",
        above=0,
        most=1,
        metavar="SHARE",
    )
    seed: int = setting(0, "of order and augmentation", least=0, below=BELOW_SEED)
    strict: bool = setting(False, STRICT, resume="free")
