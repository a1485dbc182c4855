"""Images by position -> what is made of each, in their order: read ahead, detected in batches, finished in threads.

Stages work at once: processes read (`workers`), this thread computes, or those of `in_order` where an exported file has
several images in flight, others finish (draw, encode, write), and one keeps what is finished, an image after another.
A stage waits for the next, so memory holds few images at a time.
"""

from __future__ import annotations

import math
import os
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager
from functools import cache
from pathlib import Path
from queue import Queue
from threading import Thread
from typing import Any, NamedTuple

import torch
from tqdm import tqdm

from backbone.errors import InputError
from train_utils.data.images import ImageError, take_dropped
from train_utils.data.images.pages import file_of
from train_utils.data.loaders import Loader
from train_utils.evaluation.tiled_model import as_plain, from_plain
from train_utils.io import unfinished
from train_utils.io.files import user_path
from train_utils.io.naming import naming
from train_utils.prediction.kept.growing_results import GrowingResults
from train_utils.prediction.kept.kept_file import FIRST_TILE
from train_utils.prediction.predictor import Predictor, alike, one_by_one
from train_utils.prediction.runtimes.exported_model import have_in_flight
from train_utils.processes.cores import usable_cores
from train_utils.processes.distributed import World
from train_utils.processes.in_flight import in_order

BATCH, WORKERS, THREADS = 8, 8, 4  # beside a GPU: images at a time; most processes that read, most threads that draw
BATCHES_AHEAD = 4  # that images are gathered from, to be sorted by shape
MOST_PIXELS = 200_000_000  # that are gathered
EVERY = 10.0  # seconds, after which what an image's tiles show is kept
IMAGES_A_WORKER = 8  # fewer don't repay the start of a process that reads


class Read(NamedTuple):
    """An image as it was read: stamp: of its file; error: in place of an image; dropped: `take_dropped`'s."""

    at: int
    image: torch.Tensor | None  # None: broken, or no image but a video
    error: ImageError | None
    stamp: list[int] | None
    dropped: Counter[str]
    seconds: float


class Seen(NamedTuple):
    """An image and what was found in it; counts: for `Predictor.recall`; seconds: of reading and detecting."""

    read: Read
    found: dict[str, torch.Tensor]
    counts: dict[str, Any]
    seconds: float


class Source(NamedTuple):
    """Where images come from: name and image by position; `read` raises ImageError, and gives None for a video."""

    name: Callable[[int], str | Path]
    read: Callable[[int], torch.Tensor | None]

    def __getitem__(self, at: int) -> Read | InputError:
        start, image, failed = time.perf_counter(), None, None
        take_dropped()  # of images that others read
        stamp = stamp_of(self.name(at))
        try:
            image = self.read(at)
        except ImageError as error:
            failed = error
        except InputError as error:
            return error  # raised in the main process: a worker would add its traceback
        return Read(at, image, failed, stamp, take_dropped(), time.perf_counter() - start)


class Finished(NamedTuple):
    """What is kept of an image: about and results: as of GrowingResults; said: lines; error: in place of all."""

    about: dict[str, Any] = {}
    results: list[dict] = []
    said: str = ""
    error: ImageError | None = None


class Work(NamedTuple):
    """What is to be done.

    finish: makes what is kept of an image, in a thread beside others; other: takes what is neither an image nor broken;
    is_drawn: whether what an earlier call has drawn of an image is there; silent: a bar is shown instead of lines.
    """

    source: Source
    finish: Callable[[Seen], Finished]
    other: Callable[[Read], None] = lambda read: None
    is_drawn: Callable[[int], bool] = lambda at: True
    silent: bool = True


class Pace(NamedTuple):
    """How many images are in work at once; usual: `workers` is no wish, so few images are read without.

    batch_size: of a GPU; of an exported file the most that are in flight.
    """

    batch_size: int | None
    workers: int
    threads: int
    usual: bool


