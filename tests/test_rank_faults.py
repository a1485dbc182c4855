"""What happens to the other ranks, and to what a run has started, when one has a fault."""

import errno
import os
import signal
import time

import pytest
import torch

import train_multi_GPU
from tests.faults.processes import children, end_all, finished_steps, lives, start_all, start_nodes, wait_for
from tests.small_runs import flags
from train_utils.checkpoints.run_folder import newest_checkpoint
from train_utils.data.formats.shapes import make_shapes

pytestmark = pytest.mark.slow
MANY = ("--batch-size", 1, "--epochs", 40, "--log-steps")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return make_shapes(tmp_path_factory.mktemp("data") / "shapes", train=12, val=2, size=48)


def test_a_stuck_rank_is_named(data, tmp_path):
    run, log = tmp_path / "run", tmp_path / "log"
    ranks = start_all(data, run, *MANY, "--dist-timeout", 4, log=log, size=2)
    assert wait_for(lambda: finished_steps(run) > 1)
    os.kill(ranks[1].pid, signal.SIGSTOP)
    ranks[0].join(40)
    os.kill(ranks[1].pid, signal.SIGKILL)
    assert ranks[0].exitcode == 1
    assert f"for process 1 (pid {ranks[1].pid} on " in log.read_text()
    assert "gives no sign of life" in log.read_text() and "--dist-timeout 4" in log.read_text()
    ranks[1].join()


def test_a_stuck_rank_that_hosts_the_store_holds_no_other(data, tmp_path):
    run, log = tmp_path / "run", tmp_path / "log"
    ranks = start_all(data, run, *MANY, "--dist-timeout", 3, log=log, size=2)
    assert wait_for(lambda: finished_steps(run) > 1)
    os.kill(ranks[0].pid, signal.SIGSTOP)
    try:
        assert end_all(ranks[1:], 30) == [1]
    finally:
        ranks[0].kill()
        ranks[0].join()
    assert "process 1 lost another process in step " in log.read_text() and "Traceback" not in log.read_text()


def test_ranks_do_not_outlive_their_launcher(data, tmp_path):
    run = tmp_path / "run"
    size = {"started": 1, "nodes": 1, "ranks": 2}
    (launcher,) = start_nodes(train_multi_GPU, *flags(data, run, *MANY), log=tmp_path / "log", **size)
    try:
        assert wait_for(lambda: finished_steps(run) > 1)
        ranks = children(launcher.pid)
        assert len(ranks) == 2
        launcher.kill()
        launcher.join()
        assert wait_for(lambda: not any(map(lives, ranks)), 20)
    finally:
        for rank in children(launcher.pid) if launcher.is_alive() else ():
            os.kill(rank, signal.SIGKILL)
    saved = torch.load(newest_checkpoint(run), weights_only=True)
    assert saved["step"] == finished_steps(run)


def no_memory(*_):
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")


def test_the_lack_of_memory_of_one_rank_ends_all_with_the_cause(data, tmp_path):
    log = tmp_path / "log"
    fault = ("call", "train_utils.run.step", "accumulate_gradients", no_memory)
    ranks = start_all(data, tmp_path / "run", *MANY, log=log, size=2, fault=fault, faulty=1)
    assert end_all(ranks, 60) == [1, 2]
    printed = log.read_text()
    assert "error: training step 0: out of memory (CUDA out of memory. Tried to allocate 2.00 GiB) on " in printed
    assert "(48x48); try a smaller --batch-size" in printed
    assert "process 0 lost another process in step 0" in printed and "Traceback" not in printed


def test_a_loader_process_that_dies_is_told(data, tmp_path):
    run, log = tmp_path / "run", tmp_path / "log"
    (rank,) = start_all(data, run, *MANY, "--workers", 1, log=log)
    assert wait_for(lambda: finished_steps(run) > 1)
    workers = children(rank.pid)
    os.kill(workers[0], signal.SIGKILL)
    assert end_all([rank], 60) == [2]
    said = log.read_text().splitlines()[-1]
    assert said.startswith("error: DataLoader worker (pid") and str(workers[0]) in said  # torch words it in two ways
    assert "give fewer --workers" in said


def test_a_killed_run_leaves_no_loader_process(data, tmp_path):
    run = tmp_path / "run"
    (rank,) = start_all(data, run, *MANY, "--workers", 2, log=tmp_path / "log")
    assert wait_for(lambda: finished_steps(run) > 1)
    workers = children(rank.pid)
    rank.kill()
    rank.join()
    time.sleep(0.5)
    assert len(workers) >= 2 and not any(map(lives, workers))


def few_files(*_):
    raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))


def test_too_many_open_files_say_what_to_change(data, tmp_path):
    log = tmp_path / "log"
    (rank,) = start_all(data, tmp_path / "run", "--workers", 1, log=log, fault=("call", "os", "pipe", few_files))
    assert end_all([rank], 60) == [2]
    assert "error: --workers 1: too many open files; raise the limit of open files (ulimit -n)" in log.read_text()


def interrupted(*_):
    raise KeyboardInterrupt


def test_an_interrupt_while_loader_processes_start_is_one_line(data, tmp_path):
    log = tmp_path / "log"
    (rank,) = start_all(data, tmp_path / "run", "--workers", 1, log=log, fault=("call", "os", "pipe", interrupted))
    assert end_all([rank], 60) == [130]
    said = log.read_text()
    assert said.endswith("interrupted\n") and "Traceback" not in said
