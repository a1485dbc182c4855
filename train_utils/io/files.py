"""Content -> a file, atomically: a fault or a kill leaves either the old content or the new, and one clear line."""

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from backbone.errors import InputError

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
FORBIDDEN = (errno.EACCES, errno.EPERM, errno.EROFS)


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
    if error.errno in FULL:
        needed = "" if size is None else f"{size:,} bytes needed, "
        return (
            f"no room left to write it ({os.strerror(error.errno)}; {needed}{_free(path)}); free some space or "
            "give another --output-dir (a training run goes on with --resume auto)"
        )
    if error.errno in FORBIDDEN:
        return f"may not be written ({os.strerror(error.errno)}); give an --output-dir that you may write to"
    if error.errno in (errno.EEXIST, errno.ENOTDIR):
        return "is a file, or lies in one, where a folder is needed; give another --output-dir"
    if error.errno == errno.EISDIR:
        return "is a folder, where a file is to be written; move it away, or give another --output-dir"
    return f"could not be written: {error.strerror or error}"


def _free(path: Path) -> str:
    """Returns how much room the disk of `path` has, in words; a quota may leave less."""
    try:
        return f"{shutil.disk_usage(path.parent).free:,} bytes free on the disk"
    except OSError:
        return "free space unknown"


@contextmanager
def atomic_file(path: str | Path, size: int | None = None) -> Iterator[BinaryIO]:
    """Opens a temporary file beside `path`, and renames it to `path` when the block ends without an error.

    The content reaches the disk (fsync) before the name does; after an error the temporary file is removed and `path`
    is untouched. size: of the content in bytes, for the message of a full disk. Raises InputError where the file
    cannot be written (full disk, read-only folder, ...).
    """
    path = Path(path)
    temporary = path.with_name(path.name + ".tmp")
    with writing(path, size):
        try:
            with open(temporary, "wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        sync_folder(path.parent)


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


def sync_folder(folder: Path) -> None:
    """Flushes the folder itself, so that a rename survives a power cut (POSIX only)."""
    if os.name != "posix":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
