"""A model small enough to run a command on in a second, as a checkpoint; and data in COCO layout for it."""

import json

import numpy as np
import torch
from PIL import Image

from network_files import create_model
from train_utils.checkpoints.checkpoint import save_checkpoint
from train_utils.data.labels import LabelMap

NAMES = {1: "circle", 2: "square", 4: "big triangle"}
SIZES = [(48, 64), (64, 48), (48, 64), (40, 40)]  # (height, width)


def tiny_model(score_bias: float = 2.0, classes: int = len(NAMES), width: int = 64):
    """A random model of NAMES' classes; the bias of "circle" makes its detections' scores sure or unsure."""
    torch.manual_seed(0)
    model = create_model(
        classes + 1,
        "resnet18",
        backbone_width=width,
        norm="batch",
        min_size=(64,),
        max_size=96,
        anchor_sizes=(8, 16, 32, 48, 64),
        fpn_channels=16,
        box_head_channels=32,
        mask_head_channels=16,
        mask_head_layers=1,
        rpn_post_nms_top_n_test=20,
        box_detections_per_img=40,
    )
    with torch.no_grad():
        model.roi_heads.box_predictor.cls_score.bias[:3] = torch.tensor([0.0, score_bias, 0.5])
        model.roi_heads.box_predictor.cls_score.bias[3:] = 0
    return model.eval()


def write_checkpoint(path, score_bias: float = 2.0, names=NAMES, width: int = 64, **args):
    """A checkpoint as training writes it, as far as it is read without training; args: training flags."""
    model = tiny_model(score_bias, len(names), width)
    label_map = LabelMap.from_categories(names)
    save_checkpoint(
        path,
        {
            "format_version": 1,
            "model": model.state_dict(),
            "config": model.config.to_dict(),
            "label_map": label_map.to_dict(),
            "args": args,
            "epoch": 0,
            "step": 0,
        },
    )
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
    paths = write_images(folder / "images")
    images, annotations = [], []
    for i, (path, (height, width)) in enumerate(zip(paths, SIZES, strict=True)):
        images.append({"id": 10 + i, "file_name": path.name, "height": height, "width": width})
        annotations.append(
            {
                "id": i + 1,
                "image_id": 10 + i,
                "category_id": list(names)[i % 2],
                "bbox": [4, 4, 20, 24],
                "area": 480,
                "iscrowd": 0,
                "segmentation": [[4, 4, 24, 4, 24, 28, 4, 28]],
            }
        )
    categories = [{"id": i, "name": name} for i, name in names.items()]
    for split in ("train", "val"):
        content = {"images": images, "annotations": annotations, "categories": categories}
        (folder / f"instances_{split}.json").write_text(json.dumps(content))
    return folder
