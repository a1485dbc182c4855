"""An image -> its detections, as COCO results, as a drawn image, as lines of text."""

from __future__ import annotations

import math
import sys
import threading
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from copy import copy
from dataclasses import replace
from typing import Any

import torch
from PIL import Image
from pycocotools import mask as coco_mask

from network_files import InputError, MaskRCNN, MaskRCNNConfig
from network_files.operators.boxes import scale_boxes
from network_files.operators.cropped_masks import CroppedMasks
from network_files.operators.instance_masks import mask_probs_to_bool
from network_files.roi_heads import NeedsMask
from network_files.transform import padded_size
from train_utils.cli.command import EXIT_OK, EXIT_SOME_UNUSABLE
from train_utils.data.images import ImageError, take_dropped
from train_utils.data.images.reading import Reading
from train_utils.data.images.shown import shown
from train_utils.data.images.windows import Windows
from train_utils.data.labels import LabelMap
from train_utils.evaluation.limits import Limit, dropped_limits, full_images, shrunk_images
from train_utils.evaluation.numbers import to_coco_results
from train_utils.evaluation.tiled_model import TiledModel
from train_utils.io.memory import explaining_lack_of_memory
from train_utils.io.plain_text import counted
from train_utils.prediction.model import known_classes
from train_utils.prediction.results import OVERVIEW, labels_of
from train_utils.show.captions import FEW
from train_utils.show.drawing import Style, draw_detections, fitting_size, magnified, resized

LONGEST = 65_500  # pixels a side that a JPEG can have

# of a Predictor: sums of images'
TALLIED = ("full", "tiles", "empty_tiles", "in_part", "reduced", "unboxed", "empty", "foreign", "dropped", "left_out")


@torch.inference_mode()
def detect(
    model: MaskRCNN, images: Sequence[torch.Tensor], device: torch.device, need: NeedsMask | None = None
) -> list[dict[str, torch.Tensor]]:
    """Returns the detections of each image [C, H, W], masks as cropped probabilities, on the CPU.

    need: which of them need a mask; None: all.
    """
    at_once, found = 1 if one_by_one(device) else len(images), []
    for i in range(0, len(images), at_once):
        some = [image.to(device) for image in images[i : i + at_once]]  # of Windows what is read later
        found += model(some, paste_masks=False, needs=None if need is None else [need] * len(some))
    return [{key: value.to("cpu") for key, value in detections.items()} for detections in found]


def alike(
    images: Iterable[tuple[int, torch.Tensor]], config: MaskRCNNConfig, batch_size: int
) -> Iterator[tuple[list[int], list[torch.Tensor]]]:
    """Yields numbered images in batches of those that the network pads to one shape: (their numbers, they)."""
    sizing = config.min_size[-1], config.max_size, config.size_divisible, config.fixed_size
    waiting: dict[tuple[int, int], list[tuple[int, torch.Tensor]]] = {}
    for number, image in images:
        waiting.setdefault(padded_size(*image.shape[-2:], *sizing), []).append((number, image))
    for same in waiting.values():
        for i in range(0, len(same), batch_size):
            numbers, batch = zip(*same[i : i + batch_size], strict=True)
            yield list(numbers), list(batch)


def one_by_one(device: torch.device) -> bool:
    """Returns whether a device takes images one by one: a CPU's kernels round differently for several."""
    return device.type == "cpu"


