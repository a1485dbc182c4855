"""Class logits and deltas of proposals -> the boxes that are detections, and which of them need a mask.

Shapes: N images, P proposals and D detections of one image, K proposals over all images, C classes with background,
B candidates: pairs of a proposal and a class with enough score; M = 28 mask cells a side.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from network_files.config import MaskRCNNConfig
from network_files.operators.boxes import BoxCoder, at_least, clip_to_sizes, scale_to_sizes
from network_files.operators.nms import nms_of_rows
from network_files.operators.padded import Padded, cat_parts
from network_files.recorder import SILENT, Observer, Stage
from network_files.transform import ImageBatch

MIN_SIDE = 1e-2  # pixels; smaller detections are dropped (torchvision)

# tells which detections of an image need a mask, bool [D], from boxes in its own pixels, labels and scores
NeedsMask = Callable[[dict[str, Tensor]], Tensor]


class Detections(NamedTuple):
    """What is found in a batch, image after image: counts[i] in image i, each image's by falling score.

    boxes [D, 4], labels int64 [D], scores [D], mask_probs [D, M, M].
    """

    counts: list[int]
    boxes: Tensor
    labels: Tensor
    scores: Tensor
    mask_probs: Tensor

    def each(self) -> list[dict[str, Tensor]]:
        """Returns a dict for each image."""
        if len(self.counts) == 1:
            return [dict(zip(self._fields[1:], self[1:], strict=True))]
        parts = [t.split(self.counts) for t in self[1:]]
        return [dict(zip(self._fields[1:], part, strict=True)) for part in zip(*parts, strict=True)]


class BestBoxes(NamedTuple):
    """The boxes, classes and scores of detections: of image i the first counts[i], by falling score.

    boxes [N, D, 4], labels int64 [N, D], scores [N, D].
    """

    counts: list[int]
    boxes: Tensor
    labels: Tensor
    scores: Tensor


def best_boxes(
    logits: Tensor,
    deltas: Tensor,
    proposals: Padded,
    sizes: list[tuple[int, int]],
    config: MaskRCNNConfig,
    coder: BoxCoder,
    recorder: Observer = SILENT,
) -> BestBoxes:
    """Returns the best boxes of each image after NMS within each class, by falling score.

    logits [K, C], deltas [K, 4 C] of all proposals; sizes: (h, w) of the resized images.
    """
    classes = logits.shape[1]
    scores = logits.softmax(1)
    padded = Padded.from_flat(scores, proposals.counts).values  # [N, P, C]
    pairs = padded[..., 1:].flatten(1)  # [N, P (C - 1)]: every (RoI, class)
    pair, score, there = _best_above(pairs, config.box_score_thresh)  # [N, B]
    roi, label = pair // (classes - 1), pair % (classes - 1) + 1
    deltas = Padded.from_flat(deltas, proposals.counts).values.unflatten(2, (classes, 4))
    image = torch.arange(len(pair), device=pair.device)[:, None]
    own, reference = deltas[image, roi, label], proposals.values[image, roi]
    boxes = clip_to_sizes(coder.decode(own, reference), sizes)  # [N, B, 4]
    good = at_least(boxes, MIN_SIDE) & there
    keep, counts = nms_of_rows(boxes, good, config.box_nms_thresh, label)
    counts = [min(count, config.box_detections_per_img) for count in counts]
    kept = keep.byte().argsort(dim=1, descending=True, stable=True)[:, : max(counts, default=0)]  # by falling score
    if recorder is not SILENT:
        chosen, each = Padded(kept, counts).each(), scores.split(proposals.counts)
        for i, candidates in enumerate(there):
            some = candidates & good[i]
            recorder(
                Stage.CLASSES,
                scores=each[i],
                roi=roi[i][candidates],
                good=good[i][candidates],
                boxes=boxes[i][some],
                labels=label[i][some],
                score=score[i][some],
                keep=(some.cumsum(0) - 1)[chosen[i]],
            )
    return BestBoxes(counts, boxes[image, kept], label.gather(1, kept), score.gather(1, kept))


def _best_above(scores: Tensor, threshold: float) -> tuple[Tensor, Tensor, Tensor]:
    """Returns the scores [N, Q] of each row above a threshold, by falling score: places int64 [N, B], scores [N, B].

    Also returns which are there, bool [N, B]: rows with fewer than B are padded. The host waits once.
    """
    if len(scores) == 1:
        own = scores.flatten()
        place = (own > threshold).nonzero()[:, 0]
        score, order = own[place].sort(descending=True, stable=True)
        score = score[None]
        return place[order][None], score, torch.ones_like(score, dtype=torch.bool)
    above = scores > threshold
    most = int(above.sum(1).max())
    score, place = scores.masked_fill(~above, -1).sort(dim=1, descending=True, stable=True)
    return place[:, :most], score[:, :most], score[:, :most] >= 0


def needed_of(needs: Sequence[NeedsMask], found: BestBoxes, batch: ImageBatch, some: slice) -> Tensor:
    """Returns which detections need a mask, bool [D]; needs, found: of some images of a batch."""
    boxes = scale_to_sizes(found.boxes, batch.sizes[some], batch.original_sizes[some])  # as `MaskRCNN.to_original`
    each = zip(*(Padded(t, found.counts).each() for t in (boxes, found.labels, found.scores)), strict=True)
    names = BestBoxes._fields[1:]
    return cat_parts([need(dict(zip(names, one, strict=True))) for need, one in zip(needs, each, strict=True)])
