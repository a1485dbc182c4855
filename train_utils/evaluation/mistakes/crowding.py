"""Measures AP where images hold few or many objects: the same matches, over a part of the images. I images."""

from typing import NamedTuple

import numpy as np

from train_utils.evaluation.mistakes.average_precision import curves_at, mean_of_known
from train_utils.evaluation.mistakes.matching import IOU_THRESHOLDS, Matches

BOUNDS = (1, 2, 6, 16)  # objects from which a group begins: 1, 2 to 5, 6 to 15, 16 and more


class Crowding(NamedTuple):
    """The images of one group; AP over COCO's IoU thresholds and at 0.5."""

    label: str
    images: int
    objects: int
    ap: float
    ap50: float


def mean_ap(matches: Matches, images: np.ndarray | None = None) -> tuple[float, float]:
    """Returns (AP over COCO's IoU thresholds, AP at 0.5), NaN without objects; images bool [I]: those that count."""
    each = [mean_of_known(curves_at(matches, t, images)) for t in range(len(IOU_THRESHOLDS))]
    return float(np.mean(each)), each[0]


def by_crowding(matches: Matches) -> list[Crowding]:
    """Returns a row for each group that has images; crowd regions do not count as objects."""
    counts = np.bincount(matches.object_image[~matches.crowd], minlength=len(matches.image_ids))  # [I]
    groups = []
    for low, beyond in zip(BOUNDS, (*BOUNDS[1:], None), strict=True):
        chosen = (counts >= low) & (counts < (beyond or np.inf))
        label = f"{low} and more" if beyond is None else "1 object" if beyond == 2 else f"{low} to {beyond - 1}"
        if chosen.any():
            groups.append(Crowding(label, int(chosen.sum()), int(counts[chosen].sum()), *mean_ap(matches, chosen)))
    return groups
