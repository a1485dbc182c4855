"""Region Proposal Network (Faster R-CNN): feature pyramid -> proposals, and its two losses.

Shapes: N images, L levels, A anchors of an image over all levels, R anchors per cell, P proposals.
"""

import functools
import itertools
from typing import NamedTuple

import torch
from torch import Tensor, nn

from backbone.convolution import Conv2d
from network_files import matching
from network_files.anchors import AnchorGrid
from network_files.config import MaskRCNNConfig
from network_files.losses import rpn_losses
from network_files.operators.boxes import BoxCoder, at_least, clip_to_sizes
from network_files.operators.nms import nms_of_rows
from network_files.operators.padded import Padded, cat_parts, from_host
from network_files.operators.roi_align import FeatureTable
from network_files.recorder import SILENT, Observer, Stage
from network_files.sampled_rpn_head import Predictions, predict
from network_files.shared import Part, Shared, number
from network_files.transform import ImageBatch, Objects

MIN_SIDE = 1e-3  # pixels; smaller proposals are dropped (torchvision)


class RPNHead(nn.Module):
    """`depth` 3x3 convolutions, then objectness and box deltas of each anchor, by 1x1 convolutions."""

    def __init__(self, channels: int, anchors_per_cell: int, depth: int) -> None:
        super().__init__()
        self.conv = nn.Sequential(
            *(nn.Sequential(Conv2d(channels, channels, 3, padding=1), nn.ReLU(inplace=True)) for _ in range(depth))
        )
        self.cls_logits = nn.Conv2d(channels, anchors_per_cell, 1)
        self.bbox_pred = nn.Conv2d(channels, anchors_per_cell * 4, 1)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, std=0.01)
                nn.init.zeros_(module.bias)

    def forward(self, maps: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Returns, per level, objectness logits [N, H W R] and deltas [N, H W R, 4], cell by cell along rows."""
        logits, deltas = [], []
        for x in map(self.conv, maps):
            logits.append(self.cls_logits(x).permute(0, 2, 3, 1).flatten(1))
            deltas.append(self.bbox_pred(x).permute(0, 2, 3, 1).reshape(len(x), -1, 4))
        return logits, deltas


class Matches(NamedTuple):
    """Of every anchor the object that it stands for (`matching.match_boxes`), and whether that trains.

    matched [N, A]; label [N, A]: 1 an object, 0 background, -1 ignored; candidates: the first two.
    """

    matched: Tensor
    label: Tensor
    candidates: matching.Candidates


class TopN(dict):
    """Numbers of the config under torchvision's names, "training" and "testing"; which: "pre" or "post"."""

    def __init__(self, shared: Shared, which: str) -> None:
        self._shared, self._fields = shared, {k: f"rpn_{which}_nms_top_n_{k[:-3]}" for k in ("training", "testing")}
        super().__init__({key: getattr(shared.config, field) for key, field in self._fields.items()})

    def __setitem__(self, key: str, value: int) -> None:
        self._shared.set(**{self._fields[key]: value})
        super().__setitem__(key, value)


class RegionProposalNetwork(Part, nn.Module):
    """Proposals per image, and losses where objects are given. All numbers come from the config."""

    anchors: AnchorGrid
    head: nn.Module
    coder: BoxCoder
    nms_thresh, score_thresh = number("rpn_nms_thresh"), number("rpn_score_thresh")

    def __init__(self, config: MaskRCNNConfig | Shared, channels: int, depth: int) -> None:
        super().__init__()
        self.shared = Shared.of(config)
        config = self.config
        self.anchors = AnchorGrid(config.anchor_sizes, config.aspect_ratios)
        self.head = RPNHead(channels, self.anchors.per_cell, depth)
        self.coder = BoxCoder()

    @property
    def _pre_nms_top_n(self) -> TopN:
        """How many anchors of a level are looked at, as torchvision has it: set an item of it, or the whole."""
        return TopN(self.shared, "pre")

    @_pre_nms_top_n.setter
    def _pre_nms_top_n(self, values: dict[str, int]) -> None:
        _set_all(TopN(self.shared, "pre"), values)

    @property
    def _post_nms_top_n(self) -> TopN:
        """How many proposals of an image are kept, as torchvision has it: set an item of it, or the whole."""
        return TopN(self.shared, "post")

    @_post_nms_top_n.setter
    def _post_nms_top_n(self, values: dict[str, int]) -> None:
        _set_all(TopN(self.shared, "post"), values)

    def forward(
        self, batch: ImageBatch, table: FeatureTable, objects: Objects | None = None, recorder: Observer = SILENT
    ) -> tuple[Padded, dict[str, Tensor]]:
        """Returns proposals [N, P, 4], of each image by falling objectness, and losses ({} without objects)."""
        maps = table.maps()
        samples = 0 if objects is None else len(batch.sizes) * self.config.rpn_batch_size_per_image
        predictions = predict(self.head, maps, table, samples)
        logits, deltas, anchors = predictions.logits, predictions.deltas, self.anchors(maps, batch.padded)
        recorder(Stage.RPN, maps=maps, anchors=anchors, logits=logits, deltas=deltas)
        every = self.anchors.joined(anchors)  # [A, 4]
        matches = None if objects is None else self.match(every, objects)
        proposals = self.propose(batch, predictions, every, recorder)  # the host waits for these and the matches
        if objects is None:
            return proposals, {}
        sampled, labels, targets = self.sample(every, objects, matches, recorder)
        logit, delta = predictions.at(sampled.batch_index, sampled.index)  # [S], [S, 4]
        return proposals, rpn_losses(logit, labels, delta[sampled.positive], targets)

    @torch.no_grad()
    def propose(
        self, batch: ImageBatch, predictions: Predictions, anchors: Tensor, recorder: Observer = SILENT
    ) -> Padded:
        """Returns the best anchors of each level, decoded, clipped, cleared of near-duplicates within the level.

        anchors [A, 4], of all levels. Returns boxes [N, P, 4].
        """
        cfg = self.config
        before = cfg.rpn_pre_nms_top_n_train if self.training else cfg.rpn_pre_nms_top_n_test
        after = cfg.rpn_post_nms_top_n_train if self.training else cfg.rpn_post_nms_top_n_test
        best = [logit.topk(min(before, logit.shape[1]), dim=1) for logit in predictions.logits]  # [N, k_l] per level
        for _, top in best:
            recorder(Stage.CANDIDATES, anchor=top)
        counts = tuple(logit.shape[1] for logit in predictions.logits)
        logit, anchor, there = _side_by_side(best, counts)  # [N, L k], [N, L k], [L k]
        scores, image = logit.sigmoid(), torch.arange(len(anchor), device=anchor.device).unsqueeze(1)
        boxes = self.coder.decode(predictions.joined_deltas()[image, anchor], anchors[anchor])
        boxes = clip_to_sizes(boxes, batch.sizes)  # [N, L k, 4]
        good = at_least(boxes, MIN_SIDE) & (scores >= cfg.rpn_score_thresh) & there
        levels = len(best), max(top.shape[1] for _, top in best)  # L, k
        keep, kept = nms_of_rows(boxes.view(-1, levels[1], 4), good.view(-1, levels[1]), cfg.rpn_nms_thresh)
        kept = [min(sum(kept[i : i + levels[0]]), after) for i in range(0, len(kept), levels[0])]  # of each image
        falling = scores.masked_fill(~keep.view_as(scores), -1).sort(dim=1, descending=True, stable=True).indices
        chosen = falling[:, : max(kept)]  # [N, P]
        if recorder is not SILENT:
            by_level = [t.unflatten(1, levels) for t in (boxes, scores, good)]
            self._record_proposals(recorder, by_level, [top.shape[1] for _, top in best], Padded(chosen, kept))
        return Padded(boxes[image, chosen], kept)

    @staticmethod
    def _record_proposals(recorder: Observer, by_level: list[Tensor], sizes: list[int], chosen: Padded) -> None:
        """Reports the candidates without padding; chosen: the padded candidates that are proposals."""
        for boxes, scores, good, kept in zip(*by_level, chosen.each(), strict=True):
            there = torch.arange(good.shape[1], device=good.device) < torch.tensor(sizes, device=good.device)[:, None]
            levels = torch.arange(len(sizes), device=good.device)[:, None].expand_as(good)
            place = good.flatten().cumsum(0) - 1  # among the good
            recorder(
                Stage.PROPOSALS,
                good=good[there],
                boxes=boxes[good],
                scores=scores[good],
                levels=levels[good],
                keep=place[kept],
            )

    @torch.no_grad()
    def match(self, anchors: Tensor, objects: Objects) -> Matches:
        """Says which object each of the anchors [A, 4] stands for."""
        cfg = self.config
        matched = matching.match_boxes(
            objects.boxes,
            objects.crowds,
            anchors[None],
            cfg.rpn_fg_iou_thresh,
            cfg.rpn_bg_iou_thresh,
            True,
            cfg.crowd_ioa_thresh,
        )
        label = (matched + 1).clamp(max=1)  # BELOW is -1, BETWEEN -2
        return Matches(matched, label, matching.Candidates(label))

    @torch.no_grad()
    def sample(
        self, anchors: Tensor, objects: Objects, matches: Matches, recorder: Observer = SILENT
    ) -> tuple[matching.Sampled, Tensor, Tensor]:
        """Draws the anchors that train, of anchors [A, 4].

        Returns them, their labels (1, 0), int64 [S], and the positives' deltas [K, 4].
        """
        cfg, (matched, label, candidates) = self.config, matches
        generators = [pair[0] for pair in objects.generators]
        count, fraction = cfg.rpn_batch_size_per_image, cfg.rpn_positive_fraction
        sampled = matching.sample_balanced(label, count, fraction, generators, candidates)
        image, anchor = sampled.batch_index[sampled.positive], sampled.index[sampled.positive]  # [K]
        targets = self.coder.encode(objects.of(image, matched[image, anchor], anchors.dtype), anchors[anchor])
        if recorder is not SILENT:
            self._record_targets(recorder, objects, matched, label, sampled, targets)
        return sampled, label[sampled.batch_index, sampled.index], targets

    @staticmethod
    def _record_targets(
        recorder: Observer, objects: Objects, matched: Tensor, label: Tensor, sampled: matching.Sampled, targets: Tensor
    ) -> None:
        """Reports the targets of each image."""
        chosen, deltas = sampled.index.split(sampled.sizes()), targets.split([p for p, _ in sampled.counts])
        boxes, crowds = objects.boxes.each(), objects.crowds.each()
        for i, (positives, _) in enumerate(sampled.counts):
            recorder(
                Stage.RPN_TARGETS,
                objects=boxes[i],
                crowds=crowds[i],
                matched=matched[i],
                label=label[i],
                positive=chosen[i][:positives],
                negative=chosen[i][positives:],
                deltas=deltas[i],
            )


def _side_by_side(best: list[tuple[Tensor, Tensor]], counts: tuple[int, ...]) -> tuple[Tensor, Tensor, Tensor]:
    """Lays the best anchors of each level side by side, in rows as long as the longest, k.

    best: of each level, which has so many anchors (`counts`), logits and numbers within it [N, k_l]. Returns logits
    [N, L k], numbers over all levels int64 [N, L k], and which there are, bool [L k]: others repeat the level's first.
    """
    logits, anchors = (cat_parts(parts, 1) for parts in zip(*best, strict=True))  # [N, sum k_l]
    place, first, there = _places(counts, tuple(top.shape[1] for _, top in best), logits.device)
    return logits[:, place], anchors[:, place] + first, there


@functools.lru_cache(maxsize=64)
def _places(counts: tuple[int, ...], sizes: tuple[int, ...], device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Returns what the rows [L k] of `_side_by_side` hold, for levels of so many anchors, of which `sizes` are chosen.

    For each place: which of all chosen ones, level after level; the first anchor of its level; whether it holds any.
    """
    size = torch.tensor(sizes)[:, None]  # [L, 1]
    k = torch.arange(max(sizes))
    there = k < size  # [L, k]
    place = torch.where(there, k, 0) + (size.cumsum(0) - size)
    first = torch.tensor((0, *itertools.accumulate(counts[:-1])))[:, None].expand_as(place)
    with torch.inference_mode(False):  # nobody writes into them
        place, first, there = (from_host(t.flatten().clone(), device) for t in (place, first, there))
    return place, first, there


def _set_all(top_n: TopN, values: dict[str, int]) -> None:
    for key, value in values.items():
        top_n[key] = value
