"""Segmentations of COCO annotations: polygons and RLE, checked, and turned into bytes and back into RLE.

A segmentation belongs to an image of `size` (H, W). InputError says what is wrong with one, `Skip` that it
is to be left out and counted.
"""

import numpy as np
from pycocotools import mask as coco_mask

from backbone.errors import InputError

POLYGON, RLE, HUNDREDTHS = 0, 1, 2  # HUNDREDTHS: polygons whose numbers are k / 100, k in 0..65535, as COCO's are
NO_SEGMENTATION = "annotations without segmentation"
LONGEST_OUTLINE = 2_000_000  # pixels: pycocotools takes 80 bytes and more for each
FAR = 10  # times the image's longer side: polygons that reach farther are taken for broken


class Skip(Exception):
    """An annotation that is left out and counted; the message is the reason."""


def read_segmentation(segmentation, size) -> tuple[int, list[bytes]]:
    """(kind, parts as bytes): x y x y ... per polygon as `pack_polygons` has them, or the counts of one
    compressed RLE."""
    if not segmentation:
        raise Skip(NO_SEGMENTATION)
    if isinstance(segmentation, dict):
        counts = rle_counts(segmentation, size)
        if coco_mask.area({"size": list(size), "counts": counts}) == 0:
            raise Skip("annotations whose mask is empty")
        return RLE, [counts]
    if not isinstance(segmentation, list):
        raise InputError("segmentation is neither a list of polygons nor an RLE")
    if not isinstance(segmentation[0], list):
        segmentation = [segmentation]  # one polygon, not in a list
    parts = [numbers_of(polygon, "polygon") for polygon in segmentation]
    for points in parts:
        if len(points) and np.abs(points).max() > FAR * max(size):  # rasterising it could take all memory
            raise InputError(f"polygon reaches {np.abs(points).max():g}, the image is {size[1]}x{size[0]}")
    if any(len(points) % 2 for points in parts):
        raise Skip("annotations with a polygon of an odd number of values")
    # fewer than 3 points have no area (and pycocotools takes 4 numbers for a box)
    parts = [points for points in parts if len(points) >= 6]
    if not parts:
        raise Skip("annotations whose polygons have fewer than 3 points")
    points = np.concatenate(parts).reshape(-1, 2)
    low, extent = points.min(0), points.max(0) - points.min(0)
    if not (overlaps(low[0], extent[0], size[1]) and overlaps(low[1], extent[1], size[0])):
        raise Skip("annotations whose polygons have no area in the image")
    return pack_polygons(parts)


def overlaps(start: float, extent: float, side: int) -> bool:
    """Whether [start, start + extent] cut to [0, side] keeps a length, also in float32."""
    end = min(start + extent, side)
    return end - max(start, 0) > 1e-6 * side


def pack_polygons(parts: list[np.ndarray]) -> tuple[int, list[bytes]]:
    """(HUNDREDTHS, uint16 per number) where that loses nothing, else (POLYGON, float64): a quarter of the bytes."""
    hundredths = [np.rint(points * 100) for points in parts]
    if all(is_hundredths(points, rounded).all() for points, rounded in zip(parts, hundredths, strict=True)):
        return HUNDREDTHS, [rounded.astype(np.uint16).tobytes() for rounded in hundredths]
    return POLYGON, [points.tobytes() for points in parts]


def is_hundredths(numbers: np.ndarray, rounded: np.ndarray) -> np.ndarray:
    """Where `rounded` hundredths, as uint16, stand for exactly `numbers`."""
    return (rounded / 100 == numbers) & (rounded >= 0) & (rounded <= 65535)


def unpack_polygon(kind: int, part: bytes) -> np.ndarray:
    """The numbers of one part, float64."""
    return np.frombuffer(part, np.uint16) / 100 if kind == HUNDREDTHS else np.frombuffer(part, np.float64)


def finite(values, what: str) -> list[float]:
    """A short flat list of finite numbers (for a long one `numbers_of` is faster)."""
    if not isinstance(values, list) or any(type(value) not in (int, float) for value in values):
        raise InputError(f"{what} is not a list of numbers")
    if not all(-1e300 < value < 1e300 for value in values):  # json has integers of any length
        raise InputError(f"{what} holds a number that is not finite")
    return [float(value) for value in values]


