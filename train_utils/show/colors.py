"""Boxes on an image -> a colour for each: one that differs from the image's mean and from those of its neighbours.

D instances, P colours of a palette. Colours are RGB, 0..255. The work grows with D, not with its square: neighbours are
looked up on a grid of GRID x GRID cells.
"""

import colorsys
import math
from collections.abc import Sequence

import numpy as np

Color = tuple[int, int, int]
GOLDEN_RATIO = (math.sqrt(5) - 1) / 2  # hues this share of the circle apart never come close
LUMA = np.array([0.299, 0.587, 0.114])  # of red, green, blue, after Rec. 601
DARKEST = 60  # luma of a palette's colours; darker ones are made lighter
HUES = 16  # of a palette: more could not be told apart
FROM_IMAGE, APART = 230, 200  # distances as of `distance`: of a colour from the image's mean, of neighbours' colours
LEAST_HUES = 8  # that are left to choose from, whatever the image's mean
GRID = 48  # cells a side
SHADES = (0.0, 0.45, -0.45)  # of a class's colour: as it is, towards white, towards black


def instance_color(index: int) -> Color:
    """Returns the colour of the index-th instance, RGB (0..255): neighbours far apart in hue, three brightnesses."""
    hue = (0.02 + index * GOLDEN_RATIO) % 1.0
    saturation, value = ((0.85, 1.0), (0.65, 0.95), (0.95, 0.8))[index % 3]
    red, green, blue = (round(255 * channel) for channel in colorsys.hsv_to_rgb(hue, saturation, value))
    return red, green, blue


def ink(color: Color) -> Color:
    """Returns black or white, whichever stands out on `color`."""
    return (0, 0, 0) if np.dot(color, LUMA) > 140 else (255, 255, 255)


def distance(some: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Returns how far colours [P, 3] look from others [Q, 3], float [P, Q]: 0 (equal) to 765 (black and white).

    The weights of the channels follow the mean of the reds (https://www.compuphase.com/cmetric.htm).
    """
    some, others = some[:, None].astype(float), others[None].astype(float)
    red, squares = (some[..., 0] + others[..., 0]) / 2, (some - others) ** 2
    weights = np.stack([2 + red / 256, np.full_like(red, 4), 2 + (255 - red) / 256], axis=-1)
    return np.sqrt((weights * squares).sum(axis=-1))


def hues_on(mean: np.ndarray) -> np.ndarray:
    """Returns the palette for an image of this mean colour [3]: int [P, 3], LEAST_HUES to HUES of them."""
    palette = np.array([instance_color(i) for i in range(HUES)])
    dark = palette @ LUMA < DARKEST
    palette[dark] = (palette[dark] + 0.3 * (255 - palette[dark])).astype(int)  # blue on black is hard to see
    away = distance(palette, mean[None])[:, 0]
    kept = away >= min(FROM_IMAGE, np.sort(away)[-LEAST_HUES])
    return palette[kept]


def choose_colors(
    boxes: np.ndarray, size: tuple[int, int], mean: np.ndarray, groups: Sequence[int] | None = None
) -> list[Color]:
    """Returns a colour for each of boxes [D, 4] (x1 y1 x2 y2) on an image of size (width, height) and mean colour [3].

    groups: the class of each, 0.., where colours tell classes: instances of one are shades of a colour. Without them
    any colour of the palette may be an instance's; those that were used least come first.
    """
    palette = hues_on(mean)
    if groups is not None:
        palette = np.concatenate([_shades(color) for color in palette])
    apart = distance(palette, palette)
    # which object used a colour last in a cell, from 1 on; 0: none did
    last = np.zeros((GRID, GRID, len(palette)), dtype=np.int64)
    used = np.zeros(len(palette), dtype=np.int64)
    cells = (boxes / np.array(size * 2, dtype=float).clip(1) * GRID).clip(0, GRID - 1).astype(int)  # [D, 4]
    colors = []
    for i, (x1, y1, x2, y2) in enumerate(cells.tolist(), start=1):
        around = last[max(y1 - 1, 0) : y2 + 2, max(x1 - 1, 0) : x2 + 2].max(axis=(0, 1))  # [P]
        allowed = np.arange(len(palette))
        if groups is not None:
            allowed = (groups[i - 1] % (len(palette) // len(SHADES))) * len(SHADES) + np.arange(len(SHADES))
        nearest = apart[allowed][:, around > 0].min(axis=1, initial=2 * APART)  # to a neighbour's colour
        # far enough from the neighbours, else that of the neighbour of longest ago; then the one used least
        ranks = np.lexsort((used[allowed], around[allowed], -nearest.clip(max=APART)))
        chosen = int(allowed[ranks[0]])
        last[y1 : y2 + 1, x1 : x2 + 1, chosen] = i
        used[chosen] += 1
        red, green, blue = palette[chosen].tolist()
        colors.append((red, green, blue))
    return colors


def class_colors(classes: int, mean: np.ndarray) -> list[Color]:
    """Returns the colour of each class, as `choose_colors` shades it."""
    palette = hues_on(mean).tolist()
    return [tuple(palette[k % len(palette)]) for k in range(classes)]


def _shades(color: np.ndarray) -> np.ndarray:
    """Returns the SHADES of a colour [3], int [3, 3]."""
    ends = [255 if shade > 0 else 0 for shade in SHADES]
    return np.array([color + (end - color) * abs(shade) for shade, end in zip(SHADES, ends, strict=True)]).astype(int)
