"""A COCO json, read to its end: every mistake and every skip in the loader's own words, and what is sound.

The checks are the loader's (`coco_checks`, `annotation_packer`), one by one; it stops at the first mistake, this
goes on. A json that is well is read as the loader reads it, from its cache where it has one.
"""

import json
from collections import Counter
from pathlib import Path

from backbone.errors import InputError
from my_dataset_coco import CocoDataset
from tools.doctor.finds import ERROR, NOTE, WARNING, Finds, Kind
from train_utils.data.formats.coco.checks import as_id, check_categories, check_different, check_image, check_is_coco
from train_utils.data.formats.coco.layout import image_folder, image_path, listed_names, size_reader
from train_utils.data.formats.coco.packer import Packer, name_of
from train_utils.data.formats.coco.reading import NO_MASKS, STANDS_TWICE, CocoAnnotations, packed_values
from train_utils.data.formats.coco.segmentation import NO_SEGMENTATION
from train_utils.data.labels import read_json
from train_utils.data.links import links_out
from train_utils.io.json_stream import BATCH, Unusual, no_collection, read_lists

MISSING = Kind(ERROR, "image files are missing", "Put them there, or take their entries out (--fix does).")
UNCHECKED = Kind(NOTE, "annotations of images that have an error: not checked", "Correct the images first.")
SKIPPED = "Training leaves them out and counts them; under --strict they are an error. Correct them, or --fix."


class Listing(Packer):
    """A Packer that lists what it skips and refuses, and goes on; bad_images: ids of images that have an error."""

    def __init__(self, path, images, categories, finds: Finds, split: str, bad_images: set):
        super().__init__(path, images, categories)
        self.finds, self.split, self.bad_images = finds, split, bad_images
        self.refused_ids: list[int] = []
        self.given: dict[int, object] = {}  # ids that are no 64-bit integers in the json

    def add(self, annotations: list) -> None:
        for annotation in annotations:
            value = annotation.get("id") if isinstance(annotation, dict) else None
            if value is not None and type(value) is not int:
                try:
                    self.given[as_id(value, "id")] = value
                except InputError:
                    continue  # listed where it is checked
        super().add(annotations)

    def _skip(self, reason: str, sequence: int, annotation: dict) -> None:
        if self.bad_images and as_id(annotation["image_id"], "image_id") in self.bad_images:
            text = f"{self.path}: annotation {name_of(sequence, annotation)}: its image has an error"
            self.finds.add(UNCHECKED, text, self.split, annotation.get("image_id"), annotation.get("id"))
            return
        super()._skip(reason, sequence, annotation)
        text = f"{self.path}: annotation {name_of(sequence, annotation)}: skipped: {reason}"
        self.finds.add(
            Kind(WARNING, f"skipped: {reason}", SKIPPED),
            text,
            self.split,
            _id(annotation, "image_id"),
            _id(annotation, "id"),
        )

    def _refuse(self, message, annotation, error) -> None:
        image, number = _id(annotation, "image_id"), _id(annotation, "id")
        self.finds.mistake(message, split=self.split, image=image, annotation=number)
        if number is not None:
            self.refused_ids.append(as_id(number, "id"))

    def repeated(self) -> list[int]:
        """The ids that stand more than once, of all annotations that have one."""
        kept = [i for block in self._blocks["annotation_ids"] for i in block.tolist()]
        counts = Counter([*kept, *self._skipped_ids, *self.refused_ids])
        return sorted(i for i, count in counts.items() if count > 1 and i > -(2**63))


def list_coco(root: Path, jsons: dict[str, Path], image_dir, follow_links: bool, finds: Finds) -> dict:
    """{split: data set of what is sound}, of the splits that have any; all mistakes and skips go to `finds`."""
    found = {}
    for split, path in jsons.items():
        try:
            data_set = _list_json(path, root, image_dir, follow_links, finds, split)
        except InputError as error:  # it can't be read, or is no COCO json
            finds.mistake(str(error), split=split)
            continue
        if data_set is not None and len(data_set):
            found[split] = data_set
    return found


def list_skips(data_set: CocoDataset, split: str, finds: Finds) -> None:
    """Each annotation that was skipped, of a json that is well but for these."""
    images, categories, annotations = _lists(data_set.source)
    size_of = size_reader(data_set.image_dir, data_set.root)
    checked = [check_image(image, data_set.source, size_of) for image in images]
    packer = Listing(data_set.source, checked, check_categories(categories, data_set.source), finds, split, set())
    annotations(packer.add)


