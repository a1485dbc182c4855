"""Plain values and numpy arrays <-> one block of bytes, read in place: the arrays are views of it.

A block is a line of json (values; type, offset and shape of each array), padded with blanks, then the arrays. The line
and every array begin at a multiple of ALIGNED bytes, so a block must begin at one.
"""

import json
import math
import mmap

import numpy as np

ALIGNED = 64  # bytes: a cache line


def block_pieces(values: dict, arrays: dict[str, np.ndarray]) -> list[bytes | memoryview]:
    """Returns the bytes-like pieces of a block, to be written one after another."""
    places, end = {}, 0
    for name, array in arrays.items():
        places[name] = (array.dtype.str, end, array.shape)
        end += padded(array.nbytes)
    line = json.dumps({"arrays": places, "values": values}).encode()
    pieces = [line + b" " * (padded(len(line) + 1) - len(line) - 1) + b"\n"]
    for array in arrays.values():
        pieces += [
            memoryview(np.ascontiguousarray(array).reshape(-1)).cast("B") if array.size else b"",
            b"\0" * (padded(array.nbytes) - array.nbytes),
        ]
    return pieces


def read_block(content: mmap.mmap | bytes, start: int, dtypes: dict) -> tuple[dict, dict[str, np.ndarray]]:
    """Reads (values, read-only arrays) of the block at byte `start` of a file's content; dtypes: {array: its type}.

    Raises ValueError, TypeError or KeyError for other arrays and for an incomplete block.
    """
    end = content.find(b"\n", start) + 1
    header, arrays = json.loads(content[start:end]), {}
    if {name: place[0] for name, place in header["arrays"].items()} != dtype_names(dtypes):
        raise ValueError("other arrays are expected")
    for name, (dtype, offset, shape) in header["arrays"].items():
        if min((offset, *shape)) < 0:
            raise ValueError(f"{name} has a place or a shape below 0")
        arrays[name] = np.frombuffer(content, dtype, math.prod(shape), end + offset).reshape(shape)
    return header["values"], arrays


def dtype_names(dtypes: dict) -> dict[str, str]:
    """Returns types as a block's line has them: with their byte order."""
    return {name: np.dtype(dtype).str for name, dtype in dtypes.items()}


def padded(size: int) -> int:
    """Returns `size` rounded up to a multiple of ALIGNED."""
    return -(-size // ALIGNED) * ALIGNED
