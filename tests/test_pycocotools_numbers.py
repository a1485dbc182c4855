"""Files as other programs write them -> the 24 numbers and each class's AP: pycocotools' own, over random cases."""

import contextlib
import functools
import importlib.util
import io
import json
from pathlib import Path

import numpy as np
import pytest
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from train_utils.data.dataset import ImageDataset
from train_utils.data.formats.coco.reading import read_annotations
from train_utils.evaluation.detections_file import read_detections
from train_utils.evaluation.evaluators import FASTER, PYCOCOTOOLS
from train_utils.evaluation.numbers import evaluate_results

CASES, AT_ONCE = 320, 20
ID_FORMS = (int, str, "image {}".format, lambda i: i * 2**40, "{:03d}".format)
RESULT_FORMS = ("boxes", "masks", "both", "polygons")


def polygon(rng: np.random.Generator, box: list[float]) -> list[float]:
    """A quadrilateral within a box x y w h, now and then the box itself."""
    x, y, w, h = box
    if rng.random() < 0.3:
        return [x, y, x + w, y, x + w, y + h, x, y + h]
    a, b, c, d = rng.uniform(0.2, 0.8, 4)
    return [round(float(v), 2) for v in (x + a * w, y, x + w, y + b * h, x + c * w, y + h, x, y + d * h)]


def rle(rng: np.random.Generator, parts: list[list[float]], size: list[int]) -> dict:
    """Polygons as RLE, compressed or as runs."""
    compressed = coco_mask.merge(coco_mask.frPyObjects(parts, *size))
    if rng.random() < 0.7:
        return {"size": size, "counts": compressed["counts"].decode()}
    pixels = coco_mask.decode(compressed).ravel(order="F")
    edges = np.flatnonzero(np.diff(pixels, prepend=0)).tolist()
    return {"size": size, "counts": np.diff([0, *edges, len(pixels)]).tolist()}


def box_near(rng: np.random.Generator, size: list[int], around: list[float] | None = None) -> list[float]:
    """A box of which at least a pixel lies in the image; it may reach over the border."""
    h, w = size
    if around is not None:
        x, y, bw, bh = np.array(around) + rng.choice([0, 0, 1, -2, 3.5], 4)
    else:
        bw, bh = rng.uniform(3, 110, 2)
        x, y = rng.uniform(-bw / 3, w - 5), rng.uniform(-bh / 3, h - 5)
    values = [min(x, w - 3.0), min(y, h - 3.0), max(bw, 3.0), max(bh, 3.0)]
    values[:2] = max(values[0], 2 - values[2]), max(values[1], 2 - values[3])
    return [round(float(value), 1) for value in values]


@functools.cache
def case(seed: int) -> tuple[dict, list[dict]]:
    """A json's content, and results of one of RESULT_FORMS; not to be changed: several tests read them."""
    rng = np.random.default_rng(seed)
    name, form = ID_FORMS[seed % len(ID_FORMS)], RESULT_FORMS[seed % len(RESULT_FORMS)]
    many = seed % 16 == 0
    numbers = rng.permutation(int(rng.integers(1, 3 if many else 7))).tolist()  # 9 and 10: as text in the other order
    images = [
        {"id": name(i + 7), "file_name": f"{i}.png", "height": int(h), "width": int(w)}
        for i, (h, w) in zip(numbers, rng.integers(40, 130, (len(numbers), 2)), strict=True)
    ]
    categories = [{"id": int(c), "name": f"class {c}"} for c in rng.choice(20, int(rng.integers(1, 4)), replace=False)]
    annotations, results = [], []
    scores = [0.1, 0.5, 0.5, 0.9] if rng.random() < 0.5 else rng.random(1000).tolist()  # ties, or none
    for image in images:
        size, boxes = [image["height"], image["width"]], []
        for _ in range(int(rng.choice([0, 1, 3, 6]))):
            box = box_near(rng, size)
            parts = [polygon(rng, box) for _ in range(int(rng.integers(1, 3)))]
            segmentation = parts if rng.random() < 0.6 else rle(rng, parts, size)
            masked = coco_mask.area(coco_mask.merge(coco_mask.frPyObjects(parts, *size)))
            annotation = {
                "id": len(annotations) + 1,
                "image_id": image["id"],
                "category_id": int(rng.choice([c["id"] for c in categories])),
                "bbox": box,
                "area": float(rng.choice([box[2] * box[3], masked * 0.77, 1024.0, 9216.25])),
                "iscrowd": int(rng.random() < 0.15),
                "segmentation": segmentation,
            }
            if not masked or rng.random() < 0.15:  # a box alone
                del annotation["segmentation"]
            annotations.append(annotation)
            boxes.append((box, annotation["category_id"]))
        for _ in range(130 if many else int(rng.integers(0, 9)) * (seed % 20 > 0)):
            at = int(rng.integers(-1, len(boxes)))
            around, category = boxes[at] if at >= 0 else (None, categories[0]["id"])
            box = box_near(rng, size, around)
            parts = [polygon(rng, box)]
            shapes = {"bbox": box, "segmentation": parts if form == "polygons" else rle(rng, parts, size)}
            left_out = {"boxes": "segmentation", "masks": "bbox"}.get(form)
            wanted = {key: shape for key, shape in shapes.items() if key != left_out}
            results.append(
                {"image_id": image["id"], "category_id": category, "score": float(rng.choice(scores)), **wanted}
            )
    annotations = annotations or [  # a json needs one object
        {"id": 1, "image_id": images[0]["id"], "category_id": categories[0]["id"], "bbox": [1, 1, 9, 9], "area": 81.5,
         "iscrowd": 0, "segmentation": [[1, 1, 10, 1, 10, 10, 1, 10]]}
    ]  # fmt: skip
    if not any("segmentation" in annotation for annotation in annotations):
        annotations[0]["segmentation"] = [[0, 0, 9, 0, 9, 9, 0, 9]]
    order = rng.permutation(len(results))
    return {"images": images, "annotations": annotations, "categories": categories}, [results[i] for i in order]


