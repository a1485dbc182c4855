"""Instance masks without full-size float images: training targets, pasting, run-length codes.

Shapes: N masks of one H x W image, P RoIs, D detections, M = 28 cells a side.
"""

import itertools
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from network_files.operators.boxes import TORCHVISION
from network_files.operators.cropped_masks import CroppedMasks, nearest_source
from network_files.operators.roi_align import bilinear_taps

CHUNK = 125_000  # padded mask pixels held at once: few stay in a CPU's cache
CHUNK_GPU = 16_000_000  # many keep a GPU busy
TINY = 1e-6  # pixels: the least side of a box that something is divided by


def mask_targets(
    masks: list[CroppedMasks],
    rois: list[Tensor],
    matched: list[Tensor],
    resized: list[tuple[int, int]],
    cells: int,
    geometry: str,
) -> Tensor:
    """Returns the target of the mask branch for each RoI: the share of set pixels in each of its cells.

    Per image: masks; rois [P_i, 4] in the image resized to (height, width) `resized`; matched int64
    [P_i], the mask of each RoI. Returns [P, cells, cells] in 0..1, of the rois' type, P over all images.

    The share is separable: rows @ crop @ columns^T, with two small matrices per RoI. Where masks are
    half-pixel, the pixels of the original mask count by the area that a cell covers of each. "torchvision" matches
    torchvision, which resizes the full-size masks (nearest) and RoIAligns them with adaptive sampling.
    """
    pixels = torch.cat([m.pixels for m in masks])
    starts = itertools.accumulate((len(m.pixels) for m in masks), initial=0)
    offsets = torch.cat([m.offsets()[i] + start for m, i, start in zip(masks, matched, starts, strict=False)])  # [P]
    boxes = torch.cat([m.boxes[i] for m, i in zip(masks, matched, strict=True)])  # [P, 4]
    counts = torch.tensor([len(r) for r in rois], device=boxes.device)
    rois = torch.cat(rois)
    sides = torch.tensor([[*m.size, *size] for m, size in zip(masks, resized, strict=True)], device=boxes.device)
    sides = sides.repeat_interleave(counts, 0, output_size=len(rois))  # [P, 4] original and resized height, width
    sizes = torch.cat([m.sides()[i] for m, i in zip(masks, matched, strict=True)])  # [P, 2]
    kept = sizes if any(m.limit for m in masks) else sizes[:0]
    axis_weights = _sampled_weights if geometry == TORCHVISION else _covered_weights
    rows = axis_weights(rois[:, 1::2], boxes[:, 1::2], kept[:, 1], sides[:, 0::2], cells)
    columns = axis_weights(rois[:, 0::2], boxes[:, 0::2], kept[:, 0], sides[:, 1::2], cells)
    targets = rois.new_zeros(len(rois), cells, cells)
    for some in _alike(sizes):
        crops = _padded_crops(pixels, offsets[some], *sizes[some].unbind(1)).to(rois.dtype)  # [p, h, w]
        targets[some] = _product(rows(some, crops.shape[1]), crops, columns(some, crops.shape[2]))
    return targets


def _alike(sizes: Tensor) -> Iterator[Tensor]:
    """Yields groups of masks, int64 indices, that pad to at most CHUNK (CHUNK_GPU) pixels.

    sizes [N, 2]: width and height of each. Similar sizes go together, so that little is padded.
    """
    pairs, chunk = sizes.tolist(), CHUNK if sizes.device.type == "cpu" else CHUNK_GPU
    order = sorted(range(len(pairs)), key=lambda i: -max(pairs[i]))
    start = 0
    while start < len(order):
        width, height = pairs[order[start]]
        stop = start + 1
        while stop < len(order):
            width, height = max(width, pairs[order[stop]][0]), max(height, pairs[order[stop]][1])
            if (stop + 1 - start) * width * height > chunk:
                break
            stop += 1
        yield torch.tensor(order[start:stop], device=sizes.device)
        start = stop


def _product(rows: Tensor, middle: Tensor, columns: Tensor) -> Tensor:
    """Returns rows @ middle @ columns^T in their own type, also where autocast would multiply in bf16."""
    with torch.autocast(middle.device.type, enabled=False):
        return rows @ middle @ columns.mT


def _padded_crops(pixels: Tensor, offsets: Tensor, width: Tensor, height: Tensor) -> Tensor:
    """Returns crops of different sizes, padded with zeros to the largest: uint8 [p, h, w]."""
    if not len(pixels):
        return pixels.new_zeros(len(offsets), 1, 1)
    y = torch.arange(max(int(height.max()), 1), device=pixels.device)
    x = torch.arange(max(int(width.max()), 1), device=pixels.device)
    index = offsets[:, None, None] + y[:, None] * width[:, None, None] + x  # [p, h, w]
    inside = (y < height[:, None])[:, :, None] & (x < width[:, None])[:, None, :]
    return pixels[index.clamp_(max=len(pixels) - 1)] * inside


