"""Crops read from RLEs equal those cut out of pycocotools' full-size masks."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from pycocotools import mask as coco_mask

from network_files.operators.cropped_masks import CroppedMasks
from train_utils.data.rle import cropped_masks

SIDES = st.tuples(st.integers(0, 3), st.integers(1, 7), st.integers(1, 7))


def assert_equal(found, expected):
    assert found.size == expected.size
    assert found.pixels.dtype == torch.uint8 and torch.equal(found.pixels, expected.pixels)
    assert found.boxes.dtype == torch.int64 and torch.equal(found.boxes, expected.boxes)


@given(SIDES.flatmap(lambda shape: arrays.arrays(np.uint8, shape, elements=st.sampled_from([0, 0, 1]))))
def test_equal_to_full_size_masks(masks):
    rles = [coco_mask.encode(np.asfortranarray(mask)) for mask in masks]
    assert_equal(cropped_masks(rles, masks.shape[1:]), CroppedMasks.from_masks(torch.from_numpy(masks)))


@pytest.mark.parametrize("counts", [[0, 12], [12], [0, 0, 12], [3, 0, 5, 1, 0, 3], [0, 1, 10, 1], [2, 2, 3, 0, 5]])
def test_runs_of_any_kind(counts):
    """Also those that no encoder writes: empty runs in between, which stretch pycocotools' own boxes."""
    rle = coco_mask.frPyObjects({"size": [4, 3], "counts": counts}, 4, 3)
    mask = torch.from_numpy(coco_mask.decode(rle))
    assert_equal(cropped_masks([rle], (4, 3)), CroppedMasks.from_masks(mask[None]))
