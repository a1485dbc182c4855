"""Draws annotation files of COCO 2017's size and statistics by chance: no image and no download is needed.

    python -m benchmarks.coco_size FOLDER                        train2017's: 118,287 images, 860,001 objects
    python -m benchmarks.coco_size FOLDER --images 10000       the same, smaller
    python -m benchmarks.coco_size FOLDER --val                  val2017's, and 100 detections per image

Writes FOLDER/annotations/instances_train2017.json, or instances_val2017.json and FOLDER/detections.json.
--image-files adds an empty file for each image, so that the folder can be opened as a data set.

Sides of objects, numbers of polygons and of their points follow what COCO's jsons have, in COCO's order
(annotations of one image are not next to one another, crowds come last) and spelling.
"""

import json
import sys
from pathlib import Path

import numpy as np
from pycocotools import mask as coco_mask

from train_utils.cli.command import run_command
from train_utils.cli.flags import number
from train_utils.cli.parser import Parser
from train_utils.data.labels import coco_names
from train_utils.io import files

IMAGES, ANNOTATIONS = 118_287, 860_001  # of instances_train2017.json
VAL_IMAGES = 5_000
CROWDS = 0.01
SIZES = ((480, 640), (640, 480), (427, 640), (640, 427), (375, 500), (500, 375))  # (H, W), the common ones
SIZE_SHARES = (0.4, 0.17, 0.22, 0.06, 0.1, 0.05)
PARTS = (0.935, 0.05, 0.015)  # shares of objects of one, two and three polygons
BLOCK = 4096  # annotations drawn at once
HUNDREDTHS = [f"{i / 100:.2f}".rstrip("0").removesuffix(".") for i in range(64001)]  # a coordinate as COCO has it


class Drawn:
    """Polygons of many objects. K objects, R polygons (those of one object next to one another), T points.

    points int64 [T, 2] in hundredths of a pixel; first_point int64 [R + 1]; first_part int64 [K + 1].
    """

    def __init__(self, sizes: np.ndarray, rng: np.random.Generator) -> None:
        """Draws lobed outlines, an object for each of the image sizes [K, 2] (H, W)."""
        count = len(sizes)
        side = np.exp(rng.normal(3.73, 1.18, count)).clip(4, 0.8 * sizes.min(1))  # 41% below 32, 24% above 96
        shape = np.exp(rng.normal(0, 0.35, count))
        half = np.stack((side * shape, side / shape), 1).clip(max=sizes[:, ::-1]) / 2 * 1.2  # [K, 2] x, y
        centre = half + rng.random((count, 2)) * (sizes[:, ::-1] - 2 * half)
        parts = rng.choice(len(PARTS), count, p=PARTS) + 1  # [K]
        self.first_part = np.cumsum([0, *parts])
        owner = np.repeat(np.arange(count), parts)  # [R]
        lengths = 4.4 * side[owner] ** 0.37 * np.exp(rng.normal(0, 0.5, len(owner)))
        lengths = lengths.astype(np.int64).clip(4, 300)  # [R] points
        self.first_point = np.cumsum([0, *lengths])
        polygon = np.repeat(np.arange(len(owner)), lengths)  # [T]
        step = np.arange(len(polygon)) - self.first_point[polygon]
        angle = 2 * np.pi * (step + 0.6 * rng.random(len(polygon))) / lengths[polygon]
        lobes, phase = rng.integers(1, 4, len(owner)), rng.uniform(0, 7, len(owner))  # [R]
        radius = 0.75 + 0.2 * np.sin(lobes[polygon] * angle + phase[polygon]) + 0.05 * rng.random(len(polygon))
        place = owner[polygon]
        several = parts[place] > 1  # their parts are half as large, and lie apart
        shift = rng.uniform(-0.5, 0.5, (len(owner), 2))[polygon] * several[:, None]
        radius = np.where(several, radius / 2, radius)
        points = centre[place] + half[place] * (shift + radius[:, None] * np.stack((np.cos(angle), np.sin(angle)), 1))
        limit = 100 * sizes[place, ::-1]
        self.points = np.rint(points * 100).astype(np.int64).clip(0, limit)

    def boxes(self) -> np.ndarray:
        """Returns x y w h in hundredths, int64 [K, 4]."""
        starts = self.first_point[self.first_part[:-1]]
        low, high = np.minimum.reduceat(self.points, starts), np.maximum.reduceat(self.points, starts)
        return np.concatenate((low, high - low), 1)

    def areas(self) -> np.ndarray:
        """Returns areas by the shoelace formula, in pixels, float64 [K]."""
        follower = np.arange(1, len(self.points) + 1)
        follower[self.first_point[1:] - 1] = self.first_point[:-1]
        (x, y), (x2, y2) = self.points.T / 100, self.points[follower].T / 100
        doubled = np.add.reduceat(x * y2 - x2 * y, self.first_point[:-1])
        return np.add.reduceat(np.abs(doubled), self.first_part[:-1]) / 2

    def polygons(self, k: int) -> list[list[float]]:
        """Returns object k's polygons, [[x1, y1, x2, y2, ...], ...] in pixels."""
        bounds = self.first_point[self.first_part[k] : self.first_part[k + 1] + 1]
        return [(self.points[a:b] / 100).ravel().tolist() for a, b in zip(bounds, bounds[1:], strict=False)]


