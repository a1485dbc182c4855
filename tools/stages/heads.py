"""Shows the stages of the RoI heads: the level of each RoI, box targets, refined boxes, detections."""

import torch

from network_files.operators.boxes import HALF_PIXEL, box_iou
from network_files.operators.instance_masks import mask_probs_to_bool
from network_files.recorder import Stage
from network_files.roi_heads import STRIDES
from tools.stages.canvas import BLUE, GREEN, LEVEL_COLORS, RED, SIDE, YELLOW, Canvas, window_around
from tools.stages.inputs import drawn
from tools.stages.regions import SHOWN
from tools.stages.stage import Panel, Shown, shape, size_of, spread
from tools.stages.trace import roi_align_points
from tools.stages.view import View, best_overlap
from train_utils.io.plain_text import counted
from train_utils.show.drawing import Style, draw_detections

CLOSE = 6  # objects or detections looked at closely
OF_LEVEL = 15  # RoIs drawn of each level
CLOSE_SIDE = 340  # pixels of such an image


def roi_levels(view: View) -> Shown:
    """Shows which level each RoI takes, and the points that RoIAlign reads for one of them."""
    record = view.seen[Stage.ROIS][0]
    rois, levels = record["rois"].float(), record["level"]
    canvas, sides = Canvas(view.resized, faded=True), (rois[:, 2:] - rois[:, :2]).prod(1).sqrt()
    facts = [("RoIs", shape(rois)), ("their pooled features", shape(record["pooled"]))]
    for level, (stride, color) in enumerate(zip(STRIDES, LEVEL_COLORS, strict=False)):
        own = (levels == level).nonzero()[:, 0]
        canvas.boxes(rois[own[:OF_LEVEL]], color)
        canvas.write(f"P{level + 2}: {len(own):,}", *canvas.point(6 + 100 * level, 6), color)
        what = f"P{level + 2}, stride {stride}: RoIs; root of the area in pixels, least / median / largest"
        facts.append((what, f"{len(own):,}; {spread(sides[own], 0)}"))
    panels = [Panel(f"how many RoIs take which level, and the best {OF_LEVEL} of each", canvas.image)]
    if len(rois):
        best = view.path(0)[1] if len(view.found) else 0
        panels.append(_aligned(view, rois[best], int(levels[best])))
    return panels, facts


