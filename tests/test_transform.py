"""Normalising, resizing, padding: against torchvision's transform; and what becomes of a target."""

import math

import pytest
import torch
import torch.nn.functional as F
from torchvision.models.detection.transform import GeneralizedRCNNTransform, _resize_image_and_masks

from network_files.config import MaskRCNNConfig
from network_files.operators.cropped_masks import CroppedMasks
from network_files.transform import Transform, padded_size, prepare_objects, resized_size, seeded

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def transforms(min_size, max_size):
    theirs = GeneralizedRCNNTransform(min_size, max_size, MEAN, STD)
    return Transform(MaskRCNNConfig(min_size=min_size, max_size=max_size, image_mean=MEAN, image_std=STD)), theirs


@pytest.mark.parametrize("limits", [(800, 1333), (160, 256), (333, 500)])
def test_sizes_equal_torchvision(limits):
    for height in [1, 2, 17, 100, 333, 427, 480, 499, 500, 612, 640, 1000, 3001]:
        for width in [20, 63, 375, 427, 500, 612, 640, 641, 4000]:
            if max(height, width) / min(height, width) > limits[1]:
                continue  # torchvision fails there: a side would vanish
            image, _ = _resize_image_and_masks(torch.zeros(1, height, width), *limits)
            assert resized_size(height, width, *limits) == tuple(image.shape[-2:]), (height, width)


def test_sizes_by_hand():
    assert resized_size(480, 640, 800, 1333) == (800, 1066)
    assert resized_size(100, 400, 800, 1333) == (333, 1333)  # the longer side is the limit
    assert padded_size(480, 640, 800, 1333) == (800, 1088)
    assert padded_size(480, 640, 800, 1333, 64) == (832, 1088)
    assert resized_size(5000, 1, 800, 1333) == (1333, 1)  # a side never vanishes


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.float64, 1e-12)])
def test_batch_equals_torchvision(samples, dtype, tolerance):
    ours, theirs = transforms((160,), 256)
    images = [image.to(dtype) / 255 for image, _ in samples]
    expected, _ = theirs.eval()([image.clone() for image in images])
    batch = ours.batch(images, None, False, dtype)
    assert batch.sizes == expected.image_sizes
    assert batch.padded == tuple(expected.tensors.shape[-2:])
    assert batch.original_sizes == [tuple(image.shape[-2:]) for image in images]
    torch.testing.assert_close(batch.images, expected.tensors, rtol=0, atol=tolerance)
    assert batch.images.is_contiguous(memory_format=torch.channels_last)


def test_an_image_alone_is_padded_as_announced(samples):
    ours, _ = transforms((160,), 256)
    for image, _ in samples:
        padded = ours.batch([image], None, False, torch.float32).padded
        assert padded == padded_size(*image.shape[-2:], 160, 256)


def test_a_fixed_size_holds_every_image_in_its_ratio():
    assert resized_size(480, 640, 800, 1333, (512, 512)) == (384, 512)
    assert resized_size(640, 480, 800, 1333, (512, 512)) == (512, 384)
    assert resized_size(49, 50, 800, 1333, (800, 640)) == (627, 640)
    assert resized_size(1, 5000, 800, 1333, (64, 96)) == (1, 96)  # a side never vanishes
    assert resized_size(5000, 1, 800, 1333, (64, 96)) == (64, 1)
    assert padded_size(480, 640, 800, 1333, fixed_size=(512, 512)) == (512, 512)
    colours = {"image_mean": (0.4, 0.5, 0.6), "image_std": (0.2, 0.2, 0.2)}
    ours = Transform(MaskRCNNConfig(min_size=160, max_size=256, fixed_size=(64, 96), **colours))
    for shapes in ([(20, 20)], [(20, 30), (300, 30)], [(64, 96), (1, 700)]):
        for training in (False, True):
            batch = ours.batch([torch.ones(3, *shape) for shape in shapes], None, training, torch.float32)
            assert batch.padded == (64, 96)
            for image, (h, w) in zip(batch.images, batch.sizes, strict=True):
                assert (h, w) != (0, 0) and (h == 64 or w == 96) and h <= 64 and w <= 96
                assert image[:, :h, :w].ne(0).all() and image.count_nonzero() == 3 * h * w


def test_uint8_equals_float(samples):
    ours, _ = transforms((160,), 256)
    images = [image for image, _ in samples[:2]]
    found = ours.batch(images, None, False, torch.float32).images
    assert torch.equal(found, ours.batch([i.float() / 255 for i in images], None, False, torch.float32).images)


