"""Pascal VOC's segmentation data: a VOCdevkit folder -> (image, target) pairs."""

from pathlib import Path

from train_utils.data.dataset import ImageDataset
from train_utils.data.formats.voc import read_list_table
from train_utils.data.formats.voc_files import find_voc_folder


class VocDataset(ImageDataset):
    """The images of one list, as `ImageDataset` describes; boxes are tight around the masks, areas their pixels.

    root: a VOCdevkit folder, a folder that holds one, or a year's own folder. year: "2012", "2007", ... (default: the
    newest there is). list_name: a file of ImageSets/Segmentation, without its .txt. Classes are those of
    pascal_voc_indices.json, or of a file of that name in the year's folder.
    Raises InputError that names the file for a mask, XML file or list that cannot be used.
    """

    def __init__(self, root: str | Path, year: str | int | None = None, list_name: str = "train") -> None:
        super().__init__(read_list_table(find_voc_folder(root, year), list_name))
