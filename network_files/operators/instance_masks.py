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
from network_files.operators.padded import cat_parts, from_host, image_of_each, waits_are_cheap
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
    counts, of_batch, device = [len(r) for r in rois], joined(masks), rois[0].device
    starts = itertools.accumulate(map(len, masks), initial=0)
    frames = [(start, *m.size[::-1], *size[::-1]) for start, m, size in zip(starts, masks, resized, strict=False)]
    frames = from_host(torch.tensor(frames)[image_of_each(counts)], device)  # [P, 5]
    rois = cat_parts(rois)  # [P, 4]
    which, sides = cat_parts(matched) + frames[:, 0], frames[:, 1:]  # of all the masks; [P, 4]
    about = torch.cat((of_batch.offsets()[:-1, None], of_batch.sides(), of_batch.boxes), 1)  # [M, 7]
    about = torch.cat((from_host(about, device)[which], sides), 1)  # [P, 11]
    pixels = from_host(of_batch.pixels, device)
    samples = torch.ceil((rois[:, 2:] - rois[:, :2]).clamp(min=1) / cells).long()  # per cell: as in _sampled_weights
    known = torch.cat((about[:, 1:3], samples), 1).tolist()  # the host waits for these alone
    weights_of = _sampled_weights if geometry == TORCHVISION else _covered_weights
    targets = rois.new_zeros(len(rois), cells, cells)
    for some, here in _alike(known, device):
        wide, high, across, down = (max(most, 1) for most in map(max, zip(*here, strict=True)))
        offset, kept, crop, frame = about[some].split((1, 2, 4, 4), 1)
        crops = _padded_crops(pixels, offset, kept, (high, wide)).to(rois.dtype)  # [p, h, w]
        most = cells, max(wide, high), max(across, down)
        columns, rows = weights_of(rois[some], crop, None if of_batch.limit is None else kept, frame, most).unbind(1)
        targets[some] = _product(rows[..., :high].contiguous(), crops, columns[..., :wide].contiguous())
    return targets


def joined(masks: list[CroppedMasks]) -> CroppedMasks:
    """Returns the masks of several images as those of one, whose size means nothing."""
    if len(masks) == 1:
        return masks[0]
    limits = {m.limit for m in masks if len(m)}
    if len(limits) > 1:  # as enlarged as the least limited
        masks = [
            CroppedMasks(torch.cat([c.reshape(-1) for c in m.crops()] or [m.pixels]), m.boxes, m.size) for m in masks
        ]
        limits = {None}
    pixels, boxes = (torch.cat(parts) for parts in zip(*((m.pixels, m.boxes) for m in masks), strict=True))
    return CroppedMasks(pixels, boxes, masks[0].size, *limits)


def _alike(known: list[list[int]], device: torch.device) -> Iterator[tuple[Tensor, list[list[int]]]]:
    """Yields groups of masks, int64 indices, that pad to at most CHUNK (CHUNK_GPU) pixels, and what is known of them.

    known: width, height and maybe more of each. Similar sizes go together, so that little is padded.
    """
    chunk = CHUNK if waits_are_cheap(device) else CHUNK_GPU
    order = sorted(range(len(known)), key=lambda i: -max(known[i][:2]))
    start, groups = 0, []
    while start < len(order):
        width, height = known[order[start]][:2]
        stop = start + 1
        while stop < len(order):
            width, height = max(width, known[order[stop]][0]), max(height, known[order[stop]][1])
            if (stop + 1 - start) * width * height > chunk:
                break
            stop += 1
        groups.append(order[start:stop])
        start = stop
    for some, group in zip(from_host(order, device, torch.int64).split([len(g) for g in groups]), groups, strict=True):
        yield some, [known[i] for i in group]


def _product(rows: Tensor, middle: Tensor, columns: Tensor) -> Tensor:
    """Returns rows @ middle @ columns^T in their own type, also where autocast would multiply in bf16."""
    with torch.autocast(middle.device.type, enabled=False):
        return torch.bmm(torch.bmm(rows, middle), columns.mT)


def _padded_crops(pixels: Tensor, offsets: Tensor, sizes: Tensor, largest: tuple[int, int]) -> Tensor:
    """Returns crops of sizes (width, height) [p, 2], padded with zeros to the largest (h, w): uint8 [p, h, w].

    offsets [p, 1]: where in pixels each begins.
    """
    if not len(pixels):
        return pixels.new_zeros(len(offsets), 1, 1)
    width, height = sizes.unbind(1)
    y, x = (torch.arange(side, device=pixels.device) for side in largest)
    index = offsets[:, :, None] + y[:, None] * width[:, None, None] + x  # [p, h, w]
    inside = (y < height[:, None])[:, :, None] & (x < width[:, None])[:, None, :]
    return pixels[index.clamp_(max=len(pixels) - 1)] * inside


