"""Draws dense images, 36 to 241 round caps each at 640 pixels, trains `--recipe small` on them, and prints the AP.

    python -m benchmarks.recipes.dense_images --output-dir OUT -- --weights W        48 images, 16 to measure on
    python -m benchmarks.recipes.dense_images --output-dir OUT --draw                only draw, into OUT/data

A stand-in for photos of mushrooms in a box: caps of one class lie over one another on dark soil, and a cap's mask is
what can be seen of it. What follows `--` are further flags of train.py. An image may have 300 detections, and the
metric counts as many.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter
from pycocotools import mask as rle

from train_utils.cli.command import run_command
from train_utils.cli.flags import number
from train_utils.cli.parser import Parser
from train_utils.io.files import make_folder, write_text
from train_utils.logs.result_files import history

ROOT = Path(__file__).resolve().parents[2]
SIDE, OBJECTS = 640, (36, 241)  # pixels, and caps of an image
MOST = 300  # detections of an image
LEAST_SEEN = 0.2  # of a cap; one that is hidden farther is none


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Reads the command line."""
    parser = Parser(description=__doc__)
    parser.add_argument("--output-dir", type=Path, required=True, help="of the data and the run")
    parser.add_argument("--images", type=number(int, least=1), default=48, help="to train on; a third measures")
    parser.add_argument("--epochs", type=number(int, least=1), default=6)
    parser.add_argument("--draw", action="store_true", help="draw, and stop")
    parser.add_argument("flags", nargs="*", metavar="-- FLAG", help="flags of train.py")
    return parser.parse_args(argv)


def drawn(seed: int, side: int) -> tuple[Image.Image, np.ndarray]:
    """Returns an image and which cap each of its pixels shows, int32 [side, side], 0: soil.

    A later cap lies over others. The more caps, the smaller they are: they cover about half of any image.
    """
    rng = np.random.default_rng(seed)
    count = int(rng.integers(OBJECTS[0], OBJECTS[1] + 1))
    soil = rng.normal(60, 18, (side, side, 3)).clip(0, 255).astype(np.uint8)
    image = Image.fromarray(soil).filter(ImageFilter.GaussianBlur(1))
    shown, pen = Image.new("I", (side, side)), ImageDraw.Draw(image)
    owner = ImageDraw.Draw(shown)
    usual = side * (0.55 / count / np.pi) ** 0.5
    for cap in range(1, count + 1):
        across, down = usual * rng.uniform(0.6, 1.4) * rng.uniform(0.8, 1.2, 2)
        x, y = rng.uniform(0, side, 2)
        colour = rng.uniform(0.6, 1.0) * np.array([215, 190, 160]) + rng.normal(0, 8, 3)
        for inner in np.linspace(1, 0.2, 6):  # lighter towards the middle
            own = tuple(int(value) for value in (colour * (1.15 - 0.35 * inner)).clip(0, 255))
            pen.ellipse((x - across * inner, y - down * inner, x + across * inner, y + down * inner), fill=own)
        owner.ellipse((x - across, y - down, x + across, y + down), fill=cap)
    return image.filter(ImageFilter.GaussianBlur(0.7)), np.asarray(shown, np.int32)


def objects_of(shown: np.ndarray, image_id: int, first: int) -> list[dict]:
    """Returns COCO annotations of the caps that can be seen, numbered from `first`."""
    found = []
    for cap in np.unique(shown[shown > 0]):
        mask = shown == cap
        y, x = np.nonzero(mask)
        box = [int(x.min()), int(y.min()), int(np.ptp(x)) + 1, int(np.ptp(y)) + 1]
        if len(x) < max(LEAST_SEEN * box[2] * box[3], 9):
            continue
        code = rle.encode(np.asfortranarray(mask.astype(np.uint8)))
        segmentation = {"size": list(mask.shape), "counts": code["counts"].decode()}
        about = {"id": first + len(found), "image_id": image_id, "category_id": 1, "iscrowd": 0, "area": len(x)}
        found.append({**about, "bbox": box, "segmentation": segmentation})
    return found


def draw(folder: Path, images: int) -> None:
    """Draws a data set in COCO's layout, unless it is there."""
    for split, count, start in (("train", images, 0), ("val", max(images // 3, 1), 100_000)):
        target = folder / "annotations" / f"instances_{split}2017.json"
        if target.exists():
            continue
        make_folder(folder / f"{split}2017")
        rows, annotations = [], []
        for at in range(count):
            image, shown = drawn(start + at, SIDE)
            image.save(folder / f"{split}2017" / f"{at + 1:012}.png")
            rows.append({"id": at + 1, "file_name": f"{at + 1:012}.png", "height": SIDE, "width": SIDE})
            annotations += objects_of(shown, at + 1, len(annotations) + 1)
        make_folder(target.parent)
        content = {"images": rows, "annotations": annotations, "categories": [{"id": 1, "name": "cap"}]}
        write_text(target, json.dumps(content))


def main(argv: list[str] | None = None) -> int:
    """Draws, trains and validates; returns the exit status of what failed, 0 else."""
    args = parse_args(argv)
    data, run = args.output_dir.resolve() / "data", args.output_dir.resolve() / "run"
    draw(data, args.images)
    if args.draw:
        return 0
    given = ["--data-path", data, "--output-dir", run, "--recipe", "small", "--epochs", args.epochs]
    words = [*given, "--box-detections-per-img", MOST, "--max-dets", MOST, *args.flags]
    status = subprocess.run([sys.executable, "train.py", *map(str, words)], cwd=ROOT).returncode
    if status == 0:
        for row in history(run):
            print(f"epoch {row['epoch']}: box AP {row['bbox_AP']:.3f}, mask AP {row['segm_AP']:.3f}")
    return status


if __name__ == "__main__":
    sys.exit(run_command(main))
