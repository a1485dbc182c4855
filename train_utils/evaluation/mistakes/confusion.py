"""Turns matches into a matrix of which classes are taken for which, the background as one more class. C classes."""

import numpy as np

from train_utils.evaluation.mistakes.matching import IN_CROWD, NONE, Matches


def confusion_matrix(matches: Matches, least_score: float) -> np.ndarray:
    """Counts how often an object of class i was detected as class j: int64 [C + 1, C + 1]; C is the background.

    Detections of at least `least_score` choose, best first and whatever their class, the free object that they cover
    with the highest IoU, from 0.5 on. One that gets none was detected on the background (row C), unless it lies in a
    crowd; an object left over was detected as background (column C), but for those that the limit cut.
    """
    classes = len(matches.category_ids)
    shown = (matches.score >= least_score) & (matches.blind != IN_CROWD)
    taken = shown & (matches.blind != NONE)
    left = ~matches.crowd & ~matches.cut
    left[matches.blind[taken]] = False
    matrix = np.zeros((classes + 1, classes + 1), dtype=np.int64)
    np.add.at(matrix, (matches.object_category[matches.blind[taken]], matches.category[taken]), 1)
    np.add.at(matrix[classes], matches.category[shown & ~taken], 1)
    np.add.at(matrix[:, classes], matches.object_category[left], 1)
    return matrix


def most_confused(matrix: np.ndarray, count: int) -> list[tuple[int, int, int]]:
    """Returns (class, detected as, times) of the commonest mix-ups between classes."""
    between = matrix[:-1, :-1].copy()
    np.fill_diagonal(between, 0)
    order = np.argsort(-between, axis=None, kind="stable")[:count]
    pairs = zip(*np.unravel_index(order, between.shape), strict=True)
    return [(int(i), int(j), int(between[i, j])) for i, j in pairs if between[i, j]]
