"""Region Proposal Network (Faster R-CNN): feature pyramid -> proposals, and its two losses.

Shapes: N images, L levels, A anchors of an image over all levels, R anchors per cell, P proposals.
"""

import itertools

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from network_files import matching
from network_files.anchors import AnchorGrid
from network_files.config import MaskRCNNConfig
from network_files.losses import rpn_losses
from network_files.operators.boxes import BoxCoder, at_least, clip_boxes
from network_files.operators.nms import batched_nms
from network_files.operators.roi_align import FeatureTable
from network_files.recorder import Recorder
from network_files.transform import ImageBatch, Objects

MIN_SIDE = 1e-3  # pixels; smaller proposals are dropped (torchvision)


class RPNHead(nn.Module):
    """`depth` 3x3 convolutions, then objectness and box deltas of each anchor, by 1x1 convolutions."""

    def __init__(self, channels: int, anchors_per_cell: int, depth: int):
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
        """Per level: objectness logits [N, H W R] and deltas [N, H W R, 4], cell by cell along rows."""
        logits, deltas = [], []
        for x in map(self.conv, maps):
            logits.append(self.cls_logits(x).permute(0, 2, 3, 1).flatten(1))
            deltas.append(self.bbox_pred(x).permute(0, 2, 3, 1).reshape(len(x), -1, 4))
        return logits, deltas

    def at(self, table: FeatureTable, level: Tensor, image: Tensor, cell: Tensor) -> tuple[Tensor, Tensor]:
        """`forward` at some cells (y W + x) only, all int64 [S]: logits [S, R] and deltas [S, R, 4].

        Each cell is computed from the patch of cells that it depends on.
        """
        x, inside = table.patches(level, image, cell, radius=len(self.conv))  # [S, C, 2 depth + 1, 2 depth + 1]
        for conv, relu in self.conv:
            inside = inside[:, 1:-1, 1:-1]
            # a hidden cell outside the map is the padding of the next convolution: zero
            x = relu(F.conv2d(x, conv.weight, conv.bias)) * inside[:, None]
        return self.cls_logits(x).flatten(1), self.bbox_pred(x).flatten(1).unflatten(1, (-1, 4))

    def pays_at(self, samples: int, maps: list[Tensor]) -> bool:
        """Whether a gradient through `at` costs less than one through `forward`, by count of convolved cells."""
        depth = len(self.conv)
        patch = sum((2 * i + 1) ** 2 for i in range(depth))  # cells convolved for each sample
        return 4 * samples * patch <= depth * sum(m[:, 0].numel() for m in maps)


