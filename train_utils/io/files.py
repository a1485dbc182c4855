"""Content -> a file, atomically: a fault or a kill leaves either the old content or the new, and one clear line.

All files that the project writes are opened here or in `unfinished.py`: exclusively, or without following a link. A
lint of the tests says so.
"""

import errno
import os
import shutil
import stat
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from backbone.errors import InputError
from train_utils.io import unfinished
from train_utils.io.unfinished import PLAIN

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
FORBIDDEN = (errno.EACCES, errno.EPERM, errno.EROFS)
PLACES = ("--output-dir", "--output", "OUT")  # how commands call the place that they write to
CHUNK = 2**20  # bytes copied at once
_flags: frozenset[object] = frozenset()  # of the command that runs: messages name no other


def replaced_lines(*paths: Path) -> list[str]:
    """Returns a line that names those of the files that are there, of an earlier call; empty where there are none."""
    there = [path for path in paths if path.is_file()]
    if not there:
        return []
    when = time.strftime("%Y-%m-%d %H:%M", time.localtime(max(path.stat().st_mtime for path in there)))
    return [f"replaces results of an earlier call, of {when}: {', '.join(map(str, there))}"]


def name_flags(flags: Collection[object]) -> None:
    """Notes what the command that runs calls its flags and places."""
    global _flags
    _flags = frozenset(flags)


def user_path(path: str | Path) -> Path:
    """Returns a path as the user typed it, with `~` expanded if there is such a user (else it is a name)."""
    return Path(os.path.expanduser(path))


@contextmanager
def writing(path: str | Path, size: int | None = None) -> Iterator[None]:
    """Turns an OSError raised while `path` is written into an InputError that says what to do; size: bytes needed."""
    try:
        yield
    except OSError as error:
        raise InputError(f"{path}: {_advice(error, Path(path), size)}") from error


def _advice(error: OSError, path: Path, size: int | None) -> str:
    places = [place for place in PLACES if place in _flags]
    elsewhere = f"give another {' or '.join(places) or 'folder'}"
    if error.errno in FULL:
        needed = "" if size is None else f"{size:,} bytes needed, "
        resume = "; --resume goes on" if "--resume" in _flags else ""
        why = f"{os.strerror(error.errno)}; {needed}{_free(path)}"
        return f"no room left to write it ({why}); free some space or {elsewhere}{resume}"
    if error.errno in FORBIDDEN:
        return f"may not be written ({os.strerror(error.errno)}); {elsewhere} that you may write to"
    if error.errno in (errno.EEXIST, errno.ENOTDIR):
        return f"is a file, or lies in one, where a folder is needed; {elsewhere}"
    if error.errno == errno.EISDIR:
        return f"is a folder, where a file is to be written; move it away, or {elsewhere}"
    if error.errno == errno.ELOOP:
        return f"is a link, or no plain file: nothing is written through it; remove it, or {elsewhere}"
    return f"could not be written: {error.strerror or error}"


def _free(path: Path) -> str:
    """Returns how much room the disk of `path` has, in words; a quota may leave less."""
    try:
        return f"{shutil.disk_usage(path.parent).free:,} bytes free on the disk"
    except OSError:
        return "free space unknown"


@contextmanager
def atomic_file(path: str | Path, size: int | None = None) -> Iterator[BinaryIO]:
    """Opens an unfinished file beside `path`, and renames it to `path` when the block ends without an error.

    The content reaches the disk (fsync) before the name does; after an error the unfinished file is removed and `path`
    is untouched. Of several writers at once the last to end wins, whole. size: of the content in bytes, for the message
    of a full disk. Raises InputError where the file cannot be written (full disk, read-only folder, ...).
    """
    path = Path(path)
    with writing(path, size), unfinished.unfinished_file(path.parent) as (file, temporary):
        yield file
        unfinished.rename(file, temporary, path)
        sync_folder(path.parent)


def open_to_append(path: Path) -> BinaryIO:
    """Opens a file, which is made where there is none, to be appended to (unbuffered) and read.

    Raises InputError where it is a link or no plain file, and as `atomic_file`.
    """
    with writing(path):
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | PLAIN, 0o666)
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            os.close(handle)
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
        return os.fdopen(handle, "a+b", buffering=0)


def second_name(path: Path, to: Path) -> None:
    """Gives the file `path` a second name atomically (a hard link where the disk has them, else a copy).

    Files are always replaced, never changed in place, so the two names stay independent.
    """
    with open(path, "rb") as source:
        unfinished.locked(source.fileno(), shared=True)  # keeps `clear_leftovers` of other processes away
        temporary = to.with_name(unfinished.new_name())
        try:
            os.link(path, temporary)
        except OSError:
            with atomic_file(to) as target:
                shutil.copyfileobj(source, target, CHUNK)
            return
        try:
            with writing(to):
                os.replace(temporary, to)
        finally:  # if both names already were one file, replace leaves the temporary name behind (POSIX rename)
            temporary.unlink(missing_ok=True)


def read_text(path: str | Path) -> str:
    """Returns the content of a UTF-8 file; raises InputError where it cannot be read."""
    try:
        return Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read ({error})") from error


def write_text(path: str | Path, text: str) -> None:
    """Replaces the content of `path` by `text` (UTF-8) atomically; raises InputError as `atomic_file`."""
    content = text.encode()
    with atomic_file(path, len(content)) as file:
        file.write(content)


def make_folder(path: str | Path) -> Path:
    """Creates a folder and its missing parents; raises InputError if that fails."""
    with writing(path):
        Path(path).mkdir(parents=True, exist_ok=True)
    return Path(path)


def missing_folders(path: str | Path) -> list[Path]:
    """Returns what of a folder and its parents is not there, the inner one first."""
    return [each for each in (Path(path), *Path(path).parents) if not each.exists()]


def folder_to_write(path: str | Path) -> Path:
    """Creates the folder that a command writes to, and clears it of what killed processes left unfinished."""
    folder = make_folder(path)
    unfinished.clear_leftovers(folder)
    return folder


@contextmanager
def folder_of_result(path: str | Path) -> Iterator[Path]:
    """Creates a folder as `folder_to_write`; removes at the end what it has made and nothing was written into."""
    path = Path(path)
    made = missing_folders(path)
    try:
        yield folder_to_write(path)
    finally:
        with suppress(OSError):  # it holds something
            for each in made:
                each.rmdir()


def inner_folder(folder: str | Path, name: str) -> Path:
    """Creates a folder of the project's own in `folder`; raises InputError where a link has its name."""
    path = Path(folder) / name
    with writing(path):
        if path.is_symlink():
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
    return make_folder(path)


@contextmanager
def new_folder(path: str | Path) -> Iterator[Path]:
    """Makes a folder to fill, which becomes `path` when the block ends without an error, and is removed otherwise.

    Raises InputError where `path` exists, or cannot be written.
    """
    path = user_path(path)
    if os.path.lexists(path):
        raise InputError(f"{path}: exists already; give another folder, or remove it")
    make_folder(path.parent)
    unfinished.clear_leftovers(path.parent)
    with writing(path), unfinished.unfinished_folder(path.parent) as room:
        yield room
        os.rename(room, path)


def sync_folder(folder: Path) -> None:
    """Flushes the folder itself, so that a rename survives a power cut (POSIX only)."""
    if os.name != "posix":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
