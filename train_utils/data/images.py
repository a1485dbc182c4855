"""Image files of any mode that Pillow knows -> uint8 [3, H, W] RGB, for data sets and prediction.

A broken file is an ImageError, which commands skip and count. A decompression bomb, or a format outside FORMATS, is not
decoded: it is a plain InputError, which ends them.
"""

import functools
import io
import os
import struct
import warnings
from collections import Counter
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from backbone.errors import InputError
from train_utils.io.plain_text import visible

# Those that people keep images in, the commonest first. Others are decoded by code that few files ever test,
# or by another program: EPS runs Ghostscript. (An MPO is opened as the JPEG that it begins with.)
FORMATS = ("JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF", "PPM", "JPEG2000", "AVIF", "DIB", "TGA", "PCX", "SGI", "QOI")
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


PAGES, TRANSPARENCY, CHANNELS = "pages", "transparency", "channels"
SAMPLES_PER_PIXEL = 277  # TIFF 6.0
_dropped: Counter[str] = Counter()  # {what `read_image` left out: images}, in this process


class ImageError(InputError):
    """An image file that cannot be used. `path` and `reason` (str) say which and why."""

    def __init__(self, path: str | Path, reason: str) -> None:
        self.path, self.reason = str(path), str(reason)
        super().__init__(self.path, self.reason)

    def __str__(self) -> str:
        return visible(f"{self.path}: {self.reason}")


def read_image(path: str | Path, rotate: bool = True, content: bytes | np.ndarray | None = None) -> torch.Tensor:
    """Reads an image as uint8 [3, H, W] RGB; the first frame of an animation.

    rotate: bring it upright as its EXIF orientation says (an unreadable EXIF counts as none). content: the file's
    bytes, where they are at hand; `path` then only names it.
    Alpha is dropped, palette, grey, CMYK, Lab become RGB, 16-bit grey is scaled to 8 bits.
    Raises ImageError if the file is missing, truncated or not an image; another InputError for a decompression
    bomb (more pixels than Pillow's Image.MAX_IMAGE_PIXELS twice over) and for a format outside FORMATS.
    """
    try:
        # Pillow warns of oversized images and damaged metadata; what matters of it raises.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(path if content is None else io.BytesIO(content), formats=formats()) as image:
                transpose = _load(image, rotate)
                rgb = _to_rgb(image)
                if transpose is not None:
                    rgb = rgb.transpose(transpose)
                pixels = np.array(rgb)  # [H, W, 3]
                _dropped.update(_left_out(image))
    except Exception as error:  # decoders raise nearly anything on hostile bytes
        raise _named(path, error, content) from error
    return torch.from_numpy(pixels).permute(2, 0, 1).contiguous()  # [3, H, W]


def image_size(path: str | Path, rotate: bool = True) -> tuple[int, int]:
    """Returns (height, width) of an image as `read_image` returns it, from its header where the format allows."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(path, formats=formats()) as image:
                if image.format == "TIFF":
                    turned = _load(image, rotate) in TURNING
                else:
                    turned = rotate and UPRIGHT.get(_orientation(image)) in TURNING
                width, height = image.size
    except Exception as error:  # as in read_image
        raise _named(path, error) from error
    return (width, height) if turned else (height, width)


def refuse(path: str | Path) -> None:
    """Raises InputError if `read_image` would refuse the file by its header; nothing if the file is only broken."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            Image.open(path, formats=formats()).close()
    except Exception as error:  # as in read_image
        named = _named(path, error)
        if not isinstance(named, ImageError):
            raise named from error


@functools.cache
def formats() -> tuple[str, ...]:
    """Returns FORMATS, as far as this Pillow has them."""
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


def image_suffixes() -> frozenset[str]:
    """Returns the suffixes of files that `read_image` reads, in small letters: ".jpg" and so on."""
    extensions = Image.registered_extensions().items()
    return frozenset(suffix for suffix, name in extensions if name in (*formats(), "MPO"))


def _load(image: Image.Image, rotate: bool) -> Image.Transpose | None:
    """Decodes an image; returns what then brings it upright, or with `rotate` False as it is stored; None: nothing.

    Pillow turns TIFFs upright itself, while it decodes them.
    """
    stored = UPRIGHT.get(_orientation(image)) if image.format == "TIFF" else None
    if stored in TURNING:
        image.filename = ""  # else Pillow 13 maps it by its upright size: findings/pillow_mapped_tiff_orientation.sh
    image.load()
    if rotate:
        return UPRIGHT.get(_orientation(image))
    return BACK.get(stored, stored)


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


def _left_out(image: Image.Image) -> list[str]:
    """Returns what is not used of an image whose first page is read; to be called last, as the page may change."""
    tags = getattr(image, "tag_v2", {})  # of a TIFF
    further = tags.get(SAMPLES_PER_PIXEL, 0) > len(image.getbands())
    transparent = image.mode in ("RGBA", "LA", "PA") and image.getchannel("A").getextrema()[0] < 255
    try:
        several = getattr(image, "is_animated", False)
    except Exception:  # decoders raise nearly anything on a damaged second page
        several = False
    return [PAGES] * bool(several) + [TRANSPARENCY] * transparent + [CHANNELS] * further


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I") or image.mode == "F":
        return Image.fromarray(_scale_to_8_bits(np.asarray(image))).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")  # the same mode would be copied


def _scale_to_8_bits(grey: np.ndarray) -> np.ndarray:
    """Scales grey [H, W] of more than 8 bits to uint8, by its type's range: integers 0..65535, floats 0..1."""
    if not np.isfinite(grey).all():
        raise ValueError("grey values are not finite")
    top = 1.0 if grey.dtype.kind == "f" else 65535
    if grey.size and (grey.min() < 0 or grey.max() > top):
        raise ValueError(f"grey values {grey.min():g}..{grey.max():g} exceed 0..{top:g}; convert to 8 bits")
    return np.rint(grey.astype(np.float64) * (255 / top)).astype(np.uint8)


def _named(path: str | Path, error: Exception, content: bytes | np.ndarray | None = None) -> InputError:
    """Returns what `read_image` raises for an error of Pillow."""
    if isinstance(error, Image.DecompressionBombError):
        return InputError(
            f"{path}: a decompression bomb, or far too large: {' '.join(str(error).split())} "
            "Scale it down, or take it out of the data"
        )
    if isinstance(error, Image.UnidentifiedImageError):
        refused = _refused_format(path, content)
        if refused:
            return InputError(f"{path}: {refused} images are not read; convert it to PNG or JPEG")
    return ImageError(path, _reason(path, error))


def _refused_format(path: str | Path, content: bytes | np.ndarray | None = None) -> str | None:
    """Returns the format outside FORMATS that the file begins as, without decoding anything."""
    with open(path, "rb") if content is None else io.BytesIO(content) as file:
        prefix = file.read(16)  # as many as Pillow shows them
    for name, (_, accept) in Image.OPEN.items():
        try:
            if name not in FORMATS and accept and accept(prefix) is True:
                return name
        except (SyntaxError, IndexError, TypeError, struct.error):  # what Pillow skips here
            continue
    return None


def _reason(path: str | Path, error: Exception) -> str:
    """Returns one line that says what is wrong with the file."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    if os.path.isfile(path) and os.path.getsize(path) == 0:
        return "the file is empty"
    if isinstance(error, Image.UnidentifiedImageError):
        return "not an image in a known format"
    return " ".join(f"cannot be decoded: {error or type(error).__name__}".split())
