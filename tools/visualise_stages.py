"""Shows what each stage of Mask R-CNN sees of one image: an image for each stage, and a page that explains them.

    python -m tools.visualise_stages --weights-path save_weights/model_best.pth --index 3
    python -m tools.visualise_stages --weights-path W --data-path DATA --split val --index 0
    python -m tools.visualise_stages --weights-path W --img-path photo.jpg      without the stages that need objects

Writes 01_sample.png, 02_batch.png, ... and stages.html (self-contained) into --output-dir. The first line takes image
3 of the training data, augmented as training does it in epoch 0 with the checkpoint's flags and seed; --photometric,
--expand and so on change that. The model itself runs as in evaluation, once, so that its detections can be shown beside
its losses and targets.
"""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch

from backbone.errors import InputError
from backbone.settings import setting
from tools.stages.view import look
from tools.stages.writing import write_stages
from train_utils.cli.command import EXIT_OK, run_command
from train_utils.cli.device import pick_device
from train_utils.cli.flags import add_flags, add_model_flags, given_model, given_settings
from train_utils.cli.parser import Parser
from train_utils.data.augmentations.options import Augmentation, with_preset
from train_utils.data.images import read_image
from train_utils.data.images.reading import USUAL, Reading
from train_utils.data.labels import LabelMap
from train_utils.data.loaders import AUGMENTATION, sample_of, sample_rng, sample_seed
from train_utils.data.tiles.cutting import Tiles
from train_utils.data.tiles.tiling import TrainingTiles
from train_utils.io.files import folder_to_write, user_path
from train_utils.io.plain_text import counted, visible
from train_utils.prediction.data import add_data_flags, open_split_of
from train_utils.prediction.model import ModelOptions, load_model, renamed
from train_utils.prediction.runtimes.opening import is_exported
from transforms import augmentation_of


@dataclass(frozen=True)
class StageOptions(ModelOptions):
    """Image: which one is looked at, and where it goes."""

    img_path: str | None = setting(None, "an image without objects, in place of one of the data", metavar="P")
    split: str = setting("train", "of the data; val images are not augmented", choices=("train", "val"))
    index: int | None = setting(None, "which image of the split, from 0", least=0)
    epoch: int = setting(0, "the epoch whose augmentation is drawn", least=0)
    output_dir: str = setting("stages", "where files are written", metavar="O")


def parse() -> dict[str, Any]:
    """Returns the settings that the command names."""
    parser = Parser(description=__doc__)
    add_flags(parser, StageOptions)
    add_data_flags(parser)
    add_flags(parser, TrainingTiles, defaults=False)
    add_flags(parser, Augmentation, defaults=False)
    add_model_flags(parser)
    given = parser.given()
    if ("img_path" in given) == ("index" in given):
        parser.error("give either --index I of the data (--data-path D), or --img-path P")
    return given


class Sample(NamedTuple):
    """An image before and after augmentation: (uint8 [3, H, W], target or None).

    mini: the size of mini masks; title: of the page; lead: its first sentences.
    """

    before: tuple[torch.Tensor, dict | None]
    after: tuple[torch.Tensor, dict | None]
    mini: int | None
    title: str
    lead: list[str]


def image_alone(path: str, reading: Reading) -> Sample:
    """Reads an image without a target, as the model takes it."""
    if user_path(path).is_dir():
        raise InputError(f"--img-path {path}: a folder; give one image of it")
    sample = read_image(user_path(path), reading=reading), None
    return Sample(sample, sample, None, Path(path).name, [])


def sample_of_data(
    options: StageOptions, given: dict[str, Any], content: dict, label_map: LabelMap, reading: Reading = USUAL
) -> Sample:
    """Returns what training has of an image. given: the settings of the command; content: the checkpoint's."""
    scored, trained = open_split_of(content, options.split, given, label_map)
    data_set = scored.data_set.read_as(reading)
    tiles, what = TrainingTiles(**given_settings(TrainingTiles, {**trained, **given})), "images"
    if tiles.tiling is not None:
        data_set, what = Tiles(data_set, tiles.tiling, tiles.tile_negatives), "tiles"
    i, count = options.index, len(data_set)
    if i >= count:
        raise InputError(
            f"--index {i}: the {options.split} split of {data_set.source} has {count} {what}, 0 to {count - 1}"
        )
    seed = {**trained, **given}.get("seed", 0)
    image, target = data_set[i]
    if options.split == "train":
        image, target = sample_of(data_set, i, seed, options.epoch, i)
    settings = Augmentation(**given_settings(Augmentation, {**trained, **with_preset(given)}))
    mini = settings.mini_mask  # comes last and draws nothing: whole masks are shown beside the mini ones
    augment = augmentation_of(replace(settings, mini_mask=None), data_set)
    after = image, target
    lead = [
        f"{what[:-1].capitalize()} {i} of the {options.split} split, {data_set.file_name(i)} (image id "
        f"{data_set.given_id(i)})."
    ]
    if isinstance(data_set, Tiles):
        lead.append(f"Images are cut into tiles of at most {tiles.tile} pixels a side; borders cut objects.")
    if options.split == "train":
        drawn = str(augment).removeprefix("Compose(").removesuffix(")") or "nothing is switched on"
        after = augment(image, target, sample_rng(seed, options.epoch, i, AUGMENTATION))
        lead.append(f"Augmented as in epoch {options.epoch} with seed {seed}: {drawn}.")
        if str(augment) != "Compose()" and torch.equal(after[0], image):
            lead.append(f"By this draw it changed nothing; --epoch {options.epoch + 1} draws again.")
    after = after[0], {**after[1], "sample_seed": sample_seed(seed, options.epoch, i)}
    return Sample((image, target), after, mini, Path(data_set.file_name(i)).name, lead)


def main() -> int:
    """Runs the command; returns its exit status."""
    given, start = parse(), time.perf_counter()
    options = StageOptions(**given_settings(StageOptions, given), model=given_model(given))
    device = pick_device(options.device)
    if is_exported(options.weights_file):
        raise InputError(f"{options.weights_file}: an exported file shows no stages; give the checkpoint")
    model, label_map, content = load_model(options, device)
    if options.img_path:
        sample = image_alone(options.img_path, Reading.of(model.config))
    else:
        sample = sample_of_data(options, given, content, label_map, Reading.of(model.config))
    folder = folder_to_write(user_path(options.output_dir))
    view = look(model, *sample.after, label_map.name, sample.before, sample.mini)
    cfg, seconds = model.config, time.perf_counter() - start
    lead = [
        *sample.lead,
        *renamed(content, label_map),
        f"Weights: {options.weights_file} ({cfg.backbone} {cfg.variant}, {counted(len(label_map), 'class')}). "
        "The model runs as in evaluation, in one pass; what is shown is what its stages recorded in it.",
    ]
    paths = write_stages(view, folder, f"What each stage sees: {sample.title}", lead)
    for path in paths:
        print(f"{visible(str(path))}: {path.stat().st_size / 1e6:.2f} MB")
    print(
        f"{len(paths) - 1} images and a page in {time.perf_counter() - start:.1f} s, {seconds:.1f} s of it up to "
        "the detections"
    )
    return EXIT_OK


if __name__ == "__main__":
    sys.exit(run_command(main))
