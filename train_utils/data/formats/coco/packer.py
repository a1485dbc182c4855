"""Annotations of a COCO json -> flat arrays, batch after batch.

Most annotations are polygons with all fields in place: numpy checks a whole batch of them. Any other goes through
`check_annotation`, which skips it or names its mistake.
A annotations, R parts (polygons or RLEs), K annotations of one batch.
"""

import math
from array import array
from collections.abc import Container, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from backbone.errors import InputError
from train_utils.data.formats.coco.checks import annotation_id, as_id, box_alone, check_annotation, id_of, number_of
from train_utils.data.formats.coco.polygon_text import Polygons, take_out
from train_utils.data.formats.coco.rle_text import with_counts
from train_utils.data.formats.coco.segmentation import Skip
from train_utils.data.masks import FAR, HUNDREDTHS, NO_ID, POLYGON, is_hundredths
from train_utils.data.problems import STOP, StopAtFirst
from train_utils.io.plain_text import brief, shown

NUMBERS = {int, float}
FIELDS = {  # one value per annotation, beside the parts' lengths and bytes
    "sequence": np.int64,
    "rows": np.int64,
    "annotation_ids": np.int64,
    "category_ids": np.int64,
    "iscrowd": np.uint8,
    "boxes": np.float64,
    "areas": np.float64,
    "kinds": np.uint8,
    "counts": np.int64,
}
UNCHECKED = "annotations of images that have an error: not checked"
GATHERED = 2**16  # annotations whose bytes are put in order at once


