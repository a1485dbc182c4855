"""A lack of memory is reported with what was being done and advice that fits; drawings do not grow with the image."""

from contextlib import ExitStack

import pytest
import torch

import predict
import train
import validation
from network_files.operators.boxes import HALF_PIXEL
from network_files.operators.cropped_masks import CroppedMasks
from tests.small_runs import SMALL, call
from tests.tiny_model import write_checkpoint, write_coco
from train_utils.data.labels import LabelMap
from train_utils.run.reports import DRAWN, image_rows

TRAINING = ("--accumulate-steps", "--amp", "--recompute")  # flags that only training has


def no_memory(*_, **__):
    raise MemoryError("Unable to allocate 9 GiB")


@pytest.mark.parametrize(
    ("script", "function", "doing", "advice"),
    [
        (predict, "train_utils.prediction.predictor.detect", "prediction on an image of 64x48", "--max-size"),
        (validation, "train_utils.run.evaluation.evaluate_batch", "evaluation of 64x48 pixels", "--batch-size"),
        (validation, "train_utils.run.evaluation.evaluate_results", "COCO numbers", "--box-score-thresh"),
        (validation, "validation.write_report", "report.html", "--report-images"),
        (validation, "validation.load_model", "out of memory", "close other programs"),
        (train, "train_utils.run.step.accumulate_gradients", "training step 0", "--recompute"),
        (train, "train_utils.run.epochs.image_rows", "TensorBoard", "--resume auto"),
    ],
)
def test_what_was_being_done_is_named_with_advice_that_fits(
    script, function, doing, advice, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    data, weights = write_coco(tmp_path / "data"), write_checkpoint(tmp_path / "model.pth")
    words = {
        predict: ("--weights-path", weights, "--img-path", data / "images/0.png", "--device", "cpu"),
        validation: ("--weights-path", weights, "--data-path", data, "--report", "--device", "cpu"),
        train: (*SMALL, "--data-path", data, "--epochs", 1),
    }[script]
    monkeypatch.setattr(function, no_memory)
    assert call(script, *words) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: ") and "(Unable to allocate 9 GiB)" in error
    assert doing in error and advice in error
    assert function.endswith("accumulate_gradients") or not any(flag in error for flag in TRAINING)


def test_only_with_recompute_a_cpu_hands_freed_memory_back_at_once(tmp_path, monkeypatch):
    data, steps = write_coco(tmp_path / "data"), []

    def returning():
        context = ExitStack()
        context.callback(steps.append, "returned")
        return context

    def step(*_):
        steps.append("step")
        raise MemoryError("Unable to allocate 9 GiB")

    monkeypatch.setattr("train_utils.run.loop.returning_freed_memory", returning)
    monkeypatch.setattr("train_utils.run.step.accumulate_gradients", step)
    for more in ((), ("--recompute", "--norm", "group")):
        words = (*SMALL, "--data-path", data, "--epochs", 1, "--output-dir", tmp_path / f"run{len(more)}", *more)
        assert call(train, *words) == 2
    assert steps == ["step", "step", "returned"]


@pytest.mark.parametrize("size", [(6000, 4), (4, 6000), (2000, 3000), (40, 60)])
def test_what_tensorboard_shows_is_drawn_small(size):
    height, width = size
    boxes = torch.tensor([[0.0, 0, width / 2, height / 2]])
    masks = torch.zeros(1, *size, dtype=torch.uint8)
    masks[:, : height // 2, : width // 2] = 1
    target = {"boxes": boxes, "labels": torch.tensor([1]), "masks": CroppedMasks.from_masks(masks)}
    found = {"boxes": boxes, "labels": torch.tensor([1]), "scores": torch.tensor([0.9])}
    found["mask_probs"] = torch.ones(1, 28, 28)
    image = torch.full((3, *size), 90, dtype=torch.uint8)
    ((truth, prediction),) = image_rows([(image, target, found)], LabelMap.from_categories({1: "a"}), HALF_PIXEL)
    assert truth.size == prediction.size
    assert truth.height == DRAWN[0] or truth.width == DRAWN[1]  # as the board's grid shows it, not larger
    assert truth.height <= DRAWN[0] and truth.width <= DRAWN[1]
    for drawn in (truth, prediction):  # the object is tinted where it is, the rest is as it was
        assert drawn.getpixel((drawn.width - 1, drawn.height - 1)) == (90, 90, 90) or min(size) == 4
        assert drawn.getpixel((drawn.width // 4, drawn.height // 4)) != (90, 90, 90)
