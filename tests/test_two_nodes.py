"""Two machines of a rank each, which meet by torchrun's c10d rendezvous: the files of one process; one that returns."""

import os
import signal
import socket
from pathlib import Path

import pytest

import predict
import train_multi_GPU
import validation
from tests.faults.processes import children, end_all, finished_steps, free_port, start_nodes, wait_for
from tests.small_runs import call, files_of, flags
from tests.tiny_model import write_place


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return write_place()


def answers(port):
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@pytest.mark.slow
def test_two_nodes_validate_and_predict_as_one_process(place):
    model = ("--weights-path", "model.pth", "--device", "cpu")
    kinds = {validation: (*model, "--data-path", "data"), predict: (*model, "--img-path", "data/images")}
    for script, words in kinds.items():
        name = script.__name__
        nodes = start_nodes(script, *words, "--output-dir", f"{name} two", log="log")
        assert call(script, *words, "--output-dir", f"{name} one") == 0
        assert end_all(nodes) == [0, 0], Path("log").read_text()
        assert files_of(f"{name} two") == files_of(f"{name} one") != {}
    assert "Traceback" not in Path("log").read_text()


@pytest.mark.slow
def test_a_node_that_was_killed_returns(place):
    """Its launcher and its rank are killed; the other one waits until a new node comes, and both go on."""
    words = flags("data", "run", "--resume", "auto", "--epochs", 6, "--log-steps")
    port = free_port()

    def start():
        return start_nodes(train_multi_GPU, *words, log="log", started=1, restarts=2, port=port)[0]

    host = start()
    assert wait_for(lambda: answers(port))  # where the nodes meet
    lost = start()
    assert wait_for(lambda: finished_steps("run") > 1), Path("log").read_text()
    (rank,) = children(lost.pid)
    os.kill(lost.pid, signal.SIGKILL)
    os.kill(rank, signal.SIGKILL)
    lost.join()
    assert end_all([host, start()], 300) == [0, 0], Path("log").read_text()[-3000:]
    said = Path("log").read_text()
    assert "resuming from" in said and (Path("run") / "model_5.pth").exists()
    assert "process 0 lost another process" in said or "process 1 lost another process" in said
