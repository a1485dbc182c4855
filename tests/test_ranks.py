"""Commands in several processes: they share the images, and write what one process writes."""

import json
import signal
from pathlib import Path

import pytest
import torch

import predict
import train
import train_multi_GPU
import validation
from tests.faults.processes import end_all, start_ranks
from tests.small_runs import call, files_of
from tests.tiny_model import train_flags, write_checkpoint, write_place


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return write_place()


def test_ranks_validate_as_one_process(place, capsys):
    Path("data/images/1.png").write_bytes(b"no image")
    Path("data/images/2.png").write_bytes(b"no image")
    words = ("--weights-path", "model.pth", "--data-path", "data", "--device", "cpu", "--output-dir")
    assert call(validation, *words, "one") == 1
    alone = capsys.readouterr()
    assert call(validation, *words, "batches", "--batch-size", 4, "--workers", 1) == 1
    capsys.readouterr()
    started = [
        start_ranks(validation, *words, "two", "--batch-size", 3, "--workers", 1, log="log2", size=2),
        start_ranks(validation, *words, "four", log="log4", size=4),
    ]
    assert [end_all(ranks) for ranks in started] == [[1] * 2, [1] * 4], Path("log2").read_text()
    whole = files_of("one")
    assert sorted(whole) == ["detections.json", "record_mAP.json", "record_mAP.txt"]
    assert files_of("two") == files_of("four") == files_of("batches") == whole
    said = Path("log4").read_text().splitlines()
    for line in {*alone.out.splitlines(), *alone.err.splitlines()} - {""}:
        if "written:" not in line and "detections, " not in line and "image/s" not in line:
            assert said.count(line) == (alone.out + alone.err).splitlines().count(line), line
    assert not any("Traceback" in line for line in said)


def test_ranks_predict_as_one_process(place, capsys):
    Path("data/images/9.png").write_bytes(b"no image")
    folder = (
        "--weights-path",
        "model.pth",
        "--device",
        "cpu",
        "--score",
        0,
        "--img-path",
        "data/images",
        "--output-dir",
    )
    assert call(predict, *folder, "one", "--batch-size", 3, "--workers", 2) == 1
    alone = capsys.readouterr()
    log = Path("log")
    assert end_all(start_ranks(predict, *folder, "two", "--write", "coco", log=log, size=2)) == [1, 1], log.read_text()
    assert end_all(start_ranks(predict, *folder, "four", log="log4", size=4)) == [1] * 4, Path("log4").read_text()
    whole, two = files_of("one"), files_of("two")
    assert len(whole) == 5 and files_of("four") == whole
    assert {name: two[name] for name in whole} == whole and "instances.json" in two
    said = log.read_text()
    assert (
        said.count("0.png: ") == said.count("1.png: ") == 1
        and said.count("not predicted: data/images/9.png: not an image") == 1
    )
    assert "4 of 5 images predicted, 1 could not be read" in said and said.count("4 images have 40 detections") == 1
    assert said.count("detections written to two/test_result.json") == 1 and "Traceback" not in said
    assert alone.out.splitlines()[-1] in said.splitlines()


def test_what_ranks_have_done_is_not_done_again(place, capsys):
    """One of two is killed at its second image; one process, then two, go on with what both have kept."""
    words = ("--weights-path", "model.pth", "--device", "cpu", "--coco-json", "data/instances_val.json")
    words = (*words, "--image-dir", "data/images", "--output")
    Path("o").mkdir()
    assert call(predict, *words, "whole.json") == 0
    fault = ("train_utils.prediction.predictor", "Predictor", "look_in", 2, "o/R.json.unfinished.1")
    codes = end_all(start_ranks(predict, *words, "o/R.json", log="log", size=2, fault=fault))
    assert codes[1] == -signal.SIGKILL and codes[0] in (1, 128 + signal.SIGTERM), Path("log").read_text()
    assert "the same command with --resume goes on" in Path("log").read_text()
    capsys.readouterr()
    assert call(predict, *words, "o/R.json", "--resume", "--box-score-thresh", 0.2) == 2
    assert not Path("o/R.json").exists() or json.loads(Path("o/R.json").read_text())
    assert end_all(start_ranks(predict, *words, "o/R.json", "--resume", log="log2", size=2)) == [0, 0]
    said = Path("log2").read_text()
    assert "resuming: 3 of 4 images done" in said and "4 of 4 images predicted" in said
    assert Path("o/R.json").read_bytes() == Path("whole.json").read_bytes()
    assert [path.name for path in Path("o").iterdir()] == ["R.json"]


def test_a_record_says_by_which_versions(place):
    assert call(validation, "--weights-path", "model.pth", "--data-path", "data", "--device", "cpu") == 0
    record = json.loads(Path("record_mAP.json").read_text())
    versions = record["about"]["versions"]
    assert versions["torch"] == str(torch.__version__)
    assert {"numpy", "Pillow", record["segm"]["evaluator"]} < {*versions}


def test_ranks_with_other_flags_or_weights_say_so(place):
    words = ("--weights-path", "model.pth", "--data-path", "data", "--device", "cpu")
    write_checkpoint(Path("other.pth"), score_bias=1.0)
    last = ("--max-dets", 50, "--weights-path", "other.pth")
    assert end_all(start_ranks(validation, *words, log="log", size=2, last=last)) == [2, 2]
    (said,) = (line for line in Path("log").read_text().splitlines() if line.startswith("error: "))
    assert "--max-dets 50, not 100; other weights. Give all of them the same" in said
    assert not Path("record_mAP.json").exists()


def test_test_only_writes_its_record(place, capsys):
    words = ("--data-path", "data", *train_flags(), "--test-only", "--output-dir")
    assert call(train, *words, "one") == 0
    assert "written: one/record_mAP.txt one/record_mAP.json one/detections.json\n" in capsys.readouterr().out
    assert end_all(start_ranks(train_multi_GPU, *words, "two", log="log", size=2)) == [0, 0], Path("log").read_text()
    assert files_of("two") == files_of("one") and len(files_of("one")) == 3
    assert Path("log").read_text().count("IoU type: segm") == 1
