"""The stages of the RoI heads: the level of each RoI, box targets, refined boxes, detections."""

import torch

from network_files.boxes import box_iou
from network_files.instance_masks import mask_probs_to_bool
from network_files.roi_heads import STRIDES
from tools.stages.canvas import BLUE, GREEN, LEVEL_COLORS, RED, SIDE, YELLOW, Canvas, window_around
from tools.stages.inputs import drawn
from tools.stages.regions import SHOWN
from tools.stages.stage import Panel, Shown, shape, size_of, spread
from tools.stages.view import View, best_overlap
from train_utils.drawing import draw_detections

CLOSE = 6  # objects or detections looked at closely
CLOSE_SIDE = 340  # pixels of such a picture


def roi_levels(view: View) -> Shown:
    record = view.seen["rois"][0]
    rois, levels = record["rois"].float(), record["level"]
    canvas, sides = Canvas(view.picture, faded=True), (rois[:, 2:] - rois[:, :2]).prod(1).sqrt()
    for roi, level in reversed(list(zip(rois.tolist(), levels.tolist(), strict=True))[:SHOWN]):  # the best on top
        canvas.box(roi, LEVEL_COLORS[level], 2, 0.8)
    facts = [("RoIs", shape(rois)), ("their pooled features", shape(record["pooled"]))]
    for level, stride in enumerate(STRIDES):
        own = sides[levels == level]
        facts.append((f"P{level + 2}, stride {stride}: RoIs; root of the area in pixels, least / median / largest",
                      f"{len(own):,}; {spread(own, 0)}"))
        canvas.write(f"P{level + 2}: {len(own):,}", *canvas.point(6 + 100 * level, 6), LEVEL_COLORS[level])
    return [Panel(f"the best {min(SHOWN, len(rois))} of {len(rois):,} proposals, a colour for each level; the numbers "
                  "count all", canvas.image)], facts


def box_targets(view: View) -> Shown:
    record, samples, cfg = view.seen["box_targets"][0], view.seen["roi_samples"][0], view.config
    rois, labels, matched = record["rois"][0].float(), record["labels"][0], samples["matched"][samples["chosen"]]
    positive, background = (labels > 0).nonzero()[:, 0], rois[labels == 0]
    canvas = Canvas(view.picture, faded=True).boxes(background[:SHOWN], RED, opacity=0.5).boxes(rois[positive], GREEN)
    panels = [Panel("the sampled RoIs: positive (green), background (red)", canvas.image)]
    stood_for = matched[positive].unique().tolist()
    for i in stood_for[:CLOSE]:
        own = positive[matched[positive] == i]
        panels.append(_towards(view, rois[own], view.objects[i].float(), view.name(labels[own[0]])))
    facts = [
        ("candidates: the proposals and the objects' own boxes", f"{len(samples['boxes']):,}"),
        (f"of these positive, from an overlap of {cfg.box_fg_iou_thresh}", f"{(samples['label'] > 0).sum():,}"),
        (f"sampled, of at most {cfg.box_batch_size_per_image}",
         f"{len(positive)} positive, {len(background)} background"),
        ("objects that a sampled RoI stands for", f"{len(stood_for)} of {len(view.objects)}"),
        ("box targets (dx dy dw dh)", shape(record["deltas"]))]
    return panels, facts + view.told("loss_classifier", "loss_box_reg")


def _towards(view: View, rois: torch.Tensor, box: torch.Tensor, name: str) -> Panel:
    """Some RoIs of one object, and arrows to it."""
    iou = box_iou(box[None], rois)[0]
    some = rois[iou.argsort()][:: max(1, len(rois) // 3)][:3]
    canvas = Canvas(view.picture, window_around(torch.cat((some, box[None])), view.size), side=CLOSE_SIDE)
    canvas.box(box.tolist(), BLUE, 3)
    for roi in some.tolist():
        canvas.box(roi, GREEN)
        canvas.move(roi, box.tolist(), GREEN)
    return Panel(f"{name}, {size_of(box)} pixels (blue), and {len(some)} of its {len(rois)} RoIs; they overlap it by "
                 f"{iou.min():.2f} to {iou.max():.2f}", canvas.image)


def refinement(view: View) -> Shown:
    paths = [view.path(d) for d in range(len(view.found))]
    boxes = [torch.stack((view.anchors[anchor], view.proposals[proposal], found))
             for (anchor, proposal), found in zip(paths, view.found, strict=True)]  # [3, 4] each
    overlaps = None
    if boxes and len(view.objects):
        overlaps = torch.stack([_with_object(view.objects.float(), path) for path in boxes])
    panels, record, cfg = [], view.seen["classes"][0], view.config
    for d, ((anchor, proposal), path) in enumerate(list(zip(paths, boxes, strict=True))[:CLOSE]):
        canvas = Canvas(view.picture, window_around(path, view.size), side=CLOSE_SIDE)
        start, middle, end = path.tolist()
        for box, color in ((start, YELLOW), (middle, BLUE), (end, GREEN)):
            canvas.box(box, color)
        canvas.move(start, middle, YELLOW)
        canvas.move(middle, end, BLUE)
        caption = f"{view.title(d)}: anchor {anchor:,} of P{view.level_of(anchor) + 2}, proposal {proposal:,}"
        if overlaps is not None:
            caption += f"; best overlap with an object {_steps(overlaps[d])}"
        panels.append(Panel(caption, canvas.image))
    facts = [
        ("class scores of the RoIs", shape(record["scores"])),
        (f"(RoI, class) pairs with a score above {cfg.box_score_thresh}", f"{len(record['roi']):,}"),
        (f"left by NMS within each class at {cfg.box_nms_thresh}, at most {cfg.box_detections_per_img}",
         str(len(record["keep"])))]
    if overlaps is not None:
        facts.append(("overlap of anchor → proposal → detection with the object that the detection is best on, mean",
                      _steps(overlaps.mean(0))))
    return panels, facts


def _with_object(objects: torch.Tensor, path: torch.Tensor) -> torch.Tensor:
    """Overlaps [3] of a path's boxes [3, 4] with the object that the last of them overlaps most."""
    iou = box_iou(objects, path)  # [G, 3]
    return iou[iou[:, 2].argmax()]


def _steps(overlaps: torch.Tensor) -> str:
    return " → ".join(f"{value:.2f}" for value in overlaps.tolist())


def detections(view: View) -> Shown:
    found, size = view.detections, tuple(view.image.shape[-2:])
    least = 0.5 if (found["scores"] >= 0.5).any() else 0.0
    boxes, labels, scores, probs = (found[key][found["scores"] >= least] for key in (
        "boxes", "labels", "scores", "mask_probs"))
    masks = mask_probs_to_bool(probs.float(), boxes, size)
    picture = draw_detections(view.image, boxes, labels, scores, masks, view.name_of, max(1, SIDE // max(size)))
    picture.thumbnail((2 * SIDE, 2 * SIDE))
    caption = f"the {len(boxes)} of {len(found['scores'])} detections with a score of 0.5 or more" if least else (
        f"all {len(boxes)} detections: none has a score of 0.5")
    panels = [Panel(caption, picture)]
    facts = [("detections", str(len(found["scores"]))), ("scores: least / median / largest", spread(found["scores"]))]
    if view.target is not None:
        panels.append(Panel("ground truth", drawn(view, view.image, view.target)))
        own = view.target["boxes"][view.own(view.target)]
        iou, _ = best_overlap(own, boxes)
        facts.append(("objects that a detection on the picture overlaps by 0.5 or more, of whatever class",
                      f"{int((iou >= 0.5).sum())} of {len(own)}"))
    return panels, facts
