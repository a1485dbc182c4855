"""Export a trained model to one file for a runtime, and prove that it finds there what it finds here.

    python -m tools.export --weights-path save_weights/model_best.pth                  onnx, for onnxruntime
    python -m tools.export --weights-path W --format openvino --check photos/*.jpg     proven on these images, too
    python -m tools.export --weights-path W --format onnx --check DATA --batch dynamic     and the AP of both on DATA
    python -m tools.export --weights-path W --int8 --calibration DATA                  layers in 8 bits
    python -m tools.export --weights-path W --postprocess uint8      takes an image as it is, for users without Python
    python predict.py --weights-path model_best.onnx --img-path photo.jpg              runs it; so does validation.py

Writes model_best.onnx (openvino: the folder model_best_openvino; torch_export: model_best.pt2)
into --output-dir. The file is run in its runtime on drawn images of three sizes, on one that shows
nothing and on those of --check; the largest differences of boxes, scores and masks from the model's are printed and
kept in the file. Above 0.01 pixels, 0.0001 or 0.001 the export fails, and nothing is written. --int8 (model_best_int8)
is calibrated on images of the train split, and proven by the AP of model and file on the val split: it fails where more
than 0.005 is lost. A ResNet-50 takes a minute or two on a CPU with 2 cores. docs/deploy.md says what the file takes and
gives, and how to run it without torch.
"""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from backbone.errors import InputError
from backbone.settings import setting
from train_utils.cli.command import EXIT_OK, run_command
from train_utils.cli.flags import add_flags, add_model_flags, given_model, given_settings
from train_utils.cli.parser import Parser
from train_utils.data.dataset import ImageDataset
from train_utils.data.formats import FORMATS as DATA_FORMATS
from train_utils.data.images import read_image
from train_utils.data.images.file_formats import image_suffixes
from train_utils.data.images.reading import Reading
from train_utils.data.labels import LabelMap
from train_utils.data.opening import format_of
from train_utils.data.options import DataOptions, LoaderOptions
from train_utils.evaluation.limits import MAX_DETS
from train_utils.io.files import folder_of_result, user_path
from train_utils.io.plain_text import visible
from train_utils.prediction.data import open_split_of
from train_utils.prediction.exporting.export import FORMATS, SUFFIXES, Export, export_model
from train_utils.prediction.exporting.int8 import Int8
from train_utils.prediction.exporting.whole_image import PHOTOS
from train_utils.prediction.model import ModelOptions, about_weights, load_model
from train_utils.prediction.runtimes.exported_model import have_in_flight
from train_utils.prediction.runtimes.opening import open_exported
from train_utils.processes.distributed import World
from train_utils.run.evaluation import measure
from train_utils.show.image_lists import find_images

DYNAMIC = "dynamic"
LOOKED_AT = 3  # images of a data set that the differences are taken of
CALIBRATED = 64  # images that the ranges of activations are taken over


@dataclass(frozen=True)
class ExportOptions(ModelOptions):
    """Export: to what, and what it is checked on."""

    format: str = setting("onnx", "the file's: for onnxruntime, OpenVINO or torch.export", choices=FORMATS)
    batch: str = setting("1", f"images that the file takes at a time, or {DYNAMIC}: any number")
    check: tuple[str, ...] | None = setting(
        None, "images, or a folder of them, to prove it on; or data, for the AP of both too", metavar="IMAGE|DATA"
    )
    postprocess: str | None = setting(
        None,
        "put resize and paste into the file, for users without Python: it takes one image, uint8 or float in 0..1, "
        "and gives masks of its size (onnx, openvino)",
        choices=PHOTOS,
    )
    int8: bool = setting(False, "layers in 8 bits (onnx, openvino): smaller and faster, not equal")
    calibration: str | None = setting(
        None, "data to calibrate --int8 on, and to measure it (default: the data of the training)", metavar="DATA"
    )


def parse() -> dict[str, Any]:
    """Returns the settings that the command names."""
    parser = Parser(description=__doc__)
    add_flags(parser, ExportOptions, leave_out=("device",))  # files are made on the CPU
    add_model_flags(parser, training=False)
    given = parser.given()
    if "calibration" in given and not given.get("int8"):
        parser.error("--calibration DATA is for --int8; give both")
    if given.get("int8") and given.get("format", "onnx") not in ("onnx", "openvino"):
        parser.error(f"--int8 goes with onnx or openvino: --format {given['format']} stays in float")
    return given


