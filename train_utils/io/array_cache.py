"""Checked annotations <-> flat arrays on disk, so that a large json is parsed once.

An index is one file per json content: a line with the checksum of all that follows, padded, then an array_block of
the format, the json's hash, plain values and the arrays. It is mapped into memory read-only: all
processes of a machine share its pages. It counts only if format, hash of the json's bytes and checksum are
right; any other is built anew and replaced. Ranks may write at once: each writes a file of its own and renames it.

Indexes lie in $MASKRCNN_CACHE, else $XDG_CACHE_HOME/maskrcnn, else ~/.cache/maskrcnn; MASKRCNN_CACHE=off keeps
none. Only jsons of at least 8 MiB get one (others open in less than a second), and only the newest 8 are kept.
Anything in the folder may be deleted at any time, but not written into: a process may have it mapped.
"""

import hashlib
import mmap
import os
import re
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

import numpy as np

from train_utils.io.array_block import ALIGNED, block_pieces, read_block
from train_utils.io.files import user_path
from train_utils.io.unfinished import clear_leftovers, rename, unfinished_file

MAGIC = b"maskrcnn annotations"
FIRST = 2 * ALIGNED  # bytes of the line with the checksum
FORMAT = 6  # to be raised when arrays, or what is checked or skipped, change
WORTHWHILE = 2**23  # bytes of json
KEPT = 8
SUFFIX = ".annotations"
OWN = re.compile(r"[0-9a-f]{64}\.annotations")  # names of indexes: others' files stay


def cache_folder() -> Path | None:
    """Returns where indexes lie; None if the cache is off, or if the user has no home."""
    given = os.environ.get("MASKRCNN_CACHE", "")
    if given:
        return None if given.lower() == "off" else user_path(given)
    folder = user_path(os.environ.get("XDG_CACHE_HOME") or "~/.cache")
    return folder / "maskrcnn" if folder.is_absolute() else None  # `~` stays where there is no home


def new_hash() -> "hashlib._Hash":
    """Returns the hash that names a json's content and checks an index."""
    return hashlib.blake2b(digest_size=32)


def file_hash(file: BinaryIO) -> str:
    """Returns the hash of all bytes from where `file` stands to its end."""
    state, buffer = new_hash(), memoryview(bytearray(2**20))
    while count := file.readinto(buffer):
        state.update(buffer[:count])
    return state.hexdigest()


def load(content: str, dtypes: dict[str, type]) -> tuple[dict, dict[str, np.ndarray]] | None:
    """Returns (plain values, read-only arrays) stored for a json of this hash; None where there is no sound index."""
    folder = cache_folder()
    if folder is None:
        return None
    try:
        with open(folder / (content + SUFFIX), "rb") as file:
            checksum = file.read(FIRST)
            if not checksum.startswith(MAGIC) or checksum != _first_line(file_hash(file)):
                return None
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        stored, arrays = read_block(mapped, FIRST, dtypes)
    except (OSError, ValueError):  # absent, not to be read, of other arrays: as good as none
        return None
    right = (stored["format"], stored["content"]) == (FORMAT, content)
    return (stored["values"], arrays) if right else None


def store(content: str, values: dict, arrays: dict[str, np.ndarray]) -> str | None:
    """Keeps plain values and arrays for a json of this hash. Returns None, or why that could not be done."""
    folder = cache_folder()
    if folder is None:
        return None
    pieces = block_pieces({"format": FORMAT, "content": content, "values": values}, arrays)
    state = new_hash()
    for piece in pieces:
        state.update(piece)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        clear_leftovers(folder)
        _remove_old(folder)
        with unfinished_file(folder) as (file, path):  # with the user's umask: the folder may be shared
            file.writelines([_first_line(state.hexdigest()), *pieces])
            # another process may have been quicker, and may have its file mapped
            if load(content, {name: array.dtype for name, array in arrays.items()}) is None:
                rename(file, path, folder / (content + SUFFIX))
    except OSError as error:
        return f"not kept in {folder} for the next time ({error.strerror or error})"
    return None


def _first_line(checksum: str) -> bytes:
    return (MAGIC + b" " + checksum.encode()).ljust(FIRST - 1) + b"\n"


def _remove_old(folder: Path) -> None:
    """Leaves room for one more index; what another process has removed meanwhile is gone, what is no index stays."""
    ages = []
    for path in folder.iterdir():
        if OWN.fullmatch(path.name) and path.is_file() and not path.is_symlink():
            with suppress(OSError), open(path, "rb") as file:
                if file.read(len(MAGIC)) == MAGIC:
                    ages.append((os.fstat(file.fileno()).st_mtime, path))
    for _, path in sorted(ages)[: 1 - KEPT]:
        path.unlink(missing_ok=True)
