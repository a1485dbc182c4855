"""A checkpoint -> its checksum, kept in the archive comment of its zip, which zip readers ignore.

    sha256=<64 hex digits> saved=<nanoseconds since 1970> own=<16 hex digits>

sha256 is the hash of all bytes before the comment's length. own is the start of the SHA-256 of the stamp's own text,
`sha256=... saved=...`, so that damage to the stamp shows too. Files of older versions have no own=.
"""

import hashlib
import os
import re
from pathlib import Path
from typing import BinaryIO

STAMP = re.compile(rb"(sha256=([0-9a-f]{64}) saved=(\d{1,30}))(?: own=([0-9a-f]{16}))?")
ZIP_END, ZIP_END_SIZE = b"PK\x05\x06", 22  # the record that ends a zip, before its comment
CHUNK = 1 << 20
NO_STAMP = (
    "the checksum at its end is missing or damaged; a file that you wrote with torch.save: write it with "
    "train_utils.checkpoints.checkpoint.save_checkpoint"
)


def make_stamp(sha256: str, saved: int) -> bytes:
    """Returns the comment for a file of this hash (hex digits), saved at that time (nanoseconds since 1970)."""
    stamp = f"sha256={sha256} saved={saved}".encode()
    return stamp + b" own=" + _own_hash(stamp)


def find_damage(path: str | Path) -> str | None:
    """Says what is wrong with the bytes of a file; None: nothing.

    A file without a stamp counts as damaged only if it looks like a checkpoint of this project.
    """
    try:
        with open(path, "rb") as file:
            damage, stamped = damage_of(file)
            if damage is None and not stamped:
                file.seek(0)
                damage = NO_STAMP if b"format_version" in file.read(CHUNK) else None
            return damage
    except OSError as error:
        return f"it cannot be read: {error.strerror}"


def damage_of(file: BinaryIO) -> tuple[str | None, bool]:
    """Returns what is wrong with a stamped file's bytes, or None, and whether it has a stamp."""
    size, comment = _read_comment(file)
    if size == 0 or comment is None:
        return ("it is empty" if size == 0 else "it was cut off"), True
    stamp = _parse(comment)
    if stamp is None:
        return None, False
    left = size - len(comment) - 2
    file.seek(0)
    sha256, buffer = hashlib.sha256(), memoryview(bytearray(CHUNK))
    while left > 0 and (count := file.readinto(buffer[: min(CHUNK, left)])):
        sha256.update(buffer[:count])
        left -= count
    right = sha256.hexdigest() == stamp[2].decode()
    return None if right else "its SHA-256 does not match its content", True


def saved_at(path: Path) -> int:
    """Returns when a checkpoint was saved, in nanoseconds since 1970; the file's date where it does not say."""
    with open(path, "rb") as file:
        stamp = _parse(_read_comment(file)[1])
    return int(stamp[3]) if stamp else path.stat().st_mtime_ns


def _parse(comment: bytes | None) -> re.Match | None:
    """Matches a sound stamp: groups 2 and 3 are the file's hash and when it was saved."""
    stamp = STAMP.fullmatch(comment or b"")
    return stamp if stamp and stamp[4] in (None, _own_hash(stamp[1])) else None


def _own_hash(stamp: bytes) -> bytes:
    return hashlib.sha256(stamp).hexdigest()[:16].encode()


def _read_comment(file: BinaryIO) -> tuple[int, bytes | None]:
    """Returns the file's size and its zip comment: b"" where it is no zip, None where the comment was cut off."""
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - 256))
    tail = file.read()
    start = tail.rfind(ZIP_END)
    if start < 0:
        return size, b""
    comment = tail[start + ZIP_END_SIZE :]
    length = int.from_bytes(tail[start + ZIP_END_SIZE - 2 : start + ZIP_END_SIZE], "little")
    return size, comment if len(comment) == length else None
