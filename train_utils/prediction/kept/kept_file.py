"""What is known of images, and their values -> a file of lines that a kill at any moment leaves readable.

The first line is a json that says what was asked for. Each other one is a json that says which image it is of, a tab,
and the json of the values: the image's results, or what some of its tiles show. The first process of a call writes
NAME.unfinished, the others NAME.unfinished.1 and so on; the first process of a second call NAME.unfinished-2.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from train_utils.io import unfinished
from train_utils.io.files import open_to_append

FIRST_TILE = "first_tile"  # what a line about tiles has
WRITTEN_AT_ONCE = 2000  # values
NAME = r"\.unfinished(?:-(\d+))?"  # behind the json's: of the first process of a call


def name_of(result: Path, number: int) -> Path:
    """Returns what the number-th call (from 1) that writes a json keeps."""
    return result.with_name(f"{result.name}.unfinished" + (f"-{number}" if number > 1 else ""))


def numbers_of(result: Path) -> list[int]:
    """Returns the numbers of the calls that keep or have kept something of a json."""
    names = (re.fullmatch(re.escape(result.name) + NAME, path.name) for path in result.parent.iterdir())
    return sorted(int(name[1] or 1) for name in names if name)


class Place(NamedTuple):
    """Where values lie: in which file, and where in it, in bytes."""

    file: Path
    start: int
    size: int

    def values(self) -> list:
        """Reads the values."""
        with open(self.file, "rb") as file:
            file.seek(self.start)
            return json.loads(file.read(self.size))


class Line(NamedTuple):
    """A line: what it says of its image, where its values lie, and how many they are."""

    about: dict[str, Any]
    place: Place
    count: int

    @property
    def is_of_tiles(self) -> bool:
        """Whether its values are of tiles of an image that was not complete."""
        return FIRST_TILE in self.about


class Lines:
    """The lines of a file that are complete; each is read once, those that are new the next time."""

    def __init__(self, path: Path) -> None:
        self.path, self.end = path, 0  # bytes that are read

    def __iter__(self) -> Iterator[Line]:
        with open(self.path, "rb") as file:
            file.seek(self.end)
            if not self.end:
                head = file.readline()
                self.end = len(head) if head.endswith(b"\n") else 0
            for line in file:
                head, _, body = line.partition(b"\t")
                try:
                    about, count = json.loads(head), len(json.loads(body))
                except ValueError:  # of a line that a power cut has left
                    return
                if not line.endswith(b"\n"):
                    return
                start = self.end + len(head) + 1
                self.end += len(line)
                yield Line(about, Place(self.path, start, len(body) - 1), count)

    def cut_off_rest(self) -> None:
        """Cuts off what a kill has left behind the last line that was read."""
        with open_to_append(self.path) as file:
            file.truncate(self.end)


class KeptFile:
    """A file that this process appends to. It holds a lock on it, which ends however the process ends."""

    def __init__(self, path: Path, file: BinaryIO) -> None:
        self.path, self.file = path, file

    @classmethod
    def open(cls, path: Path) -> KeptFile | None:
        """Opens a file, which is made where there is none; returns None where another process writes it."""
        file = open_to_append(path)
        if unfinished.locked(file.fileno()) is not False and unfinished.is_at(file.fileno(), path):
            return cls(path, file)
        file.close()
        return None

    def asked(self) -> dict[str, Any] | None:
        """Returns what its first line says was asked for; None where it is damaged."""
        with open(self.path, "rb") as file, suppress(ValueError):
            asked = json.loads(file.readline())
            return asked if isinstance(asked, dict) else None
        return None

    def begin(self, asked: dict[str, Any]) -> None:
        """Begins anew."""
        self.file.truncate(0)
        self._remove_parts()
        self._append(json.dumps(asked).encode() + b"\n")

    def keep(self, about: dict[str, Any], values: list) -> Place:
        """Appends a line; returns where its values lie."""
        head, step = json.dumps(about).encode() + b"\t", WRITTEN_AT_ONCE
        start = self.size() + len(head)
        for i in range(0, max(len(values), 1), step):  # the text of all results of an image may be large
            part = json.dumps(values[i : i + step])[1:-1].encode()
            self._append((b", " if i else head + b"[") + part + (b"" if i + step < len(values) else b"]\n"))
        return Place(self.path, start, self.size() - 1 - start)

    def size(self) -> int:
        """Returns how many bytes it has."""
        return self.file.seek(0, os.SEEK_END)

    def parts(self) -> list[Path]:
        """Returns the files of the other processes of the call that wrote it first."""
        part = re.compile(re.escape(self.path.name) + r"\.\d+")
        return sorted(path for path in self.path.parent.iterdir() if part.fullmatch(path.name))

    def lines(self) -> Iterator[Line]:
        """Yields what it and its parts hold."""
        for path in (self.path, *self.parts()):
            yield from Lines(path)

    def close(self) -> None:
        """Lets go of it: it stays."""
        self.file.close()

    def remove(self) -> None:
        """Removes it and its parts."""
        self._remove_parts()
        self.path.unlink()
        self.close()

    def _remove_parts(self) -> None:
        for part in self.parts():
            with suppress(FileNotFoundError):
                part.unlink()

    def _append(self, line: bytes) -> None:
        view = memoryview(line)
        while view:
            view = view[self.file.write(view) :]
