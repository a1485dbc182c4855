"""Files and arrays -> what tells whether they have changed: checksums; of files, sizes and times.

n files. A checksum is a CRC-32: it finds what was changed by accident, and costs less than reading.
"""

import os
import zlib
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

READ_AT_MOST = 2**28  # bytes whose checksums are made: less than a second on a local disk
PIECE = 2**20


class Stamps(NamedTuple):
    """What a disk says of n files; -1 of one that it lacks."""

    sizes: np.ndarray  # int64 [n], bytes
    times: np.ndarray  # int64 [n], nanoseconds: when the content was last written


def stamp_files(paths: Iterable[str | os.PathLike]) -> Stamps:
    """Looks up sizes and times of files."""
    found = [_stamp(path) for path in paths]
    return Stamps(*np.array(found, dtype=np.int64).reshape(-1, 2).T)


def _stamp(path: str | os.PathLike) -> tuple[int, int]:
    try:
        found = os.stat(path)
    except OSError:
        return -1, -1
    return found.st_size, found.st_mtime_ns


def file_checksums(paths: Sequence[str | os.PathLike], sizes: np.ndarray, most: int = READ_AT_MOST) -> np.ndarray:
    """Returns the checksum of each file's content, uint32 [n]; 0 where it was not read.

    sizes: int64 [n]. Where the files have more than `most` bytes together, every k-th is read, so that it's no more.
    """
    step = max(1, -(-int(sizes.clip(min=0).sum()) // most))
    sums = np.zeros(len(sizes), dtype=np.uint32)
    for i in range(0, len(sizes), step):
        sums[i] = _checksum(paths[i]) if sizes[i] >= 0 else 0
    return sums


def _checksum(path: str | os.PathLike) -> int:
    """Returns the checksum of a file, at least 1; 0 where it cannot be read."""
    state = 0
    try:
        with open(path, "rb", buffering=0) as file:
            while piece := file.read(PIECE):
                state = zlib.crc32(piece, state)
    except OSError:
        return 0
    return state or 1


def part_checksums(*arrays: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    """Returns a checksum of each part of some arrays together, uint32 [n].

    arrays: (first, array) each, part i being array[first[i] : first[i + 1]].
    """
    sums = [0] * (len(arrays[0][0]) - 1)
    for first, array in arrays:
        content = memoryview(np.ascontiguousarray(array).reshape(-1).view(np.uint8))
        ends = (first.astype(np.int64) * (array.nbytes // max(len(array), 1))).tolist()
        sums = [zlib.crc32(content[a:b], state) for state, a, b in zip(sums, ends, ends[1:], strict=False)]
    return np.array(sums, dtype=np.uint32)
