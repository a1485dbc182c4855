"""A TIFF that Pillow does not read -> its values [C, H, W], by tifffile, which is an optional package.

Several bands of 16 bits, 64-bit floats, many kinds of tiles; a file of several pages as its channels.
"""

from __future__ import annotations

import importlib
import io
from contextlib import suppress
from pathlib import Path
from types import ModuleType
from typing import Any, BinaryIO

import numpy as np
from PIL import Image
from PIL.TiffImagePlugin import COMPRESSION_INFO, ImageFileDirectory_v2

from backbone.errors import InputError
from network_files.config import ALL_PAGES
from train_utils.data.images.depth import BITS, PHOTOMETRIC, PLANAR, SAMPLE_FORMAT, SAMPLES, SEPARATE, WHITE_IS_ZERO
from train_utils.data.images.pages import COPY_OR_MASK
from train_utils.data.images.reading import Reading, stacked
from train_utils.io.plain_text import counted

BIG_BIG_ENDIAN = b"MM\0+"  # whose header Pillow takes for a TIFF's: findings/pillow_big_endian_bigtiff.sh
MAGIC = (b"II*\0", b"MM\0*", b"II+\0", BIG_BIG_ENDIAN)  # the last two: BigTIFF
WIDTH, HEIGHT, COMPRESSION, ORIENTATION = 256, 257, 259, 274
KINDS = {1: "unsigned", 2: "signed", 3: "floating-point"}  # of SAMPLE_FORMAT
OF_ALPHA = (1, 2)  # of ExtraSamples


def is_tiff(start: bytes) -> bool:
    """Says whether a file begins as a TIFF."""
    return start[:4] in MAGIC


def described(file: BinaryIO) -> str | None:
    """Returns what a TIFF holds, in words, from its first directory; None where that is damaged."""
    with suppress(Exception):  # Pillow's parser raises nearly anything on damaged tags
        head = file.read(8)
        if head[:4] == BIG_BIG_ENDIAN:
            return "a TIFF (a big-endian BigTIFF)"
        tags = ImageFileDirectory_v2(head + (file.read(8) if head[2:4] in (b"+\0", b"\0+") else b""))
        file.seek(tags.next)
        tags.load(file)
        bits, kind = tags.get(BITS, (1,))[0], KINDS.get(tags.get(SAMPLE_FORMAT, (1,))[0], "other")
        size = f"{tags[WIDTH]}x{tags[HEIGHT]}, {counted(tags.get(SAMPLES, 1), 'band')} of {bits}-bit {kind} values"
        parts = ["one band after another"] * (tags.get(PLANAR) == SEPARATE)
        compression = COMPRESSION_INFO.get(tags.get(COMPRESSION, 1), f"compression {tags.get(COMPRESSION)}")
        return ", ".join([f"a TIFF ({size}", *parts, f"{compression.replace('raw', 'not compressed')})"])
    return None


def read_tiff(source: str | Path | bytes, what: str, reading: Reading, size_alone: bool = False) -> Any:
    """Returns of a TIFF (values [C, H, W] as stored, whether the last channel is transparency, orientation, pages).

    size_alone: (height, width, orientation) in its place, without decoding. what: the file in words. Raises InputError
    without tifffile; ValueError and many others for a file that it can't read.
    """
    tifffile = _library(what)
    with tifffile.TiffFile(io.BytesIO(source) if isinstance(source, bytes | memoryview) else source) as tiff:
        if reading.page >= len(tiff.pages):
            raise no_such_page(reading.page, len(tiff.pages))
        first = tiff.pages[reading.page]
        tag = first.tags.get(ORIENTATION)
        orientation, size = int(tag.value) if tag else 1, (first.imagelength, first.imagewidth)
        if size_alone:
            return *size, orientation
        pages = [page for page in tiff.pages if (page.imagelength, page.imagewidth) == size]
        chosen = pages if reading.pages == ALL_PAGES else [first]
        _refuse_bomb(size, chosen)
        layers = [_layers(page, size) for page in chosen]
        raw = stacked(layers)  # [C, H, W]
        extra = getattr(chosen[0], "extrasamples", ()) or ()
        alpha = len(chosen) == 1 and len(extra) > 0 and int(extra[-1]) in OF_ALPHA
        return raw, alpha, orientation, len(pages)


def tiff_pages(path: str | Path) -> int:
    """Returns the pages of a TIFF that Pillow does not read; 1 where they cannot be counted."""
    try:
        with importlib.import_module("tifffile").TiffFile(path) as tiff:
            return max((i for i, page in enumerate(tiff.pages, 1) if not page.subfiletype & COPY_OR_MASK), default=1)
    except Exception:  # reading it says what is wrong; without tifffile too
        return 1


def no_such_page(page: int, count: int) -> ValueError:
    """Returns the error for a page that a file lacks."""
    return ValueError(f"it has {counted(count, 'page')}, which count from 0, and no page {page}")


def _layers(page: Any, size: tuple[int, int]) -> np.ndarray:
    """Decodes a page; returns its values [C, H, W], those in which white is zero inverted."""
    try:
        values = page.asarray()
    except ValueError as error:
        if "imagecodecs" not in str(error):
            raise
        raise InputError("is compressed in a way that tifffile reads with imagecodecs alone: pip install it") from error
    values = values.astype(values.dtype.newbyteorder("="), copy=False)
    if values.dtype.kind not in "uif":
        raise ValueError(f"its values are of type {values.dtype}")
    if values.ndim == 3 and values.shape[1:] != size:
        values = np.moveaxis(values, 2, 0)
    layers = values[None] if values.ndim == 2 else values
    if layers.ndim != 3 or layers.shape[1:] != size:
        raise ValueError(f"its values have the shape {list(values.shape)}")
    if int(page.tags.valueof(PHOTOMETRIC, 1)) == WHITE_IS_ZERO:
        if layers.dtype.kind != "u":
            raise ValueError("a TIFF in which white is zero, signed or of floats: save it anew")
        layers = (1 << page.bitspersample) - 1 - layers
    return layers


def _refuse_bomb(size: tuple[int, int], pages: list[Any]) -> None:
    """Raises what Pillow raises for files of too many pixels."""
    pixels, most = size[0] * size[1] * len(pages), 2 * (Image.MAX_IMAGE_PIXELS or np.inf)
    if pixels > most:
        raise Image.DecompressionBombError(f"Image size ({pixels} pixels) exceeds limit of {most} pixels.")


def _library(what: str) -> ModuleType:
    try:
        return importlib.import_module("tifffile")
    except ImportError as error:
        raise InputError(
            f"{what} is not read by Pillow: pip install -r requirements-science.txt (tifffile), or save it anew"
        ) from error
