"""Images with .npy annotations (layout and content: `npy_folder`) -> a table.

Each .npy is read once, when the data is opened: its masks are kept as run-length codes in the flat arrays that a COCO
json gives. What files of 8 MiB or more together gave is kept for the next time (`array_cache`), as long as no file has
changed.

The image's shape says whether masks are [n, H, W] or [n, W, H]. Where the shape leaves it open (square images, and
those stored sideways with an EXIF orientation), the rest of the data set decides: the other images' masks lie one way;
else the boxes fit one way better, all together; else [n, H, W] is taken.

I images, A objects, n objects of one image.
"""

import os
from collections import Counter
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from pycocotools import mask as coco_mask
from tqdm import tqdm

from backbone.errors import InputError
from train_utils.data.annotations import DTYPES, Annotations, ImageFiles, image_arrays, polygon_table
from train_utils.data.formats import npy_folder
from train_utils.data.formats.coco.checks import MOST_PIXELS, as_id, duplicated, given_id
from train_utils.data.formats.coco.segmentation import overlaps
from train_utils.data.formats.found import kept
from train_utils.data.images import ImageError, image_size
from train_utils.data.links import links_out, links_out_of
from train_utils.data.masks import NO_ID, RLE
from train_utils.data.options import DataOptions
from train_utils.data.problems import StopAtFirst
from train_utils.io.plain_text import counted

UNUSED = {
    **dict.fromkeys(("image_dir", "year"), "which is found by the names of its folders"),
    "split_components": "which has a mask for each object",
}
CACHED = "npy 4"  # to be raised when arrays, or what is checked or skipped, change
EMPTY, NO_BOX = "objects whose mask is empty", "objects whose box has no area in the image"
Place = tuple[Path, Path, Path]  # folder of the data, of its images, of its .npy files
recognises = npy_folder.is_npy


def find_splits(path: Path, options: DataOptions, split: str | None) -> dict[str, Place]:
    """Returns {"train" | "val" | "all": the folders}."""
    if not path.is_dir():
        raise InputError(f"{path}: --dataset npy: give the folder that holds images/ and annotations/")
    return {role: (path, *pair) for role, pair in npy_folder.find_npy_folders(path).items()}


def read(place: Place, options: DataOptions, problems: StopAtFirst) -> Annotations | None:
    """Reads one split; None where nothing of it is sound (and `problems` collects).

    Classes have the names of classes.txt or --label-json-path, else class_1 to the highest label there is. Image ids
    are the stems' numbers, and hashes of other stems. A mistake names the file and the object's index in it.
    """
    root, image_dir, annotation_dir = place
    if not options.follow_links:
        linked = list(links_out_of([image_dir, annotation_dir], root))
        linked += [error for _, error in links_out(root, root, root, [npy_folder.CLASS_FILE])]
        for error in linked:
            problems.mistake(error)
        if linked:
            return None
    names = npy_folder.read_class_names(root, options.label_json_path)
    values, arrays, notes = _read_folder(image_dir, annotation_dir, problems)
    if not len(arrays["image_ids"]):
        return None
    highest = int(arrays["category_ids"].max(initial=0))
    values["categories"] = list((names or {i: f"class_{i}" for i in range(1, max(highest, 1) + 1)}).items())
    table = polygon_table(
        annotation_dir, values, arrays, ImageFiles(image_dir, str(annotation_dir)), notes=notes, named=names is not None
    )
    unknown = ~np.isin(table.category_ids, list(table.categories))
    if not unknown.any():
        return table
    rows = np.unique(np.searchsorted(table.first, np.flatnonzero(unknown), side="right") - 1)
    for row in rows.tolist():
        label = next(i for i in table.category_ids[table.objects(row)].tolist() if i not in table.categories)
        problems.mistake(
            f"{annotation_dir / Path(table.file_name(row)).stem}.npy: label {label} is none of the "
            f"{counted(len(table.categories), 'class')} {npy_folder.few(list(table.categories.values()))}; complete "
            "the list of names, or correct the label",
            image=table.given_id(row),
        )
    return None


