"""Turns matches into the list of images, most mistakes first, and drawings of the first of them, for the page's script.

A drawing is UNITS long on its longer side, whatever the image's pixels: outlines are in its units.
"""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from backbone.errors import InputError
from train_utils.data.images.shown import shown
from train_utils.data.images.windows import Windows
from train_utils.evaluation.mistakes.errors import (
    BOTH,
    CLASS,
    DUPLICATE,
    KINDS,
    LOCATION,
    MISSED,
    RIGHT,
    meant_of,
    missed_of,
)
from train_utils.evaluation.mistakes.matching import NONE, Matches
from train_utils.evaluation.mistakes.outlines import path_of
from train_utils.io.plain_text import visible
from train_utils.show.pages import data_address

UNITS = 500
SIDES = (500, 380, 290, 220, 160, 110)  # pixels: the longest that fits an image's room is taken
ROOM, ROWS_ROOM = 7_000_000, 1_500_000  # bytes in the page for what is drawn, and for the list
FINE, ASIDE = len(KINDS), len(KINDS) + 1  # in place of a kind: right; in a crowd, or a crowd, or cut
NO_CLASS = -1


@dataclass
class Gallery:
    """What the page shows of the images.

    rows: [file name, objects, found, [kind, class, detected as, times, ...]] of each image listed, worst first;
    drawings: of the first of them, None for one that could not be read; total: images in all.
    """

    total: int
    rows: list[list]
    drawings: list[dict | None] = field(default_factory=list)
    unreadable: list[str] = field(default_factory=list)


class Shown:
    """The detections of at least a score, and what is wrong with each and with the objects."""

    def __init__(self, matches: Matches, kinds: np.ndarray, least_score: float) -> None:
        self.matches, self.detections = matches, matches.score >= least_score
        self.state = np.where(kinds == RIGHT, np.where(matches.ignored[0], ASIDE, FINE), kinds)  # [D]
        other = np.isin(kinds, (CLASS, BOTH))
        meant = np.where(other, matches.other, np.where(np.isin(kinds, (LOCATION, DUPLICATE)), matches.own, NONE))
        meant = np.where(kinds == RIGHT, matches.matched[0], meant)
        self.iou = np.where(other, matches.other_iou, matches.own_iou)
        self.meant_class = np.append(matches.object_category, NO_CLASS)[meant]  # the last where none is meant
        missed = missed_of(matches, kinds, self.detections)
        self.object_state = np.select([matches.crowd | matches.cut, missed], [ASIDE, MISSED], FINE)  # [G]
        covered = meant_of(matches, kinds)
        hit = matches.matched[0][self.detections & (matches.matched[0] >= 0)]
        for kind in (LOCATION, CLASS):
            objects = np.setdiff1d(covered[self.detections & (kinds == kind)], hit)
            self.object_state[objects] = kind

    def mistakes(self) -> list[Counter]:
        """Returns of each image (kind, object's class or NO_CLASS, detection's class or NO_CLASS) -> times."""
        matches, each = self.matches, [Counter() for _ in self.matches.image_ids]
        wrong, missed = self.detections & (self.state < FINE), self.object_state == MISSED
        for image, *mistake in zip(
            *(column[wrong].tolist() for column in (matches.image, self.state, self.meant_class, matches.category)),
            strict=True,
        ):
            each[image][tuple(mistake)] += 1
        for image, category in zip(
            matches.object_image[missed].tolist(), matches.object_category[missed].tolist(), strict=True
        ):
            each[image][MISSED, category, NO_CLASS] += 1
        return each


