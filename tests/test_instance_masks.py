"""Cropped masks, mask targets, pasting, RLE: against full masks, plain loops, torchvision, pycocotools."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from pycocotools import mask as coco_mask
from torchvision.models.detection.roi_heads import paste_masks_in_image, project_masks_on_boxes
from torchvision.models.detection.transform import _resize_image_and_masks

from network_files.operators import instance_masks
from network_files.operators.boxes import GEOMETRIES, TORCHVISION
from network_files.operators.cropped_masks import CroppedMasks, nearest_index
from network_files.operators.instance_masks import (
    encode_crop,
    encode_masks,
    mask_probs_to_bool,
    mask_targets,
    paste_masks,
)
from tests.plain_loops import slow_resize, slow_roi_align


def some_masks(height=37, width=53):
    """Six masks: scattered, holed, one pixel, whole image, none, at the right lower corner."""
    masks = torch.zeros(6, height, width, dtype=torch.uint8)
    masks[0, 5:20, 8:30] = (torch.rand(15, 22) > 0.6).byte()
    masks[1, 3:30, 10:50] = 1
    masks[1, 10:20, 20:30] = 0
    masks[2, 7, 9] = 1
    masks[3] = 1
    masks[5, -4:, -6:] = 1
    return masks


def tight(mask):
    rows, columns = np.nonzero(mask.any(1).numpy())[0], np.nonzero(mask.any(0).numpy())[0]
    return [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1] if len(rows) else [0, 0, 0, 0]


class TestCroppedMasks:
    def test_there_and_back(self):
        masks = some_masks()
        cropped = CroppedMasks.from_masks(masks)
        assert torch.equal(cropped.to_masks(), masks)
        assert cropped.boxes.tolist() == [tight(m) for m in masks]
        assert cropped.size == (37, 53) and len(cropped) == 6
        assert cropped.areas().tolist() == masks.sum((1, 2)).tolist()
        assert len(cropped.pixels) == sum((b[2] - b[0]) * (b[3] - b[1]) for b in cropped.boxes.tolist())
        assert torch.equal(CroppedMasks.from_masks(masks.bool()).to_masks(), masks)
        assert torch.equal(CroppedMasks.from_masks(masks * 255).to_masks(), masks)

    def test_a_limit_keeps_few_cells_of_long_sides(self):
        masks = CroppedMasks.from_masks(some_masks())
        for limit in (53, 100):  # nothing is longer
            assert torch.equal(masks.limited(limit).pixels, masks.pixels)
        few = masks.limited(7)
        assert few.sides().tolist() == [[7, 7], [7, 7], [1, 1], [7, 7], [0, 0], [6, 4]]
        assert torch.equal(few.boxes, masks.boxes) and few.size == masks.size
        assert len(few.pixels) == few.offsets()[-1] == 3 * 49 + 1 + 24
        assert few[2:].limit == few.to("cpu").limit == 7
        assert torch.equal(few[torch.tensor([5, 3])].to_masks(), few.to_masks()[[5, 3]])
        assert torch.equal(few.hflip().to_masks(), few.to_masks().flip(2))
        assert torch.equal(few.to_masks()[[2, 3, 4, 5]], masks.to_masks()[[2, 3, 4, 5]])  # full rectangles stay
        wrong = (few.to_masks()[1] != masks.to_masks()[1]).sum()
        assert 0 < wrong < 0.1 * masks.areas()[1]

    def test_a_cell_is_set_where_half_of_it_is(self):
        masks = CroppedMasks.from_masks(torch.tensor([[[1, 0, 0, 0, 1, 1], [1, 0, 0, 1, 1, 1]]]))
        few = masks.limited(3)
        assert few.pixels.tolist() == [1, 0, 1, 1, 1, 1] and few.sides().tolist() == [[3, 2]]
        assert few.to_masks().tolist() == [[[1, 1, 0, 0, 1, 1], [1, 1, 1, 1, 1, 1]]]

    def test_crops_are_tightened(self):
        crop = torch.zeros(6, 8, dtype=torch.uint8)
        crop[2:4, 3:7] = 1
        masks = CroppedMasks.from_crops([crop, crop * 0], torch.tensor([[10, 20, 18, 26], [1, 1, 9, 7]]), (50, 40))
        assert masks.boxes.tolist() == [[13, 22, 17, 24], [0, 0, 0, 0]]
        assert masks.crop(0).tolist() == [[1] * 4] * 2
        assert masks.crop(1).shape == (0, 0)

    @pytest.mark.parametrize(
        "index",
        [
            torch.tensor([3, 0, 0, 4]),
            torch.tensor([True, False, True, False, True, True]),
            slice(1, 4),
            [5, 2],
            torch.zeros(0, dtype=torch.int64),
            torch.zeros(6, dtype=torch.bool),
        ],
    )
    def test_indexing(self, index):
        masks = some_masks()
        assert torch.equal(CroppedMasks.from_masks(masks)[index].to_masks(), masks[index])

    def test_flips(self):
        masks = some_masks()
        cropped = CroppedMasks.from_masks(masks)
        assert torch.equal(cropped.hflip().to_masks(), masks.flip(2))
        assert torch.equal(cropped.vflip().to_masks(), masks.flip(1))
        assert cropped.hflip().boxes[4].tolist() == cropped.vflip().boxes[4].tolist() == [0, 0, 0, 0]
        assert torch.equal(cropped.to_masks(), masks)  # the original stays

    @pytest.mark.parametrize("size", [(37, 53), (74, 106), (19, 20), (100, 31), (1, 1), (36, 54)])
    def test_resize_equals_interpolate(self, size):
        masks = some_masks()
        expected = F.interpolate(masks[None].float(), size=size, mode="nearest-exact")[0].byte()
        resized = CroppedMasks.from_masks(masks).resize(size)
        assert resized.size == size
        assert torch.equal(resized.to_masks(), expected)
        assert resized.boxes.tolist() == [tight(m) for m in expected]

    @pytest.mark.parametrize(
        "window", [(0, 0, 53, 37), (5, 4, 20, 10), (-7, -3, 80, 60), (40, 30, 30, 30), (60, 50, 9, 9)]
    )
    def test_window_equals_padding_and_cutting(self, window):
        masks, (x, y, width, height) = some_masks(), window
        padded = F.pad(masks, (100, 100, 100, 100))
        expected = padded[:, y + 100 : y + 100 + height, x + 100 : x + 100 + width]
        assert torch.equal(CroppedMasks.from_masks(masks).window(*window).to_masks(), expected)

    def test_none(self):
        empty = CroppedMasks.empty((4, 5))
        for masks in (empty, empty.hflip(), empty.vflip(), empty[[]], CroppedMasks.from_masks(torch.zeros(0, 4, 5))):
            assert len(masks) == 0 and masks.to_masks().shape == (0, 4, 5) and masks.areas().shape == (0,)
        assert empty.resize((8, 9)).to_masks().shape == (0, 8, 9)
        assert empty.window(-1, -1, 3, 2).to_masks().shape == (0, 2, 3)
        assert empty.to("cpu").boxes.dtype == torch.int64


def test_nearest_index_is_interpolates_for_all_sizes():
    for source in [*range(1, 40), 427, 480, 500, 612, 640, 1333]:
        line = torch.arange(source, dtype=torch.float32)[None, None]
        for target in [*range(1, 60), 533, 799, 800, 1066, 1199, 1333]:
            expected = F.interpolate(line, size=target, mode="nearest-exact")[0, 0].long()
            between = (2 * torch.arange(target) + 1) * source % (2 * target) == 0  # torch's rounding decides there
            found = nearest_index(source, target)
            assert torch.equal(found[~between], expected[~between]), (source, target)
            assert torch.equal(found[between] * 2 * target, (2 * torch.arange(target) + 1)[between] * source)


def random_rois(count, height, width, dtype):
    corner = torch.rand(count, 2) * torch.tensor([width, height]) * 0.9
    size = torch.rand(count, 2) ** 2 * torch.tensor([width, height]) + 0.05
    return torch.cat((corner, torch.min(corner + size, torch.tensor([width, height]))), 1).to(dtype)


@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_mask_targets_of_a_batch_are_those_of_its_images(geometry):
    images = [(some_masks(40, 60), (80, 120)), (some_masks(30, 30)[:0], (50, 50)), (some_masks(200, 90), (100, 45))]
    masks = [CroppedMasks.from_masks(m) for m, _ in images]
    rois = [random_rois(7 if len(m) else 0, *size, torch.float32) for m, size in images]
    matched = [torch.arange(len(r)) % 6 for r in rois]
    sizes = [size for _, size in images]
    alone = [
        mask_targets([m], [r], [i], [s], 28, geometry) for m, r, i, s in zip(masks, rois, matched, sizes, strict=True)
    ]
    together = mask_targets(masks, rois, matched, sizes, 28, geometry)
    assert together.shape == (14, 28, 28) and together.amax() > 0
    torch.testing.assert_close(together, torch.cat(alone), rtol=0, atol=1e-6)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.float64, 1e-12)])
@pytest.mark.parametrize(
    "sizes", [((37, 53), (74, 106)), ((120, 90), (213, 160)), ((200, 300), (60, 90)), ((64, 64), (64, 64))]
)
def test_mask_targets_equal_torchvision(dtype, tolerance, sizes, monkeypatch):
    original, resized = sizes
    masks = some_masks(*original)
    rois = random_rois(40, *resized, dtype)
    rois[0] = torch.tensor([2, 3, 30, 59])  # one and two whole pixels to a cell: no sample more
    matched = torch.randint(0, 6, (40,))
    full = F.interpolate(masks[:, None].float(), size=resized)[:, 0].byte()
    expected = project_masks_on_boxes(full, rois, matched, 28)
    cropped = CroppedMasks.from_masks(masks)
    found = mask_targets([cropped], [rois], [matched], [resized], 28, TORCHVISION)
    assert found.dtype == dtype
    torch.testing.assert_close(found, expected, rtol=0, atol=tolerance)
    monkeypatch.setattr(instance_masks, "CHUNK", 500)  # many small portions give the same
    torch.testing.assert_close(
        mask_targets([cropped], [rois], [matched], [resized], 28, TORCHVISION), found, rtol=0, atol=1e-6
    )


def test_mask_targets_follow_torchvisions_resizing_of_real_masks(samples):
    image, target = samples[0]
    small = torch.zeros(3, *image.shape[-2:])
    resized, _ = _resize_image_and_masks(small, 333, 500)
    size = tuple(resized.shape[-2:])
    _, full = _resize_image_and_masks(small, 333, 500, {"masks": target["masks"]})
    scale = torch.tensor([size[1] / image.shape[2], size[0] / image.shape[1]] * 2)
    rois = target["boxes"] * scale
    matched = torch.arange(len(rois))
    expected = project_masks_on_boxes(full["masks"], rois, matched, 28)
    found = mask_targets([CroppedMasks.from_masks(target["masks"])], [rois], [matched], [size], 28, TORCHVISION)
    assert expected.mean() > 0.2
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


def test_mask_targets_of_limited_masks_are_those_of_the_enlarged():
    few = CroppedMasks.from_masks(some_masks(90, 120)).limited(9)
    enlarged = CroppedMasks(torch.cat([crop.reshape(-1) for crop in few.crops()]), few.boxes, few.size)
    rois, matched = random_rois(40, 180, 200, torch.float64), torch.arange(40) % 6
    found, expected = (mask_targets([m], [rois], [matched], [(180, 200)], 28, TORCHVISION) for m in (few, enlarged))
    assert len(few.pixels) < 0.1 * len(enlarged.pixels) and expected.mean() > 0.1
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


def test_mask_targets_equal_the_loop():
    masks = some_masks()
    rois = random_rois(6, 37, 53, torch.float64)
    found = mask_targets([CroppedMasks.from_masks(masks)], [rois], [torch.arange(6)], [(37, 53)], 4, TORCHVISION)
    slow = [slow_roi_align(mask.tolist(), roi, 4) for mask, roi in zip(masks, rois.tolist(), strict=True)]
    torch.testing.assert_close(found, torch.tensor(slow, dtype=torch.float64))


def test_mask_targets_of_nothing():
    cropped = CroppedMasks.from_masks(some_masks())
    none = torch.zeros(0, dtype=torch.int64)
    assert mask_targets([cropped], [torch.zeros(0, 4)], [none], [(37, 53)], 28, TORCHVISION).shape == (0, 28, 28)
    assert mask_targets([CroppedMasks.empty((9, 9))], [torch.zeros(0, 4)], [none], [(9, 9)], 28, TORCHVISION).shape == (
        0,
        28,
        28,
    )
    empty_mask = mask_targets(
        [cropped[[4]]], [torch.tensor([[1.0, 1, 9, 9]])], [torch.tensor([0])], [(37, 53)], 28, TORCHVISION
    )
    assert not empty_mask.any()


PASTE_BOXES = [
    [10.2, 5.7, 40.9, 30.1],
    [-6.5, -3.2, 12.4, 9.9],
    [45.0, 30.0, 53.0, 37.0],
    [0, 0, 53, 37],
    [20.4, 20.4, 20.9, 20.9],
    [20.0, 20.0, 20.0, 20.0],
    [5.5, 5.5, 6.4, 36.9],
]


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-12)])
def test_paste_equals_torchvision(dtype, tolerance):
    boxes = torch.tensor(PASTE_BOXES, dtype=dtype)
    probs = torch.rand(len(boxes), 28, 28, dtype=dtype)
    expected = paste_masks_in_image(probs[:, None], boxes, (37, 53))
    found = paste_masks(probs, boxes, (37, 53), TORCHVISION)
    assert found.shape == (len(boxes), 1, 37, 53)
    torch.testing.assert_close(found, expected, rtol=0, atol=tolerance)


def test_paste_equals_the_loop():
    probs = torch.rand(1, 4, 4, dtype=torch.float64)
    # a 4-cell mask padded by one cell on a box of 12 x 8 pixels: 18 x 12 pixels, at (7, 8), last pixel included
    found = paste_masks(probs, torch.tensor([[10.0, 10, 22, 18]], dtype=torch.float64), (40, 50), TORCHVISION)[0, 0]
    slow = slow_resize(F.pad(probs[0], (1, 1, 1, 1)).tolist(), 13, 19)
    torch.testing.assert_close(found[8:21, 7:26], torch.tensor(slow, dtype=torch.float64))
    assert found[:8].sum() == found[21:].sum() == found[:, :7].sum() == found[:, 26:].sum() == 0


def test_crop_and_paste_undo_each_other():
    # a mask that fills its box comes back as its box, to within a pixel
    box = torch.tensor([[8.0, 6, 36, 34]])
    mask = torch.zeros(1, 40, 50, dtype=torch.uint8)
    mask[0, 6:34, 8:36] = 1
    targets = mask_targets([CroppedMasks.from_masks(mask)], [box], [torch.tensor([0])], [(40, 50)], 28, TORCHVISION)
    back = mask_probs_to_bool(targets, box, (40, 50), TORCHVISION).to_masks()
    assert (back != mask).sum() <= 2 * 4 * 28


@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_thresholded_forms_equal_the_full_masks(geometry):
    boxes = torch.tensor(PASTE_BOXES)
    probs = torch.rand(len(boxes), 28, 28)
    for threshold in (0.5, 0.3, 1.0):
        full = paste_masks(probs, boxes, (37, 53), geometry)[:, 0] > threshold
        assert torch.equal(mask_probs_to_bool(probs, boxes, (37, 53), geometry, threshold).to_masks().bool(), full)
        codes = encode_masks(probs, boxes, (37, 53), geometry, threshold)
        for code, mask in zip(codes, full, strict=True):
            expected = coco_mask.encode(np.asfortranarray(mask.numpy().astype(np.uint8)))
            assert code == {"size": [37, 53], "counts": expected["counts"].decode()}


def test_no_detections():
    probs, boxes = torch.zeros(0, 28, 28), torch.zeros(0, 4)
    assert paste_masks(probs, boxes, (5, 6), TORCHVISION).shape == (0, 1, 5, 6)
    assert encode_masks(probs, boxes, (5, 6), TORCHVISION) == []
    assert len(mask_probs_to_bool(probs, boxes, (5, 6), TORCHVISION)) == 0


@st.composite
def crops_in_images(draw):
    height, width = draw(st.integers(1, 9)), draw(st.integers(1, 9))
    h, w = draw(st.integers(0, height)), draw(st.integers(0, width))
    y, x = draw(st.integers(0, height - h)), draw(st.integers(0, width - w))
    bits = draw(st.lists(st.booleans(), min_size=h * w, max_size=h * w))
    return (height, width), (y, x), torch.tensor(bits, dtype=torch.bool).reshape(h, w)


@given(crops_in_images())
def test_rle_of_a_crop_equals_pycocotools_on_the_full_mask(case):
    (height, width), (y, x), crop = case
    mask = np.zeros((height, width), dtype=np.uint8, order="F")
    mask[y : y + crop.shape[0], x : x + crop.shape[1]] = crop.numpy()
    assert encode_crop(crop, x, y, (height, width))["counts"] == coco_mask.encode(mask)["counts"].decode()
