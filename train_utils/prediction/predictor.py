"""An image -> its detections, as COCO results, as a drawn image, as lines of text."""

from __future__ import annotations

import math
import sys
import threading
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from PIL import Image
from pycocotools import mask as coco_mask

from network_files import InputError, MaskRCNN, MaskRCNNConfig
from network_files.heads.detections import NeedsMask
from network_files.operators.boxes import scale_boxes
from network_files.operators.cropped_masks import CroppedMasks
from network_files.operators.instance_masks import mask_probs_to_bool
from network_files.transform import padded_size
from train_utils.cli.command import EXIT_OK, EXIT_SOME_UNUSABLE, EXIT_WRONG_INPUT
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
from train_utils.prediction.tally import Tally
from train_utils.show.captions import FEW
from train_utils.show.drawing import Style, draw_detections, fitting_size, magnified, resized

LONGEST = 65_500  # pixels a side that a JPEG can have


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
        if getattr(model, "mask_threshold", mask_threshold) != mask_threshold:
            raise InputError(f"mask_threshold: {model.mask_threshold} is built into the file; leave it out")
        self.least_score, self.mask_threshold = least_score, mask_threshold
        self.reading = replace(Reading.of(model.config), by_windows=self.tiled is not None)
        self.labels = None if classes is None else torch.tensor(labels_of(label_map, classes))
        self.strict, self.smallest_scale = strict, smallest_scale
        self.images, self.frames = Tally(), Tally()  # of images, of frames of videos
        self.counting = threading.Lock()  # `detect` may be called from several threads
        self.broken: list[str] = []  # of the images that could not be read, what each error said
        self.in_part = 0  # videos that could be read in part
        self.doubts: dict[int, float] = {}  # of images by position, see `doubt_of`

    @property
    def in_flight(self) -> int:
        """Images that may be looked at beside each other, each in a thread."""
        return getattr(self.model, "in_flight", 1)

    def detect(self, image: torch.Tensor, tally: Tally | None = None) -> dict[str, torch.Tensor]:
        """Returns the detections of image (as `reading` says) with at least the least score and one of the classes.

        tally: where it counts, in place of `images`.
        """
        ((found, counts),) = self.look_in([image])
        with self.counting:
            (tally or self.images).add(counts)
        return found

    def look_in(self, images: Sequence[torch.Tensor]) -> list[tuple[dict[str, torch.Tensor], dict[str, Any]]]:
        """Returns for each image its detections, as `detect`, and what it counts for, which is not counted yet.

        On a GPU all at once, so they are to be padded to one shape.
        """
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
        counts = {"sizes": [(size, 1)], "best": self._best_of(found), "full": tiles[1], "left_out": left_out}
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

    def is_unboxed(self, found: dict, style: Style) -> bool:
        """Returns whether `draw` leaves out boxes that the style has, as the objects are more than FEW."""
        return style.boxes and len(found["labels"]) > FEW

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

    def recall(self, counted: Mapping[str, Any]) -> None:
        """Counts for `status` an image, or the frames of a video."""
        if "doubt" in counted and "image" in counted:
            self.doubts[counted["at"]] = counted["doubt"]
        self.in_part += counted.get("in_part", 0)
        self.images.add(counted)
        self.frames.add(counted.get("frames", {}))

    def limits(self) -> list[Limit]:
        """Returns the limits that the images met, which may have cost detections."""
        met = []
        for what, tally in (("image", self.images), ("frame", self.frames)):
            if self.tiled is None:
                met += full_images(tally.full, self.model.config.box_detections_per_img, what)
            else:
                met += self.tiled.limits([tally.tiles, tally.full, tally.empty_tiles])
            met += shrunk_images(tally.sizes.elements(), self.model.config, self.smallest_scale, what)
        return [*met, *dropped_limits(self.images.dropped + take_dropped())]

    def _best_of(self, found: dict) -> tuple[float, int] | None:
        """Returns the highest score of the classes wanted, and its label."""
        wanted = slice(None) if self.labels is None else torch.isin(found["labels"], self.labels)
        scores, labels = found["scores"][wanted], found["labels"][wanted]
        return (float(scores.max()), int(labels[scores.argmax()])) if len(scores) else None

    def _nothing_found(self, best: tuple[float, int] | None) -> str:
        """Returns what the model came nearest to (score and label), what it knows, and what to try."""
        if best is None:
            near = "no detection has any score; --box-score-thresh 0 keeps the lowest, a larger --min-size shows more"
        else:
            score, label = best
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
        every = Tally()
        for what, tally in (("image", self.images), ("frame", self.frames)):
            every.add(tally.plain())
            if tally.reduced:
                smaller = f"{counted(tally.reduced, what, 'are')} drawn smaller"
                print(f"{smaller}: a JPEG has at most {LONGEST:,} pixels a side")
            if tally.unboxed:
                of = "an image (json and data sets have them)" if what == "image" else "a frame"
                unboxed = f"{counted(tally.unboxed, what, 'are')} drawn without boxes around masks"
                print(f"{unboxed}, with more than {FEW} objects in {of}")
        if every.sizes and (every.best is None or every.best[0] < self.least_score):
            print(self._nothing_found(every.best))
        left_out = ", ".join(f"{count} {why}" for why, count in every.left_out.items() if count)
        if left_out:
            print(f"left out: {left_out}")
        if self.images.empty:
            empty = counted(self.images.empty, "detection", "have")
            print(f"{empty} a mask without a pixel above --mask-threshold {self.mask_threshold:g}")
        for limit in self.limits():
            print(limit.line)
        print(f"{images - unreadable:,} of {counted(images, 'image')} predicted{partly}{note}")
        if unreadable == images > 0:
            return EXIT_WRONG_INPUT
        return EXIT_SOME_UNUSABLE if unreadable or self.in_part else EXIT_OK
