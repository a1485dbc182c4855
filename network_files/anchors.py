"""Sizes and shapes of maps -> anchors: reference boxes on the cells of each pyramid level, [H W R, 4] a level.

H x W cells, R anchors per cell.
"""

import torch
from torch import Tensor

from backbone.tracing import is_traced
from network_files.operators.padded import at_least_float32


def cell_anchors(size: int, aspect_ratios: tuple[float, ...]) -> Tensor:
    """Returns anchors of `size`^2 pixels around the origin, one per aspect ratio (height / width): [R, 4].

    Corners are rounded to whole pixels, as in the published models.
    """
    heights = torch.sqrt(torch.tensor(aspect_ratios, dtype=torch.float32, device="cpu"))  # of a model on meta too
    half_w, half_h = (1 / heights) * size / 2, heights * size / 2
    return torch.stack((-half_w, -half_h, half_w, half_h), 1).round()


class AnchorGrid:
    """Anchors of every level for images of one padded shape, kept from the last call.

    sizes: one anchor size in pixels per level; aspect_ratios: the same for every level.
    """

    def __init__(self, sizes: tuple[int, ...], aspect_ratios: tuple[float, ...]) -> None:
        self.cells = [cell_anchors(size, aspect_ratios) for size in sizes]
        self.per_cell = len(aspect_ratios)
        self._kept: tuple[tuple, list[Tensor]] = ((), [])  # key and anchors in one: other threads see both or neither
        self._joined: tuple[list[Tensor], Tensor | None] = ([], None)  # anchors, and all of them one after another

    def __call__(self, maps: list[Tensor], padded: tuple[int, int]) -> list[Tensor]:
        """Returns the anchors [H W R, 4] of each level, cell by cell along rows, in pixels.

        maps: [N, C, H, W] per level, of images padded to (height, width). The anchors have the maps' device and type,
        at least float32: a bf16 coordinate above 256 is off by pixels. A trace makes them anew and keeps none: its own
        may be fake, and kept ones would be constants of it.
        """
        dtype = at_least_float32(maps[0].dtype)
        key = (maps[0].device, dtype, padded, *(m.shape[-2:] for m in maps))
        traced = is_traced(maps[0])
        kept, anchors = self._kept
        if traced or key != kept:
            anchors = [
                self._level(cell.to(m.device, dtype), m.shape[-2:], padded)
                for cell, m in zip(self.cells, maps, strict=True)
            ]
            if not traced:
                self._kept = key, anchors
        return anchors

    def joined(self, anchors: list[Tensor]) -> Tensor:
        """Returns the anchors of all levels [A, 4], kept as long as these are."""
        of, whole = self._joined
        if of is not anchors:
            whole = torch.cat(anchors)
            if not is_traced(whole):
                self._joined = anchors, whole
        return whole

    @staticmethod
    def _level(cell: Tensor, grid: tuple[int, int], padded: tuple[int, int]) -> Tensor:
        y = torch.arange(grid[0], device=cell.device, dtype=cell.dtype) * (padded[0] // grid[0])
        x = torch.arange(grid[1], device=cell.device, dtype=cell.dtype) * (padded[1] // grid[1])
        y, x = torch.meshgrid(y, x, indexing="ij")
        corner = torch.stack((x, y, x, y), -1)  # [H, W, 4]
        return (corner[:, :, None] + cell).reshape(-1, 4)  # [H W R, 4]
