"""The law of the sampled RPN head: logits, deltas, losses and gradients of the dense head."""

import pytest
import torch

from benchmarks.torchvision_model import spread_ranks
from network_files import CroppedMasks, MaskRCNNConfig, matching, sampled_rpn_head
from network_files.operators.padded import Padded
from network_files.operators.roi_align import FeatureTable
from network_files.rpn import RegionProposalNetwork, RPNHead
from network_files.sampled_rpn_head import patches, predict_cells, sampling_pays
from network_files.transform import ImageBatch, Objects

CHANNELS, PADDED, SIZES = 8, (128, 192), [(120, 192), (128, 150)]


def test_patches_hold_the_cells_around_and_zero_outside():
    maps = [torch.randn(2, 3, 4, 5), torch.randn(2, 3, 1, 2)]
    level, batch_index, cell = torch.tensor([0, 1, 0]), torch.tensor([1, 0, 0]), torch.tensor([19, 1, 7])
    found, inside = patches(FeatureTable(maps), level, batch_index, cell, radius=1)
    around = [
        torch.nn.functional.pad(maps[lv][p], (1, 1, 1, 1))[:, y : y + 3, x : x + 3]
        for lv, p, y, x in ((0, 1, 3, 4), (1, 0, 0, 1), (0, 0, 1, 2))
    ]
    assert torch.equal(found, torch.stack(around))
    assert inside.sum((1, 2)).tolist() == [4, 2, 9]


def random_maps():
    return [torch.randn(2, CHANNELS, h, w, dtype=torch.float64) for h, w in ((9, 12), (5, 6), (1, 2))]


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_the_head_at_every_cell_equals_the_dense_head(depth):
    head, maps = RPNHead(CHANNELS, 3, depth).double(), random_maps()
    for conv, _ in head.conv:
        torch.nn.init.normal_(conv.weight, std=0.1)
        torch.nn.init.normal_(conv.bias)  # so that a hidden cell outside the map would not be zero
    table = FeatureTable(maps)
    for level, (logits, deltas) in enumerate(zip(*head(maps), strict=True)):
        cells = maps[level][0, 0].numel()
        cell, batch_index = torch.arange(cells).repeat(2), torch.arange(2).repeat_interleave(cells)
        found = predict_cells(head, table, torch.full_like(cell, level), batch_index, cell)
        torch.testing.assert_close(found[0].reshape(2, -1), logits, rtol=0, atol=1e-12)
        torch.testing.assert_close(found[1].reshape(2, -1, 4), deltas, rtol=0, atol=1e-12)


def pyramid(images, dtype):
    return [torch.randn(images, CHANNELS, PADDED[0] // s, PADDED[1] // s, dtype=dtype) for s in (4, 8, 16, 32, 64)]


def objects_of(*boxes):
    """The Objects of a batch of images with these boxes [G, 4] of class 1."""
    labels, none = [torch.ones(len(b)).long() for b in boxes], [b[:0] for b in boxes]
    sizes, generators = SIZES[: len(boxes)], [(None, None)] * len(boxes)
    masks = [CroppedMasks.empty(size) for size in sizes]
    return Objects(Padded.of(boxes), Padded.of(labels), masks, Padded.of(none), sizes, generators)


@pytest.mark.parametrize("depth", [1, 2])
@pytest.mark.parametrize("objects", [3, 0])
def test_losses_and_gradients_of_sampled_cells_equal_the_dense_ones(depth, objects, monkeypatch):
    monkeypatch.setattr(matching, "draw", spread_ranks)
    rpn = RegionProposalNetwork(MaskRCNNConfig(rpn_batch_size_per_image=16), CHANNELS, depth).double()
    for parameter in rpn.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    images = ImageBatch(torch.zeros(2, 3, *PADDED, dtype=torch.float64), SIZES, SIZES)
    corner = torch.rand(objects, 2, dtype=torch.float64) * 80
    boxes = torch.cat((corner, corner + 20 + torch.rand(objects, 2, dtype=torch.float64) * 20), 1)
    truth = objects_of(boxes, boxes[:0])
    values, seen = pyramid(2, torch.float64), []
    for sampled in (False, True):
        maps = [v.clone().requires_grad_() for v in values]
        monkeypatch.setattr(sampled_rpn_head, "sampling_pays", lambda *args, sampled=sampled: sampled)
        proposals, losses = rpn(images, FeatureTable(maps), truth)
        inputs = [*maps, *rpn.parameters()]
        seen.append([*proposals.each(), *losses.values(), *torch.autograd.grad(sum(losses.values()), inputs)])
    assert seen[0][-1].any() == (objects > 0)
    for a, b in zip(*seen, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-13)


def test_sampled_cells_have_a_gradient_under_autocast(monkeypatch):
    """The dense pass has no gradient, and autocast keeps the weights that it cast there."""
    monkeypatch.setattr(sampled_rpn_head, "sampling_pays", lambda *args: True)
    rpn, table = RegionProposalNetwork(MaskRCNNConfig(), CHANNELS, depth=1), FeatureTable(pyramid(1, torch.float32))
    images = ImageBatch(torch.zeros(1, 3, *PADDED), [PADDED], [PADDED])
    with torch.autocast("cpu", torch.bfloat16):
        _, losses = rpn(images, table, objects_of(torch.tensor([[20.0, 20, 60, 50]])))
    sum(losses.values()).backward()
    assert all(parameter.grad.any() for parameter in rpn.parameters())


def test_the_dense_head_is_taken_where_samples_are_many():
    maps = random_maps()  # 140 cells of 2 images
    for depth, few, many in ((1, 35, 71), (2, 14, 16)):
        head = RPNHead(CHANNELS, 3, depth)
        assert sampling_pays(head, few, maps) and not sampling_pays(head, many, maps)
