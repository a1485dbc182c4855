"""Shows what each stage of Mask R-CNN sees of one image: an image for each stage, and a page that explains them.

    python -m tools.visualise_stages --weights-path save_weights/model_best.pth --index 3
    python -m tools.visualise_stages --weights-path W --data-path DATA --split val --index 0
    python -m tools.visualise_stages --weights-path W --img-path photo.jpg      without the stages that need objects

Writes 01_sample.png, 02_batch.png, ... and stages.html (self-contained) into --output-dir. The first line takes image
3 of the training data, augmented as training does it in epoch 0 with the checkpoint's flags and seed; --photometric,
--expand and so on change that. The model itself runs as in evaluation, once, so that its detections can be shown beside
its losses and targets.
"""

import argparse
import sys
import time
from pathlib import Path
from typing import NamedTuple

import torch

from backbone.errors import InputError
from tools.stages.view import look
from tools.stages.writing import write_stages
from train_utils.checkpoints.checkpoint import load_file
from train_utils.cli import command
from train_utils.cli.run_flags import AUGMENTATION, add_augmentation_arguments
from train_utils.data.images import read_image
from train_utils.data.labels import LabelMap
from train_utils.data.loaders import AUGMENTATION as AUGMENTATION_STREAM
from train_utils.data.loaders import sample_rng, sample_seed
from train_utils.io.files import make_folder, user_path
from train_utils.io.plain_text import visible
from train_utils.prediction.predictor import add_data_arguments, add_model_arguments, load_model, open_split_of
from transforms import build_augment


def parse_args() -> argparse.Namespace:
    """Reads the command line."""
    parser = command.Parser(description=__doc__)
    parser.add_argument("--img-path", metavar="P", help="an image without objects, in place of one of the data")
    add_data_arguments(parser)
    parser.add_argument(
        "--split",
        choices=("train", "val"),
        default="train",
        help="of the data; val images are not augmented (default: train)",
    )
    parser.add_argument("--index", type=command.non_negative_int, help="which image of the split, from 0")
    parser.add_argument(
        "--epoch", type=command.non_negative_int, default=0, help="the epoch whose augmentation is drawn (default: 0)"
    )
    add_model_arguments(parser)
    parser.set_defaults(output_dir="stages")
    add_augmentation_arguments(parser.add_argument_group("augmentation (default: the checkpoint's own)"))
    args = parser.parse_args()
    if (args.img_path is None) == (args.index is None):
        parser.error("give either --index I of the data (--data-path D), or --img-path P")
    return args


class Sample(NamedTuple):
    """An image before and after augmentation: (uint8 [3, H, W], target or None).

    mini: the size of mini masks; title: of the page; lead: its first sentences.
    """

    before: tuple[torch.Tensor, dict | None]
    after: tuple[torch.Tensor, dict | None]
    mini: int | None
    title: str
    lead: list[str]


def image_alone(path: str) -> Sample:
    """Reads an image without a target."""
    if user_path(path).is_dir():
        raise InputError(f"--img-path {path}: a folder; give one image of it")
    sample = read_image(user_path(path)), None
    return Sample(sample, sample, None, Path(path).name, [])


def sample_of_data(args: argparse.Namespace, content: dict, label_map: LabelMap) -> Sample:
    """Returns what training has of an image; content: the checkpoint's, label_map: its own."""
    data_set, trained = open_split_of(args, args.split, content, label_map)
    i, count = args.index, len(data_set)
    if i >= count:
        raise InputError(
            f"--index {i}: the {args.split} split of {data_set.source} has {count} images, 0 to {count - 1}"
        )
    image, target = data_set[i]
    seed = trained.get("seed", 0) if args.seed is None else args.seed
    options = {
        name: getattr(args, name) if name in args.given else trained.get(name, getattr(args, name))
        for name in AUGMENTATION
    }
    mini = options.pop("mini_mask")  # not applied here: the whole masks are shown beside the mini ones
    augment = build_augment(**options)
    after = image, target
    lead = [f"Image {i} of the {args.split} split, {data_set.file_name(i)} (image id {data_set.given_id(i)})."]
    if args.split == "train":
        drawn = str(augment)[len("Compose(") : -1] or "nothing is switched on"
        after = augment(image, target, sample_rng(seed, args.epoch, i, AUGMENTATION_STREAM))
        lead.append(f"Augmented as in epoch {args.epoch} with seed {seed}: {drawn}.")
        if augment.transforms and torch.equal(after[0], image):
            lead.append(f"By this draw it changed nothing; --epoch {args.epoch + 1} draws again.")
    after = after[0], {**after[1], "sample_seed": sample_seed(seed, args.epoch, i)}
    return Sample((image, target), after, mini, Path(data_set.file_name(i)).name, lead)


def main() -> int:
    """Runs the command; returns its exit status."""
    args, start = parse_args(), time.perf_counter()
    device = command.pick_device(args.device)
    content = load_file(args.weights_path)
    model, label_map = load_model(args, device)
    sample = image_alone(args.img_path) if args.img_path else sample_of_data(args, content, label_map)
    folder = make_folder(user_path(args.output_dir))
    view = look(model, *sample.after, label_map.name, sample.before, sample.mini)
    cfg, seconds = model.config, time.perf_counter() - start
    lead = [
        *sample.lead,
        f"Weights: {args.weights_path} ({cfg.backbone} {cfg.variant}, {len(label_map)} classes). "
        "The model runs as in evaluation, in one pass; what is shown is what its stages recorded in it.",
    ]
    paths = write_stages(view, folder, f"What each stage sees: {sample.title}", lead)
    for path in paths:
        print(f"{visible(str(path))}: {path.stat().st_size / 1e6:.2f} MB")
    print(
        f"{len(paths) - 1} images and a page in {time.perf_counter() - start:.1f} s, {seconds:.1f} s of it up to "
        "the detections"
    )
    return command.EXIT_OK


if __name__ == "__main__":
    sys.exit(command.run_command(main))
