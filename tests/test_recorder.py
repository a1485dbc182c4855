"""The recorder of a forward pass: it changes nothing, costs nothing when absent, and keeps what happened."""

import pytest
import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode

from network_files import CroppedMasks, Recorder
from network_files.operators.boxes import BoxCoder
from network_files.operators.roi_align import FeatureTable
from tests.plain_loops import slow_iou
from tests.tiny_model import tiny_model
from tools.stages.trace import anchor_of_proposal, proposal_of_detection

COPIES = {"detach", "clone", "copy_", "_to_copy", "empty_strided", "alias", "lift_fresh"}
PICKS = {"slice", "select", "unbind", "split_with_sizes", "view", "index", "cat", "_unsafe_view", "expand"}
PLACES = {"arange", "unsqueeze", "lt", "cumsum", "sub", "where", "bitwise_and", "zeros", "empty"}


class Operations(TorchDispatchMode):
    """The names of the operations that run, in order."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


def sample(seed=0, height=60, width=80):
    """A noise image with three bright squares, and its target."""
    rng = torch.Generator().manual_seed(seed)
    image = torch.randint(0, 90, (3, height, width), generator=rng, dtype=torch.uint8)
    boxes = torch.tensor([[4.0, 5, 30, 28], [40, 10, 70, 50], [50, 20, 62, 31]])
    masks = torch.zeros(3, height, width, dtype=torch.uint8)
    for mask, (x1, y1, x2, y2) in zip(masks, boxes.int().tolist(), strict=True):
        mask[y1:y2, x1:x2] = 1
        image[:, y1:y2, x1:x2] += 100
    return image, {
        "boxes": boxes,
        "labels": torch.tensor([1, 2, 1]),
        "masks": CroppedMasks.from_masks(masks),
        "iscrowd": torch.zeros(3, dtype=torch.uint8),
        "image_id": 1,
        "sample_seed": 5,
    }


def values_of(result):
    """The tensors of losses and detections."""
    if isinstance(result, torch.Tensor):
        return [result]
    return [t for part in (result.values() if isinstance(result, dict) else result) for t in values_of(part)]


def run(training, recorder=None, count=2):
    model = tiny_model(width=16).train(training)
    images, targets = map(list, zip(*(sample(i) for i in range(count)), strict=True))
    with torch.set_grad_enabled(training):
        return model(images, targets, recorder=recorder)


@pytest.mark.parametrize("training", [False, True])
def test_it_changes_neither_results_nor_operations(training):
    seen, plain, recorded = Recorder(), Operations(), Operations()
    run(training)  # makes the constants that are kept
    with plain:
        without = run(training)
    with recorded:
        result = run(training, seen)
    assert all(torch.equal(a, b) for a, b in zip(values_of(without), values_of(result), strict=True))
    rest = iter(recorded.names)
    extra = []
    for name in plain.names:  # those of the plain pass, in order, with copies between them
        while (other := next(rest)) != name:
            extra.append(other)
    extra += rest
    assert extra and set(extra) <= COPIES | PICKS | PLACES, set(extra) - COPIES - PICKS - PLACES


def test_without_one_nothing_is_recorded(monkeypatch):
    monkeypatch.setattr(Recorder, "__call__", lambda *args, **values: pytest.fail("was called"))
    monkeypatch.setattr("network_files.recorder.copied", lambda value: pytest.fail("was called"))
    assert run(True) and run(False)


@pytest.mark.parametrize("recorder", [None, Recorder()], ids=["without", "with"])
def test_the_feature_table_is_freed_as_ever(monkeypatch, recorder):
    """In training its rows go before the heads run, and nothing that is recorded holds them."""
    rows, alive = [], []
    made = FeatureTable.__init__

    def note(table, *args):
        made(table, *args)
        rows.append(StorageWeakRef(table.rows.untyped_storage()))

    model = tiny_model(width=16).train()
    monkeypatch.setattr(FeatureTable, "__init__", note)
    boxes = model.roi_heads.boxes
    monkeypatch.setattr(model.roi_heads, "boxes", lambda x: (alive.append(not rows[0].expired()), boxes(x))[1])
    image, target = sample()
    with torch.no_grad():  # else the graph keeps it
        model([image], [target], recorder=recorder)
    assert alive == [False]


def test_what_is_recorded_is_no_part_of_the_pass():
    seen = Recorder()
    losses = run(True, seen)
    tensors = values_of(
        [
            list(record.values())
            for records in seen.stages.values()
            for record in records
            if not record.keys() & {"sizes"}
        ]
    )
    assert len(tensors) > 40 and not any(t.requires_grad for t in tensors)
    sum(losses.values()).backward()


def test_stages_of_each_mode():
    seen = {training: Recorder() for training in (False, True)}
    for training, recorder in seen.items():
        run(training, recorder)
    counts = {stage: len(records) for stage, records in seen[False].stages.items()}
    assert counts == {
        "batch": 1,
        "rpn": 1,
        "candidates": 5,
        "proposals": 2,
        "rpn_targets": 2,
        "roi_samples": 2,
        "mask_targets": 1,
        "box_targets": 1,
        "rois": 2,
        "classes": 2,
        "masks": 2,
    }
    assert set(seen[True].stages) == set(counts) - {"rois", "classes", "masks"}
    alone = Recorder()
    tiny_model(width=16)([sample()[0]], recorder=alone)
    assert set(alone.stages) == set(counts) - {"rpn_targets", "roi_samples", "mask_targets", "box_targets"}
    assert alone["rpn_targets"] == []


def test_proposals_and_detections_are_traced_to_their_anchors():
    """Decoding the deltas of the anchor that is said to be behind it gives each proposal, and so each detection."""
    model, seen = tiny_model(width=16), Recorder()
    handed = []
    detect = model.roi_heads.detect
    model.roi_heads.detect = lambda batch, table, proposals, *more: (
        handed.extend(proposals.each()),
        detect(batch, table, proposals, *more),
    )[1]
    images = [sample(i)[0] for i in range(2)]
    with torch.inference_mode():
        found = model(images, paste_masks=False, recorder=seen)
    rpn = seen["rpn"][0]
    anchors, deltas = torch.cat(rpn["anchors"]), torch.cat(rpn["deltas"], 1)
    for i in range(2):
        record, classes = seen["proposals"][i], seen["classes"][i]
        proposals = record["boxes"][record["keep"]]
        assert torch.equal(proposals, handed[i]) and len(proposals) == 20
        height, width = seen["batch"][0]["sizes"][i]
        for box, anchor in zip(proposals, anchor_of_proposal(seen, i).tolist(), strict=True):
            own = BoxCoder().decode(deltas[i, anchor][None], anchors[anchor][None])[0]
            x1, y1, x2, y2 = own.tolist()
            clipped = [min(max(x1, 0), width), min(max(y1, 0), height), min(max(x2, 0), width), min(max(y2, 0), height)]
            torch.testing.assert_close(box, torch.tensor(clipped), rtol=0, atol=1e-4)
        parents = proposal_of_detection(seen, i)
        assert len(parents) == len(found[i]["boxes"]) > 5
        for parent, label, score in zip(parents, found[i]["labels"], found[i]["scores"], strict=True):
            assert classes["scores"][parent, label] == score


def test_rpn_labels_agree_with_plain_loops():
    seen = Recorder()
    run(False, seen, count=1)
    record, anchors = seen["rpn_targets"][0], torch.cat(seen["rpn"][0]["anchors"]).tolist()
    objects = record["objects"].tolist()
    overlaps = [[slow_iou(object_, anchor) for object_ in objects] for anchor in anchors]
    peaks = [max(column) for column in zip(*overlaps, strict=True)]
    for row, label in zip(overlaps, record["label"].tolist(), strict=True):
        is_best = any(abs(iou - peak) < 1e-6 for iou, peak in zip(row, peaks, strict=True))
        wanted = 1 if max(row) >= 0.7 or is_best else 0 if max(row) < 0.3 else -1
        assert label == wanted or min(abs(max(row) - 0.7), abs(max(row) - 0.3)) < 1e-6
    chosen = torch.cat((record["positive"], record["negative"]))
    assert len(chosen) == len(chosen.unique()) == 256 and len(record["deltas"]) == len(record["positive"]) > 0
    assert (record["label"][record["positive"]] == 1).all() and (record["label"][record["negative"]] == 0).all()
    rois = seen["roi_samples"][0]
    assert torch.equal(rois["boxes"][rois["chosen"]], seen["box_targets"][0]["rois"][0])


def test_a_mask_target_is_the_object_in_the_roi():
    """An object's own box is among the sampled RoIs; its mask fills it but for the edge."""
    seen = Recorder()
    run(False, seen, count=1)
    record = seen["mask_targets"][0]
    objects = seen["rpn_targets"][0]["objects"]
    (own,) = [i for i, roi in enumerate(record["rois"][0]) if torch.equal(roi, objects[0])]
    assert record["matched"][0][own] == 0 and record["targets"][own, 1:-1, 1:-1].min() > 0.99
    assert record["targets"].shape[1:] == (28, 28)