def batch_of(text: str) -> int | None:
    """Returns --batch as a number, None for any."""
    if text == DYNAMIC:
        return None
    if not (text.isascii() and text.isdecimal() and int(text)):
        raise InputError(f"--batch {text}: give a number from 1, or {DYNAMIC}")
    return int(text)


def main() -> int:
    """Runs the command; returns its exit status."""
    given = parse()
    options = ExportOptions(**given_settings(ExportOptions, given), model=given_model(given))
    start = time.perf_counter()
    model, label_map, content = load_model(options, torch.device("cpu"))
    print(about_weights(options.weights_file, content, label_map))
    name = options.weights_file.stem + "_int8" * options.int8 + SUFFIXES[options.format]
    reading = Reading.of(model.config)
    on_data = bool(options.check) and len(options.check) == 1 and is_data(options.check[0])
    if options.int8 and options.check and not on_data:
        raise InputError("--check: a file in 8 bits is proven by its AP; give data, or leave it out")
    int8 = eight_bits(options, content, label_map, reading) if options.int8 else None
    path = user_path(options.output_dir) / name
    export = Export(path, options.format, batch_of(options.batch), int8, options.postprocess)
    data_set, images = None, []
    if on_data and not (options.int8 and options.check[0] == options.calibration):  # there the proof has the AP
        of_data = {"data_path": options.check[0], "weights_path": options.weights_file}
        data_set = open_split_of(content, "val", of_data, label_map)[0].data_set.read_as(reading)
        images = [data_set[i][0] for i in range(min(LOOKED_AT, len(data_set)))]
    elif options.check and not on_data:
        images = [read_image(file, reading=reading) for file in find_images(options.check, flag="--check")]

    def say(stage: str) -> None:
        print(f"{stage} (after {time.perf_counter() - start:.0f} s)", flush=True)

    with folder_of_result(path.parent):
        proof = export_model(model, label_map, content, export, images, say)
    print(proof.line)
    size = sum(file.stat().st_size for file in ([path] if path.is_file() else path.iterdir()))
    print(visible(f"written: {path} ({size / 1e6:.1f} MB, {time.perf_counter() - start:.0f} s)"))
    if data_set is not None:
        say_ap(options.weights_file, path, model, data_set)
    return EXIT_OK


def eight_bits(options: ExportOptions, content: dict[str, Any], label_map: LabelMap, reading: Reading) -> Int8:
    """Returns what 8 bits need: images of the train split, chosen by a seed, and the AP on the val split."""
    given = {"weights_path": options.weights_file}
    given |= {} if options.calibration is None else {"data_path": options.calibration}
    splits = (open_split_of(content, split, given, label_map)[0] for split in ("train", "val"))
    train, val = (split.data_set.read_as(reading) for split in splits)
    chosen = np.random.default_rng(0).permutation(len(train))[:CALIBRATED].tolist()
    return Int8([train[i][0] for i in chosen], lambda model: ap_of(model, val))


def is_data(place: str) -> bool:
    """Returns whether --check names data: a json, a data.yaml, or a folder that is not one of images alone."""
    path = user_path(place)
    if not path.is_dir():
        return path.suffix.lower() in (".json", ".yaml", ".yml")
    images = any(file.suffix.lower() in image_suffixes() for file in path.iterdir())
    return not images or bool(DATA_FORMATS[format_of(path)].find_splits(path, DataOptions(place), None))


def say_ap(weights: Path, path: Path, model: torch.nn.Module, data_set: ImageDataset) -> None:
    """Prints the AP of boxes and masks of the weights and of their exported file."""
    for name, of in ((weights, model), (path, open_exported(path))):
        print(visible(f"{name}: " + ", ".join(f"{t} AP {ap:.4f}" for t, ap in ap_of(of, data_set).items())))


def ap_of(model: torch.nn.Module, data_set: ImageDataset) -> dict[str, float]:
    """Returns a model's AP on a data set, by IoU type."""
    cpu = World.single(torch.device("cpu"))
    have_in_flight(model, len(data_set))
    stats = measure(model, data_set, LoaderOptions(workers=0), cpu, MAX_DETS, None).stats
    return {iou_type: found.stats[0] for iou_type, found in stats.items()}


if __name__ == "__main__":
    sys.exit(run_command(main))
