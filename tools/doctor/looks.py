"""Finds what the loader takes but looks like a mistake, and what is good to know; from the annotations alone.

A objects of one data set, in the flat arrays of a `Table`.
"""

from collections.abc import Callable

import numpy as np
from pycocotools import mask as coco_mask

from network_files.config import MaskRCNNConfig
from tools.doctor.classes import look_across, look_at_classes
from tools.doctor.finds import NOTE, WARNING, Finds, Kind
from tools.doctor.table import Outlines, Table, outlines, polygons_of
from train_utils.data.demands import without_objects
from train_utils.data.formats.coco.checks import given_id
from train_utils.data.masks import PolygonsAndRle
from train_utils.data.objects.anchors import resized

SAME_IOU, OTHER_IOU = 0.95, 0.5  # of two boxes that are most likely one object; of a box that is not its mask's
WHOLE, TINY, THIN = 0.95, 4, 20  # share of the image; pixels after resizing; ratio of sides
FAR_OUT = 2  # pixels and hundredths of the side that a box may leave the image by: tools round
AREA_FACTOR, AREA_PIXELS = 2, 20  # how far an area may be from the mask's, and by how much
MOST_OUTLINES, MOST_ARE = 5000, 0.5  # objects whose outlines are looked at; share that makes it the tool's doing
NEIGHBOURS = 1000  # objects, by their left side, that each is compared with

TWICE = Kind(
    WARNING,
    "objects annotated twice (same class, boxes of IoU over 0.95)",
    "Each detection can match one of them; --fix drops those that are the same in everything.",
)
BOX_DIFFERS = Kind(
    WARNING,
    "boxes that are not their mask's (IoU under 0.5)",
    "Both are trained as annotated. Nothing tells which is right, so --fix leaves them: correct the wrong one.",
)
SHARES = Kind(
    WARNING,
    "boxes or masks whose numbers are all from 0 to 1, while the other's are not",
    "They look like shares of the image's sides: multiply x by its width and y by its height.",
)
AREA_DIFFERS = Kind(
    WARNING,
    "areas that are not their mask's",
    "The evaluation sorts objects by this area into small, medium and large; --fix measures it anew.",
)
NO_PIXEL = Kind(
    WARNING, "polygons that cover no pixel", "Their mask is empty in training; --fix drops them where their box agrees."
)
OUTSIDE = Kind(WARNING, "boxes that reach out of the image", "They are clipped in training; --fix clips them.")
UNDER_A_PIXEL = Kind(WARNING, "objects less than a pixel wide or high", "Take them out if they were drawn by mistake.")
SMALL = Kind(
    NOTE,
    f"objects under {TINY} pixels a side after resizing",
    "They are hardly to be found: a larger --min-size and --max-size makes them larger.",
)
COVERS = Kind(WARNING, "objects that cover over 95% of their image", "Is it an object, or the whole image's label?")
LONG = Kind(WARNING, f"objects over {THIN} times as long as wide", "Anchors hardly fit them; are they drawn right?")
NO_OBJECTS = "images without objects"
MANY = Kind(WARNING, "images with suspiciously many objects", "Are they annotated as the others are?")
TOO_MANY = Kind(
    WARNING,
    "images with more objects than the model may report",
    "Raise --box-detections-per-img, or the rest can't be found.",
)
NARROW = Kind(
    WARNING,
    "data whose outlines run through the centres of pixels",
    "Tools that trace masks (OpenCV's findContours) write them so. Filled, they lose half a pixel on each side: of a "
    "square of 10 x 10 pixels 81 are left. Export RLE, or train on the masks themselves.",
)
FILLED_HOLES = Kind(
    WARNING,
    "objects with a polygon inside of another one",
    "A hole that a tool wrote as a second polygon is filled in training and in the evaluation. Export RLE, which has "
    "holes.",
)
FROM_ZERO = Kind(NOTE, "category ids that begin at 0", "They become labels from 1 on; results have the given ones.")
TEXT_IDS = Kind(
    NOTE, "files whose ids are not integers", "Numbers stand for them in training; results have the given ones."
)
NO_BOXES_AT_ALL = Kind(WARNING, "splits without any object", "Their AP is n/a.")


