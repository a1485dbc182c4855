"""What validation.py and predict.py share: flags that name a model, loading it, one detection pass."""

import argparse

import torch

from train_utils import command
from train_utils.checkpoint import model_from_checkpoint
from train_utils.label_map import LabelMap


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds --weights-path, --device, --output-dir, and what a bare state dict does not tell by itself."""
    parser.add_argument("--weights-path", required=True, metavar="W",
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
    num_classes = None if args.num_classes is None else args.num_classes + 1  # the model's counts background
    config = command.config_from_args(args)
    return model_from_checkpoint(args.weights_path, device, num_classes, label_map, **config)


@torch.inference_mode()
def detect(model, image: torch.Tensor, device: torch.device) -> dict[str, torch.Tensor]:
    """The detections of one image (uint8 [3, H, W]), masks as cropped probabilities, on the CPU."""
    detections = model([image.to(device)], paste_masks=False)[0]
    return {key: value.cpu() for key, value in detections.items()}
