"""Mask R-CNN in Python: all that a notebook imports.

    import maskrcnn

    detector = maskrcnn.load("coco")                         or "runs/mine/model_best.pth"
    results = detector("photo.jpg")                          a path, bytes, a PIL image, an array, a tensor, or many
    results.names, results.scores, results.masks[0], results.polygons(max_points=40), results.draw()

    run = maskrcnn.train("DATA", epochs=10)                  a path, DataOptions, or torch Datasets of (image, target)
    maskrcnn.validate(run.best, "DATA")["segm"]["AP"]

docs/python.md has ten tasks. What cannot be meant raises InputError, a ValueError of one line.
"""

from __future__ import annotations

import signal
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import backbone  # noqa: F401  isort: skip  before torch, for how its threads wait
import torch
from torch.utils.data import Dataset

from network_files import InputError, create_model, load_weights
from network_files.weight_files.weights import PUBLISHED
from train_utils.checkpoints.checkpoint import (
    COCO_LABELS,
    check_classes,
    default_label_map,
    load_file,
    model_from_checkpoint,
)
from train_utils.checkpoints.held_out import Scored
from train_utils.checkpoints.run_folder import best_checkpoint
from train_utils.checkpoints.weights_source import weights_file
from train_utils.cli.device import pick_device
from train_utils.cli.flags import given_model, given_settings, settings_of
from train_utils.cli.in_python import in_python_words, speaking_python
from train_utils.cli.suggestions import no_such
from train_utils.data.augmentations.own import OwnAugmentation
from train_utils.data.images.reading import Reading
from train_utils.data.in_python.data_sets import data_set_of
from train_utils.data.labels import LabelMap
from train_utils.data.opening import DataSplits, refuse_no_image, refuse_single, split_positions
from train_utils.data.options import DataOptions, LoaderOptions
from train_utils.evaluation.limits import MAX_DETS, record_of
from train_utils.evaluation.mistakes import IMAGES, Evaluated, write_report
from train_utils.evaluation.numbers import STAT_NAMES
from train_utils.io.files import make_folder, user_path
from train_utils.io.version import __version__
from train_utils.logs.callbacks import Functions
from train_utils.logs.result_files import history
from train_utils.prediction.data import OF_DATA, open_split_of
from train_utils.prediction.detector import Detector
from train_utils.prediction.looking import LookingOptions
from train_utils.prediction.model import exported_with_classes, with_date
from train_utils.prediction.results import Results, save_data_set
from train_utils.prediction.runtimes.exported_model import have_in_flight
from train_utils.prediction.runtimes.opening import is_exported
from train_utils.processes.distributed import World
from train_utils.run.config import Augmentation, RunConfig
from train_utils.run.defaults import fixed_range
from train_utils.run.epochs import Additions
from train_utils.run.evaluation import detections_per_image, measure, write_measured
from train_utils.run.loop import run as run_training

__all__ = [
    "DataOptions", "Detector", "InputError", "Results", "Run", "__version__", "load", "save_data_set", "train",
    "validate",
]  # fmt: skip


def __dir__() -> list[str]:
    """Returns what is there to be used: a notebook completes names from it."""
    return list(__all__)


Weights = str | Path | dict[str, Any]
Data = str | Path | DataOptions | Dataset
Names = Sequence[str] | Mapping[int, str]
Told = Callable[[dict[str, Any]], Any]


@speaking_python()
def load(
    weights: Weights, device: str | torch.device | None = None, names: Names | None = None, **config: Any
) -> Detector:
    """Returns a detector.

    weights: "coco" or "coco_v2" (torchvision's, fetched once), the path of a run folder (its best checkpoint), of a
    checkpoint, of a state dict, of safetensors or of an exported file, or a state dict; device: None takes a GPU where
    there is one; names: of the classes in the order of their labels, for weights that don't know them; config: fields
    of MaskRCNNConfig that precede the file's (box_score_thresh, ...).
    Raises InputError for what is no such file, or does not fit.
    """
    if "num_classes" in config:
        raise InputError("num_classes: the weights have their own; leave it out")
    given_device, device = device, pick_device("auto" if device is None else str(device))
    label_map = None if names is None else label_map_of(names)
    if isinstance(weights, str) and weights in PUBLISHED:
        variant = {} if weights == "coco" else {"variant": PUBLISHED[weights][1]}
        model = create_model(COCO_LABELS, **{**variant, **config})
        load_weights(model, weights)
        label_map = label_map or default_label_map(COCO_LABELS)
        check_classes(weights, COCO_LABELS, label_map)
        return Detector(model.to(device), label_map, {})
    if isinstance(weights, str | Path) and is_exported(user_path(weights)):
        if device.type != "cpu" and given_device is not None:
            raise InputError(f"device {given_device}: an exported file runs on the CPU; leave it out")
        model, label_map = exported_with_classes(user_path(weights), label_map, **config)
        return Detector(model, label_map, model.content)
    source = weights if isinstance(weights, dict) else weights_file(weights)
    content = weights if isinstance(weights, dict) else with_date(source, load_file(source))
    model, label_map = model_from_checkpoint(source, device, label_map, content, **config)
    return Detector(model, label_map, content)


