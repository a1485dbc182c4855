"""Results of images, kept as they come -> one COCO results json, in the images' order; a call that was cut goes on.

Until the json is whole they lie beside it in NAME.unfinished (`kept_file`). So memory stays flat, and a kill at any
moment loses no more than the images in progress; of one that is looked at in tiles for long, what its tiles show is
kept every few seconds. The processes of one call keep a file each, in a folder that all of them see. Of several calls
that write the same json each keeps files of its own: the last to end wins. What a call that was cut has kept stays,
also where the next one does not go on with it.
"""

from __future__ import annotations

import itertools
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import cached_property
from pathlib import Path
from typing import Any

from backbone.errors import InputError
from train_utils.io import unfinished
from train_utils.io.files import atomic_file, replaced_lines, writing
from train_utils.io.plain_text import counted, visible
from train_utils.prediction.kept.kept_file import FIRST_TILE, KeptFile, Lines, Place, name_of, numbers_of
from train_utils.processes.distributed import World

GRACE = 10.0  # seconds that the first process waits for the others' last images where all are stopped
MOST_LEFT = 3  # files of calls that were cut, which stay where a call begins anew
GOES_ON = "the same command with --resume goes on"


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
        self.file: KeptFile | None = None  # of this process
        self.places: dict[int, Place] = {}  # of the results of each image, by its position
        self.tiles: dict[int, dict[int, Place]] = {}  # likewise of an image in progress, by its first tile there
        self.appending = threading.Lock()  # tiles and images are kept by two threads
        self.outdated: set[int] = set()  # positions of images that an earlier call has kept, and that are others now
        self.read: dict[Path, Lines] = {}  # what has been read of each process's file
        self.done: frozenset[int] = frozenset()  # what the first process has taken up
        self.count = 0  # results
        self.is_written = False

    def __contains__(self, at: int) -> bool:
        return at in self.places or at in self.done

    def __enter__(self) -> GrowingResults:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: Any) -> None:
        if not self.world.is_main and self.file is not None:
            self.file.close()
        if kind is None or not self.world.is_main:
            return
        cut = issubclass(kind, (KeyboardInterrupt, SystemExit))
        for _ in self._of_others(GRACE if cut else 0.0):
            pass
        done = f"{len(self.places):,} of {counted(self.of, 'image')}"
        goes_on = GOES_ON + (", also within an image" if self.tiles else "")
        if cut:
            where = ""
            if self.as_json and self.places:  # else a json is of an earlier call, and whole
                self.write()
                where = f", {counted(self.count, 'detection')} in {visible(str(self.path))}"
            print(f"stopped: {done} predicted{where}; {goes_on}", flush=True)
        elif self.places or self.tiles:
            print(f"ended by an error: {done} kept in {visible(str(self.file.path))}; {goes_on}", flush=True)

    def resume(self, is_current: Callable[[int, dict], bool]) -> Iterator[dict[str, Any]]:
        """Takes up what a call that was cut has kept; yields what was said about each image that is done.

        is_current: whether that still holds of the image at a position; of several such calls the one with most of it
        goes on. To be called by the first process alone. Raises InputError where all asked for something else.
        """
        left = self._left()
        try:
            self.file = self._fitting(left, is_current)
        finally:
            for file in left:
                if file is not self.file:
                    file.close()
        if self.file is None:
            print(f"--resume: nothing unfinished beside {visible(str(self.path))}, starting fresh", flush=True)
            for line in replaced_lines(self.path) if self.as_json else []:
                print(visible(line), flush=True)
            return
        for part in [self.file.path, *self.file.parts()]:
            yield from self._take(part, is_current)
            self.read[part].cut_off_rest()
        lost = len(self.outdated - self.places.keys())
        again = "have changed, lie elsewhere or stand at another place in the list, and are not used"
        others = f"; {counted(lost, 'image')} that it has kept {again}" if lost else ""
        done = f"{len(self.places):,} of {counted(self.of, 'image')} done{_and_tiles(len(self.tiles))}"
        print(f"resuming: {done}, in {visible(str(self.file.path))}{others}", flush=True)

    def _left(self) -> list[KeptFile]:
        """Opens what calls that were cut have kept; those that a living one writes are not among them."""
        files = (KeptFile.open(name_of(self.path, number)) for number in numbers_of(self.path))
        return [file for file in files if file is not None]

    def _fitting(self, left: list[KeptFile], is_current: Callable[[int, dict], bool]) -> KeptFile | None:
        """Returns the file of a call that has asked for the same, of several that with most that is current."""
        refusals = {file: self._refusal(file) for file in left}
        fitting = [file for file, refusal in refusals.items() if refusal is None]
        if left and not fitting:
            raise InputError(refusals[left[0]])
        if len(fitting) < 2:
            return fitting[0] if fitting else None
        return max(fitting, key=lambda file: sum(is_current(line.about["at"], line.about) for line in file.lines()))

    def _refusal(self, file: KeptFile) -> str | None:
        """Returns why a file is not of a call that has asked for the same."""
        before = file.asked()
        if before is None:
            return f"--resume: {file.path} is damaged; leave --resume out to begin anew"
        other = [name for name in self.asked if before.get(name) != self.asked[name]]
        if not other:
            return None
        begun = f"--resume: {file.path} was begun with another {', another '.join(other)}"
        return f"{begun}; give the same, or leave --resume out to begin anew"

    def _take(self, part: Path, is_current: Callable[[int, dict], bool] | None = None) -> Iterator[dict[str, Any]]:
        """Notes where results lie in a file of this call; yields what it says of each image that was not known."""
        for line in self.read.setdefault(part, Lines(part)):
            at = line.about["at"]
            if at in self.places:
                continue
            if is_current is not None and not is_current(at, line.about):
                self.outdated |= set() if line.is_of_tiles else {at}
            elif line.is_of_tiles:
                self.tiles.setdefault(at, {})[line.about[FIRST_TILE]] = line.place
            else:
                self.places[at] = line.place
                self.tiles.pop(at, None)
                self.count += line.count
                yield line.about

    def share(self) -> None:
        """Lets each of several processes keep a file of its own; all call it, once the first has resumed or not."""
        self.world.on_main(self._say_what_stays)
        if self.world.size == 1:
            return
        path = self.world.on_main(self._begun)
        seen = self.world.gather(path.exists())
        if not all(seen):
            if not self.world.is_main:
                raise SystemExit(2)
            ranks = ", ".join(str(rank) for rank, there in enumerate(seen) if not there)
            raise InputError(
                f"{path.parent}: process {ranks} does not see what process 0 writes; give a folder that all see"
            )
        self.done = frozenset(self.world.broadcast(list(self.places)))
        self.tiles = self.world.broadcast(self.tiles)
        if not self.world.is_main:
            path = path.with_name(f"{path.name}.{self.world.rank}")
            self.file = KeptFile.open(path)
            if self.file is None:
                raise InputError(f"{path}: a process still writes it; wait until it has ended")
            if not self.file.size():
                self.file.begin(self.asked)

    def _begun(self) -> Path:
        if self.file is None:
            self._begin()
        return self.file.path

    def _begin(self) -> None:
        """Begins anew; results of an earlier call would look current."""
        names = (name_of(self.path, number) for number in itertools.count(1))
        free = (KeptFile.open(name) for name in names if name not in self._staying)
        self.file = next(file for file in free if file is not None)
        if any(self.file.lines()):
            why = f"not used, as {counted(MOST_LEFT, 'other')} that hold more stay"
            print(f"{visible(str(self.file.path))}: of an earlier call that was cut; {why}", flush=True)
        self.file.begin(self.asked)
        if self.as_json:
            self.path.unlink(missing_ok=True)

    @cached_property
    def _staying(self) -> dict[Path, str]:
        """What calls that were cut have kept, and this call leaves: file -> what it holds; at most MOST_LEFT."""
        found = []
        for file in self._left():
            lines = [(line.place.size, line.about["at"], line.is_of_tiles) for line in file.lines()]
            images = {at for _, at, of_tiles in lines if not of_tiles}
            in_progress = {at for _, at, _ in lines} - images
            holds = counted(len(images), "image") + _and_tiles(len(in_progress))
            found += [(sum(size for size, *_ in lines), file.path, holds)] * bool(lines)
            file.close()
        return {path: holds for _, path, holds in sorted(found, reverse=True)[:MOST_LEFT]}

    def _say_what_stays(self) -> None:
        for path, holds in self._staying.items() if self.file is None else ():
            how = "it stays: --resume goes on with it, and whoever does not want it removes it"
            print(f"{visible(str(path))}: {holds} of an earlier call that was cut; {how}", flush=True)

    def _of_others(self, grace: float = 0.0) -> Iterator[dict[str, Any]]:
        """Yields what the other processes say of their images; grace: seconds to wait for one that still writes."""
        if self.world.size == 1 or self.file is None:
            return
        until = time.monotonic() + grace
        for part in self.file.parts():
            with open(part, "rb") as file:
                while unfinished.locked(file.fileno(), shared=True) is False and time.monotonic() < until:
                    time.sleep(0.05)
            yield from self._take(part)

    def add(self, at: int, about: dict[str, Any], results: list[dict]) -> None:
        """Keeps the results of the image at a position; about: plain values, for `resume`."""
        self.places[at] = self._keep({"at": at, **about}, results)
        self.tiles.pop(at, None)
        self.count += len(results)

    def add_tiles(self, at: int, about: dict[str, Any], first: int, shown: list) -> None:
        """Keeps what tiles of an image in progress show, from the first on; about: what `resume` knows the image by."""
        place = self._keep({"at": at, FIRST_TILE: first, **about}, shown)
        self.tiles.setdefault(at, {})[first] = place

    def _keep(self, about: dict[str, Any], values: list) -> Place:
        with self.appending, writing(self.path):
            if self.file is None:
                self._begin()
            return self.file.keep(about, values)

    def tiles_of(self, at: int) -> list:
        """Returns what the first tiles of an image show, as far as that is kept."""
        shown: list = []
        while len(shown) in self.tiles.get(at, {}):
            shown += self.tiles[at][len(shown)].values()
        return shown

    def finish(self, tell: Callable[[dict[str, Any]], None] = lambda about: None) -> None:
        """Writes the json once all processes are done; what it was made of stays until `remove`.

        None is written where not one of the images was predicted. tell: is told what is known of each image of the
        other processes.
        """
        if not self.world.is_main and self.file is not None:
            self.file.close()
        self.world.gather(None)  # all are complete
        if not self.world.is_main:
            return
        for about in self._of_others():
            tell(about)
        if self.as_json and (self.places or not self.of):
            self.write()

    def remove(self) -> None:
        """Removes what the json was made of; the first process does, once nothing else is made of it either."""
        if self.file is not None:
            self.file.remove()

    def write(self) -> None:
        """Writes the json of the images that are complete: the same bytes as json.dumps gives for all results."""
        with atomic_file(self.path) as target:
            target.write(b"[")
            for number, part in enumerate(self._results_of_images()):
                target.write(b", " * bool(number) + part)
            target.write(b"]")
        self.is_written = True

    def outcome(self, took: str = "") -> str:
        """Returns a line that says what `finish` has written; took: how long that took, in words."""
        if self.is_written:
            return f"{counted(self.count, 'detection')} written to {visible(str(self.path))}{took}"
        stays = "; that of an earlier call stays" if self.path.exists() else ""
        return f"{visible(str(self.path))}: not written, as no image was predicted{stays}"

    def _results_of_images(self) -> Iterator[bytes]:
        """Yields the results of each image that has some, in order, without the brackets."""
        with ExitStack() as at_end:
            files = {path: at_end.enter_context(open(path, "rb")) for path in {p.file for p in self.places.values()}}
            for _, (path, start, size) in sorted(self.places.items()):
                files[path].seek(start + 1)
                if size > 2:
                    yield files[path].read(size - 2)


def _and_tiles(images: int) -> str:
    return f", and tiles of {images} more" if images else ""