class Packer:
    """Collects annotations: `add` them in the json's order, then take `arrays`.

    images: (id, file name, (H, W), ...) each; categories: the ids there are, or None if that is checked later;
    bad_images: ids of images that have a mistake, whose annotations are not checked.
    count: annotations added; skipped: {reason: count}; first_skipped: {reason: which one, as "id 17"}; skipped_of:
    {category id: count}; unmasked: as `Annotations` has it;
    category_ids: of those added, the skipped ones' too (but for those of images that are not listed).
    """

    def __init__(
        self,
        path: str | Path,
        images: list[tuple],
        categories: Container[int] | None = None,
        problems: StopAtFirst = STOP,
        bad_images: Container[int] = frozenset(),
    ) -> None:
        self.path, self.categories, self.problems, self.bad_images = path, categories, problems, bad_images
        self.row_of = {image[0]: row for row, image in enumerate(images)}
        self.sizes = np.array([image[2] for image in images], dtype=np.int64).reshape(-1, 2)  # [I, 2]
        self.count, self.skipped, self.first_skipped = 0, {}, {}
        self.skipped_of: dict[int, int] = {}
        self.unmasked: list[list] = []
        self._other_ids = array("q")  # of annotations that were skipped or refused
        self._given: dict[int, object] = {}  # ids that are something else in the json
        self.category_ids: set[int] = set()
        self._blocks: dict[str, list[np.ndarray]] = {name: [] for name in (*FIELDS, "lengths")}
        self._bytes = bytearray()
        self._takes_text = True  # as long as that pays

    def add(self, annotations: list, polygons: Polygons | None = None) -> None:
        """Checks and keeps a batch. A mistake names path, annotation id and what is wrong.

        polygons: those that were taken out of the annotations, if any were.
        """
        others = list(enumerate(annotations, self.count))
        self.count += len(annotations)
        groups = [_Plain()] if polygons is None else [_FromText(polygons), _Plain()]
        for plain in groups:
            others = plain.take(others, self.row_of)
            if plain.taken:
                self.category_ids.update(np.unique(plain.category_ids).tolist())
                with np.errstate(all="ignore"):  # of numbers that the check is there to find
                    good = plain.check(self.sizes, self.categories)  # bool [K]
                    for block in plain.blocks(good):
                        self._keep(*block)
                others += [plain.given(i) for i in np.flatnonzero(~good).tolist()]
        self._takes_text &= 2 * len(groups[0].taken) > len(annotations)
        others.sort(key=lambda other: other[0])  # the first mistake is the one to name
        self._add_one_by_one(others)

    def add_text(self, text: str) -> bool:
        """Adds the annotations that a text lists; returns False where they are to be given to `add` instead."""
        taken = take_out(text) if self._takes_text else None
        self._takes_text = taken is not None
        if taken is None and (annotations := with_counts(text)) is not None:
            taken = annotations, None
        if taken is not None:
            self.add(*taken)
        return taken is not None

    def _add_one_by_one(self, annotations: list[tuple[int, Any]]) -> None:
        fields: dict[str, list] = {name: [] for name in FIELDS}
        parts: list[bytes] = []
        for sequence, annotation in annotations:
            number = number_of(annotation, "id")
            if number is not None and type(annotation["id"]) is not int:
                self._given[number] = annotation["id"]
            try:
                row, values = self._check(annotation)
            except Skip as reason:
                self._skip(str(reason), sequence, annotation)
                continue
            except (InputError, KeyError, TypeError, AttributeError, OverflowError) as error:
                what = f"{error} is missing" if isinstance(error, KeyError) else error
                self._refuse(what, sequence, annotation, error)
                continue
            for name, value in zip(FIELDS, (sequence, row, *values[:-1], len(values[-1])), strict=True):
                fields[name].append(value)
            parts += values[-1]
        if parts:
            self._keep(fields, [len(part) for part in parts], b"".join(parts))

    def _skip(self, reason: str, sequence: int, annotation: dict) -> None:
        name = name_of(sequence, annotation)
        image, number = id_of(annotation, "image_id"), id_of(annotation, "id")
        if image is not None and as_id(image, "image_id") in self.bad_images:
            self.problems.note(UNCHECKED, f"{self.path}: annotation {name}: its image has an error", image, number)
            return
        self.first_skipped.setdefault(reason, name if annotation.get("id") is None else f"id {name}")
        self.skipped[reason] = self.skipped.get(reason, 0) + 1
        if (category := number_of(annotation, "category_id")) is not None:
            self.skipped_of[category] = self.skipped_of.get(category, 0) + 1
        self.problems.skip(reason, f"{self.path}: annotation {name}: skipped: {reason}", image, number)
        if image is not None and (row := self.row_of.get(as_id(image, "image_id"))) is not None:
            self.unmasked += box_alone(annotation, tuple(self.sizes[row].tolist()))
        try:
            self._other_ids.append(annotation_id(annotation))
        except InputError as error:
            self._refuse(error, sequence, annotation, error)

    def _refuse(self, what: object, sequence: int, annotation: Any, cause: Exception) -> None:
        number = number_of(annotation, "id")
        message = f"{self.path}: annotation {name_of(sequence, annotation)}: {what}"
        self.problems.mistake(message, id_of(annotation, "image_id"), id_of(annotation, "id"), cause)
        if number is not None:
            self._other_ids.append(number)

    def repeated_ids(self) -> list:
        """Returns the annotation ids that are duplicated, as the json has them; to be called before `arrays`.

        Those of skipped and refused annotations count too.
        """
        ids = np.sort(np.concatenate([np.array(self._other_ids), *self._blocks["annotation_ids"]]))
        ids = ids[np.searchsorted(ids, NO_ID, side="right") :]
        return [self._given.get(i, i) for i in np.unique(ids[1:][ids[1:] == ids[:-1]]).tolist()]

    def _check(self, annotation: Any) -> tuple[int, tuple]:
        """Returns (row, what `check_annotation` returns)."""
        if not isinstance(annotation, dict):
            raise InputError("is not an object with image_id, category_id, ...")
        row = self.row_of.get(as_id(annotation["image_id"], "image_id"))
        if row is None:
            raise Skip("annotations of images that are not listed")
        self.category_ids.add(as_id(annotation["category_id"], "category_id"))
        return row, check_annotation(annotation, self.categories, tuple(self.sizes[row].tolist()))

    def _keep(self, fields: dict, lengths: Sequence[int] | np.ndarray, content: bytes) -> None:
        """Keeps FIELDS' values of some annotations, how many bytes each of their parts has, and these bytes."""
        for name, values in {**fields, "lengths": lengths}.items():
            self._blocks[name].append(np.asarray(values, dtype=FIELDS.get(name, np.int64)))
        self._bytes += content

    def arrays(self) -> dict[str, np.ndarray]:
        """Returns DTYPES' arrays of what was added: grouped by image, else in the json's order."""
        fields = {name: _joined(blocks, FIELDS.get(name, np.int64)) for name, blocks in self._blocks.items()}
        self._blocks.clear()
        order = np.lexsort((fields["sequence"], fields["rows"]))
        counts = fields["counts"]
        first_part, first_byte = _running(counts), _running(fields["lengths"])  # as added
        start, stop = first_byte[first_part[:-1]][order], first_byte[first_part[1:]][order]
        ordered = _running(counts[order])  # as they will be
        moved = np.arange(len(fields["lengths"])) + np.repeat(first_part[:-1][order] - ordered[:-1], counts[order])
        content = _gathered(self._bytes, start, stop)
        self._bytes = bytearray()
        names = ("annotation_ids", "category_ids", "iscrowd", "areas", "kinds")
        return {
            "first": _running(np.bincount(fields["rows"], minlength=len(self.sizes))),
            "boxes": fields["boxes"].reshape(-1, 4)[order],
            "first_part": ordered,
            "part_first": _running(fields["lengths"][moved]),
            "part_bytes": content,
            **{name: fields[name][order] for name in names},
        }


