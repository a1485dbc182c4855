"""Provides what the benchmarks work on: photos where they are, else drawn images; boxes as an RPN makes them."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from network_files import CroppedMasks
from train_utils.data.formats.shapes import draw_image
from train_utils.data.opening import open_data

Pair = tuple[Tensor, dict]  # an image, uint8 [3, H, W], and its target


def photos(data: Path | None, count: int, size: tuple[int, int] = (480, 640), objects: int | None = None) -> list[Pair]:
    """Returns `count` pairs of an image of `size` and its target, from coco_mini under `data`, else drawn.

    objects: how many each holds (the image's own, repeated or cut), default its own. Crowds are left out.
    """
    pairs = _real(data, count, size) if data else []
    pairs += [_drawn(i, size) for i in range(count - len(pairs))]
    return pairs if objects is None else [(image, with_objects(target, objects)) for image, target in pairs]


def _real(data: Path, count: int, size: tuple[int, int]) -> list[Pair]:
    found, data_set = [], open_data(data / "coco_mini").val
    for i in np.flatnonzero(data_set.object_counts()).tolist():
        if tuple(data_set.sizes[i].tolist()) != size:
            continue
        image, target = data_set[i]
        if not target["iscrowd"].any():
            found.append((image, target))
        if len(found) == count:
            break
    return found


def _drawn(number: int, size: tuple[int, int]) -> Pair:
    side = max(size)
    pixels, objects = draw_image(np.random.default_rng(number), side, 5, False)
    image = torch.from_numpy(pixels).permute(2, 0, 1)[:, : size[0], : size[1]].contiguous()
    masks = torch.stack([torch.from_numpy(mask)[: size[0], : size[1]] for _, mask, _ in objects]).to(torch.uint8)
    seen = masks.flatten(1).bool().any(1)
    cropped = CroppedMasks.from_masks(masks[seen])
    labels = torch.tensor([category for category, _, _ in objects])[seen]
    return image, {
        "boxes": cropped.boxes.float(),
        "labels": labels,
        "masks": cropped,
        "image_id": number,
        "area": cropped.areas().float(),
        "iscrowd": torch.zeros(len(cropped), dtype=torch.uint8),
    }


def with_objects(target: dict, count: int) -> dict:
    """Returns the target of the same image with `count` objects: its own ones again and again."""
    index = torch.arange(count) % len(target["labels"])
    return target | {key: target[key][index] for key in ("boxes", "labels", "masks", "area", "iscrowd")}


def as_torchvision(pairs: list[Pair], device: torch.device) -> tuple[list[Tensor], list[dict]]:
    """Returns the pairs in the form that torchvision's model takes: float images, full-size masks."""
    images = [image.to(device) / 255 for image, _ in pairs]
    targets = [
        {"boxes": t["boxes"].to(device), "labels": t["labels"].to(device), "masks": t["masks"].to_masks().to(device)}
        for _, t in pairs
    ]
    return images, targets


def clustered_boxes(
    count: int, size: tuple[int, int] = (800, 1333), per_cluster: int = 10, seed: int = 0
) -> tuple[Tensor, Tensor]:
    """Returns boxes [count, 4] crowding around places, as proposals do around objects, and scores [count]."""
    rng = torch.Generator().manual_seed(seed)
    places = max(count // per_cluster, 1)
    centre = torch.rand(places, 2, generator=rng) * torch.tensor([size[1], size[0]])
    side = torch.exp(torch.randn(places, 2, generator=rng) * 0.7 + 4)  # 55 pixels, from 14 to 220 mostly
    place = torch.randint(places, (count,), generator=rng)
    shift = torch.randn(count, 2, generator=rng) * 0.15
    centre, side = centre[place] + shift * side[place], side[place] * torch.exp(shift.flip(1))
    boxes = torch.cat((centre - side / 2, centre + side / 2), 1)
    limit = torch.tensor([size[1], size[0], size[1], size[0]])
    return boxes.clamp(min=0).minimum(limit), torch.rand(count, generator=rng)
