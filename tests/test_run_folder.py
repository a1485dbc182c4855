"""Runs go on where they should, and never write over another run's files."""

import json
import os
import shutil

import pytest
import torch

from backbone.errors import InputError
from train_utils.checkpoints.checkpoint import FORMAT_VERSION, copy_checkpoint, save_checkpoint
from train_utils.checkpoints.run_folder import (
    checkpoint_path,
    find_checkpoint,
    newest_checkpoint,
    prepare_run_folder,
    write_args,
)
from train_utils.io.files import make_folder, write_text


def content():
    return {"format_version": FORMAT_VERSION, "model": {"w": torch.ones(300, 7)}, "config": {}}


def prepare(output_dir, resume=None):
    """(run folder, checkpoint), as a run that ends at once has them."""
    checkpoint = find_checkpoint(output_dir, resume)
    run = prepare_run_folder(output_dir, resume, checkpoint)
    with run.lock:
        return run.path, checkpoint


def flip_byte(path, at):
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def test_newest_checkpoint_is_the_one_saved_last(tmp_path):
    assert newest_checkpoint(tmp_path) is None
    for epoch in (8, 9, 10):
        save_checkpoint(checkpoint_path(tmp_path, epoch), content())
    copy_checkpoint(checkpoint_path(tmp_path, 10), checkpoint_path(tmp_path, "best"))
    (tmp_path / "model_final_of_mine.pth").write_text("x")
    assert newest_checkpoint(tmp_path).name == "model_10.pth"
    save_checkpoint(checkpoint_path(tmp_path, 9), content())  # the run was taken back to epoch 9
    assert newest_checkpoint(tmp_path).name == "model_9.pth"
    copied = tmp_path / "copied"
    copied.mkdir()
    for name in ("model_9.pth", "model_10.pth"):  # file dates say otherwise
        shutil.copyfile(tmp_path / name, copied / name)
    assert newest_checkpoint(copied).name == "model_9.pth"


def test_damaged_checkpoints_are_named_and_passed_over(tmp_path, capsys):
    for epoch in range(3):
        save_checkpoint(checkpoint_path(tmp_path, epoch), content())
    flip_byte(tmp_path / "model_2.pth", 3000)
    cut = tmp_path / "model_1.pth"
    cut.write_bytes(cut.read_bytes()[:3000])
    os.utime(cut, (2**33, 2**33))
    assert newest_checkpoint(tmp_path).name == "model_0.pth"
    warned = capsys.readouterr().err
    assert "model_2.pth is damaged" in warned and "model_1.pth is damaged" in warned
    flip_byte(tmp_path / "model_0.pth", 3000)
    with pytest.raises(InputError, match="all checkpoints are damaged"):
        prepare(tmp_path, "auto")


def test_run_folder_without_resume_is_never_used_twice(tmp_path, capsys):
    folder = tmp_path / "deep" / "run"
    for name in ("run", "run-2", "run-3"):
        found = prepare(folder)
        assert found == (folder.with_name(name), None) and found[0].is_dir()
        write_args(found[0], {"lr": 0.1})
    assert json.loads((folder / "args.json").read_text()) == {"lr": 0.1}
    assert str(folder.with_name("run-3")) in capsys.readouterr().out


@pytest.mark.parametrize(
    ("before", "written", "left"),
    [
        ((), ("tensorboard/events", "steps.jsonl"), []),
        (("deep",), ("tensorboard/events",), ["deep"]),
        (("deep", "deep/run"), (), ["deep", "deep/run", "deep/run/.lock"]),  # the user's own
        ((), ("args.json",), ["deep", "deep/run", "deep/run/.lock", "deep/run/args.json"]),  # of a run that did a step
    ],
)
def test_a_folder_that_was_made_for_nothing_goes_again(tmp_path, before, written, left):
    for name in before:
        (tmp_path / name).mkdir()
    run = prepare_run_folder(tmp_path / "deep" / "run")
    with run.lock:
        for name in written:
            make_folder((run.path / name).parent)
            (run.path / name).touch()
        run.remove_unused()
    assert sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*")) == left


