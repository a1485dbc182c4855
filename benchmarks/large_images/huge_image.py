"""Sends an image of 4000x3000 pixels with 1,000 objects through the commands as a user types them: time, peak memory.

    python -m benchmarks.large_images.huge_image                        validation.py, 100 detections per image
    python -m benchmarks.large_images.huge_image --detections 1000      validation.py, up to 1,000
    python -m benchmarks.large_images.huge_image --train                train.py, one step
    python -m benchmarks.large_images.huge_image --keep FOLDER          the input stays there; the command is printed

The model is a ResNet-50 of 3 classes with random weights: its scores are high enough for every detection that
the config allows. Memory is the largest resident size of any process of the command, as the kernel counted it.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw

from network_files import create_model
from train_utils.cli.command import run_command
from train_utils.cli.flags import number
from train_utils.cli.parser import Parser

ROOT = Path(__file__).resolve().parents[2]
ONE_STEP = "--weights none --norm frozen --batch-size 1 --epochs 1 --workers 0"
CATEGORIES = [{"id": i, "name": name} for i, name in enumerate(("disc", "square", "ring"), start=1)]


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Reads the command line."""
    parser = Parser(description=__doc__)
    parser.add_argument("--train", action="store_true", help="one training step instead of an evaluation")
    parser.add_argument("--width", type=number(int, least=1), default=4000)
    parser.add_argument("--height", type=number(int, least=1), default=3000)
    parser.add_argument("--objects", type=number(int, least=1), default=1000)
    parser.add_argument("--detections", type=number(int, least=1), default=100, help="--box-detections-per-img")
    parser.add_argument("--backbone", default="resnet50")
    parser.add_argument("--min-size", type=number(int, least=1), default=800)
    parser.add_argument("--max-size", type=number(int, least=1), default=1333)
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="where the input is made (default: nowhere)")
    return parser.parse_args(argv)


def draw_image(path: Path, height: int, width: int, objects: int, rng: np.random.Generator) -> list[dict]:
    """Writes an image of lobed shapes on noise; returns its annotations, polygons of 40 points."""
    noise = rng.integers(60, 130, (height, width, 3), dtype=np.uint8)
    image = Image.fromarray(noise)
    draw, annotations = ImageDraw.Draw(image), []
    angle = np.linspace(0, 2 * np.pi, 40, endpoint=False)
    for i in range(objects):
        radius = float(np.exp(rng.uniform(np.log(12), np.log(400)))) * min(height, width) / 3000
        centre = rng.uniform(radius, (width - radius, height - radius))
        outline = radius * (0.8 + 0.2 * np.sin(3 * angle + i))
        points = np.round(centre + outline[:, None] * np.stack((np.cos(angle), np.sin(angle)), 1), 2)  # [40, 2]
        draw.polygon([tuple(p) for p in points.tolist()], fill=tuple(rng.integers(0, 256, 3).tolist()))
        low, high = points.min(0), points.max(0)
        box, area = [*low.tolist(), *(high - low).tolist()], float(2.2 * radius**2)
        shape = {"bbox": box, "area": area, "segmentation": [points.ravel().tolist()]}
        annotations.append({"id": i + 1, "image_id": 1, "category_id": i % 3 + 1, "iscrowd": 0, **shape})
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, quality=90)
    return annotations


def write_split(folder: Path, split: str, height: int, width: int, objects: int) -> None:
    """Writes COCO's layout: a json and the one image that it is about."""
    path_of_image = folder / f"{split}2017" / "image.jpg"
    annotations = draw_image(path_of_image, height, width, objects, np.random.default_rng(0))
    image = {"id": 1, "file_name": path_of_image.name, "height": height, "width": width}
    path = folder / "annotations" / f"instances_{split}2017.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps({"images": [image], "annotations": annotations, "categories": CATEGORIES}))


def command_for(args: argparse.Namespace, folder: Path) -> list[str]:
    """Makes the input; returns what a user would type."""
    sizes = ["--backbone", args.backbone, "--min-size", str(args.min_size), "--max-size", str(args.max_size)]
    places = ["--data-path", str(folder), "--output-dir", str(folder / "out"), "--device", "cpu"]
    if args.train:
        write_split(folder, "train", args.height, args.width, args.objects)
        write_split(folder, "val", 64, 64, 1)  # the evaluation after the step takes next to nothing
        return ["train.py", *places, *sizes, *ONE_STEP.split()]
    write_split(folder, "val", args.height, args.width, args.objects)
    torch.manual_seed(0)
    model = create_model(len(CATEGORIES) + 1, args.backbone, min_size=args.min_size, max_size=args.max_size)
    torch.save(model.state_dict(), folder / "weights.pth")
    weights = ["--weights-path", str(folder / "weights.pth")]
    return ["validation.py", *weights, *places, *sizes, "--box-detections-per-img", str(args.detections)]


def run(args: argparse.Namespace, folder: Path) -> int:
    """Runs the command on its input and prints what it took; returns its exit status."""
    command = command_for(args, folder.resolve())
    print("python", *command, flush=True)
    start = time.perf_counter()
    process = subprocess.Popen([sys.executable, str(ROOT / command[0]), *command[1:]], cwd=folder)
    status = process.wait()
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
    print(
        f"{command[0]}: {args.width}x{args.height}, {args.objects} objects, {args.backbone}: exit status {status}, "
        f"{seconds:.1f} s, peak {peak:.0f} MiB, {os.environ.get('OMP_NUM_THREADS', 'all')} threads"
    )
    return status


def main(argv: list[str] | None = None) -> int:
    """Runs it in a folder that is kept or not; returns its exit status."""
    args = parse_args(argv)
    if args.keep:
        args.keep.mkdir(parents=True, exist_ok=True)
        return run(args, args.keep)
    with tempfile.TemporaryDirectory() as folder:
        return run(args, Path(folder))


if __name__ == "__main__":
    sys.exit(run_command(main))