@dataclass(frozen=True)
class Run:
    """A training run, by its folder: the one that `train` returns, or any other."""

    folder: Path

    def __post_init__(self) -> None:
        object.__setattr__(self, "folder", Path(self.folder))

    @property
    def best(self) -> Path:
        """The checkpoint with the highest mask AP; where none has one, with the lowest validation loss."""
        return best_checkpoint(self.folder)

    @property
    def history(self) -> list[dict[str, Any]]:
        """A flat row of each epoch: epoch, loss, val_loss, segm_AP and so on; pandas.DataFrame takes it."""
        return history(self.folder)

    def detector(self, device: str | torch.device | None = None, **config: Any) -> Detector:
        """Returns a detector with the best weights; config: as in `load`."""
        return load(self.best, device, **config)


@speaking_python()
def train(
    data: Data | None = None,
    val: Dataset | None = None,
    *,
    names: Names | None = None,
    augment: Callable[..., tuple[Any, dict]] | str | None = None,
    on_step: Told | None = None,
    on_epoch: Told | None = None,
    **options: Any,
) -> Run:
    """Trains, and evaluates after each epoch; returns the run.

    data: a path, DataOptions, or a torch Dataset of (image, target) as torchvision's models take them; None: the
    built-in shapes. val: the Dataset to evaluate on, without which a share of data is held out; names: of a Dataset's
    classes in the order of their labels 1..C. augment: (image, target) or (image, target, rng) -> (image, target), in
    place of the options' augmentation, or a word as --augment takes it; on_step, on_epoch: are given a dict of numbers.
    options: those of RunConfig and fields of MaskRCNNConfig, which are the flags of train.py: epochs, batch_size,
    output_dir, resume="auto", ...

    Ctrl-C ends the step, saves, and raises KeyboardInterrupt: the same call with resume="auto" goes on from there.
    Raises InputError for wrong input.
    """
    given = {**options, **options_of(data), **({"augment": augment} if isinstance(augment, str) else {})}
    if options.get("test_only"):
        raise InputError("test_only: validate(weights, data) measures without training")
    refuse_ignored(data, options, () if val is not None else ("val_fraction",))
    own = sorted(options.keys() & {f.name for f in fields(Augmentation)})
    if callable(augment) and own:
        raise InputError(f"{', '.join(own)}: augment takes the place of the built-in augmentation; give one of them")
    config = RunConfig.of(given)
    splits = None
    if isinstance(data, Dataset):
        splits = splits_of(data, val, None if names is None else label_map_of(names), config)
        given["data_path"] = f"{type(data).__name__} (a torch Dataset)"
    elif val is not None or names is not None:
        raise InputError("val and names go with a torch Dataset as data; a path has both of its own")
    functions = (Functions(on_step, on_epoch),) if on_step or on_epoch else ()
    additions = Additions(splits, OwnAugmentation(augment) if callable(augment) else None, functions)
    try:
        return Run(run_training(given, World.single(pick_device(config.device)), additions=additions))
    except SystemExit as stop:
        if stop.code != 128 + signal.SIGINT:
            raise
        raise KeyboardInterrupt('stopped; the same call with resume="auto" goes on from what is saved') from None


