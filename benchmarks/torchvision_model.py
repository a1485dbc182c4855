"""Builds torchvision's Mask R-CNN with random weights that are alive: sane activations, spread scores."""

from collections.abc import Sequence
from typing import Any

import torch
import torchvision
from torch import nn
from torchvision.models.detection import MaskRCNN as TorchvisionMaskRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import _resnet_fpn_extractor
from torchvision.models.detection.faster_rcnn import FastRCNNConvFCHead
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads
from torchvision.models.detection.rpn import RPNHead
from torchvision.ops.misc import FrozenBatchNorm2d

# what the outputs of the predictors are scaled to (standard deviation), so that scores and boxes are spread;
# stage by stage, as the later ones see what the earlier ones choose
OUTPUT_STDS = [
    {"rpn.head.cls_logits": 2.0, "rpn.head.bbox_pred": 0.3},
    {"roi_heads.box_predictor.cls_score": 3.0, "roi_heads.box_predictor.bbox_pred": 1.0},
    {"roi_heads.mask_predictor.mask_fcn_logits": 2.0},
]


def build(
    num_classes: int = 91,
    backbone: str = "resnet18",
    variant: str = "v1",
    norm: type[nn.Module] | None = None,
    trainable: int = 5,
    anchor_sizes: Sequence[int] | None = None,
    **options: Any,
) -> TorchvisionMaskRCNN:
    """Builds torchvision's model of `variant`: its resnet50 builders' structure on any ResNet.

    norm: None for the variant's own (FrozenBatchNorm2d in v1, BatchNorm2d in v2).
    """
    norm = norm or (FrozenBatchNorm2d if variant == "v1" else nn.BatchNorm2d)
    body = getattr(torchvision.models, backbone)(norm_layer=norm)
    sizes = tuple((s,) for s in anchor_sizes or (32, 64, 128, 256, 512))
    options["rpn_anchor_generator"] = AnchorGenerator(sizes, ((0.5, 1.0, 2.0),) * len(sizes))
    if variant == "v1":
        pyramid = _resnet_fpn_extractor(body, trainable)
    else:
        pyramid = _resnet_fpn_extractor(body, trainable, norm_layer=nn.BatchNorm2d)
        options["rpn_head"] = RPNHead(256, 3, conv_depth=2)
        options["box_head"] = FastRCNNConvFCHead((256, 7, 7), [256] * 4, [1024], norm_layer=nn.BatchNorm2d)
        options["mask_head"] = MaskRCNNHeads(256, [256] * 4, 1, norm_layer=nn.BatchNorm2d)
    return TorchvisionMaskRCNN(pyramid, num_classes, **options)


def live_state(
    samples: Sequence[tuple[torch.Tensor, dict]], seed: int = 0, **structure: Any
) -> dict[str, torch.Tensor]:
    """Returns a state dict for `build(**structure)` measured on samples: (float image, target) pairs.

    Norm layers get random weights and biases and the statistics of these images; predictors are scaled
    to OUTPUT_STDS. Without this, random weights under an identity norm give no usable detections.
    """
    torch.manual_seed(seed)
    few = {"rpn_post_nms_top_n_test": 30, "box_score_thresh": 0.0, "box_detections_per_img": 8}
    model = build(**structure | few, norm=nn.BatchNorm2d)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.2)
            module.momentum = None  # statistics are plain averages over what is seen
    images, targets = map(list, zip(*samples, strict=True))
    with torch.no_grad():
        model.train()(images, targets)
        model.eval()
        for stage in OUTPUT_STDS:
            _scale_outputs(model, stage, images)
    frozen = structure.get("variant", "v1") == "v1"
    state = model.state_dict()
    return {k: v for k, v in state.items() if not (frozen and k.endswith("num_batches_tracked"))}


def _scale_outputs(model: TorchvisionMaskRCNN, stds: dict[str, float], images: list[torch.Tensor]) -> None:
    layers = {name: model.get_submodule(name) for name in stds}
    seen = {name: [] for name in stds}
    hooks = [
        layer.register_forward_hook(lambda module, inputs, output, kept=seen[name]: kept.append(output.flatten()))
        for name, layer in layers.items()
    ]
    model(images)
    for hook in hooks:
        hook.remove()
    for name, layer in layers.items():
        layer.weight.mul_(stds[name] / torch.cat(seen[name]).std().clamp(min=1e-6))
        nn.init.normal_(layer.bias, std=0.1)


def spread_choice(labels: torch.Tensor, count: int, positive_fraction: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns a balanced sample without chance: (positives, negatives), evenly spread over the candidates.

    labels: [A] with > 0 positive, 0 negative, -1 ignored.
    """
    positive, negative = torch.where(labels >= 1)[0], torch.where(labels == 0)[0]
    num_positive = min(len(positive), int(count * positive_fraction))
    num_negative = min(len(negative), count - num_positive)
    return _evenly(positive, num_positive), _evenly(negative, num_negative)


def _evenly(candidates: torch.Tensor, count: int) -> torch.Tensor:
    return candidates[spread_ranks(len(candidates), count)]


def spread_ranks(candidates: int, count: int, generator: torch.Generator | None = None) -> torch.Tensor:
    """Stands in for `matching.draw`: `count` of so many candidates, without chance."""
    return (torch.arange(count) * candidates) // max(count, 1)


class SpreadSampler:
    """Stands in for torchvision's BalancedPositiveNegativeSampler, with `spread_choice`."""

    def __init__(self, sampler: Any) -> None:
        self.count, self.positive_fraction = sampler.batch_size_per_image, sampler.positive_fraction
        self.sampled = []  # number of positives and negatives of each image, for the tests to look at

    def __call__(self, labels: list[torch.Tensor]) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """Returns masks of the positives and of the negatives of each image."""
        chosen = [spread_choice(x, self.count, self.positive_fraction) for x in labels]
        self.sampled += [(len(p), len(n)) for p, n in chosen]
        masks = [
            [torch.zeros_like(x, dtype=torch.uint8).index_fill(0, i, 1) for i in c]
            for x, c in zip(labels, chosen, strict=True)
        ]
        return [m[0] for m in masks], [m[1] for m in masks]


def without_chance(model: TorchvisionMaskRCNN) -> TorchvisionMaskRCNN:
    """Replaces the samplers of a torchvision model in place; returns the model."""
    model.rpn.fg_bg_sampler = SpreadSampler(model.rpn.fg_bg_sampler)
    model.roi_heads.fg_bg_sampler = SpreadSampler(model.roi_heads.fg_bg_sampler)
    return model


def labels_in_float64(model: TorchvisionMaskRCNN) -> TorchvisionMaskRCNN:
    """Keeps a torchvision model's objectness loss in float64: its float32 labels would take it to float32."""
    assign = model.rpn.assign_targets_to_anchors

    def assign_in_float64(
        anchors: list[torch.Tensor], targets: list[dict]
    ) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        labels, boxes = assign(anchors, targets)
        return [label.double() for label in labels], boxes

    model.rpn.assign_targets_to_anchors = assign_in_float64
    return model
