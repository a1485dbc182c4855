"""What each stage of a forward pass sees, kept for those who want to look: `model(images, recorder=Recorder())`.

    seen = Recorder()
    losses, detections = model(images, targets, recorder=seen)  # in evaluation: every stage from one pass
    seen["proposals"][0]["boxes"]  # of image 0

The network reports values that it has anyway, under the stage's name; without a recorder it reports them to SILENT,
which ignores them. N images, L levels, A anchors, K candidates, P proposals, S sampled, D detections.

    stage         records      values
    batch         one          images [N, 3, ph, pw], sizes (h, w) and original_sizes (H, W) of each
    rpn           one          per level: maps [N, C, H, W], anchors [A_l, 4], logits [N, A_l], deltas [N, A_l, 4]
    candidates    per level    anchor [N, k]: the best anchors' numbers within the level, by falling logit
    proposals     per image    good bool [K]: candidates (level by level) that are large enough; of these: boxes,
                               scores, levels, and keep [P]: which survive NMS, by falling score
    rpn_targets   per image    objects [G, 4], crowds, matched [A] (`matching.match_boxes`), label [A] (1, 0, -1:
                               ignored), sampled positive and negative anchors' numbers, the positives' deltas
    roi_samples   per image    boxes [P + G, 4] (proposals, then objects), matched, label, chosen [S]: the sampled
    box_targets   one          rois and labels of each image, deltas [S, 4] over all images
    mask_targets  one          rois, labels and matched of each image's positives, targets [K, M, M] over all
    rois          per image    rois [P, 4], level [P] (0: P2), pooled [P, C, S, S]
    classes       per image    scores [P, C]; of each (RoI, class) worth a look: roi, good (bool: large enough); of the
                               good: boxes, labels, score, and keep [D]: which survive NMS, by falling score
    masks         per image    probs [D, M, M]

Boxes are x1 y1 x2 y2 in the resized image's pixels.
"""

from typing import Any

from torch import Tensor


class Stage:
    """The names of the stages."""

    BATCH = "batch"
    RPN = "rpn"
    CANDIDATES = "candidates"
    PROPOSALS = "proposals"
    RPN_TARGETS = "rpn_targets"
    ROI_SAMPLES = "roi_samples"
    BOX_TARGETS = "box_targets"
    MASK_TARGETS = "mask_targets"
    ROIS = "rois"
    CLASSES = "classes"
    MASKS = "masks"


class Observer:
    """What a forward pass reports to. This one ignores all; a subclass takes what it wants."""

    def __call__(self, stage: str, **values: Any) -> None:
        """Ignores the values."""


SILENT = Observer()


class Recorder(Observer):
    """Keeps all. stages: {stage: its records, dicts of values, in order of time}. One for each forward pass."""

    def __init__(self) -> None:
        self.stages: dict[str, list[dict]] = {}

    def __call__(self, stage: str, **values: Any) -> None:
        """Keeps copies of the values."""
        self.stages.setdefault(stage, []).append(copied(values))

    def __getitem__(self, stage: str) -> list[dict]:
        """Returns the stage's records; none where the pass did not come to it."""
        return self.stages.get(stage, [])


def copied(value: Any) -> Any:
    """Returns tensors, also in lists, tuples and dicts, as copies on the CPU without gradient: the pass is not kept."""
    if isinstance(value, Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, dict):
        return {key: copied(each) for key, each in value.items()}
    return type(value)(map(copied, value)) if isinstance(value, (list, tuple)) else value
