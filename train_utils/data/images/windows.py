"""A large image file -> its parts, [C, h, w] each, which are read when they are asked for.

Of a tiled TIFF (BigTIFF, COG) and an .npy array only what a part needs is read. Other files are decoded once, as they
are stored: a PNG or JPEG of 20,000 x 20,000 pixels takes 1.6 GB, and no second copy is made.
C channels, an image of H x W pixels.
"""

from __future__ import annotations

import functools
import importlib
import math
import weakref
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image
from torch.nn import functional as F

from backbone.errors import InputError
from network_files.config import ALL_PAGES, EACH_PAGE, FIRST_PAGE
from train_utils.data.images import (
    CHANNELS,
    NARROWED,
    PAGES,
    TRANSPARENCY,
    UPRIGHT,
    array_of,
    at_page,
    bands_left_out,
    beyond_pillow,
    count_left_out,
    deep_page,
    go_to,
    has_further,
    image_size,
    is_array,
    is_dropped,
    loaded,
    naming,
    plain_values,
    read_image,
    said_of,
    tiff_in_words,
    turned_values,
    unguarded,
)
from train_utils.data.images.depth import WHITE_IS_ZERO, is_deep, is_narrowed
from train_utils.data.images.pages import has_further_pages, page_of
from train_utils.data.images.reading import Reading, fitted, sample_step, scaled
from train_utils.data.images.tiff import MAGIC, OF_ALPHA, ORIENTATION, read_tiff

LARGE = 2**25  # pixels: images of no more are read whole
MOST_DECODED = 2**30  # pixels of a file that is decoded whole: 4 GB
MOST = 2**31  # pixels of any: results count them in 32 bits
MOST_OF_TILE = 2**25  # pixels of a TIFF's tile or strip: larger ones are no help
RGB = 2  # of TIFF 6.0's photometric interpretations
KEPT = 2**28  # bytes of a TIFF's decoded tiles that are kept for the parts beside and below, at most
ROWS_AT_ONCE = 2**22  # values that an overview is made of at a time
Box = tuple[int, int, int, int]  # y1, x1, y2, x2