class Scan(NamedTuple):
    """One image's objects: boxes float64 [n, 4] x1 y1 x2 y2, labels, iscrowd, RLE counts.

    `rows_first` is None where it is not known yet: masks are then taken as [n, height, width] of `size`.
    """

    size: tuple[int, int]
    rows_first: bool | None
    boxes: np.ndarray
    labels: list[int]
    iscrowd: list[int]
    counts: list[bytes]

    def agreement(self) -> float:
        """Returns how much better the masks fit the boxes as they are than with their sides exchanged."""
        if not self.counts:
            return 0.0
        tight = coco_mask.toBbox([{"size": list(self.size), "counts": counts} for counts in self.counts])  # x y w h
        tight[:, 2:] += tight[:, :2]
        return float((_iou(tight, self.boxes) - _iou(tight[:, [1, 0, 3, 2]], self.boxes)).sum())

    def turned(self) -> "Scan":
        """Returns the masks with their sides exchanged."""
        masks = (coco_mask.decode({"size": list(self.size), "counts": counts}).T for counts in self.counts)
        return self._replace(size=self.size[::-1], counts=[_encode(mask) for mask in masks])


def _read_folder(
    image_dir: Path, annotation_dir: Path, problems: StopAtFirst
) -> tuple[dict, dict[str, np.ndarray], tuple[str, ...]]:
    """Returns (plain values whose categories are still to be set, DTYPES' arrays, notes)."""
    pairs, left, names_differ = npy_folder.pair_files(image_dir, annotation_dir)
    for reason, names in left.items():
        for name in names:
            problems.skip(reason, f"{annotation_dir.parent}: {name}: skipped: {reason}")
    said = CACHED, left, [(image, *_stamp(image_dir / image)) for image, _ in pairs]
    annotations = [annotation_dir / annotation for _, annotation in pairs]
    read_all = partial(_read_pairs, image_dir, annotation_dir, pairs, left, problems)
    values, arrays, notes = kept(said, annotations, problems, read_all)
    return values, arrays, (*notes, values["note"], *names_differ)


def _stamp(path: Path) -> tuple[int, int, int]:
    """Returns what the disk says of a file: it changes with the file."""
    found = os.stat(path)
    return found.st_size, found.st_mtime_ns, found.st_ctime_ns


def _read_pairs(
    image_dir: Path, annotation_dir: Path, pairs: list[tuple[str, str]], left: dict, problems: StopAtFirst
) -> tuple[dict, dict[str, np.ndarray]]:
    """Reads pairs (image, .npy) of names; returns as `_read_folder`. left: names of files that are left out, by why."""
    scans, sound = [], []
    for pair in tqdm(pairs, desc=annotation_dir.name, unit="file", disable=None, leave=False):
        try:
            scans.append(scan_pair(image_dir / pair[0], annotation_dir / pair[1]))
            sound.append(pair)
        except InputError as error:
            problems.mistake(error, image=_stem(pair))
    turn, note = _orientation(scans)
    scans = [scan.turned() if scan.rows_first is None and turn else scan for scan in scans]
    skipped = {reason: len(names) for reason, names in left.items()}
    first = {reason: npy_folder.few(names) for reason, names in left.items()}
    skipped_of: Counter[int] = Counter()
    images, arrays = _pack(sound, scans, skipped, first, skipped_of, problems)
    by_id: dict[int, tuple] = {}
    for image in images:
        if by_id.setdefault(image[0], image) is not image:
            problems.mistake(duplicated(image_dir, by_id[image[0]], image))
    values = {"categories": [], "given": [], "skipped": skipped, "first_skipped": first, "note": note}
    values["skipped_of"] = list(skipped_of.items())
    return values, arrays | image_arrays(images)


def scan_pair(image: Path, annotation: Path) -> Scan:
    """Reads what one .npy says of its image; InputError names the file."""
    objects = npy_folder.read_objects(annotation)
    sides = objects.masks.shape[1:]
    try:
        fitting = image_size(image), image_size(image, rotate=False)  # upright and as stored, (H, W)
    except ImageError:  # counted when it is read; until then it has its masks' size
        fitting = (sides, sides[::-1]) if objects.labels else ((1, 1),)
    if not objects.labels:
        return Scan(fitting[0], True, objects.boxes, [], [], [])
    fits, fits_turned = sides in fitting, sides[::-1] in fitting
    if not (fits or fits_turned) or sides[0] * sides[1] >= MOST_PIXELS:
        height, width = fitting[0]
        raise InputError(
            f"{annotation}: its masks are {list(sides)}, but {image} has a height of {height} and a "
            f"width of {width}; they must be [{height}, {width}] or [{width}, {height}]"
        )
    masks = (npy_folder.set_pixels(annotation, i, mask) for i, mask in enumerate(objects.masks))
    size = sides if fits else sides[::-1]
    counts = [_encode(mask if fits else mask.T) for mask in masks]
    return Scan(size, None if fits and fits_turned else fits, objects.boxes, objects.labels, objects.iscrowd, counts)


