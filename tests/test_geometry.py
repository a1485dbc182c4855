"""Half-pixel masks: against plain loops, and the laws that they keep: what is cut out comes back where it was."""

import pytest
import torch

from network_files.operators.boxes import GEOMETRIES, HALF_PIXEL, TORCHVISION
from network_files.operators.cropped_masks import CroppedMasks
from network_files.operators.instance_masks import mask_probs_to_bool, mask_targets, paste_masks
from tests.plain_loops import slow_covered, slow_paste
from tests.test_instance_masks import PASTE_BOXES, random_rois, some_masks

TINY_BOXES = [[20.4, 20.4, 20.9, 20.9], [20.6, 20.6, 21.4, 21.4], [20.1, 5.3, 20.8, 33.9], [7, 9, 8, 10]]


def targets(masks, rois, resized=None, cells=28, matched=None, geometry=HALF_PIXEL):
    """The targets of RoIs of one image."""
    matched = torch.arange(len(rois)) if matched is None else matched
    return mask_targets([masks], [rois], [matched], [resized or masks.size], cells, geometry)


def blobs(count=60, size=160, longest=60.0, seed=0):
    """Ellipses at any place and turn, as masks and their tight boxes: the thinnest is a pixel wide."""
    rng = torch.Generator().manual_seed(seed)
    axis = torch.arange(size) + 0.5
    middle = torch.rand(count, 2, generator=rng) * (size - 2 * longest) + longest
    a, b, turn = (torch.rand(3, count, generator=rng) ** 2 * torch.tensor([[1.0], [0.7], [0]])).unbind(0)
    a, b, turn = (1.5 + a * longest / 2)[:, None, None], (1.0 + b * longest / 2)[:, None, None], turn[:, None, None] * 6
    x, y = axis - middle[:, 0, None, None], axis[:, None] - middle[:, 1, None, None]
    u, v = x * turn.cos() + y * turn.sin(), y * turn.cos() - x * turn.sin()
    masks = CroppedMasks.from_masks((u / a) ** 2 + (v / b) ** 2 <= 1)
    masks = masks[(masks.boxes[:, 2:] > masks.boxes[:, :2]).all(1)]
    return masks, masks.boxes.float()


def ious(masks, others):
    """The overlap of each mask with its other."""
    a, b = (m.to_masks().bool().flatten(1) for m in (masks, others))
    return (a & b).sum(1) / (a | b).sum(1)


@pytest.mark.parametrize("resized", [(13, 17), (26, 34), (9, 21)])
def test_targets_equal_the_loop(resized):
    masks = some_masks()[:, 3:16, 5:22]
    height, width = resized
    rois = random_rois(6, *resized, torch.float64)
    rois[4] = torch.tensor([3.2, 4.1, 3.9, 4.15])  # far less than a pixel
    original = rois * torch.tensor([17 / width, 13 / height] * 2, dtype=torch.float64)
    found = targets(CroppedMasks.from_masks(masks), rois, resized, 5)
    slow = [slow_covered(mask.tolist(), box, 5) for mask, box in zip(masks, original.tolist(), strict=True)]
    torch.testing.assert_close(found, torch.tensor(slow, dtype=torch.float64), rtol=0, atol=1e-10)


def test_targets_of_limited_masks_equal_the_loop_over_what_is_kept():
    few = CroppedMasks.from_masks(some_masks()[:3]).limited(6)
    rois = random_rois(3, 37, 53, torch.float64)
    slow = []
    for i, (box, (x1, y1, x2, y2)) in enumerate(zip(rois, few.boxes.tolist(), strict=True)):
        columns, rows = few.sides()[i].tolist()
        kept = few.pixels[few.offsets()[i] : few.offsets()[i + 1]].view(rows, columns)
        scale = torch.tensor([columns / (x2 - x1), rows / (y2 - y1)] * 2, dtype=torch.float64)
        slow.append(slow_covered(kept.tolist(), ((box - torch.tensor([x1, y1] * 2)) * scale).tolist(), 5))
    torch.testing.assert_close(targets(few, rois, cells=5), torch.tensor(slow, dtype=torch.float64))


def test_paste_equals_the_loop():
    boxes = torch.tensor(PASTE_BOXES + TINY_BOXES, dtype=torch.float64)
    probs = torch.rand(len(boxes), 5, 5, dtype=torch.float64)
    found = paste_masks(probs, boxes, (37, 53), HALF_PIXEL)
    some = [i for i in range(len(boxes)) if (boxes[i, 2:] > boxes[i, :2]).all()]
    slow = [slow_paste(probs[i].tolist(), boxes[i].tolist(), 37, 53) for i in some]
    torch.testing.assert_close(found[some, 0], torch.tensor(slow, dtype=torch.float64), rtol=0, atol=1e-12)
    assert torch.isfinite(found).all()


