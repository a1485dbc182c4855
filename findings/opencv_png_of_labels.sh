#!/usr/bin/env bash
# opencv-python-headless 5.0.0.93: a label image of 32 bits, as cv2.connectedComponents makes it, saved as PNG.
#
# One would guess: cv2.imwrite returns False or raises for numbers that PNG has no room for, as Pillow does, or saves 16
#                  bits, which PNG has.
# It does:         it returns True and writes 8 bits, in which each number above 255 has become 255: all objects from the
#                  255th on are one. A line of its log says that the depth is not supported, but not that numbers change.
#                  Other types than uint8 and uint16 end so, floats too; as TIFF the numbers stay.
# Seen:            300 objects, PNG uint8 with 255 numbers beside 0, 46 squares in the last; with .astype(numpy.uint16) 300
set -euo pipefail
room=$(mktemp -d)
trap 'rm -rf "$room"' EXIT
python3 -m venv "$room/venv"
"$room/venv/bin/pip" install --quiet --disable-pip-version-check opencv-python-headless==5.0.0.93 numpy==2.4.6
cd "$room"
"$room/venv/bin/python" - << 'PY'
import cv2
import numpy as np

squares = np.zeros((15 * 8, 20 * 8), np.uint8)
for y in range(15):
    for x in range(20):
        squares[8 * y + 2 : 8 * y + 6, 8 * x + 2 : 8 * x + 6] = 255
count, labels = cv2.connectedComponents(squares)  # count has the background


def through(name, values):
    written = cv2.imwrite(name, values)
    back = cv2.imread(name, cv2.IMREAD_UNCHANGED)
    last = cv2.connectedComponents((back == back.max()).astype(np.uint8))[0] - 1
    return written, str(back.dtype), len(np.unique(back)) - 1, last


found = {
    "objects": (str(labels.dtype), count - 1),
    "PNG": through("a.png", labels),
    "TIFF": through("a.tif", labels),
    "PNG of uint16": through("b.png", labels.astype(np.uint16)),
}
print("OpenCV", cv2.__version__, found)
assert found["objects"] == ("int32", 300)
assert found["PNG"] == (True, "uint8", 255, 46), found
assert found["TIFF"] == (True, "int32", 300, 1) and found["PNG of uint16"] == (True, "uint16", 300, 1), found
PY
