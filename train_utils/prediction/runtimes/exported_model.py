"""An exported file, opened -> what is called like the model that it was made of, with the same detections."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from backbone.errors import InputError
from network_files import CroppedMasks, MaskRCNN
from network_files.config import MaskRCNNConfig
from network_files.heads.detections import Detections
from network_files.shared import Shared
from network_files.transform import WHITE, Transform, check_image
from train_utils.checkpoints.checkpoint import is_checkpoint
from train_utils.data.labels import LabelMap
from train_utils.io.memory import is_lack_of_memory
from train_utils.io.plain_text import one_line

OUTSIDE = ("min_size", "max_size", "fixed_size")  # fields of the config that the file does not have built in
# (images [N, C, h, w], sizes float [N, 2]) -> boxes, labels, scores, masks, image, as of `exporting.graph.CoreGraph`;
# or photo [C, H, W] -> boxes, labels, scores, masks, as of `exporting.whole_image`
Run = Callable[..., list[Tensor]]
MOST_IN_FLIGHT = 8  # images that are in work at once; each takes memory
IMAGES_EACH = 8  # of a thread: fewer don't repay to open the file again


class ExportedModel(nn.Module):
    """A model of a file: images are prepared and detections moved back as MaskRCNN does, a runtime does the rest.

    run: the file's; about: its description, `describe`'s; config: fields of OUTSIDE that precede the file's.
    in_flight: images that may be in work at once, each in a thread that calls the model; see `have_in_flight`.
    """

    to_original = MaskRCNN.to_original

    def __init__(self, run: Run, about: Mapping[str, Any], **config: Any) -> None:
        super().__init__()
        built_in = sorted(config.keys() - set(OUTSIDE))
        if built_in:
            raise InputError(f"{', '.join(built_in)}: is built into an exported file; give it to the export")
        self.shared = Shared(MaskRCNNConfig.from_dict({**about["config"], **config}))
        self.transform = Transform(self.shared)
        self.run, self.about = run, about
        self.in_flight, self.open_again, self.file = 1, None, None
        self.place = nn.Parameter(torch.empty(0), requires_grad=False)  # asked for as any model's, for its device

    in_flight: int
    open_again: Callable[[int], Run] | None  # by the number in flight; None: the file has one at a time
    file: Path | None  # or folder; None: it is not known

    @property
    def config(self) -> MaskRCNNConfig:
        """The config that the file was made with."""
        return self.shared.config

    @property
    def content(self) -> dict[str, Any]:
        """What the checkpoint said beside its weights."""
        return dict(self.about["content"])

    @property
    def label_map(self) -> LabelMap:
        """The classes."""
        return LabelMap.from_dict(self.about["label_map"])

    def forward(
        self, images: list[Tensor], targets: list[dict] | None = None, paste_masks: bool = True, needs: object = None
    ) -> list[dict[str, Tensor]] | tuple[dict[str, Tensor], list[dict[str, Tensor]]]:
        """Returns the detections, with targets ({}, detections): a file has no losses, and gives each its mask.

        needs: without effect.
        """
        at_once = self.about["batch"] or len(images)
        found = []
        for i in range(0, len(images), at_once):
            found += self._detect(images[i : i + at_once], at_once, paste_masks)
        return found if targets is None else ({}, found)

    def computed(self, *inputs: Tensor) -> list[Tensor]:
        """Returns what the runtime makes of the inputs; raises InputError where it fails."""
        if self.run is None:  # it could not be opened again: what is wrong is said each time
            self.run = self.open_again(self.in_flight)
        try:
            return self.run(*inputs)
        except Exception as error:  # the runtimes' errors have no common class
            if is_lack_of_memory(error):
                raise
            less = "; where memory is short, --batch-size 1 takes one image at a time" * (self.in_flight > 1)
            raise InputError(f"the file's runtime fails ({one_line(str(error))[:200]}){less}") from error

    def _detect(self, images: list[Tensor], at_once: int, paste: bool) -> list[dict[str, Tensor]]:
        """Returns the detections of a batch, which is filled up to as many images as the file takes."""
        batch = self.transform.batch([*images, *itertools.repeat(images[-1], at_once - len(images))], None, False,
                                     torch.float32)  # fmt: skip
        sizes = torch.tensor(batch.sizes, dtype=torch.float32)
        boxes, labels, scores, masks, image = self.computed(batch.images, sizes)
        counts = torch.bincount(image, minlength=len(batch.sizes)).tolist()
        return self.to_original(Detections(counts, boxes, labels, scores, masks), batch, paste)[: len(images)]


class WholeModel(ExportedModel):
    """A model of a file that takes images as they are and gives masks of their size, set above a half.

    With paste_masks=False masks are CroppedMasks under "masks", as those of tiles; else 0 and 1, as floats.
    """

    def __init__(self, run: Run, about: Mapping[str, Any], **config: Any) -> None:
        if config:
            raise InputError(
                f"{', '.join(sorted(config))}: is built into a file of --postprocess; give it to the export"
            )
        super().__init__(run, about)
        self.mask_threshold = 0.5

    def _detect(self, images: list[Tensor], at_once: int, paste: bool) -> list[dict[str, Tensor]]:
        """Returns the detections of a batch of one image."""
        image, photo = images[0], self.about["photo"]
        check_image(image, "image", channels=self.config.channels)
        if photo == "uint8" and image.dtype != torch.uint8:
            raise InputError(f"image is {image.dtype}: the file takes uint8; export it with --postprocess float")
        if photo == "float" and not image.is_floating_point():
            image = image.float() / WHITE[image.dtype]
        boxes, labels, scores, masks = self.computed(image if photo == "uint8" else image.float())
        masks = masks[:, None].float() if paste else CroppedMasks.from_masks(masks)
        return [{"boxes": boxes, "labels": labels, "scores": scores, "masks": masks}]


def filled_up(model: nn.Module) -> str | None:
    """Returns a line on a file of a fixed number of images, which is filled up where images come one by one."""
    batch = (model.about["batch"] or 1) if isinstance(model, ExportedModel) else 1
    if batch == 1:
        return None
    return f"the file takes {batch} images at a time and gets one here, in {batch} times the time; export --batch 1"


def have_in_flight(model: nn.Module, images: int, most: int | None = None) -> str | None:
    """Lets the runtime of an exported file work on several images at once, where there are many; returns a line on it.

    An image for each core takes 0.95 to 0.99 of the time of threads that share one (docs/deploy.md, two cores). Opens
    the file again where the number changes; results are the same for any. images: that are to come; most: at once.
    None: one at a time.
    """
    if not isinstance(model, ExportedModel) or model.open_again is None:
        return None
    threads = torch.get_num_threads()
    count = max(min(MOST_IN_FLIGHT, threads, images // IMAGES_EACH, *([] if most is None else [most])), 1)
    if count != model.in_flight:
        model.run = None  # gives back its memory before the next takes it
        model.run, model.in_flight = model.open_again(count), count
    each = threads // count
    return (
        f"{count} images are in work at once, each on {each} of {threads} threads (--batch-size 1: one after another)"
        if count > 1
        else None
    )


def describe(
    config: MaskRCNNConfig, label_map: LabelMap, content: Mapping[str, Any], batch: int | None, photo: str | None = None
) -> dict[str, Any]:
    """Returns what an exported file says of itself, as plain values; batch: images at a time, None for any number.

    photo: the type of the images as they are that it takes, None: it takes prepared ones. content:
    of the weights' file; of that what JSON has no form for is left out, as are the weights and the curve of the loss.
    """
    names = ["background", *(label_map.name(i) if label_map.has_label(i) else "" for i in range(1, config.num_classes))]
    about = {"format_version": 1, "names": names, "batch": batch, "photo": photo, "config": config.to_dict()}
    kept = {key: value for key, value in content.items() if _is_plain(value)}
    if isinstance(progress := content.get("progress"), dict):  # by which the images of its training are known
        kept["progress"] = {key: value for key, value in progress.items() if _is_plain(value) and value != math.inf}
    if is_checkpoint(dict(content)):
        kept |= {"config": about["config"], "model": None}  # a checkpoint still, whose weights are elsewhere
    return {**about, "label_map": label_map.to_dict(), "content": kept}


def _is_plain(value: Any) -> bool:
    """Returns whether JSON has a form for a value: of None, numbers, text, lists and dicts by text."""
    if isinstance(value, dict):
        return all(isinstance(key, str) and _is_plain(inner) for key, inner in value.items())
    if isinstance(value, list | tuple):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, bool | int | float | str)