class _Plain:
    """Annotations that have polygons and every field, in flat lists or arrays."""

    per_pixel = 1  # units of the parts' numbers

    def __init__(self) -> None:
        self.taken: list[tuple[int, Any]] = []  # (sequence, annotation)
        self.rows: Sequence[int] | np.ndarray = []
        self.ids: Sequence[int] | np.ndarray = []
        self.category_ids: Sequence[int] | np.ndarray = []
        self.iscrowd: Sequence[int] | np.ndarray = []
        self.areas: Sequence[float] | np.ndarray = []
        self.counts: Sequence[int] | np.ndarray = []  # parts of each
        self.boxes: array | np.ndarray = array("d")  # 4 for each
        self.lengths: Sequence[int] | np.ndarray = []  # numbers of each part
        self.numbers: array | np.ndarray = array("d")  # the parts'

    def take(self, annotations: list[tuple[int, Any]], row_of: dict[int, int]) -> list[tuple[int, Any]]:
        """Keeps the plain ones of (sequence, annotation); returns the others."""
        others = []
        boxes, numbers, lengths = self.boxes, self.numbers, self.lengths
        for sequence, annotation in annotations:
            ends = len(boxes), len(numbers), len(lengths)
            try:
                row, category, number = row_of[annotation["image_id"]], annotation["category_id"], annotation["id"]
                area, crowd = annotation.get("area", 0.0), annotation.get("iscrowd", 0)
                box, polygons = annotation["bbox"], annotation["segmentation"]
                if not (
                    type(category) is int
                    and 0 <= category < 2**31
                    and type(number) is int
                    and 0 < number < 2**63
                    and type(crowd) is int
                    and 0 <= crowd <= 1
                    and type(area) in NUMBERS
                    and -1e300 < area < 1e300
                    and len(box) == 4
                    and NUMBERS.issuperset(map(type, box))
                    and type(polygons) is list
                    and polygons
                ):
                    raise ValueError("not plain")
                boxes.fromlist(box)
                for polygon in polygons:
                    count = len(polygon)
                    if count < 6 or count % 2:
                        raise ValueError("not plain")
                    numbers.fromlist(polygon)
                    lengths.append(count)
            except (KeyError, TypeError, ValueError, AttributeError, OverflowError):
                others.append((sequence, annotation))  # `check_annotation` will say what it is
                del boxes[ends[0] :], numbers[ends[1] :], lengths[ends[2] :]
                continue
            self.taken.append((sequence, annotation))
            self.rows.append(row)
            self.ids.append(number)
            self.category_ids.append(category)
            self.iscrowd.append(crowd)
            self.areas.append(area if "area" in annotation else math.nan)
            self.counts.append(len(polygons))
        return others

    def given(self, i: int) -> tuple[int, Any]:
        """Returns (sequence, annotation) as it was taken."""
        return self.taken[i]

    def check(self, sizes: np.ndarray, categories: Container[int] | None) -> np.ndarray:
        """Returns bool [K]: what `check_annotation` would keep as it is. sizes [I, 2], categories as Packer's."""
        height, width = sizes[self.rows].T  # [K] each
        x, y, w, h = np.array(self.boxes).reshape(-1, 4).T
        numbers = np.asarray(self.numbers)
        starts = _running(self.lengths)[_running(self.counts)[:-1]] // 2
        (left, top), (right, bottom) = (  # [K] each, NaN where a number is
            [extreme.reduceat(numbers[axis::2], starts) / self.per_pixel for axis in (0, 1)]
            for extreme in (np.minimum, np.maximum)
        )
        good = np.abs((left, top, right, bottom)).max(0) <= FAR * np.maximum(height, width)  # False for NaN
        good &= (np.abs((x, y, w, h)) < 1e300).all(0)
        good[good] &= (_overlap(x, w, width) & _overlap(y, h, height))[good]
        good[good] &= (_overlap(left, right - left, width) & _overlap(top, bottom - top, height))[good]
        return good if categories is None else good & np.isin(self.category_ids, list(categories))

    def blocks(self, good: np.ndarray) -> Iterator[tuple[dict, np.ndarray, bytes]]:
        """Yields the good ones for `Packer._keep` (fields, lengths, bytes), in the fewest bytes that lose nothing."""
        numbers, counts, lengths = np.asarray(self.numbers), np.array(self.counts), np.array(self.lengths)
        rounded, exact = numbers, np.ones(len(counts), dtype=bool)
        if self.per_pixel == 1:
            rounded = np.rint(numbers * 100)
            exact = np.logical_and.reduceat(is_hundredths(numbers, rounded), _running(lengths)[_running(counts)[:-1]])
        fields = {
            "sequence": [sequence for sequence, _ in self.taken],
            "rows": self.rows,
            "annotation_ids": self.ids,
            "category_ids": self.category_ids,
            "iscrowd": self.iscrowd,
            "boxes": np.array(self.boxes).reshape(-1, 4),
            "areas": self.areas,
            "counts": counts,
        }
        for kind, chosen in ((HUNDREDTHS, good & exact), (POLYGON, good & ~exact)):
            if not chosen.any():
                continue
            parts = np.repeat(chosen, counts)  # bool [R]
            of_parts = np.repeat(parts, lengths)  # bool, of each number
            content = rounded[of_parts].astype(np.uint16) if kind == HUNDREDTHS else numbers[of_parts]
            kept = {name: np.asarray(values)[chosen] for name, values in fields.items()}
            kept["kinds"] = np.full(len(kept["rows"]), kind)
            yield kept, lengths[parts] * content.itemsize, content.tobytes()


