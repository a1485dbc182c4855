"""Finds objects in an image with a file of tools.export: python run_onnx.py model.onnx photo.jpg [least score]."""

import json
import sys

import numpy as np
import onnxruntime
from PIL import Image, ImageOps


def sampled(array, at, axis):
    """Reads an array between its cells along an axis, bilinear; beyond the ends the last cell goes on."""
    at = np.clip(at, 0, array.shape[axis] - 1)
    low = at.astype(int)
    part = (at - low).astype(np.float32).reshape([-1 if i == axis else 1 for i in range(array.ndim)])
    return array.take(low, axis) * (1 - part) + array.take(np.minimum(low + 1, array.shape[axis] - 1), axis) * part


def pasted(mask, box, size, geometry):
    """The mask [28, 28] of a box x1 y1 x2 y2 as bool [H, W], where its probability is above a half."""
    start, end = box[:2], box[2:]
    if geometry == "torchvision":  # padded by a cell, the box grown with it and cut to whole pixels
        centre, half = (start + end) / 2, (end - start) / 2 * (len(mask) + 2) / len(mask)
        mask, start, end = np.pad(mask, 1), np.trunc(centre - half), np.trunc(centre + half) + 1
    x, y = np.arange(size[1]) + 0.5, np.arange(size[0]) + 0.5
    ratio = len(mask) / np.maximum(end - start, 1e-6)
    whole = sampled(sampled(mask, (y - start[1]) * ratio[1] - 0.5, 0), (x - start[0]) * ratio[0] - 0.5, 1) > 0.5
    return whole & ((y >= start[1]) & (y <= end[1]))[:, None] & (x >= start[0]) & (x <= end[0])


session = onnxruntime.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
about = json.loads(session.get_modelmeta().custom_metadata_map["maskrcnn"])
config, least = about["config"], float(sys.argv[3]) if sys.argv[3:] else 0.5
if config["channels"] != 3 or config["value_range"] or about["photo"] or about["batch"] not in (1, None):
    sys.exit(f"{sys.argv[1]}: takes other than one prepared RGB image of 8 bits, which is all that this script makes")
photo = np.asarray(ImageOps.exif_transpose(Image.open(sys.argv[2])).convert("RGB"), np.float32).transpose(2, 0, 1) / 255
_, H, W = photo.shape
scale = min(config["min_size"][-1] / min(H, W), config["max_size"] / max(H, W))
h, w = max(int(H * scale), 1), max(int(W * scale), 1)
if config["fixed_size"]:  # in place of min_size and max_size
    high, wide = config["fixed_size"]
    h, w = (high, max(W * high // H, 1)) if H * wide > high * W else (max(H * wide // W, 1), wide)
high, wide = config["fixed_size"] or (side + -side % config["size_divisible"] for side in (h, w))
mean, std = (np.float32(config[key])[:, None, None] for key in ("image_mean", "image_std"))
image = sampled((photo - mean) / std, (np.arange(h) + 0.5) * H / h - 0.5, 1)
image = sampled(image, (np.arange(w) + 0.5) * W / w - 0.5, 2)
image = np.pad(image, ((0, 0), (0, high - h), (0, wide - w)))[None].astype(np.float32)
boxes, labels, scores, masks, _ = session.run(None, {"images": image, "sizes": np.float32([[h, w]])})
boxes = boxes * np.float32([W / w, H / h, W / w, H / h])
for box, label, score, mask in zip(boxes, labels, scores, masks, strict=True):
    if score >= least:
        area = int(pasted(mask, box, (H, W), config["geometry"]).sum())
        print(f"{about['names'][label]} {score:.3f} at {' '.join(f'{value:.1f}' for value in box)}, {area} pixels")
