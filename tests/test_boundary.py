"""Boundary AP, beside faster-coco-eval's own and plain loops."""

import math

import numpy as np
import pytest
import torch
from faster_coco_eval import COCO, COCOeval_faster
from pycocotools import mask as coco_mask

from tests.test_tiles import ellipses
from train_utils.evaluation.boundary import BOUNDARY, border_distance, borders
from train_utils.evaluation.numbers import evaluate_results

SIZE = (150, 190)


def rles(masks) -> list[dict]:
    return [{**(r := coco_mask.encode(np.asfortranarray(m))), "counts": r["counts"].decode()} for m in masks.numpy()]


def test_a_border_is_what_has_an_unset_pixel_or_the_images_edge_near():
    masks = torch.cat([ellipses(12, seed=3), torch.zeros(1, *SIZE, dtype=torch.uint8)])  # one without a pixel
    distance = border_distance(SIZE)
    assert distance == round(0.02 * math.hypot(*SIZE)) > 1
    for mask, rle in zip(masks.numpy(), borders(rles(masks)), strict=True):
        padded = np.pad(mask, distance)
        inner = np.ones_like(mask)
        for dy in range(2 * distance + 1):
            for dx in range(2 * distance + 1):
                inner &= padded[dy : dy + SIZE[0], dx : dx + SIZE[1]]
        assert np.array_equal(coco_mask.decode(rle), mask & (1 - inner))
    assert borders([]) == []


def annotated(masks, classes: int) -> list[dict]:
    return [
        {
            "id": i + 1,
            "image_id": i % 3 + 1,
            "category_id": i % classes + 1,
            "segmentation": rle,
            "area": float(coco_mask.area(rle)),
            "bbox": coco_mask.toBbox(rle).tolist(),
            "iscrowd": int(i == 4),
        }
        for i, rle in enumerate(rles(masks))
    ]


@pytest.mark.parametrize("shift", [1, 4])
def test_boundary_ap_is_that_of_faster_coco_eval(shift):
    masks = ellipses(30, seed=5)
    truth = {
        "images": [{"id": i, "height": SIZE[0], "width": SIZE[1]} for i in (1, 2, 3)],
        "categories": [{"id": 1, "name": "a"}, {"id": 2, "name": "b"}],
        "annotations": annotated(masks, 2),
    }
    moved = annotated(masks.roll(shift, dims=2), 2)
    results = [
        {key: one[key] for key in ("image_id", "category_id", "segmentation")} | {"score": 1 - i / 50}
        for i, one in enumerate(moved)
    ]
    ours = evaluate_results(truth, results, ["segm", BOUNDARY])

    other = COCO(truth)
    evaluation = COCOeval_faster(other, other.loadRes(results), "boundary", print_function=lambda *_: None)
    evaluation.run()
    assert ours[BOUNDARY].stats == pytest.approx(evaluation.stats[:12].tolist(), abs=1e-9)
    assert ours[BOUNDARY].stats[0] < ours["segm"].stats[0]