class _FromText(_Plain):
    """Annotations whose polygons were taken out of their text."""

    per_pixel = 100

    def __init__(self, polygons: Polygons) -> None:
        super().__init__()
        self.polygons = polygons
        self.segmentations = np.zeros(0, np.int64)  # [K] which of the polygons are those of the annotations kept

    def take(self, annotations: list[tuple[int, Any]], row_of: dict[int, int]) -> list[tuple[int, Any]]:
        """Keeps the plain ones of all annotations of a text; returns the others, with their polygons."""
        polygons = self.polygons
        plain = np.flatnonzero(polygons.plain)
        mine = [annotations[i] for i in polygons.owners[plain].tolist()]
        columns = _columns([annotation for _, annotation in mine], row_of)
        good = np.zeros(len(mine), dtype=bool) if columns is None else _in_range(columns)
        for k in plain[~good].tolist():
            annotations[polygons.owners[k]][1]["segmentation"] = polygons.parsed(k)
        self.segmentations = plain[good]
        kept, rest = np.zeros(len(polygons.plain), dtype=bool), np.ones(len(annotations), dtype=bool)
        kept[self.segmentations], rest[polygons.owners[self.segmentations]] = True, False
        if kept.any():
            self.taken = [mine[i] for i in np.flatnonzero(good).tolist()]
            for name, values in columns.items():
                setattr(self, name, values[good])
            parts = np.repeat(kept, polygons.counts)  # bool [R]
            self.counts, self.lengths = polygons.counts[kept], polygons.lengths[parts]
            self.numbers = polygons.hundredths[np.repeat(parts, polygons.lengths)]
        return [annotations[i] for i in np.flatnonzero(rest).tolist()]

    def given(self, i: int) -> tuple[int, Any]:
        """Returns (sequence, annotation) as it was taken, with its polygons."""
        sequence, annotation = self.taken[i]
        return sequence, {**annotation, "segmentation": self.polygons.parsed(int(self.segmentations[i]))}


