"""Compressed RLEs -> run lengths -> CroppedMasks; only the columns that a mask touches are filled. Runs -> RLEs.

Runs of an RLE go down the columns of an image of `size` (H, W): unset and set pixels by turns, unset first.
pycocotools rasterises polygons into compressed text alone, so its text is decoded here even for those.
"""

import numpy as np
import torch

from backbone.errors import InputError
from network_files.operators.cropped_masks import CroppedMasks


def decode_counts(counts: bytes) -> np.ndarray:
    """Returns the run lengths, int64, of a compressed RLE. Raises InputError for a damaged one."""
    runs, _, damaged = decode_many([counts])
    if damaged[0]:
        raise InputError("RLE counts are damaged")
    return runs


def rles_fit(counts: list[bytes], pixels: np.ndarray) -> np.ndarray:
    """Returns whether each of N compressed RLEs is whole and covers so many pixels (int64 [N]): bool [N]."""
    if not counts:
        return np.zeros(0, dtype=bool)
    runs, first, damaged = decode_many(counts)
    most = np.repeat(pixels, np.diff(first))
    wrong = np.logical_or.reduceat((runs < 0) | (runs > most), first[:-1])
    return ~(damaged | wrong) & (np.add.reduceat(runs, first[:-1]) == pixels)


def decode_many(counts: list[bytes]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Decodes N > 0 compressed RLEs, the LEB128-like code of pycocotools' maskApi.c.

    Returns run lengths, int64 [R]; where each RLE's begin and end, int64 [N + 1]; which RLEs are damaged, bool [N]:
    their run lengths mean nothing.

    A number is a chain of characters (code - 48): 5 bits each, lowest first, 0x20 = more follow, and 0x10 of
    the last one is the sign. From the fourth on, numbers are differences to the run two before.
    """
    lengths = np.array([len(one) or 1 for one in counts])
    codes = np.frombuffer(b"".join([one or b"o" for one in counts]), dtype=np.uint8).astype(np.int64) - 48
    more, end = codes & 0x20, lengths.cumsum() - 1
    damaged = more[end] > 0  # the last number is cut off, as that of an empty string, for which "o" stands
    more[end] = 0
    stops = np.flatnonzero(more == 0)
    start = np.empty_like(stops)  # of each number
    start[0], start[1:] = 0, stops[:-1] + 1
    shift = np.arange(len(codes)) - start.repeat(stops - start + 1)
    damaged |= np.logical_or.reduceat((codes >> 6 != 0) | (shift > 11), end - lengths + 1)
    shift = 5 * np.minimum(shift, 11)
    values = np.add.reduceat((codes & 0x1F) << shift, start)
    values -= (codes[stops] >> 4 & 1) << (shift[stops] + 5)
    first = np.zeros(len(counts) + 1, dtype=np.int64)
    first[1:] = np.searchsorted(stops, end) + 1
    numbers = first[1:] - first[:-1]
    place = np.arange(len(values)) - first[:-1].repeat(numbers)  # of a number in its RLE
    runs, odd = values, place & 1
    for chain in (odd, (odd ^ 1) & (place > 0)):  # runs 1, 3, 5, ... and 2, 4, 6, ... are chains of differences
        sums = (values * chain).cumsum()
        # an RLE's first number is in no chain: the sum there is that of the RLEs before
        runs = np.where(chain, sums - sums[first[:-1]].repeat(numbers), runs)
    return runs, first, damaged


def encode_many(runs: np.ndarray, first: np.ndarray) -> list[bytes]:
    """Encodes the run lengths of N compressed RLEs, int64 [R]: `decode_many(encode_many(runs, first))` gives them back.

    first: int64 [N + 1], where each RLE's run lengths begin and end.
    """
    place = np.arange(len(runs)) - first[:-1].repeat(np.diff(first))  # of a number in its RLE
    values = runs.copy()
    values[2:] -= np.where(place[2:] > 2, runs[:-2], 0)
    pieces, alive = [], np.ones(len(runs), dtype=bool)
    while alive.any():
        low, values = values & 0x1F, values >> 5
        more = np.where(low & 0x10, values != -1, values != 0) & alive
        pieces.append(np.where(alive, low + 0x20 * more + 48, 0))
        alive = more
    codes = np.stack(pieces, axis=1).astype(np.uint8) if pieces else np.zeros((0, 1), np.uint8)  # [R, most characters]
    used = codes > 0
    ends = np.concatenate([[0], used.sum(1).cumsum()])[first].tolist()
    content = codes[used].tobytes()
    return [content[a:b] for a, b in zip(ends, ends[1:], strict=False)]


def cropped_masks(rles: list[dict], size: tuple[int, int]) -> CroppedMasks:
    """Decodes compressed RLEs (counts: bytes) of one image of `size` (H, W)."""
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
    """Returns x1 y1 x2 y2 of the set pixels, ends exclusive; 0 0 0 0 where there are none."""
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
    """Returns the pixels inside a box that holds all set ones, uint8 [h, w]."""
    x1, y1, x2, y2 = box
    edges = np.clip(edges, x1 * height, x2 * height)
    values = np.arange(len(edges), dtype=np.uint8) & 1
    columns = np.repeat(values, np.diff(edges, prepend=x1 * height)).reshape(x2 - x1, height)  # [w, H]
    return np.ascontiguousarray(columns[:, y1:y2].T)