def _covered_weights(
    rois: Tensor, crops: Tensor, kept: Tensor | None, sides: Tensor, most: tuple[int, int, int]
) -> Tensor:
    """Returns the two matrices of `mask_targets` for "half_pixel"; arguments and result as of `_sampled_weights`.

    A weight is the share of a cell that a pixel of the crop covers; of a limited crop, that what is kept covers.
    """
    cells, length, _ = most
    source, resized = sides.view(-1, 2, 2).to(rois.dtype).unbind(1)  # [p, 2]
    first, last = crops.view(-1, 2, 2).unbind(1)
    start, end = first.to(rois.dtype), last.to(rois.dtype)
    lo, hi = (rois.view(-1, 2, 2) * (source / resized)[:, None]).unbind(1)  # in the original image
    count = last - first if kept is None else kept
    edge = torch.arange(length + 1, device=rois.device).minimum(count[..., None])  # [p, 2, length + 1]
    edge = edge * ((end - start) / count.clamp(min=1))[..., None] + (start - lo)[..., None]
    edge = edge * (cells / (hi - lo).clamp(min=TINY))[..., None]  # in cells
    cell = torch.arange(cells, device=rois.device)[:, None]
    return edge[:, :, None].clamp(cell, cell + 1).diff()


def _sampled_weights(
    rois: Tensor, crops: Tensor, kept: Tensor | None, sides: Tensor, most: tuple[int, int, int]
) -> Tensor:
    """Returns the two matrices of `mask_targets` for "torchvision", [p, 2, cells, length]: along x, along y.

    rois, crops [p, 4]: x1 y1 x2 y2; kept int64 [p, 2]: how many cells the crop's pixels are kept as (None: none are
    limited); sides int64 [p, 4]: the image's original and resized width and height; most: cells of a mask, pixels of a
    crop, samples of a cell. Each cell averages ceil(RoI length / cells) bilinear samples; each sample reads two resized
    pixels; each of these is one source pixel, which counts if it lies in the crop.
    """
    cells, length, most_samples = most
    lo, hi = rois.view(-1, 2, 2, 1, 1).unbind(1)  # [p, 2, 1, 1]
    size = (hi - lo).clamp(min=1) / cells
    samples = torch.ceil(size)  # per cell
    k = torch.arange(most_samples, device=rois.device)
    cell = torch.arange(cells, device=rois.device)[:, None]
    # in torchvision's order of operations, so that float32 rounds alike
    position = lo + cell * size + (k + 0.5) * size / samples  # [p, 2, cells, k]
    source, resized = sides.view(-1, 2, 2, 1, 1, 1).unbind(1)
    pixel, weight = bilinear_taps(position, resized.squeeze(-1))  # [p, 2, cells, k, 2]
    weight = weight * (k < samples)[..., None] / samples[..., None]
    start, end = crops.view(-1, 2, 2, 1, 1, 1).unbind(1)
    row = nearest_source(pixel, source, resized)
    weight = weight * ((row >= start) & (row < end))
    out = weight.new_zeros(len(rois), 2, cells, length)
    place = row - start
    if kept is not None:  # else spared: it costs a tenth more
        place = place * kept[..., None, None, None] // (end - start).clamp(min=1)
    return out.scatter_add_(3, place.clamp(0, length - 1).flatten(3), weight.flatten(3))


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
    limit = from_host([size[1], size[0]], probs.device)
    first = place.first.clamp(min=0).minimum(limit)  # the first visible pixel of each axis, [D, 2]
    visible = (place.end.minimum(limit) - first).clamp(min=0)
    ratio, origin = place.ratio.to(probs.dtype), place.origin.to(probs.dtype)
    columns, rows = (_resize_weights(*t, cells) for t in zip(first.T, origin.T, ratio.T, strict=True))
    places = torch.cat((first, visible), 1).tolist()
    known = [[width, height, i] for i, (_, _, width, height) in enumerate(places)]
    for some, here in _alike(known, probs.device):
        wide, high, _ = map(max, zip(*here, strict=True))
        pasted = _product(rows(some, high), probs[some], columns(some, wide))  # [p, height, width], padded
        pasted = pasted if threshold is None else (pasted > threshold).cpu()
        for (width, height, i), crop in zip(here, pasted, strict=True):
            x, y = places[i][:2]
            yield i, x, y, crop[:height, :width]


def _resize_weights(first: Tensor, origin: Tensor, ratio: Tensor, cells: int) -> Callable:
    """Returns one axis of `_pasted_crops`: (which detections, pixels) -> bilinear weights [p, pixels, cells].

    All [D]: the first visible pixel, where the mask begins, cells per pixel.
    """

    def weights(some: Tensor, pixels: int) -> Tensor:
        pixel = torch.arange(pixels, device=first.device) + first[some][:, None]
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
