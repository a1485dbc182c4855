"""RoIAlign (Mask R-CNN, section 3) over all levels and images in one weighted gather.

Shapes: N images, K RoIs, C channels, S = output_size, R = sampling_ratio. RoIs are `x1 y1 x2 y2` in
pixels of the resized images. Each of the S x S bins of a RoI is the mean of R x R points, each point a
bilinear mix of 4 cells: a weighted sum of 4 R^2 rows of a table that holds the pyramid's cells as rows.
"""

import itertools

import torch
import torch.nn.functional as F
from torch import Tensor


def bilinear_taps(position: Tensor, length: Tensor | int) -> tuple[Tensor, Tensor]:
    """The two cells that a point on an axis of `length` cells reads, and their weights.

    position [...], in cells, cell i at i. Returns indices int64 [..., 2] and weights [..., 2]. Points less
    than one cell outside are moved to the border; farther ones weigh nothing (torchvision's rule).
    """
    inside = (position >= -1) & (position <= length)
    length = torch.as_tensor(length, device=position.device)
    position = torch.minimum(position.clamp(min=0), (length - 1).to(position.dtype))
    low = position.floor()
    fraction = position - low
    low = low.long()
    high = torch.minimum(low + 1, length - 1)
    weights = torch.stack((1 - fraction, fraction), -1) * inside[..., None]
    return torch.stack((low, high), -1), weights


def roi_levels(boxes: Tensor, levels: int, canonical_scale: int = 224, canonical_level: int = 4) -> Tensor:
    """The pyramid level of each RoI, 0 = stride 4: FPN's equation 1, clipped to 0..levels - 1.

    boxes [K, 4] -> int64 [K]. A RoI of canonical_scale^2 pixels goes to level 4 (stride 16).
    """
    side = ((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])).sqrt()
    # 1e-6: a side of exactly 224 must not fall to the level below by rounding (as torchvision)
    level = torch.floor(canonical_level + torch.log2(side / canonical_scale) + 1e-6)
    return level.clamp(2, levels + 1).long() - 2


class UsedRows(torch.autograd.Function):
    """rows[cells], whose gradient goes to a list of (cells, gradient)."""

    @staticmethod
    def forward(ctx, rows: Tensor, cells: Tensor, gradients: list[tuple[Tensor, Tensor]]) -> Tensor:
        ctx.cells, ctx.gradients = cells, gradients
        return rows[cells]

    @staticmethod
    def backward(ctx, grad: Tensor):
        ctx.gradients.append((ctx.cells, grad))
        return None, None, None


class CollectGradients(torch.autograd.Function):
    """rows as they are; in the backward pass, which reaches this after all reads, the listed gradients are added."""

    @staticmethod
    def forward(ctx, rows: Tensor, gradients: list[tuple[Tensor, Tensor]]) -> Tensor:
        ctx.set_materialize_grads(False)
        ctx.shape, ctx.gradients = rows.shape, gradients
        return rows.view_as(rows)

    @staticmethod
    def backward(ctx, grad: Tensor | None):
        while ctx.gradients:
            cells, some = ctx.gradients.pop()
            grad = some.new_zeros(ctx.shape) if grad is None else grad
            grad.index_add_(0, cells, some)  # in place: the reads made it for this alone
        return grad, None


