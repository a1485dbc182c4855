"""A mask -> closed outlines along its pixels' edges, with few corners.

Corners are x y in pixels from the image's left upper corner, so that filling the outlines of tolerance 0 by parity
gives the mask back.
"""

import numpy as np

from train_utils.evaluation.mistakes.outlines import simplified

STEPS = ((1, 0), (0, 1), (-1, 0), (0, -1))  # right, down, left, up: each is a turn to the right of the one before


def outlines(mask: np.ndarray, tolerance: float = 0.0) -> list[np.ndarray]:
    """Returns the outlines of a mask, bool [H, W]: float64 [corners, 2] each.

    Outer ones run clockwise, those of holes the other way. Pixels that touch at a corner alone have outlines of their
    own. tolerance: how far an outline may lie from the pixels' edges, in pixels.
    """
    padded = np.pad(mask, 1)
    inner = padded[1:-1, 1:-1]
    beside = padded[:-2, 1:-1], padded[1:-1, 2:], padded[2:, 1:-1], padded[1:-1, :-2]  # above, right, below, left
    corners = ((0, 0), (1, 0), (1, 1), (0, 1))  # where the edge on each side begins
    edges: dict[tuple[int, int], list[int]] = {}  # {corner: directions of the edges that begin there}
    for direction, (other, (dx, dy)) in enumerate(zip(beside, corners, strict=True)):
        for y, x in np.argwhere(inner & ~other).tolist():
            edges.setdefault((x + dx, y + dy), []).append(direction)
    loops = []
    while edges:
        loops.append(_loop(edges))
    fewer = [simplified(loop, tolerance) if tolerance else loop for loop in loops]
    return [short if len(short) > 2 else loop for short, loop in zip(fewer, loops, strict=True)]


def _loop(edges: dict[tuple[int, int], list[int]]) -> np.ndarray:
    """Takes one closed outline out of the edges; returns its corners."""
    start = at = next(iter(edges))
    came, loop = -1, []
    while True:
        ways = edges[at]
        way = (came + 1) % 4 if len(ways) > 1 and came >= 0 else ways[0]  # right: around the same pixel
        ways.remove(way)
        if not ways:
            del edges[at]
        if way != came:
            loop.append(at)
        came, at = way, (at[0] + STEPS[way][0], at[1] + STEPS[way][1])
        if at == start:
            return np.array(loop[1:] if way == _first_way(loop) else loop, dtype=np.float64)


def _first_way(loop: list[tuple[int, int]]) -> int:
    """Returns the direction of an outline's first edge; it is no corner where the last edge has the same."""
    step = np.sign(np.subtract(loop[1], loop[0])) if len(loop) > 1 else (0, 0)
    return STEPS.index(tuple(step.tolist())) if tuple(step.tolist()) in STEPS else -1


def bridged(loops: list[np.ndarray]) -> np.ndarray:
    """Returns several outlines as one: lines there and back join them, which enclose nothing.

    Filled by parity it is what the outlines are, holes among them.
    """
    joined = [loops[0], loops[0][:1]]
    for loop in loops[1:]:
        joined += [loop, loop[:1], loops[0][:1]]
    return np.concatenate(joined) if len(loops) > 1 else loops[0]