def pace_of(device: torch.device, batch_size: int | None, workers: int | None) -> Pace:
    """Returns the pace on a device; batch_size, workers: what was asked for, or None.

    A CPU computes images one by one, whatever the batch: its cores are the network's, or several images' in flight. The
    processes of a machine's GPUs share its cores.
    """
    usual = workers is None
    if device.type == "cpu":
        return Pace(batch_size, workers or 0, 1, usual)
    cores = max(usable_cores() // max(torch.cuda.device_count(), 1), 1)
    return Pace(batch_size or BATCH, min(WORKERS, cores) if usual else workers, min(THREADS, cores), usual)


def stamp_of(path: str | Path) -> list[int] | None:
    """Returns a file's size in bytes and time of change; None where there is no such file."""
    try:
        status = os.stat(user_path(file_of(path)))
    except OSError:
        return None
    return [status.st_size, status.st_mtime_ns]


@contextmanager
def stopping(world: World) -> Iterator[None]:
    """Lets a signal to one of the processes end the block in each by an exception, so that what is done is kept."""
    with unfinished.stopped_in_order():
        world.watch_signals()
        try:
            yield
        finally:
            world.watch_signals(False)


def predict_and_keep(work: Work, predictor: Predictor, kept: GrowingResults, pace: Pace, resume: bool) -> None:
    """Predicts what is not done yet, each process its share of it, and writes the json; `kept.remove` is left.

    resume: takes up what an earlier call has kept. Lines and what is counted follow the images' order.
    """
    world = kept.world
    if resume:
        world.on_main(_take_up, kept, predictor, work)
    kept.share()
    todo = [at for at in range(kept.of) if at not in kept][world.rank :: world.size]
    world.phase("prediction")
    line = have_in_flight(predictor.model, len(todo), pace.batch_size)
    if line and world.is_main:
        print(line, flush=True)
    with tqdm(total=len(todo), unit="image", disable=None if work.silent and world.is_main else True) as bar:

        def keep(done: Finished) -> None:
            bar.update()
            if done.error is not None:
                predictor.skip(done.error)
                return
            kept.add(done.about["at"], done.about, done.results)
            predictor.recall(done.about)
            if done.said:
                print(done.said, flush=True)

        predict_all(todo, work, predictor, pace, keep, kept)
    predictor.broken = sum(world.gather(predictor.broken), [])
    kept.finish(predictor.recall)


def _take_up(kept: GrowingResults, predictor: Predictor, work: Work) -> None:
    """Takes up what an earlier call has kept of images that are as they were, and whose drawings are there."""
    stamp_at = cache(lambda at: stamp_of(work.source.name(at)))  # several calls may have kept it
    is_drawn = cache(work.is_drawn)

    def is_current(at: int, about: dict[str, Any]) -> bool:
        if at >= kept.of or about["image"] != str(work.source.name(at)):
            return False
        return about["stamp"] == stamp_at(at) and (FIRST_TILE in about or is_drawn(at))

    for about in kept.resume(is_current):
        predictor.recall(about)


class KeptTiles:
    """What the tiles of an image show, kept with the results every EVERY seconds: a `Keeper` of TiledModel."""

    def __init__(self, kept: GrowingResults, read: Read, name: str) -> None:
        self.kept, self.at, self.about = kept, read.at, {"image": name, "stamp": read.stamp}
        self.count, self.last = 0, time.monotonic()

    def before(self) -> list[dict | None]:
        """Returns what a call that was cut has kept."""
        shown = [from_plain(plain) for plain in self.kept.tiles_of(self.at)]
        self.count = len(shown)
        return shown

    def keep(self, shown: Sequence[dict | None]) -> None:
        """Keeps what is new, where that is due."""
        if time.monotonic() - self.last >= EVERY:
            self.kept.add_tiles(self.at, self.about, self.count, [as_plain(one) for one in shown[self.count :]])
            self.count, self.last = len(shown), time.monotonic()


def predict_all(
    todo: list[int],
    work: Work,
    predictor: Predictor,
    pace: Pace,
    keep: Callable[[Finished], None],
    kept: GrowingResults,
) -> None:
    """Reads the images at positions `todo`, detects, finishes and keeps them, in this order; kept: has the results.

    Whatever ends it, what has been detected before is finished and kept. `work.other` is called in this thread, when
    all images before it are kept.
    """
    workers = min(pace.workers, len(todo) // IMAGES_A_WORKER) if pace.usual else pace.workers
    loader, in_flight = Loader(work.source, workers, World.single(predictor.device)), predictor.in_flight
    batch_size = 1 if one_by_one(predictor.device) or predictor.tiled is not None else pace.batch_size

    def look(some: list[Read]) -> list[Seen]:
        if predictor.tiled is not None:
            (one,) = some
            named = str(work.source.name(one.at))
            predictor.tiled.keeper = None if one.image is None else KeptTiles(kept, one, named)  # a video is none
        return _seen(some, work.source.name, predictor, batch_size)

    gathered = _gathered(loader.batches(todo), 1 if batch_size == 1 else batch_size * BATCHES_AHEAD)
    with (
        _Finishing(work.finish, keep, max(pace.threads, in_flight)) as finishing,
        closing(in_order(look, gathered, in_flight)) as looked,
    ):
        for some in looked:
            for seen in some:
                if seen.read.image is None and seen.read.error is None:
                    finishing.wait()
                    work.other(seen.read)
                else:
                    finishing.put(seen)


def _gathered(images: Iterable[Read], most: int) -> Iterator[list[Read]]:
    """Yields so many images at once, fewer of large ones."""
    some, pixels = [], 0
    for read in images:
        some.append(read)
        pixels += 0 if read.image is None else math.prod(read.image.shape[-2:])
        if len(some) >= most or pixels > MOST_PIXELS:
            yield some
            some, pixels = [], 0
    if some:
        yield some


def _seen(some: list[Read], name: Callable[[int], str | Path], predictor: Predictor, batch_size: int) -> list[Seen]:
    """Returns what is found in some images, in their order; name: of an image, by position."""
    seen = {i: Seen(read, {}, {}, read.seconds) for i, read in enumerate(some)}
    images = [(i, read.image) for i, read in enumerate(some) if read.image is not None]
    for numbers, batch in alike(images, predictor.model.config, batch_size):
        start = time.perf_counter()
        try:
            with naming(*(name(some[i].at) for i in numbers)):
                looked = predictor.look_in(batch)
        except ImageError as error:  # of an image that is read in parts
            if len(batch) > 1:
                raise
            seen[numbers[0]] = Seen(some[numbers[0]]._replace(image=None, error=error), {}, {}, 0.0)
            continue
        each = (time.perf_counter() - start) / len(batch)
        for i, (found, counts) in zip(numbers, looked, strict=True):
            read = some[i]
            seen[i] = Seen(read, found, {**counts, "dropped": read.dropped}, read.seconds + each)
    return [seen[i] for i in range(len(some))]


class _Finishing:
    """Finishes images in threads; within `with`, `put` hands one over. What they make is kept in the same order.

    An error of either ends the keeping, and is raised by the next `put`, or at the end.
    """

    def __init__(self, finish: Callable[[Seen], Finished], keep: Callable[[Finished], None], threads: int) -> None:
        self.finish, self.keep = finish, keep
        self.pool = ThreadPoolExecutor(threads, "finishing")
        self.queue: Queue[Future | None] = Queue(threads)
        self.keeper = Thread(target=self._keep_all, name="keeping", daemon=True)
        self.fault: BaseException | None = None

    def __enter__(self) -> _Finishing:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: Any) -> None:
        if self.keeper.is_alive():
            self.queue.put(None)
            self.keeper.join()
        self.pool.shutdown()
        if kind is None and self.fault is not None:
            raise self.fault

    def put(self, seen: Seen) -> None:
        """Takes an image over; waits while others are not finished."""
        if self.keeper.ident is None:  # not before the processes that read are forked
            self.keeper.start()
        if self.fault is not None:
            raise self.fault
        self.queue.put(self.pool.submit(self.finish, seen))

    def wait(self) -> None:
        """Waits until all images that were put are kept."""
        self.queue.join()
        if self.fault is not None:
            raise self.fault

    def _keep_all(self) -> None:
        for future in iter(self.queue.get, None):
            try:
                if self.fault is None:
                    self.keep(future.result())
            except BaseException as error:  # raised in the thread that computes
                self.fault = error
            self.queue.task_done()
