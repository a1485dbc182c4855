"""RoIAlign (Mask R-CNN, section 3) over all levels and images in one weighted gather.

Shapes: N images, K RoIs, C channels, S = output_size, R = sampling_ratio. RoIs are `x1 y1 x2 y2` in
pixels of the resized images. Each of the S x S bins of a RoI is the mean of R x R points, each point a
bilinear mix of 4 cells: a weighted sum of 4 R^2 rows of a table that holds the pyramid's cells as rows.
"""

import itertools

import torch
import torch.nn.functional as F
from torch import Tensor

from backbone.tracing import is_traced
from network_files.operators.boxes import HALF_PIXEL, TORCHVISION, box_area
from network_files.operators.padded import constant, waits_are_cheap
from network_files.operators.sparse_rows import SparseRows

AT_ONCE = 64  # RoIs whose features are gathered at once where the table is in parts: a few MiB


def bilinear_taps(position: Tensor, length: Tensor | int) -> tuple[Tensor, Tensor]:
    """Returns the two cells that a point on an axis reads, int64 [..., 2], and their weights [..., 2].

    position [...]: in cells, cell i at i; length: cells of the axis. Points less than one cell outside are moved to
    the border; farther ones weigh nothing (torchvision's rule).
    """
    inside = (position >= -1) & (position <= length)
    length = length if isinstance(length, Tensor) else torch.full((), length, device=position.device)
    last = length - 1
    position = position.clamp(min=0).minimum(last)
    low = position.floor()
    fraction = position - low
    low = low.long()
    high = torch.minimum(low + 1, last)
    weights = torch.stack((1 - fraction, fraction), -1) * inside[..., None]
    return torch.stack((low, high), -1), weights


def roi_levels(boxes: Tensor, levels: int, canonical_scale: int = 224, canonical_level: int = 4) -> Tensor:
    """Returns the pyramid level of each RoI, int64 [K], 0 = stride 4: FPN's equation 1, clipped to 0..levels - 1.

    boxes [K, 4]. A RoI of canonical_scale^2 pixels goes to level 4 (stride 16).
    """
    side = box_area(boxes).sqrt()
    # 1e-6: a side of exactly 224 must not fall to the level below by rounding (as torchvision)
    level = canonical_level + torch.log2(side / canonical_scale) + 1e-6
    return level.clamp(2, levels + 1).long() - 2


