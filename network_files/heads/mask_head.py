"""RoI features -> mask logits: the layers of the mask branch, and how many RoIs they take at once.

Shapes: K RoIs, S = 14 cells a side, M = 2 S mask cells a side, C classes with background.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from network_files.heads.box_head import Norm, conv3x3
from network_files.operators.padded import waits_are_cheap

MASKS_AT_ONCE = 32  # RoIs in the mask branch: they stay in a CPU's cache
MASKS_AT_ONCE_GPU = 2048  # they keep a GPU busy, and a batch of 16 images has no more in training


def masks_at_once(device: torch.device) -> int:
    """Returns how many RoIs a device takes in the mask branch at once."""
    return MASKS_AT_ONCE if waits_are_cheap(device) else MASKS_AT_ONCE_GPU


class MaskHead(nn.Sequential):
    """3x3 convolutions, [K, c, 14, 14] -> [K, width, 14, 14]."""

    def __init__(self, channels: int, width: int, layers: int, norm: Norm | None, dropout: float) -> None:
        super().__init__(*(conv3x3(channels if i == 0 else width, width, norm) for i in range(layers)))
        self.dropout = dropout

    def forward(self, x: Tensor) -> Tensor:
        """Runs the layers."""
        for block in self:
            x = F.dropout(F.relu(block(x), inplace=True), self.dropout, self.training)
        return x


class MaskPredictor(nn.Module):
    """Twice the resolution, then a mask logit for the class of each RoI."""

    def __init__(self, channels: int, num_classes: int) -> None:
        super().__init__()
        self.conv5_mask = nn.ConvTranspose2d(channels, channels, 2, 2)
        self.mask_fcn_logits = nn.Conv2d(channels, num_classes, 1)
        nn.init.kaiming_normal_(self.conv5_mask.weight, mode="fan_out", nonlinearity="relu")
        # so that logits begin near 1; torchvision's grow with the width and shrink with the classes: a first loss of
        # up to 27, which a network without published weights recovers from slowly
        nn.init.normal_(self.mask_fcn_logits.weight, std=channels**-0.5)
        nn.init.zeros_(self.mask_fcn_logits.bias)

    def forward(self, x: Tensor, labels: Tensor) -> Tensor:
        """Returns logits [K, 28, 28] of each RoI's own class, labels [K], and of no other, from [K, c, 14, 14]."""
        x = F.relu(self.conv5_mask(x), inplace=True)  # [K, c, 28, 28]
        # permuted to its order in memory: its gradient then comes in that order too
        weight = self.mask_fcn_logits.weight.permute(0, 2, 3, 1).flatten(1)[labels]  # [K, c]
        cells = x.permute(0, 2, 3, 1).flatten(1, 2)  # [K, 28 28, c]
        own = torch.bmm(cells, weight.to(x.dtype).unsqueeze(2)).view(x.shape[0], *x.shape[2:])
        return own + self.mask_fcn_logits.bias[labels].view(-1, 1, 1).to(x.dtype)


def own_logits(predictor: nn.Module, features: Tensor, labels: Tensor, classes: int, cells: int) -> Tensor:
    """Returns mask logits [K, M, M] of each RoI's own class, labels [K], from the mask head's features [K, c, S, S].

    predictor: MaskPredictor, or a module of torchvision's contract. Raises ValueError where it does not give so many
    classes and cells (M).
    """
    is_ours = isinstance(predictor, MaskPredictor)
    logits = predictor(features, labels) if is_ours else predictor(features)
    has = predictor.mask_fcn_logits.out_channels if is_ours else logits.shape[1]
    if has != classes or tuple(logits.shape[-2:]) != (cells, cells):
        raise ValueError(
            f"roi_heads.mask_predictor gives masks of {has} classes, {list(logits.shape[-2:])} cells: it must be "
            f"{classes} classes, as box_predictor, [{cells}, {cells}] cells; replace both predictors"
        )
    return logits if is_ours else logits[torch.arange(len(labels), device=labels.device), labels]
