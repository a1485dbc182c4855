"""A model small enough to run a command on in a second, as a checkpoint; and data in COCO layout for it."""

import json
import re
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from network_files import create_model
from tests.coco_folders import annotation, coco
from train_utils.checkpoints.checkpoint import save_checkpoint
from train_utils.data.labels import LabelMap

NAMES = {1: "circle", 2: "square", 4: "big triangle"}
SIZES = [(48, 64), (64, 48), (48, 64), (40, 40)]  # (height, width)


# What makes a model small, as fields of its config; FEW: what makes a step of it quick.
FIELDS = {
    "backbone": "resnet18", "backbone_width": 16, "fpn_channels": 16, "box_head_channels": 32, "mask_head_channels": 16,
    "mask_head_layers": 1, "min_size": 64, "max_size": 96, "anchor_sizes": (8, 16, 32, 48, 64),
}  # fmt: skip
FEW = {
    "rpn_pre_nms_top_n_train": 60, "rpn_post_nms_top_n_train": 30, "rpn_pre_nms_top_n_test": 60,
    "rpn_post_nms_top_n_test": 30, "box_batch_size_per_image": 16, "box_detections_per_img": 10,
}  # fmt: skip


def tiny(num_classes: int = len(NAMES) + 1, **fields):
    """A model of FIELDS, changed by `fields`."""
    return create_model(num_classes, **FIELDS | fields)


def train_flags(**fields) -> list[str]:
    """Flags of train.py for such a model, on one CPU; fields: of the model or of the run, True for a bare flag."""
    words = ["--device", "cpu", "--workers", "0", "--weights", "none", "--batch-size", "2", "--lr", "0.002"]
    return words + flags_of(**FIELDS | FEW | fields)


def flags_of(**fields) -> list[str]:
    """Fields as flags, True for a bare one."""
    words = []
    for field, value in fields.items():
        values = () if value is True else value if isinstance(value, tuple) else (value,)
        words += ["--" + field.replace("_", "-"), *map(str, values)]
    return words


def older_names(state: dict, prefix: str = "") -> dict:
    """A v1 state dict under the names of torchvision 0.12 and before, each behind `prefix`."""

    def older(key):
        key = re.sub(r"mask_head\.(\d)\.0\.", lambda m: f"mask_head.mask_fcn{int(m[1]) + 1}.", key)
        key = re.sub(r"(inner|layer)_blocks\.(\d)\.0\.", r"\1_blocks.\2.", key)
        return key.replace("rpn.head.conv.0.0.", "rpn.head.conv.")

    return {prefix + older(key): value for key, value in state.items()}


def tiny_model(score_bias: float = 2.0, classes: int = len(NAMES), width: int = 16):
    """A random model of NAMES' classes; the bias of "circle" makes its detections' scores sure or unsure."""
    torch.manual_seed(0)
    few = {"rpn_post_nms_top_n_test": 20, "box_detections_per_img": 40}
    model = tiny(classes + 1, backbone_width=width, norm="batch", **few)
    with torch.no_grad():
        model.roi_heads.box_predictor.cls_score.bias[:3] = torch.tensor([0.0, score_bias, 0.5])
        model.roi_heads.box_predictor.cls_score.bias[3:] = 0
    return model.eval()


def write_checkpoint(path, score_bias: float = 2.0, names=NAMES, width: int = 16, **args):
    """A checkpoint as training writes it, as far as it is read without training; args: training flags."""
    model, labels = tiny_model(score_bias, len(names), width), LabelMap.from_categories(names).to_dict()
    content = {"format_version": 1, "model": model.state_dict(), "config": model.config.to_dict()}
    save_checkpoint(path, content | {"label_map": labels, "args": args, "epoch": 0, "step": 0})
    return path


def write_images(folder) -> list:
    """Four noise images of SIZES."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    paths = [folder / f"{i}.png" for i in range(len(SIZES))]
    for path, size in zip(paths, SIZES, strict=True):
        Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8)).save(path)
    return paths


def write_coco(folder, names=NAMES):
    """A folder that open_data reads: images/ and two equal jsons with a square in each image."""
    paths, ids = write_images(folder / "images"), list(names)
    images = [
        {"id": 10 + i, "file_name": path.name, "height": height, "width": width}
        for i, (path, (height, width)) in enumerate(zip(paths, SIZES, strict=True))
    ]
    place = {"bbox": [4, 4, 20, 24], "area": 480, "segmentation": [[4, 4, 24, 4, 24, 28, 4, 28]]}
    annotations = [annotation(i + 1, 10 + i, category_id=ids[i % 2], **place) for i in range(len(paths))]
    content = coco(images, annotations, [{"id": i, "name": name} for i, name in names.items()])
    for split in ("train", "val"):
        (folder / f"instances_{split}.json").write_text(json.dumps(content))
    return folder


def write_place() -> Path:
    """Writes model.pth and data/ into the working folder; returns "."."""
    write_checkpoint(Path("model.pth"))
    return write_coco(Path("data")).parent
