"""The processes of a run as one object, the World: a single process is a world of size one.

Everything else asks the world (to sum, to gather, to wrap the model), never whether it is distributed. Small
values and Python objects travel over gloo on the CPU, gradients over the device's own backend.
"""

import inspect
import os
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

import torch
import torch.distributed as dist

from backbone.errors import InputError

HOW_TO_START = (
    "train_multi_GPU.py runs one process per device and is started by torchrun:\n"
    "    torchrun --nproc_per_node=NUMBER_OF_GPUS train_multi_GPU.py [flags]\n"
    "    torchrun --nproc_per_node=2 train_multi_GPU.py --device cpu [flags]\n"
    "For one process: python train.py [flags]"
)


@dataclass(frozen=True)
class World:
    """rank 0..size-1, local_rank the same within this machine, device the one this process computes on."""

    rank: int
    size: int
    local_rank: int
    device: torch.device

    @classmethod
    def single(cls, device):
        return cls(0, 1, 0, torch.device(device))

    @classmethod
    def from_environment(cls, device="auto"):
        """Join the processes that torchrun started. device: "auto", "cpu" or "cuda"."""
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
        if size > 1:
            dist.init_process_group("cpu:gloo,cuda:nccl" if device != "cpu" else "gloo")
        return cls(rank, size, local_rank, torch.device(device))

    @property
    def is_main(self):
        return self.rank == 0

    def wrap(self, model):
        """The model whose backward pass averages the gradients over the ranks."""
        if self.size == 1:
            return model
        # Buffers are not synchronised at each step: broadcast_buffers() does it where they are read.
        parallel = torch.nn.parallel.DistributedDataParallel
        names = inspect.signature(parallel).parameters
        sync = (
            "forward_sync_buffers" if "forward_sync_buffers" in names else "broadcast_buffers"
        )  # older torch
        return parallel(model, gradient_as_bucket_view=True, **{sync: False})

    def no_sync(self, model, last):
        """Context of one micro-batch: gradients are exchanged in the last one of a step only."""
        return nullcontext() if last or self.size == 1 else model.no_sync()

    def sum(self, tensor):
        """Sum of a small CPU tensor over the ranks, on every rank."""
        if self.size > 1:
            tensor = tensor.clone()
            dist.all_reduce(tensor)
        return tensor

    def gather(self, value):
        """Every rank's object, in rank order, on every rank."""
        values = [value] * self.size
        if self.size > 1:
            dist.all_gather_object(values, value)
        return values

    def gather_on_main(self, value):
        """Every rank's object, in rank order, on rank 0; an empty list elsewhere (results can be large)."""
        if self.size == 1:
            return [value]
        values = [None] * self.size if self.is_main else None
        dist.gather_object(value, values)
        return values or []

    def broadcast(self, value):
        """Rank 0's object, on every rank."""
        values = [value]
        if self.size > 1:
            dist.broadcast_object_list(values)
        return values[0]

    def on_main(self, function, *args):
        """function(*args) on rank 0, its value on every rank; if it fails, the other ranks stop quietly."""
        ok, value = False, None
        try:
            if self.is_main:
                value = function(*args)
            ok = True
        finally:
            ok, value = self.broadcast((ok, value))
        if not ok:
            raise SystemExit(2)
        return value

    @torch.no_grad()
    def broadcast_buffers(self, model):
        """Give every rank the buffers (running means and variances) of rank 0."""
        for buffer in model.buffers() if self.size > 1 else ():
            dist.broadcast(buffer, 0)

    @contextmanager
    def main_first(self):
        """The block runs on the first process of each machine, then on the others (downloads, drawn data).

        Where it fails there, the others stop without repeating the message.
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

    def close(self):
        if dist.is_initialized():
            dist.destroy_process_group()
