"""Box geometry and BoxCoder: by hand, against torchvision, and the law decode(encode(b, r), r) == b."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torchvision import ops
from torchvision.models.detection._utils import BoxCoder as TorchvisionBoxCoder
from torchvision.models.detection.transform import resize_boxes

from network_files.operators import boxes as box_ops
from network_files.operators.boxes import BoxCoder
from tests.plain_loops import random_boxes, slow_iou

WEIGHTS = (10.0, 10.0, 5.0, 5.0)


def test_iou_by_hand():
    a = torch.tensor([[0.0, 0, 10, 10]])
    b = torch.tensor([[0.0, 0, 10, 10], [5, 0, 15, 10], [10, 0, 20, 10], [2, 2, 4, 4]])
    assert box_ops.box_iou(a, b).tolist() == [pytest.approx([1, 50 / 150, 0, 4 / 100])]
    assert box_ops.box_ioa(a, b).tolist() == [[1, 0.5, 0, 1]]


@pytest.mark.parametrize(("n", "m"), [(7, 5), (1, 1), (0, 3), (3, 0)])
def test_iou_equals_the_loop_and_torchvision(n, m):
    a, b = random_boxes(n, 1), random_boxes(m, 2)
    iou = box_ops.box_iou(a, b)
    slow = torch.tensor([[slow_iou(x, y) for y in b.tolist()] for x in a.tolist()], dtype=a.dtype).reshape(n, m)
    torch.testing.assert_close(iou, slow)
    assert torch.equal(iou.float(), ops.box_iou(a, b).float())


def test_share_inside_an_empty_box_is_zero():
    assert box_ops.box_ioa(torch.tensor([[0.0, 0, 9, 9]]), torch.tensor([[3.0, 3, 3, 3]])).tolist() == [[0]]


def test_clip_and_smallest_side():
    boxes = torch.tensor([[-5.0, -2, 12, 30], [3, 4, 5, 6], [20, 3, 30, 8]])
    clipped = box_ops.clip_boxes(boxes, (20, 10))  # height 20, width 10
    assert clipped.tolist() == [[0, 0, 10, 20], [3, 4, 5, 6], [10, 3, 10, 8]]
    assert torch.equal(clipped, ops.clip_boxes_to_image(boxes, (20, 10)))
    assert box_ops.at_least(clipped, 2.0).tolist() == [True, True, False]  # exactly 2 pixels stay


@pytest.mark.parametrize("sizes", [((427, 640), (800, 1199)), ((333, 500), (533, 800)), ((3, 7), (11, 5))])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_scaling_equals_torchvision_to_the_bit(sizes, dtype):
    boxes = random_boxes(50, extent=300).to(dtype)
    assert torch.equal(box_ops.scale_boxes(boxes, *sizes), resize_boxes(boxes, *sizes))


@pytest.mark.parametrize("weights", [(1.0,) * 4, WEIGHTS])
def test_coder_equals_torchvision(weights):
    boxes, reference = random_boxes(40, 3), random_boxes(40, 4)
    ours, theirs = BoxCoder(weights), TorchvisionBoxCoder(weights)
    deltas = ours.encode(boxes, reference)
    torch.testing.assert_close(deltas, theirs.encode_single(boxes, reference), rtol=1e-12, atol=1e-12)
    deltas = deltas + torch.randn_like(deltas) * 3
    torch.testing.assert_close(
        ours.decode(deltas, reference), theirs.decode_single(deltas, reference), rtol=1e-12, atol=1e-9
    )


box = st.tuples(*[st.floats(-500, 500)] * 2, *[st.floats(0.5, 500)] * 2).map(
    lambda b: [*b[:2], b[0] + b[2], b[1] + b[3]]
)


@given(box, box)
def test_decode_undoes_encode(a, b):
    a, b = torch.tensor([a], dtype=torch.float64), torch.tensor([b], dtype=torch.float64)
    if bool(((a[:, 2:] - a[:, :2]) / (b[:, 2:] - b[:, :2]) > 62).any()):
        return  # more than the growth that decode allows
    coder = BoxCoder(WEIGHTS)
    torch.testing.assert_close(coder.decode(coder.encode(a, b), b), a, rtol=1e-9, atol=1e-8)


def test_coder_by_hand():
    reference = torch.tensor([[0.0, 0, 10, 20]])
    boxes = torch.tensor([[5.0, 0, 25, 20]])  # centre moved by one width, twice as wide
    assert BoxCoder().encode(boxes, reference).tolist() == [pytest.approx([1, 0, math.log(2), 0])]
    assert BoxCoder(WEIGHTS).encode(boxes, reference).tolist() == [pytest.approx([10, 0, 5 * math.log(2), 0])]


def test_wild_growth_is_capped():
    reference = torch.tensor([[0.0, 0, 10, 20]])
    decoded = BoxCoder().decode(torch.tensor([[0.0, 0, 90, 90]]), reference)
    width, height = (decoded[0, 2] - decoded[0, 0]).item(), (decoded[0, 3] - decoded[0, 1]).item()
    assert (width, height) == (pytest.approx(625), pytest.approx(1250))


def test_no_boxes():
    none = torch.zeros(0, 4)
    assert BoxCoder().encode(none, none).shape == BoxCoder().decode(none, none).shape == (0, 4)
    assert box_ops.clip_boxes(none, (5, 5)).shape == box_ops.scale_boxes(none, (5, 5), (9, 9)).shape == (0, 4)
