"""Memory: how a lack of it is recognised and explained, and how the host's is given back on a CPU."""

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from backbone.errors import InputError

LESS_IN_TRAINING = "try a smaller --batch-size (with --accumulate-steps), --max-size, --recompute or --amp"
LESS_IN_EVALUATION = "try a smaller --max-size or fewer --box-detections-per-img, on a GPU a smaller --batch-size"
M_MMAP_THRESHOLD = -3  # malloc.h of glibc
LARGE, LARGEST = 2**20, 2**25  # bytes; the second is the most that glibc takes


@contextmanager
def returning_freed_memory() -> Iterator[None]:
    """Lets glibc map each LARGE block by itself within the context, so that it returns to the system when it is freed.

    By default glibc raises that bound to LARGEST as blocks are freed, and keeps smaller blocks: activations of one
    layer leave holes that another's do not fit into. But each page that was returned is cleared anew when it is
    wanted: a training step took 1.2 to 1.5 times as long. With another C library nothing happens.
    """
    set_option = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if set_option is None:
        yield
        return
    set_option(M_MMAP_THRESHOLD, LARGE)
    try:
        yield
    finally:
        set_option(M_MMAP_THRESHOLD, LARGEST)  # where glibc itself ends up; it no longer adjusts the bound


def give_back_freed_memory() -> None:
    """Hands the system what the C library keeps of freed memory, of all threads, where it is glibc.

    Small blocks that stay lie between large ones that are freed: these can't take the next large one, and the process
    grows. A page that is given back costs time when it is used again, so this is for once in many large blocks.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)


@contextmanager
def explaining_lack_of_memory(what: str, advice: str) -> Iterator[None]:
    """Turns an allocation that fails into an InputError that says what was being done, and what helps."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_lack_of_memory(error):
            raise
        raise InputError(f"{what}: out of memory ({first_line(error)}); {advice}") from error


def is_lack_of_memory(error: BaseException) -> bool:
    """Returns whether an allocation failed, on a GPU or in the host's memory (torch has no type for the latter)."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    return isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error)


def first_line(error: BaseException, length: int = 160) -> str:
    """Returns the first line of an error's text, or its type if it has none."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:length]
