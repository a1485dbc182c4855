"""A report -> check_data.json, every find for programs, and check_data.html, a page to look at."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tools.doctor import duplicates, page
from tools.doctor.duplicates import Double
from tools.doctor.finds import SEVERITIES
from tools.doctor.report.found import Report
from tools.doctor.report.summary import data_lines, sizing_flags, what_is_left
from tools.doctor.report.training import advise
from tools.doctor.statistics import MaskReach
from train_utils.data.objects.anchors import Reach
from train_utils.io.files import folder_to_write, write_text
from train_utils.show.pages import Html, Section, write_page


def write(report: Report, folder: Path) -> list[str]:
    """Writes the page and the json; returns the lines of advice, which end both.

    The images of the contact sheet are read here, and may be finds.
    """
    folder_to_write(folder)
    options = report.options
    shown = options.samples, options.seed, report.of_images, options.augmentation
    sheet, seconds = page.contact_sheet(report.shown, *shown)
    left, advice = what_is_left(report, seconds), advise(report)
    lead = page.summary([*data_lines(report), left, *advice], report.verdict, report.finds)
    title = f"{report.opened.path.resolve().name}: the data, checked"
    write_page(folder / "check_data.html", page.whole_page(title, lead, sections(report, sheet)))
    content = json.dumps(to_dict(report, advice), indent=1, allow_nan=False)
    write_text(folder / "check_data.json", content + "\n")
    return advice


def sections(report: Report, sheet: Html) -> list[Section]:
    """Returns the sections of the page; sheet: of images."""
    found = [page.finds_section(report.finds)]
    if report.splits and report.options.samples:
        title = "Samples, as training gets them" if report.tables else "Some of the images"
        found.append(page.section("sheet", title, sheet))
    if report.tables:
        found.append(page.classes_section(report.classes))
        found.append(page.histograms_section(report.histograms, report.sizes))
    if report.values:
        found.append(page.values_section(*report.values[:3]))
    if report.reach:
        sizing_of = f"after resizing with {sizing_flags(report.config)} ({report.assumed}), or as a row says"
        others = [each for each in report.choices[1:] if each.reach and each.config != report.config]
        found.append(page.anchors_section(report.reach, sizing_of, others))
        if report.masks:
            found.append(page.masks_section(report.masks))
    if report.full and report.splits:
        found.append(page.doubles_section(report.doubles, report.splits))
    return found


def to_dict(report: Report, advice: list[str]) -> dict[str, Any]:
    """Returns the content of check_data.json."""
    return {
        "data": str(report.opened.path),
        "layout": report.opened.layout,
        "error": report.verdict,
        "full_pass": report.full,
        "counts": {severity: report.finds.total(severity) for severity in SEVERITIES},
        "splits": {
            split: {
                "source": str(table.data_set.source),
                "images": len(table.sizes),
                "objects": int(table.counts().sum()),
                "crowd_regions": int(table.crowd.sum()),
            }
            for split, table in report.tables.items()
        },
        "classes": report.classes,
        "histograms": report.histograms,
        "image_sizes": report.sizes,
        "values": report.values._asdict() if report.values else None,
        "anchors": [_of_anchors(reach) for reach in report.reach],
        "masks": [_of_masks(reach) for reach in report.masks],
        "doubles": [_of_double(double, report) for double in report.doubles],
        "advice": advice,
        "finds": report.finds.to_list(),
    }


def _of_anchors(reach: Reach) -> dict[str, Any]:
    shares = {f"share_at_{iou}": reach.share(iou) for iou in (0.5, 0.7)}
    return {"anchor_sizes": list(reach.sizes), "aspect_ratios": list(reach.ratios), **shares}


def _of_masks(reach: MaskReach) -> dict[str, Any]:
    return {
        "geometry": reach.geometry,
        "mask_roi_size": reach.roi_size,
        "objects": len(reach.ious),
        "mean_iou": float(reach.ious.mean()),
        **{f"share_above_{iou}": reach.share(iou) for iou in (0.5, 0.9)},
    }


def _of_double(double: Double, report: Report) -> dict[str, Any]:
    return {
        "first": duplicates.path_of(report.splits, double.first),
        "same_pixels": double.same,
        "second": duplicates.path_of(report.splits, double.second),
        "correlation": round(double.correlation, 4),
    }
