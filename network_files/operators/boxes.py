"""Box geometry: areas, overlaps, clipping, offsets. Boxes are `x1 y1 x2 y2` in pixels, [..., 4]; N, M count boxes."""

import math
import struct

import torch
from torch import Tensor

from network_files.operators.padded import constant

# exp() of a predicted log-size is capped here, so that one wild value makes no infinite box: an image of
# 1000 pixels is 1000 / 16 times the smallest stride-16 anchor step (value as in Detectron and torchvision)
MAX_LOG_SCALE = math.log(1000.0 / 16)

# Where pixel or cell i has its value, when RoIs are pooled and masks are cut out and pasted: at i, its corner, as in
# torchvision; at i + 0.5, its centre; RoIs as the first, masks as the second. In all boxes pixel i reaches to i + 1.
GEOMETRIES = TORCHVISION, HALF_PIXEL, HALF_PIXEL_MASKS = "torchvision", "half_pixel", "half_pixel_masks"


def box_area(boxes: Tensor) -> Tensor:
    """Returns the areas [...] of boxes [..., 4]."""
    x1, y1, x2, y2 = boxes.unbind(-1)
    return (x2 - x1) * (y2 - y1)


def _columns(boxes: Tensor, dim: int) -> Tensor:
    """Returns x1 y1 x2 y2 of boxes [..., N, 4] as [4, ..., N, 1] (dim -1) or [4, ..., 1, N] (dim -2), contiguous."""
    return boxes.movedim(-1, 0).contiguous().unsqueeze(dim)  # far faster than strided ones


def _shared_area(a: Tensor, b: Tensor) -> Tensor:
    """Returns the areas [..., N, M] that boxes share, of the `_columns` of both."""
    (a_corner, a_end), (b_corner, b_end) = a.split(2), b.split(2)
    width, height = torch.minimum(a_end, b_end).sub_(torch.maximum(a_corner, b_corner)).clamp_(min=0).unbind()
    return width.mul_(height)


def _column_area(columns: Tensor) -> Tensor:
    """Returns the areas of the boxes of `_columns`, [..., N, 1] or [..., 1, N]."""
    corner, end = columns.split(2)
    width, height = (end - corner).unbind()
    return width * height


def box_intersection(a: Tensor, b: Tensor) -> Tensor:
    """Returns the areas [..., N, M] shared by each box of a [..., N, 4] and each of b [..., M, 4]."""
    return _shared_area(_columns(a, -1), _columns(b, -2))


def box_iou(a: Tensor, b: Tensor) -> Tensor:
    """Returns the intersection over union [..., N, M] of a [..., N, 4] with b [..., M, 4], in 0..1.

    It is nan for two empty boxes.
    """
    rows = _columns(a, -1)
    columns = rows.mT if b is a else _columns(b, -2)
    inter = _shared_area(rows, columns)
    return inter.div_((_column_area(rows) + _column_area(columns)).sub_(inter))


def box_ioa(a: Tensor, b: Tensor) -> Tensor:
    """Returns the share [..., N, M] of each b [..., M, 4] that lies inside each a [..., N, 4], in 0..1 (empty b: 0)."""
    return box_intersection(a, b) / box_area(b).clamp(min=torch.finfo(b.dtype).tiny)[..., None, :]


def clip_boxes(boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """Clips boxes [..., 4] to an image of size (height, width)."""
    height, width = size
    x1, y1, x2, y2 = boxes.unbind(-1)
    return torch.stack((x1.clamp(0, width), y1.clamp(0, height), x2.clamp(0, width), y2.clamp(0, height)), -1)


def clip_to_sizes(boxes: Tensor, sizes: list[tuple[int, int]]) -> Tensor:
    """Clips boxes [N, P, 4] to N images of sizes (height, width)."""
    limit = constant(tuple(((w, h, w, h),) for h, w in sizes), boxes, boxes.dtype)  # [N, 1, 4]
    return boxes.clamp(min=0).minimum(limit)


def at_least(boxes: Tensor, side: float) -> Tensor:
    """Says which boxes [..., 4] have both sides >= `side` pixels: bool [...]."""
    corner, end = boxes.split(2, -1)
    return (end - corner >= side).all(-1)


def scale_boxes(boxes: Tensor, from_size: tuple[int, int], to_size: tuple[int, int]) -> Tensor:
    """Moves boxes [N, 4] from an image of (height, width) `from_size` to its resized copy."""
    return boxes * constant(_ratios(from_size, to_size), boxes, boxes.dtype)


def scale_to_sizes(boxes: Tensor, from_sizes: list[tuple[int, int]], to_sizes: list[tuple[int, int]]) -> Tensor:
    """Moves boxes [N, P, 4] of N images as `scale_boxes` does."""
    ratios = tuple((_ratios(*sizes),) for sizes in zip(from_sizes, to_sizes, strict=True))
    return boxes * constant(ratios, boxes, boxes.dtype)  # [N, 1, 4]


def _ratios(from_size: tuple[int, int], to_size: tuple[int, int]) -> tuple[float, ...]:
    """Returns what x1 y1 x2 y2 are multiplied by, rounded to float32, as torchvision's `resize_boxes` rounds it."""
    ratios = [t / f for t, f in zip(to_size, from_size, strict=True)]
    ratio_y, ratio_x = struct.unpack("2f", struct.pack("2f", *ratios))
    return (ratio_x, ratio_y) * 2


class BoxCoder:
    """Boxes as offsets from reference boxes (R-CNN, Girshick et al. 2014, appendix C), and back.

    Law: decode(encode(boxes, reference), reference) == boxes. `weights` multiply (dx, dy, dw, dh), so that
    the offsets have a spread near one.
    """

    def __init__(self, weights: tuple[float, float, float, float] = (1.0, 1.0, 1.0, 1.0)) -> None:
        self.weights = weights

    @property
    def plain(self) -> bool:
        """Whether the weights change nothing."""
        return all(weight == 1 for weight in self.weights)

    def encode(self, boxes: Tensor, reference: Tensor) -> Tensor:
        """Returns deltas [N, 4]: boxes [N, 4] as seen from reference boxes [N, 4]."""
        (corner, end), (ref_corner, ref_end) = boxes.split(2, 1), reference.split(2, 1)
        size, ref_size = end - corner, ref_end - ref_corner  # [N, 2] width, height
        shift = (corner + 0.5 * size - ref_corner - 0.5 * ref_size) / ref_size
        deltas = torch.cat((shift, torch.log(size / ref_size)), dim=1)  # [N, 4]
        return deltas if self.plain else deltas * constant(tuple(self.weights), deltas, deltas.dtype)

    def decode(self, deltas: Tensor, reference: Tensor) -> Tensor:
        """Returns boxes [..., 4] from deltas and reference boxes [..., 4]; growth is capped at 62.5-fold a side."""
        deltas = deltas if self.plain else deltas / constant(tuple(self.weights), deltas, deltas.dtype)
        (shift, scale), (corner, end) = deltas.split(2, -1), reference.split(2, -1)
        ref_size = end - corner
        ref_half = 0.5 * ref_size
        centre = shift * ref_size + corner + ref_half
        half = ref_half * scale.clamp(max=MAX_LOG_SCALE).exp()
        return torch.cat((centre - half, centre + half), dim=-1)  # [..., 4]
