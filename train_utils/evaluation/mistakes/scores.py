"""Measures what scores are worth, at IoU 0.5: precision, recall and F1 above a score, and calibration.

D detections, C classes.
"""

from typing import NamedTuple

import numpy as np

from train_utils.evaluation.mistakes.matching import Matches

BINS = 10  # of equal width, from 0 to 1


class Best(NamedTuple):
    """The score at which F1 is highest, and what detections of at least this score come to."""

    score: float
    precision: float
    recall: float
    f1: float


class Bin(NamedTuple):
    """Detections whose scores lie from low to high (high itself in the last bin only)."""

    low: float
    high: float
    count: int
    score: float  # mean; NaN of none
    precision: float


def best_f1(score: np.ndarray, right: np.ndarray, objects: int) -> Best | None:
    """Returns the score with the highest F1, of equal F1s the highest score; None without detections or objects.

    score float [D], right bool [D]; objects: how many there are to find.
    """
    if not len(score) or not objects:
        return None
    order = np.argsort(-score, kind="stable")
    score, found = score[order], np.cumsum(right[order])
    last = np.append(score[1:] != score[:-1], True)  # those of equal score come together
    f1 = np.where(last, 2 * found / (np.arange(1, len(score) + 1) + objects), -1.0)
    k = int(f1.argmax())
    return Best(float(score[k]), float(found[k] / (k + 1)), float(found[k] / objects), float(f1[k]))


def best_of_all(matches: Matches) -> Best | None:
    """Returns one score for all classes together."""
    used = ~matches.ignored[0]
    return best_f1(matches.score[used], matches.matched[0, used] >= 0, int((~matches.crowd).sum()))


def score_to_show(matches: Matches, best: Best | None, usual: float) -> tuple[float, str]:
    """Returns the least score of the detections that are shown, and why it is that one ("" for the usual one).

    Where F1 is highest; where it is 0 at every score as many as there are objects, so that one sees what is wrong.
    """
    if best is None:
        return usual, ""
    if best.f1 > 0:
        return best.score, "there F1 over all classes is highest"
    scores = np.sort(matches.score[~matches.ignored[0]])[::-1]
    last = min(len(scores), int((~matches.crowd).sum())) - 1
    return float(scores[last]), "no detection is right at any score, so as many are shown as there are objects"


def best_of_classes(matches: Matches) -> list[Best | None]:
    """Returns a score for each class [C]."""
    order = np.argsort(matches.category, kind="stable")
    order = order[~matches.ignored[0, order]]
    bounds = np.searchsorted(matches.category[order], np.arange(len(matches.category_ids) + 1))
    objects = np.bincount(matches.object_category[~matches.crowd], minlength=len(matches.category_ids)).tolist()
    parts = [order[a:b] for a, b in zip(bounds, bounds[1:], strict=False)]
    return [
        best_f1(matches.score[part], matches.matched[0, part] >= 0, count)
        for part, count in zip(parts, objects, strict=True)
    ]


def calibration(matches: Matches) -> tuple[list[Bin], float]:
    """Returns BINS bins, and the expected calibration error.

    The error is the mean distance of score and precision, weighted by detections; NaN without detections. Scores
    outside 0..1 count in the first or the last bin.
    """
    used = ~matches.ignored[0]
    score, right = matches.score[used], matches.matched[0, used] >= 0
    place = np.clip(score * BINS, 0, BINS - 1).astype(np.int64)
    counts = np.bincount(place, minlength=BINS)
    sums = (np.bincount(place, weights, minlength=BINS) for weights in (score, right))
    means, precisions = (np.divide(sum_, counts, out=np.full(BINS, np.nan), where=counts > 0) for sum_ in sums)
    bins = [Bin(i / BINS, (i + 1) / BINS, int(counts[i]), float(means[i]), float(precisions[i])) for i in range(BINS)]
    if not counts.sum():
        return bins, float("nan")
    return bins, float(np.nansum(np.abs(means - precisions) * counts) / counts.sum())
