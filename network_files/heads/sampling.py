"""Proposals -> the RoIs that train: labelled by the objects that they overlap, and drawn in a balanced part.

Shapes: N images, P proposals and G objects of one image, S sampled RoIs over all images.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from network_files import matching
from network_files.config import MaskRCNNConfig
from network_files.operators.padded import Padded
from network_files.recorder import SILENT, Observer, Stage
from network_files.transform import Objects


@dataclass
class Samples:
    """The RoIs that train, S over all images: boxes in the resized image, labels (0 = background), matched int64 [S].

    matched: the object that each RoI stands for; 0 where it is background. chosen: which image each is of, and which
    are positive.
    """

    rois: Tensor
    labels: Tensor
    matched: Tensor
    chosen: matching.Sampled

    def each(self, values: Tensor) -> list[Tensor]:
        """Returns values [S, ...] by image."""
        return list(values.split(self.chosen.sizes()))

    def positives(self, values: Tensor) -> list[Tensor]:
        """Returns those of the RoIs that stand for an object, of values [S, ...], by image."""
        counts, values = [positives for positives, _ in self.chosen.counts], values[self.chosen.positive]
        return [values] if len(counts) == 1 else list(values.split(counts))


@torch.no_grad()
def sample_rois(proposals: Padded, objects: Objects, config: MaskRCNNConfig, recorder: Observer = SILENT) -> Samples:
    """Labels the proposals [N, P, 4] and the objects' own boxes, and draws a balanced part of these."""
    dtype = proposals.values.dtype
    own, crowds = (Padded(p.values.to(dtype), p.counts) for p in (objects.boxes, objects.crowds))
    boxes = torch.cat((proposals.values, own.values), 1)  # [N, P + G, 4]
    thresholds = config.box_fg_iou_thresh, config.box_bg_iou_thresh
    matched = matching.match_boxes(own, crowds, boxes, *thresholds, False, config.crowd_ioa_thresh)  # [N, P + G]
    label, matched_or_first = (matched + 1).clamp(max=0), matched.clamp(min=0)  # BELOW is -1, BETWEEN -2
    if own.values.shape[1]:
        label = torch.where(matched >= 0, objects.labels.values.gather(1, matched_or_first), label)
    if not (proposals.whole and own.whole):
        label = label.masked_fill(~torch.cat((proposals.present(), own.present()), 1), -1)
    generators = [pair[1] for pair in objects.generators]
    count, fraction = config.box_batch_size_per_image, config.box_positive_fraction
    chosen = matching.sample_balanced(label, count, fraction, generators)
    if recorder is not SILENT:
        _record(recorder, proposals, own, (boxes, matched, label), chosen)
    which = chosen.batch_index, chosen.index
    return Samples(boxes[which], label[which], matched_or_first[which], chosen)


def _record(
    recorder: Observer,
    proposals: Padded,
    objects: Padded,
    padded: tuple[Tensor, Tensor, Tensor],
    chosen: matching.Sampled,
) -> None:
    """Reports what was drawn from, without padding."""
    most = proposals.values.shape[1]
    for i, index in enumerate(chosen.index.split(chosen.sizes())):
        count = proposals.counts[i]
        parts = [(t[i, :count], t[i, most : most + objects.counts[i]]) for t in padded]
        boxes, matched, label = map(torch.cat, parts)
        index = torch.where(index < most, index, index - (most - count))
        recorder(Stage.ROI_SAMPLES, boxes=boxes, matched=matched, label=label, chosen=index)
