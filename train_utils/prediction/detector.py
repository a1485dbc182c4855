"""A model and its classes -> Results of images, however people have them in Python."""

from __future__ import annotations

import itertools
import sys
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from tqdm import tqdm

from network_files import MaskRCNN
from network_files.config import EACH_PAGE
from train_utils.checkpoints.checkpoint import is_checkpoint
from train_utils.cli.in_python import in_python_words, speaking_python
from train_utils.data.images import ImageError, take_dropped
from train_utils.data.images.reading import Reading
from train_utils.data.images.windows import Windows, is_bomb
from train_utils.data.in_python.images import image_of, is_one_image
from train_utils.data.labels import LabelMap
from train_utils.io.files import user_path
from train_utils.io.naming import naming
from train_utils.io.plain_text import counted
from train_utils.prediction.exporting.export import Export, export_model, format_of
from train_utils.prediction.looking import LookingOptions
from train_utils.prediction.predictor import Predictor, alike, one_by_one
from train_utils.prediction.results import Results
from train_utils.prediction.runtimes.exported_model import have_in_flight
from train_utils.processes.in_flight import in_order
from train_utils.show.image_lists import find_images, pages_of
from train_utils.show.video import is_video

LARGE = ("model", "ema", "optimizer", "lr_scheduler", "scaler")  # of a checkpoint, what is not kept beside the model
BATCHES_AHEAD = 8  # that images are gathered from, to be sorted by shape
SHOWN_AFTER = 3.0  # seconds, from which on a bar says how far a call has come


class Wanted(NamedTuple):
    """What a call wants of the detections, and how its images are taken."""

    score: float
    classes: str | Sequence[str] | None
    mask_threshold: float
    batch_size: int
    strict: bool
    looking: LookingOptions


