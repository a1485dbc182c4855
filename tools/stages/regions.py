"""Shows the RPN's stages: its targets, its objectness, its proposals."""

import torch

from network_files.matching import BELOW
from network_files.operators.nms import batched_nms
from network_files.recorder import Stage
from tools.stages.canvas import BLUE, GREEN, RED, YELLOW, Canvas, centres
from tools.stages.inputs import MAP_SIDE
from tools.stages.stage import Panel, Shown, shape, spread
from tools.stages.view import View, best_overlap

SHOWN = 50  # boxes drawn at most: more would hide the image


def rpn_targets(view: View) -> Shown:
    """Shows the positive, ignored and negative anchors, and those that are sampled."""
    record, cfg = view.seen[Stage.RPN_TARGETS][0], view.config
    label, positive, negative = record["label"], record["positive"], record["negative"]
    positives = (label == 1).nonzero()[:, 0]
    labels = Canvas(view.resized, faded=True)
    labels.dots(centres(view.anchors[label < 0]), YELLOW, 2)
    every = len(positives) // SHOWN + 1
    labels.boxes(view.anchors[positives[::every]], GREEN)
    some = f", one in {every}" if every > 1 else ""
    sampled = Canvas(view.resized, faded=True).boxes(view.objects, BLUE, 3).boxes(view.anchors[positive], GREEN)
    sampled.dots(centres(view.anchors[negative]), RED)
    panels = [
        Panel(
            f"all anchors: positive (green{some}), ignored (yellow, their centres); all others are negative",
            labels.image,
        ),
        Panel("the sampled ones: positive (green), negative (red, their centres); objects are blue", sampled.image),
    ]
    counts = (len(positives), int((label < 0).sum()), int((label == 0).sum()))
    matched_objects = record["matched"][positive]
    facts = [
        ("positive, ignored, negative", ", ".join(f"{count:,}" for count in counts)),
        ("positive by the low-quality rule alone", f"{_by_low_quality(view, positives):,}"),
        (f"sampled, of at most {cfg.rpn_batch_size_per_image}", f"{len(positive)} positive, {len(negative)} negative"),
        (
            "objects matched with a sampled anchor",
            f"{len(matched_objects[matched_objects > BELOW].unique())} of {len(view.objects)}",
        ),
        (
            "length of a positive's target (dx dy dw dh): least / median / largest",
            spread(record["deltas"].float().norm(dim=1)),
        ),
    ]
    return panels, facts + view.loss_facts("loss_objectness", "loss_rpn_box_reg")


def _by_low_quality(view: View, positives: torch.Tensor) -> int:
    """Counts the positive anchors that overlap no object by the threshold."""
    iou, _ = best_overlap(view.anchors[positives], view.objects)
    return int((iou < view.config.rpn_fg_iou_thresh).sum())


def objectness(view: View) -> Shown:
    """Shows the objectness of each cell, level by level."""
    panels, facts, record = [], [], view.seen[Stage.RPN][0]
    (ph, pw), per_cell = view.padded.shape[-2:], len(view.config.aspect_ratios)
    for level, (logits, maps) in enumerate(zip(record["logits"], record["maps"], strict=True), 2):
        scores = logits[0].float().sigmoid()
        best = scores.view(*maps.shape[-2:], per_cell).amax(2)  # [H, W], of a cell's anchors
        canvas = Canvas(view.padded, side=MAP_SIDE).heat(best, pw, ph, opacity=0.8)
        panels.append(Panel(f"P{level}: up to {best.max():.2f}", canvas.image))
        facts.append((f"P{level}: logits; objectness, least / median / largest", f"{shape(logits)}; {spread(scores)}"))
    return panels, facts


def proposals(view: View) -> Shown:
    """Shows the candidates before and the proposals after NMS."""
    record, cfg = view.seen[Stage.PROPOSALS][0], view.config
    levels, kept, scores = record["levels"], record["levels"][record["keep"]], record["scores"]
    best = record["boxes"][scores.argsort(descending=True, stable=True)[:SHOWN]]
    before = Canvas(view.resized, faded=True).boxes(best, YELLOW, opacity=0.7)
    after = Canvas(view.resized, faded=True).boxes(view.proposals[:SHOWN], GREEN, opacity=0.7)
    panels = [
        Panel(f"before NMS: the best {len(best)} of {len(levels):,} candidates", before.image),
        Panel(f"after NMS and the limit: the best {min(SHOWN, len(kept))} of {len(kept):,} proposals", after.image),
    ]
    left = len(batched_nms(record["boxes"], scores, levels, cfg.rpn_nms_thresh))
    facts = [
        (f"P{level + 2}: candidates, proposals", f"{(levels == level).sum():,}, {(kept == level).sum():,}")
        for level in range(len(cfg.anchor_sizes))
    ]
    facts += [
        ("objectness of the proposals: least / median / largest", spread(scores[record["keep"]])),
        (
            "most candidates of a level, here as in evaluation (in training)",
            f"{cfg.rpn_pre_nms_top_n_test:,} ({cfg.rpn_pre_nms_top_n_train:,})",
        ),
        ("left by NMS, before the limit on proposals", f"{left:,}"),
        (
            "that limit: most proposals in all, here as in evaluation (in training)",
            f"{cfg.rpn_post_nms_top_n_test:,} ({cfg.rpn_post_nms_top_n_train:,})",
        ),
    ]
    if len(view.objects):
        iou, _ = best_overlap(view.objects, view.proposals)
        facts.append(("best overlap of a proposal with each object: least / median / largest", spread(iou)))
        facts += [
            (f"objects that a proposal overlaps by {least} or more", f"{int((iou >= least).sum())} of {len(iou)}")
            for least in (cfg.box_fg_iou_thresh, 0.75)
        ]
    return panels, facts
