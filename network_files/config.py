"""Names and values -> a checked MaskRCNNConfig: every number of the network, in one place."""

import math
from dataclasses import asdict, dataclass, fields

from backbone import BACKBONES, NORMS, InputError, usual_width
from backbone.settings import check, lists_to_tuples, of_numbers, setting
from network_files.operators.boxes import GEOMETRIES, TORCHVISION

FIRST_PAGE, ALL_PAGES, EACH_PAGE = "first", "channels", "each"  # values of `pages`
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # RGB in 0..1


@dataclass(frozen=True)
class MaskRCNNConfig:
    """Every number of the network.

    Names and defaults are those of torchvision's keywords where it has one; defaults go back to the papers named.
    """

    num_classes: int = setting(91, "labels, background included (COCO: 1..90 with gaps, and background)")
    backbone: str = setting("resnet50", f"body: {', '.join(BACKBONES)}")
    variant: str = setting("v1", "v1 (Mask R-CNN paper) or v2 (torchvision's improved baseline)")
    backbone_width: int | None = setting(
        None,
        "channels of the body's stem, which all others scale with (default: the papers', 64, MobileNet 32)",
        least=1,
    )
    norm: str | None = setting(None, f"normalisation: {', '.join(NORMS)} (default: v1 frozen, v2 batch)")
    trainable_layers: int = setting(
        3, "backbone stages that train, 0..5, counted from the top (torchvision)", least=0, most=5, training=True
    )
    frozen_bn_eps: float = setting(
        1e-5, "epsilon of frozen batch norm (0 for the published v1 COCO weights)", least=0, most=1
    )
    fpn_channels: int = setting(256, "channels of every pyramid level (FPN paper)", least=1)

    min_size: tuple[int, ...] = setting(
        (800,),
        "pixels of the shorter side; of several, training draws one per image and evaluation takes the last",
        least=1,
    )
    max_size: int = setting(1333, "most pixels of the longer side", least=1)
    fixed_size: tuple[int, int] | None = setting(
        None, "height and width that every image is scaled to fit and padded to, in place of min_size and max_size"
    )
    channels: int = setting(3, "channels of an image; RGB where there are 3", least=1, most=1024)
    pages: str = setting(
        FIRST_PAGE,
        "which pages of an image file (TIFF, ...) are read: the first; all, as channels; each, as an image of its own "
        "(stack.tif#3; training does so where masks have as many pages, or a json names them)",
        choices=(FIRST_PAGE, ALL_PAGES, EACH_PAGE),
    )
    value_range: tuple[str | float, ...] | None = setting(
        None,
        "LOW HIGH: the values in files of more than 8 bits that become 0 and 1; 99%: the middle 99% of each image's "
        "own; auto: measured in training, which does so by itself where it meets such files",
        metavar=("LOW|P%|auto", "HIGH"),
    )
    image_mean: tuple[float, ...] = setting(
        IMAGENET_MEAN,
        "mean of each channel in 0..1; ImageNet's, but measured in training for other channels or more than 8 bits",
        least=0,
        most=1,
    )
    image_std: tuple[float, ...] = setting(
        IMAGENET_STD, "standard deviation of each channel, the same way", above=0, most=1
    )
    size_divisible: int = setting(32, "padded sides are multiples of this (the coarsest body stride)")

    anchor_sizes: tuple[int, ...] = setting(
        (32, 64, 128, 256, 512), "anchor side in pixels, one per level (FPN paper)", least=1
    )
    aspect_ratios: tuple[float, ...] = setting(
        (0.5, 1.0, 2.0), "anchor height / width, on every level (FPN paper)", above=0
    )
    rpn_pre_nms_top_n_train: int = setting(
        2000, "best anchors per level before NMS, in training", least=1, training=True
    )
    rpn_pre_nms_top_n_test: int = setting(1000, "the same in evaluation", least=1)
    rpn_post_nms_top_n_train: int = setting(2000, "proposals per image after NMS, in training", least=1, training=True)
    rpn_post_nms_top_n_test: int = setting(1000, "the same in evaluation", least=1)
    rpn_nms_thresh: float = setting(
        0.7, "IoU above which the worse proposal is dropped (Faster R-CNN)", least=0, most=1
    )
    rpn_fg_iou_thresh: float = setting(
        0.7, "IoU from which an anchor is positive (Faster R-CNN)", least=0, most=1, training=True
    )
    rpn_bg_iou_thresh: float = setting(
        0.3, "IoU below which an anchor is negative (Faster R-CNN)", least=0, most=1, training=True
    )
    rpn_batch_size_per_image: int = setting(256, "anchors sampled per image (Faster R-CNN)", least=1, training=True)
    rpn_positive_fraction: float = setting(
        0.5, "largest share of positives among them (Faster R-CNN)", least=0, most=1, training=True
    )
    rpn_score_thresh: float = setting(0.0, "least objectness (0..1) of a proposal", least=0, most=1)

    box_score_thresh: float = setting(0.05, "least score (0..1) of a detection (Fast R-CNN)", least=0, most=1)
    box_nms_thresh: float = setting(
        0.5, "IoU above which the worse detection of a class is dropped (Mask R-CNN)", least=0, most=1
    )
    box_detections_per_img: int = setting(100, "most detections per image (Mask R-CNN)", least=1)
    box_fg_iou_thresh: float = setting(
        0.5, "IoU from which a proposal is positive (Fast R-CNN)", least=0, most=1, training=True
    )
    box_bg_iou_thresh: float = setting(
        0.5, "IoU below which a proposal is background (Mask R-CNN)", least=0, most=1, training=True
    )
    box_batch_size_per_image: int = setting(
        512, "proposals sampled per image (Mask R-CNN with FPN)", least=1, training=True
    )
    box_positive_fraction: float = setting(
        0.25, "largest share of positives among them (Fast R-CNN)", least=0, most=1, training=True
    )
    bbox_reg_weights: tuple[float, ...] = setting(
        (10.0, 10.0, 5.0, 5.0), "scale of box deltas dx dy dw dh (Fast R-CNN)", length=4, above=0
    )
    box_roi_size: int = setting(7, "cells a side that the box head sees of a RoI (FPN paper)", least=1)
    box_head_channels: int = setting(1024, "width of the box head (FPN paper)", least=1)
    box_head_convs: int = setting(4, "convolutions in v2's box head (torchvision)", least=0)
    mask_roi_size: int = setting(
        14, "cells a side that the mask head sees; masks have twice as many (Mask R-CNN)", least=1
    )
    mask_head_channels: int = setting(256, "channels of the mask head (Mask R-CNN)", least=1)
    mask_head_layers: int = setting(4, "convolutions in the mask head (Mask R-CNN)", least=1)
    roi_sampling_ratio: int = setting(2, "RoIAlign points along each side of a cell (torchvision)", least=1)
    geometry: str = setting(
        TORCHVISION,
        "where RoIs and masks have their values: half_pixel (at the centres of cells and pixels: masks fit), "
        "torchvision (half a pixel off, as its published weights were trained) or half_pixel_masks (masks half_pixel, "
        "RoIs torchvision)",
        choices=GEOMETRIES,
        usual="what the weights were trained with; half_pixel for a new mask head, half_pixel_masks for new predictors "
        "on published weights",
    )
    crowd_ioa_thresh: float | None = setting(
        0.7,
        "share of a box inside a crowd region from which it is no negative example (None: off)",
        least=0,
        most=1,
        training=True,
    )
    dropout: float = setting(
        0.0,
        "share dropped in training after fc6 and fc7 (v2: its one linear layer) and each mask convolution",
        least=0,
        below=1,
        training=True,
    )

    def __post_init__(self) -> None:
        lists_to_tuples(self)
        if isinstance(self.channels, int) and self.channels != 3:  # ImageNet's grey, where they are not given
            for name, usual in (("image_mean", IMAGENET_MEAN), ("image_std", IMAGENET_STD)):
                if getattr(self, name) == usual:
                    object.__setattr__(self, name, (sum(usual) / len(usual),) * self.channels)
        object.__setattr__(self, "value_range", as_value_range(self.value_range))
        for name in ("anchor_sizes", "aspect_ratios"):
            object.__setattr__(self, name, _of_levels(name, getattr(self, name)))
        if self.norm is None:
            object.__setattr__(self, "norm", "frozen" if self.variant == "v1" else "batch")
        if self.backbone_width is None:
            object.__setattr__(self, "backbone_width", usual_width(self.backbone))
        self._check()

    def _check(self) -> None:
        """Raises InputError for values that no model can have: of the fields that need more than their own rules."""
        if self.variant not in ("v1", "v2"):
            raise InputError(f"variant {self.variant!r} is not known: v1 or v2")
        if self.geometry is None:
            raise InputError(f"geometry is None: {' or '.join(GEOMETRIES)}")
        if self.num_classes < 2:
            raise InputError(f"num_classes is {self.num_classes}: it counts background, so at least 2")
        if len(self.anchor_sizes) != 5:
            raise InputError(f"anchor_sizes has {of_numbers(self.anchor_sizes)}: give 5, one per level")
        for name in ("image_mean", "image_std"):
            if len(getattr(self, name)) != self.channels:
                raise InputError(f"{name} has {of_numbers(getattr(self, name))}: give {self.channels}")
        check(self)
        for part in ("rpn", "box"):
            low, high = (getattr(self, f"{part}_{which}_iou_thresh") for which in ("bg", "fg"))
            if low > high:
                raise InputError(f"{part}_bg_iou_thresh {low} is larger than {part}_fg_iou_thresh {high}")
        if max(self.min_size) > self.max_size:
            raise InputError(f"min_size {max(self.min_size)} is larger than max_size {self.max_size}")
        if self.fixed_size is not None and not self._is_fixed_size():
            raise InputError(
                f"fixed_size is {self.fixed_size}: give a height and a width, both multiples of size_divisible, "
                f"{self.size_divisible}"
            )
        if self.size_divisible < 32 or self.size_divisible % 32:
            raise InputError("size_divisible must be a multiple of 32")

    def _is_fixed_size(self) -> bool:
        sides = self.fixed_size
        return (
            isinstance(sides, tuple)
            and len(sides) == 2
            and all(isinstance(side, int) and side > 0 and side % max(self.size_divisible, 1) == 0 for side in sides)
        )

    def to_dict(self) -> dict:
        """Returns plain values, for a checkpoint or JSON."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}

    @classmethod
    def from_dict(cls, values: dict) -> "MaskRCNNConfig":
        """Inverts `to_dict`. Raises InputError for a field that does not exist."""
        unknown = sorted(set(values) - {f.name for f in fields(cls)})
        if unknown:
            raise InputError(f"config field {unknown[0]!r} does not exist")
        return cls(**values)


def as_value_range(given: object) -> tuple[float, ...] | None:
    """Returns a value range as (low, high), (percent,) or None, of numbers, of "99%", or of such words of a command.

    Raises InputError for another one, and for "auto", which only training can measure.
    """
    if given is None:
        return None
    words = given if isinstance(given, tuple | list) else (given,)
    text = " ".join(map(str, words))
    if text == "auto":
        raise InputError("value_range auto: is measured in training; give LOW HIGH, or a share such as 99%")
    try:
        numbers = tuple(float(str(word).removesuffix("%")) for word in words)
    except ValueError:
        numbers = ()
    share = len(numbers) == 1 and 0 < numbers[0] <= 100
    pair = len(numbers) == 2 and -math.inf < numbers[0] < numbers[1] < math.inf and "%" not in text
    if not share and not pair:
        raise InputError(f"value_range {text}: give two numbers, the lower one first, or a share such as 99%")
    return numbers


def _of_levels(name: str, values: tuple) -> tuple:
    """Returns anchor sizes or ratios that may be in torchvision's form, a tuple for each level, as the config has them.

    Raises InputError for several sizes on a level, or other ratios on some than on others: this network has neither.
    """
    if not any(isinstance(value, tuple | list) for value in values):
        return values
    levels = [tuple(value) if isinstance(value, tuple | list) else (value,) for value in values]
    if name == "aspect_ratios" and len(set(levels)) == 1:
        return levels[0]
    if name == "anchor_sizes" and all(len(level) == 1 for level in levels):
        return tuple(size for (size,) in levels)
    what = "one size for each level" if name == "anchor_sizes" else "the same ratios for every level"
    raise InputError(f"{name} {values}: give {what}")
