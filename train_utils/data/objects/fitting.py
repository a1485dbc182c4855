"""`--min-size auto` and `--anchor-sizes auto`: sizes that fit the training objects, as numbers for the model."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from network_files import MaskRCNNConfig
from network_files.transform import resized_size
from train_utils.data.dataset import ImageDataset
from train_utils.data.objects.anchors import Objects, best_iou, objects_of, scene, suggest
from train_utils.io.plain_text import counted

AUTO = "auto"
FITTED = ("min_size", "anchor_sizes")  # the fields of MaskRCNNConfig that may be AUTO, in this order
SMALL_SIDE = 16  # pixels that nine of ten objects have after resizing: four cells of the finest level
LARGEST, SMALLEST, ENLARGED = 800, 128, 2.0  # bounds of the shorter side, and the most that images are enlarged
LONGEST = 1333 / 800  # longer side / shorter side that max_size allows at least, as in torchvision


def asks_for_fit(model: dict[str, Any]) -> list[str]:
    """Returns which of a model's fields are AUTO."""
    return [name for name in FITTED if model.get(name) in (AUTO, (AUTO,), [AUTO])]


def fitted(model: dict[str, Any], data_set: ImageDataset) -> tuple[dict[str, Any], list[str]]:
    """Returns a model's fields with numbers in place of AUTO, and a line about each."""
    model, lines, objects = dict(model), [], objects_of(data_set)
    for name in asks_for_fit(model):
        given = {k: v for k, v in model.items() if k not in ("value_range", *asks_for_fit(model))}  # not known yet
        found, line = (fitted_size if name == "min_size" else fitted_anchors)(given, objects)
        model |= found
        lines.append(line)
    return model, lines


class Fit(NamedTuple):
    """The shorter side of images that suits their objects, and what it follows from, in pixels.

    shorter: that of the images, the median; longest: the longer side up to which the typical image keeps its size;
    typical: (h, w) of an image with such a shorter side; small: the side that nine of ten objects exceed; bounded:
    SMALLEST has raised the size, and not the objects.
    """

    size: int
    longest: int
    shorter: float
    typical: tuple[int, int]
    small: float
    bounded: bool


def size_for(objects: Objects) -> Fit:
    """Returns the size at which nine of ten objects get SMALL_SIDE pixels or more.

    Images are not enlarged more than ENLARGED times for it; they are reduced only to LARGEST, and their longer side to
    LARGEST * LONGEST.
    """
    sides = objects.clipped[:, 2:] - objects.clipped[:, :2]
    small = float(np.quantile(np.sqrt(sides.prod(1))[~objects.crowd], 0.1)) if (~objects.crowd).any() else SMALL_SIDE
    short, long = np.sort(objects.sizes, axis=1).T  # [I] each
    shorter, ratio = float(np.median(short)), float(np.median(long / short))
    high, wide = objects.sizes[np.abs(short - shorter).argmin()].tolist()
    factor = min(max(SMALL_SIDE / max(small, 1.0), 1.0), ENLARGED)
    wanted = round(shorter * factor / 32) * 32
    size = int(min(max(wanted, SMALLEST), LARGEST))
    longest = min(max(round(size * LONGEST), math.ceil(size * ratio)), round(LARGEST * LONGEST))
    return Fit(size, longest, shorter, (high, wide), small, wanted < SMALLEST)


def fitted_size(model: dict[str, Any], objects: Objects) -> tuple[dict[str, Any], str]:
    """Returns min_size by `size_for`, and max_size where it is not given, and a line about them."""
    fit = size_for(objects)
    size = min(fit.size, model.get("max_size") or fit.size)
    found = {"min_size": (size,), "max_size": model.get("max_size") or fit.longest}
    config = MaskRCNNConfig.from_dict({"num_classes": 2, **model, **found})
    side = min(resized_size(*fit.typical, size, config.max_size, config.fixed_size))
    said = f"min_size: {size} (auto), max_size: {config.max_size}"
    if config.fixed_size:
        said = "min_size: auto is without effect beside fixed_size {} {}".format(*config.fixed_size)
    return found, (
        f"{said}: images have a shorter side of {fit.shorter:g} pixels in the middle, {side} after resizing, and nine "
        f"of ten objects are larger than {fit.small:.3g} pixels, {fit.small * side / fit.shorter:.3g} then"
    )


def fitted_anchors(model: dict[str, Any], objects: Objects) -> tuple[dict[str, Any], str]:
    """Returns anchor_sizes that reach most of the objects, and a line that says how many."""
    config = MaskRCNNConfig.from_dict({"num_classes": 2, **model})
    seen = scene(objects, config)
    if not len(seen.boxes):
        return {"anchor_sizes": config.anchor_sizes}, "anchor_sizes: auto keeps the default, as there is no object"
    sizes = suggest(seen, config.anchor_sizes, config.aspect_ratios)

    def shares(sizes: tuple[int, ...]) -> str:
        found = best_iou(seen, sizes, config.aspect_ratios)
        return " and ".join(f"{(found >= iou).mean():.1%} by IoU {iou}" for iou in (0.5, 0.7))

    chosen, default = (" ".join(f"{size:g}" for size in each) for each in (sizes, config.anchor_sizes))
    objects = counted(len(seen.boxes), "training object")
    return {"anchor_sizes": sizes}, (
        f"anchor_sizes: {chosen} (auto): they overlap {shares(sizes)} of {objects}; "
        f"{default} {shares(config.anchor_sizes)}"
    )
