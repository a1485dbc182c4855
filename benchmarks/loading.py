"""Images and targets as training takes them, loaded by 2 worker processes: ours beside torchvision's reference.

The other side is what torchvision's references/detection does for Mask R-CNN with its "hflip" augmentation, in
code of our own: CocoDetection, polygons to full-size masks, a flip, float images, PyTorch's DataLoader.
"""

import tempfile
from functools import partial
from pathlib import Path

import torch
from pycocotools import mask as coco_mask
from torch.utils.data import DataLoader

from benchmarks.harness import Benchmark, LeftOut, Settings
from tools.pack_dataset import pack
from train_utils.data.loaders import TrainLoader
from train_utils.data.opening import open_data
from train_utils.data.options import LoaderOptions
from train_utils.processes.distributed import World
from transforms import build_augment

WORKERS, BATCH = 2, 2


def to_masks_and_boxes(image, target: dict):
    """CocoDetection's annotations -> torchvision's target, full-size masks uint8 [N, H, W]; crowds are left out."""
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

    def __init__(self, image_dir, json_path, flip: float):
        from torchvision.datasets import CocoDetection

        self.coco, self.flip = CocoDetection(image_dir, json_path), flip

    def __len__(self) -> int:
        return len(self.coco)

    def __getitem__(self, i: int):
        from torchvision.transforms.v2 import functional as F

        image, annotations = self.coco[i]
        image, target = to_masks_and_boxes(image, {"image_id": self.coco.ids[i], "annotations": annotations})
        image = F.pil_to_tensor(image)
        if torch.rand(1) < self.flip:
            image = F.hflip(image)
            target["boxes"][:, [0, 2]] = image.shape[-1] - target["boxes"][:, [2, 0]]
            target["masks"] = target["masks"].flip(-1)
        return F.to_dtype(image, torch.float32, scale=True), target


def reference_loader(json_path, image_dir, flip=0.5, workers=WORKERS) -> DataLoader:
    """Batches (images, targets) in a random order, through torch's own transport."""
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
    return tuple(zip(*batch, strict=True))


def prepare_loading(settings: Settings):
    if settings.data is None:
        raise LeftOut("it needs the photos of coco_mini")
    data = open_data(settings.data / "coco_mini").train
    ours = TrainLoader(data, build_augment(), World.single("cpu"), LoaderOptions(BATCH, workers=WORKERS))
    theirs = reference_loader(data.source, data.annotations.images.image_dir)
    return lambda: count(batch.targets for batch in ours.epoch(0)), lambda: count(targets for _, targets in theirs)


def prepare_packed(settings: Settings, keep_encoded: bool = False):
    """The same data set, packed, beside its image files and json."""
    if settings.data is None:
        raise LeftOut("it needs the photos of coco_mini")
    data = open_data(settings.data / "coco_mini").train
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "train.pack"
        pack(data, path, keep_encoded)
        packed = open_data(path, split="train").train  # mapped: the file's name may go
    world = World.single("cpu")
    options = LoaderOptions(BATCH, workers=WORKERS)
    loaders = [TrainLoader(part, build_augment(), world, options) for part in (packed, data)]
    return tuple(lambda loader=loader: count(batch.targets for batch in loader.epoch(0)) for loader in loaders)


def count(batches) -> list[int]:
    """Images of an epoch."""
    return [sum(len(targets) for targets in batches)]


BENCHMARKS = [
    Benchmark(
        "loading",
        f"an epoch of coco_mini's 80 training photos, {WORKERS} workers, batches of {BATCH}",
        prepare_loading,
        lambda ours, theirs: abs(ours[0] - theirs[0]),
        memory=lambda settings, side: None,
    ),
    Benchmark(
        "loading_packed",
        "the same, data packed by tools.pack_dataset",
        prepare_packed,
        lambda ours, theirs: abs(ours[0] - theirs[0]),
        against="its files",
        memory=lambda settings, side: None,
    ),
    Benchmark(
        "loading_encoded",
        "the same, with --keep-encoded",
        partial(prepare_packed, keep_encoded=True),
        lambda ours, theirs: abs(ours[0] - theirs[0]),
        against="its files",
        memory=lambda settings, side: None,
    ),
]
