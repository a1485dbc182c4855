#!/usr/bin/env bash
# supervision 0.31.0: polygons of a COCO json as masks, the ground truth of its own MeanAveragePrecision.
#
# One would guess: DetectionDataset.from_coco(force_masks=True) fills a polygon as pycocotools does, so that the masks
#                  from which polygons were made are perfect detections: AP 1.0. The same json with RLEs gives that.
# It does:         corners are rounded to whole pixels, and the pixels on the outline are filled too (with OpenCV or without): a polygon
#                  that runs along the pixels' edges (as COCO means it) gains a row below and a column at the right. The
#                  smaller the objects, the lower is a perfect AP; from_yolo fills alike.
# Seen:            a square of 10x10 has 121 pixels; AP of perfect masks 0.7 (RLE: 1.0); squares of 30x30 961, AP 0.9
set -euo pipefail
room=$(mktemp -d)
trap 'rm -rf "$room"' EXIT
python3 -m venv "$room/venv"
"$room/venv/bin/pip" install --quiet --disable-pip-version-check supervision==0.31.0 pycocotools==2.0.11 numpy==2.4.6
cd "$room"
"$room/venv/bin/python" - << 'PY'
import json
from importlib.metadata import version
from pathlib import Path

import numpy as np
from PIL import Image
from pycocotools import mask as coco_mask
from supervision import DetectionDataset, Detections
from supervision.metrics import MeanAveragePrecision, MetricTarget

Path("images").mkdir()
Image.new("RGB", (80, 60)).save("images/1.png")


def scored(side, as_rle):
    """Returns (pixels of the square as read, AP of the square as it is)."""
    mask = np.zeros((60, 80), bool)
    mask[20 : 20 + side, 30 : 30 + side] = True
    x1, y1, x2, y2 = 30, 20, 30 + side, 20 + side
    polygon = [x1, y1, x2, y1, x2, y2, x1, y2]
    exact = coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects([polygon], 60, 80))).astype(bool)
    assert (exact == mask).all()  # so pycocotools fills it
    rle = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
    segmentation = {"size": [60, 80], "counts": rle["counts"].decode()} if as_rle else [polygon]
    box = {"bbox": [x1, y1, side, side], "area": side * side, "iscrowd": 0}
    content = {
        "images": [{"id": 1, "file_name": "1.png", "width": 80, "height": 60}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "segmentation": segmentation, **box}],
        "categories": [{"id": 1, "name": "square"}],
    }
    Path("a.json").write_text(json.dumps(content))
    (truth,) = DetectionDataset.from_coco("images", "a.json", force_masks=True).annotations.values()
    found = Detections(
        xyxy=np.array([[x1, y1, x2, y2]], float), mask=mask[None], confidence=np.array([0.9]), class_id=np.array([0])
    )
    metric = MeanAveragePrecision(metric_target=MetricTarget.MASKS)
    return int(truth.mask[0].sum()), round(float(metric.update(found, truth).compute().map50_95), 2)


results = {f"{side}x{side}": (scored(side, False), scored(side, True)) for side in (10, 30)}
print("supervision", version("supervision"), "(pixels, AP) of polygons and of RLEs:", results)
assert results == {"10x10": ((121, 0.7), (100, 1.0)), "30x30": ((961, 0.9), (900, 1.0))}, results
PY
