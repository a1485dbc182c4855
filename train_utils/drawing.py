"""Pictures for people: instances drawn on an image, and the curves of a training run.

D detections, H x W the image. Boxes are x1 y1 x2 y2 in the image's pixels. Lines and letters grow with the
image, so that names can be read on a thumbnail and on a 50-megapixel photo.
"""

import colorsys
import math
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from network_files.instance_masks import CroppedMasks

GOLDEN_RATIO = (math.sqrt(5) - 1) / 2  # hues this share of the circle apart never come close
MASK_OPACITY = 0.45
MIN_FONT_SIZE = 10  # below this the default font's letters run together


def instance_color(index: int) -> tuple[int, int, int]:
    """RGB (0..255) of the index-th instance: neighbours far apart in hue, three brightnesses."""
    hue = (0.02 + index * GOLDEN_RATIO) % 1.0
    saturation, value = ((0.85, 1.0), (0.65, 0.95), (0.95, 0.8))[index % 3]
    return tuple(round(255 * channel) for channel in colorsys.hsv_to_rgb(hue, saturation, value))


def draw_detections(
    image: torch.Tensor,
    boxes: torch.Tensor,
    labels: torch.Tensor,
    scores: torch.Tensor | None,
    masks: CroppedMasks | None,
    name_of: Callable[[int], str] = str,
    magnify: int = 1,
) -> Image.Image:
    """The image with each instance's mask, box, name and score in a colour of its own.

    image uint8 [3, H, W]; boxes [D, 4]; labels int [D]; scores [D], or None for ground truth; masks D of
    H x W, or None; name_of turns a label into its name (`label_map.name`); magnify enlarges a small image
    before drawing. Returns an RGB picture of (W * magnify, H * magnify). D may be 0; the image is not changed.
    """
    canvas = image.cpu().permute(1, 2, 0).numpy()  # [H, W, 3]
    if magnify > 1:
        canvas = canvas.repeat(magnify, axis=0).repeat(magnify, axis=1)
        masks = masks.resize(canvas.shape[:2]) if masks is not None else None
    else:
        canvas = canvas.copy()
    height, width = canvas.shape[:2]
    unit = math.sqrt(height * width)  # sizes follow the image's area: a panorama's text is not its width's
    line = max(1, round(unit / 350))
    corners = (boxes.detach().cpu().double() * magnify).tolist()
    # Large instances first, so that a small one in front of a large one stays visible.
    order = sorted(range(len(corners)), key=lambda i: -_box_area(corners[i]))
    if masks is not None:
        crops, places = masks.to("cpu").crops(), masks.boxes.tolist()
        for i in order:
            _blend_mask(canvas, crops[i].numpy().astype(bool), places[i], instance_color(i), line)
    picture = Image.fromarray(canvas)
    draw = ImageDraw.Draw(picture)
    for i in order:
        x1, y1, x2, y2 = corners[i]
        draw.rectangle((x1, y1, max(x1, x2 - 1), max(y1, y2 - 1)), outline=instance_color(i), width=line)
    captions = [name_of(int(label)) for label in labels]
    if scores is not None:
        captions = [f"{name} {score:.2f}" for name, score in zip(captions, scores.tolist(), strict=True)]
    _write_captions(draw, captions, corners, (width, height), unit)
    return picture


def _box_area(box: Sequence[float]) -> float:
    return (box[2] - box[0]) * (box[3] - box[1])


def _blend_mask(canvas: np.ndarray, mask: np.ndarray, place: Sequence[int], color: tuple, line: int) -> None:
    """Tints the pixels of mask [h, w] at `place` x1 y1 x2 y2 of canvas [H, W, 3], and fills its outline."""
    x1, y1, x2, y2 = place
    window = canvas[y1:y2, x1:x2]  # a view
    tint = np.asarray(color, dtype=np.float32) * MASK_OPACITY
    window[mask] = (window[mask] * (1 - MASK_OPACITY) + tint).astype(np.uint8)
    window[mask & ~_erode(mask, line)] = color


def _erode(mask: np.ndarray, steps: int) -> np.ndarray:
    """The mask without the pixels that lie within `steps` 4-connected steps of its outside."""
    for _ in range(steps):
        padded = np.pad(mask, 1)
        mask = mask & padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    return mask


