"""Names of pages: stack.tif#3 is the fourth page of stack.tif; pages count from 0, as Pillow and tifffile count them.

Wherever an image's path may stand, the name of a page may; a file that is really called so comes first. The smaller
copies of a page that a TIFF holds (GDAL's overviews), and masks, are no pages.
"""

import os
import re
from pathlib import Path

from PIL import Image

KIND, COPY_OR_MASK = 254, 1 | 4  # TIFF 6.0: NewSubfileType, and its bits
NAME = re.compile(r"(.+\.\w+)#(\d{1,9})", re.DOTALL)


def page_of(path: str | Path) -> tuple[str, int | None]:
    """Returns (file, page) of the name of a page; (the path, None) of a file."""
    match = NAME.fullmatch(os.fspath(path))
    if match is None or os.path.lexists(path):
        return os.fspath(path), None
    return match[1], int(match[2])


def file_of(path: str | Path) -> str:
    """Returns the path of the file that a page lies in; of a file its own."""
    return page_of(path)[0]


def page_name(path: str, page: int) -> str:
    """Returns the name of a page of a file."""
    return f"{path}#{page}"


def without_suffix(path: str | Path) -> str:
    """Returns a path without the file's suffix: stack#3 for stack.tif#3."""
    file, page = page_of(path)
    name = os.path.splitext(file)[0]
    return name if page is None else page_name(name, page)


def stem_of(path: str | Path) -> str:
    """Returns the last part of `without_suffix`."""
    return os.path.basename(without_suffix(path))


def has_further_pages(image: Image.Image) -> bool:
    """Says whether an image has a page beside the first; it is left at the page that it is at."""
    here = image.tell()
    try:
        if image.format != "TIFF" or not image.is_animated:
            return bool(getattr(image, "is_animated", False))
        page = 1
        image.seek(page)
        while is_copy(image):
            page += 1
            image.seek(page)
    except Exception:  # after the last page EOFError; decoders raise nearly anything on a damaged one
        return False
    finally:
        image.seek(here)
    return True


def full_pages(image: Image.Image) -> int:
    """Returns the pages of an image, less the copies and masks that follow the last one."""
    count = int(getattr(image, "n_frames", 1))
    while count > 1:
        image.seek(count - 1)
        if not is_copy(image):
            break
        count -= 1
    return count


def is_copy(image: Image.Image) -> bool:
    """Says whether the page that a TIFF is at is a smaller copy or a mask of another."""
    return bool(getattr(image, "tag_v2", {}).get(KIND, 0) & COPY_OR_MASK)
