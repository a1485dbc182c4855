"""Names and scores of instances -> captions that give way to what they label, and a legend in their place.

D instances. Boxes are x1 y1 x2 y2 in pixels of the drawn image, sizes (width, height). What a caption would hide is
looked up on a grid of cells, in tables of running sums, so that the work grows with D and not with its square.
"""

import math
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from train_utils.show.colors import Color, ink

AUTO, NONE, SCORES, FULL = MODES = ("auto", "none", "scores", "full")
MOST = 1 / 5  # of the image, that captions may cover
FEW = 20  # objects of one class, up to which their scores are written
PLACED = 0.6  # share of the captions that must find a place of their own
HIDDEN = 0.5  # of an object, that a caption may hide in all
LINES = 8  # of a legend: classes with fewer objects are counted together
MIN_FONT_SIZE = 11  # below this the default font's letters run together
CELLS = 4  # of the grid, to a caption's height
OPACITY = 0.65  # of a legend's ground


class Lettering:
    """The font of a drawing, and how much room words take in it."""

    def __init__(self, size: tuple[int, int]) -> None:
        self.size = size
        unit = math.sqrt(size[0] * size[1])  # letters follow the image's area: a panorama's are not its width's
        self.font = ImageFont.load_default(max(MIN_FONT_SIZE, min(round(unit / 45), size[1] // 4)))
        self.pad = max(2, round(self.font.size / 6))
        self.height = sum(self.font.getmetrics()) + self.pad  # of a caption's plate
        self.widths: dict[str, int] = {"": 0}

    def width(self, text: str) -> int:
        """Returns the width of a plate with this text; 0 for none."""
        if text not in self.widths:
            self.widths[text] = math.ceil(self.font.getlength(text)) + 2 * self.pad
        return self.widths[text]

    def write(self, draw: ImageDraw.ImageDraw, x: float, y: float, text: str, color: Color) -> None:
        """Writes text on a plate of `color` whose left upper corner is at (x, y)."""
        right, bottom = x + self.width(text) - 1, y + self.height - 1
        draw.rectangle((x, y, right, bottom), fill=color)
        draw.text((x + self.pad, y + self.pad // 2), text, fill=ink(color), font=self.font)


class Captions(NamedTuple):
    """What is written: for each instance text and left upper corner, None without; legend: {class: instances}."""

    written: list[tuple[str, tuple[float, float]] | None]
    legend: dict[str, int]
    corner: tuple[float, float] | None  # of the legend


def arrange(
    names: Sequence[str], scores: Sequence[float] | None, boxes: np.ndarray, lettering: Lettering, mode: str = AUTO
) -> Captions:
    """Returns where which captions stand.

    names: of the classes, "" for none; scores: None for ground truth; boxes [D, 4]; mode: AUTO: names and scores, or
    names alone, or none, whichever leaves the image to be seen; of one class the scores of FEW, or none; what is not
    written is a legend's. NONE: nothing. SCORES: all scores, and a legend. FULL: all names and scores.
    """
    legend = dict(Counter(name for name in names if name).most_common())
    numbers = [""] * len(names) if scores is None else [f"{score:.2f}" for score in scores]
    full = [f"{name} {number}".strip() for name, number in zip(names, numbers, strict=True)]
    room, nothing = _Room(boxes, lettering), Captions([None] * len(names), {}, None)
    if mode == NONE or not len(names):
        return nothing
    if mode == FULL:
        return Captions(_placed(full, boxes, lettering, room, every=True), {}, None)
    one, counted = len(names) == 1, mode == SCORES or len(legend) < 2 <= len(names)
    corner = room.take(_legend_size(legend, lettering)) if counted else None
    for texts in [numbers] if mode == SCORES or corner is not None else [full, names]:
        area = sum(map(lettering.width, texts)) * lettering.height
        fits = area <= MOST * lettering.size[0] * lettering.size[1] and (len(names) <= FEW or corner is None)
        if mode == SCORES or one or fits:
            written = _placed(texts, boxes, lettering, room, every=mode == SCORES or one)
            if sum(place is not None for place in written) >= max(PLACED * sum(map(bool, texts)), 1):
                return Captions(written, legend if corner is not None else {}, corner)
        room = _Room(boxes, lettering)
    corner = corner or room.take(_legend_size(legend, lettering))
    return Captions(nothing.written, legend if corner is not None else {}, corner)


def draw_legend(image: Image.Image, captions: Captions, colors: Sequence[Color] | None, lettering: Lettering) -> None:
    """Draws the legend, where there is one and a place for it.

    colors: of the classes in their order, None where colours tell instances.
    """
    if captions.corner is None:
        return
    (x, y), lines, (width, height) = captions.corner, _lines(captions.legend), _legend_size(captions.legend, lettering)
    box = (int(x), int(y), int(x + width), int(y + height))
    ground = Image.new("RGB", (width, height), (0, 0, 0))
    image.paste(Image.blend(image.crop(box), ground, OPACITY), box[:2])
    draw, side = ImageDraw.Draw(image), lettering.height - 2 * lettering.pad
    for k, line in enumerate(lines):
        top = box[1] + k * lettering.height + lettering.pad
        if colors is not None and k < min(len(captions.legend), LINES):
            left = box[0] + lettering.pad
            draw.rectangle((left, top + lettering.pad // 2, left + side - 1, top + side - 1), fill=colors[k])
        left = box[0] + lettering.pad + (lettering.height if len(captions.legend) > 1 else 0)
        draw.text((left, top - lettering.pad // 2), line, fill=(255, 255, 255), font=lettering.font)


def _lines(legend: dict[str, int]) -> list[str]:
    """Returns the text of a legend."""
    lines = [f"{name}: {count}" for name, count in list(legend.items())[:LINES]]
    more = len(legend) - LINES
    return [*lines, f"and {more} more: {sum(list(legend.values())[LINES:])}"] if more > 0 else lines


def _legend_size(legend: dict[str, int], lettering: Lettering) -> tuple[int, int]:
    """Returns the size of a legend; (0, 0) of none."""
    lines = _lines(legend)
    swatch = lettering.height if len(legend) > 1 else 0
    return max(map(lettering.width, lines), default=0) + swatch, len(lines) * lettering.height + lettering.pad * bool(
        lines
    )


def _placed(
    texts: Sequence[str], boxes: np.ndarray, lettering: Lettering, room: "_Room", every: bool
) -> list[tuple[str, tuple[float, float]] | None]:
    """Returns a place for each text but ""; every: also where it hides another object's centre or another text."""
    written: list[tuple[str, tuple[float, float]] | None] = []
    for i, text in enumerate(texts):
        place = room.place(i, lettering.width(text), every) if text else None
        written.append(None if place is None else (text, place))
    return written


class _Room:
    """What captions may hide: objects, their centres, other captions."""

    def __init__(self, boxes: np.ndarray, lettering: Lettering) -> None:
        self.boxes, self.size, self.height = boxes, lettering.size, lettering.height
        self.cell = max(1, lettering.height // CELLS)
        columns, rows = (math.ceil(side / self.cell) for side in lettering.size)
        self.taken = np.zeros((rows, columns), dtype=bool)
        low = (boxes / self.cell).round().astype(int).clip(0, (columns, rows, columns, rows))  # [D, 4]
        self.centres = ((boxes[:, :2] + boxes[:, 2:]) / 2 // self.cell).astype(int).clip(0, (columns - 1, rows - 1))
        counts = np.zeros((rows, columns))
        np.add.at(counts, (self.centres[:, 1], self.centres[:, 0]), 1)
        # an object weighs 1 in all, spread over its cells: the sum over a caption is the share of objects that it hides
        x1, y1, x2, y2 = low.T
        weights = 1 / ((x2 - x1) * (y2 - y1)).clip(1)  # [D]
        edges = np.zeros((rows + 1, columns + 1))
        for x, y, sign in ((x1, y1, 1), (x2, y1, -1), (x1, y2, -1), (x2, y2, 1)):
            np.add.at(edges, (y, x), sign * weights)
        self.hidden, self.counted = _sums(edges.cumsum(0).cumsum(1)[:-1, :-1]), _sums(counts)

    def place(self, i: int, width: int, every: bool) -> tuple[float, float] | None:
        """Takes and returns the left upper corner of the i-th instance's caption; None where it must hide another."""
        limits = max(self.size[0] - width, 0), max(self.size[1] - self.height, 0)
        corners = _places_around(self.boxes[i], width, self.height).clip(0, limits)  # [K, 2]
        cells, others, hidden = self._look(corners, width, self.height)
        (x, y), own = self.centres[i], cells.T
        others = others - ((own[0] <= x) & (x < own[2]) & (own[1] <= y) & (y < own[3]))
        covered = np.array([self.taken[y1:y2, x1:x2].mean() for x1, y1, x2, y2 in cells.tolist()])
        cost = 10 * others + 3 * covered + hidden  # [K]; ties go to the earlier place
        best = int(cost.round(3).argmin())
        if not every and (others[best] > 0.5 or covered[best] > 0.1 or hidden[best] > HIDDEN):
            return None
        return self._taken(corners[best], cells[best])

    def take(self, size: tuple[int, int]) -> tuple[float, float] | None:
        """Takes and returns the left upper corner of a legend, at the image's border; None where it is too large."""
        (width, height), (w, h) = size, self.size
        if not width or width > w or height > h or width * height > MOST * w * h:
            return None
        xs, ys = ((0, (all_ - part) // 2, all_ - part) for all_, part in ((w, width), (h, height)))
        corners = np.array([(x, y) for y in (ys[2], ys[0]) for x in xs] + [(x, ys[1]) for x in (xs[0], xs[2])])
        cells, centres, hidden = self._look(corners, width, height)
        best = int((10 * centres + hidden).round(3).argmin())
        return self._taken(corners[best], cells[best])

    def _look(self, corners: np.ndarray, width: int, height: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Returns what plates at corners [K, 2] cover: cells x1 y1 x2 y2 [K, 4], centres [K], shares of objects [K]."""
        rows, columns = self.taken.shape
        low = (corners // self.cell).astype(int).clip(0, (columns - 1, rows - 1))
        high = np.ceil((corners + (width, height)) / self.cell).astype(int).clip(low + 1, (columns, rows))
        x1, y1, x2, y2 = low[:, 0], low[:, 1], high[:, 0], high[:, 1]
        within = (sums[y2, x2] - sums[y1, x2] - sums[y2, x1] + sums[y1, x1] for sums in (self.counted, self.hidden))
        centres, hidden = within
        return np.concatenate([low, high], axis=1), centres, hidden

    def _taken(self, corner: np.ndarray, cells: np.ndarray) -> tuple[float, float]:
        x1, y1, x2, y2 = cells.tolist()
        self.taken[y1:y2, x1:x2] = True
        return float(corner[0]), float(corner[1])


def _sums(values: np.ndarray) -> np.ndarray:
    """Returns the sums of all that lies above and left of each corner of the cells [H, W]: [H + 1, W + 1]."""
    return np.pad(values.cumsum(0).cumsum(1), ((1, 0), (1, 0)))


def _places_around(box: np.ndarray, width: int, height: int) -> np.ndarray:
    """Returns left upper corners [K, 2] of a plate at `box`, best place first: above, below, beside, in it."""
    x1, y1, x2, y2 = box.round().tolist()
    across, down = (x1, (x1 + x2 - width) // 2, x2 - width), (y1, (y1 + y2 - height) // 2, y2 - height)
    above_below = [(x, y) for y in (y1 - height, y2) for x in across]
    beside = [(x, y) for x in (x2, x1 - width) for y in down]
    return np.array(above_below + beside + [(x1, y1), (x2 - width, y2 - height)])
