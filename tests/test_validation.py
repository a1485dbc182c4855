"""validation.py as a user runs it, and its files read back."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import predict
import validation
from tests.small_runs import ROOT
from tests.tiny_model import NAMES, tiny_model, write_checkpoint, write_coco
from train_utils.evaluation.numbers import evaluate_results


@pytest.fixture
def data(tmp_path):
    return write_coco(tmp_path / "data")


@pytest.fixture
def weights(tmp_path):
    return write_checkpoint(tmp_path / "model.pth")


@pytest.fixture
def run(tmp_path, monkeypatch, command):
    """Runs a script's main in tmp_path -> (exit status, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)
    return lambda *flags, script=validation: command(script, "--device", "cpu", *flags)


def test_a_wrong_evaluator_is_told_first(run, monkeypatch):
    monkeypatch.setenv("MASKRCNN_EVALUATOR", "fastest")
    status, _, stderr = run("--weights-path", "nowhere.pth")
    assert status == 2 and "MASKRCNN_EVALUATOR is 'fastest'" in stderr


def test_from_the_command_line(weights, data, tmp_path):
    command = [sys.executable, ROOT / "validation.py", "--weights_path", weights, "--data_path", data]
    done = subprocess.run([*command, "--device", "cpu"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    written = {"record_mAP.txt", "record_mAP.json", "detections.json"}
    assert {path.name for path in tmp_path.iterdir()} == written | {"model.pth", "data"}
    text = (tmp_path / "record_mAP.txt").read_text()
    assert text in done.stdout and text.count("COCO results:") == 2
    results = json.loads((tmp_path / "detections.json").read_text())
    assert results and {r["category_id"] for r in results} <= set(NAMES)
    truth = json.loads((data / "instances_val.json").read_text())
    record = json.loads((tmp_path / "record_mAP.json").read_text())
    for iou_type, expected in evaluate_results(truth, results).items():
        assert list(record[iou_type]["stats"].values()) == expected.stats
        assert record[iou_type]["per_class"] == expected.per_class
        assert expected.per_class["big triangle"] is None  # has no ground truth
        assert f" {'big triangle':15}: n/a" in text


def test_the_batch_size_does_not_matter(run, weights, data):
    for size in (1, 2, 4):
        flags = ("--weights-path", weights, "--data-path", data, "--batch-size", size, "--output-dir", f"out{size}")
        assert run(*flags)[0] == 0
    for name in ("record_mAP.txt", "record_mAP.json", "detections.json"):
        one, two, four = (Path(f"out{size}", name).read_text() for size in (1, 2, 4))
        assert one == two == four


def test_what_predict_shows_is_what_validation_measured(run, weights, data):
    run("--weights-path", weights, "--data-path", data, "--batch-size", 2)
    run(
        "--weights-path",
        weights,
        "--coco-json",
        data / "instances_val.json",
        "--image-dir",
        data / "images",
        "--output",
        "R.json",
        script=predict,
    )
    predicted, measured = (json.loads(Path(name).read_text()) for name in ("R.json", "detections.json"))
    assert predicted == measured != []


def test_no_detections_are_ap_zero(run, tmp_path, data):
    weights = write_checkpoint(tmp_path / "shy.pth")
    status, _, err = run("--weights-path", weights, "--data-path", data, "--box-score-thresh", 0.999)
    assert status == 0, err
    assert json.loads(Path("detections.json").read_text()) == []
    record = json.loads(Path("record_mAP.json").read_text())
    assert record["segm"]["stats"]["AP"] == 0.0
    assert record["segm"]["per_class"] == {"circle": 0.0, "square": 0.0, "big triangle": None}


def test_unreadable_images_are_named_and_left_out(run, weights, data):
    (data / "images" / "1.png").write_bytes(b"no image")
    status, out, err = run("--weights-path", weights, "--data-path", data)
    assert status == 1 and "1.png" in err and "1 image could not be read" in err
    results = json.loads(Path("detections.json").read_text())
    assert {r["image_id"] for r in results} == {10, 12, 13}


def test_the_checkpoint_knows_its_data(run, tmp_path, data):
    weights = write_checkpoint(tmp_path / "own.pth", data_path=str(data), dataset="auto", val_fraction=0.5, seed=3)
    assert run("--weights-path", weights)[0] == 0
    (data / "instances_val.json").unlink()  # now a single json: training's share and seed choose the images
    chosen = []
    for flags in ((), ("--data-path", data), ("--val-fraction", 0.75)):
        assert run("--weights-path", weights, *flags)[0] == 0
        chosen.append({r["image_id"] for r in json.loads(Path("detections.json").read_text())})
    assert chosen[0] == chosen[1] and len(chosen[0]) == 2 and len(chosen[2]) == 3


def test_a_bare_state_dict_takes_the_datas_classes(run, data, weights):
    torch.save(tiny_model().state_dict(), "bare.pth")
    flags = (
        "--data-path",
        data,
        "--min-size",
        64,
        "--max-size",
        96,
        "--anchor-sizes",
        8,
        16,
        32,
        48,
        64,
        "--rpn-post-nms-top-n-test",
        20,
        "--box-detections-per-img",
        40,
    )
    assert run("--weights-path", "bare.pth", *flags, "--num-classes", 3, "--output-dir", "bare")[0] == 0
    assert run("--weights-path", weights, "--data-path", data, "--output-dir", "full")[0] == 0
    for name in ("record_mAP.json", "detections.json"):
        assert Path("bare", name).read_text() == Path("full", name).read_text()


@pytest.mark.parametrize("turned", [False, True])
def test_the_names_of_a_bare_state_dict_come_from_a_file(run, tmp_path, turned):
    names = {1: "circle", 2: "square", 3: "big triangle"}
    data = write_coco(tmp_path / "named", names)
    torch.save(tiny_model().state_dict(), "bare.pth")
    Path("names.json").write_text(json.dumps({n: i for i, n in names.items()} if turned else names))
    flags = ("--weights-path", "bare.pth", "--data-path", data, "--label-json-path", "names.json")
    flags += ("--min-size", 64, "--max-size", 96, "--rpn-post-nms-top-n-test", 20)
    assert run(*flags)[0] == 0
    Path("names.json").write_text(json.dumps({1: "circle", 2: "dog", 3: "big triangle"}))
    status, _, err = run(*flags)
    assert status == 2 and "'dog'" in err


@pytest.mark.parametrize(
    ("names", "said"),
    [
        ({1: "circle", 2: "dog", 4: "big triangle"}, "'dog'"),
        ({1: "circle", 3: "rhombus", 4: "big triangle"}, "category 3"),
    ],
)
def test_other_classes_than_the_checkpoints_are_refused(run, tmp_path, weights, names, said):
    data = write_coco(tmp_path / "other", names)
    status, _, err = run("--weights-path", weights, "--data-path", data)
    assert status == 2 and said in err and err.count("\n") == 1
    assert not Path("record_mAP.txt").exists()


def test_another_class_count_of_a_bare_state_dict_is_refused(run, tmp_path):
    torch.save(tiny_model().state_dict(), "bare.pth")
    data = write_coco(tmp_path / "other", {1: "circle", 2: "square"})
    status, _, err = run("--weights-path", "bare.pth", "--data-path", data)
    assert status == 2 and "3 classes" in err and "has 2" in err


@pytest.mark.parametrize(
    "flags", [("--data-path", "nowhere"), ("--weights-path", "nowhere.pth"), ("--num-classes", "9")]
)
def test_wrong_input_is_one_line_and_status_2(run, weights, data, flags):
    status, _, err = run("--weights-path", weights, "--data-path", data, *flags)
    assert status == 2 and err.startswith("error: ") and err.count("\n") == 1
