"""Augmentations: flips undo themselves, objects stay whole, nothing changes in place, the rng decides all."""

import colorsys

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from network_files.operators.cropped_masks import CroppedMasks
from transforms import (
    MEAN_COLOUR,
    Compose,
    Expand,
    HorizontalFlip,
    LargeScaleJitter,
    MiniMasks,
    PhotometricJitter,
    VerticalFlip,
    build_augment,
    colour_matrix,
)

EVERY = Compose([PhotometricJitter(p=0.9), Expand(), LargeScaleJitter(48), HorizontalFlip(), VerticalFlip()])
SEEDS = st.integers(0, 2**32)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def sample(seed, cropped=True):
    """An image of random size with 0 to 4 objects: rectangles with a hole; object i has label i + 1."""
    rng = np.random.default_rng(seed)
    height, width, count = int(rng.integers(9, 70)), int(rng.integers(9, 70)), int(rng.integers(0, 5))
    image = torch.from_numpy(rng.integers(0, 256, (3, height, width), dtype=np.uint8))
    masks = torch.zeros(count, height, width, dtype=torch.uint8)
    boxes = torch.zeros(count, 4)
    for i in range(count):
        x1, y1 = int(rng.integers(width - 4)), int(rng.integers(height - 4))
        x2, y2 = int(rng.integers(x1 + 3, width + 1)), int(rng.integers(y1 + 3, height + 1))
        masks[i, y1:y2, x1:x2] = 1
        masks[i, y1 + 1, x1 + 1] = 0
        boxes[i] = torch.tensor([x1, y1, x2, y2])
    return image, {
        "boxes": boxes,
        "labels": torch.arange(1, count + 1),
        "masks": CroppedMasks.from_masks(masks) if cropped else masks,
        "image_id": seed,
        "area": masks.sum((1, 2)).float(),
        "iscrowd": torch.arange(count).remainder(2).to(torch.uint8),
        "sample_seed": 7,
    }


def dense(target):
    masks = target["masks"]
    return masks.to_masks() if isinstance(masks, CroppedMasks) else masks


def same(a, b):
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, CroppedMasks):
        return a.size == b.size and torch.equal(a.to_masks(), b.to_masks())
    return a == b


def assert_same(first, second):
    (image_a, a), (image_b, b) = first, second
    assert same(image_a, image_b)
    assert a.keys() == b.keys()
    assert all(same(a[key], b[key]) for key in a)


def tight_boxes(masks):
    boxes = []
    for mask in masks:
        ys, xs = mask.nonzero().unbind(1)
        boxes.append([xs.min(), ys.min(), xs.max() + 1, ys.max() + 1])
    return torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)


@pytest.mark.parametrize("flip", [HorizontalFlip(1), VerticalFlip(1)])
@settings(max_examples=30, deadline=None)
@given(seed=SEEDS, cropped=st.booleans())
def test_flip_twice_is_the_identity(flip, seed, cropped):
    given_sample = sample(seed, cropped)
    once = flip(*given_sample, generator())
    assert_same(flip(*once, generator()), given_sample)
    assert torch.equal(once[1]["boxes"], tight_boxes(dense(once[1])))


def test_flips_by_hand():
    image = torch.arange(6, dtype=torch.uint8).reshape(1, 2, 3).expand(3, 2, 3)
    masks = torch.tensor([[[1, 0, 0], [0, 0, 0]]], dtype=torch.uint8)
    target = {"boxes": torch.tensor([[0.0, 0.0, 1.25, 1.0]]), "masks": masks}
    flipped, new = HorizontalFlip(1)(image, target, generator())
    assert flipped[0].tolist() == [[2, 1, 0], [5, 4, 3]]
    assert new["boxes"].tolist() == [[1.75, 0, 3, 1]]
    assert new["masks"].tolist() == [[[0, 0, 1], [0, 0, 0]]]
    flipped, new = VerticalFlip(1)(image, target, generator())
    assert flipped[0].tolist() == [[3, 4, 5], [0, 1, 2]]
    assert new["boxes"].tolist() == [[0, 1, 1.25, 2]]
    assert new["masks"].tolist() == [[[0, 0, 0], [1, 0, 0]]]