def look_at_all(
    tables: dict[str, Table], seen: dict[str, Table], config: MaskRCNNConfig, finds: Finds
) -> dict[str, dict[str, int]]:
    """Looks at all annotations of {split: table}; returns {class: {split: objects}}, crowds apart.

    seen: the same as the model sees them, in tiles; config: of the model that is to be trained.
    """
    for split, table in tables.items():
        look_at_objects(table, outlines(table), split, finds)
        look_at_outlines(table, split, finds)
        look_after_resizing(seen[split], config, split, finds)
        look_at_images(table, split, finds)
    if not tables:
        return {}
    counts = look_at_classes(tables, finds)
    look_across(tables, finds)
    return counts


def look_at_objects(table: Table, outline: Outlines | None, split: str, finds: Finds) -> None:
    """Finds odd boxes, objects annotated twice and, where there are outlines, odd masks."""
    boxes, sizes = table.boxes, table.sizes[table.image][:, ::-1]  # [A, 4], [A, 2] width, height
    clipped, own = table.clipped, ~table.crowd

    def report(kind: Kind, chosen: np.ndarray, what: Callable[[int], str]) -> None:
        for k in np.flatnonzero(chosen).tolist():
            _add(kind, table, k, what(k), split, finds)

    sides = clipped[:, 2:] - clipped[:, :2]
    report(UNDER_A_PIXEL, (sides < 1).any(1) & own, lambda k: f"a box of {sides[k, 0]:.3g} x {sides[k, 1]:.3g} pixels")
    out = beyond(boxes, sizes)
    report(
        OUTSIDE,
        out > allowed(sizes),
        lambda k: f"its box {box(boxes[k])} reaches {out[k]:.4g} pixels beyond an image of {sizes[k, 0]}x{sizes[k, 1]}",
    )
    share = sides.prod(1) / sizes.prod(1)
    report(COVERS, (share > WHOLE) & own, lambda k: f"its box covers {share[k]:.1%} of the image")
    ratio = sides.max(1, initial=0) / np.maximum(sides.min(1, initial=np.inf), 1)
    report(LONG, (ratio > THIN) & own, lambda k: f"a box of {sides[k, 0]:.4g} x {sides[k, 1]:.4g} pixels")
    for first, second in twins(table):
        other = table.where(first)["annotation"] or "another object"
        _add(TWICE, table, second, f"its box {box(boxes[second])} is nearly that of {other}", split, finds)
    if outline is not None:
        _look_at_masks(table, outline, report)


def look_after_resizing(table: Table, config: MaskRCNNConfig, split: str, finds: Finds) -> None:
    """Finds objects and images that the model of this config can hardly handle."""
    small, _ = resized(table, config)
    scale = (small / table.sizes)[table.image][:, ::-1]
    sides = (table.clipped[:, 2:] - table.clipped[:, :2]) * scale
    tiny = np.flatnonzero((sides < TINY).any(1) & ~table.crowd)
    for k in tiny.tolist():
        _add(SMALL, table, k, f"{sides[k, 0]:.3g} x {sides[k, 1]:.3g} pixels after resizing", split, finds)
    counts = table.counts()
    most = config.box_detections_per_img
    for i in np.flatnonzero(counts > most).tolist():
        text = f"{table.data_set.file_name(i)}: {counts[i]} objects, --box-detections-per-img is {most}"
        finds.add(TOO_MANY, text, split, table.data_set.given_id(i))


def look_at_outlines(table: Table, split: str, finds: Finds) -> None:
    """Finds what tools do to masks when they write polygons, on an evenly spread sample of the objects."""
    if not isinstance(table.data_set.annotations.masks, PolygonsAndRle):
        return
    traced, outlined = 0, 0
    for k in np.unique(np.linspace(0, len(table.rows) - 1, min(len(table.rows), MOST_OUTLINES)).astype(int)).tolist():
        polygons = [polygon for polygon in polygons_of(table, k) if len(polygon) >= 3]
        outlined += bool(polygons)
        traced += bool(polygons) and all(map(is_traced, polygons))
        inner = sum(lies_within(a, b) for a in polygons for b in polygons if a is not b) if len(polygons) > 1 else 0
        if inner:
            _add(FILLED_HOLES, table, k, f"{inner} of its {len(polygons)} polygons inside of another", split, finds)
    if traced > MOST_ARE * outlined:
        finds.add(NARROW, f"{table.data_set.source}: {traced} of {outlined} outlines looked at", split)


