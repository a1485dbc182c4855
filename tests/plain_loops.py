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


def slow_roi_align(grid, roi, output_size, samples=None):
    """A 2-d list sampled in `roi` (x1 y1 x2 y2, in cells), [output_size][output_size]; None: adaptive."""
    x1, y1, x2, y2 = roi
    width, height = max(x2 - x1, 1.0), max(y2 - y1, 1.0)
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
