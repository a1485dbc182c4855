"""Results of images, kept as they come -> one COCO results json, in the images' order; a call that was cut goes on.

Until the json is whole they lie beside it in NAME.unfinished: a line of json that says what was asked for, then for
each complete image one that says which it is and what it counts for, a tab, and its results. So memory stays flat, and
a kill at any moment loses no more than the image in progress. Of several processes that write the same json each keeps
a file of its own, NAME.unfinished-2 and so on: the last to end wins.
"""

import itertools
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from backbone.errors import InputError
from train_utils.io import unfinished
from train_utils.io.files import atomic_file, open_to_append, writing
from train_utils.io.plain_text import visible


class GrowingResults:
    """The results of a call on `of` images, by position; `with` writes what is complete where the call is cut.

    path: of the json; asked: plain values that results depend on, the same for a call that goes on; as_json: whether
    there will be a json at all (videos have none).
    """

    def __init__(self, path: Path, asked: dict[str, Any], of: int, as_json: bool = True) -> None:
        self.path, self.asked, self.of, self.as_json = path, json.loads(json.dumps(asked, default=str)), of, as_json
        self.file: BinaryIO | None = None
        self.kept = path
        self.places: dict[int, tuple[int, int]] = {}  # position of an image -> where its results lie in the file, bytes
        self.count = 0  # results

    def __contains__(self, at: int) -> bool:
        return at in self.places

    def __enter__(self) -> "GrowingResults":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: Any) -> None:
        if kind is None:
            return
        done, goes_on = f"{len(self.places)} of {self.of} image(s)", "the same command with --resume goes on"
        if issubclass(kind, (KeyboardInterrupt, SystemExit)):
            where = f", their {self.count} detection(s) are in {visible(str(self.path))}" if self.as_json else ""
            if self.as_json:
                self.write()
            print(f"stopped: {done} predicted{where}; {goes_on}", flush=True)
        elif self.places:
            print(f"ended by an error: {done} are kept in {visible(str(self.kept))}; {goes_on}", flush=True)

    def resume(self, is_current: Callable[[int, dict], bool]) -> Iterator[dict[str, Any]]:
        """Takes up what a call that was cut has kept; yields what was said about each image that is done.

        is_current: whether that still holds of the image at a position. Raises InputError for a call that asked for
        something else.
        """
        if not self._open(existing=True):
            print(f"--resume: nothing unfinished beside {visible(str(self.path))}, starting fresh", flush=True)
            return
        with open(self.kept, "rb") as file:
            self._check(file.readline())
            end = file.tell()
            for line in file:
                about, count = _read(line)
                if about is None:
                    break
                start, end = end + line.index(b"\t") + 1, end + len(line)
                if is_current(about["at"], about):
                    self.places[about["at"]] = (start, end - start - 1)
                    self.count += count
                    yield about
        self.file.truncate(end)  # of a line that a kill has cut
        print(f"resuming: {len(self.places)} of {self.of} image(s) are done, in {visible(str(self.kept))}", flush=True)

    def add(self, at: int, about: dict[str, Any], results: list[dict]) -> None:
        """Keeps the results of the image at a position; about: plain values, for `resume`."""
        with writing(self.path):
            if self.file is None:
                self._begin()
            head, body = json.dumps({"at": at, **about}).encode() + b"\t", json.dumps(results).encode()
            start = self.file.seek(0, os.SEEK_END) + len(head)
            self._append(head + body + b"\n")
        self.places[at] = (start, len(body))
        self.count += len(results)

    def finish(self) -> None:
        """Writes the json, and removes what it was made of."""
        if self.as_json:
            self.write()
        if self.file is not None:
            self.kept.unlink()
            self.file.close()

    def write(self) -> None:
        """Writes the json of the images that are complete: the same bytes as json.dumps gives for all results."""
        with atomic_file(self.path) as target:
            target.write(b"[")
            for number, part in enumerate(self._results_of_images()):
                target.write(b", " * bool(number) + part)
            target.write(b"]")

    def _results_of_images(self) -> Iterator[bytes]:
        """Yields the results of each image that has some, in order, without the brackets."""
        if not self.places:
            return
        with open(self.kept, "rb") as file:
            for _, (start, size) in sorted(self.places.items()):
                file.seek(start + 1)
                if size > 2:
                    yield file.read(size - 2)

    def _open(self, existing: bool) -> bool:
        """Opens and locks the first file that no other process writes; returns False where none is there."""
        for number in itertools.count(1):
            self.kept = self.path.with_name(self.path.name + ".unfinished" + (f"-{number}" if number > 1 else ""))
            if existing and not self.kept.exists():
                return False
            self.file = open_to_append(self.kept)
            if unfinished.locked(self.file.fileno()) is not False and unfinished.is_at(self.file.fileno(), self.kept):
                return True
            self.file.close()

    def _begin(self) -> None:
        """Begins anew; results of an earlier call would look current."""
        self._open(existing=False)
        if self.file.seek(0, os.SEEK_END):
            print(f"{visible(str(self.kept))}: of an earlier call that was cut; not used, as --resume is not given")
        self.file.truncate(0)
        self._append(json.dumps(self.asked).encode() + b"\n")
        if self.as_json:
            self.path.unlink(missing_ok=True)

    def _append(self, line: bytes) -> None:
        view = memoryview(line)
        while view:
            view = view[self.file.write(view) :]

    def _check(self, line: bytes) -> None:
        try:
            before = json.loads(line)
        except ValueError:
            before = None
        if not isinstance(before, dict):
            raise InputError(f"--resume: {self.kept} is damaged; leave --resume out to begin anew")
        other = [name for name in self.asked if before.get(name) != self.asked[name]]
        if other:
            raise InputError(
                f"--resume: {self.kept} was begun with another {', another '.join(other)}; give the same, or leave "
                "--resume out to begin anew"
            )


def _read(line: bytes) -> tuple[dict[str, Any] | None, int]:
    """Returns what a line says about its image, and how many results it holds; None for a line that was cut."""
    head, _, body = line.partition(b"\t")
    try:
        return (json.loads(head), len(json.loads(body))) if line.endswith(b"\n") else (None, 0)
    except ValueError:
        return None, 0
