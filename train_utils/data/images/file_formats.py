"""Which image files are read; what decoders raise of others -> one line that names the file and says what to do."""

import functools
import io
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image

from backbone.errors import InputError
from train_utils.data.images.pages import file_of
from train_utils.data.images.tiff import is_tiff
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


class ImageError(InputError):
    """An image file that cannot be used. `path` and `reason` (str) say which and why."""

    def __init__(self, path: str | Path, reason: str) -> None:
        self.path, self.reason = str(path), str(reason)
        super().__init__(self.path, self.reason)

    def __str__(self) -> str:
        return visible(f"{self.path}: {self.reason}")


@functools.cache
def formats() -> tuple[str, ...]:
    """Returns FORMATS, as far as this Pillow has them."""
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


def image_suffixes() -> frozenset[str]:
    """Returns the suffixes of files that `read_image` reads, in small letters: ".jpg" and so on."""
    extensions = Image.registered_extensions().items()
    return frozenset(suffix for suffix, name in extensions if name in (*formats(), "MPO"))


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