def make_gallery(
    shown: Shown, truth: dict, results: Sequence[dict], data_set: Any, images: int, strict: bool
) -> Gallery:
    """Lists the images and draws the worst; images: how many at most; strict: one that can't be read is an error."""
    matches, mistakes = shown.matches, shown.mistakes()
    order = sorted(range(len(mistakes)), key=lambda i: -mistakes[i].total())  # stable
    names = {image["id"]: visible(image["file_name"]) for image in truth["images"]}
    objects = np.bincount(matches.object_image[~matches.crowd], minlength=len(mistakes)).tolist()
    fine = matches.image[shown.detections & (shown.state == FINE)]
    found = np.bincount(fine, minlength=len(mistakes)).tolist()
    gallery, room = Gallery(len(order), []), ROWS_ROOM
    for i in order:
        flat = [value for mistake, times in mistakes[i].items() for value in (*mistake, times)]
        row = [names[matches.image_ids[i]], objects[i], found[i], flat]
        room -= len(json.dumps(row))
        if room < 0:
            break
        gallery.rows.append(row)
    _draw(gallery, shown, truth, results, data_set, order[: min(images, len(gallery.rows))], strict)
    return gallery


def _draw(
    gallery: Gallery, shown: Shown, truth: dict, results: Sequence[dict], data_set: Any, order: list[int], strict: bool
) -> None:
    """Adds a drawing for each image, as long as there is room."""
    matches, places = shown.matches, {data_set.image_id(i): i for i in range(len(data_set))}
    bounds = [
        np.searchsorted(column, np.arange(len(matches.image_ids) + 1))
        for column in (matches.object_image, matches.image)
    ]
    room = ROOM
    for i in tqdm(order, desc="report", unit="image", disable=None, leave=False):
        place = places[matches.image_ids[i]]
        objects, detections = (range(*bound[i : i + 2].tolist()) for bound in bounds)
        try:
            image = data_set[place][0]
        except InputError as error:
            if strict:
                raise
            gallery.unreadable.append(str(error))
            gallery.drawings.append(None)
            continue
        detections = [d for d in detections if shown.detections[d]]
        drawing = _outlines(shown, truth, results, objects, detections, tuple(image.shape[-2:]))
        used = len(json.dumps(drawing))
        image = image.overview(UNITS) if isinstance(image, Windows) else image
        drawing["image"] = _small(image, ROOM // len(order) - used)
        room -= used + len(drawing["image"])
        if room < 0:
            break
        gallery.drawings.append(drawing)


def _outlines(
    shown: Shown,
    truth: dict,
    results: Sequence[dict],
    objects: Sequence[int],
    detections: Sequence[int],
    size: tuple[int, int],
) -> dict:
    """Returns a drawing: width, height, objects [class, state, outline] and detections.

    A detection is [class, score, state, class meant, IoU, outline]; scores and IoU are in hundredths.
    """
    matches, scale = shown.matches, UNITS / max(size)
    height, width = (max(1, round(side * scale)) for side in size)

    def rows(columns: Sequence[np.ndarray], entries: Sequence[dict], chosen: Sequence[int], which: np.ndarray) -> list:
        at = np.array(chosen, dtype=np.int64)
        numbers = np.stack([column[at] for column in columns], axis=1).round().astype(np.int64).tolist()
        shapes = (path_of(entries[i], matches.iou_type, size, scale) for i in which[at].tolist())
        return [[*row, outline] for row, outline in zip(numbers, shapes, strict=True)]

    of_objects = (matches.object_category, shown.object_state)
    of_detections = (matches.category, 100 * matches.score, shown.state, shown.meant_class, 100 * shown.iou)
    return {
        "width": width,
        "height": height,
        "objects": rows(of_objects, truth["annotations"], objects, matches.annotation),
        "detections": rows(of_detections, results, detections, matches.result),
    }


def _small(image: torch.Tensor, room: int) -> str:
    """Returns a data: address of image [C, H, W] of at most `room` characters, or the smallest there is."""
    small = Image.fromarray(shown(image).permute(1, 2, 0).numpy())
    for side in SIDES:
        small.thumbnail((side, side))
        address = data_address(small, quality=70)
        if len(address) <= room:
            break
    return address
