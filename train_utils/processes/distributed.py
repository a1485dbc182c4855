"""The processes of a run -> one object, the World: a single process is a world of size one.

All other code asks the world to sum, to gather, to wrap the model; it never asks whether it is distributed. Small
values and Python objects travel over gloo on the CPU, gradients over the device's own backend.
"""

import inspect
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, redirect_stdout
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from backbone.errors import InputError
from train_utils.processes.watch import Watch

HOW_TO_START = (
    "train_multi_GPU.py runs one process per device and is started by torchrun:\n"
    "    torchrun --nproc_per_node=NUMBER_OF_GPUS train_multi_GPU.py [flags]\n"
    "    torchrun --nproc_per_node=2 train_multi_GPU.py --device cpu [flags]\n"
    "For one process: python train.py [flags]"
)
TIMEOUT = 1800.0  # seconds that a process waits for the others, as torch has it for gloo
RESUME = "--resume auto goes on from the last checkpoint"  # what helps a training whose process is lost
LOST = ("gloo", "connection closed", "connection reset", "broken pipe", "nccl", "timed out", "timeout")


@dataclass(frozen=True)
class World:
    """The processes of a run, as one of them sees them.

    rank: 0..size-1; local_rank: the same within this machine; device: the one this process computes on; watch: of
    several processes.
    """

    rank: int
    size: int
    local_rank: int
    device: torch.device
    watch: Watch | None = None

    @classmethod
    def single(cls, device: torch.device | str) -> "World":
        """Returns the world of one process."""
        return cls(0, 1, 0, torch.device(device))

    @classmethod
    def from_environment(
        cls, device: str = "auto", timeout: float = TIMEOUT, advice: str = RESUME, joining: float | None = None
    ) -> "World":
        """Joins the processes that torchrun started.

        device: "auto", "cpu" or "cuda"; timeout: seconds that a process waits for the others, joining: that it
        looks for them (None: as many); advice: what helps when one is lost. Raises InputError without torchrun, or
        without such a device.
        """
        if "RANK" not in os.environ or "WORLD_SIZE" not in os.environ:
            raise InputError(HOW_TO_START)
        rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
        local_rank = int(os.environ.get("LOCAL_RANK", rank))
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        if device == "cuda":
            if local_rank >= torch.cuda.device_count():
                raise InputError(
                    f"process {local_rank} of this machine has no GPU: {torch.cuda.device_count()} found; "
                    f"start with --nproc_per_node={max(torch.cuda.device_count(), 1)}, or give --device cpu"
                )
            device = f"cuda:{local_rank}"
            torch.cuda.set_device(local_rank)
        elif device != "cpu":
            raise InputError(f"--device {device} does not fit several processes; give auto, cpu or cuda")
        if size == 1:
            return cls(rank, size, local_rank, torch.device(device))
        with reporting_lost_processes(None, rank, advice):
            backend = "cpu:gloo,cuda:nccl" if device != "cpu" else "gloo"
            limit, whole = timedelta(seconds=timeout if joining is None else joining), timedelta(seconds=2 * timeout)
            store = open_store(rank, limit)
            dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=whole)
            watch = Watch(rank, size, open_store(rank, limit, host=False), timeout, launcher(), advice)
        watch.start()
        return cls(rank, size, local_rank, torch.device(device), watch)

    @property
    def is_main(self) -> bool:
        """Whether this is rank 0, which prints and writes files."""
        return self.rank == 0

    def phase(self, what: str) -> None:
        """Notes what this process does now; the others name it if they wait for this process in vain."""
        if self.watch:
            self.watch.phase(what)

    def watch_signals(self, on: bool = True) -> None:
        """Passes a signal to one process on to all, from now on; on=False ends that."""
        if self.watch:
            self.watch.listen() if on else self.watch.ignore_signals()

    def pass_on_signal(self) -> None:
        """Passes a signal to this process on to all now."""
        if self.watch:
            self.watch.pass_on_now()

    def stop_number(self) -> int | None:
        """Returns the signal that one of the processes got, if any."""
        return self.watch.stop_number() if self.watch else None

    def together(self, waits: bool = True) -> AbstractContextManager:
        """Returns the context of what needs the other processes. If one is lost, it prints so and raises SystemExit.

        waits: this process only waits in it; after --dist-timeout seconds it names the others and ends.
        """
        return self._together(waits) if self.watch else nullcontext()

    @contextmanager
    def _together(self, waits: bool) -> Iterator[None]:
        with (
            reporting_lost_processes(self.watch, self.rank, self.watch.advice),
            self.watch.waiting() if waits else nullcontext(),
        ):
            yield

    @contextmanager
    def one_voice(self) -> Iterator[None]:
        """Lets only rank 0 print in the block; errors are printed by each."""
        if self.is_main:
            yield
            return
        with open(os.devnull, "w", errors="backslashreplace") as nowhere, redirect_stdout(nowhere):
            yield

    def wrap(self, model: nn.Module) -> nn.Module:
        """Returns the model whose backward pass averages the gradients over the ranks."""
        if self.size == 1:
            return model
        # Buffers are not synchronised at each step: broadcast_buffers() does it before they are used.
        parallel = torch.nn.parallel.DistributedDataParallel
        names = inspect.signature(parallel).parameters
        sync = "forward_sync_buffers" if "forward_sync_buffers" in names else "broadcast_buffers"  # older torch
        with self.together():
            return parallel(model, gradient_as_bucket_view=True, **{sync: False})

    def no_sync(self, model: nn.Module, last: bool) -> AbstractContextManager:
        """Returns the context of one micro-batch: only the last one of a step exchanges gradients."""
        return nullcontext() if last or self.size == 1 else model.no_sync()

    def sum(self, tensor: Tensor) -> Tensor:
        """Returns the sum of a small CPU tensor over the ranks, on every rank."""
        if self.size > 1:
            tensor = tensor.clone()
            with self.together():
                dist.all_reduce(tensor)
        return tensor

    def largest(self, number: Tensor) -> Tensor:
        """Returns the largest over the ranks of a number on the device, which the host does not wait for."""
        if self.size > 1:
            with self.together(waits=False):
                dist.all_reduce(number, op=dist.ReduceOp.MAX)
        return number

    def gather(self, value: Any) -> list:
        """Returns every rank's object, in rank order, on every rank."""
        values = [value] * self.size
        if self.size > 1:
            with self.together():
                dist.all_gather_object(values, value)
        return values

    def gather_on_main(self, value: Any) -> list:
        """Returns every rank's object, in rank order, on rank 0; an empty list elsewhere (results can be large)."""
        if self.size == 1:
            return [value]
        values = [None] * self.size if self.is_main else None
        with self.together():
            dist.gather_object(value, values)
        return values or []

    def broadcast(self, value: Any) -> Any:
        """Returns rank 0's object, on every rank."""
        values = [value]
        if self.size > 1:
            with self.together():
                dist.broadcast_object_list(values)
        return values[0]

    def on_main(self, function: Callable, *args: Any) -> Any:
        """Calls function(*args) on rank 0, returns its value on every rank; if it fails, the others exit silently."""
        status, value = 2, None
        try:
            if self.is_main:
                value = function(*args)
            status = 0
        except SystemExit as stop:
            status = stop.code
            raise
        finally:
            status, value = self.broadcast((status, value))
        if status:
            raise SystemExit(status)
        return value

    @torch.no_grad()
    def broadcast_buffers(self, model: nn.Module) -> None:
        """Gives every rank the buffers (running means and variances) of rank 0."""
        with self.together():
            for buffer in model.buffers() if self.size > 1 else ():
                dist.broadcast(buffer, 0)

    @contextmanager
    def main_first(self) -> Iterator[None]:
        """Runs the block on the first process of each machine before the others (downloads, drawn data).

        If it fails on the first, the others exit without repeating the message.
        """
        well = self.local_rank == 0 or all(self.gather(True))  # waits here for the first processes
        if not well:
            raise SystemExit(2)
        done = False
        try:
            yield
            done = True
        finally:
            if self.local_rank == 0:
                well = all(self.gather(done))
        if not well:
            raise SystemExit(2)

    def close(self) -> None:
        """Leaves the other processes."""
        if self.watch:
            self.watch.close()
        if dist.is_initialized():
            dist.destroy_process_group()


