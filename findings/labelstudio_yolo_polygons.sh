#!/usr/bin/env bash
# label-studio-sdk 2.1.2: label-studio-converter's import of YOLO data whose labels are polygons (YOLO segmentation).
#
# One would guess: polygons become polygons, or the import says that it reads boxes alone.
# It does:         of each line the first four numbers, x and y of two corners, are taken for a box's centre, width and
#                  height, and the fifth, the x of the third corner, for its score; the rest is left out. The boxes lie
#                  nowhere near the objects, partly outside of the image, and nothing is said.
# Seen:            a triangle with corners at 60%, 60%; 80%, 60%; 80%, 80% of the image becomes a rectangle from 20%,
#                  30% with a width of 80% and a height of 60%, score 0.8
set -euo pipefail
room=$(mktemp -d)
trap 'rm -rf "$room"' EXIT
python3 -m venv "$room/venv"
"$room/venv/bin/pip" install --quiet --disable-pip-version-check label-studio-sdk==2.1.2
cd "$room"
mkdir -p data/images data/labels
"$room/venv/bin/python" - << 'PY'
import json
from importlib.metadata import version
from pathlib import Path

from label_studio_sdk.converter.imports.yolo import convert_yolo_to_ls
from PIL import Image

Image.new("RGB", (100, 100)).save("data/images/1.png")
Path("data/labels/1.txt").write_text("0 0.6 0.6 0.8 0.6 0.8 0.8\n")
Path("data/classes.txt").write_text("cell\n")
convert_yolo_to_ls("data", "tasks.json")
((found,),) = [task["annotations"][0]["result"] for task in json.loads(Path("tasks.json").read_text())]
box = {key: round(found["value"][key], 6) for key in ("x", "y", "width", "height")}
print("label-studio-sdk", version("label-studio-sdk"), found["type"], box, "score", found["score"])
assert found["type"] == "rectanglelabels" and box == {"x": 20, "y": 30, "width": 80, "height": 60}, found
assert found["score"] == 0.8
PY
