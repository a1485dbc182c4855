"""Detections to COCO results, and the 12 numbers: identical to pycocotools driven by hand."""

import contextlib
import copy
import importlib.metadata
import importlib.util
import io
import json
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from backbone.errors import InputError
from network_files.operators.boxes import TORCHVISION
from train_utils.data.labels import LabelMap
from train_utils.evaluation.evaluators import FASTER, PYCOCOTOOLS, choose_evaluator
from train_utils.evaluation.numbers import STAT_NAMES, evaluate_results, to_coco_results, write_record, write_results

H, W = 120, 160
absent = pytest.mark.skipif(importlib.util.find_spec("faster_coco_eval") is None, reason="it is optional")
evaluators = pytest.mark.parametrize("evaluator", [PYCOCOTOOLS, pytest.param(FASTER, marks=absent)])


def by_hand(ground_truth: dict, results: list[dict], iou_type: str, folder, image_ids=None) -> COCOeval:
    """pycocotools as its own demo drives it: from files, one kind of result, no other code between."""
    (folder / "truth.json").write_text(json.dumps(ground_truth))
    wanted = "bbox" if iou_type == "bbox" else "segmentation"
    kept = ("image_id", "category_id", "score", wanted)
    (folder / "results.json").write_text(json.dumps([{key: r[key] for key in kept} for r in results]))
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(folder / "truth.json"))
        evaluation = COCOeval(truth, truth.loadRes(str(folder / "results.json")), iou_type)
        if image_ids is not None:
            evaluation.params.imgIds = image_ids
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation


def box_mask(x: int, y: int, w: int, h: int, size=(H, W)) -> dict:
    mask = np.zeros(size, dtype=np.uint8, order="F")
    mask[y : y + h, x : x + w] = 1
    rle = coco_mask.encode(mask)
    return {"size": list(size), "counts": rle["counts"].decode()}


def synthetic(seed: int = 0, images: int = 6) -> tuple[dict, list[dict]]:
    """Ground truth with a crowd in each image and none of category 9; noisy results with str counts."""
    rng = np.random.default_rng(seed)
    truth = {
        "images": [{"id": 10 * i, "height": H, "width": W, "file_name": f"{i}.png"} for i in range(images)],
        "categories": [{"id": c, "name": n} for c, n in ((2, "disc"), (5, "ring"), (9, "never there"))],
        "annotations": [],
    }
    results = []
    for image in truth["images"]:
        for k in range(6):
            x, y = (int(v) for v in rng.integers(0, 60, 2))
            w, h = (int(v) for v in rng.integers(6, 58, 2))
            category = int(rng.choice([2, 5]))
            truth["annotations"].append(
                {
                    "id": len(truth["annotations"]) + 1,
                    "image_id": image["id"],
                    "category_id": category,
                    "bbox": [x, y, w, h],
                    "area": w * h,
                    "iscrowd": int(k == 0),
                    "segmentation": box_mask(x, y, w, h),
                }
            )
            for _ in range(2):
                dx, dy = (int(v) for v in rng.integers(-3, 4, 2))
                left, top = max(x + dx, 0), max(y + dy, 0)
                results.append(
                    {
                        "image_id": image["id"],
                        "category_id": int(rng.choice([category, category, 2, 9])),
                        "bbox": [left, top, w, h],
                        "score": float(rng.random()),
                        "segmentation": box_mask(left, top, w, h),
                    }
                )
    return truth, results


def coco_mini_results(truth: dict, seed: int = 0) -> list[dict]:
    """The ground truth itself as results: shifted, some missing, some of a wrong category."""
    rng = np.random.default_rng(seed)
    coco = COCO()
    coco.dataset = copy.deepcopy(truth)
    categories = [c["id"] for c in truth["categories"]]
    with contextlib.redirect_stdout(io.StringIO()):
        coco.createIndex()
    results = []
    for annotation in coco.dataset["annotations"]:
        if rng.random() < 0.2:
            continue
        shift = tuple(int(v) for v in rng.integers(-4, 5, 2))
        mask = np.asfortranarray(np.roll(coco.annToMask(annotation), shift, axis=(0, 1)))
        rle = coco_mask.encode(mask)
        category = annotation["category_id"] if rng.random() < 0.8 else int(rng.choice(categories))
        results.append(
            {
                "image_id": annotation["image_id"],
                "category_id": category,
                "score": float(rng.random()),
                "bbox": coco_mask.toBbox(rle).tolist(),
                "segmentation": {"size": rle["size"], "counts": rle["counts"].decode()},
            }
        )
    return results


