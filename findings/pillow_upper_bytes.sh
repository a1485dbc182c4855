#!/usr/bin/env bash
# Pillow 13.0.0: images of several channels of 16 bits, PNG and TIFF.
#
# One would guess: they are read in a mode of 16 bits, as grey ones are, or refused.
# It does:         they open as RGB and RGBA of 8 bits, the upper byte of each value, without a word. A camera's 12 bits
#                  in files of 16 keep 4 bits. The other byte comes from a second decoding whose raw mode has the other
#                  byte order.
# Seen:            thousands of values from 0 to 4095 become 16; both decodings together are the file's values
set -euo pipefail
room=$(mktemp -d)
trap 'rm -rf "$room"' EXIT
python3 -m venv "$room/venv"
"$room/venv/bin/pip" install --quiet --disable-pip-version-check pillow==13.0.0 numpy==2.2.6
cd "$room"
"$room/venv/bin/python" - << 'PY'
import struct
import zlib

import numpy as np
import PIL
from PIL import Image

values = np.linspace(0, 4095, 6000).astype(">u2").reshape(40, 50, 3)
rows = b"".join(b"\0" + row.tobytes() for row in values)
chunks = [(b"IHDR", struct.pack(">IIBBBBB", 50, 40, 16, 2, 0, 0, 0)), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
with open("a.png", "wb") as file:
    file.write(b"\x89PNG\r\n\x1a\n")
    for name, data in chunks:
        file.write(struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)))
upper = np.array(Image.open("a.png"))
with Image.open("a.png") as image:
    image.tile = [tile._replace(args=tile.args.replace("16B", "16L")) for tile in image.tile]
    lower = np.array(image)
print("Pillow", PIL.__version__, upper.dtype, "values in the file, in the image:", len(np.unique(values)), len(np.unique(upper)))
assert upper.dtype == np.uint8 and len(np.unique(upper)) == 16 < len(np.unique(values))
assert (upper.astype(int) * 256 + lower == values).all()
PY
