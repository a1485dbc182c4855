"""RoI features -> class logits and box deltas: the layers of the box branch.

Shapes: K RoIs, S cells a side, C classes with background.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from backbone import ConvNorm

Norm = Callable[[int], nn.Module]


def conv3x3(c_in: int, c_out: int, norm: Norm | None) -> ConvNorm:
    """Returns a 3x3 convolution with its norm, if any, made for a ReLU behind it."""
    conv = ConvNorm(c_in, c_out, 3, norm)
    nn.init.kaiming_normal_(conv[0].weight, mode="fan_out", nonlinearity="relu")
    return conv


class TwoMLPHead(nn.Module):
    """v1's box head: two fully connected layers, [K, c, S, S] -> [K, width]."""

    def __init__(self, channels: int, roi_size: int, width: int, dropout: float) -> None:
        super().__init__()
        self.fc6 = nn.Linear(channels * roi_size**2, width)
        self.fc7 = nn.Linear(width, width)
        self.dropout = dropout

    def forward(self, x: Tensor) -> Tensor:
        """Runs the layers."""
        for layer in (self.fc6, self.fc7):
            x = F.dropout(F.relu(layer(x.flatten(1))), self.dropout, self.training)
        return x


class ConvFCHead(nn.Sequential):
    """v2's box head: normalised 3x3 convolutions and a fully connected layer, [K, c, S, S] -> [K, width]."""

    def __init__(self, channels: int, roi_size: int, width: int, convs: int, norm: Norm, dropout: float) -> None:
        super().__init__(
            *(conv3x3(channels, channels, norm) for _ in range(convs)),
            nn.Flatten(),
            nn.Linear(channels * roi_size**2, width),  # in torchvision's places, for its names
        )
        self.dropout = dropout

    def forward(self, x: Tensor) -> Tensor:
        """Runs the layers."""
        *convs, flatten, linear = self
        for conv in convs:
            x = F.relu(conv(x), inplace=True)
        return F.dropout(F.relu(linear(flatten(x))), self.dropout, self.training)


class BoxPredictor(nn.Module):
    """[K, width] -> class logits [K, C] and deltas [K, 4 C]."""

    def __init__(self, width: int, num_classes: int) -> None:
        super().__init__()
        self.cls_score = nn.Linear(width, num_classes)
        self.bbox_pred = nn.Linear(width, num_classes * 4)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Returns class logits and deltas."""
        return self.cls_score(x), self.bbox_pred(x)


def classes_of(predictor: nn.Module, width: int) -> int:
    """Returns how many classes a box predictor tells apart, background included, of features [K, width].

    Raises ValueError for a module of another contract.
    """
    layer = getattr(predictor, "cls_score", None)
    if isinstance(layer, nn.Linear):
        return layer.out_features
    first = next(predictor.parameters(), torch.zeros(()))
    training = predictor.training
    try:
        with torch.no_grad():
            logits, deltas = predictor.eval()(first.new_zeros(2, width))
        classes = logits.shape[1]
        if logits.shape != (2, classes) or deltas.shape != (2, 4 * classes):
            raise ValueError(f"it gives {list(logits.shape)} and {list(deltas.shape)}")
    except (ValueError, TypeError, RuntimeError) as error:
        what = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(f"roi_heads.box_predictor must turn [K, {width}] into [K, C] and [K, 4 C]: {what}") from error
    finally:
        predictor.train(training)
    return classes
