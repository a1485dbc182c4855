"""Image files -> images [C, H, W], for data sets and prediction: 8 bits as uint8 RGB, more as float32 in 0..1.

A broken file is an ImageError, which commands skip and count. A decompression bomb, a format that is not read, and a
number of channels that the model does not take, are plain InputErrors, which end them. `Reading` says what a model
takes. One function decodes a file to its values (`_decoded`), one makes an image of these (`reading.scaled`).
"""

import functools
import io
import os
import struct
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from backbone.errors import InputError
from network_files.config import ALL_PAGES, EACH_PAGE, FIRST_PAGE
from train_utils.data.images.depth import PLANAR, SAMPLES, SEPARATE, deep_values, is_deep, is_narrowed, tiles
from train_utils.data.images.pages import file_of, page_of
from train_utils.data.images.reading import AS_STORED, USUAL, Reading, channel_axis, fitted, scaled, stacked
from train_utils.data.images.tiff import described, is_tiff, no_such_page, read_tiff, tiff_pages
from train_utils.io.plain_text import visible
from train_utils.io.silence import without_warnings

# Those that people keep images in, the commonest first. Others are decoded by code that few files ever test,
# or by another program: EPS runs Ghostscript. (An MPO is opened as the JPEG that it begins with.)
FORMATS = ("JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF", "PPM", "JPEG2000", "AVIF", "DIB", "TGA", "PCX", "SGI", "QOI")
# Those that people have, but Pillow has not: where what they begin with stands, and what that is
FOREIGN = {
    "DICOM": (128, (b"DICM",)),
    "HEIC": (4, (b"ftypheic", b"ftypheix", b"ftyphevc", b"ftypmif1", b"ftypmsf1")),
    "Zeiss CZI": (0, (b"ZISRAWFILE",)),
    "Nikon ND2": (0, (b"\xda\xce\xbe\x0a",)),
    "FITS": (0, (b"SIMPLE  =",)),
    "NRRD": (0, (b"NRRD000",)),
    "OpenEXR": (0, (b"v/1\x01",)),
    "NIfTI": (344, (b"n+1\0", b"ni1\0")),
}
ARRAY, ARRAY_SUFFIX = b"\x93NUMPY", ".npy"
EXIF_ORIENTATION = 0x0112
# Exif 2.3, tag Orientation: what brings the stored pixels upright.
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
BACK = {UPRIGHT[6]: UPRIGHT[8], UPRIGHT[8]: UPRIGHT[6]}  # the others undo themselves
TURNING = {UPRIGHT[value] for value in (5, 6, 7, 8)}  # that exchange height and width


PAGES, TRANSPARENCY, CHANNELS, DEPTH, BYTES = "pages", "transparency", "channels", "depth", "bytes"
NARROWED = "narrowed"
_dropped: Counter[str] = Counter()  # {what `read_image` left out or took for granted: images}, in this process


class ImageError(InputError):
    """An image file that cannot be used. `path` and `reason` (str) say which and why."""

    def __init__(self, path: str | Path, reason: str) -> None:
        self.path, self.reason = str(path), str(reason)
        super().__init__(self.path, self.reason)

    def __str__(self) -> str:
        return visible(f"{self.path}: {self.reason}")


def read_image(
    path: str | Path, rotate: bool = True, content: bytes | np.ndarray | None = None, reading: Reading = USUAL
) -> torch.Tensor:
    """Reads an image as [C, H, W]: uint8, or of files of more than 8 bits float32 in 0..1; C as `reading` says, 3: RGB.

    rotate: bring it upright as its EXIF orientation says (an unreadable EXIF counts as none). content: the file's
    bytes, where they are at hand; `path` then only names it.
    Of several pages the first is read unless `reading` says otherwise, or the path names one (stack.tif#3).
    For RGB, alpha is dropped; palette, grey, CMYK, Lab become RGB. An .npy file is an array [H, W], or of three axes,
    of which the shorter of first and last holds the channels.
    Raises ImageError if the file is missing, truncated or not an image; another InputError for a decompression
    bomb (more pixels than Pillow's Image.MAX_IMAGE_PIXELS twice over), for a format outside FORMATS, and for another
    number of channels.
    """
    with naming(path, content):
        (file, page), to_look_at = page_of(path), reading == AS_STORED
        if page is not None and content is None:
            reading = replace(reading, pages=EACH_PAGE, page=page)
        values, left_out = _decoded(file, content, rotate, reading)
        if values.shape[2] == 3 and values.dtype == np.uint8 and reading.usual:
            image = torch.from_numpy(values).permute(2, 0, 1).contiguous()  # [3, H, W]
        else:
            image = scaled(values.transpose(2, 0, 1), reading, overwrite=True)
        if reading.value_range is not None:
            left_out += [BYTES] * (image.dtype == torch.uint8)
        else:  # floats in 0..1 need no range
            left_out += [DEPTH] * (values.dtype.kind in "ui" and values.dtype != np.uint8)
        if not to_look_at:
            _dropped.update(left_out)
    return image


