"""Shows the mask branch's stages: its targets, its probabilities and the pasted masks."""

import torch
from PIL import Image

from network_files.operators.boxes import box_iou, scale_boxes
from network_files.operators.cropped_masks import CroppedMasks
from network_files.operators.instance_masks import mask_targets as targets_of
from network_files.operators.instance_masks import paste_masks
from network_files.recorder import Stage
from tools.stages.canvas import Canvas, heat_image, tiles, window_around
from tools.stages.heads import CLOSE, closely
from tools.stages.stage import Panel, Shown, shape
from tools.stages.view import View
from train_utils.data.images.shown import shown


def mask_targets(view: View) -> Shown:
    """Shows the target of a RoI for each object, from its full-size mask and from its mini mask."""
    record = view.seen[Stage.MASK_TARGETS][0]
    rois, matched, labels = record["rois"][0].float(), record["matched"][0], record["labels"][0]
    facts = [("mask targets of the positive RoIs", shape(record["targets"])), *view.loss_facts("loss_mask")]
    if not len(rois):
        return [], facts
    full = view.target["masks"][view.own(view.target)]
    mini = full.limited(view.mini)
    cells = record["targets"].shape[-1]
    geometry = view.config.geometry
    of_full, of_mini = (targets_of([masks], [rois], [matched], [view.size], cells, geometry) for masks in (full, mini))
    what = f"pixels kept of full-size masks and of mini masks of {view.mini} x {view.mini}"
    facts += [
        (what, f"{len(full.pixels):,} and {len(mini.pixels):,}"),
        ("mean difference between the targets from both", f"{(of_full - of_mini).abs().mean():.4f}"),
    ]
    iou, panels = box_iou(view.objects.float(), rois)[matched, torch.arange(len(rois))], []
    facts.append(closely(len(matched.unique())))
    for i in matched.unique()[:CLOSE].tolist():
        own = (matched == i).nonzero()[:, 0]
        k = int(own[(iou[own] - 0.75).abs().argmin()])  # neither the object's own box nor one that misses half of it
        area = scale_boxes(rois[k : k + 1], view.size, full.size)[0].tolist()
        caption = f"{view.name(labels[k])}: a RoI that overlaps the object by {iou[k]:.2f}"
        parts = [
            ("RoI", Canvas(view.image, area).image),
            ("full-size mask", _mask(full, i, area)),
            (f"its {cells} x {cells} target", heat_image(of_full[k])),
            ("", None),
            (f"mini mask, {view.mini} x {view.mini}", _mask(mini, i, area)),
            (f"its {cells} x {cells} target", heat_image(of_mini[k])),
        ]
        panels.append(Panel(caption, tiles(parts)))
    return panels, facts


def _mask(masks: CroppedMasks, i: int, area: list[float]) -> Image.Image:
    """Returns one mask, white on black, as far as it lies in the area (x1 y1 x2 y2) of the image."""
    return Canvas(255 * masks[[i]].to_masks().expand(3, -1, -1), area).image


def masks(view: View) -> Shown:
    """Shows the mask probabilities of each detection and what they become in the image."""
    probs, size, panels = view.seen[Stage.MASKS][0]["probs"].float(), tuple(view.image.shape[-2:]), []
    boxes = view.detections["boxes"].float()
    for d in range(min(CLOSE, len(probs))):
        x1, y1, x2, y2 = window_around(boxes[d : d + 1], size, margin=0.1)
        pasted = paste_masks(probs[d : d + 1], boxes[d : d + 1], size, view.config.geometry)[0, 0, y1:y2, x1:x2]
        cut = torch.where(pasted > 0.5, shown(view.image)[:, y1:y2, x1:x2], 255)
        parts = [
            (f"{probs.shape[1]} x {probs.shape[2]} probabilities", heat_image(probs[d])),
            ("pasted into the image", heat_image(pasted)),
            ("above 0.5", Canvas(cut.to(torch.uint8)).image),
        ]
        panels.append(Panel(f"{view.title(d)}: {(pasted > 0.5).sum():,} pixels are set", tiles(parts)))
    facts = [("mask probabilities", shape(probs)), closely(len(probs))]
    if len(probs):
        sure = ((probs < 0.1) | (probs > 0.9)).float().mean()
        facts.append(("cells that are sure, below 0.1 or above 0.9", f"{sure:.1%}"))
    return panels, facts
