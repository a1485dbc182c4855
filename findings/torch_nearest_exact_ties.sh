#!/usr/bin/env bash
# torch 2.13.0 and Pillow 12.0.0: nearest resizing where an output's centre lies on the border of two source cells.
#
# One would guess: F.interpolate(mode="nearest-exact") and Pillow's NEAREST agree, as torch's documentation says; output i
#                  reads source cell floor((i + 1/2) * in / out), so a centre on a border reads the cell that begins there.
# It does:         both compute in rounded steps, so at such a centre each now and then reads the cell before, and not at the
#                  same places. A mask resized by one and its image by the other are a pixel apart there.
# Seen:            of 6,141 pairs of sides (1 to 89 resized to 1 to 69) 2,038 have such a centre. torch reads the cell before
#                  in 70 of them, Pillow in 881 (2 -> 7: output 3); the two differ in 910. Elsewhere both are exact.
set -euo pipefail
room=$(mktemp -d)
trap 'rm -rf "$room"' EXIT
python3 -m venv "$room/venv"
"$room/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 numpy==2.2.6 pillow==12.0.0
"$room/venv/bin/python" - << 'PY'
import numpy as np
import PIL
import torch
import torch.nn.functional as F
from PIL import Image


def by_torch(source, size):
    return F.interpolate(torch.arange(float(source))[None, None], size=size, mode="nearest-exact")[0, 0].long().tolist()


def by_integers(source, size):
    return [(2 * i + 1) * source // (2 * size) for i in range(size)]


def by_pillow(source, size):
    row = Image.fromarray(np.arange(source, dtype=np.uint8)[None])
    return np.asarray(row.resize((size, 1), Image.Resampling.NEAREST))[0].tolist()


ways = {"torch": by_torch, "Pillow": by_pillow}
pairs = [(source, size) for source in range(1, 90) for size in range(1, 70)]
rows = {pair: {name: way(*pair) for name, way in ways.items()} | {"exact": by_integers(*pair)} for pair in pairs}
off = {name: [pair for pair in pairs if rows[pair][name] != rows[pair]["exact"]] for name in ways}
apart = [pair for pair in pairs if rows[pair]["torch"] != rows[pair]["Pillow"]]
for (source, size), row in rows.items():
    for i, exact in enumerate(row["exact"]):
        on_border = (2 * i + 1) * source % (2 * size) == 0
        assert on_border or row["torch"][i] == row["Pillow"][i] == exact, (source, size, i)
print("torch", torch.__version__, "output 20 of 4 -> 41:", rows[4, 41]["torch"][20], "exact", rows[4, 41]["exact"][20])
print("Pillow", PIL.__version__, "output 3 of 2 -> 7:", rows[2, 7]["Pillow"][3], "exact", rows[2, 7]["exact"][3])
print(f"pairs of {len(pairs)} that are off: torch {len(off['torch'])}, Pillow {len(off['Pillow'])}; apart: {len(apart)}")
assert (len(off["torch"]), len(off["Pillow"]), len(apart)) == (70, 881, 910)
PY