@pytest.mark.parametrize("flip", [HorizontalFlip, VerticalFlip])
def test_flip_probability(flip):
    image, target = torch.arange(4, dtype=torch.uint8).reshape(1, 2, 2).repeat(3, 1, 1), sample(1)[1]
    rng = generator(5)
    turned = [not torch.equal(flip(0.25)(image, target, rng)[0], image) for _ in range(400)]
    assert 70 < sum(turned) < 130
    assert not any(not torch.equal(flip(0)(image, target, rng)[0], image) for _ in range(50))


@settings(max_examples=40, deadline=None)
@given(seed=SEEDS, cropped=st.booleans())
def test_nothing_changes_in_place_and_the_generator_decides_all(seed, cropped):
    image, target = sample(seed, cropped)
    first = EVERY(image, target, generator(seed))
    torch.rand(3)  # the global generator plays no part
    assert_same(EVERY(image, target, generator(seed)), first)
    assert_same((image, target), sample(seed, cropped))
    assert target is not first[1]


@settings(max_examples=30, deadline=None)
@given(seed=SEEDS)
def test_cropped_and_full_size_masks_give_the_same(seed):
    image, target = EVERY(*sample(seed, cropped=True), generator(seed))
    other_image, other = EVERY(*sample(seed, cropped=False), generator(seed))
    assert isinstance(target["masks"], CroppedMasks) and isinstance(other["masks"], torch.Tensor)
    assert_same((image, {**target, "masks": dense(target)}), (other_image, other))


@settings(max_examples=80, deadline=None)
@given(seed=SEEDS)
def test_large_scale_jitter_keeps_objects_whole(seed):
    size = 40
    image, target = sample(seed)
    new_image, new = LargeScaleJitter(size)(image, target, generator(seed))
    masks, boxes, count = dense(new), new["boxes"], len(new["labels"])
    assert new_image.shape == (3, size, size) and new_image.dtype == torch.uint8
    assert masks.shape == (count, size, size)
    assert boxes.shape == (count, 4) and len(new["area"]) == len(new["iscrowd"]) == count
    assert boxes.dtype == new["area"].dtype == torch.float32 and new["iscrowd"].dtype == torch.uint8
    assert (boxes >= 0).all() and (boxes <= size).all() and (boxes[:, 2:] - boxes[:, :2] >= 1).all()
    # the label says which object it was: its crowd flag came along, its mask lies in its box
    assert torch.equal(new["iscrowd"], target["iscrowd"][new["labels"] - 1])
    assert torch.equal(new["area"], masks.sum((1, 2)).float()) and (new["area"] > 0).all()
    tight = tight_boxes(masks)
    assert (tight[:, :2] >= boxes[:, :2] - 1).all() and (tight[:, 2:] <= boxes[:, 2:] + 1).all()
    assert new["image_id"] == seed and new["sample_seed"] == 7


@pytest.mark.parametrize("scale", [0.5, 1.0, 1.7])
@pytest.mark.parametrize("shape", [(30, 60), (64, 64), (90, 45)])
def test_large_scale_jitter_moves_image_and_masks_alike(scale, shape):
    """Masks painted into the image are still under their masks afterwards."""
    height, width = shape
    image = torch.zeros(3, height, width, dtype=torch.uint8)
    masks = torch.zeros(2, height, width, dtype=torch.uint8)
    masks[0, 5:20, 8:30] = 1
    masks[1, 15:28, 25:44] = 1
    for i, mask in enumerate(masks):
        image[i][mask == 1] = 255
    target = {"boxes": tight_boxes(masks), "labels": torch.tensor([1, 2]), "masks": masks}
    for seed in range(4):
        jitter = LargeScaleJitter(64, scale=(scale, scale), fill=(0, 0, 0))
        new_image, new = jitter(image, target, generator(seed))
        for label, mask, box in zip(new["labels"].tolist(), new["masks"], new["boxes"], strict=True):
            colour = new_image[label - 1]
            inside = -F.max_pool2d(-mask[None].float(), 3, 1, 1)[0] > 0  # border pixels are mixtures
            outside = F.max_pool2d(mask[None].float(), 5, 1, 2)[0] == 0
            assert (colour[inside] >= 128).all() and (colour[outside] < 128).all()
            assert (tight_boxes(mask[None])[0] - box).abs().max() <= 1


