"""Draws instances on an image, for people.

D detections, H x W the image. Boxes are x1 y1 x2 y2 in the image's pixels. Lines and letters grow with the
image, so that names can be read on a thumbnail and on a 50-megapixel photo.
"""

import colorsys
import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFont

from network_files.operators.boxes import scale_boxes
from network_files.operators.cropped_masks import CroppedMasks

GOLDEN_RATIO = (math.sqrt(5) - 1) / 2  # hues this share of the circle apart never come close
MASK_OPACITY = 0.5
MIN_FONT_SIZE = 11  # below this the default font's letters run together


def instance_color(index: int) -> tuple[int, int, int]:
    """Returns the colour of the index-th instance, RGB (0..255): neighbours far apart in hue, three brightnesses."""
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
    """Returns the image with each instance's mask, box, name and score in a colour of its own.

    image uint8 [3, H, W]; boxes [D, 4]; labels int [D]; scores [D], or None for ground truth; masks D of
    H x W, or None; name_of turns a label into its name (`label_map.name`); magnify enlarges a small image
    before drawing. Returns an RGB image of (W * magnify, H * magnify); D may be 0; image is not changed.
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
    corners = boxes.detach().cpu().double().numpy() * magnify  # [D, 4]
    # Large instances first, so that a small one in front of a large one stays visible.
    order = np.argsort(-(corners[:, 2:] - corners[:, :2]).prod(axis=1), kind="stable").tolist()
    if masks is not None:
        crops, places = masks.to("cpu").crops(), masks.boxes.tolist()
        for i in order:
            _blend_mask(canvas, crops[i].numpy().astype(bool), places[i], instance_color(i), line)
    drawn = Image.fromarray(canvas)
    draw = ImageDraw.Draw(drawn)
    for i in order:
        x1, y1, x2, y2 = corners[i].tolist()
        draw.rectangle((x1, y1, max(x1, x2 - 1), max(y1, y2 - 1)), outline=instance_color(i), width=line)
    captions = [name_of(int(label)) for label in labels]
    if scores is not None:
        captions = [f"{name} {score:.2f}" for name, score in zip(captions, scores.tolist(), strict=True)]
    _write_captions(draw, captions, corners, (width, height), unit)
    return drawn


def resized_to_draw(
    image: torch.Tensor, boxes: torch.Tensor, masks: CroppedMasks, size: tuple[int, int]
) -> tuple[torch.Tensor, torch.Tensor, CroppedMasks]:
    """Returns image uint8 [3, H, W], boxes [N, 4] and masks in another size (height, width), for `draw_detections`."""
    own = tuple(image.shape[1:])
    if size == own:
        return image, boxes, masks
    small = F.interpolate(image[None], size, mode="bilinear", antialias=True)[0]
    return small, scale_boxes(boxes, own, size), masks.resize(size)


def fitting_size(size: Sequence[int], room: Sequence[int], enlarge: bool = False) -> tuple[int, int]:
    """Returns the largest (height, width) of this ratio within room; enlarge: also where it exceeds size."""
    scale = min(most / side for most, side in zip(room, size, strict=True))
    height, width = (max(1, round(side * (scale if enlarge else min(scale, 1)))) for side in size)
    return height, width


def _blend_mask(
    canvas: np.ndarray, mask: np.ndarray, place: Sequence[int], color: tuple[int, int, int], line: int
) -> None:
    """Tints the pixels of mask [h, w] at `place` x1 y1 x2 y2 of canvas [H, W, 3], and fills its outline."""
    x1, y1, x2, y2 = place
    window = canvas[y1:y2, x1:x2]  # a view
    tint = np.asarray(color, dtype=np.float32) * MASK_OPACITY
    window[mask] = (window[mask] * (1 - MASK_OPACITY) + tint).astype(np.uint8)
    window[mask & ~_erode(mask, line)] = color


def _erode(mask: np.ndarray, steps: int) -> np.ndarray:
    """Returns the mask without the pixels that lie within `steps` 4-connected steps of its outside."""
    for _ in range(steps):
        padded = np.pad(mask, 1)
        mask = mask & padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    return mask


def _write_captions(
    draw: ImageDraw.ImageDraw, captions: list[str], boxes: np.ndarray, size: tuple[int, int], unit: float
) -> None:
    """Writes each caption at its box (boxes [D, 4]) on a plate of the instance's colour."""
    width, height = size
    font = ImageFont.load_default(max(MIN_FONT_SIZE, min(round(unit / 45), height // 4)))
    pad = max(2, round(font.size / 6))
    ascent, descent = font.getmetrics()
    plates = np.zeros((0, 4))
    for i, caption in enumerate(captions):
        w, h = math.ceil(font.getlength(caption)) + 2 * pad, ascent + descent + pad
        places = _places_around(boxes[i], w, h)
        places = places.clip(0, (max(width - w, 0), max(height - h, 0)))  # [K, 2], inside the canvas
        candidates = np.concatenate([places, places + (w, h)], axis=1)  # [K, 4]
        # To hide another caption is worse than to hide an object; ties go to the earlier place.
        cost = 3 * _covered_share(candidates, plates) + _covered_share(candidates, boxes)  # [K]
        x, y, right, bottom = candidates[cost.round(3).argmin()].tolist()
        plates = np.vstack([plates, (x, y, right, bottom)])
        color = instance_color(i)
        draw.rectangle((x, y, right - 1, bottom - 1), fill=color)
        draw.text((x + pad, y + pad // 2), caption, fill=_ink(color), font=font)


def _places_around(box: np.ndarray, w: int, h: int) -> np.ndarray:
    """Returns upper left corners [K, 2] of a w x h plate at `box`, best place first: above, below, beside, in it."""
    x1, y1, x2, y2 = box.round()
    above_below = [(x, y) for y in (y1 - h, y2) for x in (x1, x2 - w)]
    beside = [(x, y) for x in (x2, x1 - w) for y in (y1, y2 - h)]
    return np.array(above_below + beside + [(x1, y1), (x2 - w, y2 - h)])


def _covered_share(covers: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """Returns what each of covers [K, 4] hides of boxes [N, 4]: the sum of the hidden shares (0..1 each), [K]."""
    lower = np.maximum(covers[:, None, :2], boxes[None, :, :2])  # [K, N, 2]
    upper = np.minimum(covers[:, None, 2:], boxes[None, :, 2:])  # [K, N, 2]
    areas = (boxes[:, 2:] - boxes[:, :2]).clip(1).prod(axis=1)  # [N]
    return ((upper - lower).clip(0).prod(axis=2) / areas).sum(axis=1)


def _ink(color: tuple[int, int, int]) -> tuple[int, int, int]:
    """Returns black or white, whichever stands out on `color` (Rec. 601 luma)."""
    red, green, blue = color
    return (0, 0, 0) if 0.299 * red + 0.587 * green + 0.114 * blue > 140 else (255, 255, 255)
