"""What validation.py and predict.py share: flags that name a model, loading it, one detection pass."""

import argparse

import torch

from backbone.errors import InputError
from train_utils import command
from train_utils.checkpoint import model_from_checkpoint
from train_utils.label_map import LabelMap


def add_model_arguments(parser: argparse.ArgumentParser, required: bool = True) -> None:
    """Adds --weights-path, --device, --output-dir, and what a bare state dict does not tell by itself."""
    parser.add_argument("--weights-path", required=required, metavar="W",
                        help="a checkpoint (it tells classes and architecture), or a bare state dict")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:i (default: auto)")
    parser.add_argument("--output-dir", default=".", metavar="O",
                        help="where files are written (default: the working folder)")
    group = parser.add_argument_group("for a bare state dict")
    group.add_argument("--num-classes", type=command.positive_int, help="classes, without background")
    group.add_argument("--label-json-path", metavar="J", help='class names: a json file {"1": "person", ...}')
    command.add_config_arguments(parser)


def load_model(args: argparse.Namespace, device: torch.device):
    """(model in eval mode on the device, its label map), as the flags of `add_model_arguments` say."""
    label_map = None if args.label_json_path is None else LabelMap.from_json(args.label_json_path)
    config = command.config_from_args(args)
    model, label_map = model_from_checkpoint(args.weights_path, device, label_map=label_map, **config)
    possible = sorted({len(label_map), label_map.num_labels - 1})  # COCO's 80 categories have labels up to 90
    if args.num_classes is not None and args.num_classes not in possible:
        raise InputError(f"--num-classes {args.num_classes}: {args.weights_path} was trained for "
                         f"{' or '.join(map(str, possible))} (without background); leave the flag out")
    return model, label_map


def check_same_classes(weights_path, label_map: LabelMap, data_set, named: bool) -> None:
    """InputError unless the weights' labels are the data's; named: whether the weights' names are known."""
    data_map = data_set.label_map
    if data_map.num_labels != label_map.num_labels:
        raise InputError(f"{weights_path}: was trained for {label_map.num_labels - 1} classes (without "
                         f"background), the data has {data_map.num_labels - 1}; give the data's own weights")
    if not named:
        return
    for category in data_set.ground_truth()["categories"]:
        if not label_map.has_category(category["id"]):
            continue  # nothing is annotated with it: else the data set would have refused the label map
        name = label_map.name(label_map.to_label(category["id"]))
        if name != category["name"]:
            raise InputError(f"{weights_path}: its category {category['id']} is {name!r}, the data's is "
                             f"{category['name']!r}; give the weights' own data (--label-json-path renames)")


@torch.inference_mode()
def detect(model, image: torch.Tensor, device: torch.device) -> dict[str, torch.Tensor]:
    """The detections of one image (uint8 [3, H, W]), masks as cropped probabilities, on the CPU."""
    detections = model([image.to(device)], paste_masks=False)[0]
    return {key: value.cpu() for key, value in detections.items()}
