"""Base of the bodies' blocks: a branch of convolutions whose activations can be computed a second time."""

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


class Block(nn.Module):
    """A subclass has `branch`, its convolutions up to the last one.

    recompute: the backward pass keeps the block's input only, and computes the branch's inner activations again.
    """

    recompute = False

    def run_branch(self, x: Tensor) -> Tensor:
        """Returns branch(x), recomputed in the backward pass where that is wanted."""
        if self.recompute and torch.is_grad_enabled():  # stops before the last convolution: nothing needs its output
            return checkpoint(self.branch, x, use_reentrant=False, preserve_rng_state=False)
        return self.branch(x)

    def joined(self, x: Tensor, shortcut: Tensor) -> Tensor:
        """Returns branch(x) + shortcut, in the memory of the branch: new memory would take longer than the sum."""
        branch = self.run_branch(x)
        return branch.add_(shortcut) if branch.dtype == shortcut.dtype else branch + shortcut