def raw_values(path: str | Path) -> np.ndarray:
    """Reads an image upright as [C, H, W], in the type and the units of its file; alpha is a channel like others."""
    with naming(path):
        file, page = page_of(path)
        reading = AS_STORED if page is None else replace(AS_STORED, pages=EACH_PAGE, page=page)
        return np.ascontiguousarray(_decoded(file, None, True, reading)[0].transpose(2, 0, 1))


def image_size(path: str | Path, rotate: bool = True, guarded: bool = True) -> tuple[int, int]:
    """Returns (height, width) of an image as `read_image` returns it, from its header where the format allows.

    guarded: a decompression bomb is an InputError, as there.
    """
    with naming(path):
        path, page = page_of(path)
        if is_array(path):
            return array_of(path, mapped=True).shape[1:]
        try:
            with Image.open(path, formats=formats()) if guarded else unguarded(path) as image:
                go_to(image, page or 0)
                turned = rotate and UPRIGHT.get(_orientation(image)) in TURNING
                tags = getattr(image, "tag_v2", None)
                width, height = image.size if tags is None else (tags[256], tags[257])  # Pillow's may be upright
        except Image.UnidentifiedImageError:
            of_page = replace(USUAL, page=page or 0)
            height, width, orientation = read_tiff(path, tiff_in_words(path), of_page, size_alone=True)
            turned = rotate and UPRIGHT.get(orientation) in TURNING
    return (width, height) if turned else (height, width)


def page_count(path: str | Path) -> int:
    """Returns the pages of an image file; 1 where they cannot be counted, which reading it explains."""
    try:
        with without_warnings:
            with Image.open(path, formats=formats()) as image:
                return int(getattr(image, "n_frames", 1))
    except Image.UnidentifiedImageError:
        return tiff_pages(path)
    except Exception:  # decoders raise nearly anything on hostile bytes
        return 1


def unguarded(path: str | Path) -> Image.Image:
    """Opens an image of any number of pixels, of which none is decoded yet. Raises as Pillow's Image.open."""
    names, file = formats(), open(path, "rb")  # noqa: SIM115 - Pillow's image closes it
    start = file.read(16)
    for name in names:
        factory, accepts = Image.OPEN[name]
        try:
            if accepts is None or accepts(start) is True:
                file.seek(0)
                image = factory(file, str(path))
                image._exclusive_fp = True  # closed with the image
                return image
        except (SyntaxError, IndexError, TypeError, struct.error):  # what Pillow skips here
            continue
    file.close()
    raise Image.UnidentifiedImageError(path)


def count_left_out(left_out: Iterable[str]) -> None:
    """Adds to what `take_dropped` returns."""
    _dropped.update(left_out)


def refuse(path: str | Path, guarded: bool = True) -> None:
    """Raises InputError if `read_image` would refuse the file by its header; nothing if the file is only broken.

    guarded: as of `image_size`.
    """
    try:
        with naming(path):
            if not is_array(path):
                (Image.open(file_of(path), formats=formats()) if guarded else unguarded(file_of(path))).close()
    except ImageError:
        return


@contextmanager
def naming(path: str | Path, content: bytes | np.ndarray | None = None) -> Iterator[None]:
    """Turns what decoders raise into errors that name the file; Pillow's warnings are silenced: what matters raises."""
    try:
        with without_warnings:
            yield
    except ImageError:
        raise
    except Exception as error:  # decoders raise nearly anything on hostile bytes
        raise _named(path, error, content) from error


