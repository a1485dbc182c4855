"""A Pillow image of more than 8 bits -> its values as they are in the file, [C, H, W].

Pillow has no mode for several channels of 16 bits: it keeps the upper byte of each value. Decoded a second time, with
the bytes exchanged, the image gives the lower ones. Of TIFFs Pillow also takes the wrong byte order (big-endian and
compressed, 11.3 to 13.0) and the wrong unpacker (planar and not compressed): here each tile is given the right one.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from train_utils.data.images.reading import ROWS, room_for

BITS, PHOTOMETRIC, SAMPLES, PLANAR, SAMPLE_FORMAT = 258, 262, 277, 284, 339  # tags of TIFF 6.0
WHITE_IS_ZERO, SEPARATE = 0, 2  # values of PHOTOMETRIC and PLANAR
STRIP_OFFSETS, TILE_OFFSETS = 273, 324  # tags; 0, where the header is, stands for a part that the file leaves out
ONE_BAND = {(16, 1): "I;16", (16, 2): "I;16S", (32, 1): "I;32", (32, 2): "I;32S", (32, 3): "F;32F"}  # bits, format
# Where a header has the bits of the first channel, from a mark on: JPEG 2000 (ISO 15444-1, A.5.1, less 1), AVIF's pixi
AT = {"JPEG2000": (b"\xff\x51", 40), "AVIF": (b"pixi", 9)}
HEAD = 4096  # bytes
NATIVE = "L" if sys.byteorder == "little" else "B"


class Tile(NamedTuple):
    """A part of an image file as Pillow's plugins give it, in Pillow 10 without these names."""

    codec_name: str
    extents: tuple[int, int, int, int] | None
    offset: int
    args: Any


def tiles(image: Image.Image) -> list[Tile]:
    """Returns the parts that are decoded."""
    return [Tile(*tile) for tile in image.tile]


def is_deep(image: Image.Image) -> bool:
    """Says whether the file of an image, which is not decoded yet, has more than 8 bits a channel."""
    return image.mode[0] in "IF" or _bits(image) > 8 or (bool(image.tile) and ";16" in _raw_mode(tiles(image)[0]))


def is_sparse(image: Image.Image) -> bool:
    """Says whether a TIFF leaves out strips or tiles, as GDAL those without a value; Pillow gives noise for them."""
    tags = getattr(image, "tag_v2", {})
    return any(0 in np.atleast_1d(tags.get(offsets, 1)) for offsets in (STRIP_OFFSETS, TILE_OFFSETS))


def is_narrowed(image: Image.Image) -> bool:
    """Says whether Pillow gives 8 bits of a file, which is not decoded yet, that has more: colour of some formats."""
    if image.mode[0] in "IF" or not image.tile:
        return False
    codec, _, _, args = tiles(image)[0]
    if image.format == "PPM":
        return isinstance(args, tuple) and isinstance(args[-1], int) and args[-1] > 255  # its largest value
    if image.format == "SGI":
        return codec == "SGI16"
    if image.format not in AT:
        return False
    mark, after = AT[image.format]
    place = image.fp.tell()
    image.fp.seek(0)
    head = image.fp.read(HEAD)
    image.fp.seek(place)
    at = head.find(mark) + after
    return mark in head and at < len(head) and (head[at] & 0x7F) + (image.format == "JPEG2000") > 8


