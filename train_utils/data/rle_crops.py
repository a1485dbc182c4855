"""Compressed RLEs -> CroppedMasks, without a full-size mask: only the columns that a mask touches are filled.

Runs of an RLE go down the columns of an image of `size` (H, W): unset and set pixels by turns, unset first.
"""

import numpy as np
import torch

from network_files.operators.cropped_masks import CroppedMasks
from train_utils.data.formats.coco.segmentation import decode_many


def cropped_masks(rles: list[dict], size: tuple[int, int]) -> CroppedMasks:
    """Compressed RLEs (counts: bytes) of one image of `size` (H, W) -> CroppedMasks."""
    if not rles:
        return CroppedMasks.empty(size)
    boxes = np.zeros((len(rles), 4), dtype=np.int64)
    pixels = [np.zeros(0, dtype=np.uint8)]
    runs, first, _ = decode_many([rle["counts"] for rle in rles])
    for i in range(len(rles)):
        edges = np.cumsum(runs[first[i] : first[i + 1]])  # where runs end
        boxes[i] = _tight_box(edges, size[0])
        pixels.append(_crop(edges, boxes[i].tolist(), size[0]).reshape(-1))
    return CroppedMasks(torch.from_numpy(np.concatenate(pixels)), torch.from_numpy(boxes), size)


def _tight_box(edges: np.ndarray, height: int) -> tuple[int, int, int, int]:
    """x1 y1 x2 y2 of the set pixels, ends exclusive; 0 0 0 0 where there are none."""
    starts, stops = edges[:-1:2], edges[1::2]  # of the runs that are set
    used = stops > starts
    if not used.any():
        return 0, 0, 0, 0
    starts, last = starts[used], stops[used] - 1
    (x1, y1), (x2, y2) = np.divmod(starts, height), np.divmod(last, height)
    if (x1 < x2).any():  # a run goes on in the next column: it touches the last row and the first
        return int(x1[0]), 0, int(x2[-1]) + 1, height
    return int(x1[0]), int(y1.min()), int(x2[-1]) + 1, int(y2.max()) + 1


def _crop(edges: np.ndarray, box: list[int], height: int) -> np.ndarray:
    """The pixels inside a box that holds all set ones, uint8 [h, w]."""
    x1, y1, x2, y2 = box
    edges = np.clip(edges, x1 * height, x2 * height)
    values = np.arange(len(edges), dtype=np.uint8) & 1
    columns = np.repeat(values, np.diff(edges, prepend=x1 * height)).reshape(x2 - x1, height)  # [w, H]
    return np.ascontiguousarray(columns[:, y1:y2].T)
