"""The RPN's head on whole maps, with a gradient at the sampled anchors alone where these are few.

Law: logits, deltas and the gradients of maps and weights are those of `head(maps)`, indexed at the anchors. The losses
read a few hundred anchors an image of up to some hundred thousand, so the head's gradient is zero at nearly every cell.
The head then runs on whole maps without gradient, for the proposals, and again with gradient on the patch of cells that
each sampled anchor depends on. N images, R anchors per cell, A_l = H W R anchors of a level, S sampled anchors.
"""

import itertools
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from network_files.operators.padded import at_least_float32, cat_parts, constant
from network_files.operators.roi_align import FeatureTable


class Predictions(NamedTuple):
    """What the head says of every anchor, at least float32; `at` says it of some, with gradient."""

    logits: list[Tensor]  # [N, A_l] per level
    deltas: list[Tensor]  # [N, A_l, 4] per level
    at: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]  # batch index, anchor over all levels, [S] -> [S], [S, 4]
    joined_deltas: Callable[[], Tensor]  # [N, A, 4], of all levels


def predict(head: nn.Module, maps: list[Tensor], table: FeatureTable, samples: int) -> Predictions:
    """Runs an RPNHead on maps [N, C, H, W], which are those of the table.

    samples: how many anchors of the batch `at` will be asked for at most; 0: none.
    """
    sparse = samples > 0 and torch.is_grad_enabled() and sampling_pays(head, samples, maps)
    with torch.set_grad_enabled(torch.is_grad_enabled() and not sparse):
        logits, deltas = head(maps)
    if sparse:  # older versions of torch would take the weights again that autocast has cast without gradient
        torch.clear_autocast_cache()
    # under autocast the head speaks bf16; boxes and losses want at least float32
    dtype = at_least_float32(logits[0].dtype)
    logits, deltas = [t.to(dtype) for t in logits], [t.to(dtype) for t in deltas]

    def dense_at(batch_index: Tensor, anchor: Tensor) -> tuple[Tensor, Tensor]:
        return cat_parts(logits, 1)[batch_index, anchor], cat_parts(deltas, 1)[batch_index, anchor]

    def sparse_at(batch_index: Tensor, anchor: Tensor) -> tuple[Tensor, Tensor]:
        logit, delta = predict_anchors(head, table, batch_index, anchor, [t.shape[1] for t in logits])
        return logit.to(dtype), delta.to(dtype)

    return Predictions(logits, deltas, sparse_at if sparse else dense_at, lambda: cat_parts(deltas, 1))


def sampling_pays(head: nn.Module, samples: int, maps: list[Tensor]) -> bool:
    """Says whether a gradient at the samples costs less than a dense one, by count of convolved cells."""
    depth = len(head.conv)
    patch = sum((2 * i + 1) ** 2 for i in range(depth))  # cells convolved for each sample
    return 4 * samples * patch <= depth * sum(m[:, 0].numel() for m in maps)


def predict_anchors(
    head: nn.Module, table: FeatureTable, batch_index: Tensor, anchor: Tensor, counts: list[int]
) -> tuple[Tensor, Tensor]:
    """Returns logits [S] and deltas [S, 4] of some anchors, numbered over levels of so many (`counts`) each."""
    starts = (0, *itertools.accumulate(counts))
    level = torch.bucketize(anchor, constant(starts[1:], anchor), right=True)
    anchor = anchor - constant(starts, anchor)[level]
    per_cell = head.cls_logits.out_channels
    own = anchor % per_cell
    logits, deltas = predict_cells(head, table, level, batch_index, anchor // per_cell)
    row = torch.arange(len(anchor), device=anchor.device)
    return logits[row, own], deltas[row, own]


def predict_cells(
    head: nn.Module, table: FeatureTable, level: Tensor, batch_index: Tensor, cell: Tensor
) -> tuple[Tensor, Tensor]:
    """Returns logits [S, R] and deltas [S, R, 4] of some cells (y W + x), each computed from its patch.

    level, batch_index, cell: int64 [S].
    """
    x, inside = patches(table, level, batch_index, cell, radius=len(head.conv))  # [S, C, 2 depth + 1, 2 depth + 1]
    for conv, relu in head.conv:
        inside = inside[:, 1:-1, 1:-1]
        # a hidden cell outside the map is the padding of the next convolution: zero
        x = relu(convolve(x, conv.weight, conv.bias)) * inside[:, None]
    return head.cls_logits(x).flatten(1), head.bbox_pred(x).flatten(1).unflatten(1, (-1, 4))


def convolve(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Convolves x [S, C, D, D] without padding; where that leaves one cell of each, as a matrix product.

    With gradients the product takes 0.2 to 0.3 of the convolution's time: S 512 or 1,024, 64 or 256 channels, one
    thread of an AMD EPYC with AVX2, torch 2.14.
    """
    if x.shape[2:] != weight.shape[2:]:
        return F.conv2d(x, weight, bias)
    rows, weight = (t.permute(0, 2, 3, 1).flatten(1) for t in (x, weight))  # in their order in memory
    return F.linear(rows, weight, bias)[:, :, None, None]


def patches(
    table: FeatureTable, level: Tensor, batch_index: Tensor, cell: Tensor, radius: int
) -> tuple[Tensor, Tensor]:
    """Reads the cells around some cells (y W + x): [S, C, D, D] with D = 2 radius + 1, zero outside the map.

    level, batch_index, cell: int64 [S]. Also returns which of the cells are inside: bool [S, D, D].
    """
    first, sides = table.locate(level, batch_index)  # [S, 1], [S, 2]
    width, height = sides.split(1, 1)
    offset = torch.arange(-radius, radius + 1, device=cell.device)
    y, x = cell[:, None] // width + offset, cell[:, None] % width + offset  # [S, D]
    inside = ((y >= 0) & (y < height))[:, :, None] & ((x >= 0) & (x < width))[:, None, :]
    y, x = y.clamp(min=0).minimum(height - 1), x.clamp(min=0).minimum(width - 1)
    rows, index = table.sparse((first + y * width)[:, :, None] + x[:, None, :])  # [U, C], [S, D, D]
    cells = F.embedding(index, rows) * inside[..., None]  # [S, D, D, C]
    return cells.permute(0, 3, 1, 2), inside
