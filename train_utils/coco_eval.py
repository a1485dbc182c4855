"""Detections -> COCO results -> the 12 COCO numbers and each category's AP, by pycocotools.

D detections of one image. Boxes are x1 y1 x2 y2 in the model's detections and x y w h in COCO json.
"""

import contextlib
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from network_files.instance_masks import encode_masks
from train_utils import files

# In the order of COCOeval.summarize: AP at IoU 0.50:0.95, 0.50, 0.75, by area; recall by detections, by area.
STAT_NAMES = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")


@dataclass(frozen=True)
class IouTypeResult:
    """One IoU type's evaluation.

    stats: STAT_NAMES' 12 numbers, -1 without such ground truth; lines: pycocotools' 12 lines of text;
    per_class: category name -> AP at IoU 0.5, None for one without ground truth.
    """

    stats: list[float]
    lines: list[str]
    per_class: dict[str, float | None]


def to_coco_results(
    detections: Sequence[dict],
    image_ids: Sequence[int],
    sizes: Sequence[tuple[int, int]],
    label_map,
    mask_threshold: float = 0.5,
) -> list[dict]:
    """COCO result dicts (image_id, category_id, bbox, segmentation as RLE, score) of some images' detections.

    detections: per image boxes [D, 4], labels [D], scores [D], mask_probs [D, m, m], as
    `model(images, paste_masks=False)` returns them; sizes: the images' (H, W); a mask's pixels are those with
    a probability above mask_threshold. Scores and boxes keep every digit; categories get the data's own ids.
    """
    labels = set(label_map.labels())  # a label in a gap of COCO's 1..90 stays as it is: no category bears it
    results = []
    for detection, image_id, (height, width) in zip(detections, image_ids, sizes, strict=True):
        boxes = detection["boxes"].detach().double().cpu()  # [D, 4]
        corners, extents = boxes[:, :2], boxes[:, 2:] - boxes[:, :2]  # [D, 2] each
        masks = encode_masks(detection["mask_probs"], detection["boxes"], (height, width), mask_threshold)
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
) -> dict[str, IouTypeResult]:
    """Evaluates COCO results (from `to_coco_results`, or a detections file) against COCO ground truth.

    image_ids restricts the evaluation to these images (default: all of the ground truth). No results give
    AP 0. Nothing is printed, and no argument is changed.
    """
    evaluated = {}
    for iou_type in iou_types:
        with contextlib.redirect_stdout(io.StringIO()):
            truth = _index({**ground_truth, "annotations": _numbered(ground_truth["annotations"])})
            evaluation = COCOeval(truth, _load_results(truth, results, iou_type), iou_type)
            if image_ids is not None:
                evaluation.params.imgIds = list(image_ids)
            evaluation.evaluate()
            evaluation.accumulate()
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            evaluation.summarize()
        evaluated[iou_type] = IouTypeResult(
            stats=[float(value) for value in evaluation.stats],
            lines=printed.getvalue().splitlines(),
            per_class=_average_precision_50(evaluation),
        )
    return evaluated


def _index(data_set: dict) -> COCO:
    coco = COCO()
    coco.dataset = data_set
    coco.createIndex()
    return coco


def _numbered(annotations: Sequence[dict]) -> list[dict]:
    """Copies (COCOeval writes into them) with ids 1..N: to it an id of 0 is no match, equal ids are one."""
    return [{"iscrowd": 0, **annotation, "id": i} for i, annotation in enumerate(annotations, start=1)]


def _load_results(truth: COCO, results: Sequence[dict], iou_type: str) -> COCO:
    if not results:  # loadRes looks at the first result to learn their kind
        return _index({**truth.dataset, "annotations": []})
    # loadRes takes areas from "bbox" where there is one; for masks the area is the mask's.
    unused = "bbox" if iou_type == "segm" else "segmentation"
    return truth.loadRes([{key: r[key] for key in r if key != unused} for r in results])


def _average_precision_50(evaluation: COCOeval) -> dict[str, float | None]:
    """Category name -> AP at IoU 0.5 over all areas with 100 detections; None without ground truth."""
    categories = evaluation.cocoGt.loadCats(evaluation.params.catIds)
    names = [category["name"] for category in categories]
    per_class = {}
    for index, (name, category) in enumerate(zip(names, categories, strict=True)):
        if names.count(name) > 1:
            name = f"{name} ({category['id']})"
        precision = evaluation.eval["precision"][0, :, index, 0, -1]  # [101] recall thresholds
        present = precision[precision > -1]
        per_class[name] = float(np.mean(present)) if present.size else None
    return per_class


def format_record(results: dict[str, IouTypeResult]) -> str:
    """The text of record_mAP.txt: per IoU type the 12 lines, then each category's AP at IoU 0.5."""
    blocks = []
    for iou_type, result in results.items():
        lines = [f"IoU type: {iou_type}", "COCO results:", *result.lines, ""]
        lines.append("mAP(IoU=0.5) for each category:")
        for name, value in result.per_class.items():
            lines.append(f" {name:15}: {'n/a' if value is None else format(value, '.4f')}")
        blocks.append("\n".join(lines))
    return "\n\n".join(blocks) + "\n"


def write_record(folder: str | Path, results: dict[str, IouTypeResult]) -> list[Path]:
    """Writes record_mAP.txt, and the same for programs, record_mAP.json, into `folder`; returns both paths.

    The json holds per IoU type "stats" (STAT_NAMES' names -> numbers, -1 = absent) and "per_class" (category
    name -> AP at IoU 0.5, null without ground truth), both unrounded.
    """
    folder = files.make_folder(folder)
    record = {
        iou_type: {
            "stats": dict(zip(STAT_NAMES, result.stats, strict=True)),
            "per_class": result.per_class,
        }
        for iou_type, result in results.items()
    }
    text_path, json_path = folder / "record_mAP.txt", folder / "record_mAP.json"
    files.write_text(text_path, format_record(results))
    files.write_text(json_path, json.dumps(record, indent=1))
    return [text_path, json_path]


def write_results(path: str | Path, results: Sequence[dict]) -> None:
    """Writes a detections file: COCO results json, every digit kept."""
    files.make_folder(Path(path).parent)
    files.write_text(path, json.dumps(list(results)))
