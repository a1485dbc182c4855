#!/usr/bin/env bash
# Pillow 13.0.0: a TIFF with an orientation that exchanges its sides, opened by its path.
#
# One would guess: the pixels do not depend on whether a path or an open file is given to Image.open.
# It does:         an uncompressed TIFF of 8-bit grey (also palette, 16-bit grey, float) that is opened by its path is
#                  mapped into memory by its upright size instead of its stored one: the rows are cut at the wrong
#                  places, and the image comes out lying on its side, without an error. Compressed, RGB, or from an open
#                  file it is right.
# Seen:            orientation 5 to 8: the size is that of the open file's with its sides exchanged; 1 to 4: equal
set -euo pipefail
room=$(mktemp -d)
trap 'rm -rf "$room"' EXIT
python3 -m venv "$room/venv"
"$room/venv/bin/pip" install --quiet --disable-pip-version-check pillow==13.0.0 numpy==2.2.6
cd "$room"
"$room/venv/bin/python" - << 'PY'
import numpy as np
import PIL
from PIL import Image

differ = []
for orientation in range(1, 9):
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(np.arange(12, dtype=np.uint8).reshape(3, 4)).save("a.tif", exif=exif)
    by_path = np.array(Image.open("a.tif"))
    with open("a.tif", "rb") as file:
        by_file = np.array(Image.open(file))
    if by_path.shape != by_file.shape or (by_path != by_file).any():
        differ.append((orientation, by_path.shape, by_file.shape))
print("Pillow", PIL.__version__, "orientation, shape by path, by open file where they differ:", differ)
assert [orientation for orientation, *_ in differ] == [5, 6, 7, 8], differ
PY