def doubt_of(scores: torch.Tensor) -> float:
    """Returns how many doubtful objects an image has, from its detections' scores [D], those below --score included.

    Each counts 1 - |2 score - 1|: 1 where the model is undecided (0.5), 0 where it is sure (0 or 1).
    """
    return float((1 - (2 * scores.double() - 1).abs()).sum())


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
        self.tiled = model if isinstance(model, TiledModel) else None
        self.tiles = self.empty_tiles = 0  # tiles that images were cut into; of these left out as empty
        if getattr(model, "mask_threshold", mask_threshold) != mask_threshold:
            raise InputError(f"mask_threshold: {model.mask_threshold} is built into the file; leave it out")
        self.least_score, self.mask_threshold = least_score, mask_threshold
        self.reading = replace(Reading.of(model.config), by_windows=self.tiled is not None)
        self.labels = None if classes is None else torch.tensor(labels_of(label_map, classes))
        self.strict, self.in_part = strict, 0
        self.broken: list[str] = []  # of the images that could not be read, what each error said
        self.smallest_scale, self.sizes = smallest_scale, Counter()  # images by (H, W)
        self.counting = threading.Lock()  # `detect` may be called from several threads
        self.full = 0  # images with as many sure detections as the model may find
        self.dropped: Counter[str] = Counter()  # `take_dropped`'s
        self.best: tuple[float, int] | None = None  # highest score of all images, and its label, of the classes wanted
        self.reduced = 0  # images that are drawn smaller than asked for
        self.unboxed = 0  # images that are drawn without boxes, as they have more objects than FEW
        self.left_out: Counter[str] = Counter()  # detections, by why
        self.empty = 0  # detections whose mask has no pixel
        self.foreign = 0  # detections of classes that the data lacks
        self.doubts: dict[int, float] = {}  # of images by position, see `doubt_of`

    @property
    def in_flight(self) -> int:
        """Images that may be looked at beside each other, each in a thread."""
        return getattr(self.model, "in_flight", 1)

    def detect(self, image: torch.Tensor) -> dict[str, torch.Tensor]:
        """Returns the detections of image (as `reading` says) with at least the least score and one of the classes."""
        return self.detect_in([image])[0]

    def detect_in(self, images: Sequence[torch.Tensor]) -> list[dict[str, torch.Tensor]]:
        """Returns `detect` of each image; on a GPU all at once, so they are to be padded to one shape."""
        seen = self.look_in(images)
        with self.counting:
            for _, counts in seen:
                self.recall(counts)
        return [found for found, _ in seen]

    def look_in(self, images: Sequence[torch.Tensor]) -> list[tuple[dict[str, torch.Tensor], dict[str, Any]]]:
        """Returns for each image its detections, as `detect_in`, and what it counts for, which is not counted yet."""
        what = f"prediction on an image of {images[0].shape[-1]}x{images[0].shape[-2]}"
        need = self._is_wanted if self.least_score > 0 or self.labels is not None else None
        with explaining_lack_of_memory(what, "try a smaller --max-size or fewer --box-detections-per-img"):
            found = detect(self.model, images, self.device, need)
        return [self._wanted(one, tuple(image.shape[-2:])) for one, image in zip(found, images, strict=True)]

    def _is_wanted(self, found: dict[str, torch.Tensor]) -> torch.Tensor:
        """Returns which detections have at least the least score and one of the classes, bool [D]."""
        keep = found["scores"] >= self.least_score
        return keep if self.labels is None else keep & torch.isin(found["labels"], self.labels.to(keep.device))

    def _wanted(
        self, found: dict[str, torch.Tensor], size: tuple[int, int]
    ) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        keep = found["scores"] >= self.least_score  # [D]
        full = int(keep.sum()) >= self.model.config.box_detections_per_img  # more of them may be there
        tiles = [0, int(full), 0]
        if self.tiled is not None:
            size, tiles = self.tiled.tiling.tile_size(size), found["tiles"].tolist()
            found = {key: value for key, value in found.items() if key != "tiles"}
        left_out = Counter({f"below --score {self.least_score:g}": int((~keep).sum())})
        if self.labels is not None:
            wanted = torch.isin(found["labels"], self.labels)
            left_out["of other classes than --classes"] = int((keep & ~wanted).sum())
            keep &= wanted
        counts = {"size": size, "best": self._best_of(found), "full": tiles[1], "left_out": left_out}
        counts |= {"tiles": tiles[0], "empty_tiles": tiles[2]}
        counts["doubt"] = doubt_of(found["scores"] if self.labels is None else found["scores"][wanted])
        return {key: value[keep] for key, value in found.items()}, counts

    def masks(self, found: dict, size: tuple[int, int]) -> CroppedMasks:
        """Returns the masks of an image, as it is or resized to size (H, W), where boxes lie."""
        if "masks" in found:
            return found["masks"] if found["masks"].size == tuple(size) else found["masks"].resize(size)
        where = found["boxes"], size, self.model.config.geometry, self.mask_threshold
        return mask_probs_to_bool(found["mask_probs"], *where)

    def results(
        self, found: dict, image_id: int, size: tuple[int, int], masks: CroppedMasks | None = None
    ) -> tuple[list[dict], int]:
        """Returns the detections in an image of size (H, W) as COCO results, and how many have a mask without a pixel.

        masks: `masks`, where they are at hand.
        """
        pasted, geometry = None if masks is None else [masks], self.model.config.geometry
        results = to_coco_results([found], [image_id], [size], self.label_map, geometry, self.mask_threshold, pasted)
        return results, sum(int(coco_mask.area(result["segmentation"])) == 0 for result in results)

    def draw(
        self, found: dict, image: torch.Tensor, style: Style, masks: CroppedMasks | None = None, longest: int = LONGEST
    ) -> tuple[Image.Image, bool]:
        """Returns the image with its detections on it, and whether it is smaller than asked for.

        longest: pixels a side that it has at most: a JPEG has LONGEST, what is drawn of Windows OVERVIEW. masks: as
        `masks`, where these are at hand.
        """
        size = tuple(image.shape[-2:])
        if isinstance(image, Windows):
            image, longest = image.overview(OVERVIEW), min(longest, OVERVIEW)
        image, style = shown(image, style.channels), replace(style, channels=None)
        fits, wanted = fitting_size(size, (longest, longest)), magnified(size, style.magnify)
        style = replace(style, magnify=max(min(wanted, longest // max(fits)), 1))
        boxes = scale_boxes(found["boxes"], size, fits)
        if masks is None or fits != size:
            masks = self.masks({**found, "boxes": boxes}, fits)
        instances = boxes, found["labels"], found["scores"], masks
        drawn = draw_detections(resized(image, fits), *instances, self.label_map.name, style)
        return drawn, style.magnify < wanted or fits != size

    def counted(self, found: dict) -> str:
        """Returns how many of each class were found: "12 person, 3 chair"; "nothing" for none."""
        counts = Counter(map(self.label_map.name, found["labels"].tolist()))
        return ", ".join(f"{count} {name}" for name, count in counts.most_common()) or "nothing"

    def describe(self, found: dict) -> list[str]:
        """Returns one line per detection: name, score, box."""
        return [
            f"{self.label_map.name(label)} {score:.3f} at {' '.join(f'{value:.1f}' for value in box)}"
            for label, score, box in zip(
                found["labels"].tolist(), found["scores"].tolist(), found["boxes"].tolist(), strict=True
            )
        ]

    def tally(self) -> dict[str, Any]:
        """Returns what the images so far count for in `status`, beside their sizes and the best score."""
        self.dropped += take_dropped()
        return {name: copy(getattr(self, name)) for name in TALLIED}

    def since(self, before: dict[str, Any]) -> dict[str, Any]:
        """Returns what a video counts for, as plain values for `recall`; before: the tally before it."""
        return {"best": self.best, **{name: value - before[name] for name, value in self.tally().items()}}

    def recall(self, counted: Mapping[str, Any]) -> None:
        """Counts an image for `status`: "size" (H, W), "best" (score, label), and what it has of TALLIED."""
        self.sizes.update([tuple(counted["size"])] if counted.get("size") else [])
        if "doubt" in counted and "image" in counted:
            self.doubts[counted["at"]] = counted["doubt"]
        known = [tuple(best) for best in (self.best, counted.get("best")) if best]
        self.best = max(known, key=lambda best: best[0], default=None)
        for name in TALLIED:
            own = getattr(self, name)
            count = counted.get(name, 0)
            setattr(self, name, own + (Counter(count or {}) if isinstance(own, Counter) else count))

    def limits(self) -> list[Limit]:
        """Returns the limits that the images met, which may have cost detections."""
        if self.tiled is None:
            full = full_images(self.full, self.model.config.box_detections_per_img)
        else:
            full = self.tiled.limits([self.tiles, self.full, self.empty_tiles])
        shrunk = shrunk_images(self.sizes.elements(), self.model.config, self.smallest_scale)
        return [*full, *shrunk, *dropped_limits(self.dropped + take_dropped())]

    def _best_of(self, found: dict) -> tuple[float, int] | None:
        """Returns the highest score of the classes wanted, and its label."""
        wanted = slice(None) if self.labels is None else torch.isin(found["labels"], self.labels)
        scores, labels = found["scores"][wanted], found["labels"][wanted]
        return (float(scores.max()), int(labels[scores.argmax()])) if len(scores) else None

    def _nothing_found(self) -> str:
        """Returns what the model came nearest to, what it knows, and what to try."""
        if self.best is None:
            near = "no detection has any score; --box-score-thresh 0 keeps the lowest, a larger --min-size shows more"
        else:
            score, label = self.best
            lower = math.floor(100 * score) / 100
            near = f"the best score is {score:.2f} ({self.label_map.name(label)}), below --score {self.least_score:g}; "
            near += f"try --score {lower:g}"
        return f"nothing found: {near}. The model knows {known_classes(self.label_map)}"

    def skip(self, error: ImageError) -> None:
        """Names and counts an image that could not be read; raises it under --strict."""
        if self.strict:
            raise error
        print(f"not predicted: {error}", file=sys.stderr, flush=True)
        self.broken.append(str(error))

    def status(self, images: int) -> int:
        """Says how many of the images were predicted; returns the exit status."""
        unreadable, first = len(self.broken), "".join(self.broken[:1])
        note = f", {unreadable:,} could not be read{', the first' * (unreadable > 1)}: {first}" if unreadable else ""
        partly = f", {self.in_part} in part" if self.in_part else ""
        if self.reduced:
            print(
                f"{counted(self.reduced, 'image', 'are')} drawn smaller: a JPEG has at most {LONGEST:,} pixels a side"
            )
        if self.unboxed:
            of = f"without boxes around masks, with more than {FEW} objects in an image (json and data sets have them)"
            print(f"{counted(self.unboxed, 'image', 'are')} drawn {of}")
        if self.sizes and (self.best is None or self.best[0] < self.least_score):
            print(self._nothing_found())
        left_out = ", ".join(f"{count} {why}" for why, count in self.left_out.items() if count)
        if left_out:
            print(f"left out: {left_out}")
        if self.empty:
            empty = counted(self.empty, "detection", "have")
            print(f"{empty} a mask without a pixel above --mask-threshold {self.mask_threshold:g}")
        for limit in self.limits():
            print(limit.line)
        print(f"{images - unreadable:,} of {counted(images, 'image')} predicted{partly}{note}")
        return EXIT_SOME_UNUSABLE if unreadable or self.in_part else EXIT_OK
