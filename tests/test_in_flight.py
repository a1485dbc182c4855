"""Several items in flight are made at once and come in order, few are taken ahead; an error comes in its turn."""

import threading

import pytest
import torch

from train_utils.processes.in_flight import in_order

AT_ONCE = 3


def test_items_are_made_at_once_and_come_in_order():
    together, later = threading.Barrier(AT_ONCE, timeout=30), threading.Event()

    def made(item):
        if item < AT_ONCE:
            together.wait()  # three are in work at the same time
        if item == 0:
            later.wait(30)  # the first is ready last
        if item == AT_ONCE:
            later.set()
        return item, threading.current_thread().name

    items, names = zip(*in_order(made, range(20), AT_ONCE), strict=True)
    assert items == tuple(range(20)) and len(set(names)) == AT_ONCE
    with_one = list(in_order(lambda item: threading.current_thread(), range(2), 1))
    assert with_one == [threading.current_thread()] * 2


@pytest.mark.parametrize(("threads", "share"), [(1, 1), (2, 2), (5, 2), (12, 4)])
def test_threads_are_shared_but_none_of_several_has_one_alone(threads, share, monkeypatch):
    """With one torch resizes by another kernel, whose last bits are others."""
    told = []
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    monkeypatch.setattr(torch, "set_num_threads", lambda count: told.append((count, threading.current_thread().name)))
    assert list(in_order(abs, range(3), AT_ONCE)) == [0, 1, 2]
    assert told[-1] == (threads, threading.main_thread().name) and {count for count, _ in told[:-1]} == {share}


def test_no_more_items_are_taken_than_wait_for_their_turn():
    taken = []
    items = in_order(lambda item: item, (taken.append(i) or i for i in range(50)), AT_ONCE)
    for i in range(10):
        assert next(items) == i and len(taken) == i + 2 * AT_ONCE
    items.close()
    assert len(taken) == 9 + 2 * AT_ONCE and not any("in_flight" in thread.name for thread in threading.enumerate())


def spoilt():
    """Items of which the sixth cannot be taken."""
    yield from range(5)
    raise OSError("of the items")


@pytest.mark.parametrize("at_once", [1, AT_ONCE])
@pytest.mark.parametrize(("bad", "error"), [(3, ZeroDivisionError), (5, OSError)])
def test_an_error_is_raised_when_all_before_it_are_there(bad, error, at_once):
    found = []
    with pytest.raises(error):
        for item in in_order(lambda item: 1 / (item - bad) and item, spoilt(), at_once):
            found.append(item)
    assert found == list(range(bad))
