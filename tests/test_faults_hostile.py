"""Files made to harm are refused; and the check that says so sees each thing that must not happen."""

import mmap
import os
import pickle
import sys

import pytest

from tests.faults import hostile

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="forks, and reads /proc")


def test_every_hostile_file_is_refused(tmp_path):
    outcome = hostile.run(False, tmp_path)
    assert outcome.failures == [] and outcome.good == outcome.total >= 70


@pytest.mark.parametrize(
    "does, event",
    [
        (lambda folder: os.system("true"), "os.system"),
        (lambda folder: open(os.path.join(os.path.dirname(folder), "beside"), "w"), "open"),
        (lambda folder: exec("1"), "exec"),
        (lambda folder: pickle.loads(b"cos\nsystem\n."), "pickle.find_class"),
    ],
)
def test_what_must_not_happen_is_seen(tmp_path, monkeypatch, does, event):
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.setattr(hostile, "read_npy", lambda path: does(path) and None)
    result = hostile.in_child("npy", [str(work)], work, (work,))
    assert result.events and result.events[0].startswith(event)


def test_memory_and_a_signal_are_seen(tmp_path, monkeypatch):
    work = tmp_path / "work"
    work.mkdir()
    # a mapping of its own: malloc might give what earlier tests have freed, and the process would not grow
    monkeypatch.setattr(hostile, "read_npy", lambda path: mmap.mmap(-1, 200 << 20).write(bytes(200 << 20)) and None)
    assert hostile.in_child("npy", ["x"], work, (work,)).growth > hostile.MIB
    monkeypatch.setattr(hostile, "read_npy", lambda path: os.kill(os.getpid(), 9))
    assert hostile.in_child("npy", ["x"], work, (work,)).status == -9
