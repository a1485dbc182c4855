#!/usr/bin/env bash
# Pillow 13.0.0: a sparse TIFF, as GDAL writes it with SPARSE_OK, and GeoTIFFs of which parts were never written.
#
# One would guess: tiles that the file leaves out (offset and byte count 0) are 0, as in GDAL and tifffile, or an error.
# It does:         not compressed, the file's own first bytes, its header and tags, are decoded as the missing tiles'
#                  pixels, without a word: a label image gains objects. Compressed: OSError "decoder error -2".
# Seen:            a tile of 7 and three missing ones: rasterio and tifffile 0 and 7; Pillow 0, 7 and many other values
set -euo pipefail
room=$(mktemp -d)
trap 'rm -rf "$room"' EXIT
python3 -m venv "$room/venv"
"$room/venv/bin/pip" install --quiet --disable-pip-version-check pillow==13.0.0 rasterio==1.4.4 tifffile==2026.3.3 numpy==2.4.6
cd "$room"
"$room/venv/bin/python" - << 'PY'
import warnings

import numpy as np
import PIL
import rasterio
import tifffile
from PIL import Image
from rasterio.windows import Window

warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
SIDES = {"height": 256, "width": 256, "blockxsize": 128, "blockysize": 128}


def values(compress):
    """Returns the values that each library reads."""
    like = {"driver": "GTiff", "count": 1, "dtype": "uint8", "tiled": True, "SPARSE_OK": True, **SIDES}
    with rasterio.open("a.tif", "w", compress=compress, **like) as file:
        file.write(np.full((1, 128, 128), 7, np.uint8), window=Window(0, 0, 128, 128))
    with rasterio.open("a.tif") as file:
        by_gdal = np.unique(file.read()).tolist()
    try:
        by_pillow = np.unique(np.asarray(Image.open("a.tif"))).tolist()
    except OSError as error:
        by_pillow = str(error)
    return by_gdal, np.unique(tifffile.imread("a.tif")).tolist(), by_pillow


plain, packed = values("none"), values("deflate")
print("Pillow", PIL.__version__, "not compressed:", plain, "compressed:", packed)
assert plain[:2] == packed[:2] == ([0, 7], [0, 7])
assert set(plain[2]) > {0, 7} and len(plain[2]) > 4 and "decoder error" in packed[2]
PY
