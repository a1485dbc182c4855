"""Measures what each kind of mistake costs in AP at IoU 0.5, after TIDE.

TIDE: Bolya et al. 2020, arXiv 2008.08115, section 2.

A false positive is of one kind. Where several would fit, the greater overlap decides, and its own class before
another's; overlaps are with objects that are not crowds:

    duplicate     >= 0.5 with an object of its class, which a better detection has taken
    class         >= 0.5 with an object of another class
    location      0.1 to 0.5 with an object of its class
    both          0.1 to 0.5 with an object of another class
    background    below 0.1 with all objects
    missed        an object that no detection matches, and none of the kinds class and location lies on; objects that
                  only detections beyond the limit of a class in an image lie on were found, and are not missed

The cost is what AP gains if this kind alone is corrected. A detection of the kinds class and location becomes a hit
of the object it lies on (of all detections on it the best stays, the others go); both, duplicate and background go;
missed objects need not be found. A class that then has nothing to find is at 1 if nothing was wrongly detected as
it, else at 0. Costs do not add up to 1 - AP.
D detections, G objects, C classes.
"""

import numpy as np

from train_utils.evaluation.mistakes.average_precision import mean_of_known, precision_curves
from train_utils.evaluation.mistakes.matching import BACKGROUND, FOREGROUND, NONE, Matches

KINDS = ("class", "location", "both", "duplicate", "background", "missed")
CLASS, LOCATION, BOTH, DUPLICATE, GROUND, MISSED = range(6)
SIZES = (32**2, 96**2)  # pixels from which on an object is medium and large, COCO's
RIGHT = -1  # in place of a kind: right, or inside a crowd


def kinds_of(matches: Matches) -> np.ndarray:
    """Returns the kind of each detection, int64 [D]: an index into KINDS, or RIGHT."""
    own, other = matches.own_iou, matches.other_iou
    ways = [matches.matched[0] != NONE, own >= FOREGROUND, other >= FOREGROUND, own >= BACKGROUND, other >= BACKGROUND]
    return np.select(ways, [RIGHT, DUPLICATE, CLASS, LOCATION, BOTH], GROUND)


def meant_of(matches: Matches, kinds: np.ndarray) -> np.ndarray:
    """Returns the object that a detection of the kinds class and location lies on, int64 [D]; NONE for others."""
    return np.select([kinds == CLASS, kinds == LOCATION], [matches.other, matches.own], NONE)


def missed_of(matches: Matches, kinds: np.ndarray, shown: np.ndarray | None = None) -> np.ndarray:
    """Returns the objects of the kind missed, bool [G]; shown bool [D]: the detections that count (default: all)."""
    shown = np.ones(len(kinds), dtype=bool) if shown is None else shown
    missed = ~matches.crowd & ~matches.cut
    for objects in (matches.matched[0], meant_of(matches, kinds)):
        missed[objects[shown & (objects >= 0)]] = False
    return missed


def by_size(matches: Matches, kinds: np.ndarray, areas: np.ndarray) -> list[tuple[int, int, int]]:
    """Returns (objects, found at IoU 0.5, of the kind missed) of the small, the medium and the large objects.

    areas: of the objects in pixels, float [G].
    """
    found = np.zeros(len(matches.crowd), dtype=bool)
    right = ~matches.ignored[0] & (matches.matched[0] >= 0)
    found[matches.matched[0, right]] = True
    missed, size = missed_of(matches, kinds), np.digitize(areas, SIZES)
    each = [~matches.crowd & (size == i) for i in range(len(SIZES) + 1)]
    return [(int(own.sum()), int((own & found).sum()), int((own & missed).sum())) for own in each]


class Oracle:
    """Measures AP at IoU 0.5 of detections of which some are corrected."""

    def __init__(self, matches: Matches) -> None:
        self.matches, self.kinds = matches, kinds_of(matches)
        self.counted = ~matches.ignored[0]
        self.right = self.counted & (matches.matched[0] >= 0)
        self.objects = np.bincount(matches.object_category[~matches.crowd], minlength=len(matches.category_ids))
        self.ap = self._ap(self.counted)

    def _ap(
        self,
        kept: np.ndarray,
        right: np.ndarray | None = None,
        category: np.ndarray | None = None,
        objects: np.ndarray | None = None,
    ) -> float:
        """Returns the mean over the classes that have objects; what is given replaces the matches' own."""
        right = self.right if right is None else right
        category = self.matches.category if category is None else category
        objects = self.objects if objects is None else objects
        each = precision_curves(self.matches.score[kept], right[kept], category[kept], objects).mean(axis=1)  # [C]
        wrong = np.bincount(category[kept], minlength=len(objects)) > 0
        return mean_of_known(np.where((self.objects > 0) & (objects == 0), ~wrong, each))

    def without(self, wrong: np.ndarray) -> float:
        """Returns AP without some false positives."""
        return self._ap(self.counted & ~wrong)

    def put_right(self, kind: int) -> float:
        """Returns AP with those of kind class or location as hits of the objects that they lie on."""
        meant = np.where(self.kinds == kind, meant_of(self.matches, self.kinds), NONE)
        claim = np.where(self.right, self.matches.matched[0], meant)  # [D]
        claimants = np.flatnonzero(claim >= 0)
        _, best = np.unique(claim[claimants], return_index=True)  # the first is the best of its image
        right = np.zeros_like(self.right)
        right[claimants[best]] = True
        category = self.matches.category.copy()
        category[right] = self.matches.object_category[claim[right]]
        return self._ap(self.counted & (right | (claim < 0)), right, category)

    def without_objects(self, gone: np.ndarray) -> float:
        """Returns AP where some objects need not be found."""
        lost = np.bincount(self.matches.object_category[gone], minlength=len(self.objects))
        return self._ap(self.counted, objects=self.objects - lost)


def costs(matches: Matches) -> dict[str, tuple[int, float]]:
    """Returns kind -> (how many, what they cost in AP at IoU 0.5); NaN without any object.

    Two more rows, "false positives" and "false negatives", hold the same of all of these.
    """
    oracle = Oracle(matches)
    kinds, missed = oracle.kinds, missed_of(matches, oracle.kinds)
    found = np.zeros(len(matches.crowd), dtype=bool)
    found[matches.matched[0, oracle.right]] = True
    negatives = ~matches.crowd & ~found
    gains = {
        **{KINDS[kind]: (int((kinds == kind).sum()), oracle.put_right(kind)) for kind in (CLASS, LOCATION)},
        **{
            KINDS[kind]: (int((kinds == kind).sum()), oracle.without(kinds == kind))
            for kind in (BOTH, DUPLICATE, GROUND)
        },
        KINDS[MISSED]: (int(missed.sum()), oracle.without_objects(missed)),
        "false positives": (int((kinds != RIGHT).sum()), oracle.without(kinds != RIGHT)),
        "false negatives": (int(negatives.sum()), oracle.without_objects(negatives)),
    }
    return {name: (count, ap - oracle.ap) for name, (count, ap) in gains.items()}
