"""Image files -> images [C, H, W], for data sets and prediction: 8 bits as uint8 RGB, more as float32 in 0..1.

A broken file is an ImageError, which commands skip and count. A decompression bomb, a format that is not read, and a
number of channels that the model does not take, are plain InputErrors, which end them. `Reading` says what a model
takes. One function decodes a file to its values (`_decoded`), one makes an image of these (`reading.scaled`).
`file_formats` has which files are read, and what is said of others.
"""

import functools
import io
import struct
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from network_files.config import ALL_PAGES, EACH_PAGE, FIRST_PAGE
from train_utils.data.images.depth import PLANAR, SAMPLES, SEPARATE, deep_values, is_deep, is_narrowed, is_sparse, tiles
from train_utils.data.images.file_formats import ImageError, formats, naming
from train_utils.data.images.orientation import (
    TURNING,
    UPRIGHT,
    left_to_do,
    loaded,
    orientation_of,
    stored_orientation,
    turned_values,
)
from train_utils.data.images.pages import file_of, full_pages, has_further_pages, page_of
from train_utils.data.images.reading import (
    ANY_CHANNELS,
    AS_STORED,
    USUAL,
    Reading,
    channel_axis,
    fitted,
    scaled,
    stacked,
)
from train_utils.data.images.tiff import described, is_tiff, no_such_page, read_tiff, tiff_pages
from train_utils.io.silence import without_warnings

ARRAY, ARRAY_SUFFIX = b"\x93NUMPY", ".npy"
PAGES, TRANSPARENCY, CHANNELS, DEPTH, BYTES = "pages", "transparency", "channels", "depth", "bytes"
NARROWED = "narrowed"
_dropped: Counter[str] = Counter()  # {what `read_image` left out or took for granted: images}, in this process


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
        if not to_look_at:
            _dropped.update(left_out + said_of(values, reading))
    return image


def said_of(values: np.ndarray, reading: Reading) -> list[str]:
    """Returns what is to be said of values in a file's units beside a value range, or without one."""
    in_bytes = values.dtype == np.uint8
    if reading.value_range is not None:
        return [BYTES] * in_bytes
    return [DEPTH] * (values.dtype.kind in "ui" and not in_bytes)  # floats in 0..1 need no range


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
                turned = rotate and UPRIGHT.get(orientation_of(image)) in TURNING
                tags = getattr(image, "tag_v2", None)
                width, height = image.size if tags is None else (tags[256], tags[257])  # Pillow's may be upright
        except Image.UnidentifiedImageError:
            of_page = replace(USUAL, page=page or 0)
            height, width, orientation = read_tiff(path, tiff_in_words(path), of_page, size_alone=True)
            turned = rotate and UPRIGHT.get(orientation) in TURNING
    return (width, height) if turned else (height, width)


def page_count(path: str | Path) -> int:
    """Returns the pages of an image file; 1 where they cannot be counted, which reading it explains.

    Smaller copies that follow the pages of a TIFF, and masks of them, are none.
    """
    try:
        with without_warnings:
            with Image.open(path, formats=formats()) as image:
                return full_pages(image)
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
            if not beyond_pillow(image, reading):
                return _of_pillow(image, opened, rotate, reading)
    except Image.UnidentifiedImageError:
        pass
    raw, alpha, orientation, pages = read_tiff(
        path if content is None else bytes(content), tiff_in_words(path, content), reading
    )
    several = [PAGES] * (pages > 1 and reading.pages == FIRST_PAGE)
    dropped = [TRANSPARENCY] * (is_dropped(raw, alpha, reading))
    raw = turned_values(fitted(raw, alpha, reading), UPRIGHT.get(orientation) if rotate else None)
    return raw.transpose(1, 2, 0), several + dropped


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
    stored = stored_orientation(image)
    raw, alpha = deep_values(image, again)
    return raw, alpha, left_to_do(image, stored, rotate)


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
    stored_orientation(image)
    image.seek(page)
    return image


def beyond_pillow(image: Image.Image, reading: Reading) -> bool:
    """Says whether Pillow decodes a TIFF wrongly, or leaves out bands that are asked for.

    Wrongly: bands of 16 bits one after another, compressed; tiles that the file leaves out. Of bands one after another
    that are no colours it gives the first as a grey image; of the same bands interleaved none, so that all are read.
    """
    separate = getattr(image, "tag_v2", {}).get(PLANAR) == SEPARATE
    first_alone = separate and len(image.getbands()) == 1 and image.mode != "P"
    if (is_sparse(image) and image.mode != "P") or has_further(image) and (first_alone or reading.channels > 3):
        return True
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


def take_dropped() -> Counter[str]:
    """Returns what `read_image` left out in this process since the last call: {PAGES, ... CHANNELS: images}."""
    taken = _dropped.copy()
    _dropped.clear()
    return taken


def has_further(image: Image.Image) -> bool:
    """Says whether a TIFF has more bands than Pillow gives."""
    return getattr(image, "tag_v2", {}).get(SAMPLES, 0) > len(image.getbands())


def _left_out(image: Image.Image, reading: Reading) -> list[str]:
    """Returns what is not used of an image whose first page is read; to be called last, as the page may change."""
    if reading.pages != FIRST_PAGE:
        return []
    unused = bands_left_out(image, reading)
    return [PAGES] * has_further_pages(image) + unused


def bands_left_out(image: Image.Image, reading: Reading) -> list[str]:
    """Returns which bands are not used of a page that is decoded: transparency that is not opaque, further ones."""
    further = has_further(image)
    transparent = image.mode in ("RGBA", "LA", "PA") and reading.channels != len(image.getbands())
    transparent = transparent and image.getextrema()[-1][0] < 255
    if image.mode == "P" and "transparency" in image.info and reading.channels not in (ANY_CHANNELS, 4):
        transparent = _shows_through(image)
    return [TRANSPARENCY] * transparent + [CHANNELS] * further


def _shows_through(image: Image.Image) -> bool:
    """Returns whether pixels of an image with a palette have a colour that is not opaque."""
    given, counts = image.info["transparency"], image.histogram()
    clear = [given] if isinstance(given, int) else [i for i, alpha in enumerate(given) if alpha < 255]
    return any(counts[i] for i in clear)


def is_dropped(raw: np.ndarray, alpha: bool, reading: Reading) -> bool:
    """Says whether the last of raw channels [C, H, W] is transparency that is not opaque, and is not used."""
    if not alpha or reading.channels in (ANY_CHANNELS, len(raw)):
        return False
    return bool((raw[-1] >> 8 * (raw.itemsize - 1) < 255).any()) if raw.dtype.kind == "u" else True
