"""Mask R-CNN (He et al. 2017): its configuration, and its forward pass on one screen."""

from dataclasses import MISSING, asdict, dataclass, field, fields, replace

import torch
from torch import Tensor, nn

from backbone import BACKBONES, NORMS, FrozenBatchNorm2d, InputError, build_backbone
from network_files.boxes import scale_boxes
from network_files.instance_masks import paste_masks
from network_files.roi_heads import RoIHeads
from network_files.rpn import RegionProposalNetwork
from network_files.transform import Transform, prepare_objects


def setting(default, text: str):
    """A config field with its explanation, which the scripts' --help shows."""
    return field(default=default, metadata={"help": text})


@dataclass(frozen=True)
class MaskRCNNConfig:
    """Every number of the network. Names are torchvision's keywords where it has one, and so are the defaults,
    which go back to the papers named.
    """

    num_classes: int = setting(91, "labels, background included (COCO: 1..90 with gaps, and background)")
    backbone: str = setting("resnet50", f"body: {', '.join(BACKBONES)}")
    variant: str = setting("v1", "v1 (Mask R-CNN paper) or v2 (torchvision's improved baseline)")
    norm: str | None = setting(None, f"normalisation: {', '.join(NORMS)} (default: v1 frozen, v2 batch)")
    trainable_layers: int = setting(3, "backbone stages that train, 0..5, counted from the top (torchvision)")
    frozen_bn_eps: float = setting(1e-5, "epsilon of frozen batch norm (0 for the published v1 COCO weights)")
    fpn_channels: int = setting(256, "channels of every pyramid level (FPN paper)")

    min_size: tuple[int, ...] = setting((800,), "pixels of the shorter side; several: one is drawn per training picture, the last one counts in evaluation")
    max_size: int = setting(1333, "most pixels of the longer side")
    image_mean: tuple[float, ...] = setting((0.485, 0.456, 0.406), "ImageNet's mean, RGB in 0..1")
    image_std: tuple[float, ...] = setting((0.229, 0.224, 0.225), "ImageNet's standard deviation, RGB in 0..1")
    size_divisible: int = setting(32, "padded sides are multiples of this (the coarsest body stride)")

    anchor_sizes: tuple[int, ...] = setting((32, 64, 128, 256, 512), "anchor side in pixels, one per level (FPN paper)")
    aspect_ratios: tuple[float, ...] = setting((0.5, 1.0, 2.0), "anchor height / width, on every level (FPN paper)")
    rpn_pre_nms_top_n_train: int = setting(2000, "best anchors per level before NMS, in training")
    rpn_pre_nms_top_n_test: int = setting(1000, "the same in evaluation")
    rpn_post_nms_top_n_train: int = setting(2000, "proposals per picture after NMS, in training")
    rpn_post_nms_top_n_test: int = setting(1000, "the same in evaluation")
    rpn_nms_thresh: float = setting(0.7, "IoU above which the worse proposal is dropped (Faster R-CNN)")
    rpn_fg_iou_thresh: float = setting(0.7, "IoU from which an anchor is positive (Faster R-CNN)")
    rpn_bg_iou_thresh: float = setting(0.3, "IoU below which an anchor is negative (Faster R-CNN)")
    rpn_batch_size_per_image: int = setting(256, "anchors sampled per picture (Faster R-CNN)")
    rpn_positive_fraction: float = setting(0.5, "largest share of positives among them (Faster R-CNN)")
    rpn_score_thresh: float = setting(0.0, "least objectness (0..1) of a proposal")

    box_score_thresh: float = setting(0.05, "least score (0..1) of a detection (Fast R-CNN)")
    box_nms_thresh: float = setting(0.5, "IoU above which the worse detection of a class is dropped (Mask R-CNN)")
    box_detections_per_img: int = setting(100, "most detections per picture (Mask R-CNN)")
    box_fg_iou_thresh: float = setting(0.5, "IoU from which a proposal is positive (Fast R-CNN)")
    box_bg_iou_thresh: float = setting(0.5, "IoU below which a proposal is background (Mask R-CNN)")
    box_batch_size_per_image: int = setting(512, "proposals sampled per picture (Mask R-CNN with FPN)")
    box_positive_fraction: float = setting(0.25, "largest share of positives among them (Fast R-CNN)")
    bbox_reg_weights: tuple[float, ...] = setting((10.0, 10.0, 5.0, 5.0), "scale of box deltas dx dy dw dh (Fast R-CNN)")
    box_roi_size: int = setting(7, "cells a side that the box head sees of a RoI (FPN paper)")
    box_head_channels: int = setting(1024, "width of the box head (FPN paper)")
    box_head_convs: int = setting(4, "convolutions in v2's box head (torchvision)")
    mask_roi_size: int = setting(14, "cells a side that the mask head sees; masks have twice as many (Mask R-CNN)")
    mask_head_channels: int = setting(256, "channels of the mask head (Mask R-CNN)")
    mask_head_layers: int = setting(4, "convolutions in the mask head (Mask R-CNN)")
    roi_sampling_ratio: int = setting(2, "RoIAlign points along each side of a cell (torchvision)")
    crowd_ioa_thresh: float | None = setting(0.7, "share of a box inside a crowd region from which it is no negative example (None: off)")
    dropout: float = setting(0.0, "share dropped after each box and mask head layer, in training")

    def __post_init__(self):
        for f in fields(self):  # lists from JSON or a caller become tuples, one number a tuple of one
            value = getattr(self, f.name)
            if isinstance(f.default, tuple):
                value = tuple(value) if isinstance(value, list | tuple) else (value,)
                object.__setattr__(self, f.name, value)
        if self.norm is None:
            object.__setattr__(self, "norm", "frozen" if self.variant == "v1" else "batch")
        self._check()

    def _check(self):
        wrong = [
            (self.variant not in ("v1", "v2"), f"variant {self.variant!r} is not known: v1 or v2"),
            (self.num_classes < 2, f"num_classes is {self.num_classes}: it counts background, so at least 2"),
            (len(self.anchor_sizes) != 5, f"anchor_sizes has {len(self.anchor_sizes)} numbers: give five, one per level"),
            (not self.aspect_ratios or min(self.aspect_ratios) <= 0, "aspect_ratios must be positive numbers"),
            (min(self.anchor_sizes, default=0) <= 0, "anchor_sizes must be positive numbers"),
            (min(self.min_size, default=0) < 1, f"min_size is {self.min_size}: it must be 1 pixel or more"),
            (max(self.min_size, default=0) > self.max_size, f"min_size {max(self.min_size, default=0)} is larger than max_size {self.max_size}"),
            (self.size_divisible < 32 or self.size_divisible % 32 != 0, "size_divisible must be a multiple of 32"),
            (not 0 <= self.dropout < 1, f"dropout is {self.dropout}: it must be in 0..1"),
        ]
        for is_wrong, message in wrong:
            if is_wrong:
                raise InputError(message)

    def to_dict(self) -> dict:
        """Plain values, for a checkpoint or JSON."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}

    @classmethod
    def from_dict(cls, values: dict) -> "MaskRCNNConfig":
        """The inverse of to_dict. Raises InputError for a field that does not exist."""
        unknown = sorted(set(values) - {f.name for f in fields(cls) if f.default is not MISSING})
        if unknown:
            raise InputError(f"config field {unknown[0]!r} does not exist")
        return cls(**values)


class MaskRCNN(nn.Module):
    """Backbone, RPN, RoI heads.

    In training, model(images, targets) returns the five losses. In evaluation, model(images) returns for
    each picture boxes [D, 4] (pixels of the original picture), labels int64 [D], scores [D] in 0..1 by
    falling score, and masks [D, 1, H, W] in 0..1, or with paste_masks=False the cropped form, mask_probs
    [D, 28, 28]; model(images, targets) there returns (losses, detections) from one pass.

    images: uint8 0..255 or float 0..1, [3, H, W] each; targets: see the design's contract, plus
    `sample_seed` (int) to fix a picture's draws. Raises ValueError for shapes that do not fit.
    """

    def __init__(self, config: MaskRCNNConfig):
        super().__init__()
        self.config = config
        self.backbone = build_backbone(
            config.backbone, config.norm, config.trainable_layers, config.fpn_channels,
            fpn_norm=config.variant == "v2", frozen_eps=config.frozen_bn_eps)
        self.rpn = RegionProposalNetwork(config, config.fpn_channels, depth=1 if config.variant == "v1" else 2)
        self.roi_heads = RoIHeads(config, config.fpn_channels)
        self.transform = Transform(config.min_size, config.max_size, config.image_mean, config.image_std,
                                   config.size_divisible)

    def forward(self, images: list[Tensor], targets: list[dict] | None = None, paste_masks: bool = True):
        if self.training and targets is None:
            raise ValueError("training needs targets: call model(images, targets), or model.eval() first")
        self._check_device(images)
        batch = self.transform.batch(images, targets, self.training, self.rpn.head.cls_logits.weight.dtype)
        objects = targets and [prepare_objects(target, batch, i) for i, target in enumerate(targets)]
        maps = self.backbone(batch.pictures)  # P2..P6
        proposals, losses = self.rpn(batch, maps, objects)
        if objects is not None:
            losses = self.roi_heads.losses(maps, proposals, objects) | losses
        if self.training:
            return losses
        detections = self.roi_heads.detect(batch, maps, proposals)
        detections = [self._to_original(d, batch, i, paste_masks) for i, d in enumerate(detections)]
        return detections if objects is None else (losses, detections)

    @staticmethod
    def _to_original(detection: dict[str, Tensor], batch, i: int, paste: bool) -> dict[str, Tensor]:
        """From the resized picture's frame to the original's."""
        size = batch.original_sizes[i]
        boxes = scale_boxes(detection["boxes"], batch.sizes[i], size)
        if not paste:
            return detection | {"boxes": boxes}
        probs = detection.pop("mask_probs")
        return detection | {"boxes": boxes, "masks": paste_masks(probs, boxes, size)}

    def _check_device(self, images: list[Tensor]) -> None:
        if self.training and self.config.norm == "sync" and images[0].device.type == "cpu":
            raise InputError("norm sync works on GPUs only: choose batch, frozen or group on a CPU")

    def set_frozen_bn_eps(self, eps: float) -> None:
        """Change the epsilon of every frozen batch norm, and note it in the config."""
        self.config = replace(self.config, frozen_bn_eps=eps)
        for module in self.modules():
            if isinstance(module, FrozenBatchNorm2d):
                module.eps = eps


def create_model(num_classes: int, backbone: str = "resnet50", variant: str = "v1", **config) -> MaskRCNN:
    """Build a Mask R-CNN with random weights.

    num_classes counts background; config: fields of MaskRCNNConfig. variant "v1" is torchvision's
    maskrcnn_resnet50_fpn, "v2" its maskrcnn_resnet50_fpn_v2. Raises InputError for what does not fit.
    """
    values = {"num_classes": num_classes, "backbone": backbone, "variant": variant, **config}
    return MaskRCNN(MaskRCNNConfig.from_dict(values))
