"""One side of `python -m benchmarks runtimes`: opens a file in a process of its own, then detects once for each line.

    python -m benchmarks.runtimes.side SIDE FOLDER BACKBONE [THREADS]

Prints a line after the first result, and one for each line read, "seconds CPU-seconds peak-MiB": those of the second
kind are of one photo, from its values to run-length codes of all masks. Imports what a user of the side imports.
"""

from __future__ import annotations

import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

WEIGHTS, PHOTO, TORCHVISION = "weights.pth", "photo.npy", "torchvision"
FILES = {
    TORCHVISION: WEIGHTS,
    "eager": WEIGHTS,
    "torch_export": "model.pt2",
    "onnx": "model.onnx",
    "openvino": "model_openvino",
    "onnx_int8": "model_int8.onnx",
    "openvino_int8": "model_int8_openvino",
}
Detect = Callable[[np.ndarray], list[dict]]


def open_torchvision(path: Path, backbone: str) -> Detect:
    """Returns torchvision's detector: a photo uint8 [3, H, W] -> masks as RLE."""
    from pycocotools import mask as coco_mask  # of this side alone, as are those below

    from benchmarks import torchvision_model

    model = torchvision_model.build(backbone=backbone, trainable=3).eval()
    model.load_state_dict(torch.load(path, weights_only=True))

    @torch.inference_mode()
    def detect(photo: np.ndarray) -> list[dict]:
        (found,) = model([torch.from_numpy(photo) / 255])
        masks = (found["masks"][:, 0] > 0.5).to(torch.uint8)  # [D, H, W]
        return coco_mask.encode(np.asfortranarray(masks.permute(1, 2, 0).numpy()))

    return detect


def open_ours(path: Path) -> Detect:
    """Returns the detector of a checkpoint or of an exported file: a photo uint8 [3, H, W] -> masks as RLE."""
    import maskrcnn

    detector = maskrcnn.load(path, "cpu")
    return lambda photo: detector(torch.from_numpy(photo), score=0.0).rle()


def main(words: list[str]) -> None:
    """Opens the side's file and answers."""
    side, room = words[0], Path(words[1])
    if words[3:]:
        torch.set_num_threads(int(words[3]))
    warnings.filterwarnings("ignore", ".*that box_detections_per_img allows")  # it is what is measured
    photo = np.load(room / PHOTO)
    path = room / FILES[side]
    detect = open_torchvision(path, words[2]) if side == TORCHVISION else open_ours(path)
    print(len(detect(photo)), flush=True)
    for _ in sys.stdin:
        wall, cpu = time.perf_counter(), time.process_time()
        detect(photo)
        took = time.perf_counter() - wall, time.process_time() - cpu
        peak = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
        print(*took, int(peak.split()[1]) / 1024, flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
