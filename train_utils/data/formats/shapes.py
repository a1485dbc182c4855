"""The built-in data set: rectangles, ellipses and triangles, drawn once into a folder in COCO's layout.

    FOLDER/annotations/instances_train2017.json   instances_val2017.json
    FOLDER/train2017/000000000001.png ...         FOLDER/val2017/...

It is read back like any COCO data set, so that a first run exercises the whole real path. An image is a
function of (seed, split, number) alone. It shows 1 to 5 shapes of random colours, later ones over earlier
ones, on a noisy ground; masks and boxes are those of the visible part (modal). One image in twenty is
empty, and one in twenty holds a crowd: many small shapes of one class, annotated as a single region with
iscrowd 1. Objects carry compressed RLE, crowds uncompressed RLE, as both occur in the wild.
"""

import json
import os
from pathlib import Path

import numpy as np
from PIL import Image
from pycocotools import mask as coco_mask

from backbone.errors import InputError
from train_utils.io.unfinished import clear_leftovers, new_file, unfinished_folder

CLASSES = ("rectangle", "ellipse", "triangle")  # category ids 1, 2, 3
EVERY, EMPTY, CROWD = 20, 7, 13  # image n is empty where n % 20 == 7, has a crowd where n % 20 == 13
MIN_VISIBLE = 0.25  # the part of each shape that later ones must leave uncovered
MIN_CONTRAST = 100  # of 255, in the channel where a shape differs most from the ground
NOISE = 8.0  # standard deviation of the ground, of 255


def make_shapes(folder: str | Path, train: int = 900, val: int = 60, size: int = 128, seed: int = 0) -> Path:
    """Draws the data set into `folder`, unless it is there already, and returns the folder as a Path.

    `train` and `val` count images, of size x size pixels. The folder appears only when complete: it is
    drawn under a temporary name beside it and then renamed. So an interrupted draw leaves nothing that could
    be mistaken for a data set, and of two processes that draw at once the first to finish wins. Raises
    InputError when the folder holds something else, or shapes drawn with other settings.
    """
    folder = Path(folder)
    info = {"description": "drawn shapes", "version": "2", "train": train, "val": val, "size": size, "seed": seed}
    if size < 32:
        raise InputError(f"shapes need images of at least 32 x 32 pixels, not {size}")
    if _is_drawn(folder, info):
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        clear_leftovers(folder.parent)
        with unfinished_folder(folder.parent) as unfinished:
            _draw_split(unfinished, "train2017", train, (seed, 0), info)
            _draw_split(unfinished, "val2017", val, (seed, 1), info)
            os.rename(unfinished, folder)  # onto an empty or missing folder only
    except OSError as error:
        if not _is_drawn(folder, info):  # else another process was faster
            raise InputError(f"{folder}: the shapes cannot be drawn here ({error.strerror})") from error
    return folder


