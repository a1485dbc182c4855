"""Training processes with a fault in them, forked from one that has everything imported (it starts in no time)."""

import ctypes
import errno
import importlib
import multiprocessing
import os
import signal
import socket
import sys
import time
from pathlib import Path

import matplotlib.pyplot  # noqa: F401  (imported by a run when it needs it: here once for all)
import torch
import torch._dynamo  # noqa: F401  (imported by the first optimizer; likewise)
import torch.distributed.run
import torch.utils.tensorboard  # noqa: F401  (likewise)
from tensorboard.summary.writer.record_writer import RecordWriter
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch
from tqdm import tqdm

import predict  # noqa: F401
import train
import train_multi_GPU
import validation  # noqa: F401
from tests.small_runs import ROOT, flags
from train_utils.cli.command import run_command
from train_utils.data import loaders
from train_utils.data.loaders import PR_SET_PDEATHSIG
from train_utils.io import files
from train_utils.run import epochs as trainer
from train_utils.run import evaluation, optimization, step
from train_utils.run import loop as train_loop

# phase -> where it is: (module or class, function)
PHASES = {
    "start": (train_loop, "open_splits"),
    "loading": (loaders._Samples, "__getitem__"),
    "step": (step, "forward_backward"),
    "saving": (files, "sync_folder"),
    "evaluation": (evaluation, "evaluate_batch"),
    "summary": (evaluation, "summarize"),
    "report": (trainer, "write_curves"),
}
PAUSE = 0.5  # seconds that a phase is held open
tqdm.get_lock()  # made here, once for all: of a killed process, which could not remove it, the semaphore would be left


