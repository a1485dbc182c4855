"""What a command, or a caller, says about its data."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

SHAPES_FOLDER = "data/shapes"


def option(default: object, text: str, **more: object) -> Any:
    """A field of DataOptions with its explanation, which --help shows."""
    return field(default=default, metadata={"help": text, **more})


@dataclass(frozen=True)
class DataOptions:
    """Where data lies and how it is read; a flag for each field (`data_path` is --data-path)."""

    data_path: str | Path | None = option(None, "folder or file of the data; absent: the built-in shapes")
    dataset: str = option("auto", "layout of the data", choices="formats")
    image_dir: str | None = option(None, "folder of the images, where it is not the usual one")
    year: str | None = option(None, "VOC or COCO year, where the folder holds several")
    label_json_path: str | None = option(None, 'class names of .npy data: a json file {"1": "person", ...}')
    val_fraction: float = option(0.2, "validation share of data without a split", least=0, most=1)
    seed: int = option(0, "chooses that share", least=0)
    drop_empty: bool = option(False, "leave out training images without objects")
    follow_links: bool = option(False, "follow images that are links out of the data folder (else an error)")
    strict: bool = option(False, "unreadable images and unusable annotations are errors, not skipped")
    shapes_dir: str = option(SHAPES_FOLDER, "where the built-in shapes are drawn")