class FeatureTable(SparseRows):
    """The pyramid's cells as rows of one table, to be read in any order.

    maps: one [N, C, H, W] per level, best channels-last (the table is then one copy); strides: pixels between the
    cells of each level. `rows` [sum N H W, C] holds level by level, image by image, the cells along map rows, as
    `dtype` (None: that of the maps). geometry: where a cell has its value. For maps without a gradient a CPU, which
    may gather level by level, makes no copy: `parts` are each level's rows, in the memory of channels-last maps.
    """

    def __init__(
        self,
        maps: list[Tensor],
        strides: tuple[int, ...] = (4, 8, 16, 32, 64),
        dtype: torch.dtype | None = None,
        geometry: str = TORCHVISION,
    ) -> None:
        channels = maps[0].shape[1]
        parts = [m.permute(0, 2, 3, 1).reshape(-1, channels).to(dtype or m.dtype) for m in maps]
        super().__init__(*parts)
        with_grad = torch.is_grad_enabled() and any(m.requires_grad for m in maps)
        if with_grad or is_traced(maps[0]) or not waits_are_cheap(maps[0].device):
            _ = self.rows  # joined at once
        self.channels, self.strides, self.geometry, self.dtype = channels, strides, geometry, parts[0].dtype
        self.shapes = [(m.shape[0], *m.shape[2:]) for m in maps]  # N, H, W of each level
        self.starts = list(itertools.accumulate((n * h * w for n, h, w in self.shapes), initial=0))
        places = tuple((start, h * w, w, h) for start, (_, h, w) in zip(self.starts, self.shapes, strict=False))
        self._places = constant(places, maps[0])  # [L, 4]: first row, cells, width, height of each level

    def maps(self) -> list[Tensor]:
        """Returns the maps again, [N, C, H, W] per level: views, channels-last."""
        parts = self.parts or self.rows.split([n * h * w for n, h, w in self.shapes])
        return [part.view(*shape, -1).permute(0, 3, 1, 2) for part, shape in zip(parts, self.shapes, strict=True)]

    def locate(self, level: Tensor, batch_index: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the row of the first cell of some maps, int64 [K, 1], and their width and height, int64 [K, 2].

        level, batch_index: int64 [K], which maps.
        """
        start, cells, sides = self._places[level].split((1, 1, 2), 1)
        return start + batch_index.unsqueeze(1) * cells, sides


def roi_align(
    table: FeatureTable,
    rois: Tensor,
    batch_index: Tensor,
    level: Tensor,
    output_size: int,
    sampling_ratio: int = 2,
    sparse_grad: bool = False,
) -> Tensor:
    """Samples a feature of fixed size for each RoI: [K, C, S, S], channels-last.

    rois [K, 4]; batch_index int64 [K], the image of each; level int64 [K], the level that each reads; sparse_grad:
    makes a gradient of the rows in use alone (`SparseRows`), where the default makes one of all rows.
    Matches torchvision.ops.roi_align with spatial_scale = 1 / stride: aligned=False where the table's geometry is
    not "half_pixel" (a RoI then has sides of at least a cell), aligned=True where it is.
    """
    first, sides = table.locate(level, batch_index)  # [K, 1], [K, 2]
    scaled = rois / constant(tuple((stride,) for stride in table.strides), rois, rois.dtype)[level]
    corner, end = scaled.reshape(-1, 2, 2, 1, 1).unbind(1)  # [K, 2, 1, 1]
    size = end - corner
    if table.geometry == HALF_PIXEL:
        corner = corner - 0.5
    else:
        size = size.clamp(min=1)
    # the centres of R equal parts of each bin along both axes, in cells
    step = size / output_size
    bins = constant(tuple((i,) for i in range(output_size)), rois, rois.dtype)  # [S, 1]
    parts = constant(tuple(i + 0.5 for i in range(sampling_ratio)), rois, rois.dtype)
    points = corner + bins * step + parts * step / sampling_ratio  # [K, 2, S, R]

    cells, weights = bilinear_taps(points, sides.view(-1, 2, 1, 1))  # [K, 2, S, R, 2]
    (x_cell, y_cell), (x_weight, y_weight) = cells.unbind(1), weights.unbind(1)
    rows = first.view(-1, 1, 1, 1) + y_cell * sides[:, 0].view(-1, 1, 1, 1)  # [K, S, R, 2]
    taps = 2 * sampling_ratio
    down, across = (len(rois), output_size, 1, taps, 1), (len(rois), 1, output_size, 1, taps)
    index = rows.view(down) + x_cell.reshape(across)  # [K, S, S, 2 R, 2 R]
    weight = y_weight.reshape(down) * x_weight.reshape(across) / sampling_ratio**2
    weight = weight.flatten().to(table.dtype)
    index = index.flatten().int()  # half the bytes to sort in the backward pass
    shape = len(rois), output_size, output_size, table.channels
    if table.parts:
        return _from_parts(table, level, index, weight, shape).permute(0, 3, 1, 2)
    few = sparse_grad and waits_are_cheap(rois.device)  # else the rows in use are not known
    rows, index = table.sparse(index) if few else (table.rows, index)
    return _weighted_sums(rows, index, weight, taps**2).view(shape).permute(0, 3, 1, 2)


def _weighted_sums(rows: Tensor, index: Tensor, weight: Tensor, count: int) -> Tensor:
    """Returns the weighted sum of the rows of each `count` successive indices: index, weight [B count] -> [B, C]."""
    bags = torch.arange(0, len(index), count, dtype=index.dtype, device=index.device)  # where each begins
    return F.embedding_bag(index, rows, bags, per_sample_weights=weight, mode="sum")


def _from_parts(table: FeatureTable, level: Tensor, index: Tensor, weight: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Gathers from each level's rows, some RoIs at a time, what `_weighted_sums` does from all rows: [K, S, S, C]."""
    rois, bins, channels = shape[0], shape[1] * shape[2], shape[3]
    pooled = weight.new_empty(rois, bins, channels)
    index, weight = (t.view(rois, -1) for t in (index, weight)) if rois else (index, weight)
    for i, (rows, start) in enumerate(zip(table.parts, table.starts, strict=False)):
        for some in (level == i).nonzero()[:, 0].split(AT_ONCE):
            if len(some):
                own = index.index_select(0, some).sub_(start).flatten()
                sums = _weighted_sums(rows, own, weight.index_select(0, some).flatten(), index.shape[1] // bins)
                pooled.index_copy_(0, some, sums.view(-1, bins, channels))
    return pooled.view(shape)
