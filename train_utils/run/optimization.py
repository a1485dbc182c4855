"""What turns gradients into new weights: optimiser, learning-rate schedule, mixed precision, and the TrainState."""

import math
import warnings
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from backbone.errors import InputError
from train_utils.run.ema import EMA

WARMUP_START = 0.001  # share of the learning rate at step 0, as in torchvision's detection reference


def build_optimizer(
    model: nn.Module, name: str, lr: float, momentum: float = 0.9, weight_decay: float = 1e-4
) -> torch.optim.Optimizer:
    """Returns the optimiser named sgd (with momentum) or adamw, over the parameters that are trained."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    if name == "sgd":
        return torch.optim.SGD(parameters, lr=lr, momentum=momentum, weight_decay=weight_decay, fused=True)
    if name == "adamw":
        return torch.optim.AdamW(parameters, lr=lr, weight_decay=weight_decay, fused=True)
    raise InputError(f"--optimizer {name} is not known; give sgd or adamw")


def lr_factor(
    step: int,
    *,
    total_steps: int,
    warmup_steps: int,
    schedule: str = "steps",
    milestones: Sequence[int] = (),
    gamma: float = 0.1,
) -> float:
    """Returns the factor of the learning rate at optimiser step `step` (0-based).

    The factor is a linear warm-up over `warmup_steps`, times either gamma for each milestone (in steps) passed, or
    half a cosine that starts when the warm-up ends and would reach 0 at `total_steps`.
    """
    factor = 1.0
    if step < warmup_steps:
        factor = WARMUP_START + (1 - WARMUP_START) * step / warmup_steps
    if schedule == "steps":
        return factor * gamma ** sum(step >= m for m in milestones)
    done = (step - warmup_steps) / max(total_steps - warmup_steps, 1)
    return factor * 0.5 * (1 + math.cos(math.pi * min(max(done, 0.0), 1.0)))


def build_schedule(optimizer: torch.optim.Optimizer, **options: Any) -> torch.optim.lr_scheduler.LambdaLR:
    """Returns lr_factor with these options as a scheduler, stepped once per optimiser step."""
    return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: lr_factor(step, **options))


FORCE = "force"  # in place of --amp's True: whatever the CPU


def amp_dtype(device: torch.device, amp: bool | str = True) -> torch.dtype | None:
    """Returns the type of mixed precision: bfloat16, float16 on a GPU without it, None for float32.

    amp: False, True or FORCE; True is float32 on a CPU where bfloat16 is slower.
    """
    if not amp:
        return None
    if device.type == "cuda":
        with torch.cuda.device(device):  # it asks the current one
            native = torch.cuda.is_bf16_supported(including_emulation=False)
        return torch.bfloat16 if native else torch.float16
    return torch.bfloat16 if amp == FORCE or cpu_has_bf16(fast=True) else None


def why_left_off() -> str:
    """Returns why `amp_dtype` gives None on this CPU, in words."""
    if cpu_has_bf16():
        return f"this CPU has bfloat16 without AMX, which is slower than float32; --amp {FORCE} takes it all the same"
    return "this CPU has no bfloat16 of its own and would be slower with it"


def cpu_has_bf16(fast: bool = False) -> bool:
    """Returns whether this CPU computes in bfloat16 itself (emulated, it is slower than float32). True if unknown.

    fast: whether that is faster than float32. On x86 it is so with AMX alone: with AVX512-BF16 a detector took 1.6
    times as long.
    """
    try:
        flags = Path("/proc/cpuinfo").read_text().split()
    except OSError:
        return True
    return not {"amx_bf16", "bf16", "svebf16", *(() if fast else ("avx512_bf16",))}.isdisjoint(flags)


class Precision:
    """The autocast region of the forward pass, and the gradient scaler that float16 needs."""

    def __init__(self, device: torch.device, dtype: torch.dtype | None = None) -> None:
        self.device, self.dtype = device, dtype
        self.scaler = torch.amp.GradScaler(device.type) if dtype == torch.float16 else None

    def autocast(self) -> AbstractContextManager:
        """Returns the context of a forward pass."""
        return nullcontext() if self.dtype is None else torch.autocast(self.device.type, dtype=self.dtype)

    def backward(self, loss: Tensor) -> None:
        """Adds the gradient of a loss, scaled where float16 needs it."""
        (self.scaler.scale(loss) if self.scaler else loss).backward()

    def step(
        self, optimizer: torch.optim.Optimizer, clip_grad_norm: float | None = None, bad: Tensor | None = None
    ) -> tuple[Tensor, bool]:
        """Takes one optimiser step and clears the gradients; bad, on the device: 1 leaves the weights as they are.

        Returns the norm of the whole gradient before any clipping (a tensor on its device; not finite after an
        overflow), and whether the scaler skipped the step because of an overflow.
        """
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        if clip_grad_norm:
            if self.scaler:
                self.scaler.unscale_(optimizer)
            norm = torch.nn.utils.clip_grad_norm_(parameters, clip_grad_norm)
        else:
            norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
            norm = norm / self.scaler.get_scale() if self.scaler else norm
        overflow = False
        if self.scaler:
            scale, first = self.scaler.get_scale(), not optimizer.state
            self.scaler.step(optimizer)
            self.scaler.update()
            overflow = self.scaler.get_scale() < scale
            if overflow and first:  # torch's fused SGD leaves momentum there that was never written
                optimizer.state.clear()
        elif bad is not None:
            optimizer.found_inf = bad  # torch's fused optimisers ask for it, as for its scaler's
            optimizer.step()
            del optimizer.found_inf
        else:
            optimizer.step()
        optimizer.zero_grad()
        return norm, overflow


@dataclass
class TrainState:
    """What a step changes, and how."""

    model: nn.Module  # the model itself: to evaluate and to save
    parallel: nn.Module  # world.wrap(model): to train
    optimizer: torch.optim.Optimizer
    schedule: torch.optim.lr_scheduler.LRScheduler
    precision: Precision
    ema: EMA | None = None
    clip_grad_norm: float | None = None
    seed: int = 0

    def update(self, bad: Tensor | None = None) -> tuple[Tensor, bool]:
        """Uses the gradient of a step; takes and returns what `Precision.step` does."""
        found = self.precision.step(self.optimizer, self.clip_grad_norm, bad)
        self.schedule.step()
        return found

    def average(self, step: int) -> None:
        """Adds the weights after step `step` to their average, if there is one."""
        if self.ema:
            self.ema.update(self.model, step)

    def skip(self, statistics: Iterable[tuple[Tensor, Tensor]]) -> None:
        """Counts a step without its gradient; statistics: buffers, and what each held before the step."""
        self.optimizer.zero_grad()
        with warnings.catch_warnings():  # at the very first step it suspects a wrong order of calls
            warnings.simplefilter("ignore", UserWarning)
            self.schedule.step()
        with torch.no_grad():
            for buffer, before in statistics:
                buffer.copy_(before)
