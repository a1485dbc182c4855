"""How the host's memory is given back: for training on a CPU."""

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager

M_MMAP_THRESHOLD = -3  # malloc.h of glibc
LARGE, LARGEST = 2**20, 2**25  # bytes; the second is the most that glibc takes


@contextmanager
def returning_freed_memory() -> Iterator[None]:
    """Have glibc map each LARGE block by itself, so that it goes back to the system when it is freed.

    By default glibc raises that bound to LARGEST as blocks are freed, and keeps the smaller ones: activations of
    one layer leave holes that another's do not fit into. Nothing happens where the C library is another.
    """
    set_option = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if set_option is None:
        yield
        return
    set_option(M_MMAP_THRESHOLD, LARGE)
    try:
        yield
    finally:
        set_option(M_MMAP_THRESHOLD, LARGEST)  # where it ends up by itself; its own adjusting stays off
