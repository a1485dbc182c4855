"""Names of pages: stack.tif#3 is the fourth page of stack.tif; pages count from 0, as Pillow and tifffile count them.

Wherever an image's path may stand, the name of a page may; a file that is really called so comes first.
"""

import os
import re
from pathlib import Path

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
