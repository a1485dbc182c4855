"""Images -> boxes, classes and masks, or their losses: Mask R-CNN (He et al. 2017), its forward pass on one screen."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from backbone import Block, FrozenBatchNorm2d, InputError, build_backbone
from network_files.config import MaskRCNNConfig
from network_files.heads.detections import Detections, NeedsMask
from network_files.operators.boxes import scale_to_sizes
from network_files.operators.instance_masks import paste_masks
from network_files.operators.padded import Padded, at_least_float32
from network_files.operators.roi_align import FeatureTable
from network_files.recorder import SILENT, Observer, Stage
from network_files.roi_heads import RoIHeads
from network_files.rpn import RegionProposalNetwork
from network_files.shared import Shared
from network_files.transform import ImageBatch, Transform, prepare_objects


class MaskRCNN(nn.Module):
    """Backbone, RPN, RoI heads.

    In training, model(images, targets) returns the five losses. In evaluation, model(images) returns for
    each image boxes [D, 4] (pixels of the original image), labels int64 [D], scores [D] in 0..1 by
    falling score, and masks [D, 1, H, W] in 0..1, or with paste_masks=False the cropped form, mask_probs
    [D, 28, 28]; model(images, targets) there returns (losses, detections) from one pass.

    images: uint8 0..255, uint16 0..65535 or float 0..1, [config.channels, H, W] each. targets, one dict per
    image: boxes [G, 4] (x1 y1 x2 y2 in its pixels), labels int64 [G] (1..C - 1), masks (uint8 [G, H, W] or
    CroppedMasks), and maybe iscrowd [G], and sample_seed (int) to fix the image's draws. They may stay on the CPU when
    the images are on a GPU, which then need not wait. recorder: is called with what each stage sees. Raises ValueError
    for shapes that do not fit.
    """

    def __init__(self, config: MaskRCNNConfig) -> None:
        super().__init__()
        self.shared = Shared(config)
        self.backbone = build_backbone(
            config.backbone,
            config.norm,
            config.trainable_layers,
            config.fpn_channels,
            fpn_norm=config.variant == "v2",
            frozen_eps=config.frozen_bn_eps,
            width=config.backbone_width,
        )
        if config.channels != 3:
            self.backbone.set_channels(config.channels)
        self.rpn = RegionProposalNetwork(self.shared, config.fpn_channels, depth=1 if config.variant == "v1" else 2)
        self.roi_heads = RoIHeads(self.shared, config.fpn_channels)
        self.to(memory_format=torch.channels_last)  # as the activations: else each convolution reorders its weight
        self.transform = Transform(self.shared)

    @property
    def config(self) -> MaskRCNNConfig:
        """The config as it is now: setting a number of a part, such as roi_heads.score_thresh, replaces it."""
        return self.shared.config

    def __setattr__(self, name: str, value: Any) -> None:
        parts = {"rpn": RegionProposalNetwork, "roi_heads": RoIHeads, "transform": Transform}
        places = [f"{part}.{name}" for part, kind in parts.items() if name in kind.settings()]
        if places or name in MaskRCNNConfig.__dataclass_fields__ and name not in self._modules and name != "backbone":
            where = f"set {' or '.join(places)}" if places else f"give {name} to create_model"
            raise AttributeError(f"MaskRCNN.{name} would have no effect: {where}")
        super().__setattr__(name, value)

    def forward(
        self,
        images: list[Tensor],
        targets: list[dict] | None = None,
        paste_masks: bool = True,
        recorder: Observer | None = None,
        needs: Sequence[NeedsMask] | None = None,
    ) -> dict[str, Tensor] | list[dict[str, Tensor]] | tuple[dict[str, Tensor], list[dict[str, Tensor]]]:
        """Returns losses in training, detections in evaluation, both with targets in evaluation.

        needs: of each image, which detections need a mask: those of others are zeros, and take no time.
        """
        if self.training and targets is None:
            raise ValueError("training needs targets: call model(images, targets), or model.eval() first")
        if not len(images):
            raise ValueError("there are no images")
        self._check_device(images)
        if targets is not None and len(targets) != len(images):
            raise ValueError(f"as many targets as images are needed: {len(targets)}, not {len(images)}")
        recorder = recorder or SILENT
        batch = self.transform.batch(images, targets, self.training, next(self.parameters()).dtype)
        self._check_norm(batch)
        recorder(Stage.BATCH, images=batch.images, sizes=batch.sizes, original_sizes=batch.original_sizes)
        objects = targets and prepare_objects(targets, batch, self.config.num_classes)
        # P2..P6; RoIAlign and boxes want at least float32, also where autocast makes the maps bf16
        dtype = at_least_float32(batch.images.dtype)
        table = FeatureTable(self.backbone(batch.images), self.backbone.strides, dtype, self.config.geometry)
        proposals, losses = self.rpn(batch, table, objects, recorder)
        if objects is not None:
            losses = self.roi_heads.losses(table, proposals, objects, recorder) | losses
        if self.training:
            return losses
        found = self.roi_heads.detect(batch, table, proposals, recorder, needs)
        detections = self.to_original(found, batch, paste_masks)
        return detections if objects is None else (losses, detections)

    def to_original(self, found: Detections, batch: ImageBatch, paste: bool) -> list[dict[str, Tensor]]:
        """Moves detections from the resized images' frames to the originals'; paste: their masks too."""
        boxes = Padded.from_flat(found.boxes, found.counts)
        boxes.values = scale_to_sizes(boxes.values, batch.sizes, batch.original_sizes)
        detections = found._replace(boxes=boxes.flat()).each()
        if not paste:
            return detections
        for detection, size in zip(detections, batch.original_sizes, strict=True):
            probs = detection.pop("mask_probs")
            detection["masks"] = paste_masks(probs, detection["boxes"], size, self.config.geometry)
        return detections

    def _check_device(self, images: list[Tensor]) -> None:
        if self.training and self.config.norm == "sync" and images[0].device.type == "cpu":
            raise InputError("norm sync works on GPUs only: choose batch, frozen or group on a CPU")

    def _check_norm(self, batch: ImageBatch) -> None:
        alone = len(batch.sizes) == 1 and max(batch.padded) <= 32  # 1 x 1 in the body's last map, of stride 32
        if self.training and self.config.norm == "batch" and alone:
            raise InputError(
                "norm batch needs several values of each channel, and a batch of one image of at most 32x32 pixels has "
                "one: choose norm group or frozen, or a larger min_size"
            )

    def recompute_activations(self) -> None:
        """Makes the backward pass compute activations of the body again, from now on: slower, smaller.

        Raises InputError for batch norm, whose statistics would count every batch twice.
        """
        if self.config.norm in ("batch", "sync"):
            raise InputError(
                f"recompute does not go with norm {self.config.norm}: take frozen or group, or leave it out"
            )
        for module in self.backbone.modules():
            if isinstance(module, Block):
                module.recompute = True

    def compile_parts(self) -> None:
        """Applies torch.compile to the parts made of convolutions; each image shape that is new costs some time.

        Raises InputError where torch.compile does not work.
        """
        try:
            torch.compile(torch.relu)(torch.zeros(2, device=next(self.parameters()).device))
        except Exception as error:  # torch has no common class for a missing compiler
            reason = str(error).strip().partition("\n")[0]
            raise InputError(f"compile: torch.compile does not work here ({reason}); leave it out") from error
        heads = self.roi_heads
        for part in (self.backbone, self.rpn.head, heads.box_head, heads.mask_head, heads.mask_predictor):
            part.compile()

    def set_frozen_bn_eps(self, eps: float) -> None:
        """Changes the epsilon of every frozen batch norm, and notes it in the config."""
        self.shared.set(frozen_bn_eps=eps)
        for module in self.modules():
            if isinstance(module, FrozenBatchNorm2d):
                module.eps = eps


def create_model(num_classes: int, backbone: str = "resnet50", variant: str = "v1", **config: Any) -> MaskRCNN:
    """Builds a Mask R-CNN with random weights.

    num_classes counts background; config: fields of MaskRCNNConfig, or rpn_anchor_generator: torchvision's, for its
    sizes and aspect_ratios. variant "v1" is torchvision's
    maskrcnn_resnet50_fpn, "v2" its maskrcnn_resnet50_fpn_v2. Raises InputError for what does not fit.
    """
    values = {"num_classes": num_classes, "backbone": backbone, "variant": variant, **config}
    generator = values.pop("rpn_anchor_generator", None)
    if generator is not None:
        values |= {"anchor_sizes": generator.sizes, "aspect_ratios": generator.aspect_ratios}
    return MaskRCNN(MaskRCNNConfig.from_dict(values))
