"""The five losses: by hand, against torchvision, and where nothing is positive."""

import math

import pytest
import torch
from torchvision.models.detection.roi_heads import fastrcnn_loss

from network_files.losses import box_losses, mask_loss, rpn_losses


def test_rpn_losses_by_hand():
    objectness = torch.tensor([0.0, 0.0, math.log(3)])  # probabilities 1/2, 1/2, 3/4
    labels = torch.tensor([1, 0, 1])
    deltas = torch.tensor([[0.5, 0, 0, 0], [0, 0, 0, 1 / 18]])
    losses = rpn_losses(objectness, labels, deltas, torch.zeros(2, 4))
    assert losses["loss_objectness"].item() == pytest.approx((2 * math.log(2) + math.log(4 / 3)) / 3)
    # linear beyond 1/9: 0.5 - 1/18; a parabola below: (1/18)^2 * 9 / 2
    assert losses["loss_rpn_box_reg"].item() == pytest.approx((0.5 - 1 / 18 + 1 / 72) / 3)


def test_box_losses_use_the_deltas_of_the_own_class():
    logits = torch.zeros(2, 3)
    deltas = torch.full((2, 12), 100.0)
    deltas[1, 8:] = 0.25  # class 2 of the second RoI
    losses = box_losses(logits, deltas, torch.tensor([0, 2]), torch.zeros(2, 4))
    assert losses["loss_classifier"].item() == pytest.approx(math.log(3))
    assert losses["loss_box_reg"].item() == pytest.approx(4 * (0.25 - 1 / 18) / 2)


def test_mask_loss_is_a_mean_over_cells():
    targets = torch.rand(2, 4, 4)
    assert mask_loss(torch.zeros(2, 4, 4), targets)["loss_mask"].item() == pytest.approx(math.log(2))
    wrong = torch.tensor([3.0, 0.0])[:, None, None].expand(2, 4, 4)  # e^3 : 1 for set, where nothing is
    expected = (math.log(1 + math.exp(3)) + math.log(2)) / 2
    assert mask_loss(wrong, torch.zeros(2, 4, 4))["loss_mask"].item() == pytest.approx(expected)


def test_box_losses_and_gradients_equal_torchvision():
    logits, deltas = torch.randn(40, 7, dtype=torch.float64), torch.randn(40, 28, dtype=torch.float64)
    labels, targets = torch.randint(0, 7, (40,)), torch.randn(40, 4, dtype=torch.float64)
    ours = [t.clone().requires_grad_() for t in (logits, deltas)]
    theirs = [t.clone().requires_grad_() for t in (logits, deltas)]
    found = box_losses(*ours, labels, targets)
    expected = fastrcnn_loss(*theirs, [labels[:15], labels[15:]], [targets[:15], targets[15:]])
    for a, b in zip((found["loss_classifier"], found["loss_box_reg"]), expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=0)
    sum(found.values()).backward()
    sum(expected).backward()
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("sampled", [0, 5])
def test_nothing_positive_gives_losses_with_a_zero_gradient(sampled):
    objectness, deltas = torch.randn(sampled, requires_grad=True), torch.randn(0, 4, requires_grad=True)
    losses = rpn_losses(objectness, torch.zeros(sampled), deltas, torch.zeros(0, 4))
    logits, boxes = torch.randn(sampled, 3, requires_grad=True), torch.randn(sampled, 12, requires_grad=True)
    losses |= box_losses(logits, boxes, torch.zeros(sampled, dtype=torch.int64), torch.zeros(sampled, 4))
    masks = torch.randn(0, 28, 28, requires_grad=True)
    losses |= mask_loss(masks, torch.zeros(0, 28, 28))
    assert all(torch.isfinite(loss) for loss in losses.values())
    assert losses["loss_rpn_box_reg"] == losses["loss_box_reg"] == losses["loss_mask"] == 0
    sum(losses.values()).backward()
    assert all(t.grad is not None and t.grad.isfinite().all() for t in (objectness, deltas, logits, boxes, masks))
    assert not boxes.grad.any()
