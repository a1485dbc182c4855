"""Files changed at random are read or refused; and a reader that fails otherwise is seen."""

import os
import sys
import time

import pytest
import torch

from tests.faults import fuzz

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="forks, and limits address space")


def test_no_document_gets_through_the_readers_errors(tmp_path):
    outcome = fuzz.run(False, tmp_path)
    assert outcome.failures == [] and outcome.good == outcome.total == 2000
    assert "0 refused" not in outcome.note


@pytest.mark.parametrize(
    "does, shown",
    [
        (lambda: 1 / 0, "ZeroDivisionError"),
        (lambda: os.kill(os.getpid(), 9), "signal 9"),
        (lambda: bytearray(2 * fuzz.BYTES), "MemoryError"),
    ],
)
def test_a_reader_that_fails_is_seen(tmp_path, monkeypatch, does, shown):
    monkeypatch.setattr(fuzz, "read", lambda kind, data, folder, index: does() if index == 7 else None)
    monkeypatch.setattr(fuzz.tempfile, "gettempdir", lambda: str(tmp_path))
    outcome = fuzz.run(False, tmp_path)
    assert len(outcome.failures) == 1 and "document 7: " in outcome.failures[0] and shown in outcome.failures[0]
    assert outcome.good == outcome.total - 1 and list(tmp_path.glob("fuzz-*-7.*"))


def test_a_reader_that_waits_is_seen(tmp_path, monkeypatch):
    monkeypatch.setattr(fuzz, "WAIT", 1)
    monkeypatch.setattr(fuzz, "read", lambda kind, data, folder, index: time.sleep(60) if index == 7 else None)
    monkeypatch.setattr(fuzz.tempfile, "gettempdir", lambda: str(tmp_path))
    assert ["signal 14" in failure for failure in fuzz.run(False, tmp_path).failures] == [True]


def test_readers_do_not_wait_for_threads_that_a_fork_left_behind(tmp_path, monkeypatch):
    many, threads = torch.zeros(2**22), torch.get_num_threads()
    torch.set_num_threads(2)
    many.exp()
    monkeypatch.setattr(fuzz, "WAIT", 20)
    monkeypatch.setattr(fuzz, "read", lambda kind, data, folder, index: many.exp() if index == 7 else None)
    try:
        assert fuzz.run(False, tmp_path).failures == []
    finally:
        torch.set_num_threads(threads)
