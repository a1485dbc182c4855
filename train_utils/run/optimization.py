"""Optimiser, learning-rate schedule and mixed precision: what turns gradients into steps."""

import math
from contextlib import nullcontext
from pathlib import Path

import torch

from backbone.errors import InputError

WARMUP_START = 0.001  # share of the learning rate at step 0, as in torchvision's detection reference


def build_optimizer(model, name, lr, momentum=0.9, weight_decay=1e-4):
    """The optimiser named sgd (with momentum) or adamw, over the parameters that are trained."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    if name == "sgd":
        return torch.optim.SGD(parameters, lr=lr, momentum=momentum, weight_decay=weight_decay, fused=True)
    if name == "adamw":
        return torch.optim.AdamW(parameters, lr=lr, weight_decay=weight_decay, fused=True)
    raise InputError(f"--optimizer {name} is not known; give sgd or adamw")


def lr_factor(step, *, total_steps, warmup_steps, schedule="steps", milestones=(), gamma=0.1):
    """What the learning rate is multiplied with at optimiser step `step` (0-based).

    Linear warm-up over `warmup_steps`, times either gamma for each milestone (in steps) passed, or half a
    cosine that starts when the warm-up ends and would reach 0 at `total_steps`.
    """
    factor = 1.0
    if step < warmup_steps:
        factor = WARMUP_START + (1 - WARMUP_START) * step / warmup_steps
    if schedule == "steps":
        return factor * gamma ** sum(step >= m for m in milestones)
    done = (step - warmup_steps) / max(total_steps - warmup_steps, 1)
    return factor * 0.5 * (1 + math.cos(math.pi * min(max(done, 0.0), 1.0)))


def build_schedule(optimizer, **options):
    """lr_factor with these options as a scheduler stepped once per optimiser step."""
    return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: lr_factor(step, **options))


def amp_dtype(device):
    """The type of mixed precision: bfloat16, float16 on a GPU without it, None where it would not pay."""
    if device.type == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
        return torch.bfloat16 if native else torch.float16
    return torch.bfloat16 if cpu_has_bf16() else None


def cpu_has_bf16():
    """Whether this CPU computes in bfloat16 itself: emulated, it is slower than float32. True if unknown."""
    try:
        flags = Path("/proc/cpuinfo").read_text().split()
    except OSError:
        return True
    return not {"avx512_bf16", "amx_bf16", "bf16", "svebf16"}.isdisjoint(flags)


class Precision:
    """The autocast region of the forward pass, and the gradient scaler that float16 needs."""

    def __init__(self, device, dtype=None):
        self.device, self.dtype = device, dtype
        self.scaler = torch.amp.GradScaler(device.type) if dtype == torch.float16 else None

    def autocast(self):
        return nullcontext() if self.dtype is None else torch.autocast(self.device.type, dtype=self.dtype)

    def backward(self, loss):
        (self.scaler.scale(loss) if self.scaler else loss).backward()

    def step(self, optimizer, clip_grad_norm=None):
        """One optimiser step, gradients cleared.

        Returns the norm of the whole gradient before any clipping (a tensor on its device; not finite after an
        overflow), and whether the scaler left the step out for an overflow.
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
        else:
            optimizer.step()
        optimizer.zero_grad()
        return norm, overflow
