"""RoIAlign: on paper, against the plain loop, against torchvision's operator and multi-level pooler."""

import pytest
import torch
from torchvision import ops
from torchvision.ops.poolers import LevelMapper

from network_files.operators.boxes import GEOMETRIES, HALF_PIXEL, TORCHVISION
from network_files.operators.roi_align import AT_ONCE, FeatureTable, bilinear_taps, roi_align, roi_levels
from tests.plain_loops import slow_bilinear, slow_roi_align

STRIDES = (4, 8, 16, 32)


def align_one(feature, rois, size, ratio=2, stride=1, geometry=TORCHVISION):
    """roi_align on one map of one image."""
    zeros = torch.zeros(len(rois), dtype=torch.int64)
    return roi_align(FeatureTable([feature], (stride,), geometry=geometry), rois, zeros, zeros, size, ratio)


def test_on_paper():
    # a 5 x 5 ramp: the value at (y, x) is 10 y + x, so each bin's mean is the value at its centre
    ramp = 10 * torch.arange(5.0)[:, None] + torch.arange(5.0)
    found = align_one(ramp[None, None], torch.tensor([[0.0, 0, 4, 4], [1, 1, 2, 3]]), 2)
    assert found[0, 0].tolist() == [[11, 13], [31, 33]]
    assert found[1, 0].tolist() == [
        [pytest.approx(16.25), pytest.approx(16.75)],
        [pytest.approx(26.25), pytest.approx(26.75)],
    ]


def test_a_roi_of_a_stride_4_level_on_paper():
    ramp = (10 * torch.arange(5.0)[:, None] + torch.arange(5.0))[None, None]
    assert align_one(ramp, torch.tensor([[0.0, 0, 16, 16]]), 2, stride=4)[0, 0].tolist() == [[11, 13], [31, 33]]


def test_outside_the_map():
    ones = torch.ones(1, 1, 4, 4)
    far, near = align_one(ones, torch.tensor([[10.0, 10, 12, 12], [-0.9, -0.9, 0.1, 0.1]]), 1)
    assert far.item() == 0 and near.item() == 1  # within one cell of the border counts as the border


@pytest.mark.parametrize("position", [-1.01, -1.0, -0.5, 0.0, 0.3, 2.0, 3.9, 4.0, 4.5, 5.0, 5.01])
def test_taps_equal_the_loop(position):
    line = torch.tensor([3.0, 1, 4, 1, 5], dtype=torch.float64)
    index, weight = bilinear_taps(torch.tensor([position], dtype=torch.float64), 5)
    assert (line[index] * weight).sum().item() == pytest.approx(slow_bilinear([line.tolist()], 0, position))


def random_rois(count, height, width, dtype=torch.float64):
    """RoIs of all sizes, some partly outside, some tiny, one of no extent, on a height x width image."""
    corner = torch.rand(count, 2, dtype=dtype) * torch.tensor([width, height], dtype=dtype) * 1.1 - 5
    size = torch.rand(count, 2, dtype=dtype) ** 3 * torch.tensor([width, height], dtype=dtype)
    rois = torch.cat((corner, corner + size), 1)
    rois[-1, 2:] = rois[-1, :2]
    return rois


def test_half_pixel_on_paper():
    # pixel (x, y) of an image has the value 10 y + x at its centre, a cell of stride 2 the mean of its four
    image = 10 * torch.arange(12.0)[:, None] + torch.arange(12.0)
    cells = torch.nn.functional.avg_pool2d(image[None, None], 2)
    found = align_one(cells, torch.tensor([[2.0, 2, 10, 10], [3, 5, 4, 5.5]]), 2, stride=2, geometry=HALF_PIXEL)
    # each bin has the value at its centre: at (4, 4), ...; the second RoI is narrower than a cell
    assert found[0, 0].tolist() == [[38.5, 42.5], [78.5, 82.5]]
    assert found[1, 0].tolist() == [[49, 49.5], [51.5, 52]]


@pytest.mark.parametrize(("ratio", "geometry"), [(1, TORCHVISION), (3, TORCHVISION), *((2, g) for g in GEOMETRIES)])
def test_equals_the_loop(ratio, geometry):
    feature = torch.randn(1, 2, 7, 9, dtype=torch.float64)
    rois, half = random_rois(12, 7, 9), geometry == HALF_PIXEL
    found = align_one(feature, rois, 3, ratio, geometry=geometry)
    slow = [[slow_roi_align(channel.tolist(), roi, 3, ratio, half) for channel in feature[0]] for roi in rois.tolist()]
    torch.testing.assert_close(found, torch.tensor(slow, dtype=torch.float64))


