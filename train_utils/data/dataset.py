"""One split of any format -> (image, target) pairs, ground truth, and what a line says about it.

N objects of one image of H x W pixels.
"""

import copy
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from backbone.errors import InputError
from train_utils.data.annotations import Annotations, check_labels, clip_boxes
from train_utils.data.images.reading import USUAL, Reading
from train_utils.data.labels import LabelMap, match_names
from train_utils.data.masks import some_crops
from train_utils.data.problems import NO_MASK, NO_SEGMENTATION, describe_skips, few_counts
from train_utils.io.plain_text import counted, visible

# lines about classes that `lacking_classes` names
CROWDS_ALONE = "with crowd regions alone, which --crowd-as-objects reads as objects"
MANY_CROWDS = "with many crowd regions, which are not trained on; --crowd-as-objects reads them as objects"
MOSTLY_SKIPPED = "mostly skipped"
MANY = 0.1  # of a class's annotations, and more than one; of COCO's classes it is a few hundredths at most


class ImageDataset:
    """The images and objects of a table; `ds[i]` is (image, target) as they are, not augmented.

    image [C, H, W] as `reading` says, by default uint8 RGB; target: boxes float32 [N, 4] (x1 y1 x2 y2, clipped to
    the image), labels int64 [N], masks CroppedMasks of N, image_id int, area float32 [N], iscrowd uint8 [N]. N may
    be 0.

    label_map: default the data's own. rows: which images of the table belong to it (default: the usable ones).

    `ds[i]` raises ImageError for an unreadable image, InputError for one of another size than annotated. An image
    stored sideways with an EXIF orientation may be annotated upright or as stored.
    """

    reading: Reading = USUAL  # of the model that the images are for
    in_python = False  # whether images come from a torch Dataset, not from files

    def __init__(
        self,
        annotations: Annotations,
        label_map: LabelMap | None = None,
        rows: Sequence[int] | np.ndarray | None = None,
    ) -> None:
        usable = np.ones(len(annotations), dtype=bool) if annotations.usable is None else annotations.usable
        self.rows = np.flatnonzero(usable) if rows is None else np.asarray(rows, dtype=np.int64)
        self.annotations, self.label_map = annotations, annotations.label_map
        if label_map is not None:
            self.annotations, self.label_map = _labelled(annotations, label_map)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, i: int) -> tuple[torch.Tensor, dict]:
        return self.image(i), self.target(i)

    def subset(self, positions: Sequence[int] | np.ndarray) -> "ImageDataset":
        """Returns the images at these positions, in this order, sharing the table."""
        part = copy.copy(self)
        part.rows = self.rows[np.asarray(positions, dtype=np.int64)]
        return part

    def read_as(self, reading: Reading) -> "ImageDataset":
        """Returns the same images as a model takes them."""
        part = copy.copy(self)
        part.reading = reading
        return part

    def labelled(self, label_map: LabelMap) -> "ImageDataset":
        """Returns the same images with the labels of another label map."""
        part = copy.copy(self)
        part.annotations, part.label_map = _labelled(self.annotations, label_map)
        return part

    def noted(self, note: str) -> "ImageDataset":
        """Returns the same images with one more note for `describe`."""
        part = copy.copy(self)
        part.annotations = replace(self.annotations, notes=(*self.annotations.notes, note))
        return part

    def target(self, i: int, objects: np.ndarray | None = None) -> dict:
        """Returns the target of `ds[i]`, without reading the image; objects: of the table, those wanted; None: all."""
        table, row, size = self.annotations, self.rows[i], self._size(i)
        every = table.objects(row)
        if objects is None:
            objects, masks = every, table.masks.crops(row, every, size)
        else:
            masks = some_crops(table.masks, row, every, objects, size)
        area = torch.from_numpy(table.areas[objects].astype(np.float32))  # [N]
        labels = [self.label_map.to_label(c) for c in table.category_ids[objects].tolist()]
        return {
            "boxes": torch.from_numpy(clip_boxes(table.boxes[objects], size)),  # [N, 4]
            "labels": torch.tensor(labels, dtype=torch.int64),  # [N]
            "masks": masks,
            "image_id": self.image_id(i),
            "area": torch.where(area.isnan(), masks.areas().float(), area) if area.isnan().any() else area,
            "iscrowd": torch.from_numpy(table.iscrowd[objects].copy()),  # [N]
        }

    @property
    def whole(self) -> "ImageDataset":
        """The images as they are, where these are parts of them."""
        return self

    @property
    def sizes(self) -> torch.Tensor:
        """Height and width of each image, int64 [len, 2]."""
        return torch.from_numpy(self.annotations.sizes[self.rows])

    @property
    def missing(self) -> np.ndarray:
        """Which image files are not there, bool [len]."""
        return self.annotations.missing[self.rows]

    @property
    def source(self) -> str:
        """The json, list, folder or file that the data is read from."""
        return self.annotations.source

    @property
    def skipped(self) -> dict[str, int]:
        """Why and how many annotations of the source were skipped."""
        return dict(self.annotations.skipped)

    @property
    def first_skipped(self) -> dict[str, str]:
        """Which annotation was the first, for each reason."""
        return dict(self.annotations.first_skipped)

    def image_id(self, i: int) -> int:
        """Returns the number that stands for image i's id: the id itself where the data has an integer."""
        return int(self.annotations.image_ids[self.rows[i]])

    def given_id(self, i: int) -> int | str:
        """Returns the id of image i as the data has it."""
        return self.annotations.given_id(self.rows[i])

    def file_name(self, i: int) -> str:
        """Returns the path of image i."""
        return self.annotations.images.path(self.annotations.file_name(self.rows[i]))

    def object_counts(self, crowd: bool = False) -> np.ndarray:
        """Returns the objects that are not crowds, or the crowd regions, per image: int64 [len]."""
        return self._counts(self.annotations.iscrowd == crowd)

    def object_rows(self) -> tuple[np.ndarray, np.ndarray]:
        """Returns (the objects' places in the table, their images' positions), int64 [A] each, image by image."""
        first = self.annotations.first
        counts = first[self.rows + 1] - first[self.rows]
        places = np.arange(counts.sum()) + np.repeat(first[self.rows] - (np.cumsum(counts) - counts), counts)
        return places, np.repeat(np.arange(len(self.rows)), counts)

    def class_counts(self, crowd: bool = False) -> dict[str, int]:
        """Returns {class: its objects that are not crowds, or its crowd regions}; classes without any are absent."""
        table = self.annotations
        inside = np.zeros(len(table), dtype=bool)
        inside[self.rows] = True
        chosen = np.repeat(inside, np.diff(table.first)) & (table.iscrowd == crowd)
        ids, counts = np.unique(table.category_ids[chosen], return_counts=True)
        names = [self.label_map.distinct_name(self.label_map.to_label(i)) for i in ids.tolist()]
        return dict(zip(names, counts.tolist(), strict=True))

    def lacking_classes(self) -> dict[str, dict[str, int | str]]:
        """Returns {CROWDS_ALONE: {class: crowd regions}, MANY_CROWDS: {class: "3 of 9"}, MOSTLY_SKIPPED: {...}}.

        MANY_CROWDS and MOSTLY_SKIPPED: how many of the class's annotations are crowd regions, or skipped by the source.
        """
        table, own, crowds = self.annotations, self.class_counts(), self.class_counts(crowd=True)
        alone = {name: count for name, count in crowds.items() if name not in own}
        both = {name: (count, count + own[name]) for name, count in crowds.items() if name in own}
        many = {name: f"{count} of {of}" for name, (count, of) in both.items() if count > 1 and count >= MANY * of}
        mostly = {}
        for category, left_out in table.skipped_of.items():
            kept = int((table.category_ids == category).sum())
            if left_out > kept and self.label_map.has_category(category):
                mostly[self.label_map.distinct_name(self.label_map.to_label(category))] = (
                    f"{left_out} of {left_out + kept}"
                )
        return {CROWDS_ALONE: alone, MANY_CROWDS: many, MOSTLY_SKIPPED: mostly}

    def with_given_ids(self, results: list[dict], of: int | None = None) -> list[dict]:
        """Returns COCO results with the ids of images and categories as the data has them: "7" where that is text.

        of: the position of the image that all are of, where they are of one. Left out: results of a class that the
        data lacks, whose id means another class there.
        """
        table, rows = self.annotations, self.rows if of is None else self.rows[of : of + 1]
        images = {} if table.given is None else {int(table.image_ids[row]): table.given_id(row) for row in rows}
        categories = {**self.label_map.given, **{i: table.given_categories.get(i, i) for i in table.categories}}
        return [
            {
                **result,
                "image_id": images.get(result["image_id"], result["image_id"]),
                "category_id": categories.get(result["category_id"], result["category_id"]),
            }
            for result in results
            if result["category_id"] in table.categories or result["category_id"] not in table.given_categories.values()
        ]

    def describe(self) -> str:
        """Returns one line: images, objects, classes, what was skipped, missing files, what the reader decided."""
        table, objects, crowds = self.annotations, self.object_counts(), self.object_counts(crowd=True)
        difficult = int(self._counts((table.ignored == 1) & (table.iscrowd == 0)).sum())
        parts = [
            f"{self.source}: {counted(len(self), 'image')} ({int((objects == 0).sum()):,} without objects), "
            f"{counted(int(objects.sum()), 'object')} of {counted(len(self.label_map), 'class')}, "
            f"{counted(int(crowds.sum()), 'crowd region')}"
            + (f", {counted(difficult, 'difficult object')}" if difficult else "")
        ]
        skips = describe_skips(table.skipped, table.first_skipped)
        parts += [f"skipped {skips}"] if skips else []
        unmasked = table.skipped.get(NO_SEGMENTATION, 0) + table.skipped.get(NO_MASK, 0)
        parts += [f"background: {counted(unmasked, 'box')} without a mask"] if unmasked else []
        for what, classes in self.lacking_classes().items():
            parts += [f"classes {what}: {few_counts(classes)}"] if classes else []
        if self.missing.any():
            first = self.file_name(int(self.missing.argmax()))
            parts.append(f"{counted(int(self.missing.sum()), 'image file', 'are')} missing, such as {first}")
        return visible("; ".join([*parts, *table.notes]))

    def ground_truth(self, unmasked: bool = False) -> dict:
        """Returns a COCO dict of these images for evaluation: ids, boxes, areas and segmentations as annotated.

        What was skipped in training is absent. unmasked: add the objects among it that have a box without a usable
        mask; they have no segmentation. An image's "given_id" is its id as the data has it, where that is another.
        Annotation ids are the data's where all are positive, else 1..n:
        pycocotools takes an id of 0 for "not matched".
        """
        table, images, annotations = self.annotations, [], []
        ids = table.annotation_ids
        if (ids <= 0).any():
            ids = np.arange(1, len(ids) + 1)
        keys = ("id", "image_id", "category_id", "bbox", "area", "iscrowd", "segmentation")
        for i, row in enumerate(self.rows):
            size, image_id, objects = self._size(i), self.image_id(i), table.objects(row)
            name = table.file_name(row)
            images.append({"id": image_id, "file_name": name, "height": size[0], "width": size[1]})
            if (given := table.given_id(row)) != image_id:
                images[-1]["given_id"] = given
            areas = table.areas[objects]
            if np.isnan(areas).any():
                areas = np.where(np.isnan(areas), table.masks.crops(row, objects, size).areas().numpy(), areas)
            numbers = [table.category_ids[objects], table.boxes[objects], areas, table.ignored[objects]]
            columns = [ids[objects].tolist(), [image_id] * len(areas), *(column.tolist() for column in numbers)]
            rows = zip(*columns, table.masks.segmentations(row, objects, size), strict=True)
            annotations += [dict(zip(keys, values, strict=True)) for values in rows]
        if unmasked:
            own, first = {image["id"] for image in images}, int(ids.max(initial=0)) + 1
            annotations += [
                {"id": i, "image_id": image, "category_id": category, "bbox": box, "area": area, "iscrowd": crowd}
                for i, (image, category, *box, area, crowd) in enumerate(table.unmasked, start=first)
                if image in own
            ]
        categories = [{"id": i, "name": name} for i, name in table.categories.items()]
        return {"info": {}, "images": images, "annotations": annotations, "categories": categories}

    def _size(self, i: int) -> tuple[int, int]:
        height, width = self.annotations.sizes[self.rows[i]].tolist()
        return height, width

    def _counts(self, chosen: np.ndarray) -> np.ndarray:
        """Counts the chosen objects (bool [A]) per image, int64 [len]."""
        running = np.concatenate([[0], np.cumsum(chosen)])  # [A + 1]
        return np.diff(running[self.annotations.first])[self.rows]

    def image(self, i: int) -> torch.Tensor:
        """Reads image i in the frame of its annotations, [C, H, W]."""
        table, row, size = self.annotations, int(self.rows[i]), self._size(i)
        name = table.file_name(row)
        image = table.images.read(row, name, size, self.reading)
        if tuple(image.shape[1:]) != size:
            raise InputError(
                f"{table.images.path(name)}: the image is {image.shape[2]}x{image.shape[1]} (width x height), but "
                f"{table.images.claim(name, size, self.given_id(i))}"
            )
        return image


