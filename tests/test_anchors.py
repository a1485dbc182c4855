"""Anchors: by hand, and against torchvision's generator."""

import pytest
import torch
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList

from network_files.anchors import AnchorGrid, cell_anchors

SIZES, RATIOS = (32, 64, 128, 256, 512), (0.5, 1.0, 2.0)


def maps(height, width, dtype=torch.float32):
    """Five levels as the FPN gives them for a padded image: the last one is pooled, rounding up."""
    shapes = [(height // s, width // s) for s in (4, 8, 16, 32)]
    shapes.append(tuple((side + 1) // 2 for side in shapes[-1]))
    return [torch.zeros(2, 1, *shape, dtype=dtype) for shape in shapes]


def test_one_cell_by_hand():
    # 32^2 pixels: 45 x 23 (ratio 0.5, wide), 32 x 32, 23 x 45; halves rounded to whole pixels
    assert cell_anchors(32, RATIOS).tolist() == [[-23, -11, 23, 11], [-16, -16, 16, 16], [-11, -23, 11, 23]]


def test_order_is_cell_by_cell_along_rows():
    anchors = AnchorGrid((4,), (1.0,))([torch.zeros(1, 1, 2, 3)], (16, 24))[0]
    centres = ((anchors[:, :2] + anchors[:, 2:]) / 2).tolist()
    assert centres == [[0, 0], [8, 0], [16, 0], [0, 8], [8, 8], [16, 8]]


@pytest.mark.parametrize("padded", [(64, 96), (800, 1088), (224, 32)])
@pytest.mark.parametrize("ratios", [RATIOS, (1.0,), (0.25, 3.0)])
@pytest.mark.parametrize("sizes", [SIZES, (8, 16, 32, 64, 128)])
def test_equal_torchvision(padded, ratios, sizes):
    levels = maps(*padded, dtype=torch.float64)
    theirs = AnchorGenerator(tuple((s,) for s in sizes), (ratios,) * 5)
    expected = theirs(ImageList(torch.zeros(2, 3, *padded), [padded, padded]), levels)
    found = torch.cat(AnchorGrid(sizes, ratios)(levels, padded))
    assert found.dtype == torch.float64
    for image in expected:  # the same for every image
        assert torch.equal(found, image)


def test_a_change_of_shape_or_type_is_not_served_from_the_last_call():
    grid = AnchorGrid(SIZES, RATIOS)
    first = grid(maps(64, 96), (64, 96))
    assert grid(maps(64, 96), (64, 96)) is first
    assert [len(a) for a in grid(maps(96, 64), (96, 64))] == [len(a) for a in first]
    assert not torch.equal(grid(maps(96, 64), (96, 64))[0], first[0])
    assert grid(maps(96, 64, torch.float64), (96, 64))[0].dtype == torch.float64


def test_are_exact_beside_maps_of_half_precision():
    exact, half = (AnchorGrid(SIZES, RATIOS)(maps(800, 1312, t), (800, 1312)) for t in (torch.float32, torch.bfloat16))
    assert all(torch.equal(a, b) for a, b in zip(exact, half, strict=True))