def _columns(annotations: list[dict], row_of: dict[int, int]) -> dict[str, np.ndarray] | None:
    """Returns `_Plain`'s fields as arrays, row -1 for an image not listed; None unless all are of the usual types."""
    try:
        integers = {
            "category_ids": [annotation["category_id"] for annotation in annotations],
            "ids": [annotation["id"] for annotation in annotations],
            "iscrowd": [annotation.get("iscrowd", 0) for annotation in annotations],
        }
        areas = [annotation.get("area", math.nan) for annotation in annotations]
        boxes = [annotation["bbox"] for annotation in annotations]
        numbers = list(chain.from_iterable(boxes))
        if {*map(len, boxes)} != {4} or not NUMBERS.issuperset(map(type, chain(numbers, areas))):
            return None
        if {*map(type, chain(*integers.values()))} != {int}:
            return None
        return {
            "rows": np.array([row_of.get(annotation["image_id"], -1) for annotation in annotations]),
            "boxes": np.array(numbers, dtype=np.float64).reshape(-1, 4),
            "areas": np.array(areas, dtype=np.float64),
            **{name: np.array(values, dtype=np.int64) for name, values in integers.items()},
        }
    except (KeyError, TypeError, OverflowError):
        return None


def _in_range(columns: dict[str, np.ndarray]) -> np.ndarray:
    """Returns which annotations are as `_Plain.take` wants them, bool [K]."""
    category, crowd = columns["category_ids"], columns["iscrowd"]
    good = (columns["rows"] >= 0) & (category >= 0) & (category < 2**31) & (columns["ids"] > 0)
    return good & (crowd >= 0) & (crowd <= 1) & ~(np.abs(columns["areas"]) >= 1e300)


def name_of(sequence: int, annotation: Any) -> str:
    """Returns what a message calls the annotation."""
    if not isinstance(annotation, dict):
        return brief(annotation)
    number = annotation.get("id")
    return f"number {sequence + 1} of the list, without id" if number is None else shown(number)


def _overlap(start: np.ndarray, extent: np.ndarray, side: np.ndarray) -> np.ndarray:
    """Returns what `segmentation.overlaps` does, of arrays."""
    return np.minimum(start + extent, side) - np.maximum(start, 0) > 1e-6 * side


def _running(counts: Sequence[int] | np.ndarray) -> np.ndarray:
    """Returns where each of so many begins, and the end: int64 [len + 1]."""
    return np.concatenate(([0], np.cumsum(counts, dtype=np.int64)))


def _joined(blocks: list[np.ndarray], dtype: type) -> np.ndarray:
    """Joins all blocks, and gives them up."""
    whole = np.concatenate([np.zeros(0, dtype), *(block.reshape(-1) for block in blocks)])
    blocks.clear()
    return whole


def _gathered(content: bytearray, start: np.ndarray, stop: np.ndarray) -> np.ndarray:
    """Returns content[start:stop] of each, one after another, uint8."""
    whole, at = np.empty(int((stop - start).sum()), dtype=np.uint8), 0
    with memoryview(content) as view:
        for i in range(0, len(start), GATHERED):
            bounds = zip(start[i : i + GATHERED].tolist(), stop[i : i + GATHERED].tolist(), strict=True)
            piece = b"".join([view[a:b] for a, b in bounds])
            whole[at : at + len(piece)] = np.frombuffer(piece, dtype=np.uint8)
            at += len(piece)
    return whole
