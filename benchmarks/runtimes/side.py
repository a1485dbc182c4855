"""One side of `python -m benchmarks runtimes`: opens a file in a process of its own, then detects once for each line.

    python -m benchmarks.runtimes.side SIDE FOLDER BACKBONE [THREADS]

Prints a line after the first result, and one for each line read, "seconds CPU-seconds peak-MiB": of one photo, from its
values to run-length codes of all masks, or, of a line that is a number, of so many files of the folder. Imports what a
user of the side imports.
"""

from __future__ import annotations

import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

WEIGHTS, PHOTO, PHOTOS = "weights.pth", "photo.npy", "photos"
TORCHVISION, TORCHVISION_ONNX = "torchvision", "torchvision_onnx"
FILES = {
    TORCHVISION: WEIGHTS,
    TORCHVISION_ONNX: "torchvision.onnx",
    "eager": WEIGHTS,
    "torch_export": "model.pt2",
    "onnx": "model.onnx",
    "openvino": "model_openvino",
    "onnx_int8": "model_int8.onnx",
    "openvino_int8": "model_int8_openvino",
}
Detect = Callable[[np.ndarray], list[dict]]  # a photo uint8 [3, H, W] -> masks as RLE
DetectAll = Callable[[list[Path]], list[list[dict]]]


def as_torchvision_takes(photo: np.ndarray) -> torch.Tensor:
    """Returns a photo uint8 [3, H, W] as floats in 0..1."""
    return torch.from_numpy(photo) / 255


def open_torchvision(path: Path, backbone: str) -> tuple[Detect, DetectAll]:
    """Returns torchvision's detector: of weights, or of a file of ONNX."""
    from PIL import Image  # of this side alone, as are those below
    from pycocotools import mask as coco_mask

    if path.suffix == ".onnx":
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.log_severity_level = 3  # errors alone
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

        def masks_of(photo: np.ndarray) -> np.ndarray:
            image = as_torchvision_takes(photo).numpy()
            return session.run(None, {session.get_inputs()[0].name: image})[3]
    else:
        from benchmarks import torchvision_model

        model = torchvision_model.build(backbone=backbone, trainable=3).eval()
        model.load_state_dict(torch.load(path, weights_only=True))

        @torch.inference_mode()
        def masks_of(photo: np.ndarray) -> np.ndarray:
            return model([as_torchvision_takes(photo)])[0]["masks"].numpy()

    def detect(photo: np.ndarray) -> list[dict]:
        masks = masks_of(photo)[:, 0] > 0.5  # [D, H, W]
        return coco_mask.encode(np.asfortranarray(masks.transpose(1, 2, 0).view(np.uint8)))

    def detect_all(paths: list[Path]) -> list[list[dict]]:
        return [detect(np.array(Image.open(file).convert("RGB")).transpose(2, 0, 1)) for file in paths]

    return detect, detect_all


def open_ours(path: Path) -> tuple[Detect, DetectAll]:
    """Returns the detector of a checkpoint or of an exported file; a folder is what predict.py makes of it, undrawn."""
    import maskrcnn
    from train_utils.data.images import read_image
    from train_utils.prediction import pipeline
    from train_utils.prediction.predictor import Predictor
    from train_utils.prediction.runtimes.exported_model import have_in_flight

    detector = maskrcnn.load(path, "cpu")

    def detect_all(paths: list[Path]) -> list[list[dict]]:
        predictor, found = Predictor(detector.model, detector.label_map, 0.0), []

        def keep(done: pipeline.Finished) -> None:
            found.append(done.results)

        def finished(seen: pipeline.Seen) -> pipeline.Finished:
            results, _ = predictor.results(seen.found, seen.read.at, tuple(seen.read.image.shape[-2:]))
            return pipeline.Finished(results=results)

        line = have_in_flight(detector.model, len(paths))
        print(line or "one image is in work at once", file=sys.stderr)
        work = pipeline.Work(pipeline.Source(paths.__getitem__, lambda at: read_image(paths[at])), finished)
        pace = pipeline.pace_of(detector.device, None, None)
        pipeline.predict_all(list(range(len(paths))), work, predictor, pace, keep, None)  # no tiles of an image to keep
        return found

    return lambda photo: detector(torch.from_numpy(photo), score=0.0).rle(), detect_all


def main(words: list[str]) -> None:
    """Opens the side's file and answers."""
    side, room = words[0], Path(words[1])
    if words[3:]:
        torch.set_num_threads(int(words[3]))
    warnings.filterwarnings("ignore", ".*that box_detections_per_img allows")  # it is what is measured
    photo = np.load(room / PHOTO)
    path = room / FILES[side]
    detect, detect_all = open_torchvision(path, words[2]) if side.startswith(TORCHVISION) else open_ours(path)
    print(len(detect(photo)), flush=True)
    for line in sys.stdin:
        wall, cpu = time.perf_counter(), time.process_time()
        if line.strip().isdecimal():
            detect_all(sorted((room / PHOTOS).iterdir())[: int(line)])
        else:
            detect(photo)
        took = time.perf_counter() - wall, time.process_time() - cpu
        peak = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
        print(*took, int(peak.split()[1]) / 1024, flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
