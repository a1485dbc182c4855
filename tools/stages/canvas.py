"""Enlarges or reduces an image, or a part of it, to a size that can be looked at, and draws on it.

Coordinates given to a Canvas are pixels of the image; boxes are x1 y1 x2 y2.
"""

import math
import textwrap
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFont

from train_utils.data.images.shown import shown
from train_utils.show.colors import instance_color

SIDE, LEAST, MOST = 720, 240, 1600  # pixels: longer side of a drawn image, shorter side of a long one, its longer
GREEN, RED, YELLOW, BLUE = (60, 220, 90), (255, 80, 70), (255, 205, 40), (70, 150, 255)
LEVEL_COLORS = [instance_color(i) for i in (3, 1, 2, 5, 10)]  # of P2..P6
Color = tuple[int, int, int]
HEAT = np.array([(0, 0, 4), (87, 16, 110), (188, 55, 84), (249, 142, 9), (252, 255, 164)], dtype=float)  # dark to light


class Canvas:
    """An image to draw on.

    pixels uint8 [3, H, W]; window: the part to show (default: all); faded: grey, so that lines stand out; side: pixels
    of its longer side.
    """

    def __init__(
        self, pixels: torch.Tensor, window: Sequence[float] | None = None, faded: bool = False, side: int = SIDE
    ) -> None:
        image = Image.fromarray(shown(pixels).permute(1, 2, 0).contiguous().numpy())
        x1, y1, x2, y2 = window or (0, 0, *image.size)
        width, height = max(x2 - x1, 1), max(y2 - y1, 1)
        scale = max(side / max(width, height), min(LEAST / min(width, height), MOST / max(width, height)))
        self.origin, self.scale, self.line = (x1, y1), scale, 2
        size = max(1, round(width * scale)), max(1, round(height * scale))
        resample = Image.Resampling.NEAREST if scale > 1 else Image.Resampling.BOX
        image = image.resize(size, resample, box=(x1, y1, x1 + width, y1 + height))
        if faded:
            image = Image.blend(image, image.convert("L").convert("RGB"), 0.7)
            image = Image.blend(image, Image.new("RGB", size, (70, 74, 78)), 0.35)
        self.image = image
        self.draw = ImageDraw.Draw(self.image, "RGBA")
        self.font = ImageFont.load_default(15)

    def at(self, x: float, y: float) -> tuple[float, float]:
        """Returns where the point (x, y) of the image is drawn."""
        return (x - self.origin[0]) * self.scale, (y - self.origin[1]) * self.scale

    def point(self, x: float, y: float) -> tuple[float, float]:
        """Returns the point of the image that is drawn at (x, y)."""
        return x / self.scale + self.origin[0], y / self.scale + self.origin[1]

    def box(self, box: Sequence[float], color: Color, width: int | None = None, opacity: float = 1.0) -> None:
        """Draws a box."""
        (x1, y1), (x2, y2) = self.at(*box[:2]), self.at(*box[2:])
        self.draw.rectangle(
            (x1, y1, max(x1, x2 - 1), max(y1, y2 - 1)), outline=(*color, round(255 * opacity)), width=width or self.line
        )

    def boxes(self, boxes: torch.Tensor, color: Color, width: int = 2, opacity: float = 1.0) -> "Canvas":
        """Draws boxes [N, 4]; returns the canvas."""
        for box in boxes.tolist():
            self.box(box, color, width, opacity)
        return self

    def dots(self, points: torch.Tensor, color: Color, radius: float = 3) -> None:
        """Draws a dot at each of points [N, 2]."""
        for point in points.tolist():
            x, y = self.at(*point)
            self.draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=color)

    def arrow(self, start: Sequence[float], end: Sequence[float], color: Color) -> None:
        """Draws an arrow from one point to another."""
        (x1, y1), (x2, y2) = self.at(*start), self.at(*end)
        length = math.hypot(x2 - x1, y2 - y1)
        if length < 3:  # too short to be seen
            return
        self.draw.line((x1, y1, x2, y2), fill=color, width=self.line)
        angle, head = math.atan2(y2 - y1, x2 - x1), min(10, length)
        sides = [(x2 - head * math.cos(angle + turn), y2 - head * math.sin(angle + turn)) for turn in (-0.45, 0.45)]
        self.draw.polygon([(x2, y2), *sides], fill=color)

    def move(self, start: Sequence[float], end: Sequence[float], color: Color) -> None:
        """Draws arrows from the corners of one box to those of another."""
        for x, y in ((0, 1), (2, 1), (0, 3), (2, 3)):
            self.arrow((start[x], start[y]), (end[x], end[y]), color)

    def write(self, text: str, x: float, y: float, color: Color) -> None:
        """Writes text on a plate whose left upper corner is at the point, moved so that all of it is seen."""
        left, top = self.at(x, y)
        width, height = self.font.getlength(text) + 8, 20
        left = max(0, min(left, self.image.width - width))
        top = max(0, min(top, self.image.height - height))
        self.draw.rectangle((left, top, left + width, top + height), fill=(*color, 235))
        light = 0.299 * color[0] + 0.587 * color[1] + 0.114 * color[2] > 140
        self.draw.text((left + 4, top + 1), text, fill=(0, 0, 0) if light else (255, 255, 255), font=self.font)

    def heat(
        self, values: torch.Tensor, width: float, height: float, opacity: float = 0.75, corners: bool = True
    ) -> "Canvas":
        """Draws values [h, w] in 0..1 of a map's cells as colours over the first width x height pixels.

        corners: a cell is drawn around its left upper corner: there its anchors are centred, and there RoIAlign reads
        it in torchvision's geometry.
        """
        right, bottom = (max(1, round(length)) for length in self.at(width, height))
        (h, w), repeated = values.shape, F.pad(values[None], (0, 1, 0, 1), mode="replicate")[0]
        moved = 0.5 if corners else 0.0
        box = moved, moved, w + moved, h + moved
        layer = heat_image(repeated).resize((right, bottom), Image.Resampling.NEAREST, box=box)
        part = self.image.crop((0, 0, right, bottom))
        self.image.paste(Image.blend(part, layer, opacity), (0, 0))
        return self


