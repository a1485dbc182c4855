"""A COCO json -> a checked table.

A sound json is read in batches (`json_stream`), so that it is never in memory as a whole, and what a large one gives
is kept for the next time (`array_cache`). A json with a mistake is read once more, item by item, to name it.
I images, A annotations in the json's order.
"""

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO

import numpy as np

from backbone.errors import InputError
from train_utils.data.annotations import DTYPES, Annotations, ImageFiles, image_arrays, polygon_table
from train_utils.data.formats.coco.checks import check_categories, check_image, check_images, coco_lists, named
from train_utils.data.formats.coco.file_names import FileNames, settle
from train_utils.data.formats.coco.layout import image_path, listed_names, size_reader
from train_utils.data.formats.coco.packer import Packer
from train_utils.data.formats.coco.segmentation import NO_SEGMENTATION
from train_utils.data.labels import note_on_blanks, read_json
from train_utils.data.links import links_out
from train_utils.data.masks import Ragged
from train_utils.data.problems import STOP, StopAtFirst
from train_utils.io import array_cache
from train_utils.io.json_stream import BATCH, Unusual, no_collection, read_lists

NO_MASKS = "no annotation has a segmentation; polygons or RLE masks are needed"

FindImages = Callable[[list[str]], tuple[Path, Path]]  # file names -> (where they begin, folder that none may leave)
# (images, categories, function that hands all annotations to another in batches, notes)
Lists = tuple[list, list, Callable[[Callable[[list], None]], None], tuple[str, ...]]


def read_annotations(
    path: str | Path,
    find_images: FindImages | None = None,
    follow_links: bool = True,
    problems: StopAtFirst = STOP,
    raw: object = None,
) -> Annotations | None:
    """Reads and checks a json; None where nothing of it is sound (and `problems` collects).

    find_images: None leaves image files alone. raw: the json's content, where it is at hand.
    Skipped and counted: annotations without segmentation, without area (zero-width boxes, polygons of fewer than 3
    points, boxes or polygons outside the image), with an odd number of coordinates, or of an image that the json does
    not list. Everything else that is wrong is a mistake that names file and annotation id.
    """
    found, linked = None if raw is not None else read_indexed(path), {}
    if found is not None and not (problems.collects and found.skipped):
        names = found.file_names()
        if find_images is None:
            return found
        folder, root = find_images(names)
        files = _settle(path, names, folder, root, problems)
        if files.renamed:
            names = [files.renamed.get(name, name) for name in names]
            found = replace(found, names=Ragged.of(names), notes=(*found.notes, *files.notes()))
        linked = {} if follow_links else dict(links_out(path, folder, root, names))
        places = {name: row for row, name in reversed(list(enumerate(names)))} if linked else {}
        for name, error in linked.items():
            problems.mistake(error, found.given_id(places[name]))
    else:
        content = _lists(path) if raw is None else _lists_of(raw, path)
        found, folder, root, files = _read_item_by_item(path, content, find_images, follow_links, problems)
        if found is None or folder is None:
            return found if find_images is None else None
        names = found.file_names()
    missing, usable = _look_up(found, names, files.absent, folder, root, problems)
    usable &= np.array([name not in linked for name in names], dtype=bool)
    images = ImageFiles(folder, found.source)
    return replace(found, images=images, missing=missing, usable=None if usable.all() else usable)


def read_indexed(path: str | Path) -> Annotations | None:
    """Reads a sound json from the cache or in batches of the file; its images are still to be looked up.

    None for any other json: one with a mistake, with images without a size, with annotations before the images, or
    that can't be opened.
    """
    content, state = None, array_cache.new_hash()
    try:
        with open(path, "rb") as file:
            if os.fstat(file.fileno()).st_size >= array_cache.WORTHWHILE and array_cache.cache_folder():
                content = array_cache.file_hash(file)
                found = _from_index(path, content)
                if found is not None:
                    return found
                file.seek(0)
            with no_collection():
                read = _read_in_batches(path, file, state.update if content else len)
    except (Unusual, InputError, OSError):
        return None
    if content is None or state.hexdigest() != content:  # too small, or written while it was read
        return _table(path, *read)
    note = array_cache.store(content, *read)
    found = None if note else _from_index(path, content)  # whose memory other processes share
    return found or _table(path, *read, notes=(note,) if note else ())


def _from_index(path: str | Path, content: str) -> Annotations | None:
    found = array_cache.load(content, DTYPES)
    return None if found is None else _table(path, *found)


def _table(path: str | Path, values: dict, arrays: dict[str, np.ndarray], notes: tuple[str, ...] = ()) -> Annotations:
    return polygon_table(path, values, arrays, ImageFiles("", str(path)), notes=(*values["notes"], *notes))


def _read_in_batches(path: str | Path, file: BinaryIO, seen: Callable[[bytes], object]) -> tuple[dict, dict]:
    """Returns (values, arrays); seen: as `read_lists` has it. Unusual or InputError for a json that is not sound."""
    images: list[tuple] = []
    listed: list = []
    packer: Packer | None = None

    def add_images(batch: list) -> None:
        images.extend(check_image(named(image), path, None) for image in batch)

    def packer_of_images() -> Packer:
        nonlocal packer
        if not images:
            raise Unusual("annotations before images")
        packer = packer or Packer(path, images)
        return packer

    takers = {
        "images": add_images,
        "annotations": lambda batch: packer_of_images().add(batch),
        "categories": listed.extend,
    }
    read_lists(file, takers, seen, {"annotations": lambda text: packer_of_images().add_text(text)})
    packer = packer or Packer(path, images)
    categories, given = check_categories(listed, path, STOP)
    if len(packer.row_of) < len(images) or packer.skipped.get(NO_SEGMENTATION) == packer.count > 0:
        raise Unusual("a mistake")
    if not packer.category_ids <= categories.keys():
        raise Unusual("a category that is not listed")
    if packer.repeated_ids():
        raise Unusual("a duplicated id")
    return _packed_values(listed, (categories, given), images, packer)