def _is_drawn(folder: Path, info: dict) -> bool:
    """Returns whether `folder` holds this very data set; InputError unless it does, or is missing or empty."""
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return False
    try:
        found = json.loads((folder / "annotations" / "instances_val2017.json").read_text())["info"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{folder} exists and is not a shapes data set: remove it, or draw elsewhere") from error
    if found != info:
        raise InputError(
            f"{folder} holds a data set with other settings ({found}, wanted {info}): remove it, or draw elsewhere"
        )
    return True


def _draw_split(root: Path, split: str, count: int, seed: tuple[int, int], info: dict) -> None:
    (root / split).mkdir(parents=True)
    (root / "annotations").mkdir(exist_ok=True)
    categories = [{"id": i, "name": name, "supercategory": "shape"} for i, name in enumerate(CLASSES, 1)]
    data = {"info": info, "licenses": [], "images": [], "annotations": [], "categories": categories}
    side = info["size"]
    for number in range(1, count + 1):
        rng = np.random.default_rng([*seed, number])
        crowded, empty = number % EVERY == CROWD, number % EVERY == EMPTY
        image, objects = draw_image(rng, side, 0 if empty else int(rng.integers(1, 6)), crowded)
        file_name = f"{number:012d}.png"
        with new_file(root / split / file_name) as file:
            Image.fromarray(image).save(file, "PNG")
        data["images"].append({"id": number, "file_name": file_name, "width": side, "height": side})
        for category, mask, iscrowd in objects:
            annotation = {"id": len(data["annotations"]) + 1, "image_id": number, "category_id": category}
            data["annotations"].append(annotation | _describe(mask, iscrowd))
    with new_file(root / "annotations" / f"instances_{split}.json") as file:
        file.write(json.dumps(data).encode())


def draw_image(
    rng: np.random.Generator, size: int, count: int, crowded: bool
) -> tuple[np.ndarray, list[tuple[int, np.ndarray, int]]]:
    """Draws one image with `count` shapes, and a crowd beneath them if asked for.

    Returns uint8 [size, size, 3] and a list of (category id, visible mask bool [size, size], iscrowd 0 or 1).
    """
    ground = rng.uniform(40, 216, 3)
    image = ground + rng.normal(0, NOISE, (size, size, 3))
    crowds = [_draw_crowd(rng, image, ground)] if crowded else []  # (category, whole mask, iscrowd)
    while True:  # until every shape can be seen: a few tries at most
        shapes = [
            (int(rng.integers(len(CLASSES))), *_random_box(rng, size, size / 8, size / 2.5)) for _ in range(count)
        ]
        drawn = crowds + [(kind + 1, _shape_mask(size, kind, *box), 0) for kind, *box in shapes]
        visible = _visible_parts([mask for _, mask, _ in drawn])
        whole_areas = np.array([mask.sum() for _, mask, _ in drawn])
        if (np.array([mask.sum() for mask in visible]) >= MIN_VISIBLE * whole_areas).all():
            break
    for _, mask, _ in drawn[len(crowds) :]:
        image[mask] = _random_colour(rng, ground)
    image = image.round().clip(0, 255).astype(np.uint8)
    return image, [(category, mask, iscrowd) for (category, _, iscrowd), mask in zip(drawn, visible, strict=True)]


def _draw_crowd(rng: np.random.Generator, image: np.ndarray, ground: np.ndarray) -> tuple[int, np.ndarray, int]:
    """Draws 12 to 20 small shapes of one class within one part of the image; the region is their union."""
    size = len(image)
    kind = int(rng.integers(len(CLASSES)))
    left, top = rng.uniform(0, size / 2, 2)
    region = np.zeros((size, size), dtype=bool)
    for _ in range(int(rng.integers(12, 21))):
        x, y, width, height, point_up = _random_box(rng, size / 2, size / 20, size / 10)
        mask = _shape_mask(size, kind, left + x, top + y, width, height, point_up)
        image[mask] = _random_colour(rng, ground)
        region |= mask
    return kind + 1, region, 1


def _random_box(
    rng: np.random.Generator, room: float, low: float, high: float
) -> tuple[float, float, float, float, bool]:
    """Returns x1, y1, width, height (sides from [low, high), inside room x room), and which way a triangle points."""
    width, height = rng.uniform(low, high, 2)
    return (rng.uniform(0, room - width), rng.uniform(0, room - height), width, height, bool(rng.integers(2)))


def _random_colour(rng: np.random.Generator, ground: np.ndarray) -> np.ndarray:
    while True:
        colour = rng.uniform(0, 255, 3)
        if np.abs(colour - ground).max() >= MIN_CONTRAST:
            return colour


def _shape_mask(size: int, kind: int, x1: float, y1: float, width: float, height: float, point_up: bool) -> np.ndarray:
    """Returns bool [size, size]: the pixels whose centre lies in the shape that fills the given box."""
    y, x = np.mgrid[:size, :size] + 0.5
    u, v = (x - x1) / width, (y - y1) / height  # 0..1 across the box
    inside = (u >= 0) & (u < 1) & (v >= 0) & (v < 1)
    if kind == 1:
        inside &= (2 * u - 1) ** 2 + (2 * v - 1) ** 2 <= 1
    elif kind == 2:
        inside &= np.abs(2 * u - 1) <= (v if point_up else 1 - v)
    return inside


def _visible_parts(masks: list[np.ndarray]) -> list[np.ndarray]:
    """Returns what of each mask is left after the later ones are painted over it."""
    parts, covered = [], np.zeros_like(masks[0]) if masks else None
    for mask in reversed(masks):
        parts.append(mask & ~covered)
        covered = covered | mask
    return parts[::-1]


def _describe(mask: np.ndarray, iscrowd: int) -> dict:
    """Returns the shape-dependent fields of a COCO annotation."""
    ys, xs = np.nonzero(mask)
    x, y = int(xs.min()), int(ys.min())
    rle = coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8))
    counts = _run_lengths(mask) if iscrowd else rle["counts"].decode()
    return {
        "bbox": [x, y, int(xs.max()) + 1 - x, int(ys.max()) + 1 - y],
        "area": int(mask.sum()),
        "iscrowd": iscrowd,
        "segmentation": {"size": list(mask.shape), "counts": counts},
    }


def _run_lengths(mask: np.ndarray) -> list[int]:
    """Returns uncompressed RLE: lengths of the alternating runs of 0 and 1 in column order, starting with 0."""
    column_order = np.concatenate(([0], mask.ravel(order="F"), [2]))  # 2 ends the last run, whatever it holds
    changes = np.flatnonzero(np.diff(column_order))
    return np.diff(np.concatenate(([0], changes))).tolist()
