"""The short versions of tests/faults: nothing fails there, and what must not happen would be seen."""

import importlib
import mmap
import os
import pickle
import sys
import time

import pytest
import torch

from tests.faults import __main__ as faults_command
from tests.faults import bit_flips, catalogue, fuzz, hostile, save_speed
from train_utils.checkpoints.checkpoint import save_checkpoint

linux = pytest.mark.skipif(sys.platform != "linux", reason="forks, reads /proc, and limits address space")


@pytest.mark.parametrize(
    ("name", "least", "noted"),  # noted: what the note says
    [
        pytest.param("kills", 1, "", marks=pytest.mark.slow),
        pytest.param("signals", 1, "", marks=pytest.mark.slow),
        pytest.param("restarts", 1, "", marks=pytest.mark.slow),
        pytest.param("losses", 3, "", marks=pytest.mark.slow),
        pytest.param("hostile", 70, "", marks=[linux, pytest.mark.slow]),
        pytest.param("fuzz", 2000, "", marks=linux),
        ("bit_flips", 201, "; 0 pass"),
        ("save_speed", 1, "save, torch.load, MB"),
        ("growth", 6, "x the calls"),
    ],
)
def test_no_trial_fails(tmp_path, name, least, noted):
    outcome = importlib.import_module(f"tests.faults.{name}").run(False, tmp_path)
    assert outcome.failures == [] and outcome.good == outcome.total >= least
    assert all(part in outcome.note for part in noted.split(", ")) and ", 0 refused" not in outcome.note


@pytest.mark.parametrize("case", catalogue.cases(), ids=lambda case: case.name)
def test_case_of_the_catalogue(case, tmp_path):
    catalogue.trial(case, tmp_path)


def test_the_cases_are_listed_without_what_they_import(monkeypatch, capsys):
    def missing(name):
        raise ImportError(name)

    monkeypatch.setattr(faults_command.importlib, "import_module", missing)
    monkeypatch.setattr(sys, "argv", ["faults", "--list"])
    assert faults_command.main() == 0
    listed = [line.partition(": ")[0] for line in capsys.readouterr().out.splitlines()]
    assert listed == [*faults_command.CASES, faults_command.HOURS]


# --- what must not happen is seen ---


def test_damage_that_passes_is_seen(tmp_path, monkeypatch):
    content = bit_flips.sample()
    save_checkpoint(tmp_path / "other.pth", {**content, "epoch": 4})
    monkeypatch.setattr(bit_flips, "load_file", lambda path: {**content, "epoch": 4})
    outcome = bit_flips.run(False, tmp_path)
    assert outcome.good == 0 and all("OTHER CONTENT" in line for line in outcome.failures)


def test_other_weights_are_seen(tmp_path, monkeypatch):
    content = save_speed.checkpoint(False)
    for value in content["model"].values():
        value.zero_()
    monkeypatch.setattr(save_speed, "load_file", lambda path: {"model": {"w": save_speed.first(content) - 1}})
    assert save_speed.run(False, tmp_path).failures == ["load gave other weights"]


def fuzz_with(monkeypatch, folder, seventh, **settings):
    """The outcome of the fuzz when reading document 7 does `seventh`, and reading any other nothing."""
    for name, value in settings.items():
        monkeypatch.setattr(fuzz, name, value)
    monkeypatch.setattr(fuzz, "read", lambda kind, data, folder, index: seventh() if index == 7 else None)
    monkeypatch.setattr(fuzz.tempfile, "gettempdir", lambda: str(folder))
    return fuzz.run(False, folder)


@linux
@pytest.mark.parametrize(
    "does, shown",
    [
        (lambda: 1 / 0, "ZeroDivisionError"),
        (lambda: os.kill(os.getpid(), 9), "signal 9"),
        (lambda: bytearray(2 * fuzz.BYTES), "MemoryError"),
    ],
)
def test_a_reader_that_fails_is_seen(tmp_path, monkeypatch, does, shown):
    outcome = fuzz_with(monkeypatch, tmp_path, does)
    assert len(outcome.failures) == 1 and "document 7: " in outcome.failures[0] and shown in outcome.failures[0]
    assert outcome.good == outcome.total - 1 and list(tmp_path.glob("fuzz-*-7.*"))


@linux
def test_a_reader_that_waits_is_seen(tmp_path, monkeypatch):
    failures = fuzz_with(monkeypatch, tmp_path, lambda: time.sleep(60), WAIT=1).failures
    assert ["signal 14" in failure for failure in failures] == [True]


@linux
def test_readers_do_not_wait_for_threads_that_a_fork_left_behind(tmp_path, monkeypatch):
    many, threads = torch.zeros(2**22), torch.get_num_threads()
    torch.set_num_threads(2)
    many.exp()
    try:
        assert fuzz_with(monkeypatch, tmp_path, many.exp, WAIT=20).failures == []
    finally:
        torch.set_num_threads(threads)


def in_child(folder, monkeypatch, does):
    """What hostile's watch sees of a reader of .npy files that does this."""
    work = folder / "work"
    work.mkdir(exist_ok=True)
    monkeypatch.setattr(hostile, "read_npy", lambda path: does(work) and None)
    return hostile.in_child("npy", ["x"], work, (work,))


@linux
@pytest.mark.parametrize(
    "does, event",
    [
        (lambda folder: os.system("true"), "os.system"),
        (lambda folder: open(folder.parent / "beside", "w"), "open"),
        (lambda folder: exec("1"), "exec"),
        (lambda folder: pickle.loads(b"cos\nsystem\n."), "pickle.find_class"),
    ],
)
def test_what_must_not_happen_is_seen(tmp_path, monkeypatch, does, event):
    result = in_child(tmp_path, monkeypatch, does)
    assert result.events and result.events[0].startswith(event)


@linux
def test_memory_and_a_signal_are_seen(tmp_path, monkeypatch):
    # a mapping of its own: malloc might give what earlier tests have freed, and the process would not grow
    grow = in_child(tmp_path, monkeypatch, lambda folder: mmap.mmap(-1, 200 << 20).write(bytes(200 << 20)))
    assert grow.growth > hostile.MIB
    assert in_child(tmp_path, monkeypatch, lambda folder: os.kill(os.getpid(), 9)).status == -9
