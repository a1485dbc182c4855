"""Training images -> what a model is to take of them: how many bits they have, and how their values become 0..1.

Headers of a sample of the files say what there is; the values of a smaller sample, read once, say which of them become
0 and 1, and the mean and deviation of each channel.
"""

from __future__ import annotations

import os
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from backbone.errors import InputError
from network_files.config import EACH_PAGE, FIRST_PAGE
from network_files.transform import OUTSIDE
from train_utils.data.dataset import ImageDataset
from train_utils.data.images import ARRAY_SUFFIX, ImageError, formats, page_count
from train_utils.data.images.depth import is_deep
from train_utils.data.images.pages import file_of, has_further_pages, page_of
from train_utils.data.images.reading import ANY_CHANNELS, USUAL, Reading, sample_of
from train_utils.io.plain_text import counted
from train_utils.io.silence import without_warnings

LOOKED_AT, MEASURED = 256, 64  # images whose headers, and whose values, are read, at most
DECODED = 8  # images that are read where they have no headers of their own
VALUES = 1 << 16  # of an image that are measured, at most
SHARE = 0.1  # percent of the values beyond the range, at either end
EIGHT_BITS = (".jpg", ".jpeg", ".bmp", ".webp", ".gif")  # files whose header says nothing new
FEW = 32  # levels, below which much of what was to be seen is lost


class Headers(NamedTuple):
    """Of so many files that were looked at: those of more than 8 bits, and those of several pages."""

    looked_at: int
    deep: list[int]  # positions in the data set
    pages: list[int]  # the same, of those that are no pages themselves