class Windows:
    """An image [C, H, W] of a file as `reading` says, whose parts are read when they are asked for.

    `image[:, y1:y2, x1:x2]` and `window` give tensors as `read_image` gives them whole. Where a part cannot be read,
    that raises ImageError or InputError.
    """

    def __init__(self, path: str, reading: Reading, rotate: bool, size: tuple[int, int]) -> None:
        self.path, self.reading, self.rotate = path, reading, rotate
        self.shape, self.device = torch.Size((reading.channels, *size)), torch.device("cpu")
        self._opened: list[_Store] = []  # one, once a part is read; shared with what `to` returns
        self._counted = False  # whether what is said of its values has been counted
        self._transparent = False  # whether transparency that is not used has been

    def __reduce__(self) -> tuple[type, tuple]:  # another process opens the file itself
        return Windows, (self.path, self.reading, self.rotate, tuple(self.shape[1:]))

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Windows:
        """Returns the same image, whose parts come to a device; non_blocking: for those who pass it to tensors."""
        other = Windows(*self.__reduce__()[1])
        other.__dict__ |= {**self.__dict__, "device": torch.device(device)}
        return other

    def pin_memory(self) -> Windows:
        """Returns itself, as nothing is read yet."""
        return self

    def window(self, y1: int, x1: int, y2: int, x2: int) -> torch.Tensor:
        """Reads the part from (y1, x1) to before (y2, x2), [C, y2 - y1, x2 - x1]."""
        with naming(self.path):
            return self._scaled(self._raw((y1, x1, y2, x2))).to(self.device)

    def __getitem__(self, place: tuple[slice, slice, slice]) -> torch.Tensor:
        channels, rows, columns = place
        (y1, y2, _), (x1, x2, _) = rows.indices(self.shape[1]), columns.indices(self.shape[2])
        return self.window(y1, x1, y2, x2)[channels]

    def overview(self, most: int) -> torch.Tensor:
        """Returns the image reduced so that no side has more than `most` pixels: means of squares, [C, h, w]."""
        count, height, width = self.shape
        k = math.ceil(max(height, width) / most)
        step, found = k * max(1, ROWS_AT_ONCE // (count * width * k)), None
        for top in range(0, height, step):
            part = self.window(top, 0, min(top + step, height), width).cpu()
            mean = F.avg_pool2d(part.float()[None], k, ceil_mode=True, count_include_pad=False)[0]
            if found is None:  # at once: small results between large temporary arrays would keep these from being freed
                found = torch.empty(count, math.ceil(height / k), math.ceil(width / k), dtype=part.dtype)
            found[:, top // k : top // k + mean.shape[1]] = mean.round() if part.dtype == torch.uint8 else mean
        return found

    @property
    def _store(self) -> _Store:
        if not self._opened:
            self._opened.append(_store_of(self.path, self.rotate, self.reading))
        return self._opened[0]

    def _raw(self, box: Box) -> np.ndarray:
        raw, alpha = self._store.read(box)
        if not self._transparent and is_dropped(raw, alpha, self.reading):
            count_left_out([TRANSPARENCY])
            self._transparent = True
        return fitted(raw, alpha, self.reading)  # [N, h, w]

    def _scaled(self, raw: np.ndarray) -> torch.Tensor:
        if not self._counted:
            count_left_out(said_of(raw, self.reading))
            self._counted = True
        return scaled(raw, self.reading if raw.dtype == np.uint8 else self._fixed)

    @functools.cached_property
    def _fixed(self) -> Reading:
        """The reading with one value range for the whole image, as whole images have it."""
        if self.reading.value_range is None or len(self.reading.value_range) == 2:
            return self.reading
        (percent,), sample = self.reading.value_range, np.concatenate(list(self._sample()), 1)
        cut = (100 - percent) / 2
        low, high = (float(value) for value in np.percentile(sample, [cut, 100 - cut]))
        return replace(self.reading, value_range=(low, high))

    def _sample(self) -> Iterator[np.ndarray]:
        """Yields the values that `sample_of` takes of the whole image, [N, n] for some rows each."""
        _, height, width = self.shape
        channels = len(self._raw((0, 0, 1, 1)))
        step = sample_step(channels * height * width)
        rows = step * max(1, ROWS_AT_ONCE // (channels * width * step))
        for top in range(0, height, rows):
            raw = self._raw((top, 0, min(top + rows, height), width))
            yield raw[:, ::step, ::step].reshape(channels, -1)


def open_image(path: str | Path, reading: Reading, rotate: bool = True) -> torch.Tensor | Windows:
    """Returns an image as `read_image`, or a large one as Windows, where `reading` is by windows."""
    if reading.by_windows and reading.pages != ALL_PAGES:
        size = image_size(path, rotate, guarded=False)
        if math.prod(size) >= MOST:
            raise InputError(f"{path}: {size[1]}x{size[0]} is more than results can count; cut it into parts")
        if math.prod(size) > LARGE:
            return Windows(str(path), reading, rotate, size)
    return read_image(path, rotate, reading=reading)


def is_bomb(size: tuple[int, int]) -> bool:
    """Returns whether an image of (H, W) has more pixels than are read whole: Pillow's limit twice over."""
    return math.prod(size) > 2 * (Image.MAX_IMAGE_PIXELS or math.inf)


def unopened(image: torch.Tensor | Windows) -> torch.Tensor | Windows:
    """Returns an image to be kept: of Windows nothing is in memory until a part is read again."""
    return Windows(*image.__reduce__()[1]) if isinstance(image, Windows) else image


class _Store(Protocol):
    """Where raw values of an image come from."""

    def read(self, box: Box) -> tuple[np.ndarray, bool]:
        """Returns (values [C, h, w] in the file's units, whether the last channel is transparency)."""
        ...


def _store_of(path: str, rotate: bool, reading: Reading) -> _Store:
    """Opens a file. Raises what decoders raise."""
    file, page = page_of(path)
    if page is not None:
        reading = replace(reading, pages=EACH_PAGE, page=page)
    if is_array(file):
        return _Array(array_of(file, mapped=True), False)
    tiled = _tiff_store(file, reading, rotate)
    if tiled is not None:
        return tiled
    opened = functools.partial(unguarded, file)
    try:
        image = opened()
    except Image.UnidentifiedImageError:
        return _whole_tiff(file, rotate, reading)
    with image:
        if beyond_pillow(image, reading):
            return _whole_tiff(file, rotate, reading)
        go_to(image, reading.page)
        if math.prod(image.size) > MOST_DECODED:
            raise InputError(
                f"its {math.prod(image.size):,} pixels would be decoded at once: save it as a tiled TIFF, which is "
                "read in parts (pip install -r requirements-science.txt)"
            )
        first, cut = reading.pages == FIRST_PAGE, [NARROWED] * is_narrowed(image)
        count_left_out([PAGES] * (first and has_further_pages(image)) + cut)
        if is_deep(image):
            count_left_out([CHANNELS] * (first and has_further(image)))
            raw, alpha, transpose = deep_page(image, functools.partial(at_page, opened, reading.page), rotate)
            return _Array(turned_values(raw, transpose), alpha)
        transpose = loaded(image, rotate)
        count_left_out(bands_left_out(image, reading) if first else [])
        return _Decoded(image, transpose, reading)


def _whole_tiff(path: str, rotate: bool, reading: Reading) -> _Array:
    """Returns a TIFF that neither Pillow nor `_TiffPage` reads, decoded whole."""
    raw, alpha, orientation, _ = read_tiff(path, tiff_in_words(path), reading)
    return _Array(turned_values(raw, UPRIGHT.get(orientation) if rotate else None), alpha)


class _Array:
    """Values [C, H, W] in memory, or mapped from a file."""

    def __init__(self, values: np.ndarray, alpha: bool) -> None:
        self.values, self.alpha = values, alpha

    def read(self, box: Box) -> tuple[np.ndarray, bool]:
        y1, x1, y2, x2 = box
        return np.array(self.values[:, y1:y2, x1:x2]), self.alpha


class _Decoded:
    """An image of 8 bits that Pillow has decoded; transpose: what brings it into the frame that is asked for."""

    def __init__(self, image: Image.Image, transpose: Image.Transpose | None, reading: Reading) -> None:
        self.image, self.transpose, self.reading = image, transpose, reading

    def read(self, box: Box) -> tuple[np.ndarray, bool]:
        part = self.image.crop(_stored(box, self.transpose, self.image.size))
        if self.reading.usual:
            raw, alpha = np.asarray(part.convert("RGB")).transpose(2, 0, 1), False
        else:
            raw, alpha = plain_values(part, self.reading)
        return turned_values(raw, self.transpose), alpha


def _stored(box: Box, transpose: Image.Transpose | None, size: tuple[int, int]) -> Box:
    """Returns the box left, upper, right, lower that a part has before it is transposed; size: width, height there."""
    (y1, x1, y2, x2), (width, height) = box, size
    if transpose in (UPRIGHT[5], UPRIGHT[6], UPRIGHT[7], UPRIGHT[8]):
        y1, x1, y2, x2 = x1, y1, x2, y2
    if transpose in (UPRIGHT[3], UPRIGHT[4], UPRIGHT[6], UPRIGHT[7]):
        y1, y2 = height - y2, height - y1
    if transpose in (UPRIGHT[2], UPRIGHT[3], UPRIGHT[7], UPRIGHT[8]):
        x1, x2 = width - x2, width - x1
    return x1, y1, x2, y2


def _tiff_store(path: str, reading: Reading, rotate: bool) -> _Store | None:
    """Returns a TIFF's page by its tiles or strips; None for another file, or where it has to be decoded whole."""
    with open(path, "rb") as file:
        if file.read(4) not in MAGIC:
            return None
    try:
        tifffile = importlib.import_module("tifffile")
    except ImportError:
        return None
    tiff = tifffile.TiffFile(path)
    store = _TiffPage(tiff, reading) if reading.page < len(tiff.pages) else None
    if store is None or not store.is_plain(rotate):
        tiff.close()
        return None
    count_left_out([PAGES] * (reading.pages == FIRST_PAGE and not all(page.is_reduced for page in tiff.pages[1:])))
    count_left_out([CHANNELS] * (store.has_further and reading.pages == FIRST_PAGE))
    return store


class _TiffPage:
    """The tiles or strips of a TIFF's page."""

    def __init__(self, tiff: Any, reading: Reading) -> None:
        self.tiff, self.page, self.kept = tiff, tiff.pages[reading.page], OrderedDict()
        first = self.page
        tiled = (first.tilelength, first.tilewidth) if first.is_tiled else (first.rowsperstrip, first.imagewidth)
        self.high, self.wide = (min(a, b) for a, b in zip(tiled, (first.imagelength, first.imagewidth), strict=True))
        if first.is_tiled:
            self.high, self.wide = tiled
        self.down, self.across = math.ceil(first.imagelength / self.high), math.ceil(first.imagewidth / self.wide)
        self.planes = first.samplesperpixel if first.planarconfig == 2 else 1
        self.room = KEPT
        extra = first.extrasamples
        self.alpha = len(extra) > 0 and int(extra[-1]) in OF_ALPHA
        colours = int(first.photometric) == RGB and reading.channels <= 3 and first.samplesperpixel > 3
        as_pillow = first.dtype in (np.uint8, np.uint16) and (first.samplesperpixel == 4 or first.dtype == np.uint8)
        self.has_further = colours and as_pillow and not (first.samplesperpixel == 4 and self.alpha)  # bands not used
        weakref.finalize(self, tiff.close)

    def is_plain(self, rotate: bool) -> bool:
        """Says whether its values are those of the image, and small parts can be decoded."""
        page = self.page
        tag = page.tags.get(ORIENTATION)
        if (tag is not None and int(tag.value) != 1) or page.imagedepth != 1 or page.dtype is None:
            return False
        if int(page.photometric) not in (0, 1, 2) or page.dtype.kind not in "uif" or page.bitspersample % 8:
            return False
        if int(page.photometric) == WHITE_IS_ZERO and page.dtype.kind != "u":
            return False
        if self.high * self.wide > MOST_OF_TILE:
            return False
        try:
            self._tile(0)
        except ValueError:  # a compression that tifffile reads with another package alone
            return False
        return True

    def read(self, box: Box) -> tuple[np.ndarray, bool]:
        y1, x1, y2, x2 = box
        self._forget(y1)
        page = self.page
        bands = page.samplesperpixel
        raw = np.zeros((bands, y2 - y1, x2 - x1), page.dtype.newbyteorder("="))
        for plane in range(self.planes):
            own = slice(plane, plane + 1) if self.planes > 1 else slice(None)
            for row in range(y1 // self.high, -(-y2 // self.high)):
                for column in range(x1 // self.wide, -(-x2 // self.wide)):
                    tile = self._tile((plane * self.down + row) * self.across + column)
                    top, left = row * self.high, column * self.wide
                    upper, lower = max(y1, top), min(y2, top + self.high)
                    first, last = max(x1, left), min(x2, left + self.wide)
                    if tile is not None:
                        part = tile[:, upper - top : lower - top, first - left : last - left]
                        raw[own, upper - y1 : lower - y1, first - x1 : last - x1] = part
        if int(page.photometric) == WHITE_IS_ZERO:
            raw = (1 << page.bitspersample) - 1 - raw
        return (raw[:3], False) if self.has_further else (raw, self.alpha)

    def _forget(self, y: int) -> None:
        """Lets go of what lies above row y: parts are read row by row, and nothing of it is asked for again."""
        for index in [i for i in self.kept if (i // self.across % self.down + 1) * self.high <= y]:
            old = self.kept.pop(index)
            self.room += 0 if old is None else old.nbytes

    def _tile(self, index: int) -> np.ndarray | None:
        """Returns a tile or strip, [C or 1, h, w]; None for one that the file leaves out."""
        if index in self.kept:
            self.kept.move_to_end(index)
            return self.kept[index]
        page, data = self.page, None
        if page.databytecounts[index]:
            self.tiff.filehandle.seek(page.dataoffsets[index])
            data = self.tiff.filehandle.read(page.databytecounts[index])
        values, _, _ = page.decode(data, index, jpegtables=page.jpegtables)
        tile = None if values is None else np.moveaxis(values[0], 2, 0)
        self.kept[index] = tile
        self.room -= 0 if tile is None else tile.nbytes
        while self.room < 0 and len(self.kept) > 1:
            _, old = self.kept.popitem(last=False)
            self.room += 0 if old is None else old.nbytes
        return tile
