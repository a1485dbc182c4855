"""Whether a tensor holds values: what is kept must not come out of a trace, whose tensors hold none."""

import torch
from torch import Tensor

VALUED = (Tensor,)  # types of tensors that hold values


def is_traced(tensor: Tensor) -> bool:
    """Says whether a trace, and no computation, goes on with this tensor: what is made in it must not be kept."""
    return torch.jit.is_tracing() or torch.compiler.is_compiling() or type(tensor) not in VALUED
