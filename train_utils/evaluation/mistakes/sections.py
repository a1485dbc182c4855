"""Builds the sections of the report: numbers as tables and plots without a script, and the images, which need one."""

import math
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from train_utils.evaluation.mistakes.advice import WORTH
from train_utils.evaluation.mistakes.average_precision import RECALLS
from train_utils.evaluation.mistakes.confusion import most_confused
from train_utils.evaluation.mistakes.crowding import Crowding
from train_utils.evaluation.mistakes.errors import KINDS
from train_utils.evaluation.mistakes.gallery import ASIDE, FINE, UNITS, Gallery
from train_utils.evaluation.mistakes.matching import BACKGROUND, FOREGROUND
from train_utils.evaluation.mistakes.scores import Best, Bin
from train_utils.evaluation.numbers import IOU_TYPES, STAT_NAMES, IouTypeResult
from train_utils.io.plain_text import counted
from train_utils.show.pages import Html, Section, figure, joined, json_block, note, section, table, tag
from train_utils.show.pages.plots import Axes, bars, curves

HERE = Path(__file__).parent
PAIRS = 10  # of classes, that are most often confused
WHOLE_MATRIX, PART_OF_MATRIX = 100, 60  # most classes that the matrix shows all of; how many it shows of more
STATS = {
    "AP": "AP at IoU 0.50 to 0.95",
    "AP50": "AP at IoU 0.50",
    "AP75": "AP at IoU 0.75",
    "APs": "AP, small objects (below 32 x 32 pixels)",
    "APm": "AP, medium objects",
    "APl": "AP, large objects (96 x 96 pixels and more)",
    "AR1": "AR with 1 detection of a class in an image",
    "AR10": "AR with 10",
    "AR100": "AR with {most}",
    "ARs": "AR, small objects",
    "ARm": "AR, medium objects",
    "ARl": "AR, large objects",
}
EXPLAINED = {
    "class": f"IoU of {FOREGROUND} or more with an object of another class",
    "location": f"IoU of {BACKGROUND} to {FOREGROUND} with an object of its class",
    "both": f"IoU of {BACKGROUND} to {FOREGROUND} with an object of another class",
    "duplicate": "on an object that a better detection has",
    "background": f"IoU below {BACKGROUND} with all objects",
    "missed": "an object on which no detection lies, not even one of another class or in a wrong place",
    "false positives": "all wrong detections together",
    "false negatives": "all objects that no detection matches",
}
PLAIN = {
    "class": "wrong class",
    "location": "wrong place",
    "both": "wrong class and wrong place",
    "duplicate": "found once more",
    "background": "nothing is there",
    "missed": "not found",
}


def value(number: float | None, form: str = ".4f") -> Html:
    """Returns a number as people read it, with every digit in the markup; n/a for None, NaN and COCO's -1."""
    absent = number is None or math.isnan(number) or number == -1
    exact = "" if number is None or math.isnan(number) else repr(float(number))
    return tag("data", "n/a" if absent else format(number, form), value=exact)


def numbers_section(stats: dict[str, IouTypeResult], max_dets: int) -> Section:
    """Shows the 12 COCO numbers of each IoU type; max_dets: detections of a class in an image that count."""
    said = {name: text.format(most=max_dets) for name, text in STATS.items()}
    rows = [
        [tag("abbr", name, title=said[name]), said[name], *(value(result.stats[i]) for result in stats.values())]
        for i, name in enumerate(STAT_NAMES)
    ]
    head = ["", "", *(IOU_TYPES[iou_type] for iou_type in stats)]
    return section(
        "numbers",
        "COCO numbers",
        table(head, rows, id="stats"),
        note(
            "COCO's AP, as in record_mAP.txt and record_mAP.json: classes without objects are left out of the mean, "
            "where TIDE's own program counts them as 0. n/a: there is no such object."
        ),
        note(
            "Masks have the area of the mask, boxes that of the box, as torchvision and Detectron2 evaluate. "
            "pycocotools by hand gives masks of a file that has boxes too the box's area: other numbers by size."
        ),
    )


def advice_section(lines: Sequence[str], ap50: float | None) -> Section:
    """Shows the lines of advice; ap50: None where there is no object to find."""
    if ap50 is None:
        none = "These images hold no object to find: there is no AP, and no mistake has a cost."
    elif 1 - ap50 < WORTH:
        none = f"No kind of mistake costs {WORTH} AP (at IoU 0.5) or more: nothing stands out."
    else:
        none = (
            f"AP at IoU 0.5 is {ap50:.3f}, and no kind of mistake costs {WORTH} or more by itself: one hides another, "
            "as where a model has learnt little yet. Train longer first (--epochs); the images show what it finds."
        )
    listed = tag("ul", *(tag("li", _with_flags(line)) for line in lines)) if lines else tag("p", *_flags(none))
    about = note(
        f"A line for each kind of mistake that costs {WORTH} AP or more, at most four. Where no score is "
        "named, all detections count."
    )
    return section("advice", "Advice", listed, about if lines else "")