def context():
    """Processes come from a server, which has imported this module and has not computed anything."""
    places = [str(ROOT), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    os.environ["PYTHONPATH"] = os.pathsep.join(dict.fromkeys(places))  # the server does not take over sys.path
    forks = multiprocessing.get_context("forkserver")
    forks.set_forkserver_preload([__name__])
    return forks


def start(data, folder, *more, log, fault=None, rank=0, size=1, port=None):
    """A process (of multiprocessing) that trains on `data` into `folder`; its output is appended to `log`.

    fault: ("kill", name, n): SIGKILL at the n-th call of os.<name>; ("full", name, n): that call finds the disk full;
    ("board", "write", n): the n-th write of TensorBoard's thread does; ("pause", phase, n, marker): at the n-th
    call of that phase write the file `marker`, and take PAUSE seconds longer; ("bf16",): compute in bfloat16
    though this CPU emulates it; ("call", module, name, function): function in place of module.name.

    The run draws no curves, which would take most of its time, but where the fault is in that phase.
    """
    place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    place = {key: str(value) for key, value in place.items()} if size > 1 else {}
    arguments = flags(data, folder, *more)
    process = context().Process(target=_run, args=(arguments, place, str(log), fault))
    process.start()
    return process


def start_all(data, folder, *more, log, size=1, fault=None, faulty=0):
    """The processes of a run of `size` ranks; the fault is in rank `faulty` (bf16 in all)."""
    port = free_port() if size > 1 else None
    faults = [fault if rank == faulty or fault == ("bf16",) else None for rank in range(size)]
    return [
        start(data, folder, *more, log=log, fault=faults[rank], rank=rank, size=size, port=port) for rank in range(size)
    ]


def start_rank(name, words, place, log, fault=None):
    """The process of one rank of a command, the module `name`, in the working folder; place: torchrun's variables."""
    process = context().Process(target=_run_rank, args=(name, words, place, str(log), os.getcwd(), fault))
    process.start()
    return process


def start_ranks(script, *words, log, size, last=(), fault=None):
    """The processes of a command in the working folder, whose output is appended to `log`.

    last: words of the last process; fault: in it: (module, class, name, n, file): SIGKILL at the n-th call of that,
    once the file has n lines.
    """
    port, processes = free_port(), []
    for rank in range(size):
        place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        own = [*map(str, words), *map(str, last if rank == size - 1 else ())]
        processes.append(start_rank(script.__name__, own, place, log, fault if rank == size - 1 else None))
    return processes


def launch(data, folder, *more, log, restarts=0):
    """torchrun with 2 ranks of train_multi_GPU.py: a process, as `start` gives it, whose ranks are real ones.

    Each imports everything anew, after a restart too; those of `start_nodes` are forked.
    """
    words = ["--standalone", f"--max-restarts={restarts}", "--nproc_per_node=2", str(ROOT / "train_multi_GPU.py")]
    process = context().Process(target=_launch, args=(words + flags(data, folder, *more), str(log)))
    process.start()
    return process


def start_nodes(script, *words, log, started=2, nodes=2, ranks=1, restarts=0, port=None):
    """Launchers of so many ranks each, as torchrun --nnodes on so many machines; their output is appended to `log`.

    started: how many of the launchers to start. They meet by c10d on `port` of the loopback interface. Ranks are
    forked, where torchrun would start them anew.
    """
    port, processes = port or free_port(), []
    how = {"min_nodes": nodes, "max_nodes": nodes, "nproc_per_node": ranks, "max_restarts": restarts}
    arguments = script.__name__, list(map(str, words)), str(log), os.getcwd(), f"127.0.0.1:{port}", how
    for _ in range(started):
        processes.append(context().Process(target=_run_node, args=arguments))
        processes[-1].start()
    return processes


def end_all(processes, timeout=120.0):
    """Exit codes of processes, waited for; those that do not end are killed and their code is None."""
    until, codes = time.monotonic() + timeout, []
    for process in processes:
        process.join(max(0.0, until - time.monotonic()))
        codes.append(process.exitcode)
        if process.exitcode is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.join()
    return codes


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def wait_for(condition, timeout=180.0):
    """Whether condition() came true in time."""
    until = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > until:
            return False
        time.sleep(0.02)
    return True


def finished_steps(folder):
    """How many steps a run has written of into steps.jsonl."""
    path = Path(folder) / "steps.jsonl"
    return path.read_text().count("\n") if path.exists() else 0


def children(pid):
    """The processes that a process has started."""
    with open(f"/proc/{pid}/task/{pid}/children") as file:
        found = [int(word) for word in file.read().split()]
    return [child for child in found if lives(child)]


def lives(pid):
    """Whether a process runs (and is not a dead one that its parent has not noticed)."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def _detach(log):
    """Makes a forked process as one that was started by itself, with its output in the file `log`."""
    os.setpgrp()  # a group of its own, to be signalled as a terminal does it
    signal.signal(signal.SIGINT, signal.default_int_handler)  # the server ignores it
    file = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.dup2(file, 1)
    os.dup2(file, 2)
    torch.set_num_threads(1)


def _launch(arguments, log):
    _detach(log)
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.distributed.run.main(arguments)


def _run_rank(script, words, place, log, folder, fault):
    _detach(log)
    if sys.platform == "linux":  # torch has what it forks end with the launcher; torchrun's ranks do so by themselves
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, 0)
    os.chdir(folder)
    os.environ.update({key: str(value) for key, value in place.items()})
    if fault:
        module, owner, name, count, path = fault
        kept = lambda: os.path.exists(path) and Path(path).read_bytes().count(b"\n") >= count  # noqa: E731
        act = lambda: (wait_for(kept), os.kill(os.getpid(), signal.SIGKILL))  # noqa: E731
        _replace(getattr(sys.modules[module], owner), name, count, act)
    sys.argv = [f"{script}.py", *words]
    trainer.write_curves = lambda *_: None
    sys.exit(run_command(importlib.import_module(script).main))


def _run_node(script, words, log, folder, endpoint, size):
    _detach(log)
    os.environ["OMP_NUM_THREADS"] = "1"
    os.environ["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"  # findings/torch_node_returns.sh
    how = {"start_method": "fork", "local_addr": "127.0.0.1", "monitor_interval": 0.1}
    how["rdzv_configs"] = {"keep_alive_interval": 1, "keep_alive_max_attempt": 2, "join_timeout": 100}
    config = LaunchConfig(run_id="test", rdzv_backend="c10d", rdzv_endpoint=endpoint, **size, **how)
    try:
        elastic_launch(config, _run_rank)(script, words, {}, log, folder, None)
    except (ChildFailedError, SignalException) as error:
        print(f"launcher: {type(error).__name__}", flush=True)
        sys.exit(1)


def _run(arguments, place, log, fault):
    _detach(log)
    os.environ.update(place)
    if "report" not in (fault or ()):
        trainer.write_curves = lambda *_: None
    if fault:
        install(*fault)
    script = train_multi_GPU if place else train
    sys.argv = [f"{script.__name__}.py", *arguments]
    sys.exit(run_command(script.main))


def install(kind, *values):
    """Put a fault into this process."""
    if kind == "kill":
        name, count = values
        _replace(os, name, count, lambda: os.kill(os.getpid(), signal.SIGKILL))
    elif kind in ("full", "board"):
        name, count = values
        _replace(os if kind == "full" else RecordWriter, name, count, fill)
    elif kind == "pause":
        phase, count, marker = values

        def pause():
            Path(marker).touch()
            time.sleep(PAUSE)

        _replace(*PHASES[phase], count, pause)
    elif kind == "call":
        module, name, function = values
        setattr(sys.modules[module], name, function)
    else:
        optimization.cpu_has_bf16 = lambda fast=False: True


def fill() -> None:
    """Fails as writing to a full disk does."""
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _replace(place, name, count, act):
    """Let place.name call act() first when it is called for the count-th time."""
    original, calls = getattr(place, name), 0

    def counted(*args, **kwargs):
        nonlocal calls
        calls += 1
        if calls == count:
            act()
        return original(*args, **kwargs)

    setattr(place, name, counted)