def _labelled(table: Annotations, label_map: LabelMap) -> tuple[Annotations, LabelMap]:
    """Returns the table under another label map, and the map. Raises InputError where the two do not fit."""
    if table.fixed_labels and label_map != table.label_map:
        raise InputError(
            f"{table.source}: its {counted(len(table.label_map), 'class', 'are')} not those of the others, or of the "
            "weights"
        )
    table = _matched_by_name(table, dict(zip(label_map.category_ids, label_map.names, strict=True)))
    check_labels(table, label_map)
    if not table.named:  # the label map has the names that the data lacks
        table = replace(table, categories=dict(zip(label_map.category_ids, label_map.names, strict=True)))
    return table, label_map


def _matched_by_name(table: Annotations, known: dict[int, str]) -> Annotations:
    """Returns the table with the ids that `known` has for the names of its categories; its own are written back."""
    matched = match_names(table.categories, known, table.source, "the classes to be used") if table.named else {}
    if not matched:
        return table
    moved = {number: matched.get(number, number) for number in table.categories}
    own, places = np.unique(table.category_ids, return_inverse=True)
    number = next(iter(matched))
    note = (
        f"{counted(len(matched), 'class', 'are')} matched by name, as ids or capitals differ: category {number} "
        f"({table.categories[number]!r}) is category {moved[number]} ({known[moved[number]]!r})"
    )
    return replace(
        table,
        category_ids=np.array([moved[i] for i in own.tolist()], dtype=np.int64)[places],
        categories=dict(sorted((new, known.get(new, table.categories[old])) for old, new in moved.items())),
        given_categories={new: table.given_categories.get(old, old) for old, new in moved.items()},
        unmasked=[[image, moved.get(category, category), *rest] for image, category, *rest in table.unmasked],
        notes=(*table.notes, note),
    )
