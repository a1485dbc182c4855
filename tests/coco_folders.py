"""Small COCO-format folders for tests."""

import json

import numpy as np
from PIL import Image


def write_image(path, size=(20, 30), value=100):
    """Write a grey image of `size` (H, W)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((*size, 3), value, dtype=np.uint8)).save(path)


def square(x=2, y=3, side=10):
    return [[x, y, x + side, y, x + side, y + side, x, y + side]]


def annotation(i=1, image_id=1, **fields):
    """A square of category 1; None leaves a field out."""
    whole = {
        "id": i,
        "image_id": image_id,
        "category_id": 1,
        "bbox": [2, 3, 10, 10],
        "area": 100,
        "iscrowd": 0,
        "segmentation": square(),
        **fields,
    }
    return {key: value for key, value in whole.items() if value is not None}


def coco(images=None, annotations=None, categories=None):
    """A COCO dict; by default one image of 20 x 30 (H, W) with one square."""
    return {
        "images": [{"id": 1, "file_name": "a.png", "height": 20, "width": 30}] if images is None else images,
        "annotations": [annotation()] if annotations is None else annotations,
        "categories": [{"id": 1, "name": "thing"}] if categories is None else categories,
    }


def write(folder, content, json_name="instances.json", image_dir="images"):
    """Write `content` and its images under `folder`; returns the json's path."""
    path = folder / json_name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    for image in content["images"]:
        size = int(image.get("height", 20)), int(image.get("width", 30))
        write_image(folder / image_dir / image["file_name"], size)
    return path


def many(count, start=1, **fields):
    """A COCO dict of `count` images, each with one square."""
    ids = range(start, start + count)
    images = [{"id": i, "file_name": f"{i}.png", "height": 20, "width": 30} for i in ids]
    return coco(images, [annotation(i, i, **fields) for i in ids])
