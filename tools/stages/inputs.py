"""Shows the stages in front of the RPN: the sample, the batch, the feature maps, the anchors."""

import torch
from PIL import Image

from network_files.anchors import cell_anchors
from network_files.operators.boxes import HALF_PIXEL, box_area
from network_files.recorder import Stage
from tools.stages.canvas import LEVEL_COLORS, SIDE, YELLOW, Canvas
from tools.stages.stage import Facts, Panel, Shown, shape, size_of, spread
from tools.stages.view import View, best_overlap
from train_utils.show.colors import instance_color
from train_utils.show.drawing import Style, draw_detections

MAP_SIDE = 340  # pixels of a level's image: five fit side by side
FEW = 40  # objects that a number is written beside


def drawn(view: View, image: torch.Tensor, target: dict | None) -> Image.Image:
    """Returns an image with the boxes, masks and names of its target."""
    if target is None:
        return Canvas(image).image
    crowds = ~view.own(target)
    names = [
        view.name(label) + " (crowd)" * crowd for label, crowd in zip(target["labels"], crowds.tolist(), strict=True)
    ]
    style = Style(magnify=max(1, SIDE // max(image.shape[-2:])))
    panel = draw_detections(image, target["boxes"], range(len(names)), None, target["masks"], names.__getitem__, style)
    panel.thumbnail((2 * SIDE, 2 * SIDE))
    return panel


def sample(view: View) -> Shown:
    """Shows the sample before and after augmentation."""
    image, target = view.before
    panels, facts = [Panel("as loaded", drawn(view, image, target))], [("image as loaded", shape(image))]
    if view.target is not None:
        same = view.image.shape == image.shape and torch.equal(view.image, image)
        change = "augmentation changed nothing" if same else "after augmentation"
        caption = f"what the network gets: {change}"
        panels.append(Panel(caption, drawn(view, view.image, view.target)))
        own = view.own(view.target)
        facts += [
            ("image after augmentation", shape(view.image)),
            ("annotations before and after", f"{len(target['labels'])} and {len(view.target['labels'])}"),
            ("of these crowd regions", str(int((~own).sum()))),
            ("pixels of an object's mask: least / median / largest", spread(view.target["masks"].areas()[own], 0)),
        ]
    return panels, facts


def batch(view: View) -> Shown:
    """Shows the resized, padded batch."""
    record, cfg = view.seen[Stage.BATCH][0], view.config
    images, (h, w), (old_h, old_w) = record["images"], view.size, record["original_sizes"][0]
    canvas = Canvas(view.padded)
    canvas.box((0, 0, w, h), YELLOW)
    own = images[0, :, :h, :w]
    rule = f"shorter side {cfg.min_size[-1]}, longer side at most {cfg.max_size}"
    if cfg.fixed_size:
        rule = f"as large as fits {cfg.fixed_size[0]} x {cfg.fixed_size[1]}"
    facts = [
        ("batch", shape(images)),
        ("original image, height x width", f"{old_h} x {old_w}"),
        (f"resized ({rule})", f"{h} x {w}, scale {h / old_h:.3f}"),
        ("padding, share of the batch", f"{1 - h * w / images[0, 0].numel():.1%}"),
        ("values after normalisation, mean and spread", f"{own.mean():.2f} and {own.std():.2f}"),
    ]
    if len(cfg.min_size) > 1:
        sizes = ", ".join(map(str, cfg.min_size))
        facts.append(("shorter sides that training draws from", f"{sizes}; evaluation, as here, takes the last"))
    padding = "there is no padding" if own.numel() == images.numel() else "outside the yellow frame is padding"
    return [Panel(f"the batch, its normalisation undone; {padding}", canvas.image)], facts


def feature_maps(view: View) -> Shown:
    """Shows the length of each cell's vector, level by level."""
    panels, facts, (ph, pw) = [], [], view.padded.shape[-2:]
    for level, maps in enumerate(view.seen[Stage.RPN][0]["maps"], 2):
        length = maps[0].float().norm(dim=0)  # [H, W]
        low, high = length.min(), length.max()
        heat = (length - low) / (high - low).clamp(min=1e-9)
        corners = view.config.geometry != HALF_PIXEL
        image = Canvas(view.padded, side=MAP_SIDE).heat(heat, pw, ph, opacity=1, corners=corners).image
        panels.append(Panel(f"P{level}: a cell for {ph // maps.shape[2]} x {pw // maps.shape[3]} pixels", image))
        facts.append((f"P{level}", f"{shape(maps)}, vectors of length {low:.1f} to {high:.1f}"))
    return panels, facts


def anchors(view: View) -> Shown:
    """Shows the anchors of one cell of each level, and how well anchors overlap the objects."""
    cfg, record = view.config, view.seen[Stage.RPN][0]
    canvas, per_cell = Canvas(view.resized, faded=True), len(cfg.aspect_ratios)
    facts = [("anchors in all", f"{len(view.anchors):,}")]
    for level, (boxes, maps) in enumerate(zip(record["anchors"], record["maps"], strict=True)):
        rows, columns = maps.shape[-2:]
        cell = rows // 2 * columns + columns // 2
        canvas.boxes(boxes[cell * per_cell : (cell + 1) * per_cell], LEVEL_COLORS[level], 2)
        sizes = ", ".join(map(size_of, cell_anchors(cfg.anchor_sizes[level], cfg.aspect_ratios)))
        facts.append((f"P{level + 2}", f"{len(boxes):,}, of {sizes} pixels (width x height)"))
        canvas.write(f"P{level + 2}: {cfg.anchor_sizes[level]}", *canvas.point(6 + 90 * level, 6), LEVEL_COLORS[level])
    panels = [Panel("the anchors of one cell of each level, near the middle, and their sizes", canvas.image)]
    if len(view.objects):
        panel, more = _overlaps(view)
        panels.append(panel)
        facts += more
    return panels, facts


def _overlaps(view: View) -> tuple[Panel, Facts]:
    """Shows each object with its best anchor, and how well they overlap."""
    iou, index = best_overlap(view.objects, view.anchors)
    canvas, threshold = Canvas(view.resized, faded=True), view.config.rpn_fg_iou_thresh
    for i, (box, best) in enumerate(zip(view.objects, index, strict=True)):
        canvas.box(box.tolist(), instance_color(i), 4)
        canvas.box(view.anchors[best].tolist(), instance_color(i), 1)
        if len(iou) <= FEW:
            canvas.write(f"{iou[i]:.2f}", *box[:2].tolist(), instance_color(i))
    unreached = view.objects[iou < threshold]
    facts = [
        ("best overlap (IoU) of an anchor with each object: least / median / largest", spread(iou)),
        (f"objects that no anchor reaches at {threshold}", f"{len(unreached)} of {len(iou)}"),
    ]
    if len(unreached):
        smallest = unreached[box_area(unreached).argmin()]
        facts.append(("the smallest of them", f"{size_of(smallest)} pixels of the resized image"))
    return Panel("the objects (thick), the best anchor of each (thin), and how well they overlap", canvas.image), facts