@pytest.mark.parametrize("scale", [(0.0, 1.0), (2.0, 1.0), (1.0, float("inf"))])
def test_large_scale_jitter_refuses_scales_that_cannot_be_meant(scale):
    with pytest.raises(ValueError, match="the lower one first"):
        LargeScaleJitter(64, scale)


def test_large_scale_jitter_down_to_one_pixel():
    image, target = sample(1)
    new_image, new = LargeScaleJitter(64, (0.001, 0.001), fill=(0, 0, 0))(image, target, generator(0))
    assert new_image.shape == (3, 64, 64) and new_image[:, 1:].max() == 0 and len(new["labels"]) == 0


def test_large_scale_jitter_pads_with_the_fill_colour():
    image, target = torch.full((3, 50, 100), 200, dtype=torch.uint8), sample(3)[1]
    target = {
        **target,
        "masks": CroppedMasks.empty((50, 100)),
        "boxes": torch.zeros(0, 4),
        "labels": torch.zeros(0, dtype=torch.int64),
        "area": torch.zeros(0),
        "iscrowd": torch.zeros(0, dtype=torch.uint8),
    }
    new, empty = LargeScaleJitter(80, scale=(0.5, 0.5))(image, target, generator())
    assert (new[:, :20, :40] == 200).all()
    assert new[:, 20:, :].unique(dim=1).flatten(1)[:, 0].tolist() == list(MEAN_COLOUR)
    assert len(empty["boxes"]) == len(empty["masks"]) == 0
    as_float, _ = LargeScaleJitter(80, scale=(0.5, 0.5))(image.float() / 255, target, generator())
    assert torch.allclose(as_float * 255, new.float(), atol=0.51)


def test_large_scale_jitter_drops_what_vanishes():
    masks = torch.zeros(2, 100, 100, dtype=torch.uint8)
    masks[0, 10:11, 10:11] = 1
    masks[1, 20:90, 20:90] = 1
    target = {"boxes": tight_boxes(masks), "labels": torch.tensor([1, 2]), "masks": masks}
    _, new = LargeScaleJitter(100, scale=(0.2, 0.2))(torch.zeros(3, 100, 100), target, generator())
    assert new["labels"].tolist() == [2] and new["masks"].shape == (1, 100, 100)
    assert new["boxes"].tolist() == [[4, 4, 18, 18]] and new["area"].tolist() == [14 * 14]


def test_large_scale_jitter_drops_a_box_without_its_pixels():
    """The box spans the image, the pixels are at its left end: a cut may hold the one without the other."""
    masks = torch.zeros(1, 64, 64, dtype=torch.uint8)
    masks[0, 20:40, 0:3] = 1
    target = {"boxes": torch.tensor([[0.0, 20, 64, 40]]), "labels": torch.tensor([1]), "masks": masks}
    left = []
    for seed in range(20):
        _, new = LargeScaleJitter(64, scale=(2, 2))(torch.zeros(3, 64, 64), target, generator(seed))
        left.append(len(new["boxes"]))
        assert len(new["labels"]) == len(new["masks"]) == left[-1] and new["masks"].flatten(1).any(1).all()
    assert set(left) == {0, 1}


