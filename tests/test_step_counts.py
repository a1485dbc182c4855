"""The numbers that TensorBoard shows of a training step, beside what a whole record of the same pass holds."""

from types import SimpleNamespace

import pytest
import torch

from network_files import Recorder
from network_files.operators.boxes import box_iou
from tests.tiny_model import tiny_model
from train_utils.logs.step_counts import StepCounts
from train_utils.run.epochs import Trainer


def two_images():
    masks = torch.zeros(2, 64, 64, dtype=torch.uint8)
    masks[0, 8:30, 10:40], masks[1, 40:60, 20:50] = 1, 1
    boxes = torch.tensor([[10.0, 8, 40, 30], [20, 40, 50, 60]])
    full = {"boxes": boxes, "labels": torch.tensor([1, 2]), "masks": masks, "sample_seed": 3}
    empty = {"boxes": boxes[:0], "labels": torch.zeros(0, dtype=torch.int64), "masks": masks[:0], "sample_seed": 4}
    return [torch.full((3, 64, 64), 90, dtype=torch.uint8)] * 2, [full, empty]


def test_means_are_those_of_the_whole_record():
    model, (images, targets) = tiny_model().train(), two_images()
    seen, counts = Recorder(), StepCounts()
    for recorder in (seen, counts):
        model(images, targets, recorder=recorder)
    reached = 0
    for objects, proposals in zip(seen["rpn_targets"], seen["proposals"], strict=True):
        for one in objects["objects"]:
            reached += any(box_iou(one[None], p[None]).item() >= 0.5 for p in proposals["boxes"][proposals["keep"]])
    rois = sum(int((r["label"][r["chosen"]] > 0).sum()) for r in seen["roi_samples"])
    anchors = sum(int((r["label"][torch.cat((r["positive"], r["negative"]))] == 1).sum()) for r in seen["rpn_targets"])
    means = {name: float(value) for name, value in counts.means().items()}
    assert means == pytest.approx(
        {"positive anchors": anchors / 2, "positive RoIs": rois / 2, "proposal recall 0.5": reached / 2}
    )
    assert anchors > 0 and rois > 0


def test_no_objects_have_no_recall():
    model, (images, targets) = tiny_model().train(), two_images()
    counts = StepCounts()
    model(images[1:], targets[1:], recorder=counts)
    means = counts.means()
    assert set(means) == {"positive anchors", "positive RoIs"} and float(means["positive RoIs"]) == 0
    assert StepCounts().means().keys() == means.keys()


def test_recall_by_hand():
    counts, far = StepCounts(), torch.tensor([[50.0, 50, 60, 60]])
    box, half, less = (torch.tensor([[0.0, 0, 10, height]]) for height in (10, 5, 4))  # IoU with box: 1, 0.5, 0.4
    for boxes, keep in ((torch.cat((box, half)), [1]), (torch.cat((far, less)), [0, 1])):
        counts("proposals", boxes=boxes, keep=torch.tensor(keep))
    for objects in (box, torch.cat((far, box))):
        counts("rpn_targets", objects=objects, positive=torch.arange(3))
    means = counts.means()
    assert float(means["proposal recall 0.5"]) == pytest.approx(2 / 3) and means["positive anchors"] == 3


@pytest.mark.parametrize(("is_main", "counted"), [(True, [0, 3]), (False, [])])
def test_steps_are_counted_as_often_as_lines_are_printed(is_main, counted):
    trainer = SimpleNamespace(world=SimpleNamespace(is_main=is_main), config=SimpleNamespace(print_freq=3))
    assert [step for step in range(5) if Trainer.counts_of(trainer, step)] == counted
