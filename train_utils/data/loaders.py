"""Data set -> batches for training and evaluation, loaded by worker processes.

Everything random is a function of (seed, epoch, index), so workers carry no state: any number of them, and
any number of ranks, give the same samples, and an epoch can be entered at any step.
"""

from __future__ import annotations

import atexit
import ctypes
import errno
import functools
import gc
import hashlib
import io
import os
import pickle
import signal
import sys
import threading
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.utils.data import DataLoader

from backbone.errors import InputError
from network_files import MaskRCNNConfig
from network_files.transform import padded_size
from train_utils.data.augmentations.common import REMOVED
from train_utils.data.augmentations.own import seeded
from train_utils.data.dataset import ImageDataset
from train_utils.data.images import ImageError, take_dropped
from train_utils.data.in_python.data_sets import Pairs
from train_utils.data.objects import balance
from train_utils.data.options import LoaderOptions
from train_utils.data.tiles.cutting import Tiles
from train_utils.processes.distributed import World
from train_utils.processes.stop_signal import continue_children, held_back

# What a stream of random numbers is for; each draws from a generator of its own.
MODEL, AUGMENTATION, ORDER, BALANCE, TILE, READING = 0, 1, 2, 4, 5, 6  # 3: run/step.py's
Augment = Callable[[torch.Tensor, dict, torch.Generator], tuple[torch.Tensor, dict]]


class Batch(NamedTuple):
    """Images of one forward pass; the lists may be empty.

    `indices` are positions in the data set; `skipped` names unreadable images, which have no image and no target here.
    `dropped` is `images.take_dropped`'s, and REMOVED: objects that augmentation left out.
    """

    images: list[torch.Tensor]
    targets: list[dict]
    indices: list[int]
    skipped: list[str]
    dropped: Counter[str] = Counter()

    def to(self, device: torch.device) -> tuple[list[torch.Tensor], list[dict]]:
        """Returns the images on the device, and the targets as they are: the model copies them when it has looked."""
        return [image.to(device, non_blocking=True) for image in self.images], self.targets

    def pinned(self) -> Batch:
        """Returns the batch with its images in page-locked memory, from which a GPU copies while the host goes on."""
        return self._replace(images=[image.pin_memory() for image in self.images])


def sample_seed(seed: int, epoch: int, index: int, stream: int = MODEL) -> int:
    """Returns a seed in 0..2^63 - 1 for one sample of one epoch; another for each stream."""
    key = f"{seed} {epoch} {index} {stream}".encode()
    return int.from_bytes(hashlib.blake2b(key, digest_size=8).digest(), "big") >> 1


def sample_rng(seed: int, epoch: int, index: int, stream: int = MODEL) -> torch.Generator:
    """Returns a CPU generator seeded with `sample_seed`."""
    return torch.Generator().manual_seed(sample_seed(seed, epoch, index, stream))


def aspect_groups(sizes: torch.Tensor | np.ndarray | list, factor: int) -> np.ndarray:
    """Returns the group, int64 [len], of each image of `sizes` [len, 2] (h, w) by w / h, as torchvision's references.

    There are 2 * factor + 1 bounds from 1/2 to 2, logarithmic (0: one bound at 1; negative: all in one group).
    """
    sizes = np.asarray(sizes, dtype=np.float64).reshape(-1, 2)
    if factor < 0:
        return np.zeros(len(sizes), dtype=np.int64)
    bounds = 2 ** np.linspace(-1, 1, 2 * factor + 1) if factor > 0 else np.ones(1)
    return np.searchsorted(bounds, sizes[:, 1] / sizes[:, 0], side="right")


