"""Requests to stop: which signals are heard, what outlives a closed terminal, and processes that are stopped."""

import io
import multiprocessing
import os
import signal
import sys
import time
from types import SimpleNamespace

import pytest
import torch.distributed as dist

import train
from tests.small_runs import call, differences, flags
from train_utils.data.formats.shapes import make_shapes
from train_utils.processes.distributed import World
from train_utils.processes.stop_signal import StopSignal
from train_utils.processes.watch import Watch
from train_utils.run import evaluation, step


def send(number):
    os.kill(os.getpid(), number)


class Finalised:
    """Sends a signal as it goes: Python drops what is raised in `__del__`."""

    def __del__(self):
        send(signal.SIGTERM)


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGTERM, signal.SIGINT])
def test_each_signal_is_noted_and_the_handlers_come_back(number):
    before = signal.getsignal(number)
    with StopSignal(World.single("cpu")) as stop:
        send(number)
        assert stop.requested()
        with pytest.raises(SystemExit) as left:
            stop.leave()
    assert left.value.code == 128 + number and signal.getsignal(number) == before


def test_an_exit_that_python_drops_is_made_up_for_and_no_traceback(monkeypatch):
    dropped = []
    monkeypatch.setattr(sys, "unraisablehook", dropped.append)
    with StopSignal(World.single("cpu")) as stop, pytest.raises(SystemExit) as left, stop.at_once():
        Finalised()
        stop.leave_if_requested()
    assert left.value.code == 128 + signal.SIGTERM and dropped == [] and sys.unraisablehook == dropped.append


def test_a_loaders_death_that_python_drops_is_left_to_the_next_batch(monkeypatch):
    dropped = []
    monkeypatch.setattr(sys, "unraisablehook", dropped.append)
    with StopSignal(World.single("cpu")):
        for text in ("DataLoader worker (pid 7) is killed by signal: Killed. ", "another"):
            sys.unraisablehook(SimpleNamespace(exc_value=RuntimeError(text)))
    assert [str(one.exc_value) for one in dropped] == ["another"]


def test_the_others_know_a_signals_number_before_they_hear_of_it():
    store = dist.HashStore()
    with StopSignal(World(0, 2, 0, "cpu", Watch(0, 2, store, 60.0))) as stop:
        assert not stop.requested() and not store.check(["stop"])
        send(signal.SIGHUP)
        assert stop.requested() and store.check(["stop"]) and store.get("stop") == b"1"  # signal.SIGHUP


def test_nohup_is_respected():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with StopSignal(World.single("cpu")) as stop:
            send(signal.SIGHUP)
            assert not stop.requested()
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGTERM])
def test_what_is_printed_to_a_closed_terminal_is_lost_and_no_error(monkeypatch, number):
    reading, writing = os.pipe()
    os.close(reading)  # as of `| tee log`, which the same SIGHUP has ended
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(open(writing, "wb", buffering=0), write_through=True))
    with StopSignal(World.single("cpu")):
        stream = sys.stdout  # as a logger keeps it
        send(number)
        if number == signal.SIGHUP:
            print("stopped after step 3, saved", file=stream, flush=True)
            print("more", flush=True)
        else:
            with pytest.raises(BrokenPipeError):
                print("more", flush=True)
    assert not isinstance(sys.stdout, type(stream))
    sys.stdout.detach().close()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
def test_a_stopped_child_is_continued():
    child = multiprocessing.get_context("fork").Process(target=time.sleep, args=(0.05,), daemon=True)
    with StopSignal(World.single("cpu")):
        child.start()
        os.kill(child.pid, signal.SIGSTOP)
        os.waitpid(child.pid, os.WUNTRACED)
        child.join(0.1)
        assert child.is_alive()
        send(signal.SIGTERM)
        child.join(20)
        ended = child.exitcode
        child.kill()  # else this process would wait for it
        assert ended == 0


def test_a_run_that_a_closed_terminal_ends_is_saved_and_goes_on(tmp_path, monkeypatch):
    data = make_shapes(tmp_path / "shapes", train=6, val=2, size=48)
    more = ("--epochs", 1, "--log-steps")
    assert call(train, *flags(data, tmp_path / "uncut", *more)) == 0
    whole, calls = step.forward_backward, []

    def hang_up(*values):
        calls.append(1)
        if len(calls) == 2:
            send(signal.SIGHUP)
        return whole(*values)

    with monkeypatch.context() as patch:
        patch.setattr(step, "forward_backward", hang_up)
        assert call(train, *flags(data, tmp_path / "cut", *more)) == 128 + signal.SIGHUP
    with monkeypatch.context() as patch:  # now in the evaluation, where it needn't wait
        found = evaluation.evaluate_batch
        patch.setattr(evaluation, "evaluate_batch", lambda *values: (Finalised() and None) or found(*values))
        patch.setattr(evaluation, "summarize", None)  # not reached
        assert call(train, *flags(data, tmp_path / "cut", *more, "--resume", "auto")) == 128 + signal.SIGTERM
    assert call(train, *flags(data, tmp_path / "cut", *more, "--resume", "auto")) == 0
    assert differences(tmp_path / "uncut", tmp_path / "cut", epoch=0) == []