def _packed_values(
    listed: list, categories: tuple[dict[int, str], dict[int, str | int]], images: list[tuple], packer: Packer
) -> tuple[dict, dict[str, np.ndarray]]:
    """Returns (plain values as json has them, DTYPES' arrays): what a table is made of, and the cache keeps.

    listed: the json's categories; categories: what `check_categories` makes of them.
    """
    names = (str(category.get("name", "")) for category in listed if isinstance(category, dict))
    values = {
        "categories": list(categories[0].items()),
        "given": list(categories[1].items()),
        "notes": note_on_blanks(names),
        "skipped": packer.skipped,
        "first_skipped": packer.first_skipped,
        "skipped_of": list(packer.skipped_of.items()),
        "unmasked": packer.unmasked,
    }
    return values, {**image_arrays(images), **packer.arrays()}


def _read_item_by_item(
    path: str | Path, content: Lists, find_images: FindImages | None, follow_links: bool, problems: StopAtFirst
) -> tuple[Annotations | None, Path | None, Path, FileNames]:
    """Returns (table of what is sound, or None; folder of the images, None where there is none; root; file names)."""
    listed, listed_categories, hand_over, notes = content
    listed = [named(image) for image in listed]
    names, folder, root = listed_names(listed), None, Path()
    try:
        folder, root = find_images(names) if find_images else (None, root)
    except InputError as error:
        if not names:
            raise
        problems.mistake(error)
    files = FileNames({}, {}, frozenset())
    if folder is not None:
        files = _settle(path, names, folder, root, problems)
        listed = [
            {**image, "file_name": files.renamed[str(image["file_name"])]}
            if isinstance(image, dict) and str(image.get("file_name")) in files.renamed
            else image
            for image in listed
        ]
        names = [files.renamed.get(name, name) for name in names]
    linked: dict[str, InputError] = {}
    if folder is not None and not follow_links:  # first, as headers may be read for sizes
        linked = dict(links_out(path, folder, root, names))
    categories, given = check_categories(listed_categories, path, problems)
    size_of = None if folder is None else size_reader(folder, root)
    images, bad = check_images(listed, path, problems, size_of, linked)
    packer = Packer(path, images, categories, problems, bad)
    hand_over(packer.add)
    if packer.skipped.get(NO_SEGMENTATION) == packer.count > 0:
        problems.mistake(f"{path}: {NO_MASKS}")
    for number in packer.repeated_ids():
        problems.mistake(
            f"{path}: annotation id {number} is duplicated; give each annotation an id of its own", annotation=number
        )
    if problems.collects and not (images and categories):
        return None, folder, root, files
    values = _packed_values(listed_categories, (categories, given), images, packer)
    return _table(path, *values, notes=(*notes, *files.notes())), folder, root, files


def _settle(path: str | Path, names: list[str], folder: Path, root: Path, problems: StopAtFirst) -> FileNames:
    """Settles the file names; a name that several files could be is a mistake."""
    files = settle(names, folder, root)
    for mistake in files.mistakes(path, "file_name"):
        problems.mistake(mistake)
    return files


def _lists(path: str | Path) -> Lists:
    """Reads the lists of a json; the annotations of a large one are never in memory as a whole.

    Raises InputError where it is no json, or not COCO's.
    """
    images: list = []
    categories: list = []

    def hand_over(take: Callable[[list], None]) -> None:
        with open(path, "rb") as file, no_collection():
            read_lists(file, {"images": len, "categories": len, "annotations": take}, len)

    try:
        with open(path, "rb") as file, no_collection():
            read_lists(file, {"images": images.extend, "categories": categories.extend, "annotations": len}, len)
    except (Unusual, OSError):
        return _lists_of(read_json(path), path)
    return images, categories, hand_over, ()


def _lists_of(raw: object, path: str | Path) -> Lists:
    """Returns the lists of a json's content."""
    raw, notes = coco_lists(raw, path)

    def hand_over(take: Callable[[list], None]) -> None:
        for start in range(0, len(raw["annotations"]), BATCH):
            take(raw["annotations"][start : start + BATCH])

    return raw["images"], raw["categories"], hand_over, notes


def _look_up(
    table: Annotations, names: list[str], absent: frozenset[str], folder: Path, root: Path, problems: StopAtFirst
) -> tuple[np.ndarray, np.ndarray]:
    """Returns (which images are no files, which have a name that stays in the root), bool [I] each."""
    missing, inside = np.zeros(len(names), dtype=bool), np.ones(len(names), dtype=bool)
    for row, name in enumerate(names):
        if name not in absent:
            continue
        try:
            image_path(folder, name, root)
            missing[row] = True
        except InputError as error:
            given = table.given_id(row)
            problems.mistake(f"{table.source}: image id {given}: {error}", image=given, cause=error)
            inside[row] = False
    return missing, inside
