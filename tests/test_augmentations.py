"""Families of augmentations: nothing without strength, exact in masks and occlusion, all by the generator."""

import random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.transforms import v2

from backbone.errors import InputError
from network_files.operators.cropped_masks import CroppedMasks
from tests.test_transforms import assert_same, dense, generator, sample, tight_boxes
from train_utils.data.augmentations.common import REMOVED, hidden_behind
from train_utils.data.augmentations.options import PRESETS, with_preset
from train_utils.data.augmentations.own import own_augmentation
from train_utils.data.augmentations.warps import turned
from train_utils.data.images import ImageError
from train_utils.data.loaders import TrainLoader
from train_utils.data.options import LoaderOptions
from train_utils.processes.distributed import World
from train_utils.run.config import RunConfig
from transforms import (
    Affine,
    Augmentation,
    Blur,
    ChannelJitter,
    Compose,
    Contrast,
    CopyPaste,
    Cutout,
    Gamma,
    HorizontalFlip,
    Noise,
    OwnAugmentation,
    QuarterTurns,
    StainJitter,
    VerticalFlip,
    augmentation_of,
    build_augment,
    from_albumentations,
    from_torchvision,
)

SEEDS = st.integers(0, 2**32)
OTHERS = [sample(seed) for seed in range(1, 6)]
COLOURS = [Blur(2, 1), Noise(0.2, 1), Gamma(2, 1), Contrast(2, 1), ChannelJitter(0.3, 1), StainJitter(0.3, 1)]
MOVES = [Affine(40, (0.6, 1.5), 0.2, p=1), QuarterTurns(1), CopyPaste(OTHERS, 1), Cutout(4, 0.5, p=1)]
ALL = Compose([CopyPaste(OTHERS), *COLOURS, *MOVES])


def kinds(augmentations):
    return [type(each).__name__ for each in augmentations]


@pytest.mark.parametrize("augment", [*COLOURS, *MOVES], ids=kinds([*COLOURS, *MOVES]))
@settings(max_examples=6, deadline=None)
@given(seed=SEEDS, cropped=st.booleans())
def test_pure_and_by_the_generator_alone(augment, seed, cropped):
    image, target = sample(seed, cropped)
    first = augment(image, target, generator(seed))
    torch.rand(3)  # the global generator plays no part
    assert_same(augment(image, target, generator(seed)), first)
    assert_same((image, target), sample(seed, cropped))  # nothing in place
    assert first[1] is not target
    assert_same(first, augment(image, {**target, "masks": sample(seed)[1]["masks"]}, generator(seed))) if cropped else 0


@settings(max_examples=10, deadline=None)
@given(seed=SEEDS)
def test_areas_and_boxes_are_those_of_the_masks_and_no_object_is_lost_silently(seed):
    image, target = sample(seed)
    changed, its = ALL(image, target, generator(seed))
    assert changed.dtype == image.dtype and its["masks"].size == tuple(changed.shape[1:])
    assert torch.equal(its["area"], its["masks"].areas().float())
    assert torch.equal(its["boxes"], tight_boxes(dense(its)))
    assert len({len(its[key]) for key in ("boxes", "labels", "masks", "area", "iscrowd")}) == 1
    assert bool((its["area"] > 0).all()) and its["image_id"] == seed
    image, its = Compose(MOVES[::3] + MOVES[:1])(image, target, generator(seed))  # none of which adds objects
    assert len(its["labels"]) + its.get(REMOVED, 0) == len(target["labels"])


NEUTRAL = [Blur(0, 1), Noise(0, 1), Gamma(1, 1), Contrast(1, 1), ChannelJitter(0, 1), StainJitter(0, 1)]
NEUTRAL += [Affine(p=1), Cutout(0, p=1), QuarterTurns(0), CopyPaste(OTHERS, 0)]


@pytest.mark.parametrize("neutral", NEUTRAL, ids=kinds(NEUTRAL))
def test_without_strength_nothing_changes(neutral):
    for seed in range(4):
        assert_same(neutral(*sample(seed), generator(seed)), sample(seed))


def test_four_quarter_turns_are_the_identity_and_two_are_both_flips():
    for seed in range(8):
        image, target = sample(seed)
        assert_same(turned(image, target, 4), (image, target))
        both = VerticalFlip(1)(*HorizontalFlip(1)(image, target, generator()), generator())
        assert_same(turned(image, target, 2), both)
        once, its = turned(image, target, 1)
        assert torch.equal(once, image.rot90(1, (1, 2)))
        assert torch.equal(dense(its), dense(target).rot90(1, (1, 2)))
        assert torch.equal(its["boxes"], tight_boxes(dense(its)))