def numbers_of(values, what: str) -> np.ndarray:
    """A flat list of finite numbers as float64."""
    try:
        numbers = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError, OverflowError) as error:
        raise InputError(f"{what} is not a list of numbers") from error
    if numbers.ndim != 1:
        raise InputError(f"{what} is not a flat list of numbers")
    if not np.isfinite(numbers).all():
        raise InputError(f"{what} holds a number that is not finite")
    return numbers


def rle_counts(rle: dict, size) -> bytes:
    """The counts of an RLE, compressed or not, as a compressed string; checked against `size` (H, W)."""
    given, counts = rle.get("size"), rle.get("counts")
    if given is None or list(numbers_of(given, "RLE size")) != list(size):
        raise InputError(f"RLE is for a size of {given} (height, width), but the image's is {list(size)}")
    if isinstance(counts, str):
        counts = counts.encode(errors="surrogatepass")
        runs = decode_counts(counts)
    elif isinstance(counts, list):
        runs = numbers_of(counts, "RLE counts")
    else:
        raise InputError("RLE has no counts")
    pixels = size[0] * size[1]
    # each run too: the sum of many could go round 2^64
    if (runs < 0).any() or (runs > pixels).any() or (runs != np.floor(runs)).any() or runs.sum() != pixels:
        raise InputError(
            f"RLE does not fit its size: its runs cover {runs.sum():.0f} pixels, {size[0]} x {size[1]} "
            f"are {size[0] * size[1]}"
        )
    if isinstance(counts, list):
        whole = {"size": list(size), "counts": runs.astype(np.int64).tolist()}
        counts = coco_mask.frPyObjects(whole, *size)["counts"]
    return counts


def decode_counts(counts: bytes) -> np.ndarray:
    """Run lengths, int64, of a compressed RLE."""
    runs, _, damaged = decode_many([counts])
    if damaged[0]:
        raise InputError("RLE counts are damaged")
    return runs


def rles_fit(counts: list[bytes], pixels: np.ndarray) -> np.ndarray:
    """Whether each of N compressed RLEs is whole and covers so many pixels (int64 [N]): bool [N]."""
    if not counts:
        return np.zeros(0, dtype=bool)
    runs, first, damaged = decode_many(counts)
    most = np.repeat(pixels, np.diff(first))
    wrong = np.logical_or.reduceat((runs < 0) | (runs > most), first[:-1])
    return ~(damaged | wrong) & (np.add.reduceat(runs, first[:-1]) == pixels)


def decode_many(counts: list[bytes]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Run lengths, int64 [R], of N > 0 compressed RLEs (the LEB128-like code of pycocotools' maskApi.c); where each
    RLE's begin and end, int64 [N + 1]; which RLEs are damaged, so that theirs mean nothing, bool [N].

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


def outline(polygons: list[np.ndarray], size) -> float:
    """Pixels along the polygons' edges, or any more than there can be, where that is below LONGEST_OUTLINE."""
    most = 2 * FAR * max(size) * sum(len(points) // 2 for points in polygons)
    if most <= LONGEST_OUTLINE:
        return most
    corners = [np.concatenate([points, points[:2]]).reshape(-1, 2) for points in polygons]  # closed, [points + 1, 2]
    return float(sum(np.abs(np.diff(xy, axis=0)).max(axis=1).sum() for xy in corners))


def rasterise(polygons: list[np.ndarray], size) -> dict:
    """One object's polygons -> compressed RLE (counts: bytes) of an image of `size` (H, W)."""
    return coco_mask.merge(coco_mask.frPyObjects(polygons, *size))


def box_of(kind: int, parts: list[bytes], size) -> list[float]:
    """x y w h around polygons (their points) or an RLE (its pixels)."""
    if kind == RLE:
        return coco_mask.toBbox({"size": list(size), "counts": parts[0]}).tolist()
    points = np.concatenate([unpack_polygon(kind, part).reshape(-1, 2) for part in parts])  # [points, 2]
    low, high = points.min(0), points.max(0)
    return [*low.tolist(), *(high - low).tolist()]
