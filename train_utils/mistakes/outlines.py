"""Masks and boxes as SVG paths of few points, in the units of a drawing that is `scale` times the picture.

A path is "M x y l dx dy ... z", once or several times, in whole units.
"""

import numpy as np
from PIL import Image

from train_utils.mistakes.matching import to_rle
from train_utils.rle_crops import cropped_masks

TOLERANCE = 1.0  # units, or pixels of the mask where those are larger, that a point may lie off its line


def path_of(entry: dict, iou_type: str, size: tuple[int, int], scale: float) -> str:
    """The outline of an annotation or a result of a picture of `size` (H, W), times scale."""
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


def mask_loops(mask: np.ndarray, box, scale: float) -> list[np.ndarray]:
    """The borders of a mask [h, w] that fills box x1 y1 x2 y2, times scale: points [n, 2] x y of each loop.

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
    loops = (simplified(loop * step + corner, tolerance) for loop in border_loops(mask))
    return [loop for loop in loops if len(loop) > 2]


def border_loops(mask: np.ndarray) -> list[np.ndarray]:
    """Closed chains of pixel corners [n, 2] x y around the set pixels of mask [h, w], the set ones to the right."""
    padded = np.pad(mask.astype(bool), 1)
    inside = padded[1:-1, 1:-1]
    sides = (  # the neighbour that is not set; from corner, to corner of a pixel
        (padded[:-2, 1:-1], (0, 0), (1, 0)), (padded[1:-1, 2:], (1, 0), (1, 1)),
        (padded[2:, 1:-1], (1, 1), (0, 1)), (padded[1:-1, :-2], (0, 1), (0, 0)),
    )
    after: dict[tuple[int, int], list[tuple[int, int]]] = {}
    for neighbour, (ax, ay), (bx, by) in sides:
        ys, xs = np.nonzero(inside & ~neighbour)
        for x, y in zip(xs.tolist(), ys.tolist(), strict=True):
            after.setdefault((x + ax, y + ay), []).append((x + bx, y + by))
    loops = []
    while after:
        start = point = next(iter(after))
        chain = []
        while point != start or not chain:
            chain.append(point)
            following = after[point]
            following_point = following.pop()
            if not following:
                del after[point]
            point = following_point
        loops.append(np.array(chain))
    return loops


def simplified(loop: np.ndarray, tolerance: float) -> np.ndarray:
    """A closed loop [n, 2] with the points left out that lie within tolerance of the rest (Douglas and Peucker)."""
    far = int(np.abs(loop - loop[0]).sum(axis=1).argmax())
    closed = np.concatenate([loop, loop[:1]])
    keep = np.zeros(len(closed), dtype=bool)
    keep[[0, far, len(loop)]] = True
    open_parts = [(0, far), (far, len(loop))]
    while open_parts:
        a, b = open_parts.pop()
        if b - a < 2:
            continue
        chord, points = closed[b] - closed[a], closed[a + 1 : b] - closed[a]
        length = np.hypot(*chord)
        if length:
            away = np.abs(points[:, 0] * chord[1] - points[:, 1] * chord[0]) / length
        else:
            away = np.hypot(*points.T)
        k = int(away.argmax())
        if away[k] > tolerance:
            keep[a + 1 + k] = True
            open_parts += [(a, a + 1 + k), (a + 1 + k, b)]
    return closed[:-1][keep[:-1]]


def _path(loop: np.ndarray) -> str:
    """Each point as the step from the one before; the space in front of a minus is left out."""
    points = np.rint(loop).astype(np.int64)
    steps = " ".join(map(str, np.diff(points, axis=0).ravel().tolist())).replace(" -", "-")
    return f"M{points[0, 0]} {points[0, 1]}l{steps}z"
