"""The largest differences from torchvision, item by item, on real photos where they are there.

python -m tests.fidelity_report             a few minutes on two CPU cores
python -m tests.fidelity_report --size 800  at the published models' image size
"""

import argparse

import torch
import torchvision

from benchmarks import torchvision_model as oracle
from network_files import CroppedMasks, create_model, matching
from network_files.operators.boxes import HALF_PIXEL, TORCHVISION
from network_files.operators.instance_masks import mask_targets
from network_files.operators.nms import nms
from network_files.operators.roi_align import FeatureTable, roi_align
from tests import conftest, sample_images

CASES = {"v1 resnet50": ("resnet50", "v1"), "v2 resnet50": ("resnet50", "v2")}


def photos(count):
    folder = conftest.find_shared_data()
    images = sample_images.coco_photos(folder / "coco_mini", count) if folder else (sample_images.drawn_images(count))
    return [(image.float() / 255, target) for image, target in images]


def largest(a, b):
    return float((a.double() - b.double()).abs().max()) if a.numel() else 0.0


def whole_model(name, size, samples):
    backbone, variant = CASES[name]
    options = {"backbone": backbone, "variant": variant, "min_size": size, "max_size": size * 5 // 3}
    state = oracle.live_state(samples, **options)
    theirs, ours = oracle.build(**options), create_model(91, trainable_layers=5, **options)
    theirs.load_state_dict(state)
    ours.load_state_dict(state)
    theirs, ours = oracle.labels_in_float64(oracle.without_chance(theirs.double())), ours.double()
    images = [image.double() for image, _ in samples]
    targets = [target | {"boxes": target["boxes"].double()} for _, target in samples]
    with torch.no_grad():
        expected, found = theirs.eval()(images), ours.eval()(images)
    counts = [len(e["scores"]) for e in expected]
    for key in ("boxes", "scores", "labels", "masks"):
        worst = max(largest(a[key], b[key]) for a, b in zip(found, expected, strict=True))
        print(f"{name}, float64, {key} of {counts} detections: {worst}")
    expected, found = theirs.train()(images, targets), ours.train()(images, targets)
    relative = {key: abs((found[key].detach() / expected[key].detach()).item() - 1) for key in expected}
    print(f"{name}, float64, losses, relative: {max(relative.values())}")
    sum(expected.values()).backward()
    sum(found.values()).backward()
    gradients = dict(theirs.named_parameters())
    worst = max(
        largest(p.grad, gradients[n].grad) / max(1.0, float(gradients[n].grad.abs().max()))
        for n, p in ours.named_parameters()
    )
    print(f"{name}, float64, gradients of {len(gradients)} parameters: {worst}")


def operators():
    rng = torch.Generator().manual_seed(0)
    corner = torch.rand(1000, 2, generator=rng) * torch.tensor([1000.0, 700.0])
    boxes = torch.cat((corner, corner + torch.rand(1000, 2, generator=rng) ** 3 * 300 + 1), 1)
    maps = torch.randn(1, 256, 200, 272, generator=rng)
    zeros = torch.zeros(1000).long()
    for geometry, aligned in ((TORCHVISION, False), (HALF_PIXEL, True)):
        ours = roi_align(FeatureTable([maps], geometry=geometry), boxes, zeros, zeros, 7)
        theirs = torchvision.ops.roi_align(maps, [boxes], 7, 0.25, 2, aligned)
        print(f"RoIAlign, float32, 1000 RoIs, aligned={aligned}: {largest(ours, theirs)}")
    scores = torch.rand(1000, generator=rng)
    same = all(torch.equal(nms(boxes, scores, t), torchvision.ops.nms(boxes, scores, t)) for t in (0.3, 0.5, 0.7))
    print(f"NMS, float32, 1000 boxes, indices identical: {same}")


def targets_of_masks(images):
    worst = 0.0
    for image, target in images:
        size = tuple(side * 8 // 5 for side in image.shape[-2:])
        full = torch.nn.functional.interpolate(target["masks"][:, None].float(), size=size)
        rois = target["boxes"] * 1.6 + torch.tensor([-3.3, 2.2, 4.1, -1.7])
        index = torch.arange(len(rois))
        theirs = torchvision.ops.roi_align(full, torch.cat((index[:, None], rois), 1), 28, 1.0)[:, 0]
        ours = mask_targets([CroppedMasks.from_masks(target["masks"])], [rois], [index], [size], 28, TORCHVISION)
        worst = max(worst, largest(ours, theirs))
    print(f"mask targets, float32: {worst}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=256, help="shorter side of the images (default: 256)")
    size = parser.parse_args().size
    images = photos(3)
    operators()
    targets_of_masks(images)
    matching.draw = oracle.spread_ranks
    for name in CASES:
        whole_model(name, size, images[:2])


if __name__ == "__main__":
    main()