def write_train(folder: str | Path, images: int = IMAGES, seed: int = 0) -> Path:
    """Writes annotations/instances_train2017.json for that many images; returns its path."""
    return _write_instances(Path(folder) / "annotations" / "instances_train2017.json", images, seed)


def write_val(folder: str | Path, images: int = VAL_IMAGES, detections: int = 100, seed: int = 1) -> tuple[Path, Path]:
    """Writes annotations/instances_val2017.json and detections.json (COCO results with bbox, segmentation, score).

    detections: how many for each image, at most: objects found somewhat displaced, most with their own
    category and a good score, then false ones. Returns both paths.
    """
    folder = Path(folder)
    path = _write_instances(folder / "annotations" / "instances_val2017.json", images, seed)
    _write_detections(folder / "detections.json", json.loads(path.read_text()), detections, seed)
    return path, folder / "detections.json"


def write_image_files(json_path: str | Path, folder: str | Path) -> None:
    """Writes an empty file for each image of a json, so that none is missing."""
    files.make_folder(folder)
    for image in json.loads(Path(json_path).read_text())["images"]:
        (Path(folder) / image["file_name"]).touch()


def _write_instances(path: Path, images: int, seed: int) -> Path:
    rng = np.random.default_rng([seed, images])
    count = round(images * ANNOTATIONS / IMAGES)
    crowds = round(count * CROWDS)
    ids = rng.permutation(600_000 if images < 300_000 else 5 * images)[:images] + 1
    sizes = np.array(SIZES)[rng.choice(len(SIZES), images, p=SIZE_SHARES)]  # [I, 2]
    weights = rng.gamma(0.9, size=images)  # some images hold many objects, one in a hundred none
    owner = rng.choice(images, count, p=weights / weights.sum())  # [A] image of each annotation
    category_ids = np.array(list(coco_names()))
    shares = 1 / np.arange(3, 3 + len(category_ids))
    shares[0] = 2.2 * shares[1:].sum() * 0.2  # persons are three in ten
    categories = rng.choice(category_ids, count, p=shares / shares.sum())
    files.make_folder(path.parent)
    with files.atomic_file(path) as file:
        file.write(b'{"info": {"description": "drawn by chance", "year": 2017},"licenses": [],"images": [')
        for row, (image_id, (height, width)) in enumerate(zip(ids.tolist(), sizes.tolist(), strict=True)):
            name = f"{image_id:012d}.jpg"
            line = (
                f'{{"license": {row % 8 + 1},"file_name": "{name}","coco_url": '
                f'"http://images.cocodataset.org/train2017/{name}","height": {height},"width": {width},'
                f'"date_captured": "2013-11-14 17:02:52","flickr_url": '
                f'"http://farm7.staticflickr.com/6116/{image_id:010d}_a0123456789_z.jpg","id": {image_id}}}'
            )
            file.write((",\n" * (row > 0) + line).encode())
        file.write(b'],"annotations": [')
        for start in range(0, count, BLOCK):
            stop = min(start + BLOCK, count)
            rows = owner[start:stop]
            segmentations, boxes, areas = _plain(sizes[rows], rng)
            for i in range(max(start, count - crowds), stop):
                segmentations[i - start], boxes[i - start], areas[i - start] = _crowd(sizes[owner[i]], rng)
            lines = [
                f'{{"segmentation": {segmentation},"area": {area!r},"iscrowd": {int(i >= count - crowds)},'
                f'"image_id": {image_id},"bbox": [{box}],"category_id": {category},'
                f'"id": {i + 1 if i < count - crowds else 900_000_000_000 + i}}}'
                for i, segmentation, area, image_id, box, category in zip(
                    range(start, stop),
                    segmentations,
                    areas,
                    ids[rows].tolist(),
                    boxes,
                    categories[start:stop].tolist(),
                    strict=True,
                )
            ]
            file.write((",\n" * (start > 0) + ",\n".join(lines)).encode())
        listed = [{"supercategory": "thing", "id": i, "name": name} for i, name in coco_names().items()]
        file.write(b'],"categories": ' + json.dumps(listed).encode() + b"}")
    return path


