"""Turns flat arrays into average precision, as pycocotools does: 101 recall points, the best precision beyond each.

D detections, C classes.
"""

import numpy as np

from train_utils.evaluation.mistakes.matching import Matches

RECALLS = np.linspace(0, 1, 101)


def precision_curves(score: np.ndarray, right: np.ndarray, category: np.ndarray, objects: np.ndarray) -> np.ndarray:
    """Returns the precision at RECALLS of each class, float64 [C, 101]; NaN for classes without objects.

    score float [D], right bool [D], category int [D] of the detections that count, in the order of images; objects
    int [C]: how many there are to find.
    """
    order = np.lexsort((-score, category))  # stable: equal scores stay in the order of images
    right, bounds = right[order], np.searchsorted(category[order], np.arange(len(objects) + 1))
    curves = np.full((len(objects), len(RECALLS)), np.nan)
    for c in np.flatnonzero(objects).tolist():
        curves[c] = _curve(right[bounds[c] : bounds[c + 1]], int(objects[c]))
    return curves


def _curve(right: np.ndarray, objects: int) -> np.ndarray:
    """Returns the precision at RECALLS, float64 [101]; right bool [n], best score first."""
    found = np.cumsum(right, dtype=np.float64)
    precision = found / (np.arange(1, len(right) + 1) + np.spacing(1))  # [n]
    envelope = np.append(np.maximum.accumulate(precision[::-1])[::-1], 0.0)  # beyond the last recall: 0
    return envelope[np.searchsorted(found / objects, RECALLS, side="left")]


def mean_of_known(values: np.ndarray) -> float:
    """Returns the mean of all values but NaN; NaN where there are none."""
    known = values[~np.isnan(values)]
    return float(known.mean()) if known.size else float("nan")


def curves_at(matches: Matches, t: int, images: np.ndarray | None = None) -> np.ndarray:
    """Returns `precision_curves` of matches at the t-th IoU threshold; images bool [I]: those that count."""
    used, real = ~matches.ignored[t], ~matches.crowd
    if images is not None:
        used, real = used & images[matches.image], real & images[matches.object_image]
    objects = np.bincount(matches.object_category[real], minlength=len(matches.category_ids))
    return precision_curves(matches.score[used], matches.matched[t, used] >= 0, matches.category[used], objects)