def test_a_turn_by_ninety_degrees_is_a_quarter_turn():
    """Of a square; and a mask's pixel is the one that its centre comes from."""
    rng = np.random.default_rng(0)
    image = torch.from_numpy(rng.integers(0, 256, (3, 30, 30), dtype=np.uint8))
    masks = torch.from_numpy(rng.integers(0, 2, (2, 30, 30), dtype=np.uint8))
    target = {
        "boxes": tight_boxes(masks), "labels": torch.ones(2).long(), "masks": CroppedMasks.from_masks(masks),
        "area": masks.sum((1, 2)).float(), "iscrowd": torch.zeros(2, dtype=torch.uint8),
    }  # fmt: skip
    turn = Affine(90, p=1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("train_utils.data.augmentations.warps.uniform", lambda low, high, rng: low)  # -90 degrees
        patch.setattr(turn, "scale", (1.0, 1.0))
        assert_same(turn(image, target, generator()), turned(image, target, 1))
        half = Affine(0, (0.5, 0.5), p=1)(image, target, generator())
    assert half[0].shape == image.shape and torch.equal(half[0][:, 0, 0], torch.tensor([124, 116, 104]).byte())
    assert torch.equal(dense(half[1])[:, 8:22, 8:22], masks[:, 2:29:2, 2:29:2])  # centres between two: the second


def test_what_is_hidden_is_hidden_exactly():
    masks = torch.zeros(3, 8, 8, dtype=torch.uint8)
    masks[0, 0:4, 0:4], masks[1, 4:8, 0:4], masks[2, 0:8, 6:8] = 1, 1, 1
    boxes = torch.tensor([[0, 0, 4.0, 4], [0.5, 4, 4, 8], [6, 0, 8, 8]])
    target = {
        "boxes": boxes, "labels": torch.tensor([1, 2, 3]), "masks": CroppedMasks.from_masks(masks),
        "area": torch.tensor([16.0, 99, 16]), "iscrowd": torch.tensor([0, 0, 1], dtype=torch.uint8),
    }  # fmt: skip
    hidden = torch.zeros(8, 8, dtype=torch.bool)
    hidden[0:4, 0:2] = True  # half of the first; the second keeps what was annotated
    its = hidden_behind(target, hidden)
    assert its["boxes"].tolist() == [[2, 0, 4, 4], [0.5, 4, 4, 8], [6, 0, 8, 8]] and REMOVED not in its
    assert its["area"].tolist() == [8, 99, 16] and torch.equal(dense(its)[0], masks[0] & ~hidden)
    hidden[0:4, 0:4] = hidden[1:8, 6:8] = True
    hidden[0, 0:3] = False  # 3 of 16 pixels are too few for an object; a crowd is ignored as long as it is seen
    its = hidden_behind(target, hidden)
    assert its["labels"].tolist() == [2, 3] and its[REMOVED] == 1 and its["area"].tolist() == [99, 2]


def test_pasted_objects_are_in_front_and_look_as_they_do():
    """Of an image of its size, unscaled: pixels and masks are the other image's, moved and perhaps mirrored."""
    image, target = torch.zeros(3, 40, 40, dtype=torch.uint8), sample(3)[1]
    masks = torch.zeros(2, 40, 40, dtype=torch.uint8)
    masks[0, 5:20, 5:25], masks[1] = 1, 1
    other = torch.randint(1, 256, (3, 40, 40), dtype=torch.uint8, generator=generator())
    its = {
        "boxes": tight_boxes(masks), "labels": torch.tensor([9, 8]), "masks": CroppedMasks.from_masks(masks),
        "area": masks.sum((1, 2)).float(), "iscrowd": torch.tensor([0, 1], dtype=torch.uint8),
    }  # fmt: skip
    own = torch.zeros(1, 40, 40, dtype=torch.uint8)
    own[0, :, :10] = 1
    target = {
        "boxes": tight_boxes(own), "labels": torch.tensor([1]), "masks": CroppedMasks.from_masks(own),
        "area": torch.tensor([400.0]), "iscrowd": torch.tensor([0], dtype=torch.uint8),
    }  # fmt: skip
    mirrors = set()
    for seed in range(12):
        pasted, joined = CopyPaste([(other, its)], 1, (1, 1), share=0.99)(image, target, generator(seed))
        assert 8 not in joined["labels"]  # a crowd region is not pasted
        front = dense(joined)[-1].bool()
        mirrored = torch.equal(pasted[:, 5:20, 15:35], other.flip(2)[:, 5:20, 15:35])
        mirrors.add(mirrored)
        assert torch.equal(pasted[:, front], (other.flip(2) if mirrored else other)[:, front])
        assert not pasted[:, ~front].any() and front.sum() == 300
        assert torch.equal(dense(joined)[0].bool(), own[0].bool() & ~front)
        assert joined["labels"].tolist() == [1, 9] and torch.equal(joined["area"], dense(joined).sum((1, 2)).float())
    assert mirrors == {True, False}


def test_an_image_that_cannot_be_read_gives_nothing_to_paste():
    class Broken(list):
        def __getitem__(self, i):
            raise ImageError("x.png", "is cut off")

    assert_same(CopyPaste(Broken([1]), 1)(*sample(1), generator()), sample(1))


def test_presets_are_overruled_by_single_flags():
    medium = RunConfig.of({"augment": "medium", "rotate": 3.0})
    assert (medium.rotate, medium.copy_paste, medium.zoom) == (3.0, 0.5, (0.7, 1.4))
    assert [len(build_augment(OTHERS, augment=name).transforms) for name in PRESETS] == [3, 5, 9]
    assert str(augmentation_of(medium, OTHERS)) == str(
        build_augment(OTHERS, **with_preset({"augment": "medium", "rotate": 3.0}))
    )
    for wrong in (
        {"augment": "strong"},
        {"zoom": (2, 1)},
        {"rotate": 200},
        {"augment": "a.py:f", "vertical_flip": 0.5},
    ):
        with pytest.raises(InputError):
            RunConfig.of(wrong)
    every = {"quarter_turns": 0.5, "contrast": 1.2, "stain_jitter": 0.1, "gamma": 1.1, "noise": 0.1}
    assert len(build_augment(OTHERS, augment="heavy", vertical_flip=0.5, **every).transforms) == 13


OWN = """
from __future__ import annotations
import random
from dataclasses import dataclass
import numpy as np
import torch
from beside_mine import mirrored

def darker(image, target):
    shift = random.random() + np.random.rand() + torch.rand(()).item()
    return (image / (1 + shift)).to(image.dtype), target

def loses(image, target, rng):
    return image, {key: target[key][:1] for key in ("boxes", "labels", "masks", "iscrowd")}

def fails(image, target):
    return image, target["keypoints"]

def _private():
    return None

@dataclass
class Mirror:
    p: float = 1.0
    def __call__(self, image, target, scale=0.5, train=True):
        return (mirrored(image) * scale).to(image.dtype), target

mirror = Mirror()

def named(image, target, rng=None):
    return (image * torch.rand((), generator=rng)).to(image.dtype), target
"""


def test_an_own_file_draws_by_the_generator_whatever_it_draws_from(tmp_path):
    (tmp_path / "mine.py").write_text(OWN)
    (tmp_path / "beside_mine.py").write_text("def mirrored(image):\n    return image.flip(2)\n")
    place = str(tmp_path / "mine.py")
    darker, (image, target) = own_augmentation(f"{place}:darker"), sample(4)
    first = darker(image, target, generator(1))
    random.random(), np.random.rand(), torch.rand(1)  # noqa: NPY002 which play no part
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
    assert_same(darker(image, target, generator(1)), first)
    assert (before[0], before[1]) == (random.getstate(), np.random.get_state()[1].tolist())
    assert torch.equal(torch.get_rng_state(), before[2])
    assert not torch.equal(darker(image, target, generator(2))[0], first[0])
    assert str(darker) == f"{place}:darker" and augmentation_of(Augmentation(augment=str(darker))).name == str(darker)
    removed = own_augmentation(f"{place}:loses")(image, {**target, "image_id": 3}, generator())[1]
    assert removed[REMOVED] == len(target["labels"]) - 1
    mirror, named = (own_augmentation(f"{place}:{name}") for name in ("mirror", "named"))
    assert torch.equal(mirror(image, target, generator())[0], (image.flip(2) * 0.5).to(torch.uint8))
    assert not mirror.takes_rng and named.takes_rng
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "mine.py").write_text("def f(image, target): return image, target")
    other = own_augmentation(str(tmp_path / "other" / "mine.py:f"))
    assert other.function.__module__ != mirror.function.__module__
    (tmp_path / "broken.py").write_text("import nothing_of_this_name")
    for wrong, said in (
        ("none.py:f", "there is no file"),
        (f"{place}:dark", "mine.py has no function dark; it has dataclass, mirrored, darker, loses, fails, named"),
        (f"{tmp_path / 'broken.py'}:f", "ModuleNotFoundError: No module named .* .broken.py, line 1"),
    ):
        with pytest.raises(InputError, match=said):
            own_augmentation(wrong)
    loader = TrainLoader(
        Two([sample(3)]), own_augmentation(f"{place}:fails"), World.single("cpu"), LoaderOptions(1, workers=0)
    )
    with pytest.raises(InputError, match=r"mine.py:fails: KeyError: 'keypoints' \(mine.py, line 17\), of image 3"):
        list(loader.epoch(0))


