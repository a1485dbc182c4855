"""The lock of a run folder: one run at a time writes there. It ends with its process, however that ends."""

import datetime
import json
import os
import socket
import sys
import time
from pathlib import Path
from typing import Any, BinaryIO

from train_utils.io.files import open_to_append, writing
from train_utils.io.plain_text import visible
from train_utils.io.unfinished import is_at

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

NAME = ".lock"
BEGUN = "begun"  # when the first start of its launcher took it, in nanoseconds since 1970


class RunLock:
    """A lock that this process holds on a folder, until the block ends or its process does.

    It is a POSIX record lock: forked loader workers do not inherit it, so a worker that outlives a killed run by a
    moment does not hold it. (Such a lock also ends when its process opens and closes the file once more, so nothing
    here reads the file while a run goes on.)
    """

    def __init__(self, file: BinaryIO) -> None:
        self.file = file

    def __enter__(self) -> "RunLock":
        return self

    def __exit__(self, *_: Any) -> None:
        self.file.close()

    @classmethod
    def take(cls, folder: Path) -> "RunLock | None":
        """Takes the lock; returns None if another living process holds it. Raises InputError if it can't be written."""
        path = folder / NAME
        file = open_to_append(path)
        try:
            _lock_file(file)
        except (BlockingIOError, PermissionError):
            file.close()
            return None
        except OSError as error:  # network file systems without locks
            line = f"warning: {path}: {error.strerror}; nothing keeps a second run out"
            print(visible(line), file=sys.stderr, flush=True)
        if not is_at(file.fileno(), path):  # its holder has just removed it
            file.close()
            return None
        file.seek(0)
        before, launcher = _who(file.read()), launcher_name()
        again = restarts() > 0 and before.get("launcher") == launcher
        with writing(path):
            who = {
                "pid": os.getpid(),
                "host": socket.gethostname(),
                "launcher": launcher,
                "since": datetime.datetime.now().isoformat(" ", "seconds"),
                BEGUN: before.get(BEGUN, 0) if again else time.time_ns(),
            }
            file.truncate(0)
            file.write(json.dumps(who).encode())
        return cls(file)


def _lock_file(file: BinaryIO) -> None:
    if fcntl:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    else:
        import msvcrt

        file.seek(0)
        msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)


def restarts() -> int:
    """Returns how often torchrun has restarted this process; 0 without torchrun."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0))


def launcher_name() -> str | None:
    """Returns what the processes of one torchrun share over its restarts; None without torchrun."""
    run = os.environ.get("TORCHELASTIC_RUN_ID")
    return run and f"{run} {socket.gethostname()} {os.getppid()}"


def holder(folder: Path) -> dict:
    """Reads what the last run that locked `folder` wrote about itself; empty if none did."""
    path = folder / NAME
    try:
        return {} if path.is_symlink() or not path.is_file() else _who(path.read_bytes())
    except OSError:
        return {}


def _who(content: bytes) -> dict:
    try:
        who = json.loads(content)
    except ValueError:
        return {}
    return who if isinstance(who, dict) else {}


def busy(folder: Path) -> str:
    """Returns who holds the lock of `folder`, in words."""
    who = holder(folder)
    return "another run writes to this folder" + (
        f" (process {who.get('pid')} on {who.get('host')}, since {who.get('since')})" if who else ""
    )