def centres(boxes: torch.Tensor) -> torch.Tensor:
    """Returns the centres [N, 2] of boxes [N, 4]."""
    return (boxes[:, :2] + boxes[:, 2:]) / 2


def heat_image(values: torch.Tensor) -> Image.Image:
    """Returns values [h, w] in 0..1 as colours from dark to light, a pixel each."""
    values = values.clamp(0, 1).numpy() * (len(HEAT) - 1)
    channels = [np.interp(values, range(len(HEAT)), HEAT[:, c]) for c in range(3)]
    return Image.fromarray(np.stack(channels, -1).round().astype(np.uint8))


def window_around(boxes: torch.Tensor, size: tuple[int, int], margin: float = 0.25) -> tuple[int, int, int, int]:
    """Returns the part of an image of `size` (h, w) that shows these boxes [N, 4] and a margin."""
    low, high = boxes[:, :2].amin(0), boxes[:, 2:].amax(0)
    room = ((high - low).max() * margin).clamp(min=2)
    x1, y1 = (low - room).floor().clamp(min=0).int().tolist()
    x2, y2 = (high + room).ceil().int().tolist()
    return x1, y1, max(min(x2, size[1]), x1 + 1), max(min(y2, size[0]), y1 + 1)


def tiles(titled: Sequence[tuple[str, Image.Image | None]], columns: int = 3, side: int = 168) -> Image.Image:
    """Returns small images in rows, each under its title; None leaves a place free."""
    across, down, font = side + 8, side + 24, ImageFont.load_default(13)
    # not white, as masks are
    whole = Image.new("RGB", (columns * across - 8, -(-len(titled) // columns) * down), (222, 226, 230))
    draw = ImageDraw.Draw(whole)
    for i, (title, image) in enumerate(titled):
        x, y = i % columns * across, i // columns * down
        draw.text((x, y + 3), title, fill=(30, 30, 30), font=font)
        if image is not None:
            scale = side / max(image.size)
            resample = Image.Resampling.NEAREST if scale > 1 else Image.Resampling.BOX
            size = [max(1, round(length * scale)) for length in image.size]
            whole.paste(image.resize(size, resample), (x, y + 20))
    return whole


def sheet(panels: Sequence[tuple[str, Image.Image]], width: int = 2 * SIDE + 60) -> Image.Image:
    """Returns all images of a stage on one, each over its caption, in rows of at most `width` pixels."""
    font, gap, rows, row, used = ImageFont.load_default(16), 20, [], [], 0
    for caption, image in panels:
        if row and used + image.width + gap > width:
            rows, row, used = [*rows, row], [], 0
        caption = caption.replace("→", ">")  # which Pillow's font has not
        row.append((textwrap.wrap(caption, max(20, image.width // 8)), image))
        used += image.width + gap
    rows = [*rows, row] if row else rows
    heights = [max(image.height + 20 * len(lines) for lines, image in row) + gap for row in rows]
    wide = max((sum(image.width + gap for _, image in row) for row in rows), default=gap)
    whole = Image.new("RGB", (wide + gap, sum(heights) + gap), (255, 255, 255))
    draw, y = ImageDraw.Draw(whole), gap
    for row, height in zip(rows, heights, strict=True):
        x = gap
        for lines, image in row:
            whole.paste(image, (x, y))
            draw.multiline_text((x, y + image.height + 4), "\n".join(lines), fill=(30, 30, 30), font=font)
            x += image.width + gap
        y += height
    return whole
