"""Region Proposal Network (Faster R-CNN): feature pyramid -> proposals, and its two losses.

Shapes: N images, L levels, A anchors of an image over all levels, R anchors per cell, P proposals.
"""

import torch
from torch import Tensor, nn

from network_files import matching
from network_files.anchors import AnchorGrid
from network_files.config import MaskRCNNConfig
from network_files.losses import rpn_losses
from network_files.operators.boxes import BoxCoder, at_least, clip_boxes
from network_files.operators.nms import batched_nms
from network_files.operators.roi_align import FeatureTable
from network_files.recorder import SILENT, Observer, Stage
from network_files.sampled_rpn_head import predict
from network_files.shared import Part, Shared, number
from network_files.transform import ImageBatch, Objects

MIN_SIDE = 1e-3  # pixels; smaller proposals are dropped (torchvision)


class RPNHead(nn.Module):
    """`depth` 3x3 convolutions, then objectness and box deltas of each anchor, by 1x1 convolutions."""

    def __init__(self, channels: int, anchors_per_cell: int, depth: int) -> None:
        super().__init__()
        self.conv = nn.Sequential(
            *(nn.Sequential(nn.Conv2d(channels, channels, 3, padding=1), nn.ReLU(inplace=True)) for _ in range(depth))
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
        self, batch: ImageBatch, table: FeatureTable, objects: list[Objects] | None = None, recorder: Observer = SILENT
    ) -> tuple[list[Tensor], dict[str, Tensor]]:
        """Returns proposals, one [P, 4] per image by falling objectness, and losses ({} without objects)."""
        maps = table.maps()
        samples = len(objects or ()) * self.config.rpn_batch_size_per_image
        predictions = predict(self.head, maps, table, samples)
        logits, deltas, anchors = predictions.logits, predictions.deltas, self.anchors(maps, batch.padded)
        recorder(Stage.RPN, maps=maps, anchors=anchors, logits=logits, deltas=deltas)
        proposals = self.propose(batch, logits, deltas, anchors, recorder)
        if objects is None:
            return proposals, {}
        batch_index, anchor, labels, targets = self.sample(torch.cat(anchors), objects, recorder)
        logit, delta = predictions.at(batch_index, anchor)  # [S], [S, 4]
        positive = labels.nonzero()[:, 0]
        return proposals, rpn_losses(logit, labels, delta[positive], targets)

    @torch.no_grad()
    def propose(
        self,
        batch: ImageBatch,
        logits: list[Tensor],
        deltas: list[Tensor],
        anchors: list[Tensor],
        recorder: Observer = SILENT,
    ) -> list[Tensor]:
        """Returns the best anchors of each level, decoded, clipped, cleared of near-duplicates within the level.

        Per level: logits [N, A_l], deltas [N, A_l, 4], anchors [A_l, 4]. Returns boxes [P, 4] per image.
        """
        cfg = self.config
        before = cfg.rpn_pre_nms_top_n_train if self.training else cfg.rpn_pre_nms_top_n_test
        after = cfg.rpn_post_nms_top_n_train if self.training else cfg.rpn_post_nms_top_n_test
        best, references, objectness, levels = [], [], [], []
        for level, (logit, delta, anchor) in enumerate(zip(logits, deltas, anchors, strict=True)):
            score, top = logit.topk(min(before, logit.shape[1]), dim=1)  # [N, k]
            best.append(delta.gather(1, top[..., None].expand(-1, -1, 4)))
            references.append(anchor[top])
            objectness.append(score)
            levels.append(torch.full_like(top, level))
            recorder(Stage.CANDIDATES, anchor=top)
        decoded = self.coder.decode(torch.cat(best, 1), torch.cat(references, 1))  # [N, K, 4]
        scores, proposals = torch.cat(objectness, 1).sigmoid(), []
        for box, score, level, size in zip(decoded, scores, torch.cat(levels, 1), batch.sizes, strict=True):
            box = clip_boxes(box, size)
            good = at_least(box, MIN_SIDE) & (score >= cfg.rpn_score_thresh)
            box, score, level = box[good], score[good], level[good]
            keep = batched_nms(box, score, level, cfg.rpn_nms_thresh)[:after]
            recorder(Stage.PROPOSALS, good=good, boxes=box, scores=score, levels=level, keep=keep)
            proposals.append(box[keep])
        return proposals

    @torch.no_grad()
    def sample(
        self, anchors: Tensor, objects: list[Objects], recorder: Observer = SILENT
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Draws the anchors that train, of anchors [A, 4].

        Returns their batch index, number and label (1, 0), int64 [S] each, and the positives' deltas [K, 4].
        """
        cfg = self.config
        batch_index, samples, labels, targets = [], [], [], []
        for i, obj in enumerate(objects):
            matched = matching.match_boxes(
                obj.boxes, obj.crowds, anchors, cfg.rpn_fg_iou_thresh, cfg.rpn_bg_iou_thresh, True, cfg.crowd_ioa_thresh
            )  # [A]
            label = torch.where(matched >= 0, 1, torch.where(matched == matching.BELOW, 0, -1))
            positive, negative = matching.sample_balanced(
                label, cfg.rpn_batch_size_per_image, cfg.rpn_positive_fraction, obj.generators[0]
            )
            sampled = torch.cat((positive, negative))
            batch_index.append(torch.full_like(sampled, i))
            samples.append(sampled)
            labels.append(label[sampled])
            targets.append(self.coder.encode(obj.boxes.to(anchors.dtype)[matched[positive]], anchors[positive]))
            recorder(
                Stage.RPN_TARGETS,
                objects=obj.boxes,
                crowds=obj.crowds,
                matched=matched,
                label=label,
                positive=positive,
                negative=negative,
                deltas=targets[-1],
            )
        return torch.cat(batch_index), torch.cat(samples), torch.cat(labels), torch.cat(targets)


def _set_all(top_n: TopN, values: dict[str, int]) -> None:
    for key, value in values.items():
        top_n[key] = value