class RegionProposalNetwork(nn.Module):
    """Proposals per image, and losses where objects are given. All numbers come from the config."""

    def __init__(self, config: MaskRCNNConfig, channels: int, depth: int):
        super().__init__()
        self.config = config
        self.anchors = AnchorGrid(config.anchor_sizes, config.aspect_ratios)
        self.head = RPNHead(channels, self.anchors.per_cell, depth)
        self.coder = BoxCoder()

    def forward(
        self,
        batch: ImageBatch,
        table: FeatureTable,
        objects: list[Objects] | None = None,
        recorder: Recorder | None = None,
    ) -> tuple[list[Tensor], dict[str, Tensor]]:
        """Return proposals, one [P, 4] per image by falling objectness, and losses ({} without objects).

        Gradients exist at the sampled anchors only: where these are few, the head runs on whole maps without
        gradient, and again with it on the sampled cells. The result is the same.
        """
        maps = table.maps()
        few = (
            objects is not None
            and torch.is_grad_enabled()
            and (self.head.pays_at(len(objects) * self.config.rpn_batch_size_per_image, maps))
        )
        with torch.set_grad_enabled(torch.is_grad_enabled() and not few):
            logits, deltas = self.head(maps)
        if few:  # older versions of torch would take the weights again that autocast has cast without gradient
            torch.clear_autocast_cache()
        # under autocast the head speaks bf16; boxes and losses want at least float32
        dtype = torch.promote_types(logits[0].dtype, torch.float32)
        logits, deltas = [t.to(dtype) for t in logits], [t.to(dtype) for t in deltas]
        anchors = self.anchors(maps, batch.padded)
        if recorder is not None:
            recorder("rpn", maps=maps, anchors=anchors, logits=logits, deltas=deltas)
        proposals = self._propose(batch, logits, deltas, anchors, recorder)
        if objects is None:
            return proposals, {}
        counts = [len(a) for a in anchors]
        image, anchor, labels, targets = self._sample(torch.cat(anchors), objects, recorder)
        if few:
            logit, delta = self._at(table, image, anchor, counts)
        else:
            logit, delta = torch.cat(logits, 1)[image, anchor], torch.cat(deltas, 1)[image, anchor]
        positive = labels.nonzero()[:, 0]
        return proposals, rpn_losses(logit.to(dtype), labels, delta.to(dtype)[positive], targets)

    def _at(self, table: FeatureTable, image: Tensor, anchor: Tensor, counts: list[int]) -> tuple[Tensor, Tensor]:
        """Logits [S] and deltas [S, 4] of some anchors, numbered over levels of so many (`counts`) each."""
        ends = torch.tensor(list(itertools.accumulate(counts)), device=anchor.device)
        level = torch.bucketize(anchor, ends, right=True)
        anchor = anchor - F.pad(ends, (1, 0))[level]
        own = anchor % self.anchors.per_cell
        logits, deltas = self.head.at(table, level, image, anchor // self.anchors.per_cell)
        row = torch.arange(len(anchor), device=anchor.device)
        return logits[row, own], deltas[row, own]

    @torch.no_grad()
    def _propose(self, batch, logits, deltas, anchors, recorder) -> list[Tensor]:
        """The best anchors of each level, decoded, clipped, cleared of near-duplicates within the level."""
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
            if recorder is not None:
                recorder("candidates", anchor=top)
        decoded = self.coder.decode(torch.cat(best, 1), torch.cat(references, 1))  # [N, K, 4]
        scores, proposals = torch.cat(objectness, 1).sigmoid(), []
        for box, score, level, size in zip(decoded, scores, torch.cat(levels, 1), batch.sizes, strict=True):
            box = clip_boxes(box, size)
            good = at_least(box, MIN_SIDE) & (score >= cfg.rpn_score_thresh)
            box, score, level = box[good], score[good], level[good]
            keep = batched_nms(box, score, level, cfg.rpn_nms_thresh)[:after]
            if recorder is not None:
                recorder("proposals", good=good, boxes=box, scores=score, levels=level, keep=keep)
            proposals.append(box[keep])
        return proposals

    @torch.no_grad()
    def _sample(
        self, anchors: Tensor, objects: list[Objects], recorder: Recorder | None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Draw anchors [A, 4] that train: their image, number and label (1, 0), int64 [S], the positives' deltas."""
        cfg = self.config
        images, samples, labels, targets = [], [], [], []
        for i, obj in enumerate(objects):
            matched = matching.match_boxes(
                obj.boxes, obj.crowds, anchors, cfg.rpn_fg_iou_thresh, cfg.rpn_bg_iou_thresh, True, cfg.crowd_ioa_thresh
            )  # [A]
            label = torch.where(matched >= 0, 1, torch.where(matched == matching.BELOW, 0, -1))
            positive, negative = matching.sample_balanced(
                label, cfg.rpn_batch_size_per_image, cfg.rpn_positive_fraction, obj.generators[0]
            )
            sampled = torch.cat((positive, negative))
            images.append(torch.full_like(sampled, i))
            samples.append(sampled)
            labels.append(label[sampled])
            targets.append(self.coder.encode(obj.boxes.to(anchors.dtype)[matched[positive]], anchors[positive]))
            if recorder is not None:
                recorder(
                    "rpn_targets",
                    objects=obj.boxes,
                    crowds=obj.crowds,
                    matched=matched,
                    label=label,
                    positive=positive,
                    negative=negative,
                    deltas=targets[-1],
                )
        return torch.cat(images), torch.cat(samples), torch.cat(labels), torch.cat(targets)