def _with_flags(text: str) -> Html:
    """Returns the text with what comes before its first bracket in bold, and flags as code."""
    kind, bracket, rest = text.partition(" (")
    return joined(tag("b", kind), *_flags(bracket + rest))


def _flags(text: str) -> list[Html | str]:
    """Returns the parts of a text, flags as code."""
    parts = re.split("(--[a-z-]+)", text)
    return [tag("code", part) if part.startswith("--") else part for part in parts]


def in_crowds(left_out: int) -> Html | str:
    """Returns a line on the detections inside crowd regions, where there are any."""
    some = f"{left_out:,} detections inside crowd regions are"
    which = "1 detection inside a crowd region is" if left_out == 1 else some
    return note(f"{which} left out: neither right nor wrong.") if left_out else ""


def errors_section(
    costs: dict[str, tuple[int, float]], least_score: float, left_out: int, cut: int, empty: int
) -> Section:
    """Shows each kind of mistake and its cost.

    least_score: of the detections that the sections of images and confusion count; left_out: inside crowds; cut:
    objects that only detections beyond the limit lie on; empty: detections whose mask has no pixel.
    """
    rows = [[name, EXPLAINED[name], f"{count:,}", value(cost)] for name, (count, cost) in costs.items()]
    shown = [0.0 if math.isnan(costs[kind][1]) else round(costs[kind][1], 4) for kind in KINDS]
    return section(
        "errors",
        "Costs",
        figure(
            bars(shown, KINDS, "kind of mistake", "AP (IoU 0.5) lost"),
            "How far COCO's AP at IoU 0.5 would rise if this kind alone were corrected (the kinds are those of TIDE, "
            "Bolya et al. 2020, whose own AP counts classes without objects as 0). The "
            "costs do not add up: one mistake hides another.",
        ),
        table(["kind", "what it is", "how many", "cost"], rows, id="costs"),
        note(
            "All detections count here, whatever their score. Images and Confusion count those with a score of "
            f"{least_score:.3f} or more: there more objects may be missed, and fewer detections wrong."
        ),
        in_crowds(left_out),
        note(
            f"{counted(empty, 'detection')} of the kind background: an empty mask, without a pixel above the "
            "threshold. The model found a box there, but no shape in it."
        )
        if empty
        else "",
        note(f"Not called missed: {counted(cut, 'object')} that only detections beyond the limit lie on.")
        if cut
        else "",
    )


def classes_section(
    names: list[str],
    objects: list[int],
    found: list[int],
    ap: np.ndarray,
    ap50: Sequence[float | None],
    best: Sequence[Best | None],
) -> Section:
    """Shows a row of numbers for each class."""
    rows = []
    for i, name in enumerate(names):
        of_best = (best[i].precision, best[i].recall, best[i].f1, best[i].score) if best[i] else (None,) * 4
        counts = f"{objects[i]:,}", f"{found[i]:,}"
        rows.append([name, *counts, value(ap[i]), value(ap50[i]), *(value(number, ".3f") for number in of_best)])
    head = ["class", "objects", "detections", "AP", "AP50", "precision", "recall", "F1", "at score"]
    about = (
        "Precision, recall and F1 are at IoU 0.5, of the detections whose score is at least the one in the last "
        "column: that at which the class's F1 is highest. Click a heading to sort."
    )
    return section("classes", "Classes", table(head, rows, id="per-class", data_sortable=True), note(about))


def curves_section(means: dict[str, np.ndarray], names: list[str], each: np.ndarray, first: int) -> Section:
    """Shows precision over recall, and draws the curve of class `first`; the script draws that of another.

    means: name -> precision at RECALLS over all classes; each: of the classes at IoU 0.5, [C, 101].
    """
    ranges, heading = {"x_range": (0, 1), "y_range": (0, 1)}, "Precision and recall"
    if np.isnan(each[first]).any():
        return section("curves", heading, tag("p", "There is no object to find, so there is no curve."))
    recalls = RECALLS.tolist()
    mean = curves({name: (recalls, curve.tolist()) for name, curve in means.items()}, "recall", "precision", **ranges)
    own = curves({names[first]: (recalls, each[first].tolist())}, "recall", "precision", **ranges)
    options = [tag("option", name, value=i, selected=i == first) for i, name in enumerate(names)]
    axes = Axes((0, 1), (0, 1), "", "")
    corners = " ".join(map(str, (axes.x(0), axes.x(1), axes.y(0), axes.y(1))))
    mean = figure(mean, "The mean over the classes, at three IoU thresholds.")
    own = figure(own, tag("span", names[first], ", at IoU 0.5.", id="curve-said"))
    choice = tag("label", "Class ", tag("select", *options, id="curve-class"))
    own = tag("div", own, tag("p", choice, hidden=True, data_script=True), id="curve", data_corners=corners)
    return section("curves", heading, tag("div", mean, own, class_="plots"))


