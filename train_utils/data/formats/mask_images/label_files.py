"""A mask file -> a label image: a number for each pixel, 0 for background.

Numbers are the file's own: grey of 8, 16, 32 or 64 bits, a palette's indices, 0 and 1 of a bitmap. Of an RGB file each
colour is a number, black is 0. What would change numbers in silence is refused: lossy formats, alpha, several pages.
"""

import functools
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

from backbone.errors import InputError
from train_utils.data.images import formats, tiff_in_words
from train_utils.data.images.depth import deep_values, is_deep, is_narrowed, is_sparse
from train_utils.data.images.file_formats import naming
from train_utils.data.images.pages import page_of
from train_utils.data.images.reading import AS_STORED
from train_utils.data.images.tiff import read_tiff
from train_utils.io.plain_text import counted
from train_utils.io.silence import without_warnings

LOSSLESS = ("PNG", "TIFF", "BMP", "GIF", "PPM")
VOC_VOID, VOID = (224, 224, 192), 255  # colour and index of the outlines in VOC's palette, which are no object
MOST = 2**32 - 1  # the highest number
MOST_COLOURS = 4096  # a picture has more, instances that are coloured by hand or by a tool have fewer
PHOTOMETRIC, SAMPLE_FORMAT, WHITE_IS_ZERO, SIGNED = 262, 339, 0, 2  # TIFF 6.0: tags and their values
BOMB = "has far more pixels than a mask; scale it down with its image, or take it out"


def read_labels(path: Path) -> tuple[np.ndarray, bool]:
    """Returns (a label image, uint8, uint16, uint32 [H, W]; whether its numbers are colours).

    InputError names the file for what is none.
    """
    file, page = page_of(path)
    try:
        with without_warnings:  # of large sizes and damaged tags; what matters of it raises
            image = Image.open(file, formats=formats())
        with image:
            image.seek(page or 0)
            _refuse(path, image, page)
            mode = image.mode
            again = functools.partial(Image.open, file, formats=formats())
            pixels = deep_values(image, again)[0][0] if mode[0] in "IF" else np.array(image)
            _refuse_negative(path, image, pixels)
            void = mode == "P" and (image.getpalette() or [])[3 * VOID : 3 * VOID + 3] == list(VOC_VOID)
    except InputError:
        raise
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such mask") from error
    except Image.UnidentifiedImageError as error:
        return _of_tifffile(path, file, page, error), False
    except Image.DecompressionBombError as error:
        raise InputError(f"{path}: {BOMB}") from error
    except Exception as error:  # decoders raise nearly anything on hostile bytes
        raise InputError(f"{path}: this mask cannot be read ({error}); save it again as PNG or TIFF") from error
    if mode in ("LA", "RGBA", "PA"):
        if (pixels[..., -1] < 255).any():
            raise InputError(f"{path}: this mask has transparent pixels; save it without an alpha channel")
        pixels = pixels[..., :-1].squeeze(2) if mode != "RGBA" else pixels[..., :3]
    if pixels.ndim == 3:
        return _colours(path, pixels, mode)
    if mode == "F":
        return _whole(path, pixels), False
    if void:
        rest = np.where(pixels == VOID, 0, pixels)
        if pixels.any() and not rest.any():
            raise InputError(
                f"{path}: its only value beside 0 is 255, with the colour of the outlines in VOC's palette, which are "
                "no object; number objects from 1"
            )
        pixels = rest
    if pixels.dtype.kind == "i":
        return pixels.view(np.uint32 if pixels.dtype.itemsize == 4 else np.uint16), False
    return pixels.astype(np.uint8 if pixels.dtype == bool else pixels.dtype.newbyteorder("="), copy=False), False


