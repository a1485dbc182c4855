"""COCO-format data: one json and a folder of images -> (image, target) pairs.

N objects of one image of H x W pixels. Boxes in the json are x y w h, in targets x1 y1 x2 y2. What is read
from the json is checked once, when it is opened, and kept in flat arrays (`coco_annotations.py`).
"""

import copy
import os
from pathlib import Path

import numpy as np
import torch
from pycocotools import mask as coco_mask

from backbone.errors import InputError
from train_utils.data.formats.coco.annotations import CocoAnnotations, read_annotations
from train_utils.data.images import image_size, read_image
from train_utils.data.labels import LabelMap
from train_utils.data.problems import describe_skips
from train_utils.data.rle_crops import cropped_masks
from train_utils.io.plain_text import visible

FEW = 1000  # images that are looked up one by one: their folder may hold many more


class CocoDataset:
    """Images and instances of one COCO json; `ds[i]` is (image, target) as they are, not augmented.

    image uint8 [3, H, W]; target: boxes float32 [N, 4] (clipped to the image), labels int64 [N],
    masks CroppedMasks of N, image_id int, area float32 [N], iscrowd uint8 [N]. N may be 0.

    annotations: a CocoAnnotations, or the path of a json. image_dir: where its file names begin.
    root: the folder that no file name may leave (default: image_dir). label_map: default made from the json's
    categories. rows: which images of the json belong to this data set (default: all).

    `ds[i]` raises ImageError for an unreadable image, InputError for one of another size than the json
    says. An image stored sideways with an EXIF orientation may be annotated upright or as stored.
    """

    def __init__(self, annotations, image_dir, root=None, label_map: LabelMap | None = None, rows=None):
        self.image_dir, self.root = Path(image_dir), Path(root or image_dir)
        if not isinstance(annotations, CocoAnnotations):
            annotations = read_annotations(annotations, size_of=size_reader(self.image_dir, self.root))
        self.annotations = annotations
        self.label_map = label_map or LabelMap.from_categories(annotations.categories, annotations.given_categories)
        self.rows = np.arange(len(annotations)) if rows is None else np.asarray(rows, dtype=np.int64)
        self.sizes = torch.from_numpy(annotations.sizes[self.rows])  # [len, 2], height and width
        self._check_categories()
        self.missing = self._find_missing()  # [len]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, i: int):
        image = self._read(i)
        return image, self.target(i)

    def subset(self, positions) -> "CocoDataset":
        """The images at these positions, sharing the annotations."""
        positions = np.asarray(positions, dtype=np.int64)
        part = copy.copy(self)
        part.rows, part.missing = self.rows[positions], self.missing[positions]
        part.sizes = self.sizes[torch.from_numpy(positions)]
        return part

    def target(self, i: int) -> dict:
        """The target of `ds[i]`, without reading the image."""
        packed, row = self.annotations, self.rows[i]
        objects = packed.objects(row)
        size = tuple(packed.sizes[row].tolist())
        masks = cropped_masks([packed.rle(k, size) for k in range(objects.start, objects.stop)], size)
        area = torch.from_numpy(packed.areas[objects].astype(np.float32))  # [N]
        return {
            "boxes": torch.from_numpy(packed.clipped_boxes(objects, size)),  # [N, 4]
            "labels": torch.tensor(
                [self.label_map.to_label(c) for c in packed.category_ids[objects].tolist()], dtype=torch.int64
            ),  # [N]
            "masks": masks,
            "image_id": self.image_id(i),
            "area": torch.where(area.isnan(), masks.areas().float(), area) if area.isnan().any() else area,
            "iscrowd": torch.from_numpy(packed.iscrowd[objects].copy()),  # [N]
        }

    def image_id(self, i: int) -> int:
        """The number that stands for image i's id: the id itself where the json has an integer."""
        return int(self.annotations.image_ids[self.rows[i]])

    def file_name(self, i: int) -> str:
        """The path of image i."""
        return str(self.image_dir / self.annotations.file_name(self.rows[i]))

    def object_counts(self, crowd: bool = False) -> np.ndarray:
        """Objects that are not crowds, or crowd regions, per image: int64 [len]."""
        running = np.concatenate([[0], np.cumsum(self.annotations.iscrowd == crowd)])  # [A + 1]
        return np.diff(running[self.annotations.first])[self.rows]

    def given_id(self, i: int) -> int | str:
        """The id of image i as the json has it."""
        return self.annotations.given_id(self.rows[i])

    @property
    def source(self) -> str:
        """The json."""
        return self.annotations.path

    @property
    def skipped(self) -> dict[str, int]:
        """Why and how many annotations of the json were skipped."""
        return dict(self.annotations.skipped)

    @property
    def first_skipped(self) -> dict[str, str]:
        """Which annotation was the first, for each reason."""
        return dict(self.annotations.first_skipped)

    def with_given_ids(self, results: list[dict]) -> list[dict]:
        """COCO results with the ids of images and categories as the json has them: "7" where that is text."""
        packed = self.annotations
        images = {int(packed.image_ids[row]): packed.given_id(row) for row in self.rows if len(packed.given.values)}
        categories = {**self.label_map.given, **{i: packed.given_categories.get(i, i) for i in packed.categories}}
        return [
            {
                **result,
                "image_id": images.get(result["image_id"], result["image_id"]),
                "category_id": categories.get(result["category_id"], result["category_id"]),
            }
            for result in results
        ]

    def describe(self) -> str:
        """One line: images, objects, classes, what was skipped in the json, and missing image files."""
        objects = self.object_counts()
        line = (
            f"{self.annotations.path}: {len(self)} images ({int((objects == 0).sum())} without objects), "
            f"{int(objects.sum())} objects of {len(self.label_map)} classes, "
            f"{int(self.object_counts(crowd=True).sum())} crowd regions"
        )
        if self.skipped:
            line += "; skipped " + describe_skips(self.skipped, self.first_skipped)
        if self.missing.any():
            first = self.file_name(int(self.missing.argmax()))
            line += f"; {int(self.missing.sum())} image files are missing, such as {first}"
        if self.annotations.cache_note:
            line += f"; {self.annotations.cache_note}"
        return visible(line)

    def ground_truth(self) -> dict:
        """A COCO dict of these images for evaluation: ids, boxes, areas and segmentations as in the json.

        What was skipped in training is absent. Annotation ids are the json's where all are positive integers, else
        1..n: pycocotools takes an id of 0 for "not matched".
        """
        packed, annotations = self.annotations, []
        ids = packed.annotation_ids
        if (ids <= 0).any():
            ids = np.arange(1, len(ids) + 1)
        images = []
        for row in self.rows:
            size, image_id = tuple(packed.sizes[row].tolist()), int(packed.image_ids[row])
            name = packed.file_name(row)
            images.append({"id": image_id, "file_name": name, "height": size[0], "width": size[1]})
            for k in range(packed.objects(row).start, packed.objects(row).stop):
                area = float(packed.areas[k])
                annotations.append(
                    {
                        "id": int(ids[k]),
                        "image_id": image_id,
                        "category_id": int(packed.category_ids[k]),
                        "bbox": packed.boxes[k].tolist(),
                        "area": float(coco_mask.area(packed.rle(k, size))) if np.isnan(area) else area,
                        "iscrowd": int(packed.iscrowd[k]),
                        "segmentation": packed.segmentation(k, size),
                    }
                )
        categories = [{"id": i, "name": name} for i, name in packed.categories.items()]
        return {"info": {}, "images": images, "annotations": annotations, "categories": categories}

    def _read(self, i: int) -> torch.Tensor:
        """Image i in the frame of its annotations, uint8 [3, H, W]."""
        path, size = self.file_name(i), tuple(self.sizes[i].tolist())
        image = read_image(path)
        if tuple(image.shape[1:]) != size and tuple(image.shape[:0:-1]) == size:
            image = read_image(path, rotate=False)  # annotated as stored, before the EXIF rotation
        if tuple(image.shape[1:]) != size:
            raise InputError(
                f"{path}: the image is {image.shape[2]}x{image.shape[1]} (width x height), but "
                f"{self.annotations.path} says {size[1]}x{size[0]} for image id {self.given_id(i)}; "
                f"correct the json or put back the original image"
            )
        return image

    def _check_categories(self):
        packed = self.annotations
        for category in np.unique(packed.category_ids).tolist():
            if not self.label_map.has_category(category):
                raise InputError(
                    f"{packed.path}: category {category} ({packed.categories[category]}) is not one of the "
                    f"{len(self.label_map)} categories of the label map; use data with the same categories"
                )

    def _find_missing(self) -> np.ndarray:
        """Which images are no files: bool [len]. InputError if a file name leaves the root."""
        names = self.annotations.file_names()
        names = [names[row] for row in self.rows.tolist()]
        looked_up = len(names) > FEW and _is_inside(os.path.abspath(self.image_dir), os.path.abspath(self.root))
        present = files_in(self.image_dir) if looked_up else frozenset()
        missing = np.zeros(len(names), dtype=bool)
        for i, name in enumerate(names):
            if name in present:
                continue  # a name that the folder lists can't leave it
            try:
                missing[i] = not os.path.isfile(image_path(self.image_dir, name, self.root))
            except InputError as error:
                raise InputError(f"{self.annotations.path}: image id {self.given_id(i)}: {error}") from error
        return missing


def image_path(image_dir, name: str, root) -> str:
    """The path of `name` in `image_dir`; InputError if it leaves `root`."""
    path, root = os.path.abspath(os.path.join(image_dir, name)), os.path.abspath(root)
    if not _is_inside(path, root):
        raise InputError(f"file_name {name!r} leaves the data folder {root}; use names inside it")
    return path


def _is_inside(path: str, root: str) -> bool:
    try:
        return os.path.commonpath([root, path]) == root
    except ValueError:  # Windows: another drive
        return False


def files_in(folder) -> frozenset[str]:
    """Names of the files directly in a folder: one look, not one for each name."""
    try:
        with os.scandir(folder) as entries:
            return frozenset(entry.name for entry in entries if entry.is_file())
    except OSError:  # no such folder, or not to be listed: then each name is looked up
        return frozenset()


def size_reader(image_dir, root):
    """A function from file name to (H, W), for images whose json does not give their size."""
    return lambda name: image_size(image_path(image_dir, name, root))
