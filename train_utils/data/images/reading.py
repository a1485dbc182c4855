"""What a model takes of image files, and raw values [C, H, W] as the image that it takes, uint8 or float32 in 0..1.

C channels of a file, N of the model.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from backbone.errors import InputError
from network_files.config import ALL_PAGES, FIRST_PAGE, MaskRCNNConfig
from train_utils.io.plain_text import counted

LUMA = (0.299, 0.587, 0.114)  # of RGB, as Pillow makes grey (ITU-R 601)
ROWS = 1 << 20  # values that are scaled at once, so that scaling takes no memory beside its result
SAMPLE = 1 << 20  # values of an image that its percentiles are taken of, at most


@dataclass(frozen=True)
class Reading:
    """How files become images [channels, H, W].

    pages: which pages of a file: the first, or all as channels; page: of `each`, the one that is read.
    value_range: the values of files of more than 8 bits that become 0 and 1; or one number P: of each image the middle
    P percent of its values do; None: by type, 0..65535, of floats 0..1. Files of 8 bits stay in bytes.
    """

    channels: int = 3
    pages: str = FIRST_PAGE
    value_range: tuple[float, ...] | None = None
    page: int = 0
    unscaled: bool = False  # values of more than 8 bits as they are, in float32
    by_windows: bool = False  # large images are to be looked at in tiles: `windows.open_image` reads them in parts

    @classmethod
    def of(cls, config: MaskRCNNConfig) -> Reading:
        """Returns what the config of a model asks for."""
        return cls(config.channels, config.pages, config.value_range)

    @property
    def usual(self) -> bool:
        """Whether 8-bit files become RGB of their first page."""
        return self.channels == 3 and self.pages != ALL_PAGES and not self.page


ANY_CHANNELS = 0  # a Reading's, of as many as a file has
USUAL, AS_STORED = Reading(), Reading(ANY_CHANNELS, value_range=(100.0,))  # the latter: of any file, to be looked at


def room_for(shape: Sequence[int], dtype: np.typing.DTypeLike) -> np.ndarray:
    """Returns an array for raw values [C, H, W], at the end of memory that float32 values of this shape fill.

    There `scaled` puts its result, from the front: an image and its raw values then take no more than the image.
    """
    count, dtype = math.prod(shape), np.dtype(dtype)
    if dtype.itemsize > 4:
        return np.empty(shape, dtype)
    memory = np.empty(count, np.float32).view(dtype)
    return memory[len(memory) - count :].reshape(shape)


def stacked(parts: Sequence[np.ndarray]) -> np.ndarray:
    """Returns raw values [C, H, W] of several parts, or pages, as one array from `room_for`."""
    raw = room_for((sum(map(len, parts)), *parts[0].shape[1:]), np.result_type(*parts))
    return np.concatenate(parts, out=raw)


def scaled(raw: np.ndarray, reading: Reading, overwrite: bool = False) -> torch.Tensor:
    """Returns raw values [C, H, W] as an image [N, H, W]: bytes as they are, others float32 in 0..1.

    One channel becomes N equal ones. Values beyond the range become 0 and 1. overwrite: the raw values are not needed
    any more, and the image may take their memory. Raises ValueError for values that are not finite, or that have no
    known scale.
    """
    count = len(raw) if len(raw) != 1 else reading.channels or 1
    if raw.dtype == np.uint8:
        return torch.from_numpy(np.array(np.broadcast_to(raw, (count, *raw.shape[1:])), order="C"))
    low, high = _range_of(raw, reading)
    found = _memory_of(raw) if overwrite and count == len(raw) else None
    if found is None:
        found = np.empty((count, *raw.shape[1:]), dtype=np.float32)
    width = float(high) - float(low)
    for channel, rows in _places(raw):
        part = raw[channel, rows].astype(np.float32 if raw.dtype == np.uint16 else np.float64)
        part -= low
        part /= width or 1.0
        if reading.value_range is not None:
            np.clip(part, 0, 1, out=part)
        found[channel if count == len(raw) else slice(None), rows] = part
    return torch.from_numpy(found)  # [N, H, W]


def _memory_of(raw: np.ndarray) -> np.ndarray | None:
    """Returns the memory at whose end raw values lie, as float32 of their shape; None where `room_for` made none."""
    memory = raw if raw.base is None else raw.base
    if not isinstance(memory, np.ndarray) or memory.dtype != np.float32 or memory.size != raw.size:
        return None
    whole = all(array.flags.c_contiguous and array.flags.writeable for array in (memory, raw))
    return memory.reshape(raw.shape) if whole else None


def _places(raw: np.ndarray) -> Iterator[tuple[int, slice]]:
    """Yields the channels of raw values [C, H, W] by some rows, as they lie in memory: what is worked on at once."""
    step = max(1, ROWS // max(raw.shape[2], 1))
    for channel in range(len(raw)):
        for top in range(0, raw.shape[1], step):
            yield channel, slice(top, top + step)


def _range_of(raw: np.ndarray, reading: Reading) -> tuple[float, float]:
    """Returns the values that become 0 and 1. ValueError where they are unknown, or a value is not finite."""
    if raw.dtype.kind == "f" and not all(np.isfinite(raw[place]).all() for place in _places(raw)):
        raise ValueError("its values are not finite: put numbers in place of NaN and infinity")
    if reading.unscaled:
        return 0.0, 1.0
    value_range = reading.value_range
    if value_range is None:
        top = 1.0 if raw.dtype.kind == "f" else 65535
        if raw.dtype != np.uint16 and raw.size and (raw.min() < 0 or raw.max() > top):
            raise ValueError(
                f"its values {raw.min():g}..{raw.max():g} exceed 0..{top:g}, by which such files are read without a "
                "value_range"
            )
        return 0.0, top
    if len(value_range) == 1:
        cut = (100 - value_range[0]) / 2
        low, high = np.percentile(sample_of(raw), [cut, 100 - cut])
        return float(low), float(high)
    return value_range


def sample_of(raw: np.ndarray, most: int = SAMPLE) -> np.ndarray:
    """Returns values [C, n] of evenly spread pixels of an image [C, H, W], at most so many values."""
    step = sample_step(raw.size, most)
    return raw[:, ::step, ::step].reshape(len(raw), -1)


def sample_step(size: int, most: int = SAMPLE) -> int:
    """Returns the distance of the pixels that `sample_of` takes of an image of so many values."""
    return max(1, int(np.ceil(np.sqrt(size / most))))


def fitted(raw: np.ndarray, alpha: bool, reading: Reading) -> np.ndarray:
    """Returns raw values [C, H, W] as the channels that the model takes, [N, H, W] or [1, H, W] for N equal ones.

    alpha: whether the last channel is transparency, which is left out where it is one too many. RGB becomes grey for
    one channel. Raises InputError for another number of channels.
    """
    wanted = reading.channels
    if wanted == ANY_CHANNELS:
        return raw
    if alpha and len(raw) != wanted:
        raw = raw[:-1]
    if len(raw) == wanted or (len(raw) == 1 and wanted == 3):
        return raw
    if len(raw) == 3 and wanted == 1 and reading.pages != ALL_PAGES:
        return _grey(raw)
    what = f"has {counted(len(raw), 'channel')}, the model takes {wanted}"
    raise InputError(f"{what}; give --channels {len(raw)} for data that has them, or convert it")


def _grey(raw: np.ndarray) -> np.ndarray:
    """Returns RGB [3, H, W] as grey [1, H, W]."""
    found = room_for((1, *raw.shape[1:]), np.float32 if raw.dtype.kind == "f" else raw.dtype)
    step = max(1, ROWS // max(raw.shape[2], 1))
    for top in range(0, raw.shape[1], step):
        part = raw[:, top : top + step].astype(np.float32)
        grey = np.tensordot(np.array(LUMA, dtype=np.float32), part, 1)  # [rows, W]
        found[0, top : top + step] = grey if raw.dtype.kind == "f" else np.rint(grey)
    return found


def channel_axis(shape: Sequence[int]) -> int:
    """Returns which axis of an array of three holds the channels: the first where it is shorter than the last."""
    return 0 if shape[0] < shape[-1] else len(shape) - 1
