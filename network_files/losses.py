"""The five losses, as pure functions. Each is a scalar, and zero where it has nothing to sum over.

Shapes: S sampled anchors or RoIs of the whole batch, K of them positive, C classes with background.
Box losses are smooth L1 with the knee at 1/9 (Detectron), summed and divided by S.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

LOSS_NAMES = ("loss_classifier", "loss_box_reg", "loss_mask", "loss_objectness", "loss_rpn_box_reg")  # as shown
KNEE = 1 / 9


def _box_loss(deltas: Tensor, targets: Tensor, sampled: int) -> Tensor:
    return F.smooth_l1_loss(deltas, targets, beta=KNEE, reduction="sum") / max(sampled, 1)


def rpn_losses(objectness: Tensor, labels: Tensor, deltas: Tensor, targets: Tensor) -> dict[str, Tensor]:
    """objectness logits [S] against labels [S] in {0, 1}; deltas [K, 4] of the positives against targets [K, 4]."""
    loss = F.binary_cross_entropy_with_logits(objectness, labels.to(objectness.dtype), reduction="sum")
    return {"loss_objectness": loss / max(len(labels), 1), "loss_rpn_box_reg": _box_loss(deltas, targets, len(labels))}


def box_losses(logits: Tensor, deltas: Tensor, labels: Tensor, targets: Tensor) -> dict[str, Tensor]:
    """Class logits [S, C] against labels [S] (0 = background); deltas [S, 4 C], of which a positive RoI's own
    class counts, against targets [S, 4]."""
    positive = (labels > 0).nonzero()[:, 0]  # [K]
    own = deltas.view(len(labels), deltas.shape[1] // 4, 4)[positive, labels[positive]]  # [K, 4]
    return {
        "loss_classifier": F.cross_entropy(logits, labels, reduction="sum") / max(len(labels), 1),
        "loss_box_reg": _box_loss(own, targets[positive], len(labels)),
    }


def mask_loss(logits: Tensor, targets: Tensor) -> dict[str, Tensor]:
    """Mask logits [K, M, M] of each RoI's own class against targets [K, M, M] in 0..1."""
    loss = F.binary_cross_entropy_with_logits(logits, targets, reduction="sum")
    # without positives the sum over nothing still ties the mask branch into the graph
    return {"loss_mask": loss / max(targets.numel(), 1)}


def loss_in_parts(
    loss: Callable[..., Tensor], x: Tensor, parts: list[tuple[Tensor, ...]], parameters: list[Tensor]
) -> Tensor:
    """The sum of loss(some of x, *part) over the parts: scalars whose first arguments are x [K, ...] in equal portions.

    Gradients, of x and of the parameters that the loss uses, are made with each portion's loss, so that the
    activations of one portion live at a time. Under fp16, where they would underflow unscaled, they wait.
    """
    portions = x.split(len(parts[0][0]))
    if in_float16(x.device.type) or not torch.is_grad_enabled():
        return sum(loss(some, *part) for some, part in zip(portions, parts, strict=True))
    return LossInParts.apply(loss, parts, x, *parameters)


def in_float16(device: str) -> bool:
    """Whether autocast computes in float16 on that type of device."""
    return torch.is_autocast_enabled(device) and torch.get_autocast_dtype(device) == torch.float16


class LossInParts(torch.autograd.Function):
    """See `loss_in_parts`."""

    @staticmethod
    def forward(ctx, loss, parts, x, *parameters):
        trained = [p for p in parameters if p.requires_grad]
        total, x_grads, sums = x.new_zeros(()), [], None
        for some, part in zip(x.split(len(parts[0][0])), parts, strict=True):
            with torch.enable_grad():
                some = some.detach().requires_grad_()
                value = loss(some, *part)
            x_grad, *grads = torch.autograd.grad(value, [some, *trained])
            total += value.detach()
            x_grads.append(x_grad)
            sums = grads if sums is None else [a.add_(b) for a, b in zip(sums, grads, strict=True)]
        ctx.save_for_backward(torch.cat(x_grads), *sums)
        ctx.trained = [p.requires_grad for p in parameters]
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        x_grad, *sums = (saved * grad for saved in ctx.saved_tensors)
        return None, None, x_grad, *(sums.pop(0) if trained else None for trained in ctx.trained)
