"""NMS: by hand on either side of the threshold, against the textbook loop, and against torchvision's."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torchvision import ops

from network_files.operators import nms as nms_module
from network_files.operators.nms import batched_nms, nms
from tests.plain_loops import random_boxes, slow_iou


def slow_nms(boxes, scores, groups, threshold):
    """The textbook: take the best box left, drop those of its group that overlap it by more."""
    left = sorted(range(len(boxes)), key=lambda i: (-scores[i], i))
    kept = []
    while left:
        best = left.pop(0)
        kept.append(best)
        left = [i for i in left if groups[i] != groups[best] or slow_iou(boxes[i], boxes[best]) <= threshold]
    return kept


def test_either_side_of_the_threshold():
    # 10 x 10 boxes shifted by s share (10 - s) 10 of 100 + 10 s pixels: IoU 1/3 at s = 5, 0.25 at s = 6
    boxes = torch.tensor([[0.0, 0, 10, 10], [5, 0, 15, 10], [6, 20, 16, 30], [0, 20, 10, 30]])
    scores = torch.tensor([0.9, 0.8, 0.7, 0.6])
    assert nms(boxes, scores, 0.3).tolist() == [0, 2, 3]
    assert nms(boxes, scores, 0.34).tolist() == [0, 1, 2, 3]
    assert nms(boxes, scores, 0.24).tolist() == [0, 2]
    assert nms(boxes, scores, 0.25).tolist() == [0, 2, 3]  # exactly at the threshold stays


def test_a_dropped_box_drops_nothing():
    boxes = torch.tensor([[0.0, 0, 10, 10], [4, 0, 14, 10], [8, 0, 18, 10]])
    assert nms(boxes, torch.tensor([0.9, 0.8, 0.7]), 0.4).tolist() == [0, 2]


def test_groups_do_not_touch_each_other_and_ties_keep_their_order():
    boxes = torch.tensor([[0.0, 0, 10, 10]]).repeat(4, 1)
    scores = torch.tensor([0.5, 0.9, 0.5, 0.9])
    assert nms(boxes, scores, 0.5).tolist() == [1]
    assert batched_nms(boxes, scores, torch.tensor([0, 0, 1, 1]), 0.5).tolist() == [1, 3]
    assert batched_nms(boxes, scores, torch.tensor([3, 0, 1, 2]), 0.5).tolist() == [1, 3, 0, 2]


# few coordinates and few scores, so that equal boxes, equal scores and IoUs at the threshold are common
coordinates = st.tuples(*[st.integers(0, 6)] * 2, *[st.integers(1, 6)] * 2)
cases = st.lists(st.tuples(coordinates, st.sampled_from([0.1, 0.5, 0.9]), st.integers(0, 2)), max_size=40)


@pytest.fixture(params=["pairs", "pairs in portions", "blocks"], scope="module")
def way(request):
    """The ways of comparing boxes: with no pair allowed, blocks are compared whatever the boxes."""
    patch = pytest.MonkeyPatch()
    if request.param == "blocks":
        patch.setattr(nms_module, "PAIRS", -1)
    if request.param == "pairs in portions":
        patch.setattr(nms_module, "PORTION", 40)
    yield request.param
    patch.undo()


@given(cases, st.sampled_from([0.0, 0.2, 0.25, 0.5, 2 / 3, 0.7, 1.0]))
def test_equals_the_loop_and_torchvision(way, case, threshold):
    boxes = torch.tensor([[x, y, x + w, y + h] for (x, y, w, h), _, _ in case], dtype=torch.float64).reshape(-1, 4)
    scores = torch.tensor([s for _, s, _ in case], dtype=torch.float64)
    groups = torch.tensor([g for _, _, g in case], dtype=torch.int64)
    kept = batched_nms(boxes, scores, groups, threshold)
    assert kept.tolist() == slow_nms(boxes.tolist(), scores.tolist(), groups.tolist(), threshold)
    for group in groups.unique():
        mine = (groups == group).nonzero()[:, 0]
        theirs = mine[ops.nms(boxes[mine], scores[mine], threshold)]
        assert kept[groups[kept] == group].tolist() == theirs.tolist()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("threshold", [0.3, 0.5, 0.7])
@pytest.mark.parametrize("extent", [100.0, 1000.0])
def test_many_boxes_equal_torchvision(way, dtype, threshold, extent):
    boxes = random_boxes(3000, seed=5, extent=extent).to(dtype)
    scores = (torch.rand(3000, generator=torch.Generator().manual_seed(6)) * 500).round().to(dtype)  # with ties
    groups = torch.randint(0, 5, (3000,), generator=torch.Generator().manual_seed(7))
    assert torch.equal(nms(boxes, scores, threshold), ops.nms(boxes, scores, threshold))
    kept = batched_nms(boxes, scores, groups, threshold)
    for group in range(5):
        mine = (groups == group).nonzero()[:, 0]
        assert torch.equal(kept[groups[kept] == group], mine[ops.nms(boxes[mine], scores[mine], threshold)])
    assert bool((scores[kept].diff() <= 0).all())


@pytest.mark.parametrize("block", [1, 2, 7, 64])
def test_block_size_changes_nothing(monkeypatch, block):
    boxes, scores = random_boxes(150, 8), torch.rand(150, dtype=torch.float64)
    groups = torch.randint(0, 3, (150,))
    expected = slow_nms(boxes.tolist(), scores.tolist(), groups.tolist(), 0.4)
    monkeypatch.setattr(nms_module, "PAIRS", -1)
    monkeypatch.setattr(nms_module, "BLOCK", block)
    assert batched_nms(boxes, scores, groups, 0.4).tolist() == expected


def test_threshold_means_what_it_says_in_float32():
    # 7 of 10 pixels shared: the IoU is float32(0.7) < 0.7, so nothing is dropped, as in torchvision
    boxes = torch.tensor([[0.0, 0, 10, 1], [0, 0, 7, 1]])
    scores = torch.tensor([1.0, 0.5])
    assert nms(boxes, scores, 0.7).tolist() == ops.nms(boxes, scores, 0.7).tolist() == [0, 1]
    # 6 of 10: float32(0.6) > 0.6
    boxes = torch.tensor([[0.0, 0, 10, 1], [0, 0, 6, 1]])
    assert nms(boxes, scores, 0.6).tolist() == ops.nms(boxes, scores, 0.6).tolist() == [0]


def test_no_boxes_and_empty_boxes():
    none = torch.zeros(0, 4)
    assert nms(none, torch.zeros(0), 0.5).shape == (0,)
    assert batched_nms(none, torch.zeros(0), torch.zeros(0, dtype=torch.int64), 0.5).dtype == torch.int64
    points = torch.tensor([[3.0, 3, 3, 3], [3, 3, 3, 3]])
    assert (
        nms(points, torch.tensor([0.5, 0.6]), 0.5).tolist() == ops.nms(points, torch.tensor([0.5, 0.6]), 0.5).tolist()
    )