def _encode(mask: np.ndarray) -> bytes:
    """Returns the counts of a mask [H, W], bool or uint8, as compressed RLE."""
    return coco_mask.encode(np.asfortranarray(mask).view(np.uint8))["counts"]


def _iou(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Returns the IoU of boxes [n, 4], x1 y1 x2 y2, row by row; 0 where both are empty."""
    low, high = np.maximum(one[:, :2], other[:, :2]), np.minimum(one[:, 2:], other[:, 2:])
    shared = (high - low).clip(0).prod(1)
    areas = [(boxes[:, 2:] - boxes[:, :2]).clip(0).prod(1) for boxes in (one, other)]
    return shared / np.maximum(areas[0] + areas[1] - shared, 1e-9)


def _orientation(scans: list[Scan]) -> tuple[bool, str]:
    """Returns (whether masks that fit both ways are [n, width, height], a line that says which way they lie)."""
    known = Counter(scan.rows_first for scan in scans if scan.counts)
    open_ones = known.pop(None, 0)
    if len(known) == 1:
        turn, why = False in known, "as the others'"
    else:
        agreement = sum(scan.agreement() for scan in scans if scan.rows_first is None)
        turn, why = agreement < 0, "as the boxes lie" if agreement else "as nothing says otherwise"
    ways = {True: "[n, height, width]", False: "[n, width, height]"}
    parts = [f"masks are {ways[way]} in {counted(count, 'file')}" for way, count in sorted(known.items(), reverse=True)]
    if open_ones:
        parts.append(f"masks that fit both ways are taken as {ways[not turn]} in {counted(open_ones, 'file')}, {why}")
    return turn, ", ".join(parts) or "no masks"


def _pack(
    pairs: list[tuple[str, str]],
    scans: list[Scan],
    skipped: dict,
    first: dict,
    skipped_of: Counter[int],
    problems: StopAtFirst,
) -> tuple[list[tuple], dict[str, np.ndarray]]:
    """Returns (images as `check_image` has them, DTYPES' other arrays); adds to skipped, first and skipped_of."""
    numbers = Counter(int(stem) for stem in map(_stem, pairs) if npy_folder.is_number(stem))
    images, per_image, kept, counts = [], [], [], []  # kept: label, iscrowd, area, x, y, w, h of each object
    for pair, scan in zip(pairs, scans, strict=True):
        stem, size, before = _stem(pair), scan.size, len(kept)
        own = npy_folder.is_number(stem) and numbers[int(stem)] == 1  # 007 is 7 unless there is a 7
        image_id = int(stem) if own else as_id(stem, "id")
        images.append((image_id, pair[0], size, "" if own or str(image_id) == stem else given_id(stem)))
        areas = coco_mask.area([{"size": list(size), "counts": code} for code in scan.counts]) if scan.counts else []
        for i, (code, area, (x1, y1, x2, y2)) in enumerate(zip(scan.counts, areas, scan.boxes.tolist(), strict=True)):
            inside = overlaps(x1, x2 - x1, size[1]) and overlaps(y1, y2 - y1, size[0])
            if area and inside:
                kept.append((scan.labels[i], scan.iscrowd[i], area, x1, y1, x2 - x1, y2 - y1))
                counts.append(code)
                continue
            reason = NO_BOX if area else EMPTY
            skipped[reason] = skipped.get(reason, 0) + 1
            skipped_of[scan.labels[i]] += 1
            first.setdefault(reason, f"index {i} of {pair[1]}")
            problems.skip(reason, f"{pair[1]}: index {i}: skipped: {reason}", image_id if own else stem)
        per_image.append(len(kept) - before)
    table = np.array(kept, dtype=np.float64).reshape(-1, 7)  # [A, 7]
    arrays = {
        "first": np.cumsum([0, *per_image]),
        "annotation_ids": np.full(len(kept), NO_ID),
        "category_ids": table[:, 0],
        "iscrowd": table[:, 1],
        "areas": table[:, 2].copy(),
        "boxes": table[:, 3:].copy(),
        "kinds": np.full(len(kept), RLE),
        "first_part": np.arange(len(kept) + 1),
        "part_bytes": np.frombuffer(b"".join(counts), dtype=np.uint8),
        "part_first": np.cumsum([0, *map(len, counts)]),
    }
    return images, {name: values.astype(DTYPES[name], copy=False) for name, values in arrays.items()}


def _stem(pair: tuple[str, str]) -> str:
    return os.path.splitext(pair[1])[0]
