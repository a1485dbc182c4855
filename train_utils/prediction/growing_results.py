"""Results of images, kept as they come -> one COCO results json, in the images' order; a call that was cut goes on.

Until the json is whole they lie beside it in NAME.unfinished: a line of json that says what was asked for, then for
each complete image one that says which it is and what it counts for, a tab, and its results. So memory stays flat, and
a kill at any moment loses no more than the images in progress; of one that is looked at in tiles for long, what its
tiles show is kept every few seconds in lines of their own. The processes of one call keep a file each, the first
NAME.unfinished, the others NAME.unfinished.1 and so on, in a folder that all of them see. Of several calls that write
the same json each keeps files of its own, NAME.unfinished-2 and so on: the last to end wins.
"""

import itertools
import json
import os
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, BinaryIO

from backbone.errors import InputError
from train_utils.io import unfinished
from train_utils.io.files import atomic_file, open_to_append, replaced_lines, writing
from train_utils.io.plain_text import counted, visible
from train_utils.processes.distributed import World

FIRST_TILE = "first_tile"  # what a line about tiles has
GRACE = 10.0  # seconds that the first process waits for the others' last images where all are stopped
WRITTEN_AT_ONCE = 2000  # results of an image


class GrowingResults:
    """The results of a call on `of` images, by position; `with` writes what is complete where the call is cut.

    path: of the json; asked: plain values that results depend on, the same for a call that goes on; as_json: whether
    there will be a json at all (videos have none); world: the processes that share the images.
    """

    def __init__(
        self, path: Path, asked: dict[str, Any], of: int, as_json: bool = True, world: World | None = None
    ) -> None:
        self.path, self.asked, self.of, self.as_json = path, json.loads(json.dumps(asked, default=str)), of, as_json
        self.world = world or World.single("cpu")
        self.file: BinaryIO | None = None
        self.kept = path
        # position of an image -> the file that its results lie in, and where, in bytes
        self.places: dict[int, tuple[Path, int, int]] = {}
        # likewise of an image in progress, by its first tile there
        self.tiles: dict[int, dict[int, tuple[Path, int, int]]] = {}
        self.appending = threading.Lock()  # tiles and images are kept by two threads
        self.outdated: set[int] = set()  # positions of images that an earlier call has kept, and that are others now
        self.known: dict[Path, int] = {}  # of a file of an earlier call: the bytes that `resume` has looked at
        self.done: frozenset[int] = frozenset()  # what the first process has taken up
        self.count = 0  # results

    def __contains__(self, at: int) -> bool:
        return at in self.places or at in self.done

    def __enter__(self) -> "GrowingResults":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: Any) -> None:
        if not self.world.is_main and self.file is not None:
            self.file.close()
        if kind is None or not self.world.is_main:
            return
        cut = issubclass(kind, (KeyboardInterrupt, SystemExit))
        for _ in self._of_others(GRACE if cut else 0.0):
            pass
        done, goes_on = f"{len(self.places):,} of {counted(self.of, 'image')}", "the same command with --resume goes on"
        goes_on += ", also within an image" if self.tiles else ""
        if cut:
            begun = self.as_json and self.file is not None  # else the json is of an earlier call, and whole
            where = f", {counted(self.count, 'detection')} in {visible(str(self.path))}" if begun else ""
            if begun:
                self.write()
            print(f"stopped: {done} predicted{where}; {goes_on}", flush=True)
        elif self.places or self.tiles:
            print(f"ended by an error: {done} kept in {visible(str(self.kept))}; {goes_on}", flush=True)

    def resume(self, is_current: Callable[[int, dict], bool]) -> Iterator[dict[str, Any]]:
        """Takes up what a call that was cut has kept; yields what was said about each image that is done.

        is_current: whether that still holds of the image at a position. To be called by the first process alone. Raises
        InputError for a call that asked for something else.
        """
        if not self._open(existing=True):
            print(f"--resume: nothing unfinished beside {visible(str(self.path))}, starting fresh", flush=True)
            for line in replaced_lines(self.path) if self.as_json else []:
                print(visible(line), flush=True)
            return
        with open(self.kept, "rb") as file:
            self._check(file.readline())
        for part in [self.kept, *self._parts()]:
            yield from self._take(part, is_current, cut=True)
        tiles = f", and tiles of {len(self.tiles)} more" if self.tiles else ""
        done = f"{len(self.places):,} of {counted(self.of, 'image')} done{tiles}"
        lost = len(self.outdated - self.places.keys())
        again = "have changed, lie elsewhere or stand at another place in the list, and are not used"
        others = f"; {counted(lost, 'image')} that it has kept {again}" if lost else ""
        print(f"resuming: {done}, in {visible(str(self.kept))}{others}", flush=True)

    def _take(
        self, part: Path, is_current: Callable[[int, dict], bool] | None = None, cut: bool = False
    ) -> Iterator[dict[str, Any]]:
        """Notes where results lie in a file of this call; yields what it says of each image that was not known.

        cut: whether to cut off a line that a kill has left incomplete.
        """
        with open(part, "rb") as file:
            end = self.known.get(part, 0)
            file.seek(end)
            if not end:
                head = file.readline()
                end = len(head) if head.endswith(b"\n") else 0
            for line in file:
                about, count = _read(line)
                if about is None:
                    break
                start, end = end + line.index(b"\t") + 1, end + len(line)
                if about["at"] in self.places:
                    continue
                if is_current is not None and not is_current(about["at"], about):
                    self.outdated |= {about["at"]} if FIRST_TILE not in about else set()
                    continue
                place = (part, start, end - start - 1)
                if FIRST_TILE in about:
                    self.tiles.setdefault(about["at"], {})[about[FIRST_TILE]] = place
                    continue
                self.places[about["at"]] = place
                self.tiles.pop(about["at"], None)
                self.count += count
                yield about
        if cut:
            with open_to_append(part) as file:
                file.truncate(end)
            self.known[part] = end

    def share(self) -> None:
        """Lets each of several processes keep a file of its own; all call it, once the first has resumed or not."""
        if self.world.size == 1:
            return
        self.kept = self.world.on_main(self._begun)
        seen = self.world.gather(self.kept.exists())
        if not all(seen):
            if not self.world.is_main:
                raise SystemExit(2)
            ranks = ", ".join(str(rank) for rank, there in enumerate(seen) if not there)
            raise InputError(
                f"{self.kept.parent}: process {ranks} does not see what process 0 writes; give a folder that all see"
            )
        self.done = frozenset(self.world.broadcast(list(self.places)))
        self.tiles = self.world.broadcast(self.tiles)
        if not self.world.is_main:
            self.kept = self.kept.with_name(f"{self.kept.name}.{self.world.rank}")
            self.file = open_to_append(self.kept)
            if unfinished.locked(self.file.fileno()) is False:
                raise InputError(f"{self.kept}: a process still writes it; wait until it has ended")
            if not self.file.seek(0, os.SEEK_END):
                self._append(json.dumps(self.asked).encode() + b"\n")

    def _begun(self) -> Path:
        if self.file is None:
            self._begin()
        return self.kept

    def _parts(self) -> list[Path]:
        """Returns the files of the other processes of this call, or of one that it goes on with."""
        parts = re.compile(re.escape(self.kept.name) + r"\.\d+")
        return sorted(path for path in self.kept.parent.iterdir() if parts.fullmatch(path.name))

    def _of_others(self, grace: float = 0.0) -> Iterator[dict[str, Any]]:
        """Yields what the other processes say of their images; grace: seconds to wait for one that still writes."""
        if self.world.size == 1 or self.file is None:
            return
        until = time.monotonic() + grace
        for part in self._parts():
            with open(part, "rb") as file:
                while unfinished.locked(file.fileno(), shared=True) is False and time.monotonic() < until:
                    time.sleep(0.05)
            yield from self._take(part)

    def add(self, at: int, about: dict[str, Any], results: list[dict]) -> None:
        """Keeps the results of the image at a position; about: plain values, for `resume`."""
        self.places[at] = self._keep({"at": at, **about}, results)
        self.tiles.pop(at, None)
        self.count += len(results)

    def _keep(self, about: dict[str, Any], values: list) -> tuple[Path, int, int]:
        """Appends a line; returns where its values lie."""
        with self.appending, writing(self.path):
            if self.file is None:
                self._begin()
            head, step = json.dumps(about).encode() + b"\t", WRITTEN_AT_ONCE
            start = self.file.seek(0, os.SEEK_END) + len(head)
            for i in range(0, max(len(values), 1), step):  # the text of all results of an image may be large
                part = json.dumps(values[i : i + step])[1:-1].encode()
                self._append((b", " if i else head + b"[") + part + (b"" if i + step < len(values) else b"]\n"))
            end = self.file.seek(0, os.SEEK_END) - 1
        return self.kept, start, end - start

    def add_tiles(self, at: int, about: dict[str, Any], first: int, shown: list) -> None:
        """Keeps what tiles of an image in progress show, from the first on; about: what `resume` knows the image by."""
        place = self._keep({"at": at, FIRST_TILE: first, **about}, shown)
        self.tiles.setdefault(at, {})[first] = place

    def tiles_of(self, at: int) -> list:
        """Returns what the first tiles of an image show, as far as that is kept."""
        shown: list = []
        while len(shown) in self.tiles.get(at, {}):
            part, start, size = self.tiles[at][len(shown)]
            with open(part, "rb") as file:
                file.seek(start)
                shown += json.loads(file.read(size))
        return shown

    def finish(self, tell: Callable[[dict[str, Any]], None] = lambda about: None) -> None:
        """Writes the json once all processes are done; what it was made of stays until `remove`.

        tell: is told what is known of each image of the other processes.
        """
        if not self.world.is_main and self.file is not None:
            self.file.close()
        self.world.gather(None)  # all are complete
        if not self.world.is_main:
            return
        for about in self._of_others():
            tell(about)
        if self.as_json:
            self.write()

    def remove(self) -> None:
        """Removes what the json was made of; the first process does, once nothing else is made of it either."""
        if self.file is not None:
            self._remove_parts()
            self.kept.unlink()
            self.file.close()

    def _remove_parts(self) -> None:
        for part in self._parts():
            with suppress(FileNotFoundError):
                part.unlink()

    def write(self) -> None:
        """Writes the json of the images that are complete: the same bytes as json.dumps gives for all results."""
        with atomic_file(self.path) as target:
            target.write(b"[")
            for number, part in enumerate(self._results_of_images()):
                target.write(b", " * bool(number) + part)
            target.write(b"]")

    def _results_of_images(self) -> Iterator[bytes]:
        """Yields the results of each image that has some, in order, without the brackets."""
        with ExitStack() as at_end:
            parts = {path: at_end.enter_context(open(path, "rb")) for path in {p for p, _, _ in self.places.values()}}
            for _, (part, start, size) in sorted(self.places.items()):
                parts[part].seek(start + 1)
                if size > 2:
                    yield parts[part].read(size - 2)

    def _open(self, existing: bool) -> bool:
        """Opens and locks the first file that no other process writes; returns False where none is there."""
        for number in self._numbers() if existing else itertools.count(1):
            self.kept = self.path.with_name(self.path.name + ".unfinished" + (f"-{number}" if number > 1 else ""))
            self.file = open_to_append(self.kept)
            if unfinished.locked(self.file.fileno()) is not False and unfinished.is_at(self.file.fileno(), self.kept):
                return True
            self.file.close()
        self.file = None
        return False

    def _numbers(self) -> list[int]:
        """Returns the numbers of the files that calls which were cut have left."""
        name = re.compile(re.escape(self.path.name) + r"\.unfinished(?:-(\d+))?")
        return sorted(int(found[1] or 1) for path in self.path.parent.iterdir() if (found := name.fullmatch(path.name)))

    def _begin(self) -> None:
        """Begins anew; results of an earlier call would look current."""
        self._open(existing=False)
        if self.file.seek(0, os.SEEK_END):
            print(f"{visible(str(self.kept))}: of an earlier call that was cut; not used, as --resume is not given")
        self.file.truncate(0)
        self._remove_parts()
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
