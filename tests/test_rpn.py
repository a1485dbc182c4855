"""Proposals: against torchvision's RPN where levels overlap, and the limits of the config."""

import pytest
import torch
from torchvision.models.detection.image_list import ImageList
from torchvision.ops import box_iou

from benchmarks import torchvision_model as oracle
from network_files import create_model, matching
from network_files.operators.cropped_masks import CroppedMasks
from network_files.operators.roi_align import FeatureTable
from network_files.rpn import RPNHead
from network_files.transform import ImageBatch, Objects

PADDED, SIZES = (128, 192), [(120, 192), (128, 150)]
OVERLAPPING = (32, 36, 40, 44, 48)  # anchors of neighbouring levels are near-duplicates
LIMITS = {
    "rpn_pre_nms_top_n_train": 90,
    "rpn_post_nms_top_n_train": 70,
    "rpn_pre_nms_top_n_test": 60,
    "rpn_post_nms_top_n_test": 50,
}


def rpn_pair(**options):
    """torchvision's RPN and ours with the same random weights, in float64."""
    options = LIMITS | {"anchor_sizes": OVERLAPPING} | options
    theirs = oracle.build(3, "resnet18", **options).rpn.double()
    torch.nn.init.normal_(theirs.head.cls_logits.weight, std=0.1)
    torch.nn.init.normal_(theirs.head.bbox_pred.weight, std=0.05)
    ours = create_model(3, "resnet18", **options).rpn.double()
    ours.load_state_dict(theirs.state_dict())
    return theirs, ours


def propose(theirs, ours, training):
    shapes = [(PADDED[0] // s, PADDED[1] // s) for s in (4, 8, 16, 32, 64)]
    maps = [torch.randn(2, 256, *shape, dtype=torch.float64) for shape in shapes]
    images = torch.zeros(2, 3, *PADDED, dtype=torch.float64)
    theirs.train(training)
    ours.train(training)
    targets = [{"boxes": torch.zeros(0, 4, dtype=torch.float64)}] * 2
    with torch.no_grad():
        expected, _ = theirs(ImageList(images, SIZES), dict(enumerate(maps)), targets)
        found, losses = ours(ImageBatch(images, SIZES, SIZES), FeatureTable(maps))
    assert losses == {}
    return expected, found


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("options", [{}, {"rpn_score_thresh": 0.7}, {"rpn_nms_thresh": 0.4}])
def test_proposals_equal_torchvision(training, options):
    expected, found = propose(*rpn_pair(**options), training)
    assert all(len(e) for e in expected)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-9)


def test_near_duplicates_of_other_levels_stay():
    _, (proposals, _) = propose(*rpn_pair(rpn_post_nms_top_n_test=1000), False)
    overlap = box_iou(proposals, proposals).fill_diagonal_(0)
    assert overlap.max() > 0.7  # within a level the threshold forbids it


def test_limits():
    for training, most in ((True, 70), (False, 50)):
        _, found = propose(*rpn_pair(), training)
        assert [len(f) for f in found] == [most] * 2
    for (height, width), boxes in zip(SIZES, found, strict=True):
        assert 0 <= boxes.min() and boxes[:, 2].max() <= width and boxes[:, 3].max() <= height
        assert (boxes[:, 2:] > boxes[:, :2]).all()


def random_maps(grad=False):
    return [torch.randn(2, 8, h, w, dtype=torch.float64, requires_grad=grad) for h, w in ((9, 12), (5, 6), (1, 2))]


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_the_head_at_every_cell_equals_the_dense_head(depth):
    head, maps = RPNHead(8, 3, depth).double(), random_maps()
    for conv, _ in head.conv:
        torch.nn.init.normal_(conv.weight, std=0.1)
        torch.nn.init.normal_(conv.bias)  # so that a hidden cell outside the map would not be zero
    table = FeatureTable(maps)
    for level, (logits, deltas) in enumerate(zip(*head(maps), strict=True)):
        cells = maps[level][0, 0].numel()
        cell, image = torch.arange(cells).repeat(2), torch.arange(2).repeat_interleave(cells)
        found = head.at(table, torch.full_like(cell, level), image, cell)
        torch.testing.assert_close(found[0].reshape(2, -1), logits, rtol=0, atol=1e-12)
        torch.testing.assert_close(found[1].reshape(2, -1, 4), deltas, rtol=0, atol=1e-12)


@pytest.mark.parametrize("variant", ["v1", "v2"])
@pytest.mark.parametrize("objects", [3, 0])
def test_losses_and_gradients_of_sampled_cells_equal_the_dense_ones(variant, objects, monkeypatch):
    monkeypatch.setattr(matching, "sample_balanced", lambda *args: oracle.spread_choice(*args[:3]))
    rpn = create_model(3, "resnet18", variant, fpn_channels=8, rpn_batch_size_per_image=16).rpn.double().train()
    for parameter in rpn.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    shapes = [(PADDED[0] // s, PADDED[1] // s) for s in (4, 8, 16, 32, 64)]
    images = ImageBatch(torch.zeros(2, 3, *PADDED, dtype=torch.float64), SIZES, SIZES)
    corner = torch.rand(objects, 2, dtype=torch.float64) * 80
    boxes = torch.cat((corner, corner + 20 + torch.rand(objects, 2, dtype=torch.float64) * 20), 1)
    truth = [
        Objects(boxes[:n], torch.ones(n).long(), CroppedMasks.empty(size), boxes[:0], size, (None, None))
        for n, size in zip((objects, 0), SIZES, strict=True)
    ]
    values = [torch.randn(2, 8, *shape, dtype=torch.float64) for shape in shapes]
    seen = []
    for sampled in (False, True):
        maps = [v.clone().requires_grad_() for v in values]
        monkeypatch.setattr(rpn.head, "pays_at", lambda *args, sampled=sampled: sampled)
        proposals, losses = rpn(images, FeatureTable(maps), truth)
        inputs = [*maps, *rpn.parameters()]
        seen.append([*proposals, *losses.values(), *torch.autograd.grad(sum(losses.values()), inputs)])
    assert seen[0][-1].any() == (objects > 0)
    for a, b in zip(*seen, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-13)


def test_sampled_cells_have_a_gradient_under_autocast(monkeypatch):
    """The dense pass has no gradient, and autocast keeps the weights that it cast there."""
    monkeypatch.setattr(RPNHead, "pays_at", lambda *args: True)
    rpn = create_model(3, "resnet18", fpn_channels=8).rpn.train()
    maps = [torch.randn(1, 8, PADDED[0] // s, PADDED[1] // s) for s in (4, 8, 16, 32, 64)]
    truth = [
        Objects(
            torch.tensor([[20.0, 20, 60, 50]]),
            torch.tensor([1]),
            CroppedMasks.empty(PADDED),
            torch.zeros(0, 4),
            PADDED,
            (None, None),
        )
    ]
    with torch.autocast("cpu", torch.bfloat16):
        _, losses = rpn(ImageBatch(torch.zeros(1, 3, *PADDED), [PADDED], [PADDED]), FeatureTable(maps), truth)
    sum(losses.values()).backward()
    assert all(parameter.grad.any() for parameter in rpn.parameters())


def test_the_dense_head_is_taken_where_samples_are_many():
    maps = random_maps()  # 140 cells of 2 images
    assert RPNHead(8, 3, 1).pays_at(35, maps) and not RPNHead(8, 3, 1).pays_at(71, maps)
    assert RPNHead(8, 3, 2).pays_at(14, maps) and not RPNHead(8, 3, 2).pays_at(16, maps)