def _write_captions(draw: ImageDraw.ImageDraw, captions: list, corners: list, size: tuple, unit: float):
    """Writes each caption at its box on a plate of the instance's colour, beside earlier ones where it can."""
    width, height = size
    font = ImageFont.load_default(max(MIN_FONT_SIZE, min(round(unit / 40), height // 4)))
    pad = max(1, round(font.size / 6))
    ascent, descent = font.getmetrics()
    plate_height = ascent + descent + pad
    taken = np.zeros((0, 4))
    for i, (caption, box) in enumerate(zip(captions, corners, strict=True)):
        plate_width = math.ceil(font.getlength(caption)) + 2 * pad
        plate = _free_place(box, plate_width, plate_height, width, height, taken)
        taken = np.vstack([taken, plate])
        color = instance_color(i)
        draw.rectangle((plate[0], plate[1], plate[2] - 1, plate[3] - 1), fill=color)
        draw.text((plate[0] + pad, plate[1] + pad // 2), caption, fill=_ink(color), font=font)


def _free_place(box: Sequence[float], w: int, h: int, width: int, height: int, taken: np.ndarray) -> tuple:
    """Where a w x h plate for `box` goes: the first place around it that covers least of `taken` [K, 4]."""
    x1, y1, x2, y2 = (round(value) for value in box)
    places = [(x, y) for y in (y1 - h, y1, y2, y2 - h) for x in (x1, x2 - w)]
    places += [(x1, y1 + step * h) for step in (1, 2, 3)]
    best, least = None, math.inf
    for x, y in places:
        x, y = max(0, min(x, width - w)), max(0, min(y, height - h))
        plate = (x, y, x + w, y + h)
        overlap_w = np.minimum(taken[:, 2], plate[2]) - np.maximum(taken[:, 0], plate[0])  # [K]
        overlap_h = np.minimum(taken[:, 3], plate[3]) - np.maximum(taken[:, 1], plate[1])  # [K]
        covered = float((overlap_w.clip(0) * overlap_h.clip(0)).sum())
        if covered < least:
            best, least = plate, covered
        if covered == 0:
            break
    return best


def _ink(color: tuple[int, int, int]) -> tuple[int, int, int]:
    """Black or white, whichever stands out on `color` (Rec. 601 luma)."""
    red, green, blue = color
    return (0, 0, 0) if 0.299 * red + 0.587 * green + 0.114 * blue > 140 else (255, 255, 255)


def plot_loss_and_lr(path: str | Path, losses: Sequence[float], learning_rates: Sequence[float]) -> None:
    """Writes a PNG of the training loss and the learning rate, one value of each per step (or per epoch)."""
    figure, axes = _new_figure()
    steps = range(1, len(losses) + 1)
    marker = "." if len(losses) < 50 else None  # a line through one point would not be seen
    loss_line = axes.plot(steps, losses, color="tab:red", marker=marker, label="loss")
    axes.set(xlabel="step", ylabel="training loss", title="Training loss and learning rate")
    rate_axes = axes.twinx()
    rate_line = rate_axes.plot(steps, learning_rates, color="tab:blue", marker=marker, label="learning rate")
    rate_axes.set_ylabel("learning rate")
    axes.legend(handles=loss_line + rate_line, loc="upper right")
    figure.savefig(path)


def plot_average_precision(path: str | Path, box_ap: Sequence[float], mask_ap: Sequence[float]) -> None:
    """Writes a PNG of the box and the mask AP (IoU 0.50:0.95) after each epoch."""
    figure, axes = _new_figure()
    for values, label, color in ((box_ap, "box AP", "tab:blue"), (mask_ap, "mask AP", "tab:green")):
        axes.plot(range(len(values)), values, color=color, marker=".", label=label)
    axes.set(xlabel="epoch", ylabel="AP (IoU 0.50:0.95)", title="Average precision on the val split")
    axes.set_ylim(bottom=0)
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.legend(loc="lower right")
    figure.savefig(path)


def _new_figure():
    # Imported here: matplotlib is slow to load. A Figure without pyplot needs no display and leaves no state.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), dpi=120, layout="constrained")
    axes = figure.add_subplot()
    axes.grid(alpha=0.3)
    return figure, axes