def pyramid(height, width, channels, dtype, images=2):
    return [torch.randn(images, channels, height // s, width // s, dtype=dtype) for s in STRIDES]


@pytest.mark.parametrize("aligned", [False, True])
def test_geometries_are_torchvisions_two_operators(aligned):
    feature, rois = torch.randn(1, 3, 20, 30, dtype=torch.float64), random_rois(30, 80, 120)
    found = align_one(feature, rois, 5, stride=4, geometry=HALF_PIXEL if aligned else TORCHVISION)
    expected = ops.roi_align(feature, [rois], 5, 1 / 4, 2, aligned=aligned)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.float64, 1e-11)])
@pytest.mark.parametrize("size", [7, 14])
def test_forward_and_gradient_equal_torchvision_over_all_levels(dtype, tolerance, size):
    height, width = 512, 768
    ours = [m.requires_grad_() for m in pyramid(height, width, 8, dtype)]
    theirs = [m.detach().clone().requires_grad_() for m in ours]
    rois = [random_rois(count, height, width, dtype) for count in (60, 35)]
    level = roi_levels(torch.cat(rois), 4)
    assert set(level.tolist()) == {0, 1, 2, 3}
    image = torch.tensor([0] * 60 + [1] * 35)
    found = roi_align(FeatureTable(ours), torch.cat(rois), image, level, size)
    pooler = ops.MultiScaleRoIAlign(list("0123"), size, 2)
    expected = pooler(dict(zip("0123", theirs, strict=True)), rois, [(height, width)] * 2)
    torch.testing.assert_close(found, expected, rtol=0, atol=tolerance)
    weight = torch.randn_like(expected)
    (found * weight).sum().backward()
    (expected * weight).sum().backward()
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=tolerance, atol=tolerance)


def test_levels_equal_torchvision_either_side_of_a_boundary():
    sides = [s * f for s in (112.0, 224.0, 448.0) for f in (0.99, 0.999999, 0.9999995, 1, 1.000001, 1.01)] + [
        1.0,
        5000.0,
    ]
    boxes = torch.tensor([[3, 3, 3 + s, 3 + s] for s in sides], dtype=torch.float64)
    expected = LevelMapper(2, 5)([boxes])
    assert torch.equal(roi_levels(boxes, 4), expected)
    assert roi_levels(torch.tensor([[0.0, 0, 224, 224], [0, 0, 223, 223]]), 4).tolist() == [2, 1]
    assert torch.equal(roi_levels(boxes.float(), 4), LevelMapper(2, 5)([boxes.float()]))


def test_channels_last_input_and_output():
    maps = [m.contiguous(memory_format=torch.channels_last) for m in pyramid(64, 96, 8, torch.float32)]
    rois = random_rois(5, 64, 96, torch.float32)
    image, level = torch.tensor([0, 1, 0, 1, 1]), torch.tensor([0, 1, 2, 3, 0])
    found = roi_align(FeatureTable(maps), rois, image, level, 7)
    assert found.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(found, roi_align(FeatureTable([m.contiguous() for m in maps]), rois, image, level, 7))


@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_without_a_gradient_each_level_is_read_where_its_map_lies(geometry):
    """Bit for bit as from one table; a map that is not channels-last is copied."""
    maps = [m.contiguous(memory_format=torch.channels_last) for m in pyramid(128, 192, 8, torch.float32)]
    rois = random_rois(3 * AT_ONCE, 128, 192, torch.float32)
    image, level = torch.arange(len(rois)) % 2, roi_levels(4 * rois, 4) % 4
    table, whole = FeatureTable(maps, geometry=geometry), FeatureTable(maps, geometry=geometry)
    assert (
        [part.data_ptr() for part in table.parts]
        == [m.data_ptr() for m in maps]
        == [m.data_ptr() for m in table.maps()]
    )
    assert len(whole.rows) == sum(len(part) for part in table.parts) and whole.parts == ()
    found = roi_align(table, rois, image, level, 7)
    assert set(level.tolist()) == {0, 1, 2, 3} and found.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(found, roi_align(whole, rois, image, level, 7)) and "rows" not in vars(table)
    assert torch.equal(
        found, roi_align(FeatureTable([m.contiguous() for m in maps], geometry=geometry), rois, image, level, 7)
    )
    with_gradient = FeatureTable([m.requires_grad_() for m in maps], geometry=geometry)
    assert with_gradient.parts == () and torch.equal(found, roi_align(with_gradient, rois, image, level, 7))
    with torch.no_grad():
        assert FeatureTable(maps).parts
    assert roi_align(table, rois[:0], image[:0], level[:0], 7).shape == (0, 8, 7, 7)


@pytest.mark.parametrize("size", [7, 14])
def test_no_rois_is_empty_and_has_a_gradient(size):
    maps = [m.requires_grad_() for m in pyramid(64, 96, 8, torch.float32)]
    none = torch.zeros(0, dtype=torch.int64)
    found = roi_align(FeatureTable(maps), torch.zeros(0, 4), none, none, size)
    assert found.shape == (0, 8, size, size)
    found.sum().backward()
    assert all(m.grad is not None and not m.grad.any() for m in maps)
