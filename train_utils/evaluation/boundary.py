"""Masks -> the IoU of their borders, which shows ragged outlines of large objects that the IoU of masks hides.

Boundary IoU (Cheng et al., 2021): of each mask only the pixels within a distance of its outline count. As there, AP
goes by the smaller one of both IoUs, as inside of its border a wrong mask could agree by chance.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch.nn.functional as F
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from network_files.operators.instance_masks import encode_crop
from train_utils.data.rle import cropped_masks

BOUNDARY = "boundary"  # the IoU type
DISTANCE = 0.02  # of the image's diagonal, the paper's for COCO


def border_distance(size: tuple[int, int]) -> int:
    """Returns how many pixels from its outline a mask of an image of `size` (H, W) has its border, at least 1."""
    return max(round(DISTANCE * math.hypot(*size)), 1)


def borders(rles: Sequence[dict]) -> list[dict]:
    """Returns the RLE of each mask's border: the pixels with one outside of the mask, or of the image, within a square.

    rles: of one image, compressed; the square's sides are twice `border_distance` and 1.
    """
    if not rles:
        return []
    size = tuple(rles[0]["size"])
    masks = cropped_masks([{**rle, "counts": _as_bytes(rle["counts"])} for rle in rles], size)
    distance, made = border_distance(size), []
    for crop, (x, y, _, _) in zip(masks.crops(), masks.boxes.tolist(), strict=True):
        if not crop.numel():  # an empty mask has no border
            made.append(encode_crop(crop.bool(), 0, 0, size))
            continue
        outside = F.pad(1.0 - crop[None].float(), (distance,) * 4, value=1.0)  # what is around a crop is not set
        near = F.max_pool2d(F.max_pool2d(outside, (2 * distance + 1, 1), 1), (1, 2 * distance + 1), 1)[0] > 0
        made.append(encode_crop(crop.bool() & near, x, y, size))
    return made


class BoundaryEval(COCOeval):
    """COCOeval of masks whose IoU is the smaller one of that of the masks and that of their borders."""

    def __init__(self, truth: COCO, found: COCO, iou_type: str) -> None:
        super().__init__(truth, found, "segm")

    def computeIoU(self, imgId: int, catId: int) -> Any:  # noqa: N802, N803
        """Returns the IoUs of one image and class, detections by falling score x ground truth; [] for none."""
        ious, key = super().computeIoU(imgId, catId), (imgId, catId)
        if len(ious) == 0 or 0 in np.shape(ious):
            return ious
        truth, found = self._gts[key], self._dts[key]
        order = np.argsort([-one["score"] for one in found], kind="mergesort")[: self.params.maxDets[-1]]
        of_truth = borders([one["segmentation"] for one in truth])
        of_found = borders([found[i]["segmentation"] for i in order])
        crowd = [int(one["iscrowd"]) for one in truth]
        return np.minimum(ious, coco_mask.iou(of_found, of_truth, crowd))


def _as_bytes(counts: str | bytes) -> bytes:
    return counts.encode() if isinstance(counts, str) else counts