def test_run_folder_may_be_the_working_folder(tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert prepare(".")[0].samefile(tmp_path / "here")
    write_args(".", {})
    assert prepare(".")[0].samefile(tmp_path / "here-2")


def test_resume_auto(tmp_path, capsys):
    folder = tmp_path / "run"
    assert prepare(folder, "auto") == (folder, None)
    assert "starting fresh" in capsys.readouterr().out
    write_args(folder, {})  # killed before the first checkpoint
    assert prepare(folder, "auto") == (folder, None)
    save_checkpoint(checkpoint_path(folder, 0), content())
    for name in (".maskrcnn-0123456789abcdef.unfinished", "thesis.tmp", "model_1.pth.tmp", "mine.unfinished"):
        (folder / name).write_text("the first was killed while saving, the others are the user's")
    assert prepare(folder, "auto") == (folder, folder / "model_0.pth")
    said = capsys.readouterr().out
    assert (
        "resuming from" in said
        and f"removed from {folder}: unfinished files or folders of killed processes (1 in all)" in said
    )
    left = {path.name for path in folder.iterdir()} - {".lock", "args.json", "model_0.pth"}
    assert left == {"thesis.tmp", "model_1.pth.tmp", "mine.unfinished"}


def test_resume_auto_spares_results_without_checkpoints(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "det_results20240101-000000.txt").write_text("epoch:0 ...\n")
    assert prepare(tmp_path / "run", "auto") == (tmp_path / "run-2", None)


def test_resume_from_a_path(tmp_path):
    old, other = tmp_path / "old", tmp_path / "other"
    old.mkdir()
    for epoch in range(2):
        save_checkpoint(checkpoint_path(old, epoch), content())
    first, last = old / "model_0.pth", old / "model_1.pth"
    assert prepare(None, first) == (old, first)
    assert prepare(old, str(first)) == (old, first)
    assert prepare(old, old) == (old, last)
    assert prepare(other, old) == (other, last)
    write_args(other, {})
    assert prepare(other, first) == (tmp_path / "other-2", first)
    for wrong in (tmp_path / "missing", other):
        with pytest.raises(InputError, match="--resume"):
            prepare(None, wrong)


@pytest.fixture
def restarted(monkeypatch):
    """A function that makes this a process of torchrun that was started anew."""
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    return lambda: monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")


def test_a_restart_after_resuming_a_file_goes_on_from_the_newest(tmp_path, restarted):
    for epoch in range(2):
        save_checkpoint(checkpoint_path(tmp_path, epoch), content())
    assert prepare(None, tmp_path / "model_0.pth") == (tmp_path, tmp_path / "model_0.pth")
    restarted()
    assert prepare(None, tmp_path / "model_0.pth") == (tmp_path, tmp_path / "model_0.pth")  # it has saved nothing yet
    save_checkpoint(checkpoint_path(tmp_path, 1), content())
    for _ in range(2):
        assert prepare(None, tmp_path / "model_0.pth") == (tmp_path, tmp_path / "model_1.pth")


def test_a_restart_goes_on_with_the_latest_run_of_its_launcher(tmp_path, restarted):
    """In containers, launchers of several runs have the same host and pid."""
    run = tmp_path / "run"
    assert prepare(run) == (run, None)
    save_checkpoint(checkpoint_path(run, 0), content())
    lock = json.loads((run / ".lock").read_text())
    (run / ".lock").write_text(json.dumps({**lock, "since": "2020-01-01 00:00:00"}))
    assert prepare(run) == (tmp_path / "run-2", None)
    restarted()
    assert prepare(run) == (tmp_path / "run-2", None)


def test_output_dir_that_is_a_file(tmp_path):
    (tmp_path / "f").write_text("")
    for folder in (tmp_path / "f", tmp_path / "f" / "g"):
        with pytest.raises(InputError, match="f"):
            prepare(folder)


def test_a_file_in_a_folders_place_and_the_other_way_round(tmp_path):
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(InputError, match="is a file, or lies in one, where a folder is needed"):
            make_folder(path)
    (tmp_path / "report.html").mkdir()
    with pytest.raises(InputError, match="report.html: is a folder, where a file is to be written"):
        write_text(tmp_path / "report.html", "text")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "report.html"]
