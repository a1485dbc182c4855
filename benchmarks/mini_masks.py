"""Measures what --mini-mask saves and what it costs in exactness: `python -m benchmarks.mini_masks --data-path DATA`.

For each size, over the training images: the bytes of masks that a loader hands on, how many masks have become
empty, and the mask branch's targets beside those of whole masks (in 0..1; cells on the other side of 0.5 are those
that would be trained to the opposite), for RoIs that are the objects' boxes moved by up to a tenth of their sides.
"""

import sys
import time

import torch

from network_files.operators.boxes import HALF_PIXEL
from network_files.operators.instance_masks import mask_targets
from network_files.transform import resized_size
from train_utils.cli.command import run_command
from train_utils.cli.parser import Parser
from train_utils.data.opening import open_data

CELLS = 28


def measure(targets: list, rois: list, resized: list, whole: list | None, limit: int | None) -> tuple[str, list]:
    """Returns a line of text, and the targets [P, 28, 28] of each image."""
    masks = [t["masks"] if limit is None else t["masks"].limited(limit) for t in targets]
    start = time.perf_counter()
    found = [
        mask_targets([m], [r], [torch.arange(len(m))], [size], CELLS, HALF_PIXEL)
        for m, r, size in zip(masks, rois, resized, strict=True)
    ]
    seconds = time.perf_counter() - start
    size = sum(len(m.pixels) + 8 * m.boxes.numel() for m in masks) / len(masks)
    line = f"{limit or 'whole':>6} {size:>12,.0f} {1e3 * seconds / len(masks):>10.2f}"
    if whole is not None:
        empty = sum(not bool(crop.any()) for m in masks for crop in m.crops())
        a, b = torch.cat(found), torch.cat(whole)
        difference = (a - b).abs()
        line += (
            f" {empty:>6} {difference.mean():>9.4f} {difference.max():>7.2f} "
            f"{((a > 0.5) != (b > 0.5)).float().mean():>12.2%}"
        )
    return line, found


def main(arguments: list[str] | None = None) -> int:
    """Prints a line for each size; returns the exit status."""
    parser = Parser(description=__doc__)
    parser.add_argument("--data-path", required=True)
    parser.add_argument("--sizes", type=int, nargs="+", default=[56, 28])
    parser.add_argument("--min-size", type=int, default=800)
    parser.add_argument("--max-size", type=int, default=1333)
    args = parser.parse_args(arguments)
    torch.manual_seed(0)
    data = open_data(args.data_path, split="train").train
    targets = [data[i][1] for i in range(len(data))]
    resized = [resized_size(*t["masks"].size, args.min_size, args.max_size) for t in targets]
    rois = []
    for target, (height, width) in zip(targets, resized, strict=True):
        scale = torch.tensor([width / target["masks"].size[1], height / target["masks"].size[0]] * 2)
        boxes = target["boxes"] * scale
        sides = (boxes[:, 2:] - boxes[:, :2]).repeat(1, 2)
        moved = boxes + (torch.rand_like(boxes) - 0.5) * 0.2 * sides
        rois.append(moved.clamp(min=0).minimum(torch.tensor([width, height] * 2)))
    print(f"{len(targets)} images, {sum(map(len, rois))} masks; bytes of masks and ms of targets per image")
    print("  size        bytes         ms  empty      mean     max other side")
    whole = None
    for limit in (None, *args.sizes):
        line, found = measure(targets, rois, resized, whole, limit)
        whole = whole or found
        print(line)
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
