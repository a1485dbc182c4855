"""Second opinions: the network's operators as slow, plain loops over Python numbers."""

import math

import torch


def random_boxes(count, seed=0, extent=100.0, dtype=torch.float64):
    """`count` boxes [count, 4] with corners and sides up to `extent`."""
    rng = torch.Generator().manual_seed(seed)
    corner, size = torch.rand(2, count, 2, generator=rng, dtype=dtype) * extent
    return torch.cat((corner, corner + size + 0.1), 1)


def slow_iou(a, b):
    width = max(0, min(a[2], b[2]) - max(a[0], b[0]))
    height = max(0, min(a[3], b[3]) - max(a[1], b[1]))
    shared = width * height
    return shared / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared)


def slow_bilinear(grid, y, x):
    """The value of a 2-d list at (y, x), cell i at i; 0 beyond one cell outside, else moved to the border."""
    height, width = len(grid), len(grid[0])
    if not (-1 <= y <= height and -1 <= x <= width):
        return 0.0
    y, x = min(max(y, 0), height - 1), min(max(x, 0), width - 1)
    top, left = math.floor(y), math.floor(x)
    bottom, right = min(top + 1, height - 1), min(left + 1, width - 1)
    upper = grid[top][left] * (left + 1 - x) + grid[top][right] * (x - left)
    lower = grid[bottom][left] * (left + 1 - x) + grid[bottom][right] * (x - left)
    return upper * (top + 1 - y) + lower * (y - top)


def slow_roi_align(grid, roi, output_size, samples=None, half_pixel=False):
    """A 2-d list sampled in `roi` (x1 y1 x2 y2, in cells), [output_size][output_size]; None: adaptive.

    half_pixel: cell i has its value at i + 0.5, and a RoI may be narrower than a cell.
    """
    x1, y1, x2, y2 = (edge - 0.5 for edge in roi) if half_pixel else roi
    least = 0.0 if half_pixel else 1.0
    width, height = max(x2 - x1, least), max(y2 - y1, least)
    down, across = samples or math.ceil(height / output_size), samples or math.ceil(width / output_size)
    bins = [[0.0] * output_size for _ in range(output_size)]
    for i in range(output_size):
        for j in range(output_size):
            points = [
                slow_bilinear(
                    grid,
                    y1 + (i + (a + 0.5) / down) * height / output_size,
                    x1 + (j + (b + 0.5) / across) * width / output_size,
                )
                for a in range(down)
                for b in range(across)
            ]
            bins[i][j] = sum(points) / len(points)
    return bins


def slow_resize(grid, height, width):
    """A 2-d list resized by bilinear interpolation, cell centres aligned at i + 0.5, clamped at the border."""

    def source(i, cells, pixels):
        return min(max((i + 0.5) * cells / pixels - 0.5, 0), cells - 1)

    return [
        [slow_bilinear(grid, source(y, len(grid), height), source(x, len(grid[0]), width)) for x in range(width)]
        for y in range(height)
    ]


def slow_covered(grid, box, cells):
    """The mean of a 2-d list over each cell of `box` (x1 y1 x2 y2; entry i reaches from i to i + 1), 0 outside."""
    x1, y1, x2, y2 = box
    wide, high = (x2 - x1) / cells, (y2 - y1) / cells
    out = [[0.0] * cells for _ in range(cells)]
    for i in range(cells):
        for j in range(cells):
            top, left = y1 + i * high, x1 + j * wide
            for y, row in enumerate(grid):
                for x, value in enumerate(row):
                    shared_y = max(0.0, min(top + high, y + 1) - max(top, y))
                    shared_x = max(0.0, min(left + wide, x + 1) - max(left, x))
                    out[i][j] += value * shared_y * shared_x / (wide * high)
    return out


def slow_paste(grid, box, height, width):
    """A square 2-d list spread over `box`: the value at each pixel's centre, 0 where that is outside of the box."""
    x1, y1, x2, y2 = box
    cells, out = len(grid), [[0.0] * width for _ in range(height)]
    for y in range(height):
        for x in range(width):
            if x1 <= x + 0.5 <= x2 and y1 <= y + 0.5 <= y2:
                row, column = ((p - low) / side * cells - 0.5 for p, low, side in [
                    (y + 0.5, y1, y2 - y1), (x + 0.5, x1, x2 - x1)
                ])  # fmt: skip
                inside = (min(max(at, 0), cells - 1) for at in (row, column))  # half a cell reaches to the border
                out[y][x] = slow_bilinear(grid, *inside)
    return out