def global_batches(groups: np.ndarray, batch: int, seed: int, epoch: int) -> list[list[int]]:
    """Returns the epoch's order: positions in lists of `batch`, each of one aspect group as far as possible.

    Positions are shuffled, sorted by group, cut into batches, and these shuffled. As many images as would
    not fill a batch are left out of the epoch, others in each, unless they are all there is.
    """
    rng = sample_rng(seed, epoch, 0, ORDER)
    count = len(groups) // batch * batch or len(groups)
    order = torch.randperm(len(groups), generator=rng).numpy()[:count]
    order = order[np.argsort(groups[order], kind="stable")].tolist()
    batches = [order[i : i + batch] for i in range(0, count, batch)]
    return [batches[i] for i in torch.randperm(len(batches), generator=rng).tolist()]


def image_factors(ds: ImageDataset, options: LoaderOptions) -> np.ndarray:
    """Returns how often an epoch has each image, float64 [len]."""
    once = np.ones(len(ds)) if options.balance is None else balance.class_factors(ds, options.balance)[1]
    if isinstance(ds, Tiles):
        once = once * ds.factors
    return once * options.repeat


def steps_per_epoch(samples: int, global_batch: int) -> int:
    """Returns how many batches `global_batches` makes of an epoch's samples."""
    return max(1, samples // global_batch)


def sample_of(ds: ImageDataset, i: int, seed: int, epoch: int, index: int) -> tuple[torch.Tensor, dict]:
    """Returns image i of a data set and its target, of tiles moved as this sample of an epoch has them."""
    return ds.drawn(i, sample_rng(seed, epoch, index, TILE)) if isinstance(ds, Tiles) else ds[i]


class TrainLoader:
    """Micro-batches of augmented samples for one rank. `steps_per_epoch` counts optimiser steps.

    ds: a data set; augment: (image, target, torch.Generator) -> (image, target), or None; world: has rank and size;
    options.batch_size: images per micro-batch of a rank; accumulate_steps: micro-batches per optimiser step;
    aspect_ratio_group_factor: see `aspect_groups`; repeat: how often an epoch has each image, each time with other
    random numbers: its k-th time counts as the sample of index k * len(ds) + i; balance: see `balance`, whose factors
    `repeat` multiplies. `samples` counts those of an epoch. Each target gets a "sample_seed" (int).
    """

    def __init__(self, ds: ImageDataset, augment: Augment | None, world: World, options: LoaderOptions) -> None:
        self.world, self.accumulate_steps, self.seed = world, options.accumulate_steps, options.seed
        self.global_batch = options.batch_size * world.size * options.accumulate_steps
        self.groups = aspect_groups(ds.sizes, options.aspect_ratio_group_factor)
        self.factors = image_factors(ds, options)
        self.samples = balance.samples_per_epoch(self.factors)
        self.steps_per_epoch = steps_per_epoch(self.samples, self.global_batch)
        self._loader = Loader(_Samples(ds, augment, options.seed, options.strict), options.workers, world)

    def epoch(self, epoch: int, first_step: int = 0) -> Iterator[Batch]:
        """Yields the micro-batches of an epoch from an optimiser step on: `accumulate_steps` for each step."""
        indices = balance.indices(self.factors, sample_rng(self.seed, epoch, 0, BALANCE))
        groups = self.groups[indices % len(self.groups)]
        steps = global_batches(groups, self.global_batch, self.seed, epoch)[first_step:]
        steps = [indices[step].tolist() for step in steps]
        return self._loader.batches([micro for step in steps for micro in self._share(step, epoch)])

    def _share(self, step: list[int], epoch: int) -> list[list[tuple[int, int]]]:
        """Returns the micro-batches of this rank in one global batch, as (epoch, index) keys."""
        parts = self.world.size * self.accumulate_steps
        # the parts of a complete batch are of batch_size each; a single incomplete one is spread evenly
        bounds = [len(step) * part // parts for part in range(parts + 1)]
        mine = [a * self.world.size + self.world.rank for a in range(self.accumulate_steps)]
        return [[(epoch, index) for index in step[bounds[m] : bounds[m + 1]]] for m in mine]


class EvalLoader:
    """Batches of images that the network pads to the same shape, so that results do not depend on batching.

    Formed once, in the data set's order, then dealt whole: batch k goes to rank k % size. config: the network's, which
    knows how images are resized and padded. Unreadable images are in `Batch.skipped`.
    """

    def __init__(self, ds: ImageDataset, world: World, options: LoaderOptions, config: MaskRCNNConfig) -> None:
        sizing = config.min_size[-1], config.max_size, config.size_divisible, config.fixed_size
        waiting: dict[tuple[int, int], list[int]] = {}
        batches = []
        for index, (height, width) in enumerate(ds.sizes.tolist()):
            same = waiting.setdefault(padded_size(height, width, *sizing), [])
            same.append(index)
            if len(same) == options.batch_size:
                batches.append(same[:])
                same.clear()
        batches += [same for same in waiting.values() if same]
        self._keys = [[(0, index) for index in batch] for batch in batches[world.rank :: world.size]]
        self.strict = options.strict
        self._loader = Loader(_Samples(ds, None, 0, options.strict), options.workers, world)

    def __len__(self) -> int:
        return len(self._keys)

    @property
    def images(self) -> int:
        """The number of images of this rank."""
        return sum(map(len, self._keys))

    def __iter__(self) -> Iterator[Batch]:
        return self._loader.batches(self._keys)


class _Samples:
    """List of (epoch, index) -> Batch, or the InputError that loading it raised."""

    def __init__(self, ds: ImageDataset, augment: Augment | None, seed: int, strict: bool) -> None:
        self.ds, self.augment, self.seed, self.strict = ds, augment, seed, strict

    def __getitem__(self, keys: list[tuple[int, int]]) -> Batch | InputError:
        batch, dropped = Batch([], [], [], []), Counter()
        take_dropped()  # of images that others read
        own = isinstance(self.ds, Pairs)  # whose own code may draw, from torch, numpy.random or random
        for epoch, index in keys:
            position = index % len(self.ds)
            try:
                with seeded(sample_rng(self.seed, epoch, index, READING)) if own else nullcontext():
                    image, target = sample_of(self.ds, position, self.seed, epoch, index)
                    dropped += take_dropped()
                    if self.augment is not None:
                        rng = sample_rng(self.seed, epoch, index, AUGMENTATION)
                        image, target = self.augment(image, target, rng)
                        take_dropped()  # of images whose objects are pasted: they count when their turn comes
            except InputError as error:
                if self.strict or not isinstance(error, ImageError):
                    return error  # raised in the main process: a worker would add its traceback
                batch.skipped.append(str(error))
                continue
            dropped[REMOVED] += target.pop(REMOVED, 0)
            batch.images.append(image)
            batch.targets.append({**target, "sample_seed": sample_seed(self.seed, epoch, index, MODEL)})
            batch.indices.append(position)
        return batch._replace(dropped=+dropped)


class Loader:
    """Keys -> what `samples` gives for each (Batches), in order, through processes that live until the loader does not.

    samples[key] may be an InputError, which is then raised.
    """

    def __init__(self, samples: Any, workers: int, world: World) -> None:
        self._keys: list = []  # what the workers are given; refilled for each pass
        self._workers = workers
        device = getattr(world, "device", None)
        self._pin = device is not None and torch.device(device).type == "cuda"
        options = {}
        if workers:
            # fork shares the packed annotations; elsewhere than on Linux it is not safe
            context = "fork" if sys.platform == "linux" else None
            _continue_workers_at_exit()
            options = {"persistent_workers": True, "multiprocessing_context": context, "prefetch_factor": 2}
        self._loader = DataLoader(
            samples,
            batch_size=None,
            sampler=self._keys,
            num_workers=workers,
            worker_init_fn=_start_worker,
            collate_fn=_to_bytes if workers else _as_it_is,
            generator=torch.Generator(),  # else each pass would draw from torch's global generator
            **options,
        )

    def batches(self, keys: list) -> Iterator[Any]:
        """Yields the batch of each key."""
        self._keys[:] = keys
        for batch in self._through_workers() if self._workers else self._loader:
            if isinstance(batch, InputError):
                try:
                    raise batch
                finally:
                    del batch  # the traceback holds this frame: a cycle would keep the workers alive
            if self._pin and isinstance(batch, Batch):
                batch = batch.pinned()
            yield batch

    def _through_workers(self) -> Iterator[Any]:
        """Yields what the loader yields; a fault of the processes that load becomes an InputError."""
        try:
            for batch in self._begun():
                yield pickle.loads(batch)
        except OSError as error:
            if error.errno not in SCARCE:
                raise
            raise InputError(f"--workers {self._workers}: {error.strerror.lower()}; {SCARCE[error.errno]}") from error

    def _begun(self) -> Iterator[Any]:
        """Returns the loader's iterator, whose processes are started."""
        try:
            with held_back():  # until `_outlive_signals`
                return iter(self._loader)
        except BaseException as error:  # also what a handler of signals raises
            _disarm(error)
            raise


# What a system can run out of when processes are started or talk: what to do about it.
SCARCE = {
    errno.EMFILE: "raise the limit of open files (ulimit -n), or give fewer --workers (0: none)",
    errno.ENFILE: "close other programs, or give fewer --workers (0: none)",
    errno.ENOSPC: "make room in /dev/shm (docker run --shm-size), or give --workers 0",
    errno.ENOMEM: "free some memory, or give fewer --workers (0: none)",
    errno.EAGAIN: "raise the limit of processes (ulimit -u), or give fewer --workers (0: none)",
}
PR_SET_PDEATHSIG = 1  # <sys/prctl.h>


def _disarm(error: BaseException) -> None:
    """Keeps DataLoader's iterator, whose `__init__` failed, from ending what it has not begun: a traceback."""
    for frame, _ in traceback.walk_tb(error.__traceback__):
        half_made = frame.f_locals.get("self")
        if type(half_made).__name__ == "_MultiProcessingDataLoaderIter":
            half_made._shutdown = True


def _start_worker(_: int) -> None:
    _outlive_signals()
    torch.set_num_threads(1)  # the workers together already use the cores
    # What came with the fork is not this process's to collect: that would copy the shared pages, and other
    # loaders found there would try to stop workers that are not their own.
    gc.freeze()


def _outlive_signals() -> None:
    """Lets a signal to the whole group stop the run by its main process, which still needs this worker.

    SIGTERM counts from the main process alone: DataLoader ends workers by it that do not leave.
    """
    signal.set_wakeup_fd(-1)  # inherited: signals to the worker are none to the main process
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "SIGHUP"):
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
    if not hasattr(signal, "sigwaitinfo"):  # macOS
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        if hasattr(signal, "pthread_sigmask"):
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
        return
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    main_process = os.getppid()

    def wait_for_main_process() -> None:
        while signal.sigwaitinfo({signal.SIGTERM}).si_pid != main_process:
            pass
        os._exit(0)

    threading.Thread(target=wait_for_main_process, daemon=True).start()
    if sys.platform == "linux":  # else a worker holds its dead process's connections open for seconds
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


@functools.cache
def _continue_workers_at_exit() -> None:
    """Lets a process end whose workers were stopped (SIGSTOP): Python waits for each."""
    atexit.register(continue_children)


def _as_it_is(batch: Any) -> Any:
    return batch


class _Pickler(pickle.Pickler):
    """Tensors as bytes.

    torch's own way through shared memory takes a file descriptor per tensor, several for each image, and more of
    /dev/shm than containers have by default.
    """

    def reducer_override(self, value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            return torch.from_numpy, (value.contiguous().numpy(),)
        return NotImplemented


def _to_bytes(batch: Any) -> bytes:
    buffer = io.BytesIO()
    _Pickler(buffer, protocol=pickle.HIGHEST_PROTOCOL).dump(batch)
    return buffer.getvalue()