def _decoded(
    path: str | Path, content: bytes | np.ndarray | None, rotate: bool, reading: Reading
) -> tuple[np.ndarray, list[str]]:
    """Returns (the values of a file, [H, W, C] as `reading` takes them, what of the file is not used)."""
    if is_array(path, content):
        raw = array_of(path, content)
        raw = stacked([raw]) if raw.dtype.itemsize == 2 else raw  # which is then scaled where it lies
        return fitted(raw, False, reading).transpose(1, 2, 0), []
    opened = functools.partial(Image.open, path if content is None else io.BytesIO(content), formats=formats())
    try:
        with opened() as image:
            if not beyond_pillow(image) and not (reading.channels > 3 and _has_further(image)):
                return _of_pillow(image, opened, rotate, reading)
    except Image.UnidentifiedImageError:
        pass
    raw, alpha, orientation, pages = read_tiff(
        path if content is None else bytes(content), tiff_in_words(path, content), reading
    )
    several = [PAGES] * (pages > 1 and reading.pages == FIRST_PAGE)
    raw = turned_values(fitted(raw, alpha, reading), UPRIGHT.get(orientation) if rotate else None)
    return raw.transpose(1, 2, 0), several + [TRANSPARENCY] * (alpha and raw.shape[0] != reading.channels)


def _of_pillow(
    image: Image.Image, opened: functools.partial, rotate: bool, reading: Reading
) -> tuple[np.ndarray, list[str]]:
    """Returns what `_decoded` does, of an image that Pillow reads; opened: opens it once more."""
    cut = [NARROWED] * is_narrowed(image)
    if reading.usual and not is_deep(image):
        transpose = loaded(image, rotate)
        rgb = image if image.mode == "RGB" else image.convert("RGB")  # the same mode would be copied
        if transpose is not None:
            rgb = rgb.transpose(transpose)
        return np.array(rgb), _left_out(image, reading) + cut  # [H, W, 3]
    pages = range(getattr(image, "n_frames", 1)) if reading.pages == ALL_PAGES else [reading.page]
    parts, alpha, size = [], False, None
    for page in pages:
        go_to(image, page)
        size = size or image.size
        if image.size != size:  # a smaller copy of another page
            continue
        part, alpha = _page(image, functools.partial(at_page, opened, page), rotate, reading)
        parts.append(part)
    raw = parts[0] if len(parts) == 1 else stacked(parts)  # [C, H, W]
    return fitted(raw, alpha and len(parts) == 1, reading).transpose(1, 2, 0), _left_out(image, reading) + cut


def _page(image: Image.Image, again: functools.partial, rotate: bool, reading: Reading) -> tuple[np.ndarray, bool]:
    """Returns (values [C, H, W] of the page that an image is at, whether the last channel is transparency)."""
    if is_deep(image):
        raw, alpha, transpose = deep_page(image, again, rotate)
    else:
        transpose = loaded(image, rotate)
        raw, alpha = plain_values(image, reading)
    return turned_values(raw, transpose), alpha


def deep_page(
    image: Image.Image, again: functools.partial, rotate: bool
) -> tuple[np.ndarray, bool, Image.Transpose | None]:
    """Returns (values [C, H, W] of more than 8 bits, whether the last channel is transparency, `loaded`'s)."""
    stored = _stored_orientation(image)
    raw, alpha = deep_values(image, again)
    return raw, alpha, _to_do(image, stored, rotate)


def plain_values(image: Image.Image, reading: Reading) -> tuple[np.ndarray, bool]:
    """Returns (values [C, H, W] of 8 bits, whether the last channel is transparency)."""
    mode = image.mode
    if mode not in ("L", "LA", "RGB", "RGBA"):
        transparent = mode == "PA" or "transparency" in image.info
        mode = "L" if mode == "1" else "RGBA" if transparent else "RGB"
    if reading.channels == 1 and reading.pages != ALL_PAGES:
        mode = "L"
    values = np.asarray(image if image.mode == mode else image.convert(mode))
    raw = values[None] if values.ndim == 2 else values.transpose(2, 0, 1)  # [C, H, W]
    return raw, mode.endswith("A")


def go_to(image: Image.Image, page: int) -> None:
    """Turns to a page of an image."""
    if page and page >= (count := getattr(image, "n_frames", 1)):
        raise no_such_page(page, count)
    image.seek(page)