def same_numbers(evaluator: str, stats: list[float], expected: COCOeval) -> bool:
    """faster-coco-eval may differ in the last bit: the precision of a first, right detection is 1 there, and
    1 - 2.2e-16 in pycocotools, which adds that number to the count that it divides by."""
    return stats == pytest.approx(expected.stats.tolist(), rel=0, abs=0 if evaluator == PYCOCOTOOLS else 5e-16)


@pytest.mark.parametrize("iou_type", ["bbox", "segm"])
@evaluators
def test_numbers_and_lines_are_pycocotools_own_on_coco(evaluator, iou_type, shared_data, tmp_path, capsys):
    truth = json.loads((shared_data / "coco_mini/annotations/instances_val2017.json").read_text())
    results = coco_mini_results(truth)
    evaluated = evaluate_results(truth, results, [iou_type], evaluator=evaluator)[iou_type]
    assert capsys.readouterr().out == ""
    expected = by_hand(truth, results, iou_type, tmp_path)
    assert same_numbers(evaluator, evaluated.stats, expected) and evaluated.evaluator == evaluator
    expected.summarize()
    assert evaluated.lines == capsys.readouterr().out.splitlines()
    assert len(evaluated.lines) == 12 and 0.1 < evaluated.stats[0] < 0.9


@pytest.mark.parametrize("seed", range(3))
@evaluators
def test_numbers_are_pycocotools_own_with_crowds_and_an_absent_category(evaluator, seed, tmp_path):
    truth, results = synthetic(seed)
    evaluated = evaluate_results(truth, results, evaluator=evaluator)
    for iou_type in ("bbox", "segm"):
        expected = by_hand(truth, results, iou_type, tmp_path)
        assert same_numbers(evaluator, evaluated[iou_type].stats, expected)
        assert expected.stats[0] > 0
        assert evaluated[iou_type].per_class["never there"] is None


@evaluators
@pytest.mark.parametrize("shift", [-35, 2**53, 2**62])
def test_ids_may_be_any_whole_numbers(evaluator, shift):
    truth, results = synthetic()
    some = [image["id"] for image in truth["images"][1:4]]
    expected = evaluate_results(truth, results, image_ids=some, evaluator=evaluator)
    for entry in (*truth["images"], *truth["categories"]):
        entry["id"] += shift
    for annotation in (*truth["annotations"], *results):
        annotation["image_id"] += shift
        annotation["category_id"] += shift
    found = evaluate_results(truth, results, image_ids=[i + shift for i in some], evaluator=evaluator)
    assert found == expected and found["segm"].stats[0] > 0


@evaluators
def test_mask_areas_are_the_masks_and_not_the_boxes(evaluator, tmp_path):
    truth, results = synthetic()
    for result in results:  # boxes that put every detection among the large ones
        result["bbox"] = [0, 0, W, H]
    stats = evaluate_results(truth, results, ["segm"], evaluator=evaluator)["segm"].stats
    assert same_numbers(evaluator, stats, by_hand(truth, results, "segm", tmp_path))


def test_per_class_ap_is_the_evaluation_of_that_class_alone(tmp_path):
    truth, results = synthetic()
    per_class = evaluate_results(truth, results, evaluator=PYCOCOTOOLS)["segm"].per_class
    assert list(per_class) == ["disc", "ring", "never there"]
    for category in (2, 5):
        one = {**truth, "categories": [c for c in truth["categories"] if c["id"] == category]}
        expected = by_hand(one, results, "segm", tmp_path).stats[1]  # AP50
        assert per_class[one["categories"][0]["name"]] == expected


@evaluators
def test_no_detections_are_ap_zero(evaluator):
    truth, _ = synthetic()
    for result in evaluate_results(truth, [], evaluator=evaluator).values():
        assert result.stats[0] == 0.0 and result.stats[8] == 0.0
        assert result.per_class == {"disc": 0.0, "ring": 0.0, "never there": None}
        assert len(result.lines) == 12


@evaluators
def test_no_ground_truth_is_absent(evaluator):
    truth, results = synthetic()
    for empty in ({**truth, "annotations": []}, {**truth, "annotations": truth["annotations"][::6]}):  # crowds alone
        for some in (results, []):
            for result in evaluate_results(empty, some, evaluator=evaluator).values():
                assert result.stats == [-1.0] * 12


@evaluators
def test_only_the_given_images_count(evaluator, tmp_path):
    truth, results = synthetic()
    some = [0, 20, 50]
    part, whole = (evaluate_results(truth, results, ["segm"], ids, evaluator)["segm"].stats for ids in (some, None))
    assert same_numbers(evaluator, part, by_hand(truth, results, "segm", tmp_path, image_ids=some))
    assert part[0] != pytest.approx(whole[0])