@pytest.mark.parametrize("cropped", [True, False])
def test_large_scale_jitter_gives_a_cut_object_the_box_of_what_is_seen(cropped):
    """An L: where its foot is cut off, the box is no wider than its stem; an uncut one keeps the annotated box."""
    masks = torch.zeros(2, 60, 60, dtype=torch.uint8)
    masks[0, 5:45, 5:10] = masks[0, 40:45, 5:55] = 1
    masks[1, 20:22, 30:34] = 1
    annotated = torch.tensor([[5.0, 5, 55, 45], [29.5, 19.5, 34.5, 22.5]])
    target = {"boxes": annotated, "labels": torch.tensor([1, 2]), "area": torch.zeros(2)}
    target["masks"] = CroppedMasks.from_masks(masks) if cropped else masks
    jitter, image = LargeScaleJitter(60, scale=(1, 1)), torch.zeros(3, 60, 60)
    assert torch.equal(jitter(image, target, generator())[1]["boxes"], annotated)
    jitter.size = 30
    new = jitter._cut_target(target, (60, 60), (60, 60), 10, 8)
    assert new["boxes"].tolist() == [[0, 0, 2, 30], [21.5, 9.5, 26.5, 12.5]]
    assert new["area"].tolist() == [60, 8] and torch.equal(tight_boxes(dense(new))[0], new["boxes"][0])


@pytest.mark.parametrize("cropped", [True, False])
def test_expand_puts_the_image_on_a_larger_canvas(cropped):
    places = []
    for seed in range(12):
        image, target = sample(seed, cropped)
        new_image, new = Expand(3.0, p=1.0)(image, target, generator(seed))
        (height, width), (new_height, new_width) = image.shape[1:], new_image.shape[1:]
        assert height <= new_height <= 3 * height and abs(new_height / height - new_width / width) < 0.12
        assert dense(new).shape[1:] == new_image.shape[1:]
        if not len(target["labels"]):
            continue
        left, top = (new["boxes"] - target["boxes"])[0, :2].int().tolist()
        inside = (slice(None), slice(top, top + height), slice(left, left + width))
        assert torch.equal(new_image[inside], image) and torch.equal(dense(new)[inside], dense(target))
        assert dense(new).sum() == dense(target).sum()
        assert torch.equal(new["boxes"] - target["boxes"], torch.tensor([left, top] * 2).expand(len(new["boxes"]), 4))
        new_image[inside] = 0
        assert (new_image.sum((1, 2)) == torch.tensor(MEAN_COLOUR) * (new_height * new_width - height * width)).all()
        assert torch.equal(new["area"], target["area"]) and torch.equal(new["labels"], target["labels"])
        places.append((new_height / height, top / max(new_height - height, 1), left / max(new_width - width, 1)))
    for column in zip(*places, strict=True):
        assert max(column) - min(column) > 0.5


def test_expand_takes_half_of_the_images():
    image, target = sample(3)
    expanded = [Expand()(image, target, generator(seed))[0].shape != image.shape for seed in range(60)]
    assert 20 < sum(expanded) < 40


def test_mini_masks_are_kept_in_few_cells():
    image, target = sample(11)
    for form in (target, {**target, "masks": dense(target)}):
        same_image, new = MiniMasks(5)(image, form, generator())
        assert same_image is image and (new["masks"].sides() <= 5).all()
        assert torch.equal(new["masks"].boxes, target["masks"].boxes) and new["masks"].size == target["masks"].size
        assert len(new["masks"].pixels) < len(target["masks"].pixels)


def test_photometric_jitter_changes_colours_only():
    image, target = sample(11)
    new_image, new = PhotometricJitter(p=1)(image, target, generator(2))
    assert new_image.dtype == torch.uint8 and new_image.shape == image.shape
    assert not torch.equal(new_image, image)
    assert all(same(target[key], new[key]) for key in target)
    assert torch.equal(PhotometricJitter(p=0)(image, target, generator(2))[0], image)
    as_float, _ = PhotometricJitter(p=1)(image.float() / 255, target, generator(2))
    assert as_float.dtype == torch.float32 and (as_float * 255 - new_image.float()).abs().max() < 0.51


