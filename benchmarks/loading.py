"""Loads images and targets as training takes them, by 2 worker processes: ours beside torchvision's reference.

The other side is what torchvision's references/detection does for Mask R-CNN with its "hflip" augmentation, in
code of our own: CocoDetection, polygons to full-size masks, a flip, float images, PyTorch's DataLoader.
"""

import tempfile
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from pycocotools import mask as coco_mask
from torch.utils.data import DataLoader
from torchvision.datasets import CocoDetection
from torchvision.transforms.v2 import functional as F

from benchmarks.harness import Benchmark, LeftOut, Settings, Sides
from tools.pack_dataset import pack
from train_utils.data.loaders import TrainLoader
from train_utils.data.opening import open_data
from train_utils.data.options import LoaderOptions
from train_utils.processes.distributed import World
from transforms import build_augment

WORKERS, BATCH = 2, 2


def to_masks_and_boxes(image: Image.Image, target: dict) -> tuple[Image.Image, dict]:
    """Turns CocoDetection's annotations into torchvision's target.

    Masks are full-size, uint8 [N, H, W]; crowds are left out.
    """
    width, height = image.size
    objects = [o for o in target["annotations"] if o["iscrowd"] == 0]
    boxes = torch.as_tensor([o["bbox"] for o in objects], dtype=torch.float32).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    boxes[:, 0::2].clamp_(min=0, max=width)
    boxes[:, 1::2].clamp_(min=0, max=height)
    masks = torch.zeros(0, height, width, dtype=torch.uint8)
    if objects:
        rles = [coco_mask.frPyObjects(o["segmentation"], height, width) for o in objects]
        decoded = [torch.as_tensor(coco_mask.decode(rle), dtype=torch.uint8).any(dim=2) for rle in rles]  # [H, W] each
        masks = torch.stack(decoded)
    keep = (boxes[:, 3] > boxes[:, 1]) & (boxes[:, 2] > boxes[:, 0])
    return image, {
        "boxes": boxes[keep],
        "labels": torch.tensor([o["category_id"] for o in objects], dtype=torch.int64)[keep],
        "masks": masks[keep],
        "image_id": target["image_id"],
        "area": torch.tensor([o["area"] for o in objects]),
        "iscrowd": torch.tensor([o["iscrowd"] for o in objects]),
    }


class ReferenceData(torch.utils.data.Dataset):
    """Images float [3, H, W] in 0..1 and torchvision's targets; flip: how often they are mirrored."""

    def __init__(self, image_dir: str | Path, json_path: str | Path, flip: float) -> None:
        self.coco, self.flip = CocoDetection(image_dir, json_path), flip

    def __len__(self) -> int:
        return len(self.coco)

    def __getitem__(self, i: int) -> tuple[torch.Tensor, dict]:
        image, annotations = self.coco[i]
        image, target = to_masks_and_boxes(image, {"image_id": self.coco.ids[i], "annotations": annotations})
        image = F.pil_to_tensor(image)
        if torch.rand(1) < self.flip:
            image = F.hflip(image)
            target["boxes"][:, [0, 2]] = image.shape[-1] - target["boxes"][:, [2, 0]]
            target["masks"] = target["masks"].flip(-1)
        return F.to_dtype(image, torch.float32, scale=True), target


def reference_loader(
    json_path: str | Path, image_dir: str | Path, flip: float = 0.5, workers: int = WORKERS
) -> DataLoader:
    """Returns batches (images, targets) in a random order, through torch's own transport."""
    return DataLoader(
        ReferenceData(image_dir, json_path, flip),
        batch_size=BATCH,
        shuffle=True,
        num_workers=workers,
        collate_fn=collate,
        persistent_workers=workers > 0,
        drop_last=True,
    )


def collate(batch: list) -> tuple:
    """Returns a tuple of the images and one of the targets."""
    return tuple(zip(*batch, strict=True))


def training_photos(settings: Settings) -> Any:
    """Opens coco_mini's training data; raises LeftOut where it is missing."""
    if settings.data is None:
        raise LeftOut("it needs the photos of coco_mini")
    return open_data(settings.data / "coco_mini").train


def prepare_loading(settings: Settings) -> Sides:
    """Returns an epoch of our loader and one of the reference's."""
    data = training_photos(settings)
    ours = TrainLoader(data, build_augment(), World.single("cpu"), LoaderOptions(BATCH, workers=WORKERS))
    theirs = reference_loader(data.source, data.annotations.images.image_dir)
    return lambda: count(batch.targets for batch in ours.epoch(0)), lambda: count(targets for _, targets in theirs)


def prepare_packed(settings: Settings, keep_encoded: bool = False) -> Sides:
    """Returns an epoch of the same data set, packed, and one of its image files and json."""
    data = training_photos(settings)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "train.pack"
        pack(data, path, keep_encoded)
        packed = open_data(path, split="train").train  # open: the file's name may go
    world = World.single("cpu")
    options = LoaderOptions(BATCH, workers=WORKERS)
    loaders = [TrainLoader(part, build_augment(), world, options) for part in (packed, data)]
    return tuple(lambda loader=loader: count(batch.targets for batch in loader.epoch(0)) for loader in loaders)


def count(batches: Iterable[Sequence]) -> list[int]:
    """Returns the number of images of an epoch; batches: the targets of each."""
    return [sum(len(targets) for targets in batches)]


def difference(ours: list[int], theirs: list[int]) -> float:
    """Returns by how many images the epochs differ."""
    return abs(ours[0] - theirs[0])


EPOCH = f"an epoch of coco_mini's 80 training photos, {WORKERS} workers, batches of {BATCH}"
PACKED, ENCODED = "the same, data packed by tools.pack_dataset", "the same, with --keep-encoded"
packed_encoded = partial(prepare_packed, keep_encoded=True)
BENCHMARKS = [
    Benchmark("loading", EPOCH, prepare_loading, difference, memory=None),
    Benchmark("loading_packed", PACKED, prepare_packed, difference, "its files", memory=None),
    Benchmark("loading_encoded", ENCODED, packed_encoded, difference, "its files", memory=None),
]
