"""Draws instances on an image, for people: masks and their outlines, boxes, captions or a legend.

D detections, H x W the image. Boxes are x1 y1 x2 y2 in the image's pixels. Lines and letters grow with the
image, so that names can be read on a thumbnail and on a 50-megapixel photo. The work grows with D and the masks'
pixels, not with the square of D.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw

from network_files.operators.boxes import scale_boxes
from network_files.operators.cropped_masks import CroppedMasks
from train_utils.data.images.shown import shown
from train_utils.data.images.windows import Windows
from train_utils.show.captions import AUTO, FEW, Lettering, arrange, draw_legend
from train_utils.show.colors import Color, choose_colors, class_colors

MASK_OPACITY = 0.4
SMALL, MOST_MAGNIFIED = 640, 16  # pixels: a drawing of a shorter image is magnified to at most this, at most so often
MEAN_OF = 250  # pixels a side that the image's mean colour is taken from


@dataclass(frozen=True)
class Style:
    """How instances are drawn.

    captions: auto, none, scores or full, see `captions.arrange`; boxes: False leaves out those of objects with a mask;
    channels: which are drawn as red, green and blue, see `shown`; magnify: enlarges the image before drawing; None: a
    small one by itself, see `magnified`.
    """

    captions: str = AUTO
    boxes: bool = True
    magnify: int | None = None
    channels: tuple[int, ...] | None = None


def magnified(size: Sequence[int], magnify: int | None = None) -> int:
    """Returns how many times an image of size (H, W) is enlarged for drawing; magnify: what was asked for."""
    return magnify or min(max(SMALL // max(size), 1), MOST_MAGNIFIED)


def draw_detections(
    image: torch.Tensor,
    boxes: torch.Tensor,
    labels: Sequence[int] | torch.Tensor,
    scores: torch.Tensor | None,
    masks: CroppedMasks | None,
    name_of: Callable[[int], str] = str,
    style: Style = Style(),
) -> Image.Image:
    """Returns the image with each instance's mask, or its box, in a colour of its own, with names and scores.

    image [C, H, W], drawn as `shown` has it; boxes [D, 4]; labels int [D]; scores [D], or None for ground truth; masks
    D of H x W, or None; name_of turns a label into its name (`label_map.name`), "" for none. Returns an RGB image of
    (W, H) times `magnified`; D may be 0; image is not changed. Where captions would hide the image, a legend counts
    the classes instead, and colours tell them.
    """
    image = shown(image, style.channels)
    canvas, magnify = image.cpu().permute(1, 2, 0).numpy(), magnified(image.shape[1:], style.magnify)  # [H, W, 3]
    if magnify > 1:
        canvas = canvas.repeat(magnify, axis=0).repeat(magnify, axis=1)
        masks = masks.resize(canvas.shape[:2]) if masks is not None else None
    else:
        canvas = canvas.copy()
    corners = boxes.detach().cpu().double().numpy().reshape(-1, 4) * magnify  # [D, 4]
    names, size = [name_of(int(label)) for label in labels], (canvas.shape[1], canvas.shape[0])
    lettering = Lettering(size)
    captions = arrange(names, None if scores is None else scores.tolist(), corners, lettering, style.captions)
    order_of = {name: k for k, name in enumerate(captions.legend)}
    by_class = [order_of.get(name, 0) for name in names] if len(order_of) > 1 else None
    steps = [max(1, side // MEAN_OF) for side in size]
    mean = canvas[:: steps[1], :: steps[0]].reshape(-1, 3).mean(axis=0) if canvas.size else np.zeros(3)
    colors = choose_colors(corners, size, mean, by_class)
    drawn = _draw_shapes(canvas, corners, masks, colors, style.boxes)
    draw_legend(drawn, captions, class_colors(len(order_of), mean) if by_class else None, lettering)
    draw = ImageDraw.Draw(drawn)
    for caption, color in zip(captions.written, colors, strict=True):
        if caption is not None:
            lettering.write(draw, *caption[1], caption[0], color)
    return drawn


def _draw_shapes(
    canvas: np.ndarray, corners: np.ndarray, masks: CroppedMasks | None, colors: Sequence[Color], boxes: bool
) -> Image.Image:
    """Draws masks on canvas [H, W, 3] and boxes (corners [D, 4]) on the image that it becomes.

    boxes: whether objects with a mask have one: a thin one, and only up to FEW.
    """
    line = max(1, round(math.sqrt(canvas.shape[0] * canvas.shape[1]) / 350))
    sides = corners[:, 2:] - corners[:, :2]
    # Large instances first, so that a small one in front of a large one stays visible.
    order = np.argsort(-sides.prod(axis=1), kind="stable").tolist()
    lines = [max(1, min(line, int(side) // 10)) for side in sides.min(axis=1)]
    is_masked = [False] * len(corners)
    if masks is not None:
        crops, places = masks.to("cpu").crops(), masks.boxes.tolist()
        is_masked = [crop.numel() > 0 for crop in crops]
        for i in order:
            _blend_mask(canvas, crops[i].numpy().astype(bool), places[i], colors[i], lines[i])
    drawn = Image.fromarray(canvas)
    draw = ImageDraw.Draw(drawn)
    for i in order:
        if not is_masked[i] or (boxes and len(corners) <= FEW):
            x1, y1, x2, y2 = corners[i].tolist()
            thin = is_masked[i] or len(corners) > FEW
            width = max(1, lines[i] // 2) if thin else lines[i]
            draw.rectangle((x1, y1, max(x1, x2 - 1), max(y1, y2 - 1)), outline=colors[i], width=width)
    return drawn


def resized_to_draw(
    image: torch.Tensor, boxes: torch.Tensor, masks: CroppedMasks, size: tuple[int, int]
) -> tuple[torch.Tensor, torch.Tensor, CroppedMasks]:
    """Returns image [C, H, W] as uint8 RGB, boxes [N, 4] and masks in another size (height, width), to be drawn."""
    own = tuple(image.shape[1:])
    if size == own:
        return shown(image), boxes, masks
    return resized(image, size), scale_boxes(boxes, own, size), masks.resize(size)


def resized(image: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Returns image [C, H, W], or Windows, as uint8 RGB in another size (height, width)."""
    image = shown(image.overview(max(size)) if isinstance(image, Windows) else image)
    if size == tuple(image.shape[1:]):
        return image
    return F.interpolate(image[None], size, mode="bilinear", antialias=True)[0]


def fitting_size(size: Sequence[int], room: Sequence[int], enlarge: bool = False) -> tuple[int, int]:
    """Returns the largest (height, width) of this ratio within room; enlarge: also where it exceeds size."""
    scale = min(most / side for most, side in zip(room, size, strict=True))
    height, width = (max(1, round(side * (scale if enlarge else min(scale, 1)))) for side in size)
    return height, width


def _blend_mask(canvas: np.ndarray, mask: np.ndarray, place: Sequence[int], color: Color, line: int) -> None:
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