def at_page(opened: functools.partial, page: int) -> Image.Image:
    """Opens an image once more, at a page, as `loaded` would decode it."""
    image = opened()
    _stored_orientation(image)
    image.seek(page)
    return image


def turned_values(raw: np.ndarray, transpose: Image.Transpose | None) -> np.ndarray:
    """Returns an array [C, H, W], transposed as Pillow does."""
    if transpose in (UPRIGHT[5], UPRIGHT[7]):
        raw = raw.transpose(0, 2, 1)
    if transpose in (UPRIGHT[6], UPRIGHT[8]):
        return np.rot90(raw, 3 if transpose == UPRIGHT[6] else 1, (1, 2))
    vertical = -1 if transpose in (UPRIGHT[3], UPRIGHT[4], UPRIGHT[7]) else 1
    horizontal = -1 if transpose in (UPRIGHT[2], UPRIGHT[3], UPRIGHT[7]) else 1
    return raw[:, ::vertical, ::horizontal]


def beyond_pillow(image: Image.Image) -> bool:
    """Says whether Pillow decodes an image wrongly: bands of 16 bits one after another, compressed."""
    separate = getattr(image, "tag_v2", {}).get(PLANAR) == SEPARATE
    return separate and image.mode[0] not in "IF" and tiles(image)[0].codec_name == "libtiff" and is_deep(image)


def tiff_in_words(path: str | Path, content: bytes | np.ndarray | None = None) -> str:
    """Returns what a TIFF holds. Raises UnidentifiedImageError for another file."""
    with open(path, "rb") if content is None else io.BytesIO(content) as file:
        start = file.read(4)
        file.seek(0)
        what = described(file) if is_tiff(start) else None
    if what is None:
        raise Image.UnidentifiedImageError(path)
    return what


def is_array(path: str | Path, content: bytes | np.ndarray | None = None) -> bool:
    """Says whether a file is an .npy file, by its name, or its content by what it begins with."""
    if content is not None:
        return bytes(content[: len(ARRAY)]) == ARRAY
    return str(path).lower().endswith(ARRAY_SUFFIX)


def array_of(path: str | Path, content: bytes | np.ndarray | None = None, mapped: bool = False) -> np.ndarray:
    """Returns the array of an .npy file as [C, H, W]; mapped: from the file, read-only."""
    if content is None:
        array = np.load(path, mmap_mode="r" if mapped else None, allow_pickle=False)
    else:
        array = np.load(io.BytesIO(content), allow_pickle=False)
    if array.dtype.kind == "b":
        array = array.astype(np.uint8) * np.uint8(255)
    if array.ndim not in (2, 3) or array.dtype.kind not in "uif" or 0 in array.shape:
        raise ValueError(f"an array of {array.dtype} {list(array.shape)}, and no image [H, W] or [H, W, C]")
    array = array.astype(array.dtype.newbyteorder("="), copy=False)
    return array[None] if array.ndim == 2 else np.moveaxis(array, channel_axis(array.shape), 0)


@functools.cache
def formats() -> tuple[str, ...]:
    """Returns FORMATS, as far as this Pillow has them."""
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


def image_suffixes() -> frozenset[str]:
    """Returns the suffixes of files that `read_image` reads, in small letters: ".jpg" and so on."""
    extensions = Image.registered_extensions().items()
    return frozenset(suffix for suffix, name in extensions if name in (*formats(), "MPO"))


def loaded(image: Image.Image, rotate: bool) -> Image.Transpose | None:
    """Decodes an image; returns what then brings it upright, or with `rotate` False as it is stored; None: nothing."""
    stored = _stored_orientation(image)
    image.load()
    return _to_do(image, stored, rotate)


def _stored_orientation(image: Image.Image) -> Image.Transpose | None:
    """Returns what Pillow does to an image while it decodes it: it turns TIFFs upright itself. Comes before that."""
    stored = UPRIGHT.get(_orientation(image)) if image.format == "TIFF" else None
    if stored in TURNING:
        image.filename = ""  # else Pillow 13 maps it by its upright size: findings/pillow_mapped_tiff_orientation.sh
    return stored