def look(data_set: ImageDataset, channels: int) -> Headers:
    """Reads the headers of a sample of the image files; those that cannot be read count as ordinary ones.

    channels: of the model, that images of a torch Dataset must suit.
    """
    deep, pages, places = [], [], spread(len(data_set), LOOKED_AT)
    files = (file_of(data_set.file_name(i)) for i in places)
    if places and not any(map(os.path.isfile, files)):  # packed, or within other files
        places = places[:: max(1, len(places) // DECODED)]
        return Headers(len(places), [i for i in places if _is_read_deep(data_set, i, channels)], [])
    for i in places:
        path, page = page_of(data_set.file_name(i))
        if path.lower().endswith(EIGHT_BITS) or not os.path.isfile(path):
            continue
        if path.lower().endswith(ARRAY_SUFFIX):
            is_one, several = _is_deep_array(path), False
        else:
            is_one, several = _of_header(path)
        deep += [i] * is_one
        pages += [i] * (several and page is None)
    return Headers(len(places), deep, pages)


def spread(count: int, most: int) -> list[int]:
    """Returns at most so many of the positions 0..count - 1, evenly spread."""
    return np.unique(np.linspace(0, count - 1, min(count, most)).round().astype(int)).tolist() if count else []


def _of_header(path: str) -> tuple[bool, bool]:
    """Returns (whether a file has more than 8 bits, whether it has several pages)."""
    try:
        with without_warnings:
            with Image.open(path, formats=formats()) as image:
                return is_deep(image), has_further_pages(image)
    except Image.UnidentifiedImageError:  # a TIFF that Pillow does not read has mostly more
        return path.lower().endswith((".tif", ".tiff")), False
    except Exception:  # reading the image says what is wrong
        return False, False


def _is_read_deep(data_set: ImageDataset, i: int, channels: int) -> bool:
    own = data_set.in_python  # whose floats are in 0..1 already, unless they are of a file
    try:
        reading = replace(USUAL, channels=channels if own else ANY_CHANNELS, unscaled=True)
        image = data_set.read_as(reading).image(i)
    except InputError:  # reading it says what is wrong
        return False
    beyond = image.is_floating_point() and (not own or float(image.max()) > 1 + OUTSIDE)
    return beyond or image.dtype == torch.uint16


def _is_deep_array(path: str) -> bool:
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False).dtype.itemsize > 1
    except (OSError, ValueError, EOFError):  # reading it says what is wrong
        return False


class Values(NamedTuple):
    """Values of a sample of images: `of` so many, [C, n] in the files' units, or of bytes in 0..255."""

    sample: np.ndarray
    of: int
    in_bytes: bool

    def value_range(self) -> tuple[float, float]:
        """Returns the values that become 0 and 1: all but SHARE percent at either end lie between them."""
        low, high = (float(v) for v in np.percentile(self.sample, [SHARE, 100 - SHARE]))
        return (low, high) if low < high else (low, low + 1.0)

    def levels(self, low: float, high: float) -> int:
        """Returns how many different values of the sample lie from low to high."""
        return len(np.unique(self.sample[(self.sample >= low) & (self.sample <= high)]))

    def histogram(self, low: float, high: float, bins: int) -> list[dict[str, int]]:
        """Returns {values of a bin: count} of each channel from low to high; the outer bins have what lies beyond."""
        edges = np.linspace(low, high, bins + 1)
        names = [f"{a:.4g} to {b:.4g}" for a, b in zip(edges, edges[1:], strict=False)]
        counts = [np.histogram(np.clip(channel, low, high), edges)[0].tolist() for channel in self.sample]
        return [dict(zip(names, count, strict=True)) for count in counts]

    def mean_and_std(self, low: float, high: float) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Returns of each channel the mean and the deviation that it has when low is 0 and high is 1."""
        scaled = np.clip((self.sample.astype(np.float64) - low) / (high - low), 0, 1)
        mean, std = scaled.mean(1), scaled.std(1)
        return tuple(_short(v) for v in mean), tuple(max(_short(v), 1e-3) for v in std)  # a channel may be constant


def _short(value: float) -> float:
    return float(f"{value:.4g}")


def measure(data_set: ImageDataset, reading: Reading, places: list[int]) -> Values | None:
    """Reads images at these places, at most MEASURED of them, as they are in their files; None where none can be read.

    Raises InputError for one that does not fit what is asked for.
    """
    part, samples, kinds = data_set.read_as(replace(reading, value_range=None, unscaled=True)), [], set()
    chosen = [places[k] for k in spread(len(places), MEASURED)]
    for i in tqdm(chosen, desc="values of images", unit="image", disable=None, leave=False):
        try:
            image = part.image(i).numpy()
        except ImageError:  # which training counts and names
            continue
        samples.append(sample_of(image, VALUES))
        kinds.add(image.dtype == np.uint8)
    if not samples:
        return None
    return Values(np.concatenate(samples, 1), len(samples), kinds == {True})


class Advice(NamedTuple):
    """Fields of MaskRCNNConfig that the training images suggest, and lines that say so; values: where measured."""

    fields: dict[str, tuple[float, ...]]
    lines: list[str]
    values: Values | None = None


def advise(data_set: ImageDataset, reading: Reading, wants_range: bool, wants_mean: bool) -> Advice:
    """Returns the value range, and mean and deviation of the channels, by the training images.

    wants_range: also where no file has more than 8 bits, as --value-range auto says; wants_mean: whether mean and
    deviation are to be measured where they are not ImageNet's: for other channels than RGB, and more than 8 bits.
    """
    headers, fields, lines = look(data_set, reading.channels), {}, []
    if headers.pages and reading.pages == EACH_PAGE:
        path = data_set.file_name(headers.pages[0])
        raise InputError(
            f"--pages each: {path} has {page_count(path)} pages, and is annotated as one image; name pages in a json "
            f"({os.path.basename(path)}#0, #1, ...), or give masks of as many pages"
        )
    if headers.pages and reading.pages == FIRST_PAGE:
        lines.append(
            f"pages: {len(headers.pages)} of {headers.looked_at} training images looked at have several, of which the "
            "first is read (--pages channels reads all)"
        )
    deep = len(headers.deep)
    if 0 < deep < headers.looked_at:
        lines.append(
            f"bits: {deep} of {headers.looked_at} training images looked at have more than 8, the others are read as "
            "0 to 255"
        )
    measures_range = deep > 0 and reading.value_range is None
    measures_mean = wants_mean and (2 * deep > headers.looked_at or reading.channels != 3)
    if wants_range and not deep:
        lines.append("value range: the training images have 8 bits and stay as they are")
    if not measures_range and not measures_mean:
        return Advice(fields, lines)
    values = measure(data_set, reading, headers.deep or spread(len(data_set), MEASURED))
    if values is None:
        return Advice(fields, lines)
    low, high = (0.0, 255.0) if values.in_bytes else _pair(reading.value_range) or values.value_range()
    if measures_range:
        fields["value_range"] = (low, high)
        levels = values.levels(low, high)
        shares = f"{SHARE}% and {100 - SHARE}% of {counted(values.of, 'training image')}"
        lines.append(
            f"value range: {low:g} to {high:g} become 0 to 1 ({shares}), {levels} levels"
            + (f": few are left, the images may have been scaled before ({FEW} are few)" if levels < FEW else "")
        )
    if measures_mean and (values.in_bytes or reading.value_range is None or len(reading.value_range) == 2):
        fields["image_mean"], fields["image_std"] = values.mean_and_std(low, high)
        shown = (" ".join(f"{v:g}" for v in fields[name]) for name in ("image_mean", "image_std"))
        lines.append("image mean {}, deviation {}: measured on {} training images".format(*shown, values.of))
    return Advice(fields, lines, values)


def _pair(value_range: tuple[float, ...] | None) -> tuple[float, ...] | None:
    return value_range if value_range is not None and len(value_range) == 2 else None
