"""The evaluation benchmark: both sides give the same numbers of a drawn detections file, and it says so."""

import pytest

from backbone.errors import InputError
from benchmarks import evaluation
from train_utils.evaluation import evaluators as coco_evaluators
from train_utils.evaluation.evaluators import FASTER, PYCOCOTOOLS


def test_both_sides_agree(tmp_path):
    paths = evaluation.draw(tmp_path, 20)
    expected = evaluation.by_hand(*paths)
    assert evaluation.difference(evaluation.ours(*paths, PYCOCOTOOLS), expected) == 0
    assert 0.2 < expected["segm"][0] < 0.9 and evaluation.draw(tmp_path, 20) == paths


def test_a_difference_is_seen():
    numbers = {"bbox": [0.5, 0.25], "segm": [0.125, -1.0]}
    assert evaluation.difference(numbers, {**numbers, "segm": [0.125, 0.0]}) == 1


def test_the_command_tells_both(tmp_path, capsys):
    evaluation.main(["--images", "5", "--folder", str(tmp_path)])
    ours, theirs, ratio = capsys.readouterr().out.splitlines()[-3:]
    assert ours.startswith("ours   pycocotools") and theirs.startswith("theirs pycocotools")
    assert ratio.startswith("ratio ") and ratio.endswith("largest difference 0.0e+00")


def test_an_evaluator_that_is_not_installed_is_told_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr(coco_evaluators, "_faster_version", lambda: ())
    monkeypatch.setattr(evaluation, "draw", lambda *_: pytest.fail("it goes on"))
    with pytest.raises(InputError, match="is not installed"):
        evaluation.main(["--evaluator", FASTER, "--folder", str(tmp_path)])
