"""A model's weights after each step -> their exponential moving average (EMA)."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from backbone.errors import InputError


class EMA:
    """Averages a model's parameters, and copies its buffers (batch-norm statistics are averages already).

    Law, after optimiser step `step` (0-based): `average = d * average + (1 - d) * weight`, where
    `d = min(decay, (1 + step) / (10 + step))`: the average follows quickly while it still holds the initial
    weights (the warm-up of TensorFlow's ExponentialMovingAverage). It depends on the steps alone, so
    `state_dict` is all that a resumed run needs.

    model: the model itself, not wrapped for data-parallel training; decay: in 0..1, 0.999 averages over about the
    last thousand steps. Raises InputError for another decay.
    """

    def __init__(self, model: nn.Module, decay: float = 0.999) -> None:
        if not 0 <= decay < 1:
            raise InputError(f"the decay of the averaged weights must be at least 0 and below 1, not {decay}")
        self.decay = decay
        self.average: dict[str, Tensor] = {k: v.detach().clone() for k, v in model.state_dict().items()}

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """Adds the weights after optimiser step `step` to the average."""
        decay = min(self.decay, (1 + step) / (10 + step))
        weights = model.state_dict()
        trained = [name for name, p in model.named_parameters() if p.requires_grad]
        torch._foreach_lerp_([self.average[n] for n in trained], [weights[n] for n in trained], 1 - decay)
        rest = sorted(weights.keys() - set(trained))  # in one call for each type of values, as a GPU wants few
        for dtype in {weights[name].dtype for name in rest}:
            same = [name for name in rest if weights[name].dtype == dtype]
            torch._foreach_copy_([self.average[n] for n in same], [weights[n] for n in same])

    def state_dict(self) -> dict[str, Tensor]:
        """Returns the averaged weights under the model's own keys: what a checkpoint holds as "ema"."""
        return dict(self.average)

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restores averaged weights, bit for bit; raises InputError if they are another model's."""
        wrong = state.keys() ^ self.average.keys()
        wrong |= {k for k in state.keys() & self.average.keys() if state[k].shape != self.average[k].shape}
        if wrong:
            raise InputError(
                f"the averaged weights are of another model: {len(wrong)} tensors differ, such as {min(wrong)}"
            )
        for name, value in state.items():
            self.average[name].copy_(value)

    @contextmanager
    @torch.no_grad()
    def applied(self, model: nn.Module) -> Iterator[nn.Module]:
        """Gives `model` the averaged weights for the block; afterwards it has its own again, bit for bit."""
        tensors = model.state_dict()  # shares memory with the model
        own = {name: tensor.clone() for name, tensor in tensors.items()}
        try:
            for name, tensor in tensors.items():
                tensor.copy_(self.average[name])
            yield model
        finally:
            for name, tensor in tensors.items():
                tensor.copy_(own[name])
