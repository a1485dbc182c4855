"""Files while they are written: names that nobody shares, nothing through links, and what killed processes leave."""

import os
import signal
import stat
from unittest.mock import patch

import pytest

from backbone.errors import InputError
from tests.small_runs import call
from tools import coco_to_npy, pack_dataset
from train_utils.checkpoints.run_lock import RunLock
from train_utils.data.formats.shapes import make_shapes
from train_utils.io import unfinished
from train_utils.io.files import atomic_file, inner_folder, make_folder, new_folder, open_to_append, write_text
from train_utils.logs.step_log import StepLog

FILE, FOLDER = (f".maskrcnn-{digit * 16}.unfinished" for digit in "0f")


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_two_writers_of_one_path_never_mix(tmp_path):
    path = tmp_path / "test_result.json"
    with atomic_file(path) as slow:
        slow.write(b"slow")
        with atomic_file(path) as quick:
            quick.write(b"quick")
        assert path.read_bytes() == b"quick"
        slow.write(b"er")
    assert path.read_bytes() == b"slower" and names(tmp_path) == [path.name]


def test_nothing_is_written_through_a_link(tmp_path):
    precious, run = tmp_path / "precious", make_folder(tmp_path / "run")
    precious.write_text("mine")
    for name, write in {
        ".lock": lambda: RunLock.take(run),
        "steps.jsonl": lambda: StepLog(run),
        "tensorboard": lambda: inner_folder(run, "tensorboard"),
    }.items():
        for target in (precious, tmp_path / "absent", tmp_path):
            (run / name).symlink_to(target)
            with pytest.raises(InputError, match=f"{name}: is a link, or no plain file: nothing is written through it"):
                write()
            (run / name).unlink()
    (run / "a.json").symlink_to(precious)
    write_text(run / "a.json", "new")  # takes the link's place
    assert (run / "a.json").read_text() == "new" and not (run / "a.json").is_symlink()
    os.mkfifo(run / ".lock")
    with pytest.raises(InputError, match="no plain file"):
        open_to_append(run / ".lock")
    assert precious.read_text() == "mine" and not (tmp_path / "absent").exists()


def test_a_name_that_is_taken_is_not_written_over(tmp_path, monkeypatch):
    (tmp_path / "precious").write_text("mine")
    (tmp_path / FILE).symlink_to(tmp_path / "precious")
    monkeypatch.setattr(unfinished.secrets, "token_hex", lambda _: "0" * 16)
    with pytest.raises(InputError, match="a.json"):
        write_text(tmp_path / "a.json", "x")
    assert (tmp_path / "precious").read_text() == "mine" and names(tmp_path) == [FILE, "precious"]


def leave(folder):
    """What a killed process leaves: a file, a folder with a lock, one without."""
    (folder / FILE).write_text("x")
    (folder / FOLDER / "content").mkdir(parents=True)
    (folder / FOLDER / "lock").touch()
    (folder / FOLDER / "content" / "a").write_text("x")
    (folder / FILE.replace("0", "a")).mkdir()


def test_what_killed_processes_left_is_removed_and_said(tmp_path, capsys):
    leave(tmp_path)
    kept = [f"{FILE}.txt", f"my{FILE}", FILE.replace("0", "G"), ".out-unfinished-x", FILE.replace("0", "b")]
    for name in kept[:4]:
        (tmp_path / name).write_text("mine")
    (tmp_path / kept[4]).symlink_to(tmp_path / kept[0])
    unfinished.clear_leftovers(tmp_path)
    assert names(tmp_path) == sorted(kept)
    said = capsys.readouterr().out
    assert said == f"removed from {tmp_path}: unfinished files or folders of killed processes (3 in all)\n"
    kept += [".out-unfinished-a1_b2c3d", "model_best.pth.tmp", "thesis.tmp"]
    for name in kept[-3:]:
        (tmp_path / name).write_text("x")
    unfinished.clear_leftovers(tmp_path)
    said = capsys.readouterr().out
    assert names(tmp_path) == sorted(kept) and said.count("\n") == 1
    assert said.startswith(
        f"{tmp_path}: files or folders such as .out-unfinished-a1_b2c3d (2 in all) are called as an older"
    )
    for name in kept[-3:]:
        (tmp_path / name).unlink()
    unfinished.clear_leftovers(tmp_path)
    unfinished.clear_leftovers(tmp_path / "absent")
    assert capsys.readouterr().out == ""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
def test_what_a_living_process_writes_stays_until_it_is_killed(tmp_path, capsys):
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        with unfinished.unfinished_folder(tmp_path), atomic_file(tmp_path / "a"):
            os.write(writing, b"x")
            signal.pause()
    os.read(reading, 1)
    try:
        unfinished.clear_leftovers(tmp_path)
        assert len(names(tmp_path)) == 2 and capsys.readouterr().out == ""
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    unfinished.clear_leftovers(tmp_path)
    assert names(tmp_path) == [] and "(2 in all)" in capsys.readouterr().out


def test_a_file_that_was_cleared_between_its_making_and_its_lock_is_made_anew(tmp_path):
    whole, calls = unfinished.locked, []

    def late(handle, *more):
        calls.append(1)
        if len(calls) in (1, 3):  # of a file, of a folder's
            with patch.object(unfinished, "locked", whole):
                unfinished.clear_leftovers(tmp_path)
        return whole(handle, *more)

    with patch.object(unfinished, "locked", late):
        write_text(tmp_path / "a", "x")
        with new_folder(tmp_path / "b") as out:
            (out / "c").touch()
    assert names(tmp_path) == ["a", "b"] and len(calls) == 4


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    return make_shapes(tmp_path_factory.mktemp("data") / "shapes", train=8, val=2, size=32)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
@pytest.mark.parametrize(("tool", "place"), [(pack_dataset, "mask_bits"), (coco_to_npy, "content_of")])
def test_a_converter_that_is_stopped_leaves_nothing(tmp_path, shapes, tool, place, number, capsys):
    whole, calls = getattr(tool, place), []

    def cut(*values):
        calls.append(1)
        if len(calls) == 6:
            os.kill(os.getpid(), number)
        return whole(*values)

    with patch.object(tool, place, cut):
        assert call(tool, shapes, tmp_path / "out") == 128 + number
    said = "interrupted" if number == signal.SIGINT else f"stopped by {number.name}"
    assert names(tmp_path) == [] and said in capsys.readouterr().err
    assert signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler)


def test_the_next_start_clears_what_a_killed_converter_left(tmp_path, shapes, capsys):
    leave(tmp_path)
    assert call(pack_dataset, shapes, tmp_path / "out") == 0
    assert names(tmp_path) == ["out"] and stat.S_IMODE((tmp_path / "out").stat().st_mode) != 0o700
    assert (
        f"removed from {tmp_path}: unfinished files or folders of killed processes (3 in all)"
        in capsys.readouterr().out
    )


def test_nohup_is_respected(tmp_path):
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with new_folder(tmp_path / "out") as out:
            os.kill(os.getpid(), signal.SIGHUP)
            (out / "a").touch()
        assert names(tmp_path / "out") == ["a"] and signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)