def open_store(rank: int, limit: timedelta, host: bool = True) -> dist.Store:
    """Opens the key-value store that the launcher, or else rank 0, hosts; in the launcher's a prefix for each restart.

    With the same prefix the processes of a restart could read addresses that dead processes have left. A store of rank
    0 is new with it, and machines that have joined at different times count different restarts.
    """
    hosted = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    address, port = os.environ.get("MASTER_ADDR"), os.environ.get("MASTER_PORT")
    if not address or not (port or "").isdecimal():
        raise InputError(HOW_TO_START)
    own = host and rank == 0 and not hosted
    try:
        store = dist.TCPStore(address, int(port), is_master=own, timeout=limit, wait_for_workers=False)
    except RuntimeError as error:
        if not own or "address already in use" not in str(error).lower():
            raise
        raise InputError(
            f"port {port} of this machine is in use, most likely by another run; give torchrun --standalone or another "
            "--master-port (the variable MASTER_PORT)"
        ) from error
    restart = os.environ.get("TORCHELASTIC_RESTART_COUNT", 0) if hosted else 0
    return dist.PrefixStore(f"maskrcnn/{restart}", store)


def launcher() -> int | None:
    """Returns the pid of torchrun's agent, this process's parent; None where another launcher was used."""
    return os.getppid() if "TORCHELASTIC_RUN_ID" in os.environ else None


@contextmanager
def reporting_lost_processes(watch: Watch | None, rank: int, advice: str) -> Iterator[None]:
    """Turns the error of a collective whose other end is gone into one line and exit status 1.

    After a signal to one of the processes, which ends the others too, it exits silently with the signal's status.
    advice: what helps then.
    """
    try:
        yield
    except RuntimeError as error:  # gloo's are no more specific
        if not any(word in str(error).lower() for word in LOST):
            raise
        number = watch.stop_number() if watch else None
        if number is None:
            cause = " ".join(str(error).split())[:150]
            print(
                f"error: process {rank} lost another process in {watch.what if watch else 'start'}: see that "
                f"one's message; {advice} ({cause})",
                file=sys.stderr,
                flush=True,
            )
        raise SystemExit(128 + number if number else 1) from error
