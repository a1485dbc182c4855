"""Turns the numbers into advice on what to change first: one line for each kind of mistake that costs much."""

import numpy as np

from train_utils.evaluation.mistakes.confusion import most_confused
from train_utils.evaluation.mistakes.errors import KINDS, kinds_of, missed_of
from train_utils.evaluation.mistakes.matching import NONE, Matches
from train_utils.io.plain_text import counted

WORTH = 0.03  # of AP at IoU 0.5: what a kind must cost to be mentioned
SURE = 0.5  # score from which a false positive is sure of itself
PAYS = 0.1  # of the last detections of full images, the share of right ones from which more of them are worth it
SMALL = 32**2  # pixels, COCO's
MORE = 0.1  # by which a share of the missed must be above that of all objects to say something
FALLING, LEAST_STEPS = 0.05, 10  # of the loss, from one stretch of steps to the next; steps in each


def advise(
    matches: Matches,
    costs: dict,
    matrix: np.ndarray,
    least_score: float,
    names: list[str],
    areas: np.ndarray,
    per_image: int | None = None,
) -> list[str]:
    """Returns at most four lines, the costliest kind first.

    costs: of all detections; matrix: of those of at least `least_score`; areas: of the objects in pixels, float [G];
    per_image: detections that the model may find in an image.
    """
    kinds = kinds_of(matches)
    lines = {
        "class": lambda: _confused(matrix, least_score, names),
        "location": lambda: (
            "objects are found in part, or with too much around them. Train longer (--epochs), give "
            "the network larger images (--min-size, --max-size), and check that the annotations' "
            "outlines are all drawn in the same way."
        ),
        "both": lambda: "detections lie beside objects of other classes: train longer (--epochs), or with more images.",
        "duplicate": lambda: (
            "one object is detected several times: lower --box-nms-thresh, which validation.py and predict.py take too."
        ),
        "background": lambda: _background(matches, kinds),
        "missed": lambda: _missed(matches, missed_of(matches, kinds), areas, per_image),
    }
    costly = sorted((kind for kind in KINDS if costs[kind][1] >= WORTH), key=lambda kind: -costs[kind][1])
    return [f"{kind} ({costs[kind][0]:,}, {costs[kind][1]:.3f} AP): {lines[kind]()}" for kind in costly[:4]]


def raise_limit(matches: Matches, max_dets: int) -> list[str]:
    """Returns a line where only detections beyond max_dets of a class in an image lie on objects, else none."""
    cut = int(matches.cut.sum())
    if not cut:
        return []
    return [
        f"limit ({cut:,} of {int((~matches.crowd).sum()):,} objects): they were found, but by detections beyond the "
        f"{max_dets} best of a class in an image, which do not count; --max-dets N counts N. These objects are not "
        "among the missed."
    ]


def train_on(progress: dict) -> list[str]:
    """Returns a line where the loss was still falling when a checkpoint was written, else none.

    It was falling where the mean of the last epoch's steps (of one epoch: of its second half) is clearly below the mean
    of as many steps before. progress: the checkpoint's; {}: not known, so no line.
    """
    losses = np.asarray(progress.get("curve", ()), dtype=np.float64).reshape(-1, 2)[:, 0]
    losses, stride = losses[np.isfinite(losses)], progress.get("curve_stride", 1)  # a point stands for stride steps
    steps = min(max(progress.get("steps_per_epoch", 0) // stride, LEAST_STEPS), len(losses) // 2)
    if steps < LEAST_STEPS:
        return []
    before, last = (float(part.mean()) for part in np.split(losses[-2 * steps :], 2))
    if not last < (1 - FALLING) * before:
        return []
    of, steps = len(losses) * stride, steps * stride
    return [
        f"train on (loss {last:.3f} in the last {steps:,} of {of:,} steps, {before:.3f} in the {steps:,} "
        "before): it was still falling when these weights were written. Train longer first: --resume auto continues a "
        "run that was stopped; a finished one needs more --epochs."
    ]


def _confused(matrix: np.ndarray, least_score: float, names: list[str]) -> str:
    pairs = [f"{names[i]} taken for {names[j]} ({times}x)" for i, j, times in most_confused(matrix, 3)]
    which = f" Of detections with a score of {least_score:.3f} or more: {', '.join(pairs)}." if pairs else ""
    return (
        f"objects are found, but as another class.{which} Look at their annotations, which may contradict one "
        "another; give these classes more images, or make one class of them."
    )


def _background(matches: Matches, kinds: np.ndarray) -> str:
    scores = matches.score[kinds == KINDS.index("background")]
    sure = float((scores >= SURE).mean())
    if sure >= 0.1:
        return (
            f"detections lie where nothing is annotated, {sure:.0%} of them with a score of {SURE} or more. Check "
            "whether they are objects that nobody annotated; if not, add images that show such things and no objects."
        )
    return (
        f"detections lie where nothing is annotated, nearly all with scores below {SURE}: a higher --score of "
        "predict.py leaves them out; longer training lowers their scores."
    )


def _missed(matches: Matches, missed: np.ndarray, areas: np.ndarray, per_image: int | None) -> str:
    if not len(matches.score):
        return (
            "there is no detection at all. Train longer (--epochs), and see whether a lower --box-score-thresh "
            "finds anything."
        )
    full = np.bincount(matches.image, minlength=len(matches.image_ids)) >= (per_image or np.inf)  # [I]
    in_full = float(full[matches.object_image[missed]].mean())
    more = ""
    if in_full >= 0.5:
        right = right_at_the_end(matches, full)
        where = (
            f"{in_full:.0%} of the objects that are missed lie in images with {counted(per_image, 'detection')}, all "
            f"that the model may find in one, and of the quarter with the lowest scores {right:.0%} are right"
        )
        if right >= PAYS:
            return f"{where}. Give a higher --box-detections-per-img, which needs no training."
        more = f" A higher --box-detections-per-img would find little: {where}."
    small, of_all = (float((areas[some] < SMALL).mean()) for some in (missed, ~matches.crowd))
    if small >= 0.5 and small >= of_all + MORE:
        return (
            f"{small:.0%} of the objects that are missed are smaller than 32 x 32 pixels, of all objects "
            f"{of_all:.0%}. Give the network larger images (--min-size, --max-size) or smaller anchors "
            f"(--anchor-sizes).{more}"
        )
    return (
        "objects are not found at all, not even with low scores. Train longer (--epochs), and compare the objects' "
        f"sizes and shapes with the anchors (--anchor-sizes).{more}"
    )


def right_at_the_end(matches: Matches, images: np.ndarray) -> float:
    """Returns the share of right ones in the quarter of detections with the lowest scores: what more would be like.

    images: that are looked at, bool [I].
    """
    counts = np.bincount(matches.image, minlength=len(images))  # [I]
    from_end = np.cumsum(counts)[matches.image] - np.arange(len(matches.image))  # [D]: 1 of an image's last
    last = images[matches.image] & (from_end <= np.maximum(counts // 4, 1)[matches.image]) & ~matches.ignored[0]
    return float((matches.matched[0, last] != NONE).mean()) if last.any() else 0.0
