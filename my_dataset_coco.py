"""COCO-format data: one json and a folder of images -> (image, target) pairs."""

from pathlib import Path

from train_utils.data.dataset import ImageDataset
from train_utils.data.formats.coco.reading import read_annotations
from train_utils.data.labels import LabelMap


class CocoDataset(ImageDataset):
    """The images and instances of one COCO json, as `ImageDataset` describes.

    annotations: the json's path. image_dir: where its file names begin. root: the folder that no file name may leave
    (default: image_dir). label_map: default made from the json's categories. `train_utils.data.opening.open_data` finds
    all of these by itself.
    Raises InputError that names the file and the annotation for what cannot be used.
    """

    def __init__(
        self,
        annotations: str | Path,
        image_dir: str | Path,
        root: str | Path | None = None,
        label_map: LabelMap | None = None,
    ) -> None:
        places = Path(image_dir), Path(root or image_dir)
        super().__init__(read_annotations(annotations, lambda names: places), label_map)