def _list_json(path, root, image_dir, follow_links, finds, split) -> CocoDataset | None:
    listed, listed_categories, annotations = _lists(path)
    names = listed_names(listed)
    try:
        folder, root = image_folder(root, path, image_dir, names)
    except InputError as error:
        if not names:
            raise
        finds.mistake(str(error), split=split)
        folder = None
    categories = _categories(listed_categories, path, finds, split)
    images, bad = _images(listed, path, folder, root, follow_links, finds, split)
    packer = Listing(path, images, categories, finds, split, bad)
    annotations(packer.add)
    if packer.skipped.get(NO_SEGMENTATION) == packer.count > 0:
        finds.mistake(f"{path}: {NO_MASKS}", split=split)
    for number in packer.repeated():
        finds.mistake(
            f"{path}: annotation id {packer.given.get(number, number)} {STANDS_TWICE}",
            "--fix numbers them anew, and drops those that are the same.",
            split=split,
            annotation=number,
        )
    if folder is None or not images or not categories:
        return None
    good = [category for category in listed_categories if _id(category, "id") is not None]
    annotations = CocoAnnotations(path, *packed_values(good, categories, images, packer))
    return CocoDataset(annotations, folder, root)


def _lists(path):
    """(images, categories, function that hands all annotations to another in batches) of a json; InputError where
    it is none, or not COCO's. The annotations of a large json never stand in memory as a whole."""
    images: list = []
    categories: list = []

    def again(take) -> None:
        with open(path, "rb") as file, no_collection():
            read_lists(file, {"images": len, "categories": len, "annotations": take}, len)

    try:
        with open(path, "rb") as file, no_collection():
            read_lists(file, {"images": images.extend, "categories": categories.extend, "annotations": len}, len)
        return images, categories, again
    except (Unusual, OSError):
        raw = read_json(path)
    check_is_coco(raw, path)

    def from_memory(take) -> None:
        for start in range(0, len(raw["annotations"]), BATCH):
            take(raw["annotations"][start : start + BATCH])

    return raw["images"], raw["categories"], from_memory


def _categories(listed: list, path, finds: Finds, split: str) -> dict[int, str]:
    found: dict[int, dict] = {}
    if not listed:
        finds.mistake(str(_error(check_categories, listed, path)), split=split)
    for category in listed:
        error = _error(check_categories, [category], path)
        if error is None:
            number = as_id(category["id"], "id")
            error = _error(check_categories, [found[number], category], path) if number in found else None
        if error is not None:
            finds.mistake(str(error), split=split)
        else:
            found[number] = category
    return check_categories(list(found.values()), path) if found else {}


def _images(listed, path, folder, root, follow_links, finds, split) -> tuple[list[tuple], set[int]]:
    """(what `check_image` gives of the sound ones, ids of the others)."""
    size_of = None if folder is None else size_reader(folder, root)
    images: dict[int, tuple] = {}
    bad: set[int] = set()
    linked: dict[str, InputError] = {}
    if folder is not None and not follow_links:  # first, as headers may be read for sizes
        linked = dict(links_out(path, folder, root, listed_names(listed)))
    for image in listed:
        try:
            if linked and isinstance(image, dict) and image.get("file_name") in linked:
                raise linked[image["file_name"]]
            checked = check_image(image, path, size_of)
            if folder is not None:
                _check_place(path, folder, checked, root)
            if checked[0] in images:
                check_different([images[checked[0]], checked], path)
        except InputError as error:
            finds.mistake(str(error), split=split, image=_id(image, "id"))
            try:
                number = as_id(image["id"], "id")
            except (InputError, KeyError, TypeError):
                continue  # without a usable id no annotation is its own
            if number not in images:
                bad.add(number)
            continue
        images[checked[0]] = checked
    return list(images.values()), bad - images.keys()


def _check_place(path, folder, image: tuple, root) -> None:
    """InputError, as `CocoDataset` has it, if the file name leaves the data."""
    try:
        image_path(folder, image[1], root)
    except InputError as error:
        given = json.loads(image[3]) if image[3] else image[0]
        raise InputError(f"{path}: image id {given}: {error}") from error


def list_missing(data_set, split: str, finds: Finds) -> None:
    """Each image file that is not there."""
    for i in data_set.missing.nonzero()[0].tolist():
        text = f"{data_set.source}: image id {data_set.given_id(i)}: {data_set.file_name(i)} is missing"
        finds.add(MISSING, text, split, data_set.given_id(i))


def _error(check, *args) -> InputError | None:
    try:
        check(*args)
    except InputError as error:
        return error
    return None


def _id(entry, key: str):
    """An id that can be one, else None."""
    value = entry.get(key) if isinstance(entry, dict) else None
    try:
        as_id(value, key)
    except InputError:
        return None
    return value
