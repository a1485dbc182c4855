#!/usr/bin/env bash
# Pillow 13.0.0: a BigTIFF in big-endian byte order.
#
# One would guess: it is read as its little-endian twin is: PREFIXES of TiffImagePlugin lists it as a valid header.
# It does:         ImageFileDirectory_v2 looks for the number 43 of BigTIFF in the third byte of the header, where only
#                  the little-endian order has it, and takes the file for a TIFF with 4-byte places: Image.open raises
#                  UnidentifiedImageError.
# Seen:            little-endian read, big-endian not identified
set -euo pipefail
room=$(mktemp -d)
trap 'rm -rf "$room"' EXIT
python3 -m venv "$room/venv"
"$room/venv/bin/pip" install --quiet --disable-pip-version-check pillow==13.0.0 numpy==2.2.6 tifffile==2026.3.3
cd "$room"
"$room/venv/bin/python" - << 'PY'
import numpy as np
import PIL
import tifffile
from PIL import Image, UnidentifiedImageError

values, found = np.arange(12, dtype=np.uint8).reshape(3, 4), {}
for order, name in (("<", "little-endian"), (">", "big-endian")):
    tifffile.imwrite("a.tif", values, bigtiff=True, byteorder=order)
    assert (tifffile.imread("a.tif") == values).all()
    try:
        found[name] = bool((np.array(Image.open("a.tif")) == values).all())
    except UnidentifiedImageError:
        found[name] = "not identified"
print("Pillow", PIL.__version__, found)
assert found == {"little-endian": True, "big-endian": "not identified"}, found
PY
