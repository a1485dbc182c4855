"""What is being written, under a name that nobody else uses, until it is complete; and what killed processes left.

The names are of NAME, random, and made exclusively: two writers never share one, and no link that lies there is
followed. Its process holds a lock on each, which ends however the process ends. So whoever starts next in that folder
knows what was left behind.
"""

import os
import re
import secrets
import shutil
import signal
import stat
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import BinaryIO, NoReturn

from train_utils.io.plain_text import visible

try:
    import fcntl
except ImportError:  # Windows, where an open file can be neither removed nor renamed
    fcntl = None

NAME = re.compile(r"\.maskrcnn-[0-9a-f]{16}\.unfinished")  # of files, and of folders that hold a LOCK
# What older versions called them: nothing tells whether their process lives, or whether they are the user's.
OLDER = re.compile(
    r"\..+-unfinished-[a-z0-9_]{8}|"
    r"(model_(\d+|best|min_val_loss|previous)\.pth|args\.json|(det|seg)_results\d{8}-\d{6}\.(txt|json)|"
    r"record_mAP\.(txt|json)|test_result\.(jpg|json))\.tmp"
)
LOCK = "lock"
PLAIN = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)  # flags of os.open
STOPS = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name))


class Stopped(SystemExit):
    """The process was told to end by a signal: exit status 128 + its number."""

    def __init__(self, number: int) -> None:
        super().__init__(128 + number)
        self.number = number


@contextmanager
def unfinished_file(folder: Path) -> Iterator[tuple[BinaryIO, Path]]:
    """Opens a file in `folder` to fill; the block renames it once complete, else it is removed. Raises OSError."""
    with stopped_in_order():
        file, path = _create_file(folder)
        try:
            with file:
                yield file, path
        finally:
            path.unlink(missing_ok=True)


def rename(file: BinaryIO, path: Path, to: Path) -> None:
    """Gives an unfinished file its name, once its content has reached the disk (fsync)."""
    file.flush()
    os.fsync(file.fileno())
    if fcntl is None:
        file.close()
    os.replace(path, to)


def new_file(path: Path) -> BinaryIO:
    """Opens a file that must not exist yet, for writing. Raises OSError."""
    return os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | PLAIN, 0o666), "wb")


def _create_file(folder: Path) -> tuple[BinaryIO, Path]:
    """Makes an unfinished file, which this process owns; returns it with its path."""
    while True:
        path = folder / new_name()
        file = new_file(path)
        # else `clear_leftovers` of another process came between
        if locked(file.fileno()) is not False and is_at(file.fileno(), path):
            return file, path
        file.close()


def new_name() -> str:
    """Returns a name of NAME."""
    return f".maskrcnn-{secrets.token_hex(8)}.unfinished"


def locked(handle: int, shared: bool = False) -> bool | None:
    """Locks an open file for as long as it is open: True; False: another has done so; None: there are no locks."""
    if fcntl is None:
        return None
    try:
        fcntl.flock(handle, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # network file systems without locks
        return None
    return True


def is_at(handle: int, path: Path) -> bool:
    """Returns whether an open file still has this name."""
    with suppress(FileNotFoundError):
        return os.path.samestat(os.fstat(handle), os.lstat(path))
    return False


@contextmanager
def unfinished_folder(place: Path) -> Iterator[Path]:
    """Makes a folder in `place` to fill; the block renames it once complete, else it is removed. Raises OSError."""
    with stopped_in_order():
        room, lock = _create_folder(place)
        try:
            with lock:
                unfinished = room / "content"  # with the user's umask, as `room` is not
                unfinished.mkdir()
                yield unfinished
        finally:
            shutil.rmtree(room, ignore_errors=True)


def _create_folder(place: Path) -> tuple[Path, BinaryIO]:
    while True:
        room = place / new_name()
        os.mkdir(room, 0o700)
        with suppress(FileNotFoundError):  # `clear_leftovers` of another process came between
            lock = new_file(room / LOCK)
            if locked(lock.fileno()) is not False and is_at(lock.fileno(), room / LOCK):
                return room, lock
            lock.close()


def clear_leftovers(folder: str | Path) -> None:
    """Removes what killed processes left unfinished in a folder, and says so; what a living one writes stays.

    What has a name that older versions used stays, too, and is named.
    """
    try:
        names = os.listdir(folder)
    except OSError:  # no such folder yet
        return
    if older := sorted(filter(OLDER.fullmatch, names)):
        such = visible(f"{folder}: files or folders such as {older[0]} ({len(older)} in all)")
        print(f"{such} are called as an older version's unfinished ones: they stay; remove them if they are not yours")
    count = sum(_remove_abandoned(Path(folder) / name) for name in names if NAME.fullmatch(name))
    if count:
        print(f"removed from {visible(str(folder))}: unfinished files or folders of killed processes ({count} in all)")


def _remove_abandoned(path: Path) -> bool:
    """Removes an unfinished file or folder unless its process lives, or that is not known; returns whether it did."""
    is_folder = stat.S_ISDIR(os.lstat(path).st_mode)
    lock = path / LOCK if is_folder else path
    with suppress(OSError):
        if is_folder and not lock.exists():
            path.rmdir()  # killed between two lines; fails unless empty
            return True
        handle = os.open(lock, os.O_RDWR | PLAIN)
        try:
            own = stat.S_ISREG(os.fstat(handle).st_mode) and locked(handle) and is_at(handle, lock)
            if own and is_folder:
                shutil.rmtree(path)
            elif own:
                path.unlink()
            return bool(own)
        finally:
            os.close(handle)
    return False


@contextmanager
def stopped_in_order() -> Iterator[None]:
    """Lets SIGTERM and SIGHUP end the block by an exception, where they would end the process on the spot.

    A signal that is ignored (nohup), or that others handle, stays so.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    own = [number for number in STOPS if signal.getsignal(number) == signal.SIG_DFL]
    for number in own:
        signal.signal(number, _stop)
    try:
        yield
    finally:
        for number in own:
            signal.signal(number, signal.SIG_DFL)


def _stop(number: int, _: FrameType | None) -> NoReturn:
    raise Stopped(number)