def _aligned(view: View, roi: torch.Tensor, level: int) -> Panel:
    """Shows the points at which RoIAlign reads a level for one RoI."""
    stride, size, ratio = STRIDES[level], view.config.box_roi_size, view.config.roi_sampling_ratio
    canvas = Canvas(view.resized, window_around(roi[None], view.size), faded=True, side=CLOSE_SIDE + 80)
    geometry = view.config.geometry
    centre = 0.5 if geometry == HALF_PIXEL else 0.0
    cells = [(torch.arange(length // stride + 1) + centre) * stride for length in reversed(view.size)]
    canvas.dots(torch.cartesian_prod(*cells), (230, 230, 230), 2)
    xs, ys = roi_align_points(roi, stride, size, 1, geometry)  # the bins' centres
    w, h = xs[0] - roi[0], ys[0] - roi[1]  # half a bin's sides
    x, y = torch.cartesian_prod(xs, ys).unbind(1)
    canvas.boxes(torch.stack((x - w, y - h, x + w, y + h), 1), LEVEL_COLORS[level], 1)
    canvas.dots(torch.cartesian_prod(*roi_align_points(roi, stride, size, ratio, geometry)), YELLOW, 2)
    return Panel(
        f"RoIAlign of one RoI on P{level + 2}: {size} x {size} bins, each the mean of {ratio} x {ratio} "
        "points (yellow) between the level's cells (white)",
        canvas.image,
    )


def box_targets(view: View) -> Shown:
    """Shows the sampled RoIs and the moves to their objects."""
    record, samples, cfg = view.seen[Stage.BOX_TARGETS][0], view.seen[Stage.ROI_SAMPLES][0], view.config
    rois, labels, matched = record["rois"][0].float(), record["labels"][0], samples["matched"][samples["chosen"]]
    positive, background = (labels > 0).nonzero()[:, 0], rois[labels == 0]
    canvas = Canvas(view.resized, faded=True).boxes(background[:SHOWN], RED, opacity=0.5).boxes(rois[positive], GREEN)
    some = f", {SHOWN} of {len(background)}" if len(background) > SHOWN else ""
    panels = [Panel(f"the sampled RoIs: positive (green), background (red{some})", canvas.image)]
    matched_objects = matched[positive].unique().tolist()
    for i in matched_objects[:CLOSE]:
        own = positive[matched[positive] == i]
        panels.append(_towards(view, rois[own], view.objects[i].float(), view.name(labels[own[0]])))
    facts = [
        ("candidates: the proposals and the objects' own boxes", f"{len(samples['boxes']):,}"),
        (f"of these positive, from an overlap of {cfg.box_fg_iou_thresh}", f"{(samples['label'] > 0).sum():,}"),
        (
            f"sampled, of at most {cfg.box_batch_size_per_image}",
            f"{len(positive)} positive, {len(background)} background",
        ),
        ("objects matched with a sampled RoI", f"{len(matched_objects)} of {len(view.objects)}"),
        closely(len(matched_objects)),
        ("box targets (dx dy dw dh)", shape(record["deltas"])),
    ]
    return panels, facts + view.loss_facts("loss_classifier", "loss_box_reg")


def closely(count: int) -> tuple[str, str]:
    """Returns the fact of how many of `count` things have an image of their own."""
    return "looked at closely", f"{min(CLOSE, count)} of {count}"


def _towards(view: View, rois: torch.Tensor, box: torch.Tensor, name: str) -> Panel:
    """Shows some RoIs of one object, and arrows to it."""
    iou = box_iou(box[None], rois)[0]
    some = rois[iou.argsort()][:: max(1, len(rois) // 3)][:3]
    canvas = Canvas(view.resized, window_around(torch.cat((some, box[None])), view.size), side=CLOSE_SIDE)
    canvas.box(box.tolist(), BLUE, 3)
    for roi in some.tolist():
        canvas.box(roi, GREEN)
        canvas.move(roi, box.tolist(), GREEN)
    which = f"{len(some)} of its {len(rois)} RoIs" if len(rois) > 1 else "its only RoI"
    overlap = f"{iou.min():.2f} to {iou.max():.2f}" if len(rois) > 1 else f"{iou[0]:.2f}"
    return Panel(f"{name}, {size_of(box)} pixels (blue), and {which}; overlap {overlap}", canvas.image)


def refinement(view: View) -> Shown:
    """Shows the way of the best detections: anchor, proposal, detection."""
    paths = [view.path(d) for d in range(len(view.found))]
    boxes = [
        torch.stack((view.anchors[anchor], view.proposals[proposal], found))
        for (anchor, proposal), found in zip(paths, view.found, strict=True)
    ]  # [3, 4] each
    overlaps = None
    if boxes and len(view.objects):
        overlaps = torch.stack([_with_object(view.objects.float(), path) for path in boxes])
    panels, record, cfg = [], view.seen[Stage.CLASSES][0], view.config
    for d, ((anchor, proposal), path) in enumerate(list(zip(paths, boxes, strict=True))[:CLOSE]):
        canvas = Canvas(view.resized, window_around(path, view.size), side=CLOSE_SIDE)
        start, middle, end = path.tolist()
        for box, color in ((start, YELLOW), (middle, BLUE), (end, GREEN)):
            canvas.box(box, color)
        canvas.move(start, middle, YELLOW)
        canvas.move(middle, end, BLUE)
        level, number = view.place_of(anchor)
        caption = f"{view.title(d)}: anchor {number:,} of P{level + 2}, proposal {proposal:,}"
        if overlaps is not None:
            caption += f"; best overlap with an object {_steps(overlaps[d])}"
        panels.append(Panel(caption, canvas.image))
    facts = [
        closely(len(boxes)),
        ("class scores of the RoIs", shape(record["scores"])),
        (f"(RoI, class) pairs with a score above {cfg.box_score_thresh}", f"{len(record['roi']):,}"),
    ]
    what = f"left by NMS within each class at {cfg.box_nms_thresh}, at most {cfg.box_detections_per_img}"
    facts.append((what, str(len(record["keep"]))))
    if overlaps is not None:
        what = "overlap of anchor → proposal → detection with the object that the detection is best on, mean"
        facts.append((what, _steps(overlaps.mean(0))))
    return panels, facts


def _with_object(objects: torch.Tensor, path: torch.Tensor) -> torch.Tensor:
    """Returns overlaps [3] of a path's boxes [3, 4] with the object that the last of them overlaps most."""
    iou = box_iou(objects, path)  # [G, 3]
    return iou[iou[:, 2].argmax()]


def _steps(overlaps: torch.Tensor) -> str:
    return " → ".join(f"{value:.2f}" for value in overlaps.tolist())


def detections(view: View) -> Shown:
    """Shows the detections beside the ground truth."""
    found, size = view.detections, tuple(view.image.shape[-2:])
    least = 0.5 if (found["scores"] >= 0.5).any() else 0.0
    boxes, labels, scores, probs = (
        found[key][found["scores"] >= least] for key in ("boxes", "labels", "scores", "mask_probs")
    )
    masks = mask_probs_to_bool(probs.float(), boxes, size, view.config.geometry)
    style = Style(magnify=max(1, SIDE // max(size)))
    image = draw_detections(view.image, boxes, labels, scores, masks, view.name_of, style)
    image.thumbnail((2 * SIDE, 2 * SIDE))
    caption = f"{counted(len(boxes), 'detection')} in all: none has a score of 0.5"
    if least:
        caption = f"the {len(boxes)} of {len(found['scores'])} detections with a score of 0.5 or more"
    panels = [Panel(caption, image)]
    facts = [("detections", str(len(found["scores"]))), ("scores: least / median / largest", spread(found["scores"]))]
    if view.target is not None:
        panels.append(Panel("ground truth", drawn(view, view.image, view.target)))
        own = view.target["boxes"][view.own(view.target)]
        iou, _ = best_overlap(own, boxes)
        which = "the one detection" if len(boxes) == 1 else f"one of the {len(boxes)} detections"
        what = f"objects that {which} shown overlaps by 0.5 or more, of whatever class"
        facts.append((what, f"{int((iou >= 0.5).sum())} of {len(own)}"))
    return panels, facts
