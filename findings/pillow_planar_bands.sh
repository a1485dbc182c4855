#!/usr/bin/env bash
# Pillow 13.0.0: a TIFF of several bands that lie one after another (planar) and have no colours, as GDAL and rasterio
# write images of 16 bits by default.
#
# One would guess: it is refused, or read in all its bands, compressed or not, interleaved or not.
# It does:         compressed, it opens as a grey image, "L" or "I;16": the first band, without a word of the others. Not
#                  compressed it is not identified (8 bits), or its load raises ValueError (16 bits); interleaved bands
#                  are not identified either. So a red band passes for the photo.
# Seen:            three bands planar, zlib: 8 bits "L", 16 bits "I;16", the pixels of band 1; all others raise
set -euo pipefail
room=$(mktemp -d)
trap 'rm -rf "$room"' EXIT
python3 -m venv "$room/venv"
"$room/venv/bin/pip" install --quiet --disable-pip-version-check pillow==13.0.0 tifffile==2026.3.3 numpy==2.4.6
cd "$room"
"$room/venv/bin/python" - << 'PY'
import numpy as np
import PIL
import tifffile
from PIL import Image

found = {}
for dtype in (np.uint8, np.uint16):
    bands = np.random.default_rng(0).integers(0, 250, (3, 40, 50)).astype(dtype)
    for planar in ("separate", "contig"):
        for compression in (None, "zlib"):
            values = bands if planar == "separate" else np.moveaxis(bands, 0, 2)
            tifffile.imwrite("a.tif", values, photometric="minisblack", planarconfig=planar, compression=compression)
            try:
                with Image.open("a.tif") as image:
                    read = np.asarray(image)
                    outcome = image.mode, bool(read.shape == (40, 50) and (read == bands[0]).all())
            except (Image.UnidentifiedImageError, ValueError) as error:
                outcome = type(error).__name__
            found[f"{np.dtype(dtype).name} {planar} {compression}"] = outcome
print("Pillow", PIL.__version__, found)
assert found["uint8 separate zlib"] == ("L", True) and found["uint16 separate zlib"] == ("I;16", True), found
assert all(isinstance(outcome, str) for name, outcome in found.items() if not name.endswith("separate zlib")), found
PY