@pytest.mark.parametrize("shape", [(1, 20, 20), (20, 20), (4, 20, 20), (3, 0, 20)])
def test_a_wrong_shape_is_named(shape):
    ours, _ = transforms((160,), 256)
    with pytest.raises(ValueError, match="image 1 has shape"):
        ours.batch([torch.zeros(3, 9, 9), torch.zeros(shape)], None, False, torch.float32)


def test_min_size_is_drawn_per_image_in_training_and_the_last_counts_in_evaluation():
    ours, _ = transforms((32, 64, 96), 500)
    image = torch.zeros(3, 50, 50)

    def sizes(training, seeds):
        targets = [{"sample_seed": s} for s in seeds]
        return [h for h, _ in ours.batch([image] * len(seeds), targets, training, torch.float32).sizes]

    assert sizes(False, [1, 2]) == [96, 96]
    drawn = sizes(True, range(30))
    assert set(drawn) == {32, 64, 96}
    assert drawn == sizes(True, range(30)) and drawn[5:9] == sizes(True, range(5, 9))
    unseeded = [ours.batch([image], [{}], True, torch.float32).sizes[0][0] for _ in range(30)]
    assert set(unseeded) == {32, 64, 96}


def test_targets_equal_torchvision(samples):
    ours, theirs = transforms((160,), 256)
    for image, target in samples[:3]:
        batch = ours.batch([image], None, False, torch.float32)
        _, expected = theirs.eval()([image.float() / 255], [{k: target[k] for k in ("boxes", "masks", "labels")}])
        objects = prepare_objects([target], batch, 91)
        assert torch.equal(objects.boxes.values[0], expected[0]["boxes"])
        resized = F.interpolate(objects.masks[0].to_masks()[:, None].float(), objects.sizes[0])[:, 0].byte()
        assert torch.equal(resized, expected[0]["masks"])
        assert torch.equal(objects.labels.values[0], target["labels"]) and objects.generators == [(None, None)]


def square(x, y, side=10.0):
    return [x, y, x + side, y + side]


def crowded_target(masks):
    return {
        "boxes": torch.tensor([square(5, 5), square(20, 20), square(0, 0, 40)]),
        "labels": torch.tensor([3, 4, 5]),
        "masks": masks,
        "iscrowd": torch.tensor([0, 0, 1], dtype=torch.uint8),
        "sample_seed": 7,
    }


@pytest.mark.parametrize("form", ["full", "cropped"])
def test_crowds_are_set_apart(form):
    ours, _ = transforms((100,), 200)
    batch = ours.batch([torch.zeros(3, 50, 50)], None, False, torch.float32)  # twice the size
    masks = torch.zeros(3, 50, 50, dtype=torch.uint8)
    masks[0, 5:15, 5:15], masks[1, 20:30, 20:30], masks[2, :40, :40] = 1, 1, 1
    target = crowded_target(masks if form == "full" else CroppedMasks.from_masks(masks))
    objects = prepare_objects([target], batch, 91)
    assert objects.boxes.values[0].tolist() == [square(10, 10, 20), square(40, 40, 20)]
    assert objects.crowds.values[0].tolist() == [square(0, 0, 80)]
    assert objects.labels.values[0].tolist() == [3, 4]
    assert torch.equal(objects.masks[0].to_masks(), masks[:2])
    assert len(target["boxes"]) == 3  # the target stays as it was


def test_streams_of_a_seed_differ_and_repeat():
    draws = {
        (seed, stream): torch.rand(4, generator=seeded(seed, stream)).tolist()[0]
        for seed in (0, 1, 2, 2**32, 2**40, 2**62)
        for stream in (0, 1, 2)
    }
    assert len(set(draws.values())) == len(draws)
    assert torch.rand(1, generator=seeded(1, 2)).item() == draws[1, 2]


@pytest.mark.parametrize("box", [[5.0, 5, 5, 9], [5, 9, 8, 4], [0, 0, math.inf, 5], [math.nan, 0, 4, 5]])
def test_a_box_that_is_none_is_named(box):
    ours, _ = transforms((100,), 200)
    batch = ours.batch([torch.zeros(3, 50, 50)], None, False, torch.float32)
    target = {
        "boxes": torch.tensor([square(1, 1), box]),
        "labels": torch.tensor([1, 1]),
        "image_id": 42,
        "masks": torch.ones(2, 50, 50),
    }
    with pytest.raises(ValueError, match="image 42"):
        prepare_objects([target], batch, 91)


def test_a_target_without_objects():
    ours, _ = transforms((100,), 200)
    batch = ours.batch([torch.zeros(3, 50, 50)], None, False, torch.float32)
    target = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64), "masks": torch.zeros(0, 50, 50)}
    objects = prepare_objects([target], batch, 91)
    assert objects.boxes.values.shape == objects.crowds.values.shape == (1, 0, 4) and len(objects.masks[0]) == 0
