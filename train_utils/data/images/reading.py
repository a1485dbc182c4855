"""What a model takes of image files, and raw values [C, H, W] as the image that it takes, uint8 or float32 in 0..1.

C channels of a file, N of the model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from backbone.errors import InputError
from network_files.config import ALL_PAGES, FIRST_PAGE, MaskRCNNConfig

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


def scaled(raw: np.ndarray, reading: Reading) -> torch.Tensor:
    """Returns raw values [C, H, W] as an image [N, H, W]: bytes as they are, others float32 in 0..1.

    One channel becomes N equal ones. Values beyond the range become 0 and 1. Raises ValueError for values that are not
    finite, or that have no known scale.
    """
    count = len(raw) if len(raw) != 1 else reading.channels or 1
    if raw.dtype == np.uint8:
        return torch.from_numpy(np.array(np.broadcast_to(raw, (count, *raw.shape[1:])), order="C"))
    low, high = _range_of(raw, reading)
    found = np.empty((count, *raw.shape[1:]), dtype=np.float32)
    rows = max(1, ROWS // max(raw.shape[0] * raw.shape[2], 1))
    width = float(high) - float(low)
    for top in range(0, raw.shape[1], rows):
        part = raw[:, top : top + rows].astype(np.float32 if raw.dtype == np.uint16 else np.float64)
        part -= low
        part /= width or 1.0
        if reading.value_range is not None:
            np.clip(part, 0, 1, out=part)
        found[:, top : top + rows] = part
    return torch.from_numpy(found)  # [N, H, W]


def _range_of(raw: np.ndarray, reading: Reading) -> tuple[float, float]:
    """Returns the values that become 0 and 1. ValueError where they are unknown, or a value is not finite."""
    if raw.dtype.kind == "f" and not np.isfinite(raw).all():
        raise ValueError("its values are not finite")
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
    step = max(1, int(np.ceil(np.sqrt(raw.size / most))))
    return raw[:, ::step, ::step].reshape(len(raw), -1)


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
        grey = np.tensordot(np.array(LUMA, dtype=np.float32), raw.astype(np.float32), 1)[None]  # [1, H, W]
        return grey if raw.dtype.kind == "f" else np.rint(grey).astype(raw.dtype)
    what = f"has {counted(len(raw), 'channel')}, the model takes {wanted}"
    raise InputError(f"{what}; give --channels {len(raw)} for data that has them, or convert it")


def counted(count: int, what: str) -> str:
    """Returns "1 page", "2 pages"."""
    return f"{count} {what}" if count == 1 else f"{count} {what}s"


def channel_axis(shape: Sequence[int]) -> int:
    """Returns which axis of an array of three holds the channels: the first where it is shorter than the last."""
    return 0 if shape[0] < shape[-1] else len(shape) - 1
