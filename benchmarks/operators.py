"""Runs the operators, each beside torchvision's."""

from functools import partial

import numpy as np
import torch
from pycocotools import mask as coco_mask
from torch import Tensor
from torchvision import ops
from torchvision.models.detection.roi_heads import paste_masks_in_image, project_masks_on_boxes
from torchvision.models.detection.transform import _resize_image_and_masks

from benchmarks.harness import Benchmark, Settings, Sides, largest_difference
from benchmarks.harness.inputs import clustered_boxes, photos, with_objects
from network_files.operators.boxes import HALF_PIXEL, TORCHVISION
from network_files.operators.instance_masks import encode_masks, mask_targets
from network_files.operators.nms import nms
from network_files.operators.roi_align import FeatureTable, roi_align, roi_levels
from network_files.transform import resized_size

SIZE = (800, 1333)  # an image as the published models see it
SCALES = (1 / 4, 1 / 8, 1 / 16, 1 / 32)


def prepare_nms(settings: Settings, count: int) -> Sides:
    """Returns both NMS of so many boxes."""
    boxes, scores = (t.to(settings.device) for t in clustered_boxes(count))
    return lambda: nms(boxes, scores, 0.7), lambda: ops.nms(boxes, scores, 0.7)


def prepare_roi_align(settings: Settings, backward: bool = False) -> Sides:
    """Returns both RoIAligns of 1000 RoIs on four levels of 256 channels, 7x7 cells."""
    torch.manual_seed(0)
    maps = [torch.randn(1, 256, round(SIZE[0] * s), round(SIZE[1] * s), device=settings.device) for s in SCALES]
    ours = [m.to(memory_format=torch.channels_last).requires_grad_(backward) for m in maps]
    theirs = dict(zip("0123", (m.clone().requires_grad_(backward) for m in maps), strict=True))
    rois = clustered_boxes(1000)[0].to(settings.device)
    image = torch.zeros(len(rois), dtype=torch.int64, device=settings.device)
    pooler = ops.MultiScaleRoIAlign(["0", "1", "2", "3"], 7, 2)
    cotangent = torch.randn(len(rois), 256, 7, 7, device=settings.device)

    def finish(pooled: Tensor, inputs: list[Tensor]) -> Tensor | tuple[Tensor, ...]:
        return torch.autograd.grad(pooled, inputs, cotangent) if backward else pooled

    def run_ours() -> Tensor | tuple[Tensor, ...]:
        return finish(roi_align(FeatureTable(ours), rois, image, roi_levels(rois, 4), 7), ours)

    def run_theirs() -> Tensor | tuple[Tensor, ...]:
        return finish(pooler(theirs, [rois], [SIZE]), list(theirs.values()))

    return run_ours, run_theirs


def prepare_paste(settings: Settings, geometry: str = TORCHVISION) -> Sides:
    """Returns both ways from 28x28 probabilities of 100 detections to COCO RLE in an image of 1333x800."""
    torch.manual_seed(0)
    boxes = clustered_boxes(100)[0].to(settings.device)
    cells = torch.linspace(-1, 1, 28, device=settings.device)
    blob = torch.exp(-1.5 * (cells[:, None] ** 2 + cells**2))  # [28, 28]
    probs = (blob + 0.1 * torch.randn(100, 28, 28, device=settings.device)).clamp(0, 1)

    def run_theirs() -> list[dict]:
        masks = (paste_masks_in_image(probs[:, None], boxes, SIZE) > 0.5).cpu().numpy()  # [100, 1, H, W]
        return [coco_mask.encode(np.asfortranarray(mask[0], dtype=np.uint8)) for mask in masks]

    return lambda: encode_masks(probs, boxes, SIZE, geometry), run_theirs


def differing_pixels(ours: list[dict], theirs: list[dict]) -> float:
    """Returns the largest number of pixels in which two masks, as RLE, differ."""
    pairs = zip(coco_mask.decode(ours).T, coco_mask.decode(theirs).T, strict=True)
    return float(max((a != b).sum() for a, b in pairs))


def prepare_mask_targets(settings: Settings, geometry: str = TORCHVISION) -> Sides:
    """Returns both targets of 128 RoIs on 50 objects of a photo resized to 1333x800 at most."""
    ((_, target),) = photos(settings.data, 1)
    target = with_objects(target, 50)
    height, width = target["masks"].size
    size = resized_size(height, width, 800, 1333)
    masks, dense = target["masks"].to(settings.device), target["masks"].to_masks().to(settings.device)
    image = torch.zeros(3, height, width, device=settings.device)
    matched = torch.arange(128, device=settings.device) % 50
    rois = target["boxes"].to(settings.device)[matched] * (size[0] / height)
    rois = rois + torch.randn(128, 4, generator=torch.Generator().manual_seed(0)).to(settings.device)
    limit = rois.new_tensor([size[1], size[0]] * 2)
    rois = torch.cat((rois[:, :2], rois[:, 2:].maximum(rois[:, :2] + 2)), 1).clamp(min=0).minimum(limit)

    def run_theirs() -> Tensor:  # the full-size masks are resized with the image
        _, resized = _resize_image_and_masks(image, 800.0, 1333.0, {"masks": dense})
        return project_masks_on_boxes(resized["masks"], rois, matched, 28)

    return lambda: mask_targets([masks], [rois], [matched], [size], 28, geometry), run_theirs


BENCHMARKS = [
    Benchmark("nms_2000", "NMS, 2,000 boxes", partial(prepare_nms, count=2000), largest_difference),
    Benchmark("nms_10000", "NMS, 10,000 boxes", partial(prepare_nms, count=10000), largest_difference),
    Benchmark("roi_align", "RoIAlign, 1,000 RoIs, 256 channels, 7x7", prepare_roi_align, largest_difference),
    Benchmark(
        "roi_align_backward",
        "the same, forward and backward",
        partial(prepare_roi_align, backward=True),
        largest_difference,
    ),
    Benchmark("paste", "100 masks to RLE, 1333x800", prepare_paste, differing_pixels),
    Benchmark("paste_half_pixel", "the same, ours in half-pixel geometry", partial(prepare_paste, geometry=HALF_PIXEL)),
    Benchmark("mask_targets", "mask targets, 50 objects, 128 RoIs, 1333x800", prepare_mask_targets, largest_difference),
    Benchmark(
        "mask_targets_half_pixel",
        "the same, ours in half-pixel geometry",
        partial(prepare_mask_targets, geometry=HALF_PIXEL),
    ),
]