def is_traced(polygon: np.ndarray) -> bool:
    """Says whether a polygon [n, 2] goes from centre to centre of pixels: whole numbers, straight or diagonal steps.

    One along the pixels' edges has no diagonal step.
    """
    steps = np.abs(np.diff(polygon, axis=0, append=polygon[:1]))
    diagonal = (steps[:, 0] == steps[:, 1]) & (steps[:, 0] > 0)
    return bool((polygon == polygon.round()).all() and (diagonal | (steps.min(1) == 0)).all() and diagonal.any())


def lies_within(inner: np.ndarray, outer: np.ndarray) -> bool:
    """Says whether all corners of a polygon [n, 2] lie inside of another [m, 2]."""
    if not ((inner.min(0) >= outer.min(0)) & (inner.max(0) <= outer.max(0))).all():
        return False
    (x1, y1), (x2, y2) = outer.T, np.roll(outer, -1, axis=0).T  # [m]
    x, y = inner[:, :1], inner[:, 1:]  # [n, 1]
    crosses = (y1 > y) != (y2 > y)  # [n, m]: edges that a ray to the right may cross
    at = x1 + (y - y1) * (x2 - x1) / np.where(y2 == y1, 1, y2 - y1)
    return bool(((crosses & (at > x)).sum(1) % 2 == 1).all())


def _add(kind: Kind, table: Table, k: int, text: str, split: str, finds: Finds) -> None:
    """Adds a find about object k."""
    finds.add(kind, f"{table.name(k)}: {text}", split, **table.where(k))


def _look_at_masks(
    table: Table, outline: Outlines, report: Callable[[Kind, np.ndarray, Callable[[int], str]], None]
) -> None:
    tight = np.clip(outline.tight, 0, table.sizes[table.image][:, [1, 0, 1, 0]])
    clipped = table.clipped
    overlap = iou(clipped, tight)
    report(
        BOX_DIFFERS,
        overlap < OTHER_IOU,
        lambda k: f"its box is {box(clipped[k])}, its mask lies in {box(tight[k])} (IoU {overlap[k]:.2f})",
    )
    shares = (tight.max(1, initial=0) <= 1) != (clipped.max(1, initial=0) <= 1)
    report(SHARES, shares, lambda k: f"its box is {box(clipped[k])}, its mask lies in {box(tight[k])}")
    areas, given = outline.areas, table.areas
    doubtful = (given > AREA_FACTOR * areas) | (given * AREA_FACTOR < areas)
    doubtful &= np.abs(given - areas) > AREA_PIXELS
    thin = areas < 2
    true = {k: mask_area(table, k) for k in np.flatnonzero(doubtful | thin).tolist()}  # as training has it
    empty = np.array([k in true and true[k] == 0 for k in range(len(areas))], dtype=bool)
    wrong = np.array(
        [k in true and not empty[k] and area_differs(given[k], true[k]) for k in range(len(areas))], dtype=bool
    )
    report(NO_PIXEL, empty, lambda k: f"its mask within {box(tight[k])} has no pixel")
    report(AREA_DIFFERS, wrong, lambda k: f"area is {given[k]:.6g}, its mask has {true[k]:.0f} pixels")


def area_differs(given: float, pixels: float) -> bool:
    """Returns whether an annotated area can't be that of a mask of so many pixels; False for NaN, which is none."""
    far = given > AREA_FACTOR * pixels or given * AREA_FACTOR < pixels
    return bool(far and abs(given - pixels) > AREA_PIXELS)


def mask_area(table: Table, k: int) -> float:
    """Returns the pixels of object k's mask in training."""
    size = tuple(table.sizes[table.image[k]].tolist())
    return float(coco_mask.area(table.data_set.annotations.masks.rle(int(table.rows[k]), size)))


