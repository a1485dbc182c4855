"""Detections -> COCO results -> the 12 COCO numbers and each category's AP, as pycocotools computes them.

D detections of one image. Boxes are x1 y1 x2 y2 in the model's detections and x y w h in COCO json.
"""

import contextlib
import io
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pycocotools import mask as coco_mask

from backbone.errors import InputError
from network_files.operators.cropped_masks import CroppedMasks
from network_files.operators.instance_masks import encode_cropped, encode_masks
from train_utils.data.labels import LabelMap
from train_utils.evaluation.boundary import BOUNDARY
from train_utils.evaluation.evaluators import PYCOCOTOOLS, accumulate, choose_evaluator, versions_with
from train_utils.evaluation.limits import MAX_DETS
from train_utils.io import files

IOU_TYPES = {"bbox": "boxes", "segm": "masks", BOUNDARY: "borders of masks"}  # IoU type -> the word for it
# In the order of COCOeval.summarize: AP at IoU 0.50:0.95, 0.50, 0.75, by area; recall by detections, by area.
STAT_NAMES = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")


@dataclass(frozen=True)
class IouTypeResult:
    """One IoU type's evaluation."""

    stats: list[float]  # STAT_NAMES' 12 numbers, -1 without such ground truth
    lines: list[str]  # pycocotools' 12 lines of text
    per_class: dict[str, float | None]  # category name -> AP at IoU 0.5, None without ground truth
    evaluator: str  # whose code matched detections with ground truth


def to_coco_results(
    detections: Sequence[dict],
    image_ids: Sequence[int],
    sizes: Sequence[tuple[int, int]],
    label_map: LabelMap,
    geometry: str,
    mask_threshold: float = 0.5,
    pasted: Sequence[CroppedMasks] | None = None,
) -> list[dict]:
    """Returns COCO result dicts (image_id, category_id, bbox, segmentation as RLE, score) of some images' detections.

    detections: per image boxes [D, 4], labels [D], scores [D], mask_probs [D, m, m] (or masks: CroppedMasks), as
    `model(images, paste_masks=False)` returns them, on any device (masks are pasted there); sizes: the images' (H, W);
    geometry: the model's. A mask's pixels are those with a probability above mask_threshold; pasted: the images' masks,
    where they are pasted already. Scores and boxes keep every digit; categories get the data's own ids.
    """
    labels = set(label_map.labels())  # a label in a gap of COCO's 1..90 stays as it is: it has no category
    results = []
    masks_of = pasted or [None] * len(detections)
    for detection, image_id, (height, width), cropped in zip(detections, image_ids, sizes, masks_of, strict=True):
        boxes = detection["boxes"].detach().double().cpu()  # [D, 4]
        corners, extents = boxes[:, :2], boxes[:, 2:] - boxes[:, :2]  # [D, 2] each
        cropped = detection.get("masks") if cropped is None else cropped  # of tiles
        if cropped is None:
            where = detection["boxes"], (height, width), geometry, mask_threshold
            masks = encode_masks(detection["mask_probs"], *where)
        else:
            masks = encode_cropped(cropped)
        for corner, extent, label, score, mask in zip(
            corners.tolist(),
            extents.tolist(),
            detection["labels"].tolist(),
            detection["scores"].tolist(),
            masks,
            strict=True,
        ):
            results.append(
                {
                    "image_id": image_id,
                    "category_id": label_map.to_category(label) if label in labels else label,
                    "bbox": corner + extent,
                    "segmentation": mask,
                    "score": score,
                }
            )
    return results


def evaluate_results(
    ground_truth: dict,
    results: Sequence[dict],
    iou_types: Sequence[str] = ("bbox", "segm"),
    image_ids: Sequence[int] | None = None,
    evaluator: str | None = None,
    max_dets: int = MAX_DETS,
) -> dict[str, IouTypeResult]:
    """Evaluates COCO results (from `to_coco_results`, or a detections file) against COCO ground truth.

    image_ids: evaluate only these images (default: all of the ground truth); evaluator: see `choose_evaluator`, the
    numbers are the same; max_dets: of a class in an image, in place of the 100 of AP and AR100.

    No results give AP 0. Results without a bbox have the box and, for boxes too, the area of their mask. Ground truth
    without a segmentation counts for boxes alone. Prints nothing and changes no argument. Raises InputError for results
    of images that the ground truth lacks.
    """
    known = {image["id"] for image in ground_truth["images"]}
    strange = next((r["image_id"] for r in results if r["image_id"] not in known), None)
    if strange is not None:
        raise InputError(f"results: image_id {strange} is not in the ground truth; give results of the same images")
    of_type = {t: choose_evaluator(evaluator, t) for t in iou_types}
    return {t: _evaluate(ground_truth, results, t, image_ids, of_type[t], max_dets) for t in iou_types}