@pytest.mark.parametrize("cells", [7, 28])
def test_a_full_box_stays_a_full_box(cells):
    boxes = torch.tensor([[0, 0, 53, 37], [7, 9, 8, 10], [5, 3, 50, 4], [11, 2, 39, 30], [40, 30, 53, 37.0]])
    masks = CroppedMasks(torch.ones(sum((int((x2 - x1) * (y2 - y1)) for x1, y1, x2, y2 in boxes.tolist())),
                                    dtype=torch.uint8), boxes.long(), (37, 53))  # fmt: skip
    for resized in ((37, 53), (101, 144), (20, 29)):
        rois = boxes * torch.tensor([resized[1] / 53, resized[0] / 37] * 2)
        found = targets(masks, rois, resized, cells)
        torch.testing.assert_close(found, torch.ones_like(found), rtol=0, atol=1e-4)
        back = mask_probs_to_bool(found, boxes, masks.size, HALF_PIXEL)
        assert torch.equal(back.to_masks(), masks.to_masks())


def test_what_is_cut_out_comes_back():
    masks, boxes = blobs()
    small = (boxes[:, 2:] - boxes[:, :2]).amax(1) <= 28
    assert 20 < small.sum() < len(masks)
    reached = {}
    for geometry in GEOMETRIES:
        cut = targets(masks, boxes * 1.7, (272, 272), geometry=geometry)
        reached[geometry] = ious(masks, mask_probs_to_bool(cut, boxes, masks.size, geometry))
    assert reached[HALF_PIXEL][small].mean() > 0.995 and reached[HALF_PIXEL].mean() > 0.97
    assert reached[TORCHVISION].mean() < 0.9


def mirrored(boxes, size):
    return torch.stack((size[1] - boxes[:, 2], boxes[:, 1], size[1] - boxes[:, 0], boxes[:, 3]), 1)


@pytest.mark.parametrize("limit", [None, 6])
def test_a_flip_commutes_with_cutting_out_and_pasting(limit):
    masks = CroppedMasks.from_masks(some_masks())[[0, 1, 2, 3, 5, 0, 1]]
    kept, flipped = (m if limit is None else m.limited(limit) for m in (masks, masks.hflip()))
    rois = random_rois(7, 60, 90, torch.float64)
    cut = targets(kept, rois, (60, 90))
    assert cut.amax() > 0.5
    torch.testing.assert_close(targets(flipped, mirrored(rois, (60, 90)), (60, 90)), cut.flip(2), rtol=0, atol=1e-6)
    boxes = torch.tensor([*PASTE_BOXES[:5], *TINY_BOXES, [10.5, 8.5, 20.5, 12.5]], dtype=torch.float64)
    probs = torch.rand(len(boxes), 28, 28, dtype=torch.float64)
    pasted = paste_masks(probs, boxes, (37, 53), HALF_PIXEL)
    again = paste_masks(probs.flip(2), mirrored(boxes, (37, 53)), (37, 53), HALF_PIXEL)
    torch.testing.assert_close(again, pasted.flip(3), rtol=0, atol=1e-6)


def test_a_pixels_shift_shifts_targets_and_masks_by_a_pixel():
    masks = CroppedMasks.from_masks(some_masks()[:3])
    moved = masks.window(-1, 0, 53, 37)
    rois = random_rois(3, 37, 50, torch.float64)
    right = torch.tensor([1.0, 0, 1, 0], dtype=torch.float64)
    cut = targets(masks, rois)
    torch.testing.assert_close(targets(moved, rois + right), cut, rtol=0, atol=1e-10)
    whole, again = (paste_masks(cut, boxes, (37, 53), HALF_PIXEL) for boxes in (rois, rois + right))
    torch.testing.assert_close(again[..., 1:], whole[..., :-1], rtol=0, atol=1e-10)
    # a RoI of a pixel for each cell: the target is the mask itself, and its shift the target's
    roi = torch.tensor([[8.0, 5, 36, 33]], dtype=torch.float64)
    still, along = targets(masks[[1]], roi)[0], targets(moved[[1]], roi)[0]
    assert torch.equal(still, masks.to_masks()[1, 5:33, 8:36].double())
    assert torch.equal(along[:, 1:], still[:, :-1])


def test_an_object_of_a_pixel_is_a_pixel_wherever_its_box_is_seen_from():
    mask = torch.zeros(1, 37, 53, dtype=torch.uint8)
    mask[0, 9, 7] = 1
    masks = CroppedMasks.from_masks(mask)
    for box in ([7.0, 9, 8, 10], [6.7, 8.8, 8.2, 10.4], [4.0, 4, 18, 18]):
        boxes = torch.tensor([box])
        assert torch.equal(mask_probs_to_bool(targets(masks, boxes), boxes, (37, 53), HALF_PIXEL).to_masks(), mask)