def _covered_weights(rois: Tensor, crops: Tensor, kept: Tensor, sides: Tensor, cells: int) -> Callable:
    """Returns one axis of `mask_targets` for "half_pixel"; arguments and result as of `_sampled_weights`.

    A weight is the share of a cell that a pixel of the crop covers; of a limited crop, that what is kept covers.
    """

    def weights(some: Tensor, length: int) -> Tensor:
        source, resized = sides[some].to(rois.dtype).unbind(1)
        start, end = crops[some].to(rois.dtype).unbind(1)
        lo, hi = (rois[some] * (source / resized)[:, None]).unbind(1)  # in the original image
        count = kept[some] if len(kept) else crops[some, 1] - crops[some, 0]
        edge = torch.arange(length + 1, device=rois.device).minimum(count[:, None])  # [p, length + 1]
        edge = edge * ((end - start) / count.clamp(min=1))[:, None] + (start - lo)[:, None]
        edge = edge * (cells / (hi - lo).clamp(min=TINY))[:, None]  # in cells
        cell = torch.arange(cells, device=rois.device)[:, None]
        return edge[:, None].clamp(cell, cell + 1).diff()

    return weights


def _sampled_weights(rois: Tensor, crops: Tensor, kept: Tensor, sides: Tensor, cells: int) -> Callable:
    """Returns one axis of `mask_targets` for "torchvision": (which RoIs, crop length) -> weights [p, cells, length].

    rois, crops [P, 2]: start and end; kept int64 [P]: how many cells the crop's pixels are kept as (empty: none are
    limited); sides int64 [P, 2]: the image's original and resized length. Each cell averages ceil(RoI length /
    cells) bilinear samples; each sample reads two resized pixels; each of these is one source pixel, which counts if
    it lies in the crop.
    """

    def weights(some: Tensor, length: int) -> Tensor:
        lo, extent = rois[some, 0], (rois[some, 1] - rois[some, 0]).clamp(min=1)  # [p]
        samples = torch.ceil(extent / cells)  # per cell
        k = torch.arange(max(int(samples.max()), 1), device=rois.device)
        cell = torch.arange(cells, device=rois.device)[:, None]
        size = (extent / cells)[:, None, None]
        # in torchvision's order of operations, so that float32 rounds alike
        position = lo[:, None, None] + cell * size + (k + 0.5) * size / samples[:, None, None]  # [p, cells, k]
        source, resized = sides[some, :, None, None].unbind(1)
        pixel, weight = bilinear_taps(position, resized)  # [p, cells, k, 2]
        weight = weight * (k < samples[:, None, None])[..., None] / samples[:, None, None, None]
        start, end = crops[some, :, None, None, None].unbind(1)
        row = nearest_source(pixel, source[..., None], resized[..., None])
        weight = weight * ((row >= start) & (row < end))
        out = weight.new_zeros(len(some), cells, length)
        place = row - start
        if len(kept):  # else spared: it costs a tenth more
            place = place * kept[some, None, None, None] // (end - start).clamp(min=1)
        return out.scatter_add_(2, place.clamp(0, length - 1).flatten(2), weight.flatten(2))

    return weights


class _Place(NamedTuple):
    """Where masks lie in an image, all [D, 2], x and y.

    origin, in pixels: where the mask begins; ratio: its cells per pixel; first, end int64: the first pixel that may be
    set, and the one behind the last.
    """

    origin: Tensor
    ratio: Tensor
    first: Tensor
    end: Tensor


def _place_of_padded(boxes: Tensor, cells: int) -> _Place:
    """Returns the place of masks that are padded by a cell: their boxes [D, 4] grow with them, to whole pixels."""
    centre, half = (boxes[:, :2] + boxes[:, 2:]) * 0.5, (boxes[:, 2:] - boxes[:, :2]) * 0.5
    half = half * (cells / (cells - 2))
    start, last = (centre - half).to(torch.int64), (centre + half).to(torch.int64)  # [D, 2]
    return _Place(start, cells / (last - start + 1).clamp(min=1).double(), start, last + 1)


def _place_of_exact(boxes: Tensor, cells: int) -> _Place:
    """Returns the place of masks that fill their boxes [D, 4]: the pixels whose centres lie in them."""
    start, end = boxes[:, :2], boxes[:, 2:]
    ratio = cells / (end - start).clamp(min=TINY)
    return _Place(start, ratio, (start - 0.5).ceil().to(torch.int64), (end - 0.5).floor().to(torch.int64) + 1)