def _of_tifffile(path: Path, file: str, page: int | None, error: Exception) -> np.ndarray:
    """Returns a label image of a TIFF that Pillow does not know: of 64 bits, as numpy numbers; uint32 [H, W].

    error: of Pillow, for files that are none. Raises InputError without tifffile, or where its numbers are not whole.
    """
    try:
        what = tiff_in_words(file)
    except Image.UnidentifiedImageError:
        raise InputError(f"{path}: this mask cannot be read ({error}); save it again as PNG or TIFF") from error
    with naming(path):
        layers, _, _, pages = read_tiff(file, what, replace(AS_STORED, page=page or 0))
    if len(layers) != 1 or (pages > 1 and page is None):
        raise InputError(f"{path}: {what}, of {counted(pages, 'page')}; a mask has one, with a number for each object")
    if layers.dtype.kind in "iu" and (layers.min() < 0 or layers.max() > MOST):
        raise InputError(f"{path}: holds numbers from {layers.min()} to {layers.max()}; objects are numbered from 1")
    return _whole(path, layers[0]) if layers.dtype.kind == "f" else layers[0].astype(np.uint32)


def _refuse(path: Path, image: Image.Image, page: int | None) -> None:
    """Raises InputError for a file whose numbers are not those that were saved; page: the one that is named."""
    if image.format not in LOSSLESS:
        raise InputError(
            f"{path}: {image.format} does not keep a mask's numbers; save it as PNG or TIFF from where it was drawn"
        )
    if image.mode[0] not in "IF" and (is_deep(image) or is_narrowed(image)):
        raise InputError(
            f"{path}: has colours of more than 8 bits, of which only the upper 8 would be read; save it as grey of 16 "
            "bits, a number for each object"
        )
    if image.format == "TIFF":
        pages, tags = getattr(image, "n_frames", 1), image.tag_v2
        if pages > 1 and page is None:
            raise InputError(f"{path}: holds {pages} pages; a mask has one page, with a number for each object")
        if is_sparse(image):
            raise InputError(f"{path}: leaves out tiles without a value (GDAL's SPARSE_OK); save it with all of them")
        if tags.get(PHOTOMETRIC) == WHITE_IS_ZERO and image.mode != "1":
            raise InputError(f"{path}: is saved with white as 0, which leaves open what is background; save it anew")


def _refuse_negative(path: Path, image: Image.Image, pixels: np.ndarray) -> None:
    """Raises InputError for signed numbers below 0; pixels: as decoded, unsigned ones of 32 bits are signed, too."""
    signed = getattr(image, "tag_v2", {}).get(SAMPLE_FORMAT, (1,))
    if SIGNED in (signed if isinstance(signed, tuple) else (signed,)) and pixels.min() < 0:
        raise InputError(f"{path}: holds numbers below 0; objects are numbered from 1, 0 is background")


def _whole(path: Path, pixels: np.ndarray) -> np.ndarray:
    """Returns a label image that was saved as floats."""
    if not np.isfinite(pixels).all() or (pixels != np.floor(pixels)).any() or pixels.min() < 0 or pixels.max() >= 2**24:
        raise InputError(
            f"{path}: holds floats from {pixels.min():g} to {pixels.max():g}; whole numbers from 0 are needed, one for "
            "each object"
        )
    return pixels.astype(np.uint32)


def _colours(path: Path, pixels: np.ndarray, mode: str) -> tuple[np.ndarray, bool]:
    """Returns what `read_labels` does of an RGB file; where all pixels are grey, its numbers are its grey values."""
    if mode not in ("RGB", "RGBA"):
        raise InputError(f"{path}: a mask is grey, has a palette, or is RGB; this one is {mode}")
    if (pixels == pixels[..., :1]).all():
        return np.ascontiguousarray(pixels[..., 0]), False
    numbers = (pixels.astype(np.uint32) << np.array([16, 8, 0], dtype=np.uint32)).sum(2, dtype=np.uint32)
    numbers[(pixels == VOC_VOID).all(2)] = 0
    count = len(np.unique(numbers))
    if count > MOST_COLOURS:
        raise InputError(
            f"{path}: has {count} colours, as a picture has; a mask has a colour or number for each object; "
            "save it so, and scale masks by nearest neighbour"
        )
    return numbers, True
