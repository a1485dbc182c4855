"""Writes the report of an evaluation, one page: which mistakes there are, what they cost, and images that show them.

`write_report` puts together what the modules beside this file work out, each one thing: matching (detections and
objects), average_precision, errors (kinds of mistakes and their cost), scores (F1, calibration), confusion, crowding,
advice, outlines and gallery (the images), sections (of the page; report.js and report.css are its own).
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from train_utils.evaluation.limits import MAX_DETS, Limit
from train_utils.evaluation.mistakes import sections
from train_utils.evaluation.mistakes.advice import advise, raise_limit, train_on
from train_utils.evaluation.mistakes.average_precision import curves_at
from train_utils.evaluation.mistakes.confusion import confusion_matrix
from train_utils.evaluation.mistakes.crowding import by_crowding
from train_utils.evaluation.mistakes.errors import by_size, costs, kinds_of
from train_utils.evaluation.mistakes.gallery import Shown, make_gallery
from train_utils.evaluation.mistakes.matching import IOU_THRESHOLDS, empty_masks, match
from train_utils.evaluation.mistakes.scores import best_of_all, best_of_classes, calibration, score_to_show
from train_utils.evaluation.numbers import IOU_TYPES, IouTypeResult, category_names
from train_utils.io.plain_text import counted, visible
from train_utils.show.pages import joined, note, page, tag, write_page

IMAGES = 300  # that can be looked at, by default
SCORE = 0.5  # above which detections are shown where no score is best: there is none, or no object


class Evaluated(NamedTuple):
    """What a report is about.

    source: what was evaluated, a checkpoint or a results file; stats: its numbers per IoU type, as in record_mAP.json;
    results: its COCO results of the last of these types; image_ids: the images that the numbers are about (default:
    all); progress: of the run, from its checkpoint, where there is one; max_dets: detections of a class in an image
    that count; limits: that cut the numbers; per_image: detections that the model may find in an image.
    """

    source: str
    stats: dict[str, IouTypeResult]
    results: Sequence[dict]
    data_set: Any
    image_ids: Sequence[int] | None = None
    progress: dict | None = None
    max_dets: int = MAX_DETS
    limits: Sequence[Limit] = ()
    per_image: int | None = None


class Report(NamedTuple):
    """What was written: path, bytes, how many images can be looked at, how many there are, which can't be read."""

    path: Path
    size: int
    drawn: int
    images: int
    unreadable: list[str]


def write_report(folder: Path, evaluated: Evaluated, images: int = IMAGES, strict: bool = False) -> Report:
    """Writes report.html into `folder`.

    images: how many can be looked at, at most; strict: one that can't be read raises its InputError.
    """
    source, stats, results, data_set, image_ids, progress, max_dets, limits, per_image = evaluated
    iou_type = list(stats)[-1]
    truth = data_set.ground_truth(unmasked=iou_type == "bbox")
    given_names = list(category_names(truth["categories"]).values())
    names = list(map(visible, given_names))
    matches = match(truth, results, iou_type, image_ids, max_dets)
    kinds, best = kinds_of(matches), best_of_all(matches)
    least_score, why = score_to_show(matches, best, SCORE)
    each = [curves_at(matches, t) for t in range(len(IOU_THRESHOLDS))]  # [T][C, 101]
    objects = np.bincount(matches.object_category[~matches.crowd], minlength=len(names))
    found = np.bincount(matches.category, minlength=len(names))
    cost, matrix = costs(matches), confusion_matrix(matches, least_score)
    areas = np.array([truth["annotations"][i]["area"] for i in matches.annotation.tolist()])
    gallery = make_gallery(Shown(matches, kinds, least_score), truth, results, data_set, images, strict)
    known, left_out = objects > 0, int(matches.ignored[0].sum())
    strange = int(((matches.score < 0) | (matches.score > 1)).sum())
    means = {f"IoU {IOU_THRESHOLDS[t]:.2f}": each[t][known].mean(axis=0) for t in (0, 5, 9)} if known.any() else {}
    advice = [
        *raise_limit(matches, max_dets),
        *(train_on(progress or {}) if known.any() else ()),
        *advise(matches, cost, matrix, least_score, names, areas, per_image),
    ]
    parts = [
        sections.advice_section(advice, stats[iou_type].stats[1] if known.any() else None),
        sections.numbers_section(stats, max_dets),
        sections.errors_section(cost, least_score, left_out, int(matches.cut.sum()), empty_masks(matches, results)),
        sections.images_section(gallery, names, least_score, why),
        sections.classes_section(
            names,
            objects.tolist(),
            found.tolist(),
            np.mean(each, axis=(0, 2)),
            [stats[iou_type].per_class[name] for name in given_names],
            best_of_classes(matches),
        ),
        sections.curves_section(means, names, each[0], int(objects.argmax())),
        sections.confusion_section(matrix, names, least_score),
        sections.groups_section(stats, iou_type, by_size(matches, kinds, areas), by_crowding(matches)),
        sections.calibration_section(*calibration(matches), left_out, strange),
    ]
    shapes, (ap, ap50) = IOU_TYPES[iou_type], map(sections.value, stats[iou_type].stats[:2])
    lead = joined(
        tag("p", f"{source}, on {data_set.describe()}"),
        tag("p", f"AP of {shapes}: ", tag("b", ap), ", at IoU 0.5: ", tag("b", ap50)),
        note(
            f"{counted(len(results), 'detection')} in {counted(len(matches.image_ids), 'image')}. "
            f"IoU below is that of {shapes}; AP, crowds and the limit of {max_dets} detections of a class in an image "
            "are as in COCO." + ("" if max_dets == MAX_DETS else f" COCO's own limit is {MAX_DETS}.")
        ),
        *(tag("p", limit.line, class_="warn") for limit in limits),
        sections.data_block(gallery, names, each[0]),
    )
    script, style = ((Path(__file__).parent / f"report.{kind}").read_text(encoding="utf-8") for kind in ("js", "css"))
    path = folder / "report.html"
    size = write_page(path, page("Mistakes", lead, parts, script, style))
    drawn = sum(drawing is not None for drawing in gallery.drawings)
    return Report(path, size, drawn, gallery.total, gallery.unreadable)
