"""Several ranks are one process: rank_program.py, run as both, gives the same losses, weights and numbers."""

import socket

import pytest
import torch

from backbone.errors import InputError
from tests import rank_program
from tests.faults.processes import context, end_all, free_port
from train_utils.data.formats.shapes import make_shapes
from train_utils.processes.distributed import World
from train_utils.processes.watch import Watch


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    """(one process that accumulates over 2 micro-batches, 2 ranks), run at the same time."""
    folder = tmp_path_factory.mktemp("ranks")
    data = make_shapes(folder / "shapes", train=2 * rank_program.STEPS, val=5, size=48)
    place = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    runs = [(data, folder / "one.pt", 2, {})]
    runs += [(data, folder / "two.pt", 1, {"RANK": rank, "LOCAL_RANK": rank, **place}) for rank in ("0", "1")]
    processes = [context().Process(target=rank_program.run, args=run) for run in runs]
    for process in processes:
        process.start()
    assert end_all(processes, 400) == [0, 0, 0]  # what went wrong is on standard error
    return torch.load(folder / "one.pt", weights_only=True), torch.load(folder / "two.pt", weights_only=True)


@pytest.mark.slow
def test_two_ranks_train_as_one_process_with_accumulation(outcomes):
    """In float64 over some steps; that the sums agree also shows that both drew the same anchors and RoIs."""
    one, two = outcomes
    assert len(one["losses"]) == len(two["losses"]) == rank_program.STEPS
    for a, b in zip(one["losses"], two["losses"], strict=True):
        assert a == pytest.approx(b, rel=1e-9, abs=1e-12)
    torch.testing.assert_close(one["parameters"], two["parameters"], rtol=1e-9, atol=1e-12)
    assert one["losses"][0] != one["losses"][-1]


@pytest.mark.slow
def test_two_ranks_evaluate_as_one_process(outcomes):
    one, two = outcomes
    assert len(one["results"]) > 5
    for key in ("results", "stats", "val_losses"):
        assert one[key] == two[key]


def test_a_single_process_is_a_world_of_size_one():
    world, model = World.single("cpu"), torch.nn.Linear(1, 1)
    assert world.wrap(model) is model and world.is_main and world.size == 1
    assert world.gather(3) == world.gather_on_main(3) == [3]
    assert world.on_main(max, 1, 2) == 2
    with pytest.raises(InputError), world.main_first():
        raise InputError("as it is")


def test_more_processes_than_gpus_are_refused(monkeypatch):
    for name, value in {"RANK": "0", "WORLD_SIZE": "64", "LOCAL_RANK": "63"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(InputError, match="--nproc_per_node|--device cpu"):
        World.from_environment("cuda")
    with pytest.raises(InputError, match="auto, cpu or cuda"):
        World.from_environment("cuda:1")


def test_a_rank_that_is_lost_while_the_model_is_wrapped_is_told(monkeypatch, capsys):
    def lose(*_, **__):
        raise RuntimeError("[pair.cc:561] Connection closed by peer [127.0.0.1]:1")

    monkeypatch.setattr(torch.nn.parallel, "DistributedDataParallel", lose)
    world = World(0, 2, 0, torch.device("cpu"), Watch(0, 2, torch.distributed.HashStore(), 60.0))
    with pytest.raises(SystemExit, match="1"):
        world.wrap(torch.nn.Linear(1, 1))
    assert capsys.readouterr().err.startswith("error: process 0 lost another process in start: ")


def test_a_rank_that_never_comes_is_told(monkeypatch, capsys):
    place = {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    for name, value in place.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit, match="1"):
        World.from_environment("cpu", timeout=0.2)
    assert "error: process 0 lost another process in start: " in capsys.readouterr().err


def test_a_port_that_is_in_use_is_named(monkeypatch):
    with socket.socket(socket.AF_INET6) as other:
        other.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        other.bind(("::", 0))
        other.listen()
        port = str(other.getsockname()[1])
        place = {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        for name, value in place.items():
            monkeypatch.setenv(name, value)
        with pytest.raises(InputError, match=f"port {port} of this machine is in use.*--master-port"):
            World.from_environment("cpu", timeout=5)
