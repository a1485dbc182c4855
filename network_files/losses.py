"""The five losses, as pure functions. Each is a scalar, and zero where it has nothing to sum over.

Shapes: S sampled anchors or RoIs of the whole batch, K of them positive, C classes with background.
Box losses are smooth L1 with the knee at 1/9 (Detectron), summed and divided by S.
"""

import torch.nn.functional as F
from torch import Tensor

LOSS_NAMES = ("loss_classifier", "loss_box_reg", "loss_mask", "loss_objectness", "loss_rpn_box_reg")  # as shown
KNEE = 1 / 9


def rpn_losses(objectness: Tensor, labels: Tensor, deltas: Tensor, targets: Tensor) -> dict[str, Tensor]:
    """Compares objectness logits [S] with labels [S] in {0, 1}, and positives' deltas [K, 4] with targets [K, 4]."""
    loss = F.binary_cross_entropy_with_logits(objectness, labels.to(objectness.dtype), reduction="sum")
    return {"loss_objectness": loss / max(len(labels), 1), "loss_rpn_box_reg": _box_loss(deltas, targets, len(labels))}


def box_losses(
    logits: Tensor, deltas: Tensor, labels: Tensor, targets: Tensor, positive: Tensor | None = None
) -> dict[str, Tensor]:
    """Compares class logits [S, C] with labels [S] (0 = background), and deltas [S, 4 C] with targets [S, 4].

    Of the deltas, those of a positive RoI's own class count. positive [K]: where labels are > 0, if it is known.
    """
    positive = (labels > 0).nonzero()[:, 0] if positive is None else positive  # [K]
    own = deltas.view(len(labels), deltas.shape[1] // 4, 4)[positive, labels[positive]]  # [K, 4]
    return {
        "loss_classifier": F.cross_entropy(logits, labels, reduction="sum") / max(len(labels), 1),
        "loss_box_reg": _box_loss(own, targets[positive], len(labels)),
    }


def mask_loss(logits: Tensor, targets: Tensor) -> dict[str, Tensor]:
    """Compares mask logits [K, M, M] of each RoI's own class with targets [K, M, M] in 0..1."""
    loss = F.binary_cross_entropy_with_logits(logits, targets, reduction="sum")
    # without positives the sum over nothing still ties the mask branch into the graph
    return {"loss_mask": loss / max(targets.numel(), 1)}


def _box_loss(deltas: Tensor, targets: Tensor, sampled: int) -> Tensor:
    return F.smooth_l1_loss(deltas, targets, beta=KNEE, reduction="sum") / max(sampled, 1)