@speaking_python()
def validate(
    weights: Weights | Detector,
    data: Data | None = None,
    *,
    names: Names | None = None,
    output_dir: str | Path | None = None,
    report: bool = False,
    max_dets: int = MAX_DETS,
    **options: Any,
) -> dict[str, Any]:
    """Returns the COCO numbers: "bbox" and "segm" (12 by name each), "per_class" (for each of the two, AP50 by name).

    Beside them: "loss" (None: of an exported file), "images" and "limits", and with output_dir "files", what was
    written; -1 and None: there is no such object. weights: a detector, or what `load` takes; data: as for `train`,
    None: what the weights were trained with; names: as for `load`; report: write a page about the mistakes, whose path
    is "report"; max_dets: detections of a class in an image that AP counts. options: of the data, of its loading
    (batch_size, workers, strict), of looking at images (tile, overlap, tile_empty, tta, as of a Detector), device, and
    fields of MaskRCNNConfig.
    """
    given, loading = {**options, **options_of(data)}, LoaderOptions(**given_settings(LoaderOptions, options))
    max_dets = RunConfig(max_dets=MAX_DETS if max_dets is None else max_dets).max_dets  # of the flag's bounds
    model_options, device = given_model(options), options.get("device")
    looking = LookingOptions(**given_settings(LookingOptions, options))
    known = {*model_options, *settings_of(LoaderOptions), *settings_of(LookingOptions), *OF_DATA, "device"}
    if unknown := given.keys() - known:
        raise InputError(no_such(unknown, known, "validate"))
    refuse_ignored(data, options)
    if isinstance(weights, Detector):
        if model_options or device is not None or names is not None:
            raise InputError("a detector has its settings already; give device, names and the model's options to load")
        detector = weights
    else:
        detector = load(weights, device, names, **model_options)
    source = str(weights) if isinstance(weights, str | Path) else "the weights"
    model = looking.looking(detector.model, detector.content)
    reading = Reading.of(model.config)
    if isinstance(data, Dataset):
        data_set = data_set_of(data, detector.label_map, steady=True, reading=reading)
        scored = Scored(data_set, len(data_set), [])
        print(data_set.describe())
    else:
        scored, _ = open_split_of(detector.content, "val", {**given, "weights_path": source}, detector.label_map)
        reading = replace(reading, by_windows=looking.tile is not None)
        data_set = scored.data_set.read_as(reading)
    smallest = detector.content.get("smallest_scale")
    have_in_flight(model, len(data_set), options.get("batch_size"))
    result = measure(model, data_set, loading, World.single(detector.device), max_dets, smallest)
    for line in [
        *looking.notes(detector.content),
        *(f"not evaluated: {name}" for name in result.found.skipped),
        *(limit.line for limit in result.limits),
    ]:
        warnings.warn(in_python_words(line), stacklevel=3)
    numbers = {t: dict(zip(STAT_NAMES, found.stats, strict=True)) for t, found in result.stats.items()}
    numbers["per_class"] = {t: found.per_class for t, found in result.stats.items()}
    numbers |= {"loss": sum(result.losses.values()) if result.losses else None, "images": len(result.found.image_ids)}
    numbers["limits"] = record_of(result.limits)
    if output_dir is None and not report:
        return numbers
    folder = make_folder(user_path(output_dir or "."))
    numbers["files"], notes = write_measured(folder, result, scored, max_dets)
    for line in notes:
        warnings.warn(in_python_words(line), stacklevel=3)
    if report:
        evaluated = Evaluated(source, result.stats, result.found.results, data_set, sorted(result.found.image_ids))
        limits = {"max_dets": max_dets, "limits": result.limits, "progress": detector.content.get("progress")}
        limits["per_image"] = detections_per_image(model)
        page = write_report(folder, evaluated._replace(**limits), IMAGES, loading.strict)
        numbers["report"] = page.path
    return numbers


def label_map_of(names: Names) -> LabelMap:
    """Returns the label map of names in the order of labels 1..C, or by label."""
    if isinstance(names, str):
        raise InputError(f"names {names!r}: give a list of names, or a dict by label")
    return LabelMap.from_names(dict(names) if isinstance(names, Mapping) else dict(enumerate(names, start=1)))


def options_of(data: Data | None) -> dict[str, Any]:
    """Returns what data says as options: those of its fields that differ from their defaults."""
    if isinstance(data, DataOptions):
        settings = given_settings(DataOptions, vars(data))
        return {name: value for name, value in settings.items() if value != getattr(DataOptions(), name)}
    if data is None or isinstance(data, Dataset):
        return {}
    if not isinstance(data, str | Path):
        raise InputError(f"data is a {type(data).__name__}: give a path, DataOptions, or a torch Dataset")
    return {"data_path": str(data)}


def refuse_ignored(data: Data | None, options: Mapping[str, Any], used: Sequence[str] = ()) -> None:
    """Raises InputError for options that data leaves without effect: it says them otherwise, or has no files.

    used: the options of files that a torch Dataset has a use for, beside seed and strict.
    """
    said, usual = options_of(data), DataOptions()
    twice = [name for name, value in said.items() if name in options and str(options[name]) != str(value)]
    if twice:
        raise InputError(f"{', '.join(twice)}: data says another value; give one of them")
    if not isinstance(data, Dataset):
        return
    names = settings_of(DataOptions).keys() & options.keys() - {"seed", "strict", *used}
    if ignored := sorted(name for name in names if options[name] != getattr(usual, name)):
        raise InputError(f"{', '.join(ignored)}: without effect, as data is a torch Dataset; leave it out")


def splits_of(data: Dataset, val: Dataset | None, label_map: LabelMap | None, config: RunConfig) -> DataSplits:
    """Returns the data sets of torch Datasets; without val a share of data is held out, as of a folder without one."""
    reading = Reading(config.value("channels") or 3, value_range=fixed_range(config.value("value_range")))
    train_set = data_set_of(data, label_map, steady=val is None, reading=reading)
    label_map = train_set.label_map
    if val is not None:
        return DataSplits(train_set, data_set_of(val, label_map, True, reading), label_map)
    refuse_single(train_set.source, train_set)
    halves = split_positions(train_set, config.val_fraction, config.seed)
    splits = DataSplits(*(train_set.subset(positions) for positions in halves), label_map)
    for role, part in splits.by_role().items():
        refuse_no_image(train_set.source, role, part)
    return splits
