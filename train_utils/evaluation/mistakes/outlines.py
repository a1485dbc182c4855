"""Turns masks and boxes into SVG paths of few points, in the units of a drawing that is `scale` times the image.

A path is "M x y l dx dy ... z", once or several times, in whole units.
"""

import numpy as np
from PIL import Image

from train_utils.data.rle import cropped_masks
from train_utils.evaluation.mistakes.matching import to_rle

TOLERANCE = 1.0  # units, or pixels of the mask where those are larger, that a point may lie off its line


def path_of(entry: dict, iou_type: str, size: tuple[int, int], scale: float) -> str:
    """Returns the outline of an annotation or a result of an image of `size` (H, W), times scale."""
    if iou_type == "segm":
        rle = to_rle(entry["segmentation"], size)
        counts = rle["counts"]
        crops = cropped_masks([{"counts": counts.encode() if isinstance(counts, str) else counts}], size)
        (mask,), (x1, y1, x2, y2) = crops.crops(), crops.boxes[0].tolist()
        loops = mask_loops(mask.numpy(), (x1, y1, x2, y2), scale)
        if loops:
            return "".join(map(_path, loops))
    else:
        x, y, w, h = entry["bbox"]
        x1, y1, x2, y2 = x, y, x + w, y + h
    return _path(np.array([(x1, y1), (x2, y1), (x2, y2), (x1, y2)]) * scale)


def mask_loops(mask: np.ndarray, box: tuple[float, float, float, float], scale: float) -> list[np.ndarray]:
    """Returns the borders of a mask [h, w] that fills box x1 y1 x2 y2, times scale: points [n, 2] x y of each loop.

    Holes are loops too. Those that are small in the drawing may vanish.
    """
    if not mask.size:
        return []
    x1, y1, x2, y2 = box
    width, height = (max(1, round((high - low) * scale)) for low, high in ((x1, x2), (y1, y2)))
    if width * height < mask.size:
        small = Image.fromarray((mask > 0).astype(np.uint8) * 255).resize((width, height), Image.Resampling.BOX)
        mask = np.asarray(small) > 127
    # how large a pixel of the mask is in the drawing
    step = np.array([(x2 - x1) / mask.shape[1], (y2 - y1) / mask.shape[0]]) * scale
    tolerance, corner = TOLERANCE * max(1.0, step.max()), (x1 * scale, y1 * scale)
    # four corners are a single pixel, all within tolerance: noisy masks have thousands
    loops = (simplified(loop * step + corner, tolerance) for loop in border_loops(mask) if len(loop) > 4)
    return [loop for loop in loops if len(loop) > 2]


def border_loops(mask: np.ndarray) -> list[np.ndarray]:
    """Returns closed chains of corners [n, 2] x y of pixels around the set ones of mask [h, w], those to the right."""
    padded = np.pad(mask.astype(bool), 1)
    inside, stride = padded[1:-1, 1:-1], mask.shape[1] + 1  # corner x y has the number y * stride + x
    sides = (  # of a pixel, clockwise: the neighbour that is not set, its first corner, the way to its second
        (padded[:-2, 1:-1], 0, 1), (padded[1:-1, 2:], 1, stride), (padded[2:, 1:-1], stride + 1, -1),
        (padded[1:-1, :-2], stride, -stride),
    )  # fmt: skip
    starts, ends = [], []
    for neighbour, corner, way in sides:
        y, x = np.nonzero(inside & ~neighbour)
        starts.append(y * stride + x + corner)
        ends.append(starts[-1] + way)
    start, end = np.concatenate(starts), np.concatenate(ends)
    following = np.empty(len(start), dtype=np.int64)  # as many sides begin at a corner as end there
    following[np.argsort(end, kind="stable")] = np.argsort(start, kind="stable")
    following, seen, loops = following.tolist(), bytearray(len(start)), []
    for first in range(len(following)):
        chain, side = [], first
        while not seen[side]:
            seen[side] = 1
            chain.append(side)
            side = following[side]
        if chain:
            loops.append(np.stack(np.divmod(start[chain], stride)[::-1], axis=1))
    return loops


def simplified(loop: np.ndarray, tolerance: float) -> np.ndarray:
    """Returns a closed loop [n, 2] without the points within tolerance of the rest (Douglas and Peucker)."""
    points = loop[:, 0] + 1j * loop[:, 1]
    way = np.roll(points, -1) - points
    points = points[way != np.roll(way, 1)]  # of a straight run its ends
    far = int(np.abs(points - points[0]).argmax())
    closed = np.append(points, points[0])
    keep = np.zeros(len(closed), dtype=bool)
    keep[[0, far]] = True
    open_parts = [(0, far), (far, len(points))]
    while open_parts:
        a, b = open_parts.pop()
        if b - a < 2:
            continue
        chord, rest = closed[b] - closed[a], closed[a + 1 : b] - closed[a]
        away = np.abs((rest * chord.conjugate()).imag) / abs(chord) if chord else np.abs(rest)
        k = int(away.argmax())
        if away[k] > tolerance:
            keep[a + 1 + k] = True
            open_parts += [(a, a + 1 + k), (a + 1 + k, b)]
    kept = closed[:-1][keep[:-1]]
    return np.stack([kept.real, kept.imag], axis=1)


def _path(loop: np.ndarray) -> str:
    """Writes each point as the step from the one before, without the space in front of a minus."""
    points = np.rint(loop).astype(np.int64)
    steps = " ".join(map(str, np.diff(points, axis=0).ravel().tolist())).replace(" -", "-")
    return f"M{points[0, 0]} {points[0, 1]}l{steps}z"
