"""Results files of other programs: scored as pycocotools scores them, or refused with the entry's number."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

import predict
import validation
from tests.npy_folders import many
from tests.tiny_model import SIZES, write_checkpoint, write_coco
from tools import pack_dataset


@pytest.fixture
def data(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return write_coco(tmp_path / "data")


@pytest.fixture
def run(command):
    return lambda *flags, script=validation: command(script, *flags)


def mask(size, x1=4, y1=4, x2=24, y2=28):
    pixels = np.zeros(size, dtype=np.uint8, order="F")
    pixels[y1:y2, x1:x2] = 1
    rle = coco_mask.encode(pixels)
    return {"size": list(size), "counts": rle["counts"].decode()}


def results():
    """A detection of each image of `write_coco`, of the right place but for the second."""
    return [
        {"image_id": 10 + i, "category_id": (1, 2)[i % 2], "score": 0.9 - i / 10, "bbox": [4, 4, 20, 24],
         "segmentation": mask(size, 4 + 9 * (i == 1))}
        for i, size in enumerate(SIZES)
    ]  # fmt: skip


def by_pycocotools(data, entries, iou_type):
    truth = COCO(data / "instances_val.json")
    evaluation = COCOeval(truth, truth.loadRes(json.loads(json.dumps(entries))), iou_type)
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    return evaluation.stats.tolist()


def scored(run, data, entries):
    Path("submission.json").write_text(json.dumps(entries))
    status, out, err = run("--detections", "submission.json", "--data-path", data, "--output-dir", "out")
    assert status == 0, err
    text = Path("out/record_mAP.txt").read_text()
    assert text in out and sorted(p.name for p in Path("out").iterdir()) == ["record_mAP.json", "record_mAP.txt"]
    record = json.loads(Path("out/record_mAP.json").read_text())
    return {iou_type: list(numbers["stats"].values()) for iou_type, numbers in record.items() if iou_type != "about"}


@pytest.mark.parametrize("left_out", ["bbox", "segmentation"])
def test_the_numbers_are_pycocotools_own(run, data, left_out):
    entries = [{key: value for key, value in entry.items() if key != left_out} for entry in results()]
    numbers = scored(run, data, entries)
    assert list(numbers) == (["bbox"] if left_out == "segmentation" else ["bbox", "segm"])
    for iou_type, found in numbers.items():
        assert found == pytest.approx(by_pycocotools(data, entries, iou_type)) and 0 < found[0] <= 1
    if "segm" in numbers:  # boxes around the masks
        assert numbers["bbox"][0] < 1


def test_boxes_and_masks_are_scored_apart(run, data):
    boxes = [{key: value for key, value in entry.items() if key != "segmentation"} for entry in results()]
    masks = [{key: value for key, value in entry.items() if key != "bbox"} for entry in results()]
    together = scored(run, data, boxes + masks)
    assert together == {"bbox": scored(run, data, boxes)["bbox"], "segm": scored(run, data, masks)["segm"]}


def test_an_empty_list_is_ap_zero_and_counts_may_be_runs(run, data):
    assert {iou_type: stats[0] for iou_type, stats in scored(run, data, []).items()} == {"bbox": 0, "segm": 0}
    runs = results()
    height, width = SIZES[0]
    inside = [24, height - 24] * 20
    runs[0]["segmentation"]["counts"] = [4 * height + 4, *inside[:-1], height - 28 + (width - 24) * height]
    assert scored(run, data, runs) == scored(run, data, results())


def test_what_predict_writes_for_a_test_set(run, data, tmp_path):
    weights = write_checkpoint(tmp_path / "model.pth")
    content = json.loads((data / "instances_val.json").read_text())
    Path("test.json").write_text(json.dumps({"images": content["images"], "categories": content["categories"]}))
    shutil.move(data / "images", "test_images")
    Path("test_images/1.png").write_bytes(b"no image")
    flags = "--coco-json test.json --image-dir test_images --output submission.json --score 0.4 --mask-threshold 0.3"
    status, _, err = run("--weights-path", weights, "--device", "cpu", *flags.split(), script=predict)
    assert status == 1 and "test_images/1.png" in err
    entries = json.loads(Path("submission.json").read_text())
    assert {entry["image_id"] for entry in entries} == {10, 12, 13}
    for entry in entries:
        assert list(entry["segmentation"]) == ["size", "counts"] and isinstance(entry["segmentation"]["counts"], str)
        assert entry["segmentation"]["size"] == list(SIZES[entry["image_id"] - 10]) and entry["score"] >= 0.4
    # a single json: all of its images are scored, wherever they lie
    place = ("--data-path", data / "instances_train.json", "--image-dir", "test_images")
    status, out, err = run("--detections", "submission.json", *place)
    assert status == 0 and f"{len(entries)} masks in 3 of 4 images" in out, err


def test_an_object_without_a_mask_counts_for_boxes(run, data):
    path = data / "instances_val.json"
    content = json.loads(path.read_text())
    del content["annotations"][0]["segmentation"]
    path.write_text(json.dumps(content))
    entries = [{key: value for key, value in entry.items() if key != "segmentation"} for entry in results()]
    expected = by_pycocotools(data, entries, "bbox")
    assert scored(run, data, entries)["bbox"] == pytest.approx(expected)
    assert run(str(data), "packed", script=pack_dataset)[0] in (0, 1)
    assert scored(run, "packed", entries)["bbox"] == pytest.approx(expected)


def test_results_of_categories_that_the_data_lacks_are_left_out_and_counted(run, data):
    foreign = [{**results()[0], "category_id": i, "score": 1} for i in (77, 78, 77, "x")]
    assert scored(run, data, foreign[:2] + results() + foreign[2:]) == scored(run, data, results())
    Path("submission.json").write_text(json.dumps(foreign + results()))
    _, out, _ = run("--detections", "submission.json", "--data-path", data)
    assert "left out: 4 results of categories that the data lacks: 77 (2), 78 (1), 'x' (1)\n" in out
    about = json.loads(Path("record_mAP.json").read_text())["about"]["results"]
    assert about["left_out"] == {"categories": {"77": 2, "78": 1, "'x'": 1}, "images": 1}
    assert (about["by_file_name"], about["boxes"], about["of_images"]) == (0, len(results()), 4)
    boxes = [{**result, "bbox": [2, 2, 9, 9]} for result in results()]
    Path("submission.json").write_text(json.dumps([{k: v for k, v in r.items() if k != "segmentation"} for r in boxes]))
    _, out, _ = run("--detections", "submission.json", "--data-path", data, "--boundary")
    assert "--boundary: the results have no masks, so there are no borders to score\n" in out


@pytest.mark.parametrize(
    "named",
    [
        lambda name: {"image_id": name},
        lambda name: {"image_id": Path(name).stem},
        lambda name: {"image_id": 10**6, "file_name": f"C:\\images\\{name.upper()}"},
        lambda name: {"image_id": None, "file_name": f"/data/{name}"},
    ],
)
def test_results_may_name_their_image_by_its_file(run, data, named):
    path = data / "instances_val.json"
    content = json.loads(path.read_text())
    names = dict(
        zip((image["id"] for image in content["images"]), ("a/x.png", "b/x.png", "y.png", "z.png"), strict=True)
    )
    for image in content["images"]:
        (data / "images" / names[image["id"]]).parent.mkdir(exist_ok=True)
        (data / "images" / image["file_name"]).rename(data / "images" / names[image["id"]])
        image["file_name"] = names[image["id"]]
    path.write_text(json.dumps(content))
    entries = [entry | (named(names[entry["image_id"]]) if entry["image_id"] > 11 else {}) for entry in results()]
    assert scored(run, data, entries) == scored(run, data, results())
    Path("submission.json").write_text(json.dumps(entries))
    _, out, _ = run("--detections", "submission.json", "--data-path", data)
    assert "2 results name the image by its file name\n" in out
    assert json.loads(Path("record_mAP.json").read_text())["about"]["results"]["by_file_name"] == 2
    Path("submission.json").write_text(json.dumps([results()[0] | named("x.png")]))  # of which there are two
    status, _, err = run("--detections", "submission.json", "--data-path", data)
    assert status == 2 and "is the name of several images; give image_id" in err


def changed(**fields):
    """The third result with other fields; None leaves one out."""
    return {key: value for key, value in {**results()[2], **fields}.items() if value is not None}


def rle(**fields):
    return changed(segmentation={**mask(SIZES[2]), **fields})


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        (7, "7 is not an object"),
        (changed(score=None), "has no score"),
        (changed(image_id=77), "image_id 77 is none of the 4 images"),
        (changed(image_id=[1]), "image_id [1] is neither an integer nor text"),
        (changed(image_id="x", file_name="y.png"), "image_id 'x' is none of the 4 images"),
        (changed(image_id=None, file_name="y.png"), "file_name 'y.png' is none of the 4 images"),
        (changed(score=float("nan")), "score holds a number that is not finite"),
        (changed(score="0.5"), "score '0.5' is not a number"),
        (changed(bbox=[1, 2, 3]), "bbox [1, 2, 3] is not x y width height"),
        (changed(bbox=[1, 2, 3, -1]), "bbox [1, 2, 3, -1] is not x y width height"),
        (changed(bbox=[1, 2, 10**400, 1]), "bbox holds a number that is not finite"),
        (changed(bbox=None, segmentation=None), "neither bbox nor segmentation"),
        (changed(segmentation="mask"), "segmentation is neither a list of polygons nor an RLE"),
        (changed(segmentation=[[1, 1, 5, 1, 5, 5], [1, 2, 3, 4]]), "a polygon of 4 numbers"),
        (changed(segmentation=[[1, 1, 5, 1, 5, 5, 9]]), "a polygon of 7 numbers"),
        (changed(segmentation=[[1, 1, 5, 1, 5, 1e5]]), "polygon reaches 100000"),
        (rle(size=[64, 48]), "RLE is for a size of [64, 48] (height, width), but the image's is [48, 64]"),
        (rle(size=[2**40, 2**40]), "RLE is for a size"),
        (rle(counts=None), "RLE has no counts"),
        (rle(counts="oooooooo"), "RLE counts are damaged"),
        (rle(counts=[10**18] * 4), "RLE does not fit its size"),
    ],
)
def test_a_wrong_entry_is_named(run, data, entry, said):
    entries = [*results()[:2], entry, results()[3]]
    Path("submission.json").write_text(json.dumps(entries))
    status, _, err = run("--detections", "submission.json", "--data-path", data)
    assert status == 2 and err.count("\n") == 1 and not Path("record_mAP.txt").exists()
    assert err.startswith("error: submission.json: entry 2 (the first is 0): ") and said in err, err


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{}", "not a list of detections"),
        ("[1", "not valid json"),
        ('[{"image_id": 10, "score": 1, "score": 2}]', "entry 0 (the first is 0): key 'score' is duplicated"),
        ('[{"segmentation": {"size": 1, "size": 2}}]', "entry 0 (the first is 0): key 'size' is duplicated"),
    ],
)
def test_a_wrong_file_is_named(run, data, text, said):
    Path("submission.json").write_text(text)
    status, _, err = run("--detections", "submission.json", "--data-path", data)
    assert status == 2 and err.count("\n") == 1 and "submission.json: " in err and said in err, err


def test_classes_that_a_json_names(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    many(tmp_path / "npy", 2)
    (tmp_path / "names.json").write_text('{"1": "cat", "2": "dog", "3": "cow"}')
    entry = {"image_id": 1, "category_id": 3, "score": 1, "bbox": [2, 3, 10, 12]}
    (tmp_path / "r.json").write_text(json.dumps([entry]))
    words = ("--detections", "r.json", "--data-path", "npy")
    assert "not one result is of the data's categories; left out: 1 result" in run(*words)[2]
    status, out, _ = run(*words, "--label-json-path", "names.json")
    assert status == 0 and "dog" in out and "class_" not in out


IN_VAIN = [
    ("--detections", "r.json", "--data-path", "d", *more)
    for more in (("--tile", 64), ("--tta", "flips"), ("--box-score-thresh", 0.5))
]


@pytest.mark.parametrize(
    "flags", [(), ("--detections", "r.json"), ("--detections", "r.json", "--weights-path", "w"), *IN_VAIN]
)
def test_flags_that_do_not_go_together(run, flags):
    status, _, err = run(*flags)
    assert status == 2 and "--detections" in err and err.count("\n") == 1