def _plain(sizes: np.ndarray, rng: np.random.Generator) -> tuple[list[str], list[str], list[float]]:
    """Returns segmentations and boxes as json text, and areas, of objects with polygons."""
    drawn = Drawn(sizes, rng)
    words = list(map(HUNDREDTHS.__getitem__, drawn.points.ravel().tolist()))
    starts = (2 * drawn.first_point).tolist()
    polygons = [f"[{','.join(words[a:b])}]" for a, b in zip(starts, starts[1:], strict=False)]
    bounds = drawn.first_part.tolist()
    segmentations = [f"[{','.join(polygons[a:b])}]" for a, b in zip(bounds, bounds[1:], strict=False)]
    boxes = [",".join(map(HUNDREDTHS.__getitem__, box)) for box in drawn.boxes().tolist()]
    return segmentations, boxes, drawn.areas().tolist()


def _crowd(size: np.ndarray, rng: np.random.Generator) -> tuple[str, str, int]:
    """Returns an uncompressed RLE: in each column of a region, two runs of pixels of a crowd."""
    height, width = size.tolist()
    w, h = (int(side * rng.uniform(0.3, 0.95)) for side in (width, height))
    x, y = int(rng.integers(width - w)), int(rng.integers(height - h))
    cuts = rng.integers(1, h // 4, (w, 4)).cumsum(1)  # [w, 4] rising rows below h
    edges = ((x + np.arange(w)) * height + y)[:, None] + cuts - 1
    counts = np.diff([0, *edges.ravel().tolist(), height * width])
    area = int(counts[1::2].sum())
    return json.dumps({"counts": counts.tolist(), "size": [height, width]}), f"{x},{y},{w},{h}", area


def _write_detections(path: Path, truth: dict, per_image: int, seed: int) -> None:
    rng = np.random.default_rng([seed, per_image, 1])
    objects: dict[int, list[dict]] = {image["id"]: [] for image in truth["images"]}
    for annotation in truth["annotations"]:
        if not annotation["iscrowd"]:
            objects[annotation["image_id"]].append(annotation)
    category_ids = np.array([category["id"] for category in truth["categories"]])
    with files.atomic_file(path) as file:
        file.write(b"[")
        for n, image in enumerate(truth["images"]):
            size = image["height"], image["width"]
            found = objects[image["id"]][:per_image]
            false = Drawn(np.array([size] * (per_image - len(found))).reshape(-1, 2), rng)
            rles = [_displaced(annotation, size, rng) for annotation in found]
            rles += [
                coco_mask.merge(coco_mask.frPyObjects(false.polygons(k), *size)) for k in range(per_image - len(found))
            ]
            boxes = coco_mask.toBbox(rles) + rng.normal(0, 0.5, (per_image, 4)) * [1, 1, 0, 0]
            categories = rng.choice(category_ids, per_image)
            right = np.flatnonzero(rng.random(len(found)) < 0.9)
            categories[right] = [found[k]["category_id"] for k in right]
            scores = np.concatenate((rng.beta(3, 1.5, len(found)), rng.beta(1, 8, per_image - len(found))))
            results = [
                {
                    "image_id": image["id"],
                    "category_id": category,
                    "bbox": box,
                    "segmentation": {"size": list(size), "counts": rle["counts"].decode()},
                    "score": score,
                }
                for category, box, rle, score in zip(
                    categories.tolist(), boxes.tolist(), rles, scores.tolist(), strict=True
                )
            ]
            file.write((", " * (n > 0) + json.dumps(results)[1:-1]).encode())
        file.write(b"]")


def _displaced(annotation: dict, size: tuple[int, int], rng: np.random.Generator) -> dict:
    """Returns an object's RLE, a little off its place: by a twentieth of its sides."""
    shift = rng.normal(0, 0.05, 2) * annotation["bbox"][2:]
    limit = np.array(size[::-1])
    moved = [
        (np.array(part).reshape(-1, 2) + shift).clip(0, limit).ravel().tolist() for part in annotation["segmentation"]
    ]
    return coco_mask.merge(coco_mask.frPyObjects(moved, *size))


def main(argv: list[str] | None = None) -> None:
    """Writes the files that the command line asks for."""
    parser = Parser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--val", action="store_true", help="val2017's size and detections, not train2017's")
    parser.add_argument("--images", type=number(int, least=1), help=f"default: {IMAGES}, with --val {VAL_IMAGES}")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--image-files", action="store_true", help="write an empty file for each image too")
    args = parser.parse_args(argv)
    if args.val:
        written = write_val(args.folder, args.images or VAL_IMAGES, seed=args.seed)
    else:
        written = (write_train(args.folder, args.images or IMAGES, args.seed),)
    if args.image_files:
        write_image_files(written[0], args.folder / ("val2017" if args.val else "train2017"))
    for path in written:
        print(f"{path}: {path.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    sys.exit(run_command(main))
