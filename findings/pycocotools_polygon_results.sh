#!/usr/bin/env bash
# pycocotools 2.0.11: masks as polygons in a results file.
#
# One would guess: COCO.loadRes takes polygons as it takes RLEs, with a bbox or without, each entry by itself.
# It does:         polygons are scored only where the entry has a bbox too; without one loadRes raises TypeError, as it
#                  asks for the RLE's area. The first entry decides for all: after one with a bbox, one without raises
#                  KeyError 'bbox'; after one without, all are read as RLEs.
# Seen:            bbox in both AP 1.0; in none TypeError; in the first KeyError 'bbox'; in the second TypeError
set -euo pipefail
room=$(mktemp -d)
trap 'rm -rf "$room"' EXIT
python3 -m venv "$room/venv"
"$room/venv/bin/pip" install --quiet --disable-pip-version-check pycocotools==2.0.11 numpy==2.2.6
"$room/venv/bin/python" - << 'PY'
import contextlib
import io
from importlib.metadata import version

from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

SQUARE = [[2, 2, 10, 2, 10, 10, 2, 10]]
truth = COCO()
truth.dataset = {
    "info": {},
    "images": [{"id": i, "height": 20, "width": 20, "file_name": f"{i}.png"} for i in (1, 2)],
    "categories": [{"id": 1, "name": "square"}],
    "annotations": [
        {"id": i, "image_id": i, "category_id": 1, "bbox": [2, 2, 8, 8], "area": 64, "iscrowd": 0, "segmentation": SQUARE}
        for i in (1, 2)
    ],
}


def outcome(with_box):
    results = [
        {"image_id": i, "category_id": 1, "score": 0.9, "segmentation": SQUARE, **({"bbox": [2, 2, 8, 8]} if box else {})}
        for i, box in enumerate(with_box, 1)
    ]
    try:
        evaluation = COCOeval(truth, truth.loadRes(results), "segm")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    except (TypeError, KeyError) as error:
        return f"{type(error).__name__}"
    return f"AP {evaluation.stats[0]:.1f}"


with contextlib.redirect_stdout(io.StringIO()):
    truth.createIndex()
    found = [outcome(boxes) for boxes in ((True, True), (False, False), (True, False), (False, True))]
print("pycocotools", version("pycocotools"), "bbox in both, in none, in the first, in the second:", ", ".join(found))
assert found == ["AP 1.0", "TypeError", "KeyError", "TypeError"], found
PY
