"""Images with targets for the network's tests, read without the project's own data code."""

import json

import numpy as np
import torch
from PIL import Image
from pycocotools import mask as coco_mask


def coco_photos(folder, count: int) -> list[tuple[torch.Tensor, dict]]:
    """The first `count` val photos in `folder` with 2..12 objects, no crowd, and a size of their own."""
    annotations = json.loads((folder / "annotations" / "instances_val2017.json").read_text())
    by_image: dict[int, list] = {}
    for annotation in annotations["annotations"]:
        by_image.setdefault(annotation["image_id"], []).append(annotation)
    found, sizes = [], set()
    for record in annotations["images"]:
        objects = by_image.get(record["id"], [])
        size = (record["height"], record["width"])
        if not 2 <= len(objects) <= 12 or any(a["iscrowd"] for a in objects) or size in sizes:
            continue
        sizes.add(size)
        photo = Image.open(folder / "val2017" / record["file_name"]).convert("RGB")
        image = torch.from_numpy(np.array(photo)).permute(2, 0, 1).contiguous()  # [3, H, W]
        found.append((image, _target(record["id"], objects, size)))
        if len(found) == count:
            return found
    raise ValueError(f"{folder}: {len(found)} of {count} photos found")


def _target(image_id: int, objects: list[dict], size: tuple[int, int]) -> dict:
    boxes = torch.tensor([a["bbox"] for a in objects], dtype=torch.float32)
    boxes[:, 2:] += boxes[:, :2]  # x y w h -> x1 y1 x2 y2
    polygons = [coco_mask.frPyObjects(a["segmentation"], *size) for a in objects]
    masks = [coco_mask.decode(coco_mask.merge(parts)) for parts in polygons]
    return {
        "boxes": boxes,
        "labels": torch.tensor([a["category_id"] for a in objects]),
        "masks": torch.from_numpy(np.stack(masks)),  # [N, H, W]
        "image_id": image_id,
        "area": torch.tensor([a["area"] for a in objects], dtype=torch.float32),
        "iscrowd": torch.zeros(len(objects), dtype=torch.uint8),
    }


def drawn_images(count: int, seed: int = 0) -> list[tuple[torch.Tensor, dict]]:
    """Noise with coloured ellipses, a different size each; labels 1..90."""
    rng = torch.Generator().manual_seed(seed)
    return [_drawn_image(i, 200 + 37 * i, 320 - 23 * i, rng) for i in range(count)]


def _drawn_image(image_id: int, height: int, width: int, rng: torch.Generator) -> tuple[torch.Tensor, dict]:
    image = torch.randint(0, 80, (3, height, width), generator=rng, dtype=torch.uint8)
    y, x = torch.arange(height)[:, None] + 0.5, torch.arange(width)[None] + 0.5
    masks = []
    for _ in range(4):
        cx, cy, rx, ry = torch.rand(4, generator=rng) * torch.tensor([width, height, width / 3, height / 3])
        mask = ((x - cx) / (rx + 8)) ** 2 + ((y - cy) / (ry + 8)) ** 2 < 1  # [H, W]
        colour = torch.randint(80, 256, (3, 1, 1), generator=rng, dtype=torch.uint8)
        image = torch.where(mask, colour, image)
        masks.append(mask.to(torch.uint8))
    masks = torch.stack(masks)  # [N, H, W]
    boxes = torch.stack([_tight_box(m) for m in masks])
    return image, {
        "boxes": boxes,
        "labels": torch.randint(1, 91, (len(masks),), generator=rng),
        "masks": masks,
        "image_id": image_id,
        "area": masks.sum((1, 2)).float(),
        "iscrowd": torch.zeros(len(masks), dtype=torch.uint8),
    }


def _tight_box(mask: torch.Tensor) -> torch.Tensor:
    rows, columns = mask.any(1).nonzero()[:, 0], mask.any(0).nonzero()[:, 0]
    return torch.stack([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]).float()