class Detector:
    """A trained model, its classes, and what its file says beside them; call it with images.

    content: of the weights' file, {} for none.
    """

    def __init__(self, model: MaskRCNN, label_map: LabelMap, content: Mapping[str, Any]) -> None:
        self.model, self.label_map = model.eval(), label_map
        self.content = {key: value for key, value in content.items() if key not in LARGE}
        if is_checkpoint(dict(content)):
            self.content["model"] = None  # a checkpoint still, whose weights are in the model

    def export(
        self,
        path: str | Path,
        format: str | None = None,
        batch: int | None = 1,
        check: str | Path | Iterable[Any] = (),
        postprocess: str | None = None,
    ) -> dict[str, Any]:
        """Writes the model as a file of a runtime, proven on drawn images and on those of check.

        path: .onnx, .pt2, or a new folder for OpenVINO; format: onnx, openvino or torch_export, None: by the
        path; batch: images at a time, None for any number; check: images as for a call, a path, a folder or a glob;
        postprocess: "uint8" or "float" puts resize and paste into the file, which then takes an image as it is. Returns
        the largest differences between the detections of both. Raises InputError, and leaves no file, above 0.01
        pixels, 0.0001 in scores or 0.001 in masks; `load` opens the file.
        """
        with speaking_python():
            reading = Reading.of(self.model.config)
            given = [check] if isinstance(check, str | Path) else check
            found = ([value] if not isinstance(value, str | Path) else _files(value) for value in given)
            values = itertools.chain.from_iterable(found)
            images = [image_of(value, f"image {i}", reading) for i, value in enumerate(values)]
            export = Export(user_path(path), format or format_of(path), batch, photo=postprocess)
            return export_model(self.model, self.label_map, self.content, export, images).record()

    @property
    def names(self) -> list[str]:
        """The classes that it knows."""
        return list(self.label_map.names)

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return next(self.model.parameters()).device

    def __call__(
        self,
        images: Any,
        score: float = 0.5,
        classes: str | Sequence[str] | None = None,
        mask_threshold: float = 0.5,
        batch_size: int = 4,
        strict: bool = True,
        tile: int | str | None = None,
        overlap: float | None = None,
        tta: str | None = None,
    ) -> Results | list[Results] | Iterator[Results]:
        """Finds objects: Results of one image, a list of those of several, an iterator where an iterator gives them.

        images: a path, bytes, a PIL image, a numpy array [H, W] or [H, W, 3] (uint8, uint16, or float in 0..1), a
        tensor [H, W] or [3, H, W]; or several of them; a path may be a folder or a glob.
        score: least score; classes: names, None for all; mask_threshold: a mask's pixels are those with a probability
        above it; batch_size: images at a time on a GPU, and the most that are in work at once where an exported file
        has many, which changes no number; strict: an image file that cannot be read is an error, else it is left out
        with a warning; tile: images are looked at in tiles of so many pixels a
        side ("auto": those of training, or of a size that suits its images), of which neighbours share `overlap` of a
        side (default 0.2, with "auto" that of training), and what they show is joined; tta: "flips" averages over the
        mirror images that training had. Of a model that takes each page as an image, a file of several pages is
        several.
        """
        with speaking_python():
            looking = LookingOptions(tile=tile if tile is None else str(tile), overlap=overlap, tta=tta)
        each_page = self.model.config.pages == EACH_PAGE
        if each_page and isinstance(images, str | Path) and is_one_image(images):
            pages = pages_of(user_path(images))
            images = pages if len(pages) > 1 else images
        if is_one_image(images):
            (one,) = self._detect([images], Wanted(score, classes, mask_threshold, 1, strict=True, looking=looking))
            return one
        wanted = Wanted(score, classes, mask_threshold, batch_size, strict, looking)
        if isinstance(images, str | Path):
            with speaking_python():
                images = find_images([str(images)])
            videos = [path for path in images if is_video(path)]
            if videos:
                warnings.warn(
                    f"{counted(len(videos), 'video')} left out, such as {videos[0]}: predict.py reads videos",
                    stacklevel=2,
                )
            images = [path for path in images if path not in videos]
            if each_page:
                images = [page for path in images for page in pages_of(path)]
        found = self._detect(images, wanted)
        return found if isinstance(images, Iterator) else list(found)

    def _detect(self, images: Iterable[Any], wanted: Wanted) -> Iterator[Results]:
        """Yields the Results of each image, in order; warns at the end of the limits that were met."""
        take_dropped()  # of images that others read
        thresholds = wanted.score, wanted.mask_threshold, wanted.classes, wanted.strict
        smallest = self.content.get("smallest_scale")
        with speaking_python():
            looking = wanted.looking.looking(self.model.eval(), self.content, wanted.mask_threshold)
            predictor = Predictor(looking, self.label_map, *thresholds, smallest)
        at_once = 1 if one_by_one(self.device) else wanted.batch_size * BATCHES_AHEAD
        count = len(images) if hasattr(images, "__len__") else None
        with speaking_python():
            have_in_flight(self.model, 1 if predictor.tiled or count is None else count, wanted.batch_size)
        silent = None if "ipykernel" not in sys.modules else False  # a notebook is no terminal
        with tqdm(total=count, unit="image", disable=True if count == 1 else silent, delay=SHOWN_AFTER) as bar:
            look = partial(self._looked, predictor, wanted)
            read = _read(images, at_once, predictor.reading, wanted.strict)
            with speaking_python(), closing(in_order(look, read, predictor.in_flight)) as all_looked:
                for some, counts, left_out in all_looked:
                    for error in left_out:
                        warnings.warn(f"left out: {error}", stacklevel=2)
                    for of_image in counts:
                        predictor.recall(of_image)
                    yield from some
                    bar.update(len(some) + len(left_out))
        for line in [*wanted.looking.notes(self.content), *(limit.line for limit in predictor.limits())]:
            warnings.warn(in_python_words(line), stacklevel=3)

    def _looked(
        self, predictor: Predictor, wanted: Wanted, some: list[tuple[int, Any, torch.Tensor | ImageError]]
    ) -> tuple[list[Results], list[dict], list[ImageError]]:
        """Returns the Results of some images, as of `_read`, what each counts for, and the errors of those left out.

        They run in batches of those that are padded to one shape.
        """
        images = [(number, image) for number, _, image in some if not isinstance(image, ImageError)]
        found, counts, values = {}, [], {number: value for number, value, _ in some}
        left_out = [image for _, _, image in some if isinstance(image, ImageError)]
        for numbers, batch in alike(images, self.model.config, 1 if predictor.tiled else wanted.batch_size):
            try:
                with naming(*(_source(values[number], number) for number in numbers)):
                    looked = predictor.look_in(batch)
            except ImageError as error:  # of an image that is read in parts
                if wanted.strict:
                    raise
                left_out.append(error)
                continue
            for number, image, (one, count) in zip(numbers, batch, looked, strict=True):
                found[number] = self._results(values[number], number, image, one, wanted)
                counts.append(count)
        return [found[number] for number in sorted(found)], counts, left_out

    def _results(
        self, value: Any, number: int, image: torch.Tensor, found: dict[str, torch.Tensor], wanted: Wanted
    ) -> Results:
        """Returns the Results; an image of a file is read again where it is drawn, others are kept."""
        a_file = isinstance(value, str | Path)
        beyond = isinstance(image, Windows) and is_bomb(image.shape[-2:])
        reading = replace(Reading.of(self.model.config), by_windows=beyond)
        again = partial(image_of, value if a_file else image, reading=reading)  # can be pickled
        # cloned outside of inference mode, tensors may be changed
        found = {key: value.clone() if isinstance(value, torch.Tensor) else value for key, value in found.items()}
        source = _source(value, number)
        size, geometry = tuple(image.shape[-2:]), self.model.config.geometry
        return Results(found, size, self.label_map, geometry, again, source, wanted.mask_threshold)

    def __repr__(self) -> str:
        config = self.model.config
        few = ", ".join(self.names[:4]) + (", ..." if len(self.names) > 4 else "")
        classes = f"{counted(len(self.names), 'class')}: {few}"
        return f"Detector({config.backbone} {config.variant}, {classes}; {self.device})"


def _files(place: str | Path) -> list[Path]:
    """Returns the images that a path, a folder or a glob names."""
    return [path for path in find_images([str(place)], flag="--check") if not is_video(path)]


def _source(value: Any, number: int) -> str:
    """Returns what an image is called: a file's path, or its number."""
    return str(value) if isinstance(value, str | Path) else f"image {number}"


def _read(
    images: Iterable[Any], at_once: int, reading: Reading, strict: bool
) -> Iterator[list[tuple[int, Any, torch.Tensor | ImageError]]]:
    """Yields (number, value, image) of some images at a time; in place of one that cannot be read its error."""
    numbered = enumerate(images)
    while some := list(itertools.islice(numbered, at_once)):
        read = []
        for number, value in some:
            try:
                read.append((number, value, image_of(value, f"image {number}", reading)))
            except ImageError as error:
                if strict:
                    raise
                read.append((number, value, error))
        yield read