@pytest.mark.parametrize("augment", [PhotometricJitter(p=1), LargeScaleJitter(48), EVERY])
def test_16_bits_are_changed_as_8_are(augment):
    image, target = sample(11)
    deep, of_deep = augment((image.int() * 257).to(torch.uint16), target, generator(2))
    found, expected = augment(image, target, generator(2))
    assert deep.dtype == torch.uint16 and same(of_deep["boxes"], expected["boxes"])
    assert (deep.float() / 257 - found.float()).abs().max() < 2.1  # roundings of bytes


@pytest.mark.parametrize(
    ("knob", "expected"),
    [
        ({"brightness": (0.5, 0.5)}, lambda x: x * 0.5),
        ({"contrast": (0.0, 0.0)}, lambda x: (x * luma(x)).sum(0).mean().expand_as(x)),
        ({"saturation": (0.0, 0.0)}, lambda x: (x * luma(x)).sum(0).expand_as(x)),
        ({"hue": 0.0}, lambda x: x),
    ],
    ids=["brightness", "contrast", "saturation", "none"],
)
def test_each_knob_alone(knob, expected):
    neutral = {"brightness": (1, 1), "contrast": (1, 1), "saturation": (1, 1), "hue": 0.0, "p": 1}
    image = torch.rand(3, 6, 7, generator=generator())
    new, _ = PhotometricJitter(**{**neutral, **knob})(image, {}, generator())
    assert torch.allclose(new, expected(image), atol=1e-3)


def luma(x):
    return torch.tensor([0.299, 0.587, 0.114])[:, None, None].to(x)


@pytest.mark.parametrize("turns", [-0.3, -0.05, 0.05, 1 / 3])
def test_hue_turns_colours_and_keeps_grey(turns):
    turn = colour_matrix(1.0, turns)
    assert torch.allclose(turn @ torch.full((3,), 0.4), torch.full((3,), 0.4), atol=1e-4)
    assert torch.allclose(turn @ colour_matrix(1.0, -turns), torch.eye(3), atol=1e-4)
    assert torch.allclose(luma(turn)[:, 0, 0] @ turn, luma(turn)[:, 0, 0], atol=1e-3)
    # the same way round, and about as far, as HSV's hue
    colour = torch.tensor([0.6, 0.5, 0.45])
    hue = colorsys.rgb_to_hsv(*(turn @ colour).tolist())[0] - colorsys.rgb_to_hsv(*colour.tolist())[0]
    assert abs((hue - turns + 0.5) % 1 - 0.5) < 0.08


def test_build_augment():
    assert build_augment(horizontal_flip=0).transforms == []
    kinds = [type(t) for t in build_augment().transforms]
    assert kinds == [HorizontalFlip]
    flips = {"horizontal_flip": 0.3, "vertical_flip": 0.4, "photometric": True}
    every = build_augment(**flips, large_scale_jitter=64, jitter_scale=(0.5, 1.5), expand=2.0, mini_mask=28)
    kinds = [PhotometricJitter, Expand, LargeScaleJitter, HorizontalFlip, VerticalFlip, MiniMasks]
    assert [type(t) for t in every.transforms] == kinds
    by_kind = {type(t): t for t in every.transforms}
    assert by_kind[HorizontalFlip].p == 0.3 and by_kind[VerticalFlip].p == 0.4
    assert (by_kind[LargeScaleJitter].size, by_kind[LargeScaleJitter].scale) == (64, (0.5, 1.5))
    assert by_kind[Expand].most == 2 and by_kind[MiniMasks].size == 28
    assert every(*sample(4), generator())[0].shape == (3, 64, 64)
