"""The loading benchmark's other side delivers the same images and masks as our loader."""

import torch

from benchmarks.loading import reference_loader
from my_dataset_coco import CocoDataset
from tests.coco_folders import annotation, many, square, write
from train_utils.data.loaders import TrainLoader
from train_utils.data.options import LoaderOptions
from train_utils.processes.distributed import World
from transforms import HorizontalFlip


def by_id(batches):
    pairs = [pair for images, targets in batches for pair in zip(images, targets, strict=True)]
    return {int(target["image_id"]): (image, target) for image, target in pairs}


def test_both_sides_deliver_the_same(tmp_path):
    content = many(4)
    content["annotations"].append(annotation(9, 2, segmentation=[*square(), *square(14, 4, 5)], area=125))
    path = write(tmp_path, content)
    data = CocoDataset(path, tmp_path / "images")
    ours = by_id((b.images, b.targets) for b in TrainLoader(data, None, World.single("cpu"), LoaderOptions(2)).epoch(0))
    theirs = by_id(reference_loader(path, tmp_path / "images", flip=0, workers=0))
    mirrored = by_id(reference_loader(path, tmp_path / "images", flip=1, workers=0))
    assert sorted(ours) == sorted(theirs) == sorted(mirrored) == [1, 2, 3, 4]
    for i, (image, target) in ours.items():
        other, reference = theirs[i]
        torch.testing.assert_close(image / 255, other, rtol=0, atol=1e-6)
        for key in ("boxes", "labels", "area"):
            assert torch.equal(target[key], reference[key])
        masks = target["masks"].to_masks()
        assert torch.equal(masks, reference["masks"].to(torch.uint8))
        _, turned = HorizontalFlip(1)(image, target, torch.Generator())
        assert torch.equal(turned["masks"].to_masks(), mirrored[i][1]["masks"].to(torch.uint8))
        assert torch.equal(turned["boxes"], mirrored[i][1]["boxes"])
