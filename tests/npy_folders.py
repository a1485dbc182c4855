"""Small folders of images with .npy annotations for tests."""

import numpy as np
from PIL import Image

SIZE = (20, 30)  # height, width


def rectangles(*objects, size=SIZE):
    """The content of a .npy: (label, x1, y1, x2, y2) each, the mask fills the box but for its first pixel."""
    masks = np.zeros((len(objects), *size), dtype=np.uint8)
    for mask, (_, x1, y1, x2, y2) in zip(masks, objects, strict=True):
        mask[y1:y2, x1:x2] = 1
        mask[y1 : y1 + 1, x1 : x1 + 1] = 0
    boxes = np.array([box for _, *box in objects], dtype=np.float32).reshape(-1, 4)
    return {"boxes": boxes, "labels": np.array([o[0] for o in objects], dtype=np.int64), "masks": masks}


def turned(content):
    """The same with masks [n, W, H]."""
    return {**content, "masks": content["masks"].transpose(0, 2, 1)}


def image(path, size=SIZE):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((*size, 3), 100, dtype=np.uint8)).save(path)


def add(root, name, content, suffix="", size=SIZE):
    """An image NAME (7: 7.png) and its .npy; returns the path of the latter."""
    name = str(name)
    image(root / f"images{suffix}" / (name if "." in name else f"{name}.png"), size)
    path = root / f"annotations{suffix}" / f"{name.split('.')[0]}.npy"
    path.parent.mkdir(parents=True, exist_ok=True)
    np.save(path, content)
    return path


def many(root, count, suffix="", classes=2):
    """`count` images, numbered from 1, with one object each, of the classes by turns."""
    for i in range(1, count + 1):
        add(root, i, rectangles((1 + i % classes, 2, 3, 12, 15)), suffix)
    return root
