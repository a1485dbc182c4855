"""Images of any size -> one normalised, resized, padded batch; and boxes back again.

Shapes: N images; H x W the original, h x w the resized image, ph x pw the padded batch.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from network_files.config import MaskRCNNConfig
from network_files.operators.boxes import scale_to_sizes
from network_files.operators.cropped_masks import CroppedMasks
from network_files.operators.padded import Padded, constant, from_host, image_of_each
from network_files.shared import Part, Shared, number

Size = tuple[int, int]  # height, width
WHITE = {torch.uint8: 255, torch.uint16: 65535}  # the brightest value of integer images
OUTSIDE = 1.0  # how far floats may lie outside of 0..1: augmentations overshoot, but not so far


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
    """images [N, C, ph, pw]; sizes: (h, w) of each; original_sizes: (H, W) of each."""

    images: Tensor
    sizes: list[Size]
    original_sizes: list[Size]

    @property
    def padded(self) -> Size:
        """(ph, pw) of the batch."""
        return tuple(self.images.shape[-2:])


@dataclass
class Objects:
    """What the images of a batch hold, in the resized images' frame.

    boxes [N, G, 4], labels int64 [N, G], masks: of each image G_i crops at the original resolution, crowds [N, K, 4];
    sizes (h, w); generators, of each image: for the draws of the RPN and of the RoI heads (None: torch's global one).
    """

    boxes: Padded
    labels: Padded
    masks: list[CroppedMasks]
    crowds: Padded
    sizes: list[Size]
    generators: list[tuple[torch.Generator | None, torch.Generator | None]]

    def of(self, image: Tensor, index: Tensor, dtype: torch.dtype) -> Tensor:
        """Returns the boxes [K, 4] of some objects: image and number within it, int64 [K]."""
        boxes = self.boxes.values.to(dtype)
        return boxes[image, index] if boxes.shape[1] else boxes.new_zeros(len(image), 4)


class Transform(Part):
    """Normalises, resizes, pads, as torchvision's GeneralizedRCNNTransform. All numbers come from the config."""

    min_size, max_size, fixed_size = number("min_size"), number("max_size"), number("fixed_size")
    image_mean, image_std, size_divisible = number("image_mean"), number("image_std"), number("size_divisible")

    def __init__(self, config: MaskRCNNConfig | Shared) -> None:
        self.shared = Shared.of(config)

    def batch(self, images: list[Tensor], targets: list[dict] | None, training: bool, dtype: torch.dtype) -> ImageBatch:
        """Makes a batch of `dtype`, in channels-last memory, of images [C, H, W], uint8 0..255 or float 0..1.

        targets: for their sample_seed alone. Raises ValueError for another shape.
        """
        if dtype not in (torch.float32, torch.float64):
            raise ValueError(f"the model is in {dtype}: keep it in float32 and use torch.autocast")
        if isinstance(images, Tensor) and images.dim() == 3:
            raise ValueError(f"images is one tensor {list(images.shape)}: give a list of images, [image]")
        config, resized = self.config, []
        in_range = any(deviation != 1 for deviation in config.image_std)
        for i, image in enumerate(images):
            check_image(image, f"image {i}", in_range, config.channels)
        colours = config.image_mean, config.image_std
        mean, std = (constant(tuple(((n,),) for n in numbers), images[0], dtype) for numbers in colours)  # [C, 1, 1]
        for i, image in enumerate(images):
            min_size = config.min_size[-1]
            if training and len(config.min_size) > 1:
                seed = targets[i].get("sample_seed") if targets else None
                generator = None if seed is None else seeded(seed, 2)
                min_size = config.min_size[int(torch.randint(len(config.min_size), (), generator=generator))]
            size = resized_size(*image.shape[-2:], min_size, config.max_size, config.fixed_size)
            image = image.to(dtype) if image.is_floating_point() else image.to(dtype) / WHITE[image.dtype]
            resized.append(F.interpolate(((image - mean) / std)[None], size=size, mode="bilinear")[0])
        sizes = [tuple(image.shape[-2:]) for image in resized]
        divisor = config.size_divisible
        padded = config.fixed_size or [math.ceil(max(side) / divisor) * divisor for side in zip(*sizes, strict=True)]
        padded_images = (
            resized[0].new_zeros(len(images), *padded, config.channels).permute(0, 3, 1, 2)
        )  # [N, C, ph, pw]
        for i, image in enumerate(resized):  # by index: the views of a loop take no gradient
            padded_images[i, :, : image.shape[1], : image.shape[2]] = image
        return ImageBatch(padded_images, sizes, [tuple(image.shape[-2:]) for image in images])


def check_image(image: Tensor, name: str, in_range: bool = True, channels: int = 3) -> None:
    """Raises ValueError for what is no image [channels, H, W], uint8, uint16 or float in 0..1.

    in_range: whether the values of floats are looked at; on a CPU alone, as on a GPU the host would wait for them. A
    model that divides by a deviation of 1 is given images that are normalised already.
    """
    if not isinstance(image, Tensor):
        raise ValueError(f"{name} is a {type(image).__name__}: it must be a tensor [{channels}, H, W]")
    if image.dim() != 3 or image.shape[0] != channels or 0 in image.shape:
        raise ValueError(f"{name} has shape {list(image.shape)}: it must be [{channels}, H, W]")
    if not image.is_floating_point() and image.dtype not in WHITE:
        raise ValueError(f"{name} is {image.dtype}: it must be uint8, uint16 or float in 0..1")
    if in_range and image.is_floating_point() and image.device.type == "cpu":
        low, high = (float(value) for value in image.detach().aminmax())
        if not (-OUTSIDE <= low and high <= 1 + OUTSIDE):  # also where one is nan
            what = "divide it by 255, or give it as uint8" if high > 1 + OUTSIDE and low >= 0 else "it must be in 0..1"
            raise ValueError(f"{name} has float values from {low:.4g} to {high:.4g}: {what}")


def seeded(seed: int | Tensor, stream: int) -> torch.Generator:
    """Returns a generator for one of several independent uses of a sample's seed."""
    # torch's CPU generator reads 32 bits of its seed: the upper ones of these products (Knuth's multiplier)
    # depend on every bit of seed and stream
    factor = 6364136223846793005
    return torch.Generator().manual_seed((int(seed) * factor + stream + 1) * factor % 2**64 >> 32)


def prepare_objects(targets: list[dict], batch: ImageBatch, num_classes: int) -> Objects:
    """Returns the Objects of a batch from the images' targets: boxes, labels, masks, and maybe iscrowd, sample_seed.

    num_classes counts background. Targets are looked at where they are: on a GPU the host would wait, so they may
    stay on the CPU until here. Raises ValueError for a target that does not fit.
    """
    for i, target in enumerate(targets):
        check_shapes(target, batch.original_sizes[i], i)
    counts, dtype = [len(target["boxes"]) for target in targets], batch.images.dtype
    boxes, labels = (torch.cat([target[key] for target in targets]) for key in ("boxes", "labels"))
    crowds = [target["iscrowd"] for target in targets if "iscrowd" in target and len(target["iscrowd"])]
    if sum(counts):
        sizes = from_host(batch.original_sizes, boxes.device)[from_host(image_of_each(counts), boxes.device)]
        misfit = ~fits(boxes, labels, sizes, num_classes).all()
        any_crowd = torch.cat(crowds).any() if crowds else torch.zeros_like(misfit)
        misfit, any_crowd = torch.stack((misfit, any_crowd)).tolist()
        if misfit:
            for i, target in enumerate(targets):
                check_target(target, batch.original_sizes[i], num_classes, i)
    else:
        any_crowd = False
    for i, target in enumerate(targets):
        check_units(target, i)
    masks = [CroppedMasks.from_masks(t["masks"]) if isinstance(t["masks"], Tensor) else t["masks"] for t in targets]
    padded = Padded.from_flat(boxes, counts)
    padded.values = scale_to_sizes(padded.values.to(dtype), batch.original_sizes, batch.sizes)
    objects, labels = padded, Padded.from_flat(labels.long(), counts)
    regions = Padded(padded.values[:, :0], [0] * len(targets))
    if any_crowd:
        none = torch.zeros(0, dtype=torch.bool, device=boxes.device)
        crowd = [
            t["iscrowd"].bool() if "iscrowd" in t else none.new_zeros(n) for t, n in zip(targets, counts, strict=True)
        ]
        regions = Padded.of([b[c] for b, c in zip(padded.each(), crowd, strict=True)])
        objects, labels = (Padded.of([v[~c] for v, c in zip(p.each(), crowd, strict=True)]) for p in (padded, labels))
        # masks may have stayed on the CPU: those who move a target's tensors alone leave CroppedMasks there
        masks = [m[~c.to(m.boxes.device)] for m, c in zip(masks, crowd, strict=True)]
    seeds = [target.get("sample_seed") for target in targets]
    generators = [(None, None) if seed is None else (seeded(seed, 0), seeded(seed, 1)) for seed in seeds]
    device = batch.images.device
    return Objects(objects.to(device), labels.to(device), masks, regions.to(device), batch.sizes, generators)


def fits(boxes: Tensor, labels: Tensor, sizes: Tensor, num_classes: int) -> Tensor:
    """Says of boxes [G, 4] whether `check_target` takes them and their labels [G]: bool [G]; sizes [G, 2]: (H, W)."""
    return _box_fits(boxes, sizes) & (labels >= 1) & (labels < num_classes)


def _box_fits(boxes: Tensor, sizes: Tensor) -> Tensor:
    # outside by more than the image's side: tools round, but not so far; nan and inf are on neither side
    sides = sizes.flip(-1)
    low, high = boxes[:, :2], boxes[:, 2:]
    return ((high > low) & (low >= -sides) & (high <= 2 * sides)).all(1)


def check_target(target: dict, size: Size, num_classes: int, i: int = 0) -> None:
    """Raises ValueError for a target that does not fit an image of `size`, or itself; i: names one without image_id.

    A box without area has no logarithm: the loss would be inf or nan. One far outside of its image is of another.
    """
    check_shapes(target, size, i)
    name, boxes, labels = f"image {target.get('image_id', i)}", target["boxes"], target["labels"]
    height, width = size
    bad = ~_box_fits(boxes, from_host([size], boxes.device))
    if bool(bad.any()):
        box = boxes[bad][0].tolist()
        raise ValueError(
            f"{name}: box {box} (x1 y1 x2 y2) has no area, is not finite or is far outside of {width}x{height} pixels"
        )
    unknown = (labels < 1) | (labels >= num_classes)
    if bool(unknown.any()):
        raise ValueError(f"{name}: label {int(labels[unknown][0])}: it must be 1 to {num_classes - 1}, 0 is background")


def check_units(target: dict, i: int = 0) -> None:
    """Raises ValueError where all boxes lie in the image's first pixel and the masks, if given whole, do not.

    Such boxes are shares of the image's sides.
    """
    boxes, masks = target["boxes"], target["masks"]
    if not isinstance(masks, Tensor) or not len(boxes) or float(boxes.max()) > 1:
        return
    if int(masks.count_nonzero()) > len(boxes):
        name = f"image {target.get('image_id', i)}"
        raise ValueError(f"{name}: its boxes lie within one pixel: give them in pixels, not as shares of the image")


def check_shapes(target: dict, size: Size, i: int = 0) -> None:
    """Raises ValueError for a target that lacks something or whose tensors do not fit an image of `size`."""
    name = f"image {target.get('image_id', i)}"
    lacking = [key for key in ("boxes", "labels", "masks") if key not in target]
    if lacking:
        raise ValueError(f"{name}: its target has no {' and no '.join(lacking)}")
    boxes, labels = target["boxes"], target["labels"]
    if boxes.dim() != 2 or boxes.shape[1] != 4:
        raise ValueError(f"{name}: boxes has shape {list(boxes.shape)}: it must be [G, 4]")
    count, masks = len(boxes), target["masks"]
    if labels.shape != (count,) or labels.dtype not in (torch.int64, torch.int32):
        raise ValueError(f"{name}: labels is {labels.dtype} {list(labels.shape)}: it must be int64 [{count}], as boxes")
    shape = list(masks.shape) if isinstance(masks, Tensor) else [len(masks), *masks.size]
    if shape != [count, *size] and not (isinstance(masks, CroppedMasks) and len(masks) == count):
        raise ValueError(f"{name}: masks has shape {shape}: it must be {[count, *size]}")
    if "iscrowd" in target and target["iscrowd"].shape != (count,):
        raise ValueError(f"{name}: iscrowd has shape {list(target['iscrowd'].shape)}: it must be [{count}]")