def _to_do(image: Image.Image, stored: Image.Transpose | None, rotate: bool) -> Image.Transpose | None:
    """Returns what is left to be done to a decoded image."""
    return UPRIGHT.get(_orientation(image)) if rotate else BACK.get(stored, stored)


def _orientation(image: Image.Image) -> int:
    """Returns the EXIF orientation, 1..8; 1 for damaged EXIF, which is common and says nothing about the pixels."""
    try:
        value = image.getexif().get(EXIF_ORIENTATION, 1)
    except Exception:  # Pillow's EXIF parser raises nearly anything on damaged tags
        return 1
    return value if isinstance(value, int) else 1


def take_dropped() -> Counter[str]:
    """Returns what `read_image` left out in this process since the last call: {PAGES, ... CHANNELS: images}."""
    taken = _dropped.copy()
    _dropped.clear()
    return taken


def _has_further(image: Image.Image) -> bool:
    """Says whether a TIFF has more bands than Pillow gives."""
    return getattr(image, "tag_v2", {}).get(SAMPLES, 0) > len(image.getbands())


def _left_out(image: Image.Image, reading: Reading) -> list[str]:
    """Returns what is not used of an image whose first page is read; to be called last, as the page may change."""
    if reading.pages != FIRST_PAGE:
        return []
    further = _has_further(image)
    transparent = image.mode in ("RGBA", "LA", "PA") and reading.channels != len(image.getbands())
    transparent = transparent and image.getchannel("A").getextrema()[0] < 255
    try:
        several = getattr(image, "is_animated", False)
    except Exception:  # decoders raise nearly anything on a damaged second page
        several = False
    return [PAGES] * bool(several) + [TRANSPARENCY] * transparent + [CHANNELS] * further


def _named(path: str | Path, error: Exception, content: bytes | np.ndarray | None = None) -> InputError:
    """Returns what `read_image` raises for an error of Pillow."""
    if isinstance(error, InputError):
        return InputError(visible(f"{path}: {error}"))
    if isinstance(error, Image.DecompressionBombError):
        return InputError(
            f"{path}: a decompression bomb, or far too large: {' '.join(str(error).split())} "
            "Scale it down, take it out of the data, or look at it in tiles (--tile)"
        )
    file = file_of(path)
    if isinstance(error, Image.UnidentifiedImageError):
        refused = _refused_format(file, content)
        if refused:
            better = "PNG or TIFF, of 16 bits where it has more than 8," if refused in FOREIGN else "PNG or JPEG"
            return InputError(f"{path}: {refused} images are not read; convert it to {better.rstrip(',')}")
    return ImageError(path, _reason(file, error, content))


def _refused_format(path: str | Path, content: bytes | np.ndarray | None = None) -> str | None:
    """Returns the format outside FORMATS that the file begins as, without decoding anything."""
    with open(path, "rb") if content is None else io.BytesIO(content) as file:
        start = file.read(512)
    for name, (place, beginnings) in FOREIGN.items():
        if start[place:].startswith(beginnings):
            return name
    prefix = start[:16]  # as many as Pillow shows them
    for name, (_, accept) in Image.OPEN.items():
        try:
            if name not in FORMATS and accept and accept(prefix) is True:
                return name
        except (SyntaxError, IndexError, TypeError, struct.error):  # what Pillow skips here
            continue
    return None


def _begins_as(path: str | Path, content: bytes | np.ndarray | None = None) -> str:
    """Returns which of two formats, whose files often have an uncommon form, a file begins as; "" for neither."""
    with open(path, "rb") if content is None else io.BytesIO(content) as file:
        start = file.read(12)
    jpeg_2000 = start[:4] == b"\xff\x4f\xff\x51" or start[4:8] == b"jP  "
    return "a TIFF" if is_tiff(start) else "JPEG 2000" if jpeg_2000 else ""


def _reason(path: str | Path, error: Exception, content: bytes | np.ndarray | None = None) -> str:
    """Returns one line that says what is wrong with the file."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    if os.path.isfile(path) and os.path.getsize(path) == 0:
        return "the file is empty"
    if isinstance(error, Image.UnidentifiedImageError):
        named = _begins_as(path, content)
        return "not an image in a known format" if not named else f"begins as {named}, but is none that can be read"
    return " ".join(f"cannot be decoded: {error or type(error).__name__}".split())
