"""Items -> what a function makes of each, in their order, several at a time, each in a thread of its own."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import torch

Item, Made = TypeVar("Item"), TypeVar("Made")


def in_order(function: Callable[[Item], Made], items: Iterable[Item], at_once: int) -> Generator[Made, None, None]:
    """Yields function(item) for each item, in order; at_once: threads that work beside each other, 1: none but this.

    Each has its share of torch's threads, but two where there are several: with one alone torch's bilinear resizing
    takes another kernel, which rounds differently. As many items again wait, taken or made, for their turn. An error,
    of the function or of `items`, is raised when all before it are yielded. Close the generator where it is left early:
    what is in work is then waited for, what waits is dropped.
    """
    if at_once == 1:
        yield from map(function, items)
        return
    threads, waiting = torch.get_num_threads(), deque[Future]()
    share = max(threads // at_once, min(threads, 2))
    pool = ThreadPoolExecutor(at_once, "in_flight", torch.set_num_threads, (share,))
    try:
        for item, error in _attempts(items):
            waiting.append(Future() if error else pool.submit(function, item))
            if error:
                waiting[-1].set_exception(error)
            if len(waiting) == 2 * at_once:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(threads)  # threads to come take the number that was set last


def _attempts(items: Iterable[Item]) -> Iterator[tuple[Item | None, Exception | None]]:
    """Yields the items; the error that ends them as the last."""
    try:
        for item in items:
            yield item, None
    except Exception as error:
        yield None, error