def _evaluate(
    ground_truth: dict,
    results: Sequence[dict],
    iou_type: str,
    image_ids: Sequence[int] | None,
    evaluator: str,
    max_dets: int,
) -> IouTypeResult:
    usable = [a for a in ground_truth["annotations"] if iou_type == "bbox" or a.get("segmentation")]
    truth = {**ground_truth, "annotations": _numbered(usable)}
    evaluation = accumulate(evaluator, truth, _as_annotations(results, iou_type), iou_type, image_ids, max_dets)
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        evaluation.summarize()
    return IouTypeResult(
        stats=[float(value) for value in evaluation.stats],
        lines=printed.getvalue().replace(f"maxDets={MAX_DETS}", f"maxDets={max_dets:>3}").splitlines(),
        per_class=_average_precision_50(ground_truth["categories"], evaluation.eval["precision"]),
        evaluator=evaluator,
    )


def _numbered(annotations: Sequence[dict]) -> list[dict]:
    """Returns copies (evaluators write into them) with ids 1..N: to them an id of 0 is no match, equal ids are one."""
    return [{"iscrowd": 0, **annotation, "id": i} for i, annotation in enumerate(annotations, start=1)]


def _as_annotations(results: Sequence[dict], iou_type: str) -> list[dict]:
    """Returns what pycocotools' loadRes makes of results, as far as this IoU type reads it.

    Half a million results are common, so nothing else is made. The area is the mask's for masks, and for boxes where
    there is only a mask; else the box's.
    """
    key = "bbox" if iou_type == "bbox" else "segmentation"
    annotations = []
    for i, result in enumerate(results, start=1):
        shape = result[key] if key in result else coco_mask.toBbox(result["segmentation"]).tolist()
        by_mask = key == "segmentation" or key not in result
        annotations.append(
            {
                "id": i,
                "image_id": result["image_id"],
                "category_id": result["category_id"],
                "score": result["score"],
                key: shape,
                "area": coco_mask.area(result["segmentation"]) if by_mask else shape[2] * shape[3],
                "iscrowd": 0,
            }
        )
    return annotations


def _average_precision_50(categories: Sequence[dict], precision: np.ndarray) -> dict[str, float | None]:
    """Returns {category name: AP at IoU 0.5 over all areas with 100 detections}; None without ground truth.

    precision: IoU thresholds x 101 recall thresholds x categories by id x areas x detection limits.
    """
    per_class = {}
    for index, name in enumerate(category_names(categories).values()):
        values = precision[0, :, index, 0, -1]  # [101]
        present = values[values > -1]
        per_class[name] = float(np.mean(present)) if present.size else None
    return per_class


def category_names(categories: Sequence[dict]) -> dict[int, str]:
    """Returns {category id: name} in order of ids; a name that several have gets the id behind it."""
    names = {category["id"]: category["name"] for category in sorted(categories, key=lambda c: c["id"])}
    counts = Counter(names.values())
    return {i: f"{name} ({i})" if counts[name] > 1 else name for i, name in names.items()}


def format_record(results: dict[str, IouTypeResult]) -> str:
    """Returns the text of record_mAP.txt: per IoU type the 12 lines, then each category's AP at IoU 0.5."""
    blocks = []
    for iou_type, result in results.items():
        by = "" if result.evaluator == PYCOCOTOOLS else f" (by {result.evaluator})"
        lines = [f"IoU type: {iou_type}{by}", "COCO results:", *result.lines, ""]
        lines.append("mAP(IoU=0.5) for each category:")
        for name, value in result.per_class.items():
            lines.append(f" {name:15}: {'n/a' if value is None else format(value, '.4f')}")
        blocks.append("\n".join(lines))
    return "\n\n".join(blocks) + "\n"


def write_record(folder: str | Path, results: dict[str, IouTypeResult], about: dict | None = None) -> list[Path]:
    """Writes record_mAP.txt and, for programs, record_mAP.json into `folder`; returns both paths.

    The json holds per IoU type "stats" (STAT_NAMES -> numbers, -1 = absent) and "per_class" (category name -> AP at
    IoU 0.5, null without ground truth), both unrounded, and "evaluator", whose code matched; and "about":
    the versions of torch, numpy, Pillow and the evaluator, and `about`, plain values on what the numbers are about.
    """
    folder = files.make_folder(folder)
    record = {
        iou_type: {
            "stats": dict(zip(STAT_NAMES, result.stats, strict=True)),
            "per_class": result.per_class,
            "evaluator": result.evaluator,
        }
        for iou_type, result in results.items()
    }
    evaluator = next(iter(results.values())).evaluator
    record["about"] = {**(about or {}), "versions": versions_with(evaluator)}
    text_path, json_path = folder / "record_mAP.txt", folder / "record_mAP.json"
    files.write_text(text_path, format_record(results))
    files.write_text(json_path, json.dumps(record, indent=1))
    return [text_path, json_path]


def write_results(path: str | Path, results: Sequence[dict]) -> None:
    """Writes a detections file: COCO results json, every digit kept."""
    files.make_folder(Path(path).parent)
    files.write_text(path, json.dumps(list(results)))