class Two(list):
    """Samples as a data set."""

    @property
    def sizes(self):
        return torch.tensor([image.shape[1:] for image, _ in self])


def test_objects_that_augmentation_leaves_out_are_counted_for_the_epoch():
    samples = [sample(seed) for seed in (0, 4, 7)]
    cover = Compose([Cutout(30, 1.0, p=1)])
    loader = TrainLoader(Two(samples), cover, World.single("cpu"), LoaderOptions(1))
    batches = list(loader.epoch(0))
    left = sum(len(batch.targets[0]["labels"]) for batch in batches)
    removed = sum(batch.dropped[REMOVED] for batch in batches)
    assert removed > 0 and left + removed == sum(len(target["labels"]) for _, target in samples)
    assert not any(REMOVED in batch.targets[0] for batch in batches)


def test_transforms_of_torchvision_keep_masks_and_boxes_in_step():
    compose = v2.Compose(
        [v2.RandomIoUCrop(), v2.RandomRotation(30), v2.RandomHorizontalFlip(), v2.SanitizeBoundingBoxes()]
    )
    augment = OwnAugmentation(from_torchvision(compose))
    seen = set()
    for seed in range(12):
        image, target = sample(seed)
        changed, its = augment(image, target, generator(seed))
        assert_same(augment(image, target, generator(seed)), (changed, its))
        assert its["masks"].size == tuple(changed.shape[1:]) and torch.equal(its["boxes"], tight_boxes(dense(its)))
        assert len(its["labels"]) + its.get(REMOVED, 0) == len(target["labels"])
        whole = dict(zip(target["labels"].tolist(), target["iscrowd"].tolist(), strict=True))
        assert [whole[label] for label in its["labels"].tolist()] == its["iscrowd"].tolist()
        seen.add(its.get(REMOVED, 0) > 0)
    assert seen == {True, False}
    flip = OwnAugmentation(from_torchvision(v2.RandomHorizontalFlip(1.0)))
    assert_same(flip(*sample(4), generator()), HorizontalFlip(1)(*sample(4), generator()))


def test_a_transform_like_those_of_albumentations():
    """A stand-in with its calls: image [H, W, C], a list of masks, a seed of its own."""

    class Flip:
        def set_random_seed(self, seed):
            self.rng = np.random.default_rng(seed)

        def __call__(self, image, masks=None):
            assert image.shape[2] == 3 and (masks is None or masks[0].shape == image.shape[:2])
            if self.rng.random() < 0.5:
                return {"image": image, "masks": masks}
            return {"image": image[:, ::-1], "masks": masks and [mask[:, ::-1] for mask in masks]}

    augment, turns = OwnAugmentation(from_albumentations(Flip())), set()
    for seed in range(10):
        image, target = sample(seed)
        changed, its = augment(image, target, generator(seed))
        turns.add(turn := not torch.equal(changed, image))
        assert_same((changed, its), HorizontalFlip(float(turn))(image, target, generator()))
    assert turns == {True, False}

    def wipe(image, masks=None):
        return {"image": image, "masks": [mask * (k > 0) for k, mask in enumerate(masks)]}

    image, target = sample(4)
    its = OwnAugmentation(from_albumentations(wipe))(image, target, generator())[1]
    assert its["labels"].tolist() == target["labels"].tolist()[1:] and its[REMOVED] == 1
