#!/usr/bin/env bash
# albumentations 2.0.8: Resize, LongestMaxSize, RandomScale, RandomResizedCrop of an image and its masks, smaller.
#
# One would guess: the mask stays over the object: image and mask are resized about the same pixel centres.
# It does:         the image is interpolated about pixel centres, the mask reads the top left source pixel of each cell
#                  (cv2.INTER_NEAREST). At a factor of f it comes to lie (f - 1) / (2 f) of a pixel too far right and
#                  down, by half a pixel of the new image in the limit; Affine does not move it so. With
#                  mask_interpolation=cv2.INTER_NEAREST_EXACT most of it goes. (torchvision 0.29.1's v2.Resize of a Mask
#                  does the same.)
# Seen:            discs of radius 40 pixels at a quarter: the mask's centre is 0.38 pixels right and below the image's
set -euo pipefail
room=$(mktemp -d)
trap 'rm -rf "$room"' EXIT
python3 -m venv "$room/venv"
"$room/venv/bin/pip" install --quiet --disable-pip-version-check albumentations==2.0.8 opencv-python-headless==5.0.0.93 numpy==2.4.6
cd "$room"
NO_ALBUMENTATIONS_UPDATE=1 "$room/venv/bin/python" - << 'PY'
import albumentations as A
import cv2
import numpy as np

yy, xx = np.mgrid[:256, :256]


def centre(weights):
    """Returns x and y of the centre of mass, in pixels of an image of any size."""
    weights = weights.astype(float)
    y, x = np.mgrid[: weights.shape[0], : weights.shape[1]]
    return np.array([(x * weights).sum(), (y * weights).sum()]) / weights.sum()


def offset(transform):
    """Returns how far the mask's centre lies from the image's, the mean over discs at 16 places in a cell."""
    found = []
    for place in range(16):
        disc = (xx - 120 - place % 4) ** 2 + (yy - 125 - place // 4) ** 2 < 40**2
        image = np.repeat(disc[..., None] * np.uint8(255), 3, axis=2)
        changed = A.Compose([transform])(image=image, masks=[disc.astype(np.uint8)])
        found.append(centre(changed["masks"][0]) - centre(changed["image"][..., 0]))
    return np.mean(found, axis=0).round(2).tolist()


found = {
    "Resize": offset(A.Resize(64, 64)),
    "LongestMaxSize": offset(A.LongestMaxSize(64)),
    "RandomResizedCrop": offset(A.RandomResizedCrop((64, 64), scale=(1, 1), ratio=(1, 1), p=1)),
    "Affine": offset(A.Affine(scale=0.25, p=1)),
    "Resize, nearest exact": offset(A.Resize(64, 64, mask_interpolation=cv2.INTER_NEAREST_EXACT)),
}
print("albumentations", A.__version__, "OpenCV", cv2.__version__, "mask's centre less the image's:", found)
for name in ("Resize", "LongestMaxSize", "RandomResizedCrop"):
    assert all(0.3 < value < 0.45 for value in found[name]), found
assert all(abs(value) < 0.2 for name in ("Affine", "Resize, nearest exact") for value in found[name]), found
PY
