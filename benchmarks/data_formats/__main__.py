"""Writes the validation images of a COCO data set in every format, opens them again, and prints a table.

    python -m benchmarks.data_formats DATA

For each format: objects, pixels of masks that differ from the COCO form's (each object beside the most alike of its
image), median IoU, and CPU time of reading every image and target as a share of the COCO form's, medians of turns.
Round trip is what writing in that format and opening again leaves; masks that share pixels lose them in index images.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from tools import coco_to_npy, pack_dataset
from train_utils.cli.command import run_command
from train_utils.cli.flags import number
from train_utils.cli.parser import Parser
from train_utils.data.dataset import ImageDataset
from train_utils.data.masks import encoded
from train_utils.data.opening import open_data
from train_utils.prediction.data_sets import FORMS, write_data_set


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Reads the command line."""
    parser = Parser(description=__doc__)
    parser.add_argument("data_path", metavar="DATA", help="the COCO data set")
    parser.add_argument("--turns", type=number(int, least=1), default=3, help="of reading each format")
    return parser.parse_args(argv)


def in_all_formats(data_set: ImageDataset, folder: Path) -> dict[str, ImageDataset]:
    """Writes a data set in each format into `folder`; returns {format: data set}."""
    paths = [data_set.file_name(i) for i in range(len(data_set))]
    results = [result for i in range(len(data_set)) for result in results_of(data_set, i)]
    for form in FORMS:
        write_data_set(form, folder / form, paths, results, data_set.label_map)
    (folder / "npy").mkdir()
    labels = coco_to_npy.new_labels(data_set.label_map, None)
    coco_to_npy.write_split(folder / "npy", "", data_set, labels, coco_to_npy.Options(data_set.source, "npy"))
    (folder / "packed").mkdir()
    for split in ("train", "val"):
        pack_dataset.pack(data_set, folder / "packed" / f"{split}.pack")
    forms = [*FORMS, "npy", "packed"]
    return {form: open_data(folder / form, "train", val_fraction=0).train for form in forms}


def results_of(data_set: ImageDataset, i: int) -> list[dict]:
    """Returns the objects of image i as COCO results that are sure of them."""
    target, label_map = data_set.target(i), data_set.label_map
    categories = dict(zip(label_map.labels(), label_map.category_ids, strict=True))
    return [
        {"image_id": i + 1, "category_id": categories[label], "segmentation": rle, "score": 1.0}
        for label, rle, crowd in zip(
            target["labels"].tolist(), encoded(target["masks"]), target["iscrowd"].tolist(), strict=True
        )
        if not crowd
    ]


def masks_by_image(data_set: ImageDataset) -> dict[str, np.ndarray]:
    """Returns {an image's stem: the masks of its objects, bool [N, H, W]}."""
    found = {}
    for i in range(len(data_set)):
        target = data_set.target(i)
        masks = target["masks"][torch.nonzero(target["iscrowd"] == 0)[:, 0]].to_masks()
        found[Path(data_set.file_name(i)).stem] = masks.numpy().astype(bool)
    return found


def compared(before: dict[str, np.ndarray], after: dict[str, np.ndarray]) -> tuple[int, int, float]:
    """Returns (objects after, pixels that differ from the most alike object's, median IoU with it)."""
    differing, ious = 0, []
    for stem, masks in before.items():
        one, two = (each.reshape(len(each), -1).astype(np.float32) for each in (masks, after[stem]))
        if not len(one) or not len(two):
            differing += int(one.sum() + two.sum())
            continue
        both = one @ two.T  # [N, M]
        union = one.sum(1)[:, None] + two.sum(1)[None] - both
        best = (both / np.maximum(union, 1)).argmax(1)
        rows = np.arange(len(one))
        differing += int((union - both)[rows, best].sum())
        ious += (both / np.maximum(union, 1))[rows, best].tolist()
    return sum(map(len, after.values())), differing, statistics.median(ious)


def seconds_of(data_set: ImageDataset) -> float:
    """Returns the CPU time of reading each image and target once."""
    start = time.process_time()
    for i in range(len(data_set)):
        data_set[i]
    return time.process_time() - start


def main(argv: list[str] | None = None) -> int:
    """Prints the table; returns the exit status."""
    args = parse_args(argv)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        own = open_data(args.data_path, "val").val
        forms = {"as given": own, **in_all_formats(own, Path(folder))}
        before = masks_by_image(own)
        pixels = sum(int(masks.sum()) for masks in before.values())
        print(f"{len(own)} images, {sum(map(len, before.values()))} objects, {pixels:,} pixels of masks")
        turns = [{form: seconds_of(part) for form, part in forms.items()} for _ in range(args.turns)]
        for form, part in forms.items():
            objects, differing, iou = compared(before, masks_by_image(part))
            ratio = statistics.median(turn[form] / turn["as given"] for turn in turns)
            print(f"{form:9} {objects:6} objects  {differing:7} pixels differ  median IoU {iou:.4f}  read {ratio:.2f}x")
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