def by_hand(content: dict, results: list[dict], iou_type: str, folder: Path) -> tuple[list, dict]:
    """pycocotools from files, as its demo drives it: (12 numbers, {class: AP at IoU 0.5, -1 without objects}).

    Masks are given without their boxes, as torchvision and Detectron2 do it, and polygons as the RLEs that pycocotools
    makes of them: its loadRes takes no polygons alone. It can't compare masks with objects that have none.
    """
    key = "bbox" if iou_type == "bbox" and any("bbox" in r for r in results) else "segmentation"
    if iou_type == "segm":
        content = {**content, "annotations": [a for a in content["annotations"] if "segmentation" in a]}
    (folder / "truth.json").write_text(json.dumps(content))
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(folder / "truth.json"))
        entries = [{k: r[k] for k in ("image_id", "category_id", "score", key)} for r in results]
        for entry in entries:
            if key == "segmentation":
                counts = truth.annToRLE(entry)["counts"]
                size = [truth.imgs[entry["image_id"]][side] for side in ("height", "width")]
                entry[key] = {"size": size, "counts": counts.decode() if isinstance(counts, bytes) else counts}
        if not entries:  # loadRes fails on an empty list
            found = COCO()
            found.dataset = {**content, "annotations": []}
            found.createIndex()
        else:
            (folder / "results.json").write_text(json.dumps(entries))
            found = truth.loadRes(str(folder / "results.json"))
        evaluation = COCOeval(truth, found, iou_type)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    per_class = {}
    for k, category in enumerate(sorted(content["categories"], key=lambda c: c["id"])):
        values = evaluation.eval["precision"][0, :, k, 0, -1]
        per_class[category["name"]] = float(values.mean())  # -1 without objects
    return evaluation.stats.tolist(), per_class


@pytest.mark.parametrize("start", range(0, CASES, AT_ONCE))
def test_random_files_are_scored_as_pycocotools_scores_them(start, tmp_path):
    evaluators = [PYCOCOTOOLS, FASTER] if importlib.util.find_spec("faster_coco_eval") else [PYCOCOTOOLS]
    for seed in range(start, start + AT_ONCE):
        content, results = case(seed)
        truth_path, results_path = tmp_path / "given.json", tmp_path / "given_results.json"
        truth_path.write_text(json.dumps(content))
        results_path.write_text(json.dumps(results))
        data = ImageDataset(read_annotations(truth_path))
        truth = data.ground_truth(unmasked=True)
        found, *_ = read_detections(results_path, data, {category["id"] for category in truth["categories"]})
        assert results == [] or list(found) == (["bbox"] if "segmentation" not in results[0] else ["bbox", "segm"])
        for iou_type, entries in found.items():
            stats, per_class = by_hand(content, results, iou_type, tmp_path)
            for evaluator in evaluators:
                ours = evaluate_results(truth, entries, [iou_type], evaluator=evaluator)[iou_type]
                # faster-coco-eval: the last bit of a precision of 1 differs
                assert ours.stats == pytest.approx(stats, rel=0, abs=1e-15), (seed, iou_type, evaluator)
                known = {name: -1 if value is None else value for name, value in ours.per_class.items()}
                assert known == pytest.approx(per_class, rel=0, abs=1e-15), (seed, iou_type, evaluator)


def test_the_random_cases_hold_what_they_are_meant_to_hold():
    """So many cases have each feature that an evaluation without it would be noticed."""
    cases = [case(seed) for seed in range(CASES)]
    results = [r for _, rs in cases for r in rs]
    annotations = [a for content, _ in cases for a in content["annotations"]]
    assert sum(not rs for _, rs in cases) >= 3  # no results at all
    assert sum(len(rs) > 130 for _, rs in cases) >= 10  # over 100 detections in an image
    assert sum(isinstance(content["images"][0]["id"], str) for content, _ in cases) >= 100
    assert sum(a["iscrowd"] for a in annotations) >= 200
    assert sum("segmentation" not in a for a in annotations) >= 200
    assert sum(a["area"] % 1 > 0 for a in annotations) >= 1000
    assert sum(min(a["bbox"][:2]) < 0 for a in annotations) >= 300
    assert sum("bbox" not in r for r in results) >= 1000
    assert sum(isinstance(r.get("segmentation"), list) for r in results) >= 500
    assert sum(len({r["score"] for r in rs}) < len(rs) / 2 for _, rs in cases) >= 100  # ties