def confusion_section(matrix: np.ndarray, names: list[str], least_score: float) -> Section:
    """Shows the confusion matrix, of many classes those with most mistakes, and the commonest mix-ups."""
    classes = len(names)
    chosen = list(range(classes))
    if classes > WHOLE_MATRIX:
        wrong = matrix.sum(axis=0) + matrix.sum(axis=1) - 2 * matrix.diagonal()
        chosen = sorted(np.argsort(-wrong[:classes], kind="stable")[:PART_OF_MATRIX].tolist())
    rows = [*chosen, classes]
    labels = [*(names[i] for i in chosen), "background"]
    part = f" These are the {len(chosen)} of {classes:,} classes with most mistakes." if len(chosen) < classes else ""
    body = []
    for i, label in zip(rows, labels, strict=True):
        total = max(int(matrix[i].sum()), 1)
        cells = [
            tag("td", f"{count:,}", class_="number", style=f"--share:{count / total:.2f}")
            if count
            else tag("td", class_="number")
            for count in matrix[i, rows].tolist()
        ]
        body.append(tag("tr", tag("th", label, scope="row", title=label), *cells))
    columns = [tag("th", tag("span", label), scope="col", title=label) for label in labels]
    head = tag("thead", tag("tr", tag("th", "is, detected as", scope="col"), *columns))
    whole = tag("table", head, tag("tbody", *body), id="confusion-matrix")
    pairs = [[names[i], names[j], f"{times:,}"] for i, j, times in most_confused(matrix, matrix.size)]
    more = f"{len(pairs) - PAIRS:,} other pairs are not listed." if len(pairs) > PAIRS else ""
    return section(
        "confusion",
        "Confusion",
        tag(
            "p",
            f"Detections with a score of {least_score:.3f} or more, best first and whatever their class, take the "
            f"free object that they cover best, from IoU {FOREGROUND} on. A row holds the objects of a class, and "
            "last the detections that lie on no object; a column holds what was detected as a class, and last "
            "the objects that none of these detected. The stronger the colour, the greater its part of a "
            f"row.{part}",
        ),
        tag("div", whole, class_="scroll", tabindex="0", role="region", aria_label="confusion matrix"),
        joined(tag("h3", "Most often confused"), table(["is", "detected as", "times"], pairs[:PAIRS])) if pairs else "",
        note(more) if more else "",
    )


def groups_section(
    stats: dict[str, IouTypeResult], iou_type: str, sizes: Sequence[tuple[int, int, int]], crowding: Sequence[Crowding]
) -> Section:
    """Shows AP by the size and by the number of objects.

    sizes: how many small, medium and large objects there are, how many are found, and how many missed.
    """
    ap = dict(zip(STAT_NAMES, stats[iou_type].stats, strict=True))
    named = [
        ["small", "below 32 x 32 pixels", "APs"],
        ["medium", "", "APm"],
        ["large", "from 96 x 96 pixels on", "APl"],
    ]
    by_size = [
        [name, said, *(f"{count:,}" for count in counts), value(ap[own])]
        for (name, said, own), counts in zip(named, sizes, strict=True)
    ]
    by_count = [
        [group.label, f"{group.images:,}", f"{group.objects:,}", value(group.ap), value(group.ap50)]
        for group in crowding
    ]
    return section(
        "groups",
        "Size and crowding",
        tag("h3", "AP by the size of the objects"),
        table(["size", "", "objects", "found", "missed", "AP"], by_size, id="by-size"),
        note(
            f"Found: matched by a detection of its class at IoU {FOREGROUND}, whatever its score. Missed is the kind "
            "above; objects that are neither are found in a wrong place, as another class "
            "or beyond the limit."
        ),
        tag("h3", "AP by the number of objects in the image"),
        table(["an image has", "images", "objects", "AP", "AP50"], by_count, id="by-crowding"),
        note("Each row is an evaluation of these images alone. A few images say little."),
    )