def test_results_of_an_image_that_is_not_there():
    truth, results = synthetic()
    with pytest.raises(InputError, match="image_id 999 is not in the ground truth"):
        evaluate_results(truth, [*results, {**results[0], "image_id": 999}])


@pytest.mark.parametrize(
    ("installed", "wanted", "chosen"),
    [
        (None, None, PYCOCOTOOLS),
        ("1.7.9", None, PYCOCOTOOLS),
        ("1.8.0", None, FASTER),
        ("2.0rc1", None, FASTER),
        ("1.8.0", PYCOCOTOOLS, PYCOCOTOOLS),
        ("2.0", FASTER, FASTER),
    ],
)
def test_the_evaluator_is_chosen_and_named(installed, wanted, chosen, monkeypatch, tmp_path):
    """With a stand-in for faster-coco-eval: pycocotools' own classes, which say that they were asked."""
    asked = []

    def version(name):
        if installed is None:
            raise importlib.metadata.PackageNotFoundError(name)
        return installed

    def stand_in(*arguments):
        asked.append(FASTER)
        return COCOeval(*arguments)

    monkeypatch.setattr(importlib.metadata, "version", version)
    monkeypatch.setitem(sys.modules, "faster_coco_eval", SimpleNamespace(COCO=COCO, COCOeval_faster=stand_in))
    monkeypatch.setenv("MASKRCNN_EVALUATOR", wanted or "")
    truth, results = synthetic()
    evaluated = evaluate_results(truth, results, ["segm"])
    assert evaluated["segm"].evaluator == chosen and asked == [FASTER] * (chosen == FASTER)
    expected = by_hand(truth, results, "segm", tmp_path)
    assert evaluated["segm"].stats == expected.stats.tolist()
    text_path, json_path = write_record(tmp_path, evaluated)
    heading = "IoU type: segm" if chosen == "pycocotools" else f"IoU type: segm (by {chosen})"
    assert text_path.read_text().splitlines()[0] == heading
    assert json.loads(json_path.read_text())["segm"]["evaluator"] == chosen


def test_an_evaluator_that_cannot_be_used(monkeypatch):
    with monkeypatch.context() as broken:
        broken.setattr(importlib.metadata, "version", lambda name: "1.8")
        broken.setitem(sys.modules, "faster_coco_eval", None)  # its import fails
        with pytest.raises(InputError, match="is installed but does not work .* MASKRCNN_EVALUATOR=pycocotools"):
            choose_evaluator()
    monkeypatch.setenv("MASKRCNN_EVALUATOR", "fastest")
    with pytest.raises(InputError, match="MASKRCNN_EVALUATOR is 'fastest': give pycocotools or faster-coco-eval"):
        choose_evaluator()
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "1.7")
    with pytest.raises(InputError, match="version 1.8 or newer is not installed: pip install"):
        choose_evaluator(FASTER)


def test_annotation_ids_do_not_matter(tmp_path):
    truth, results = synthetic()
    expected = by_hand(truth, results, "segm", tmp_path).stats.tolist()
    zero_based = copy.deepcopy(truth)
    for annotation in zero_based["annotations"]:
        annotation["id"] = len(truth["annotations"]) - annotation["id"]
    # pycocotools takes a match with the annotation of id 0 for no match
    assert by_hand(zero_based, results, "segm", tmp_path).stats.tolist() != expected
    assert evaluate_results(zero_based, results, ["segm"], evaluator=PYCOCOTOOLS)["segm"].stats == expected


@evaluators
def test_arguments_are_not_changed(evaluator):
    truth, results = synthetic()
    before = copy.deepcopy((truth, results))
    evaluate_results(truth, results, evaluator=evaluator)
    assert (truth, results) == before


def test_categories_of_one_name_are_kept_apart():
    truth, results = synthetic()
    truth["categories"][1]["name"] = "disc"
    assert list(evaluate_results(truth, results)["bbox"].per_class) == ["disc (2)", "disc (5)", "never there"]


def detection(boxes: list, labels: list[int], scores: list[float], fill: float = 1.0) -> dict:
    return {
        "boxes": torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        "labels": torch.tensor(labels),
        "scores": torch.tensor(scores),
        "mask_probs": torch.full((len(labels), 28, 28), fill),
    }


