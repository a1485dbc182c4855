"""Images of any size -> one normalised, resized, padded batch; and boxes back again.

Shapes: N images; H x W the original, h x w the resized image, ph x pw the padded batch.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from network_files.operators.boxes import scale_boxes
from network_files.operators.cropped_masks import CroppedMasks

Size = tuple[int, int]  # height, width


def resized_size(height: int, width: int, min_size: int, max_size: int, fixed_size: Size | None = None) -> Size:
    """Returns the size (h, w) after resizing: shorter side to min_size, unless the longer would exceed max_size.

    With fixed_size: the largest of the image's ratio that fits it.
    """
    if fixed_size:
        high, wide = fixed_size
        if height * wide > high * width:
            return high, max(width * high // height, 1)
        return max(height * wide // width, 1), wide
    scale = min(min_size / min(height, width), max_size / max(height, width))
    return max(math.floor(height * scale), 1), max(math.floor(width * scale), 1)


def padded_size(
    height: int, width: int, min_size: int, max_size: int, divisor: int = 32, fixed_size: Size | None = None
) -> Size:
    """Returns the size (ph, pw) that an image alone is padded to.

    That is fixed_size, or the resized one rounded up to the divisor.
    """
    if fixed_size:
        return fixed_size
    h, w = resized_size(height, width, min_size, max_size)
    return math.ceil(h / divisor) * divisor, math.ceil(w / divisor) * divisor


@dataclass
class ImageBatch:
    """images [N, 3, ph, pw]; sizes: (h, w) of each; original_sizes: (H, W) of each."""

    images: Tensor
    sizes: list[Size]
    original_sizes: list[Size]

    @property
    def padded(self) -> Size:
        """(ph, pw) of the batch."""
        return tuple(self.images.shape[-2:])


@dataclass
class Objects:
    """What one image holds, in the resized image's frame.

    boxes [G, 4], labels int64 [G], masks: G crops at the original resolution, crowds [K, 4]; size (h, w);
    generators: for the draws of the RPN and of the RoI heads (None: torch's global one).
    """

    boxes: Tensor
    labels: Tensor
    masks: CroppedMasks
    crowds: Tensor
    size: Size
    generators: tuple[torch.Generator | None, torch.Generator | None]


@dataclass
class Transform:
    """Normalises, resizes, pads, as torchvision's GeneralizedRCNNTransform."""

    min_sizes: tuple[int, ...]  # in training one is drawn for each image, in evaluation the last one counts
    max_size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    divisor: int  # of the batch's sides
    fixed_size: Size | None = None  # (h, w) of every batch instead

    def batch(self, images: list[Tensor], targets: list[dict] | None, training: bool, dtype: torch.dtype) -> ImageBatch:
        """Makes a batch of `dtype`, in channels-last memory, of images [3, H, W], uint8 0..255 or float 0..1.

        targets: for their sample_seed alone. Raises ValueError for another shape.
        """
        resized = []
        for i, image in enumerate(images):
            if image.dim() != 3 or image.shape[0] != 3 or 0 in image.shape:
                raise ValueError(f"image {i} has shape {list(image.shape)}: it must be [3, H, W]")
            min_size = self.min_sizes[-1]
            if training and len(self.min_sizes) > 1:
                seed = targets[i].get("sample_seed") if targets else None
                generator = None if seed is None else seeded(seed, 2)
                min_size = self.min_sizes[int(torch.randint(len(self.min_sizes), (), generator=generator))]
            size = resized_size(*image.shape[-2:], min_size, self.max_size, self.fixed_size)
            resized.append(F.interpolate(self._normalise(image, dtype)[None], size=size, mode="bilinear")[0])
        sizes = [tuple(image.shape[-2:]) for image in resized]
        padded = self.fixed_size or [
            math.ceil(max(side) / self.divisor) * self.divisor for side in zip(*sizes, strict=True)
        ]
        padded_images = resized[0].new_zeros(len(images), *padded, 3).permute(0, 3, 1, 2)  # [N, 3, ph, pw]
        for slot, image in zip(padded_images, resized, strict=True):
            slot[:, : image.shape[1], : image.shape[2]] = image
        return ImageBatch(padded_images, sizes, [tuple(image.shape[-2:]) for image in images])

    def _normalise(self, image: Tensor, dtype: torch.dtype) -> Tensor:
        image = image.to(dtype) if image.is_floating_point() else image.to(dtype) / 255
        mean, std = image.new_tensor(self.mean), image.new_tensor(self.std)
        return (image - mean[:, None, None]) / std[:, None, None]


def seeded(seed: int | Tensor, stream: int) -> torch.Generator:
    """Returns a generator for one of several independent uses of a sample's seed."""
    # torch's CPU generator reads 32 bits of its seed: the upper ones of these products (Knuth's multiplier)
    # depend on every bit of seed and stream
    factor = 6364136223846793005
    return torch.Generator().manual_seed((int(seed) * factor + stream + 1) * factor % 2**64 >> 32)


def prepare_objects(target: dict, batch: ImageBatch, i: int) -> Objects:
    """Returns the Objects of image i from its target: boxes, labels, masks, and maybe iscrowd, sample_seed.

    Raises ValueError for a box without area.
    """
    boxes = target["boxes"].to(batch.images.dtype)
    check_boxes(boxes, target)
    boxes = scale_boxes(boxes, batch.original_sizes[i], batch.sizes[i])
    masks = target["masks"]
    if isinstance(masks, Tensor):
        masks = CroppedMasks.from_masks(masks)
    labels, crowds = target["labels"], boxes[:0]
    if "iscrowd" in target and bool(target["iscrowd"].any()):
        crowd = target["iscrowd"].bool()
        boxes, labels, masks, crowds = boxes[~crowd], labels[~crowd], masks[~crowd], boxes[crowd]
    seed = target.get("sample_seed")
    generators = (None, None) if seed is None else (seeded(seed, 0), seeded(seed, 1))
    return Objects(boxes, labels, masks, crowds, batch.sizes[i], generators)


def check_boxes(boxes: Tensor, target: dict) -> None:
    """Raises ValueError for a box without area: its size has no logarithm, and the loss would be inf or nan."""
    if not len(boxes):
        return
    bad = ~((boxes[:, 2:] > boxes[:, :2]).all(1) & boxes.isfinite().all(1))
    if bool(bad.any()):
        box = boxes[bad][0].tolist()
        raise ValueError(f"image {target.get('image_id', '?')}: box {box} (x1 y1 x2 y2) has no area or is not finite")
