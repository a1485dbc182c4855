"""What commands on trained models share: flags that name a model and data, opening both, one detection pass."""

import argparse
import sys

import torch
from PIL import Image

from backbone.errors import InputError
from network_files.operators.instance_masks import mask_probs_to_bool
from train_utils.checkpoints.checkpoint import is_checkpoint, model_from_checkpoint
from train_utils.cli import command
from train_utils.data.images import ImageError
from train_utils.data.labels import LabelMap
from train_utils.data.opening import LAYOUTS, open_data
from train_utils.evaluation.numbers import to_coco_results
from train_utils.show.drawing import draw_detections


def add_model_arguments(parser: argparse.ArgumentParser, required: bool = True) -> None:
    """Adds --weights-path, --device, --output-dir, and what a bare state dict does not tell by itself."""
    parser.add_argument(
        "--weights-path",
        required=required,
        metavar="W",
        help="a checkpoint (it tells classes and architecture), or a bare state dict",
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:i (default: auto)")
    parser.add_argument(
        "--output-dir", default=".", metavar="O", help="where files are written (default: the working folder)"
    )
    group = parser.add_argument_group("for a bare state dict")
    group.add_argument("--num-classes", type=command.positive_int, help="classes, without background")
    group.add_argument("--label-json-path", metavar="J", help='class names: a json file {"1": "person", ...}')
    command.add_config_arguments(parser)


def add_data_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the flags that name data: those that are absent are as in training, see `open_split`."""
    parser.add_argument(
        "--data-path",
        metavar="DATA",
        help="COCO, VOC or .npy folder, or a json (default: what the checkpoint was trained with)",
    )
    parser.add_argument("--dataset", choices=LAYOUTS, help="layout (default: auto)")
    parser.add_argument("--image-dir", help="folder of the images, where it is not the usual one")
    parser.add_argument("--year", help="VOC year, where the folder holds several")
    parser.add_argument(
        "--val-fraction",
        type=command.fraction,
        help="val share of data without a split (default: as in training, else 0.2)",
    )
    parser.add_argument("--seed", type=command.seed, help="chooses that share (default: as in training, else 0)")
    command.add_flag(
        parser, "--follow-links", help="follow images that are links out of the data folder (else they are an error)"
    )
    command.add_flag(parser, "--strict", help="unreadable images and unusable annotations are errors, not skipped")


def open_split(args: argparse.Namespace, split: str, trained: dict, label_map: LabelMap | None, label_json=None):
    """The split, "train" or "val", of the data that the flags name, else of that of the training flags `trained`.

    label_map: the weights' own, or None for the data's; label_json: then the file of its names.
    """
    places = ("data_path", "dataset", "image_dir", "year")
    if any(getattr(args, name) is not None for name in places):
        trained = {name: value for name, value in trained.items() if name not in places}
    given = {name: getattr(args, name) for name in (*places, "val_fraction", "seed")}
    chosen = {name: trained.get(name) if value is None else value for name, value in given.items()}
    chosen = {name: value for name, value in chosen.items() if value is not None}
    splits = open_data(
        chosen.pop("data_path", None),
        split=split,
        label_map=label_map,
        strict=args.strict,
        follow_links=args.follow_links,
        label_json_path=label_json,
        **chosen,
    )
    return getattr(splits, split)


def open_split_of(args: argparse.Namespace, split: str, content: dict, label_map: LabelMap):
    """(`open_split` of the data that goes with a model, the training flags); InputError for other classes.

    content: of the weights' file; label_map: the model's.
    """
    whole = is_checkpoint(content)
    trained = content.get("args", {}) if whole else {}  # other projects' are not our flags
    # A bare state dict knows no category ids: the data's own are taken unless the user names the classes.
    named = whole or args.label_json_path is not None
    data_set = open_split(args, split, trained, label_map if named else None)
    check_same_classes(args.weights_path, label_map, data_set, named)
    print(data_set.describe())
    return data_set, trained


def load_model(args: argparse.Namespace, device: torch.device):
    """(model in eval mode on the device, its label map), as the flags of `add_model_arguments` say."""
    label_map = None if args.label_json_path is None else LabelMap.from_json(args.label_json_path)
    config = command.config_from_args(args)
    model, label_map = model_from_checkpoint(args.weights_path, device, label_map=label_map, **config)
    possible = sorted({len(label_map), label_map.num_labels - 1})  # COCO's 80 categories have labels up to 90
    if args.num_classes is not None and args.num_classes not in possible:
        raise InputError(
            f"--num-classes {args.num_classes}: {args.weights_path} was trained for "
            f"{' or '.join(map(str, possible))} (without background); leave the flag out"
        )
    return model, label_map


def check_same_classes(weights_path, label_map: LabelMap, data_set, named: bool) -> None:
    """InputError unless the weights' labels are the data's; named: whether the weights' names are known."""
    data_map = data_set.label_map
    if data_map.num_labels != label_map.num_labels:
        raise InputError(
            f"{weights_path}: was trained for {label_map.num_labels - 1} classes (without "
            f"background), the data has {data_map.num_labels - 1}; give the data's own weights"
        )
    if not named:
        return
    for category in data_set.ground_truth()["categories"]:
        if not label_map.has_category(category["id"]):
            continue  # nothing is annotated with it: else the data set would have refused the label map
        name = label_map.name(label_map.to_label(category["id"]))
        if name != category["name"]:
            raise InputError(
                f"{weights_path}: its category {category['id']} is {name!r}, the data's is "
                f"{category['name']!r}; give the weights' own data (--label-json-path renames)"
            )


@torch.inference_mode()
def detect(model, image: torch.Tensor, device: torch.device) -> dict[str, torch.Tensor]:
    """The detections of one image (uint8 [3, H, W]), masks as cropped probabilities, on the CPU."""
    detections = model([image.to(device)], paste_masks=False)[0]
    return {key: value.cpu() for key, value in detections.items()}


class Predictor:
    """A model with what the flags say about its detections: thresholds and classes only filter."""

    def __init__(self, args: argparse.Namespace, least_score: float):
        self.device = command.pick_device(args.device)
        self.model, self.label_map = load_model(args, self.device)
        self.least_score, self.mask_threshold = least_score, args.mask_threshold
        self.labels = None if args.classes is None else torch.tensor(self._labels_of(args.classes))
        self.strict, self.unreadable, self.in_part = args.strict, 0, 0

    def _labels_of(self, names: list[str]) -> list[int]:
        known = {self.label_map.name(label).lower(): label for label in self.label_map.labels()}
        unknown = [name for name in names if name.lower() not in known]
        if unknown:
            raise InputError(f"--classes {', '.join(unknown)}: the model knows {', '.join(known)}")
        return [known[name.lower()] for name in names]

    def detect(self, image: torch.Tensor) -> dict[str, torch.Tensor]:
        """The detections of image (uint8 [3, H, W]) with at least the least score and one of the classes."""
        found = detect(self.model, image, self.device)
        keep = found["scores"] >= self.least_score  # [D]
        if self.labels is not None:
            keep &= torch.isin(found["labels"], self.labels)
        return {key: value[keep] for key, value in found.items()}

    def results(self, found: dict, image_id: int, image: torch.Tensor) -> list[dict]:
        """The detections as COCO results."""
        size = tuple(image.shape[-2:])
        return to_coco_results([found], [image_id], [size], self.label_map, self.mask_threshold)

    def draw(self, found: dict, image: torch.Tensor, magnify: int) -> Image.Image:
        size = tuple(image.shape[-2:])
        masks = mask_probs_to_bool(found["mask_probs"], found["boxes"], size, self.mask_threshold)
        boxes, labels, scores = found["boxes"], found["labels"], found["scores"]
        return draw_detections(image, boxes, labels, scores, masks, self.label_map.name, magnify)

    def describe(self, found: dict) -> list[str]:
        """One line per detection: name, score, box."""
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
        print(f"{images - self.unreadable} of {images} image(s) predicted{note}")
        return command.EXIT_SOME_UNUSABLE if self.unreadable or self.in_part else command.EXIT_OK