def test_results_carry_original_ids_and_every_digit():
    label_map = LabelMap.from_categories({7: "disc", 40: "ring"})
    found = [detection([[10.25, 20.5, 50.125, 60]], [2], [0.123456789]), detection([], [], [])]
    results = to_coco_results(found, [3, 4], [(H, W), (50, 40)], label_map, TORCHVISION)
    assert len(results) == 1
    (result,) = json.loads(json.dumps(results))
    assert result["image_id"] == 3 and result["category_id"] == 40
    assert result["bbox"] == [10.25, 20.5, 39.875, 39.5]
    assert result["score"] == found[0]["scores"].item()
    assert result["segmentation"]["size"] == [H, W] and isinstance(result["segmentation"]["counts"], str)
    mask = coco_mask.decode(result["segmentation"])
    assert mask[30, 30] == 1 and mask[:15].sum() == 0 and mask[:, 60:].sum() == 0


def test_mask_pixels_are_those_above_the_threshold():
    label_map = LabelMap.from_categories({1: "disc"})
    found = detection([[10, 10, 60, 60]], [1], [0.9], fill=0.5)
    areas = [
        coco_mask.area(to_coco_results([found], [1], [(H, W)], label_map, TORCHVISION, threshold)[0]["segmentation"])
        for threshold in (0.4, 0.5)
    ]
    assert areas[0] > 2000 and areas[1] == 0  # 0.5 is not above 0.5


def test_a_label_in_a_gap_of_the_label_map_stays_as_it_is():
    label_map = LabelMap([1, 3], [1, 3], ["disc", "ring"])
    results = to_coco_results(
        [detection([[0, 0, 9, 9]] * 2, [2, 3], [0.5, 0.5])], [1], [(H, W)], label_map, TORCHVISION
    )
    assert [r["category_id"] for r in results] == [2, 3]


def test_record_files(tmp_path):
    truth, results = synthetic()
    evaluated = evaluate_results(truth, results)
    text_path, json_path = write_record(tmp_path / "new", evaluated)
    assert text_path.name == "record_mAP.txt" and json_path.name == "record_mAP.json"
    lines = text_path.read_text().splitlines()
    record = json.loads(json_path.read_text())
    start = 0
    for iou_type, result in evaluated.items():
        start = lines.index("COCO results:", start) + 1
        assert iou_type in lines[start - 2]
        assert lines[start : start + 12] == result.lines
        assert lines[start + 12 : start + 14] == ["", "mAP(IoU=0.5) for each category:"]
        assert lines[start + 14] == f" disc           : {result.per_class['disc']:.4f}"
        assert lines[start + 16] == " never there    : n/a"
        assert record[iou_type]["stats"] == dict(zip(STAT_NAMES, result.stats, strict=True))
        assert record[iou_type]["per_class"] == result.per_class


def test_detections_file_is_read_by_pycocotools(tmp_path):
    truth, results = synthetic()
    path = tmp_path / "deep" / "detections.json"
    write_results(path, results)
    assert json.loads(path.read_text()) == results
    (tmp_path / "truth.json").write_text(json.dumps(truth))
    assert len(COCO(str(tmp_path / "truth.json")).loadRes(str(path)).anns) == 72
    write_results(tmp_path / "empty.json", [])
    assert (tmp_path / "empty.json").read_text() == "[]"


def test_masks_are_sorted_by_their_own_area_where_results_have_boxes_too():
    """As in torchvision and Detectron2: a wrong small mask counts among the small ones, however large its box."""
    square, wrong = np.zeros((2, 200, 200), dtype=np.uint8)
    square[:20, :20], wrong[100:120, 100:120] = 1, 1
    rles = [coco_mask.encode(np.asfortranarray(mask)) for mask in (square, wrong)]
    right, false = ({**rle, "counts": rle["counts"].decode()} for rle in rles)
    common = dict(image_id=1, category_id=1)
    truth = {
        "images": [{"id": 1, "file_name": "1.png", "height": 200, "width": 200}],
        "categories": [{"id": 1, "name": "a"}],
        "annotations": [common | dict(id=1, bbox=[0, 0, 20, 20], area=400, iscrowd=0, segmentation=right)],
    }
    results = [
        common | dict(bbox=[100, 100, 99, 99], segmentation=false, score=0.9),
        common | dict(bbox=[0, 0, 20, 20], segmentation=right, score=0.8),
    ]
    small = {t: dict(zip(STAT_NAMES, r.stats, strict=True))["APs"] for t, r in evaluate_results(truth, results).items()}
    assert small == {"bbox": pytest.approx(1.0), "segm": pytest.approx(0.5)}
