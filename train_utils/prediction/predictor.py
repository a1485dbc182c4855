"""An image -> its detections, as COCO results, as a drawn image, as lines of text."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Sequence

import torch
from PIL import Image

from backbone.errors import InputError
from network_files import MaskRCNN
from network_files.operators.instance_masks import mask_probs_to_bool
from train_utils.cli.command import EXIT_OK, EXIT_SOME_UNUSABLE
from train_utils.data.images import ImageError, take_dropped
from train_utils.data.labels import LabelMap
from train_utils.evaluation.limits import dropped_limits, full_images, shrunk_images
from train_utils.evaluation.numbers import to_coco_results
from train_utils.io.memory import explaining_lack_of_memory
from train_utils.show.drawing import draw_detections

LONGEST = 65_500  # pixels a side that a JPEG can have


@torch.inference_mode()
def detect(model: MaskRCNN, image: torch.Tensor, device: torch.device) -> dict[str, torch.Tensor]:
    """Returns the detections of one image (uint8 [3, H, W]), masks as cropped probabilities, on the CPU."""
    detections = model([image.to(device)], paste_masks=False)[0]
    return {key: value.cpu() for key, value in detections.items()}


class Predictor:
    """A model with what is wanted of its detections: thresholds and classes only filter.

    least_score: of a detection; mask_threshold: a mask's pixels are those with a probability above it; classes: names,
    None for all; strict: an image that cannot be read is an error; smallest_scale: of the checkpoint.
    """

    def __init__(
        self,
        model: MaskRCNN,
        label_map: LabelMap,
        least_score: float,
        mask_threshold: float = 0.5,
        classes: Sequence[str] | None = None,
        strict: bool = False,
        smallest_scale: object = None,
    ) -> None:
        self.model, self.label_map, self.device = model, label_map, next(model.parameters()).device
        self.least_score, self.mask_threshold = least_score, mask_threshold
        self.labels = None if classes is None else torch.tensor(self._labels_of(classes))
        self.strict, self.unreadable, self.in_part = strict, 0, 0
        self.smallest_scale, self.sizes = smallest_scale, Counter()  # images by (H, W)
        self.full = 0  # images with as many sure detections as the model may find

    def _labels_of(self, names: Sequence[str]) -> list[int]:
        known = {self.label_map.name(label).lower(): label for label in self.label_map.labels()}
        unknown = [name for name in names if name.lower() not in known]
        if unknown:
            raise InputError(f"--classes {', '.join(unknown)}: the model knows {', '.join(known)}")
        return [known[name.lower()] for name in names]

    def detect(self, image: torch.Tensor) -> dict[str, torch.Tensor]:
        """Returns the detections of image (uint8 [3, H, W]) with at least the least score and one of the classes."""
        what = f"prediction on an image of {image.shape[-1]}x{image.shape[-2]}"
        with explaining_lack_of_memory(what, "try a smaller --max-size or fewer --box-detections-per-img"):
            found = detect(self.model, image, self.device)
        self.sizes[tuple(image.shape[-2:])] += 1
        keep = found["scores"] >= self.least_score  # [D]
        self.full += int(keep.sum()) >= self.model.config.box_detections_per_img  # more of them may be there
        if self.labels is not None:
            keep &= torch.isin(found["labels"], self.labels)
        return {key: value[keep] for key, value in found.items()}

    def results(self, found: dict, image_id: int, image: torch.Tensor) -> list[dict]:
        """Returns the detections as COCO results."""
        size = tuple(image.shape[-2:])
        geometry = self.model.config.geometry
        return to_coco_results([found], [image_id], [size], self.label_map, geometry, self.mask_threshold)

    def draw(self, found: dict, image: torch.Tensor, magnify: int) -> Image.Image:
        """Returns the image with its detections on it, enlarged `magnify` times."""
        height, width = size = tuple(image.shape[-2:])
        if magnify > 1 and magnify * max(size) > LONGEST:
            raise InputError(
                f"--magnify {magnify}: an image of {width}x{height} would be drawn longer than {LONGEST} pixels; "
                f"give at most {max(LONGEST // max(size), 1)}"
            )
        boxes, labels, scores = found["boxes"], found["labels"], found["scores"]
        geometry = self.model.config.geometry
        masks = mask_probs_to_bool(found["mask_probs"], boxes, size, geometry, self.mask_threshold)
        return draw_detections(image, boxes, labels, scores, masks, self.label_map.name, magnify)

    def describe(self, found: dict) -> list[str]:
        """Returns one line per detection: name, score, box."""
        return [
            f"{self.label_map.name(label)} {score:.3f} at {' '.join(f'{value:.1f}' for value in box)}"
            for label, score, box in zip(
                found["labels"].tolist(), found["scores"].tolist(), found["boxes"].tolist(), strict=True
            )
        ]

    def skip(self, error: ImageError) -> None:
        """Names and counts an image that could not be read; raises it under --strict."""
        if self.strict:
            raise error
        print(f"not predicted: {error}", file=sys.stderr, flush=True)
        self.unreadable += 1

    def status(self, images: int) -> int:
        """Says how many of the images were predicted; returns the exit status."""
        note = f", {self.unreadable} could not be read" if self.unreadable else ""
        note += f", {self.in_part} in part" if self.in_part else ""
        full = full_images(self.full, self.model.config.box_detections_per_img)
        shrunk = shrunk_images(self.sizes.elements(), self.model.config, self.smallest_scale)
        for limit in [*full, *shrunk, *dropped_limits(take_dropped())]:
            print(limit.line)
        print(f"{images - self.unreadable} of {images} image(s) predicted{note}")
        return EXIT_SOME_UNUSABLE if self.unreadable or self.in_part else EXIT_OK