def deep_values(image: Image.Image, again: Callable[[], Image.Image]) -> tuple[np.ndarray, bool]:
    """Decodes such an image; returns (its values [C, H, W], whether the last channel is transparency).

    uint16, int32 or float32, in the file's units; where white is zero, black becomes it. again: opens it once more.
    Raises ValueError for what has no such values.
    """
    tags = getattr(image, "tag_v2", {})
    inverted, top = tags.get(PHOTOMETRIC) == WHITE_IS_ZERO, (1 << min(_bits(image), 16)) - 1
    if inverted and not image.mode.startswith("I;16"):
        raise ValueError("a TIFF in which white is zero, signed or of more than 16 bits: save it anew")
    image.tile = [_mended(image, tile) for tile in tiles(image)]
    if image.mode[0] in "IF":
        raw = _values(image)  # [1, H, W]
        return (np.subtract(top, raw, out=raw) if inverted else raw), False
    if _raw_mode(tiles(image)[0]) == "LA;16B":  # of PNG; Pillow knows no other order, but four bytes a pixel
        image.tile = [tile._replace(args="RGBA") for tile in tiles(image)]
        upper, lower = np.split(_values(image).astype(np.uint16).reshape(2, 2, *image.size[::-1]), 2, axis=1)
        return (upper << 8 | lower)[:, 0], True
    raw = room_for((len(image.getbands()), *image.size[::-1]), np.uint16)  # [C, H, W]
    for rows, values in _parts(image):
        np.left_shift(values, 8, out=raw[:, rows], dtype=np.uint16)
    with again() as other:
        other.tile = [_exchanged(_mended(other, tile)) for tile in tiles(other)]
        for rows, values in _parts(other):
            raw[:, rows] |= values
    return raw, image.mode in ("RGBA", "RGBa")


def _values(image: Image.Image) -> np.ndarray:
    """Decodes an image; returns its values [C, H, W] in the machine's byte order."""
    raw = None
    for rows, values in _parts(image):
        if raw is None:
            raw = room_for((len(values), *image.size[::-1]), values.dtype.newbyteorder("="))
        raw[:, rows] = values
    return raw


def _parts(image: Image.Image) -> Iterator[tuple[slice, np.ndarray]]:
    """Decodes an image; yields (some rows, their values [C, rows, W]): of all at once Pillow makes two more copies."""
    image.load()
    width, height = image.size
    step = max(1, ROWS // max(width, 1))
    for top in range(0, height, step):
        part = image if step >= height else image.crop((0, top, width, min(top + step, height)))
        values = np.asarray(part)
        yield slice(top, top + step), values[None] if values.ndim == 2 else np.moveaxis(values, 2, 0)


def _mended(image: Image.Image, tile: Tile) -> Tile:
    """Returns a tile of an image with the raw mode that its file has."""
    mode, tags = _raw_mode(tile), getattr(image, "tag_v2", {})
    if tile.codec_name == "libtiff" and mode.startswith(("I;", "F;")):
        return _with_raw_mode(tile, mode.replace("B", "N"))  # libtiff gives the machine's byte order
    if tags.get(PLANAR) != SEPARATE or tile.codec_name == "libtiff" or _bits(image) <= 8:
        return tile
    order = "B" if tags.prefix == b"MM" else ""
    if image.mode[0] not in "IF":
        return _with_raw_mode(tile, f"{mode};16{order or 'L'}")
    kind, width = ONE_BAND[_bits(image), tags.get(SAMPLE_FORMAT, (1,))[0]].split(";")
    return _with_raw_mode(tile, f"{kind};{width[:2]}{order}{width[2:]}")


def _exchanged(tile: Tile) -> Tile:
    """Returns a tile of 16-bit values from which Pillow, which keeps the upper bytes, takes the lower ones."""
    channels, order = _raw_mode(tile).split(";16")
    return _with_raw_mode(tile, f"{channels};16{'L' if order.replace('N', NATIVE) == 'B' else 'B'}")


def _raw_mode(tile: Tile) -> str:
    return tile.args if isinstance(tile.args, str) else str(tile.args[0]) if tile.args else ""


def _with_raw_mode(tile: Tile, mode: str) -> Tile:
    return tile._replace(args=mode if isinstance(tile.args, str) else (mode, *tile.args[1:]))


def _bits(image: Image.Image) -> int:
    """Returns the bits a channel that a TIFF says; 8 for other files."""
    return max(getattr(image, "tag_v2", {}).get(BITS, (8,)))
