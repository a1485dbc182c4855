"""The EXIF orientation of an image -> what brings its pixels upright."""

import numpy as np
from PIL import Image

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


def loaded(image: Image.Image, rotate: bool) -> Image.Transpose | None:
    """Decodes an image; returns what then brings it upright, or with `rotate` False as it is stored; None: nothing."""
    stored = stored_orientation(image)
    image.load()
    return left_to_do(image, stored, rotate)


def stored_orientation(image: Image.Image) -> Image.Transpose | None:
    """Returns what Pillow does to an image while it decodes it: it turns TIFFs upright itself. Comes before that."""
    stored = UPRIGHT.get(orientation_of(image)) if image.format == "TIFF" else None
    if stored in TURNING:
        image.filename = ""  # else Pillow 13 maps it by its upright size: findings/pillow_mapped_tiff_orientation.sh
    return stored


def left_to_do(image: Image.Image, stored: Image.Transpose | None, rotate: bool) -> Image.Transpose | None:
    """Returns what is left to be done to a decoded image."""
    return UPRIGHT.get(orientation_of(image)) if rotate else BACK.get(stored, stored)


def orientation_of(image: Image.Image) -> int:
    """Returns the EXIF orientation, 1..8; 1 for damaged EXIF, which is common and says nothing about the pixels."""
    try:
        value = image.getexif().get(EXIF_ORIENTATION, 1)
    except Exception:  # Pillow's EXIF parser raises nearly anything on damaged tags
        return 1
    return value if isinstance(value, int) else 1


def turned_values(raw: np.ndarray, transpose: Image.Transpose | None) -> np.ndarray:
    """Returns an array [C, H, W], transposed as Pillow does."""
    if transpose in (UPRIGHT[5], UPRIGHT[7]):
        raw = raw.transpose(0, 2, 1)
    if transpose in (UPRIGHT[6], UPRIGHT[8]):
        return np.rot90(raw, 3 if transpose == UPRIGHT[6] else 1, (1, 2))
    vertical = -1 if transpose in (UPRIGHT[3], UPRIGHT[4], UPRIGHT[7]) else 1
    horizontal = -1 if transpose in (UPRIGHT[2], UPRIGHT[3], UPRIGHT[7]) else 1
    return raw[:, ::vertical, ::horizontal]
