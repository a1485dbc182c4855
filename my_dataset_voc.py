"""Pascal VOC's segmentation data: a VOCdevkit folder -> (image, target) pairs.

    FOLDER/VOC2012/ImageSets/Segmentation/train.txt   names of the images, one per line
    FOLDER/VOC2012/JPEGImages/NAME.jpg
    FOLDER/VOC2012/SegmentationObject/NAME.png        instance numbers; 0 is background, 255 void
    FOLDER/VOC2012/SegmentationClass/NAME.png         class numbers; may be missing
    FOLDER/VOC2012/Annotations/NAME.xml               objects with name, box, difficult; may be missing

The instances are those of SegmentationObject, and boxes are the masks' own. The XML's objects are neither in
the masks' order nor always the same ones: each is given to the instance it overlaps best, and an instance
left without takes its class from SegmentationClass. What cannot be used is counted in `skipped`, what was
decided in `notes`. All but the images is read once, when the data set is opened, for a table of the
instances; masks are read again when an image is asked for, and never kept.

N instances of one image of H x W pixels, K instances in all.
"""

import os
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import torch

from backbone.errors import InputError
from network_files.operators.cropped_masks import CroppedMasks
from network_files.operators.instance_masks import encode_crop
from train_utils.data.formats import voc as voc
from train_utils.data.images import read_image
from train_utils.data.labels import LabelMap
from train_utils.data.problems import describe_skips
from train_utils.io.plain_text import visible

# skipped
NO_MASK = "XML objects without a mask"
NO_CLASS = "instances without a class (neither XML object nor SegmentationClass)"
LISTED_TWICE = "images listed twice"
# notes
FROM_CLASS_MASK = "instances without an XML object (class from SegmentationClass)"
CLASS_DIFFERS = "instances with another class in SegmentationClass than in the XML (XML's used)"
NO_XML = "images without an XML file"
XML_SIZE = "XML files with another image size than the mask (mask's used)"
NO_IMAGE = "image files missing"