class FeatureTable:
    """The cells of all levels and images as rows of one table, to be read in any order.

    maps: one [N, C, H, W] per level, best channels-last (then this is one copy). `rows` [sum N H W, C] holds
    level by level, image by image, the cells along rows.
    """

    def __init__(self, maps: list[Tensor], dtype: torch.dtype | None = None):
        self.channels = maps[0].shape[1]
        self.rows = torch.cat([m.permute(0, 2, 3, 1).reshape(-1, self.channels).to(dtype or m.dtype) for m in maps])
        self.shapes = [(m.shape[0], *m.shape[2:]) for m in maps]  # N, H, W of each level
        self.gradients: list[tuple[Tensor, Tensor]] = []  # of reads through `used`, on their way to `rows`
        self.rows = CollectGradients.apply(self.rows, self.gradients)

    def maps(self) -> list[Tensor]:
        """The maps again, [N, C, H, W] per level: views, channels-last."""
        parts = self.rows.split([n * h * w for n, h, w in self.shapes])
        return [part.view(*shape, -1).permute(0, 3, 1, 2) for part, shape in zip(parts, self.shapes, strict=True)]

    def places(self, level: Tensor, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """level, image int64 [K] -> the row of that map's first cell, its height and its width, int64 [K] each."""
        starts = itertools.accumulate((n * h * w for n, h, w in self.shapes), initial=0)
        table = torch.tensor([(start, h, w) for start, (_, h, w) in zip(starts, self.shapes, strict=False)])
        start, height, width = table.to(level.device)[level].unbind(1)
        return start + image * height * width, height, width

    def used(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """The rows that an index reads, each once: [U, C], and the index of the same shape into them.

        Their gradient is added to that of other reads, where a read of `rows` makes a gradient of all rows.
        """
        cells, index = index.unique(return_inverse=True)
        return UsedRows.apply(self.rows, cells, self.gradients), index

    def patches(self, level: Tensor, image: Tensor, cell: Tensor, radius: int) -> tuple[Tensor, Tensor]:
        """The cells around `cell` (y W + x), all int64 [K]: [K, C, S, S] with S = 2 radius + 1, zero outside the
        map, and which of them are inside: bool [K, S, S]."""
        first, height, width = (t[:, None] for t in self.places(level, image))
        offset = torch.arange(-radius, radius + 1, device=cell.device)
        y, x = cell[:, None] // width + offset, cell[:, None] % width + offset  # [K, S]
        inside = ((y >= 0) & (y < height))[:, :, None] & ((x >= 0) & (x < width))[:, None, :]
        y, x = y.clamp(min=0).minimum(height - 1), x.clamp(min=0).minimum(width - 1)
        index = (first + y * width)[:, :, None] + x[:, None, :]  # [K, S, S]
        rows, index = self.used(index)
        patches = F.embedding(index, rows) * inside[..., None]  # [K, S, S, C]
        return patches.permute(0, 3, 1, 2), inside


def roi_align(
    table: FeatureTable,
    rois: Tensor,
    image: Tensor,
    level: Tensor,
    strides: tuple[int, ...],
    output_size: int,
    sampling_ratio: int = 2,
    few: bool = False,
) -> Tensor:
    """Sample a fixed-size feature for each RoI.

    rois [K, 4]; image int64 [K] in 0..N-1; level int64 [K]; strides of the levels in pixels; few: whether the
    gradient is better made for the rows in use alone (`FeatureTable.used`).
    Returns [K, C, S, S], channels-last. Matches torchvision.ops.roi_align(aligned=False) with
    spatial_scale = 1 / stride.
    """
    first, height, width = table.places(level, image)  # [K]
    device = rois.device
    scaled = rois / torch.tensor(strides, device=device, dtype=rois.dtype)[level][:, None]
    size = (scaled[:, 2:] - scaled[:, :2]).clamp(min=1)  # [K, 2]
    bin_size = size / output_size
    bins = torch.arange(output_size, device=device, dtype=rois.dtype)[:, None]
    parts = torch.arange(sampling_ratio, device=device, dtype=rois.dtype) + 0.5

    def points(axis: int) -> Tensor:  # the centres of R equal parts of each bin
        step = bin_size[:, axis, None, None]
        return (scaled[:, axis, None, None] + bins * step + parts * step / sampling_ratio).flatten(1)  # [K, S R]

    shape = (len(rois), output_size, 2 * sampling_ratio)
    x_cell, x_weight = (t.view(shape) for t in bilinear_taps(points(0), width[:, None]))
    y_cell, y_weight = (t.view(shape) for t in bilinear_taps(points(1), height[:, None]))

    rows = first[:, None, None] + y_cell * width[:, None, None]  # [K, S, 2 R]
    index = rows[:, :, None, :, None] + x_cell[:, None, :, None, :]  # [K, S, S, 2 R, 2 R]
    weight = y_weight[:, :, None, :, None] * x_weight[:, None, :, None, :] / sampling_ratio**2
    taps = (2 * sampling_ratio) ** 2
    weight = weight.view(-1, taps).to(table.rows.dtype)
    index = index.view(-1, taps).int()  # half the bytes to sort in the backward pass
    rows, index = table.used(index) if few else (table.rows, index)
    pooled = F.embedding_bag(index, rows, per_sample_weights=weight, mode="sum")  # [K S S, C]
    return pooled.view(len(rois), output_size, output_size, table.channels).permute(0, 3, 1, 2)
