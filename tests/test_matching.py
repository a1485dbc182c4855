"""Matching and sampling: by hand, against the slow rule, against torchvision's Matcher and sampler."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torchvision.models.detection._utils import Matcher
from torchvision.ops import box_iou

from network_files import matching
from network_files.matching import BELOW, BETWEEN, match
from network_files.operators.padded import Padded
from tests.plain_loops import random_boxes


def match_boxes(objects, crowds, boxes, *numbers, **more):
    """`matching.match_boxes` of one image: [B]."""
    return matching.match_boxes(Padded.of([objects]), Padded.of([crowds]), boxes[None], *numbers, **more)[0]


def sample_balanced(labels, count, fraction, generator=None):
    """`matching.sample_balanced` of one image: positives, negatives."""
    sampled = matching.sample_balanced(labels[None], count, fraction, [generator])
    return sampled.index.split(sampled.counts[0])


def in_parts(iou):
    return lambda: iou.split(3, 1)


def slow_match(iou, high, low, keep_best):
    matched = []
    for column in zip(*iou, strict=True):
        best = max(column)
        is_peak = keep_best and any(v == max(row) > 0 for v, row in zip(column, iou, strict=True))
        if best >= high or is_peak:
            matched.append(column.index(best))
        else:
            matched.append(BELOW if best < low else BETWEEN)
    return matched


def test_by_hand():
    iou = torch.tensor([[0.8, 0.4, 0.1, 0.7, 0.3, 0.2], [0.1, 0.5, 0.2, 0.1, 0.2, 0.6]])
    assert match(in_parts(iou), 0.7, 0.3).tolist() == [0, BETWEEN, BELOW, 0, BETWEEN, BETWEEN]
    # the last one overlaps object 1 best of all, though by less than 0.7
    assert match(in_parts(iou), 0.7, 0.3, keep_best=True).tolist() == [0, BETWEEN, BELOW, 0, BETWEEN, 1]


def test_best_boxes_stand_for_the_object_they_overlap_most():
    # box 0 is object 1's best, yet overlaps object 0 more: torchvision's rule, and Detectron's
    iou = torch.tensor([[0.5, 0.9], [0.4, 0.1]])
    assert match(in_parts(iou), 0.7, 0.3, keep_best=True).tolist() == [0, 0]


@pytest.mark.parametrize("keep_best", [False, True])
@pytest.mark.parametrize("low", [0.05, 0.3])
def test_many_objects_are_matched_with_what_is_near_alike(monkeypatch, keep_best, low):
    generator = torch.Generator().manual_seed(3)
    corners = torch.randint(0, 40, (60, 2), generator=generator).float()  # whole pixels: overlaps tie
    objects = torch.cat((corners, corners + torch.randint(1, 6, (60, 2), generator=generator)), 1)
    objects = torch.cat((objects, objects[:3], torch.tensor([[400.0, 400, 410, 410]])))
    y, x = torch.meshgrid(torch.arange(0, 44, 2), torch.arange(0, 44, 2), indexing="ij")
    boxes = torch.stack((x, y, x + 4, y + 3), -1).flatten(0, 1).float()
    boxes = torch.cat((boxes, torch.tensor([[200.0, 200, 210, 210]]).expand(20, 4)))  # a portion that nothing is near
    numbers = 0.5, low, keep_best
    expected = match_boxes(objects, torch.zeros(0, 4), boxes, *numbers, None)
    monkeypatch.setattr(matching, "NEAR", 16)
    monkeypatch.setattr(matching, "OVERLAPS", 1000)
    seen = []
    monkeypatch.setattr(matching, "box_iou", lambda a, b: seen.append(len(a)) or box_iou(a, b))
    assert torch.equal(match_boxes(objects, torch.zeros(0, 4), boxes, *numbers, None), expected)
    assert max(seen) < len(objects) / 2 and 0 in seen
    assert (expected >= 0).any() and (expected == BETWEEN).any()


values = st.sampled_from([0.0, 0.1, 0.29, 0.3, 0.5, 0.69, 0.7, 0.9])
matrices = st.integers(1, 4).flatmap(
    lambda g: st.integers(1, 12).flatmap(
        lambda b: st.lists(st.lists(values, min_size=b, max_size=b), min_size=g, max_size=g)
    )
)


@given(matrices, st.booleans(), st.sampled_from([(0.7, 0.3), (0.5, 0.5)]))
def test_equals_the_slow_rule(rows, keep_best, thresholds):
    iou = torch.tensor(rows, dtype=torch.float64)
    assert match(in_parts(iou), *thresholds, keep_best).tolist() == slow_match(rows, *thresholds, keep_best)


@pytest.mark.parametrize("keep_best", [False, True])
def test_equals_torchvision(keep_best):
    iou = box_iou(random_boxes(12, 1), random_boxes(500, 2))
    for high, low in ((0.7, 0.3), (0.5, 0.5)):
        assert torch.equal(match(in_parts(iou), high, low, keep_best), Matcher(high, low, keep_best)(iou))


def test_an_object_that_no_anchor_touches_matches_nothing():
    # torchvision's rule would make every anchor its best one, at an overlap of 0
    iou = torch.tensor([[0.0, 0.0, 0.0], [0.2, 0.0, 0.6]])
    assert match(in_parts(iou), 0.7, 0.3, keep_best=True).tolist() == [BELOW, BELOW, 1]


def test_no_objects_or_no_boxes():
    assert match_boxes(*torch.zeros(3, 0, 4).unbind(), 0.7, 0.3, True, 0.7).shape == (0,)
    assert match_boxes(*torch.zeros(2, 0, 4).unbind(), random_boxes(3, 1), 0.5, 0.0, True, 0.7).tolist() == [BELOW] * 3
    assert match(in_parts(torch.zeros(2, 0)), 0.7, 0.3, True).shape == (0,)


def test_many_overlaps_are_taken_in_parts(monkeypatch):
    objects, boxes = random_boxes(12, 1), random_boxes(500, 2)
    args = (objects, objects[:2] * 1.5, boxes, 0.7, 0.3, True, 0.7)
    whole = match_boxes(*args)
    assert all((whole == kind).any() for kind in (BELOW, BETWEEN)) and (whole >= 0).any()
    monkeypatch.setattr("network_files.matching.OVERLAPS", 100)
    assert torch.equal(match_boxes(*args), whole)


def test_background_in_a_crowd_is_ignored():
    objects = torch.tensor([[0.0, 0, 10, 10]])
    crowds = torch.tensor([[0.0, 0, 100, 100]])
    boxes = torch.tensor(
        [
            [0.0, 0, 10, 10],  # the object itself, inside the crowd
            [50, 50, 60, 60],  # background, wholly in the crowd
            [95, 0, 105, 10],  # half of it in the crowd
            [93, 0, 103, 10],  # exactly 0.7 of it
            [200, 200, 210, 210],
        ]
    )
    args = (objects, crowds, boxes, 0.7, 0.3, True)
    assert match_boxes(*args, crowd_ioa_thresh=0.7).tolist() == [0, BETWEEN, BELOW, BETWEEN, BELOW]
    assert match_boxes(*args, crowd_ioa_thresh=None).tolist() == [0, BELOW, BELOW, BELOW, BELOW]
    only_crowd = match_boxes(objects[:0], crowds, boxes, 0.7, 0.3, True, 0.7)
    assert only_crowd.tolist() == [BETWEEN, BETWEEN, BELOW, BETWEEN, BELOW]
    assert match_boxes(objects, crowds[:0], boxes, 0.7, 0.3, True, 0.7).tolist() == [0] + [BELOW] * 4


@pytest.mark.parametrize(
    ("positives", "negatives", "expected"),
    [
        (100, 1000, (64, 192)),
        (10, 1000, (10, 246)),
        (100, 50, (64, 50)),
        (0, 300, (0, 256)),
        (300, 0, (64, 0)),
        (0, 0, (0, 0)),
    ],
)
def test_sample_is_balanced_and_without_repeats(positives, negatives, expected):
    labels = torch.cat((torch.full((positives,), 7), torch.zeros(negatives).long(), torch.full((40,), -1)))
    labels = labels[torch.randperm(len(labels))]
    positive, negative = sample_balanced(labels, 256, 0.25)
    assert (len(positive), len(negative)) == expected
    assert (labels[positive] > 0).all() and (labels[negative] == 0).all()
    assert len(set(positive.tolist())) == len(positive) and len(set(negative.tolist())) == len(negative)


def test_sample_follows_its_generator_alone():
    labels = (torch.arange(1000) % 3).clamp(max=1)

    def draw(seed):
        return torch.cat(sample_balanced(labels, 64, 0.5, torch.Generator().manual_seed(seed)))

    state = torch.get_rng_state()
    assert torch.equal(draw(1), draw(1)) and not torch.equal(draw(1), draw(2))
    assert torch.equal(torch.get_rng_state(), state)
    sample_balanced(labels, 64, 0.5)
    assert not torch.equal(torch.get_rng_state(), state)  # without one, torch's global generator


def test_every_candidate_can_be_drawn():
    labels = torch.tensor([1] * 6 + [0] * 6)
    seen = set()
    for seed in range(40):
        seen |= set(torch.cat(sample_balanced(labels, 4, 0.5, torch.Generator().manual_seed(seed))).tolist())
    assert seen == set(range(12))
