"""Several items in flight are made at once and come in order, few are taken ahead; an error comes in its turn."""

import threading

import pytest
import torch

from backbone.errors import InputError
from tests.tiny_model import NAMES, tiny_model
from train_utils.data.labels import LabelMap
from train_utils.prediction.agreeing import weights_digest
from train_utils.prediction.exporting.export import Export
from train_utils.prediction.runtimes.exported_model import ExportedModel, describe, filled_up, have_in_flight
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


def exported(batch=1, path=None):
    """A model of a file that cannot be opened."""
    model = ExportedModel(None, describe(tiny_model(width=8).config, LabelMap.from_categories(NAMES), {}, batch))
    model.file = path
    return model


def test_a_file_that_cannot_be_opened_again_is_named_each_time(monkeypatch):
    def gone(in_flight):
        raise InputError(f"a.onnx: no such file, for {in_flight}")

    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    model = exported()
    model.open_again = gone
    with pytest.raises(InputError, match="a.onnx: no such file, for 2"):
        have_in_flight(model, 100)
    with pytest.raises(InputError, match="a.onnx: no such file, for 1"):
        model([torch.zeros(3, 48, 64, dtype=torch.uint8)])


def test_what_processes_must_have_alike_of_a_file_and_how_many_images_it_takes(tmp_path):
    for folder in ("one", "two", "three"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "model.bin").write_text(folder[0])
    (tmp_path / "a.pt2").write_text("t")
    one, two, three, file = (weights_digest(exported(path=tmp_path / n)) for n in ("one", "two", "three", "a.pt2"))
    assert one != two and two == three == file
    assert filled_up(exported(4)).startswith("the file takes 4 images at a time and gets one here")
    assert filled_up(exported(1)) is filled_up(exported(None)) is filled_up(torch.nn.Identity()) is None
    for batch in (0, -1, 2.5):
        with pytest.raises(InputError, match=f"batch {batch}: give a whole number from 1"):
            Export(tmp_path / "a.onnx", batch=batch)