def _pasted_crops(
    probs: Tensor, boxes: Tensor, size: tuple[int, int], geometry: str, threshold: float | None = None
) -> Iterator[tuple[int, int, int, Tensor]]:
    """Yields each detection's mask at the image's resolution: its index, x, y, and probabilities [h, w] from there on.

    probs [D, m, m], boxes [D, 4]. A pixel has the value at its centre, bilinear between the centres of cells. The
    outermost cells reach to the box's border, and nothing is set outside. For "torchvision" the mask is padded by a
    cell, its box grown with it and truncated to whole pixels, as in its `paste_masks_in_image`. With a threshold the
    crops are bool, on the CPU. They come in no particular order.
    """
    place_of, padding = (_place_of_padded, 1) if geometry == TORCHVISION else (_place_of_exact, 0)
    probs = F.pad(probs, [padding] * 4)
    cells = probs.shape[-1]
    place = place_of(boxes, cells)
    limit = place.first.new_tensor([size[1], size[0]])
    first = place.first.clamp(min=0).minimum(limit)  # the first visible pixel of each axis, [D, 2]
    visible = (place.end.minimum(limit) - first).clamp(min=0)
    ratio, origin = place.ratio.to(probs.dtype), place.origin.to(probs.dtype)
    columns, rows = (_resize_weights(*t, cells) for t in zip(first.T, origin.T, ratio.T, visible.T, strict=True))
    places = torch.cat((first, visible), 1).tolist()
    for some in _alike(visible):
        pasted = _product(rows(some), probs[some], columns(some))  # [p, height, width], padded
        pasted = pasted if threshold is None else (pasted > threshold).cpu()
        for i, crop in zip(some.tolist(), pasted, strict=True):
            x, y, width, height = places[i]
            yield i, x, y, crop[:height, :width]


def _resize_weights(first: Tensor, origin: Tensor, ratio: Tensor, visible: Tensor, cells: int) -> Callable:
    """Returns one axis of `_pasted_crops`: a function (which detections) -> bilinear weights [p, pixels, cells].

    All [D]: the first visible pixel, where the mask begins, cells per pixel, and how many pixels are visible.
    """

    def weights(some: Tensor) -> Tensor:
        pixel = torch.arange(int(visible[some].max()), device=first.device) + first[some][:, None]
        position = ((pixel - origin[some][:, None] + 0.5) * ratio[some][:, None] - 0.5).clamp(min=0)  # [p, pixels]
        cell, weight = bilinear_taps(position, cells)  # [p, pixels, 2]
        return weight.new_zeros(*position.shape, cells).scatter_add_(2, cell, weight)

    return weights


def paste_masks(probs: Tensor, boxes: Tensor, size: tuple[int, int], geometry: str) -> Tensor:
    """Pastes masks probs [D, m, m] in 0..1 into their boxes [D, 4] of a (H, W) image: [D, 1, H, W]."""
    out = probs.new_zeros(len(probs), 1, *size)
    for i, x, y, crop in _pasted_crops(probs, boxes, size, geometry):
        out[i, 0, y : y + crop.shape[0], x : x + crop.shape[1]] = crop
    return out


def mask_probs_to_bool(
    probs: Tensor, boxes: Tensor, size: tuple[int, int], geometry: str, threshold: float = 0.5
) -> CroppedMasks:
    """Pastes masks probs [D, m, m] into boxes [D, 4], sets them where > threshold, and returns CPU crops."""
    crops, corners = [None] * len(probs), torch.zeros(len(probs), 4, dtype=torch.int64)
    for i, x, y, crop in _pasted_crops(probs, boxes, size, geometry, threshold):
        crops[i], corners[i] = crop, torch.tensor([x, y, 0, 0])
    return CroppedMasks.from_crops(crops, corners, size)


def encode_masks(
    probs: Tensor, boxes: Tensor, size: tuple[int, int], geometry: str, threshold: float = 0.5
) -> list[dict]:
    """Pastes masks probs [D, m, m] into boxes [D, 4] of a (H, W) image, set where > threshold, as COCO RLE.

    Returns D dicts {"size": [H, W], "counts": str}; equal to pycocotools' encoding of the full-size masks.
    """
    codes = [None] * len(probs)
    for i, x, y, crop in _pasted_crops(probs, boxes, size, geometry, threshold):
        codes[i] = encode_crop(crop, x, y, size)
    return codes


def encode_cropped(masks: CroppedMasks) -> list[dict]:
    """Returns masks on the CPU as COCO RLE, as `encode_masks`."""
    corners = masks.boxes[:, :2].tolist()
    return [encode_crop(crop.bool(), *corner, masks.size) for crop, corner in zip(masks.crops(), corners, strict=True)]


def encode_crop(crop: Tensor, x: int, y: int, size: tuple[int, int]) -> dict:
    """Returns the COCO RLE of a mask whose set pixels are crop [h, w] (bool) at (x, y) of a (H, W) image."""
    import numpy as np
    from pycocotools import mask as coco_mask

    height, width = size
    columns = np.ascontiguousarray(crop.numpy().T)  # [w, h]: RLE runs down the columns
    if 0 < columns.shape[1] < height:  # a column ends before the next begins: part them by an unset pixel
        columns = np.pad(columns, ((0, 0), (0, 1)))
    flat = columns.reshape(-1)
    change = np.flatnonzero(np.diff(flat, prepend=False, append=False))  # where runs begin and end, by turns
    stride = max(columns.shape[1], 1)
    # the end of a run may be the parting pixel below the image's last row: same place as the next column's top
    position = (x + change // stride) * height + y + change % stride
    counts = np.diff(position, prepend=0, append=height * width)
    if len(counts) > 1 and counts[-1] == 0:  # the mask ends in a set pixel: no empty run after it
        counts = counts[:-1]
    rle = coco_mask.frPyObjects({"size": [height, width], "counts": counts.tolist()}, height, width)
    return {"size": [height, width], "counts": rle["counts"].decode()}
