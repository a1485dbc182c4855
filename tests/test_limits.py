"""The limits that cut the numbers: said with counts, kept in the records, and raised by --max-dets."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

import predict
import train
import validation
from network_files import MaskRCNNConfig
from tests.coco_folders import write
from tests.small_runs import call, flags
from tests.tiny_model import NAMES, write_checkpoint
from train_utils.evaluation.evaluators import FASTER, PYCOCOTOOLS
from train_utils.evaluation.limits import limits_met, shrunk_images, smallest_scale
from train_utils.evaluation.numbers import evaluate_results

CATEGORIES = [{"id": i, "name": name} for i, name in NAMES.items()]


def dense(objects=(150, 3)):
    """A COCO dict whose images have so many objects of 3 x 3 pixels, and results that are the truth."""
    images = [{"id": i, "file_name": f"{i}.png", "height": 80, "width": 80} for i in range(1, len(objects) + 1)]
    annotations = []
    for image, count in zip(images, objects, strict=True):
        for k in range(count):
            x, y = 5 * (k % 15), 5 * (k // 15)
            outline = [[x, y, x + 3, y, x + 3, y + 3, x, y + 3]]
            own = {"id": len(annotations) + 1, "image_id": image["id"], "category_id": 1, "bbox": [x, y, 3, 3]}
            annotations.append({**own, "area": 9, "iscrowd": 0, "segmentation": outline})
    truth = {"info": {}, "images": images, "annotations": annotations, "categories": CATEGORIES}
    return truth, [{**{key: a[key] for key in ("image_id", "category_id", "bbox")}, "score": 0.9} for a in annotations]


@pytest.mark.parametrize("evaluator", [PYCOCOTOOLS, FASTER])
@pytest.mark.parametrize("max_dets", [10, 100, 120, 500])
def test_the_twelve_numbers_are_those_of_pycocotools_with_that_limit(evaluator, max_dets):
    if evaluator == FASTER:
        pytest.importorskip("faster_coco_eval")
    rng = np.random.default_rng(0)
    truth, results = dense((150, 3, 130))
    for result in results:
        result["score"] = float(rng.random())
        result["bbox"] = [value + float(rng.random()) for value in result["bbox"]]
    coco = COCO()
    coco.dataset = truth
    coco.createIndex()
    theirs = COCOeval(coco, coco.loadRes([dict(result) for result in results]), "bbox")
    theirs.params.maxDets = [1, 10, max_dets]
    theirs.evaluate()
    theirs.accumulate()
    recall, precision = theirs.eval["recall"], theirs.eval["precision"]
    mean = lambda values: values[values > -1].mean() if (values > -1).any() else -1.0  # noqa: E731
    expected = [mean(precision[..., 0, -1]), mean(precision[0, ..., 0, -1]), mean(precision[5, ..., 0, -1])]
    expected += [mean(precision[..., area, -1]) for area in (1, 2, 3)] + [mean(recall[..., 0, k]) for k in range(3)]
    expected += [mean(recall[..., area, -1]) for area in (1, 2, 3)]
    ours = evaluate_results(truth, results, ["bbox"], evaluator=evaluator, max_dets=max_dets)["bbox"]
    assert ours.stats == pytest.approx(expected, abs=1e-12) and ours.stats[0] > 0
    assert sum(f"maxDets={max_dets:>3} ]" in line for line in ours.lines) == 10 - (max_dets == 10) + 2 * (
        max_dets == 10
    )


def test_limits_are_counted():
    truth, results = dense((150, 3, 101))
    objects, detections, full = limits_met(truth, results, per_image=101)
    assert (objects.name, objects.images, objects.beyond) == ("objects_beyond_max_dets", 2, 51)
    assert objects.line.startswith("2 images have more than 100 objects of a class, 51 beyond: they are scored by 100")
    assert (detections.images, detections.beyond, full.images) == (2, 51, 2)
    assert full.line == "2 images have 101 detections, all that --box-detections-per-img allows"
    assert limits_met(truth, results, max_dets=150, per_image=151) == []
    (one,) = limits_met(truth, [], {3})
    assert (one.images, one.beyond) == (1, 1)
    for annotation in truth["annotations"]:
        annotation["iscrowd"] = 1
    assert limits_met(truth, []) == []


def record(folder):
    return json.loads((folder / "record_mAP.json").read_text())


def test_results_beyond_the_limit_are_said_and_scored_where_asked(tmp_path, monkeypatch, capsys):
    truth, results = dense((300, 3))
    truth["images"][0]["height"] = 120
    write(tmp_path / "data", truth)
    (tmp_path / "R.json").write_text(json.dumps(results))
    monkeypatch.chdir(tmp_path)
    words = ("--detections", "R.json", "--data-path", tmp_path / "data")
    assert call(validation, *words, "--report") == 0
    page = (tmp_path / "report.html").read_text()
    assert "are scored by 100 detections of a class in an image" in page and "limit of 100 detections" in page
    assert "<b>limit</b> (200 of 303 objects): they were found" in page and "<b>missed</b> (" not in page
    assert "Not called missed: 200 objects that only detections beyond the limit lie on." in page
    printed, found = capsys.readouterr().out, record(tmp_path)
    assert "1 image has more than 100 objects of a class, 200 beyond: they are scored by 100" in printed
    assert found["about"]["limits"]["objects_beyond_max_dets"] == {"images": 1, "beyond": 200}
    assert found["about"]["max_dets"] == 100 and found["bbox"]["stats"]["AP"] < 0.5
    assert call(validation, *words, "--max-dets", 300, "--report") == 0
    page = (tmp_path / "report.html").read_text()
    assert "beyond the limit lie" not in page and "limit of 300 detections" in page and "AR with 300" in page
    printed, found = capsys.readouterr().out, record(tmp_path)
    assert "more than" not in printed and "maxDets=300" in printed and found["about"]["limits"] == {}
    assert found["about"]["max_dets"] == 300 and found["bbox"]["stats"]["AP"] == 1.0


def test_images_full_of_detections_are_said_by_validation_and_training(tmp_path, monkeypatch, capsys):
    truth, _ = dense((110, 3))
    write(tmp_path / "data", truth, "instances_train.json")
    write(tmp_path / "data", truth, "instances_val.json")
    monkeypatch.chdir(tmp_path)
    few, line = (
        ("--box-detections-per-img", 2),
        "2 images have 2 detections, all that --box-detections-per-img allows",
    )
    weights = write_checkpoint(tmp_path / "w.pth")
    assert call(validation, "--weights-path", weights, "--data-path", tmp_path / "data", *few, "--report") == 0
    page = (tmp_path / "report.html").read_text()
    assert line in page
    assert line in capsys.readouterr().out
    assert record(tmp_path)["about"]["limits"]["full_images"]["images"] == 2
    run = flags(tmp_path / "data", tmp_path / "run", *few, "--box-score-thresh", 0)
    assert call(train, *run) == 0
    printed = capsys.readouterr().out
    assert printed.count(line) == 1 and printed.count("more than 100 objects of a class, 10 beyond") == 1
    epochs = json.loads((tmp_path / "run" / "seg_results.json").read_text())
    assert [epoch["limits"]["full_images"]["images"] for epoch in epochs] == [2, 2]
    assert call(train, *run, "--test-only", "--max-dets", 110) == 0
    printed = capsys.readouterr().out
    assert line in printed and "more than" not in printed and "maxDets=110" in printed


def write_dropping(folder, truth):
    """The data: image 1 has a second page, 2 is half transparent, 3 has an alpha of no effect, 4 a fourth channel."""
    for name in ("instances_train.json", "instances_val.json"):
        write(folder, truth, name)
    images = folder / "images"
    pages = [Image.fromarray(np.full((80, 80), value, np.uint8)) for value in (90, 200)]
    pages[0].save(images / "1.png", "TIFF", save_all=True, append_images=pages[1:])
    for name, alpha in ("2.png", 100), ("3.png", 255):
        Image.fromarray(np.dstack([np.full((80, 80, 3), 90, np.uint8), np.full((80, 80), alpha, np.uint8)])).save(
            images / name
        )
    Image.new("RGBX", (80, 80), (90, 90, 90, 7)).save(images / "4.png", "TIFF")
    return folder


DROPPED = (
    "1 image has pages after the first, which are left out",
    "1 image has transparency, which is left out",
    "1 image has channels beyond grey, colour and alpha, which are left out",
)


@pytest.mark.parametrize("workers", [0, 2])
def test_what_reading_leaves_out_is_said_once(tmp_path, monkeypatch, capsys, workers):
    data = write_dropping(tmp_path / "data", dense((3, 3, 3, 3))[0])
    monkeypatch.chdir(tmp_path)
    weights = write_checkpoint(tmp_path / "w.pth")
    assert call(validation, "--weights-path", weights, "--data-path", data, "--workers", workers) == 0
    printed = capsys.readouterr().out
    assert all(printed.count(line) == 1 for line in DROPPED)
    assert record(tmp_path)["about"]["limits"]["pages"]["images"] == 1
    assert call(train, *flags(data, tmp_path / "run", "--workers", workers, "--batch-size", 1)) == 0
    printed = capsys.readouterr().out
    assert all(printed.count(f"{split}: {line}") == 1 for line in DROPPED for split in ("train", "val"))


def test_predict_says_what_was_left_out_and_which_images_are_full(tmp_path, monkeypatch, capsys):
    data = write_dropping(tmp_path / "data", dense((3, 3, 3, 3))[0])
    monkeypatch.chdir(tmp_path)
    words = ("--weights-path", write_checkpoint(tmp_path / "w.pth"), "--img-path", data / "images")
    assert call(predict, *words, "--box-detections-per-img", 2, "--score", 0) == 0
    printed = capsys.readouterr().out
    assert all(printed.count(line) == 1 for line in DROPPED)
    assert printed.count("4 images have 2 detections, all that --box-detections-per-img allows") == 1
    assert call(predict, *words, "--box-detections-per-img", 2, "--score", 1) == 0
    assert "--box-detections-per-img allows" not in capsys.readouterr().out


def test_boxes_without_masks_are_said_to_count_as_background(tmp_path, monkeypatch, capsys):
    truth, _ = dense((3, 3))
    for annotation in truth["annotations"][:2]:
        annotation["segmentation"] = []
    write(tmp_path / "data", truth)
    monkeypatch.chdir(tmp_path)
    words = ("--weights-path", write_checkpoint(tmp_path / "w.pth"), "--data-path", tmp_path / "data")
    assert call(validation, *words) == 0
    said = "skipped 2 annotations without segmentation (first: id 1); background: 2 boxes without a mask"
    assert said in capsys.readouterr().out
    assert record(tmp_path)["about"]["skipped"] == {"annotations without segmentation": 2}


def test_the_smallest_scale_of_training():
    config = MaskRCNNConfig(min_size=(60, 80), max_size=100)
    assert smallest_scale([(80, 80), (120, 60)], config, None, 0.1, None) == 60 / 80
    assert smallest_scale([(100, 100)], config, None, 0.1, 4.0) == pytest.approx(60 / 400)
    assert smallest_scale([(100, 50)], config, 60, 0.5, None) == pytest.approx(0.5 * 60 / 100)
    (shrunk,) = shrunk_images([(80, 80), (160, 160), (640, 640), (1000, 500)], config, 0.75)
    assert (shrunk.images, shrunk.line.split(":")[0]) == (
        2, "2 images are shrunk to as little as 0.1 of the size, in training to 0.75 at most",
    )  # fmt: skip
    for unknown in (None, "0.5", [1.0]):
        assert shrunk_images([(1000, 1000)], config, unknown) == []


def test_images_that_are_shrunk_more_than_in_training_are_said(tmp_path, monkeypatch, capsys):
    truth, _ = dense((3, 3))
    write(tmp_path / "data", truth)
    assert call(train, *flags(tmp_path / "data", tmp_path / "run", "--epochs", 1)) == 0
    content = torch.load(tmp_path / "run" / "model_0.pth", weights_only=True)
    assert content["smallest_scale"] == pytest.approx(48 / 80)
    monkeypatch.chdir(tmp_path)
    Image.fromarray(np.full((400, 400, 3), 90, np.uint8)).save(tmp_path / "mosaic.png")
    words = ("--weights-path", tmp_path / "run" / "model_0.pth")
    said = "1 image is shrunk to as little as 0.12 of the size, in training to 0.6 at most"
    capsys.readouterr()
    assert call(predict, *words, "--img-path", tmp_path / "mosaic.png") == 0
    assert said in capsys.readouterr().out
    assert call(predict, *words, "--img-path", tmp_path / "data" / "images" / "1.png") == 0
    assert "are shrunk" not in capsys.readouterr().out
    large = {**truth, "images": [{"id": 1, "file_name": "m.png", "height": 400, "width": 400}]}
    large["annotations"] = truth["annotations"][:3]
    write(tmp_path / "large", large)
    assert call(validation, *words, "--data-path", tmp_path / "large") == 0
    assert said in capsys.readouterr().out and record(tmp_path)["about"]["limits"]["shrunk_images"]["images"] == 1
