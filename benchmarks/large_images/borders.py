"""Moves the borders of tiles over a mosaic that a network without fault looks at: what they lose, double or cut.

    python -m benchmarks.large_images.borders                             the built-in data, 50 places of the borders
    python -m benchmarks.large_images.borders --data-path DATA --tile 256 --side 256

The mosaic is of validation images, without their crowd regions. The network shows what a tile has of each object, in
28 x 28 cells of that part's box, as a mask head at its best does. Beside it stands what it shows of the whole mosaic.
Lost: objects of which no detection of the tiles has a mask of IoU 0.5. Doubled: detections beyond the first that do.
More: detections that do so with none. Cut: of the rest, those with an IoU below 0.95. No weights are needed.
D detections, G objects.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from collections import Counter

import numpy as np
import torch
from pycocotools import mask as coco_mask
from torch import Tensor

from network_files.operators.boxes import HALF_PIXEL
from network_files.operators.cropped_masks import CroppedMasks
from network_files.operators.instance_masks import encode_cropped, mask_probs_to_bool, mask_targets
from train_utils.cli.command import run_command
from train_utils.cli.flags import number
from train_utils.cli.parser import Parser
from train_utils.data.opening import open_data
from train_utils.data.options import DataOptions
from train_utils.data.tiles.tiling import Size, Tiling
from train_utils.evaluation.tiled_model import joined
from train_utils.io.plain_text import counted

CELLS = 28  # of a mask, a side
MET, WHOLE = 0.5, 0.95  # IoU of masks


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Reads the command line."""
    parser = Parser(description=__doc__)
    parser.add_argument("--data-path", help="default: the built-in shapes")
    parser.add_argument("--side", type=number(int, least=32), default=128, help="pixels of each image of the mosaic")
    parser.add_argument("--images", type=number(int, least=1), default=6, help="images a row, and a column")
    parser.add_argument("--tile", type=number(int, least=32), default=128, help="pixels of a tile's side")
    parser.add_argument("--overlap", type=float, default=0.25)
    parser.add_argument("--offsets", type=number(int, least=1), default=50, metavar="N")
    return parser.parse_args(argv)


def objects_of(args: argparse.Namespace) -> tuple[CroppedMasks, Tensor]:
    """Returns masks and labels [G] of the objects of a mosaic of validation images, again from the first after all."""
    data, side = open_data(DataOptions(data_path=args.data_path), "val").val, args.side
    boxes, crops, labels = [torch.zeros(0, 4, dtype=torch.int64)], [], []
    for placed, i in enumerate(itertools.islice(itertools.cycle(range(len(data))), args.images**2)):
        y, x = (side * place for place in divmod(placed, args.images))
        target = data.target(i)
        masks = target["masks"].window(0, 0, side, side)
        own = (masks.areas() > 0) & (target["iscrowd"] == 0)
        crops += masks[own].crops()
        boxes.append(masks[own].boxes + torch.tensor([x, y, x, y]))
        labels.append(target["labels"][own])
    size = (side * args.images,) * 2
    return CroppedMasks.from_crops(crops, torch.cat(boxes), size), torch.cat(labels)


def shown(masks: CroppedMasks, labels: Tensor, window: tuple[int, int, int, int]) -> dict:
    """Returns what a network without fault shows in a window x1 y1 x2 y2 of an image with these objects."""
    x1, y1, x2, y2 = window
    near = (masks.boxes[:, :2] < torch.tensor([x2, y2])).all(1) & (masks.boxes[:, 2:] > torch.tensor([x1, y1])).all(1)
    seen, labels, size = masks[near].window(x1, y1, x2 - x1, y2 - y1), labels[near], (y2 - y1, x2 - x1)
    there = seen.areas() > 0
    seen, labels = seen[there], labels[there]
    boxes = seen.boxes.float()
    if len(boxes):
        probs = mask_targets([seen], [boxes], [torch.arange(len(seen))], [size], CELLS, HALF_PIXEL)
        seen = mask_probs_to_bool(probs, boxes, size, HALF_PIXEL)
    return {"boxes": boxes, "labels": labels, "scores": torch.full((len(boxes),), 0.9), "masks": seen}


def differences(found: CroppedMasks, whole: CroppedMasks) -> Counter[str]:
    """Returns how many of the objects that the whole image shows tiles lose, double and cut, and how many they add."""
    codes = encode_cropped(found), encode_cropped(whole)
    if not all(codes):
        return Counter({"lost": len(whole), "more": len(found)})
    iou = np.asarray(coco_mask.iou(*codes, [0] * len(whole)))  # [D, G]
    meet, best = (iou >= MET).sum(0), iou.max(0)
    more, doubled = int((iou.max(1) < MET).sum()), int((meet - 1).clip(0).sum())
    cut = int(((best >= MET) & (best < WHOLE)).sum())
    return Counter({"lost": int((meet == 0).sum()), "more": more, "doubled": doubled, "cut": cut})


def look(masks: CroppedMasks, labels: Tensor, tiling: Tiling, size: Size) -> CroppedMasks:
    """Returns the joined masks of an image's tiles."""
    tiles = tiling.boxes(size)
    return joined([shown(masks, labels, tuple(tile)) for tile in tiles.tolist()], tiles, size)["masks"]


def main(argv: list[str] | None = None) -> int:
    """Prints the sums over all places."""
    args = parse_args(argv)
    torch.set_num_threads(1)
    (masks, labels), tiling = objects_of(args), Tiling(args.tile, args.overlap)
    side = masks.size[0] + args.tile  # room to move in
    generator, sums = torch.Generator().manual_seed(0), Counter()
    for _ in range(args.offsets):
        dy, dx = torch.randint(args.tile, (2,), generator=generator).tolist()
        moved = masks.window(-dx, -dy, side, side)
        whole = shown(moved, labels, (0, 0, side, side))["masks"]
        sums += differences(look(moved, labels, tiling, (side, side)), whole)
    tiles = counted(len(tiling.boxes((side, side))), "tile")
    print(f"{counted(len(masks), 'object')} in {tiles} of {args.tile} pixels, overlap {args.overlap:g}, ", end="")
    print(f"{counted(args.offsets, 'place')}, {args.offsets * len(masks):,} in all: ", end="")
    print(", ".join(f"{sums[kind]} {kind}" for kind in ("lost", "more", "doubled", "cut")))
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