def calibration_section(bins: Sequence[Bin], error: float, left_out: int, strange: int) -> Section:
    """Shows the share of detections that are right, by score.

    left_out: detections inside crowds; strange: detections with scores outside 0 to 1.
    """
    filled = [b for b in bins if b.count]
    heading = "Calibration"
    if not filled:
        return section("calibration", heading, tag("p", "There is no detection."), in_crowds(left_out))
    line = {"detections": ([b.score for b in filled], [b.precision for b in filled])}
    rows = [
        [f"{b.low:.1f} to {b.high:.1f}", f"{b.count:,}", value(b.score, ".3f"), value(b.precision, ".3f")] for b in bins
    ]
    return section(
        "calibration",
        heading,
        figure(
            curves(line, "score", "precision", (0, 1), (0, 1), diagonal=True),
            tag(
                "span",
                "The share of detections that are right, by score. On the broken line a score of 0.7 is "
                "right seven times in ten; below it scores are too high. Expected calibration error: ",
                value(error, ".3f"),
                ".",
            ),
        ),
        table(["score", "detections", "mean score", "right (IoU 0.5)"], rows, id="bins"),
        note(f"{strange:,} scores outside 0 to 1 are in the first or last row.") if strange else "",
        in_crowds(left_out),
    )


def images_section(gallery: Gallery, names: list[str], least_score: float, reason: str) -> Section:
    """Shows the frame that the script fills with images.

    reason: why it is this score; "" where there is no detection, or no object.
    """
    drawn = sum(drawing is not None for drawing in gallery.drawings)
    why = f": {reason}" if reason else ""
    text = [
        f"Shown and counted are detections with a score of {least_score:.3f} or more{why}. On the left of each "
        "pair is what is annotated, on the right what is detected. "
    ]
    if drawn == gallery.total > 1:
        text.append(f"All {drawn:,} images can be looked at. ")
    elif drawn < gallery.total:
        text += [
            f"{drawn:,} of the {gallery.total:,} images, those with most mistakes, can be looked at; ",
            tag("code", "--report-images"),
            " gives more or fewer. ",
        ]
    if len(gallery.rows) < gallery.total:
        text.append(f"{gallery.total - len(gallery.rows):,} with fewest mistakes are not listed. ")
    if gallery.unreadable:
        text.append(f"{len(gallery.unreadable):,} could not be read, the first: {gallery.unreadable[0]}")
    kinds = [tag("option", kind, value=i, title=EXPLAINED[kind]) for i, kind in enumerate(KINDS)]
    classes = [tag("option", name, value=i) for i, name in enumerate(names)]
    sorts = {
        "mistakes": "most mistakes",
        "f1": "lowest F1",
        "missed": "most objects missed",
        "false": "most false detections",
        "objects": "most objects",
        "name": "file name",
    }
    controls = [
        tag("label", "Kind ", tag("select", tag("option", "all", value=""), *kinds, id="by-kind")),
        tag("label", "Class ", tag("select", tag("option", "all", value=""), *classes, id="by-class")),
        tag("label", "Sort ", tag("select", *(tag("option", name, value=key) for key, name in sorts.items()), id="by")),
    ]
    marks = [(i, joined(tag("b", kind), f": {PLAIN[kind]}"), EXPLAINED[kind]) for i, kind in enumerate(KINDS)]
    marks = [(FINE, "right", None), *marks, (ASIDE, "crowd, or inside one; found beyond the limit", None)]
    legend = [tag("li", tag("i", class_=f"k{i}"), name, title=title) for i, name, title in marks]
    count = tag("output", aria_live="polite", id="count")
    return section(
        "images",
        "Images",
        tag("p", *text),
        tag("noscript", tag("p", "This part needs JavaScript: the images are drawn by the page itself.")),
        tag("div", *controls, count, class_="controls", hidden=True, data_script=True),
        tag("ul", *legend, class_="legend"),
        tag("ol", id="gallery"),
        tag("p", tag("button", "Show more", type="button", id="more", hidden=True)),
        Html((HERE / "dialog.html").read_text(encoding="utf-8")),
    )


def data_block(gallery: Gallery, names: list[str], each: np.ndarray) -> Html:
    """Returns what report.js reads."""
    thousandths = [None if np.isnan(curve).any() else np.rint(curve * 1000).astype(int).tolist() for curve in each]
    images = {"units": UNITS, "rows": gallery.rows, "drawings": gallery.drawings}
    return json_block("data", {"kinds": KINDS, "classes": names, "curves": thousandths, **images})
