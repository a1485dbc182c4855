"""COCO results made of a ground truth by spoiling it: every kind of mistake, in known places or by chance."""

import numpy as np
from pycocotools import mask as coco_mask

from train_utils.evaluation.mistakes.matching import to_rle

SHARES = {"right": 0.56, "class": 0.1, "location": 0.1, "both": 0.1, "duplicate": 0.06, "missed": 0.08}


def result(annotation: dict, size: tuple[int, int], score: float, category: int | None = None, shift=(0, 0)) -> dict:
    """A detection of an annotation of an image of `size` (H, W), moved by shift x y pixels."""
    pixels = coco_mask.decode(to_rle(annotation["segmentation"], size))
    moved = np.zeros_like(pixels, order="F")
    (dx, dy), (height, width) = shift, size
    moved[max(dy, 0) : height + min(dy, 0), max(dx, 0) : width + min(dx, 0)] = pixels[
        max(-dy, 0) : height - max(dy, 0), max(-dx, 0) : width - max(dx, 0)
    ]
    rle = coco_mask.encode(moved)
    return {
        "image_id": annotation["image_id"], "category_id": category or annotation["category_id"], "score": score,
        "bbox": coco_mask.toBbox(rle).tolist(), "segmentation": {**rle, "counts": rle["counts"].decode()},
    }  # fmt: skip


def spoil(truth: dict, seed: int = 0, shares: dict[str, float] = SHARES) -> list[dict]:
    """Results of each kind in about these shares of the objects, and one in six images with one on the background."""
    rng, found = np.random.default_rng(seed), []
    sizes = {image["id"]: (image["height"], image["width"]) for image in truth["images"]}
    ids = [category["id"] for category in truth["categories"]]
    for annotation in truth["annotations"]:
        size, (w, h) = sizes[annotation["image_id"]], annotation["bbox"][2:]
        kind = rng.choice(list(shares), p=list(shares.values())) if not annotation["iscrowd"] else "missed"
        if kind == "missed":
            continue
        moved = {"location": 0.35, "both": 0.4}.get(kind, 0.04) * rng.choice([-1, 1], 2) * [w, h]
        others = [i for i in ids if i != annotation["category_id"]] or ids
        category = int(rng.choice(others)) if kind in ("class", "both") else None
        score = float(rng.beta(6, 2) if kind == "right" else rng.beta(3, 3))
        found.append(result(annotation, size, score, category, np.rint(moved).astype(int).tolist()))
        if kind == "duplicate":
            found.append(result(annotation, size, score * 0.8))
    for image_id, (height, width) in sizes.items():
        if rng.random() < 1 / 6:
            x, y, w, h = int(width * 0.05), int(height * 0.05), max(width // 6, 2), max(height // 6, 2)
            place = {
                "image_id": image_id,
                "category_id": int(rng.choice(ids)),
                "segmentation": [[x, y, x + w, y, x + w, y + h, x, y + h]],
            }
            found.append(result(place, (height, width), float(rng.beta(2, 4))))
    return found