class VocDataset:
    """The images of one list; `ds[i]` is (image, target) as they are, not augmented.

    image uint8 [3, H, W]; target: boxes float32 [N, 4] (tight around the masks), labels int64 [N], masks
    CroppedMasks of N, image_id int, area float32 [N] (mask pixels), iscrowd uint8 [N] (all 0: difficult
    objects train like any other). N may be 0.

    root: a VOCdevkit folder, a folder that holds one, or a year's own folder. year: "2012", "2007", ...
    (default: the newest there is). list_name: a file of ImageSets/Segmentation, without its .txt. Classes are
    those of pascal_voc_indices.json, or of a file of that name in the year's folder.

    Raises InputError that names the file for a mask, XML file or list that cannot be used; `ds[i]` raises
    ImageError for an unreadable image, InputError for one of another size than its mask.
    """

    def __init__(self, root, year=None, list_name="train"):
        self.folder, self.list_name = voc.find_voc_folder(root, year), list_name
        self.class_ids = voc.read_class_ids(self.folder)  # {name: number}
        self.label_map = LabelMap.from_categories({number: name for name, number in self.class_ids.items()})
        listed = voc.read_list(self.folder, list_name)
        self.names = list(dict.fromkeys(listed))
        self.files, missing = voc.find_images(self.folder, self.names)
        self.image_ids = list(range(1, len(self.names) + 1))
        self.skipped, self.first_skipped = Counter(), {}  # {reason: image}
        self._skip(LISTED_TWICE, len(listed) - len(self.names), Counter(listed).most_common(1)[0][0])
        self.missing = np.array(missing)  # bool [len]
        self.notes = Counter({NO_IMAGE: sum(missing)})
        with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
            self._pack(list(pool.map(self._scan, self.names)))

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, i: int):
        return self._read(i), self.target(i)

    def target(self, i: int) -> dict:
        """The target of `ds[i]`, without reading the image."""
        rows = self._rows(i)
        boxes, size = self.boxes[rows], tuple(self.sizes[i].tolist())
        return {
            "boxes": boxes.float(),  # [N, 4]
            "labels": self.labels[rows].clone(),
            "masks": CroppedMasks.from_crops(self._crops(i), boxes, size),
            "image_id": self.image_id(i),
            "area": self.areas[rows].float(),
            "iscrowd": torch.zeros(len(boxes), dtype=torch.uint8),
        }

    def image_id(self, i: int) -> int:
        """The place of image i in its list, from 1."""
        return self.image_ids[i]

    def given_id(self, i: int) -> int:
        """The same: VOC has names."""
        return self.image_ids[i]

    def with_given_ids(self, results: list[dict]) -> list[dict]:
        """COCO results as they are: classes already have VOC's numbers."""
        return results

    @property
    def source(self) -> str:
        """The list of images."""
        return str(voc.list_path(self.folder, self.list_name))

    def file_name(self, i: int) -> str:
        """The path of image i."""
        return str(self.folder / "JPEGImages" / self.files[i])

    def object_counts(self) -> np.ndarray:
        """Instances per image: int64 [len]."""
        return self.starts.diff().numpy()

    def subset(self, positions) -> "VocDataset":
        """The images at these positions, in this order; image ids stay."""
        positions = [int(i) for i in positions]
        part = object.__new__(VocDataset)
        part.__dict__.update(self.__dict__)
        rows = [torch.arange(*self.starts[i : i + 2].tolist()) for i in positions]
        part.starts = torch.tensor([0, *map(len, rows)]).cumsum(0)
        chosen = torch.cat([torch.zeros(0, dtype=torch.int64), *rows])  # [K']
        for key in ("boxes", "labels", "areas", "numbers", "difficult"):
            setattr(part, key, getattr(self, key)[chosen])
        for key in ("names", "files", "image_ids"):
            setattr(part, key, [getattr(self, key)[i] for i in positions])
        part.sizes = self.sizes[positions].reshape(-1, 2)
        part.missing = self.missing[np.array(positions, dtype=np.int64)]
        return part

    def describe(self) -> str:
        """One line: images, objects, classes, what was skipped and what was decided."""
        line = (
            f"{self.folder} {self.list_name}: {len(self)} images, {len(self.labels)} objects of "
            f"{len(self.label_map)} classes, {int(self.difficult.sum())} of them difficult"
        )
        notes = ", ".join(f"{count} {reason}" for reason, count in self.notes.items() if count)
        for title, counts in (("skipped", describe_skips(self.skipped, self.first_skipped)), ("notes", notes)):
            line += f"; {title}: {counts}" if counts else ""
        return visible(line)

    def ground_truth(self) -> dict:
        """A COCO dict of these images for evaluation, with VOC's class numbers; difficult is iscrowd."""
        categories = [{"id": number, "name": name} for name, number in self.class_ids.items()]
        images, annotations = [], []
        for i, (height, width) in enumerate(self.sizes.tolist()):
            images.append({"id": self.image_id(i), "file_name": self.files[i], "height": height, "width": width})
            rows = range(*self.starts[i : i + 2].tolist())
            for row, crop in zip(rows, self._crops(i), strict=True):
                x1, y1, x2, y2 = self.boxes[row].tolist()
                annotations.append(
                    {
                        "id": len(annotations) + 1,
                        "image_id": self.image_id(i),
                        "category_id": self.label_map.to_category(int(self.labels[row])),
                        "bbox": [x1, y1, x2 - x1, y2 - y1],
                        "area": int(self.areas[row]),
                        "iscrowd": int(self.difficult[row]),
                        "segmentation": encode_crop(crop, x1, y1, (height, width)),
                    }
                )
        return {"info": {}, "images": images, "annotations": annotations, "categories": categories}

    def _rows(self, i: int) -> slice:
        return slice(*self.starts[i : i + 2].tolist())

    def _crops(self, i: int) -> list[torch.Tensor]:
        """The masks of image i, each bool [h, w] within its box."""
        rows = self._rows(i)
        objects = torch.from_numpy(voc.read_index_image(self._mask_path("Object", self.names[i])))
        return [
            objects[y1:y2, x1:x2] == number
            for number, (x1, y1, x2, y2) in zip(self.numbers[rows].tolist(), self.boxes[rows].tolist(), strict=True)
        ]

    def _mask_path(self, kind, name):
        return self.folder / f"Segmentation{kind}" / f"{name}.png"

    def _read(self, i: int) -> torch.Tensor:
        """Image i in the frame of its mask, uint8 [3, H, W]."""
        path, size = self.file_name(i), tuple(self.sizes[i].tolist())
        image = read_image(path)
        if tuple(image.shape[1:]) != size and tuple(image.shape[:0:-1]) == size:
            image = read_image(path, rotate=False)  # masked as stored, before the EXIF rotation
        if tuple(image.shape[1:]) != size:
            raise InputError(
                f"{path}: the image is {image.shape[2]}x{image.shape[1]} (width x height), but its mask "
                f"{self._mask_path('Object', self.names[i])} is {size[1]}x{size[0]}; they must fit"
            )
        return image

    def _scan(self, name) -> "Scan":
        """Everything about one image but its pixels."""
        objects = voc.read_index_image(self._mask_path("Object", name))
        numbers, boxes, areas = voc.find_instances(objects)
        by_mask = voc.classes_of_instances(self._mask_path("Class", name), objects, numbers, self.class_ids)
        xml = voc.read_xml(self.folder / "Annotations" / f"{name}.xml", self.class_ids)
        partner = voc.match_objects(boxes, by_mask, xml.boxes, xml.classes)  # [N], -1 where there is none

        matched = partner >= 0
        classes, difficult = by_mask.copy(), np.zeros_like(by_mask)
        classes[matched], difficult[matched] = xml.classes[partner[matched]], xml.difficult[partner[matched]]
        known = classes > 0
        skipped = {NO_MASK: len(xml.classes) - matched.sum(), NO_CLASS: (~known).sum()}
        notes = {
            FROM_CLASS_MASK: (known & ~matched).sum(),
            CLASS_DIFFERS: (matched & (by_mask > 0) & (by_mask != classes)).sum(),
            NO_XML: not xml.exists,
            XML_SIZE: xml.size not in (None, objects.shape),
        }
        columns = [column[known] for column in (numbers, boxes, areas, classes, difficult)]
        return Scan(objects.shape, *columns, skipped, notes)

    def _pack(self, scans):
        """One flat table of all instances, shared by loader workers; an image's rows begin at `starts`."""

        def table(field):
            return torch.from_numpy(np.concatenate([getattr(scan, field) for scan in scans]))

        self.sizes = torch.tensor([scan.size for scan in scans], dtype=torch.int64)  # [len, 2], h and w
        self.starts = torch.tensor([0, *(len(scan.numbers) for scan in scans)]).cumsum(0)  # [len + 1]
        self.boxes = table("boxes")  # int64 [K, 4]
        self.numbers, self.areas, self.difficult = table("numbers"), table("areas"), table("difficult")  # [K]
        labels = [self.label_map.to_label(number) for number in table("classes").tolist()]
        self.labels = torch.tensor(labels, dtype=torch.int64)  # [K]
        for name, scan in zip(self.names, scans, strict=True):
            self.notes.update({reason: int(count) for reason, count in scan.notes.items()})
            for reason, count in scan.skipped.items():
                self._skip(reason, int(count), name)

    def _skip(self, reason, count, name):
        self.skipped[reason] += count
        if count:
            self.first_skipped.setdefault(reason, name)


class Scan(NamedTuple):
    """The instances of one image: N rows each (boxes [N, 4]), and the counts by reason."""

    size: tuple
    numbers: np.ndarray
    boxes: np.ndarray
    areas: np.ndarray
    classes: np.ndarray
    difficult: np.ndarray
    skipped: dict
    notes: dict