def twins(table: Table) -> list[tuple[int, int]]:
    """Returns (object, one after it) of the same image and class whose boxes are nearly the same; crowds apart."""
    boxes = table.clipped
    chosen = np.flatnonzero(~table.crowd & (boxes[:, 2:] > boxes[:, :2]).all(1))
    order = chosen[np.lexsort((boxes[chosen, 0], table.labels[chosen], table.image[chosen]))]
    x1, width = boxes[order, 0], (boxes[order, 2] - boxes[order, 0])
    group = table.image[order] * (int(table.labels.max(initial=0)) + 1) + table.labels[order]
    found: list[tuple[int, int]] = []
    for shift in range(1, min(len(order), NEIGHBOURS)):
        near = (group[shift:] == group[:-shift]) & (x1[shift:] - x1[:-shift] <= (1 - SAME_IOU) * width[:-shift] + 1e-9)
        if not near.any():
            break
        at = np.flatnonzero(near)
        same = iou(boxes[order[at]], boxes[order[at + shift]]) > SAME_IOU
        found += [
            (min(a, b), max(a, b))
            for a, b in zip(order[at[same]].tolist(), order[at[same] + shift].tolist(), strict=True)
        ]
    return sorted(found)


def look_at_images(table: Table, split: str, finds: Finds) -> None:
    """Finds images of suspiciously many or no objects, and odd ids."""
    data_set, counts = table.data_set, table.counts()
    empty = np.flatnonzero(np.bincount(table.image, minlength=len(counts)) == 0)
    if cause := without_objects(data_set):
        if split == "val":  # of training data it is an error
            finds.add(NO_BOXES_AT_ALL, f"{data_set.source}: {cause}", split)
    else:
        severity = WARNING if len(empty) > len(counts) / 2 else NOTE
        kind = Kind(severity, NO_OBJECTS, "They train as background; --drop-empty leaves them out.")
        for i in empty.tolist():
            finds.add(kind, f"{data_set.file_name(i)}: no object", split, data_set.given_id(i))
    for i in many(counts).tolist():
        text = f"{data_set.file_name(i)}: {counts[i]} objects, the middle image has {np.median(counts):.0f}"
        finds.add(MANY, text, split, data_set.given_id(i))
    packed = data_set.annotations
    of_categories = any(map(given_id, packed.given_categories.values()))
    others = [what for what, has in (("images", packed.given), ("categories", of_categories)) if has]
    if others:
        finds.add(TEXT_IDS, f"{packed.source}: ids of {' and '.join(others)}", split)
    if min(packed.categories) == 0:
        finds.add(FROM_ZERO, f"{packed.source}: category id 0 is {packed.categories[0]!r}", split)


def many(counts: np.ndarray) -> np.ndarray:
    """Returns images whose number of objects is far beyond the others', by a robust measure on the logarithm."""
    logs = np.log1p(counts)
    spread = 1.4826 * np.median(np.abs(logs - np.median(logs))) if len(logs) else 0
    return np.flatnonzero((logs > np.median(logs) + 4 * max(spread, 0.35)) & (counts > 20)) if len(logs) else logs[:0]


def beyond(boxes: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Returns how many pixels boxes [A, 4] x1 y1 x2 y2 reach out of images of sizes [A, 2] (width, height): [A]."""
    return np.maximum(-boxes[:, :2], boxes[:, 2:] - sizes).max(1, initial=-np.inf)


def allowed(sizes: np.ndarray) -> np.ndarray:
    """Returns how many of these pixels may come from rounding: [A]."""
    return FAR_OUT + 0.01 * sizes.max(1, initial=0)


def iou(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Returns the IoU of boxes [K, 4] x1 y1 x2 y2, row by row; 0 where both are empty."""
    shared = (np.minimum(a[:, 2:], b[:, 2:]) - np.maximum(a[:, :2], b[:, :2])).clip(0).prod(1)
    areas = [(boxes[:, 2:] - boxes[:, :2]).clip(0).prod(1) for boxes in (a, b)]
    return shared / np.maximum(areas[0] + areas[1] - shared, 1e-9)


def box(values: np.ndarray) -> str:
    """Returns the four numbers of a box as text."""
    return "[" + ", ".join(f"{value:.5g}" for value in values) + "]"
