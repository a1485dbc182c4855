"""Trains on mosaics of drawn shapes in tiles, and as they are: the masks' AP after as many steps.

    python -m benchmarks.large_images.training                      8 mosaics of 6 x 6 images, a small network
    python -m benchmarks.large_images.training --keep FOLDER        mosaics and runs stay there

A mosaic of 768 pixels has about a hundred objects of 10 to 60 pixels. The network sees 128 pixels: a tile as it is, a
whole mosaic six times smaller. Both trainings have the same options but `--tile`, and choose anchors by themselves.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from PIL import Image

from benchmarks.large_images.huge_image import ROOT
from network_files.operators.instance_masks import encode_cropped
from train_utils.cli.command import run_command
from train_utils.cli.flags import number
from train_utils.cli.parser import Parser
from train_utils.data.dataset import ImageDataset
from train_utils.data.formats.shapes import make_shapes
from train_utils.data.opening import open_data
from train_utils.data.tiles.tiling import Tiling

SIDE, ACROSS, BATCH = 128, 6, 4  # pixels of an image, images a row of a mosaic, images or tiles a step
NETWORK = (
    "--backbone resnet18 --backbone-width 32 --fpn-channels 64 --box-head-channels 256 --mask-head-channels 64 "
    "--mask-head-layers 2 --norm batch --weights none --anchor-sizes auto --rpn-pre-nms-top-n-train 400 "
    "--rpn-post-nms-top-n-train 200 --rpn-pre-nms-top-n-test 400 --rpn-post-nms-top-n-test 200 "
    "--box-batch-size-per-image 64 --box-detections-per-img 200 --max-dets 200 "
    f"--min-size {SIDE} --max-size {SIDE} --optimizer adamw --lr 0.001 --batch-size {BATCH} --workers 0 --device cpu"
)


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Reads the command line."""
    parser = Parser(description=__doc__)
    parser.add_argument("--mosaics", type=number(int, least=1), default=8, help="to train on; half as many measure")
    parser.add_argument("--epochs", type=number(int, least=1), default=2, help="of some 120 steps")
    parser.add_argument("--keep", metavar="FOLDER", help="where mosaics and runs are kept (default: nowhere)")
    return parser.parse_args(argv)


def mosaic(images: ImageDataset, numbers: range) -> tuple[Image.Image, list[dict]]:
    """Returns these images beside each other, and the annotations of their objects without ids."""
    whole, annotations = torch.zeros(3, SIDE * ACROSS, SIDE * ACROSS, dtype=torch.uint8), []
    for place, i in enumerate(numbers):
        y, x = (SIDE * along for along in divmod(place, ACROSS))
        image, target = images[i]
        whole[:, y : y + SIDE, x : x + SIDE] = image
        codes = encode_cropped(target["masks"].window(-x, -y, SIDE * ACROSS, SIDE * ACROSS))
        boxes = target["boxes"].tolist()
        for code, (x1, y1, x2, y2), label, crowd in zip(
            codes, boxes, target["labels"].tolist(), target["iscrowd"].tolist(), strict=True
        ):
            box = [x + x1, y + y1, x2 - x1, y2 - y1]
            about = {"bbox": box, "area": box[2] * box[3], "category_id": label, "iscrowd": crowd}
            annotations.append({**about, "segmentation": code})
    return Image.fromarray(whole.permute(1, 2, 0).numpy()), annotations


def write_mosaics(folder: Path, count: int) -> Path:
    """Writes a data set of mosaics in COCO's layout, unless it is there; returns its folder."""
    data = folder / "mosaics"
    if data.exists():
        return data
    each = {"train": count, "val": max(count // 2, 1)}
    sizes = {split: of_split * ACROSS**2 for split, of_split in each.items()}
    splits = open_data(make_shapes(folder / "shapes", **sizes, size=SIDE))
    for split, of_split in each.items():
        source, content = getattr(splits, split), {"images": [], "annotations": []}
        content["categories"] = [{"id": i + 1, "name": name} for i, name in enumerate(source.label_map.names)]
        (data / "images").mkdir(parents=True, exist_ok=True)
        for k in range(of_split):
            image, annotations = mosaic(source, range(k * ACROSS**2, (k + 1) * ACROSS**2))
            name, side = f"{split}{k}.png", SIDE * ACROSS
            image.save(data / "images" / name)
            content["images"].append({"id": k + 1, "file_name": name, "height": side, "width": side})
            first = len(content["annotations"]) + 1
            content["annotations"] += [{"id": first + i, "image_id": k + 1, **a} for i, a in enumerate(annotations)]
        (data / f"instances_{split}.json").write_text(json.dumps(content))
    return data


def train(data: Path, run: Path, words: list[str]) -> tuple[int, dict, float]:
    """Runs train.py; returns its exit status, the last epoch's numbers of masks, and its seconds of CPU time."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    command = [sys.executable, str(ROOT / "train.py"), "--data-path", str(data), "--output-dir", str(run), *words]
    status = subprocess.run(command, cwd=ROOT, stdout=subprocess.DEVNULL).returncode
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    rows = json.loads((run / "seg_results.json").read_text()) if status == 0 else [{}]
    return status, rows[-1], seconds


def main(argv: list[str] | None = None) -> int:
    """Prints a line for each way; returns the exit status of the first that fails, else 0."""
    args = parse_args(argv)
    with tempfile.TemporaryDirectory() as room:
        folder = Path(args.keep or room).resolve()
        data = write_mosaics(folder, args.mosaics)
        tiles = len(Tiling(SIDE).boxes((SIDE * ACROSS, SIDE * ACROSS)))
        # as many steps: an epoch of tiles leaves some of those without objects out
        ways = {f"--tile {SIDE}": ["--tile", str(SIDE)], f"--repeat {tiles}": ["--repeat", str(tiles)]}
        for k, (name, words) in enumerate(ways.items()):
            shared = [*NETWORK.split(), "--epochs", str(args.epochs)]
            status, row, seconds = train(data, folder / f"run{k}", [*shared, *words])
            if status:
                return status
            print(
                f"{name}: mask AP {row['AP']:.3f}, AP50 {row['AP50']:.3f}, {round(seconds)} s of CPU time", flush=True
            )
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
