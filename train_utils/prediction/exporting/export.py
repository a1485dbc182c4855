"""A model and its classes -> a file for a runtime, written once it finds there what the model finds here."""

from __future__ import annotations

import copy
import io
import json
import logging
import warnings
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.fx.experimental import _config as symbolic_shapes

from backbone.errors import InputError
from network_files import MaskRCNN
from train_utils.data.labels import LabelMap
from train_utils.io.files import atomic_file, new_folder
from train_utils.io.plain_text import counted
from train_utils.io.unfinished import unfinished_folder
from train_utils.io.version import __version__
from train_utils.prediction.exporting.graph import CoreGraph
from train_utils.prediction.exporting.int8 import Int8, Scores, quantised
from train_utils.prediction.exporting.onnx_file import nudge_thresholds, to_onnx
from train_utils.prediction.exporting.proof import Proof, check_images, prove
from train_utils.prediction.exporting.whole_image import PHOTOS, with_whole_image
from train_utils.prediction.runtimes.exported_model import ExportedModel, Run, describe
from train_utils.prediction.runtimes.onnx_runtime import KEY, open_onnx
from train_utils.prediction.runtimes.opening import opened
from train_utils.prediction.runtimes.openvino_runtime import MODEL, open_openvino
from train_utils.prediction.runtimes.packages import optional_package
from train_utils.prediction.runtimes.torch_programs import EXTRA, open_program

EXAMPLE = (96, 128)  # height and width of the image that is traced
MOST = 1000  # times 32: the longest side
FORMATS = ("onnx", "openvino", "torch_export")
SUFFIXES = {"onnx": ".onnx", "openvino": "_openvino", "torch_export": ".pt2"}
TRANSLATOR = "torch.onnx._internal.exporter._registration"  # the logger of what knows operators in ONNX
PACKAGES = {"onnx": ("onnx", "onnxscript", "onnxruntime"), "openvino": ("onnx", "onnxscript", "openvino")}


def trace(model: MaskRCNN, batch: int | None) -> torch.export.ExportedProgram:
    """Returns the core of a model as a program, whose sides may be any multiples of 32; batch: images, None: any."""
    height, width = (32 * torch.export.Dim(name, min=1, max=MOST) for name in ("height", "width"))
    count = batch or 2  # a 1 would be taken for a constant
    images = torch.zeros(count, model.config.channels, *EXAMPLE)
    sizes = torch.tensor([EXAMPLE] * count, dtype=torch.float32)
    of_batch = {} if batch else {0: torch.export.Dim("batch", min=1, max=1024)}
    shapes = {**of_batch, 2: height, 3: width}, of_batch
    # sides of 1 cell are sides like others: the trace makes no rule that there be more
    with torch.no_grad(), symbolic_shapes.patch(backed_size_oblivious=True):
        return torch.export.export(CoreGraph(model).eval(), (images, sizes), dynamic_shapes=shapes, strict=False)


@dataclass(frozen=True)
class Export:
    """What is exported to where: path is a new folder for openvino, else a file.

    batch: images at a time, None: any number; int8: what layers in 8 bits need, None: they stay in float; photo:
    resize and paste are in the file, which takes one image as it is, "uint8" or "float" in 0..1; None: they are not.
    """

    path: Path
    format: str = "onnx"
    batch: int | None = 1
    int8: Int8 | None = None
    photo: str | None = None

    def __post_init__(self) -> None:
        if self.format not in FORMATS:
            raise InputError(f"format {self.format!r} is not known: {', '.join(FORMATS)}")
        if self.batch is not None and (not isinstance(self.batch, int) or self.batch < 1):
            raise InputError(f"batch {self.batch!r}: give a whole number from 1, or None for any number")
        if self.int8 and self.format not in PACKAGES:
            raise InputError(f"int8: {self.format} stays in float; take onnx or openvino")
        if self.photo is not None and (self.format not in PACKAGES or self.batch != 1 or self.photo not in PHOTOS):
            kinds = " or ".join(PHOTOS)
            raise InputError(f"postprocess: {kinds}, of one image at a time, with format {' or '.join(PACKAGES)}")
        for name in (*PACKAGES.get(self.format, ()), *(["onnxruntime"] if self.int8 else [])):
            optional_package(name, f"format {self.format}")


def format_of(path: str | Path) -> str:
    """Returns the format that a path's suffix stands for; a path without one is OpenVINO's folder."""
    known = {".onnx": "onnx", ".pt2": "torch_export", "": "openvino"}
    suffix = Path(path).suffix.lower()
    if suffix not in known:
        raise InputError(f"{path}: give .onnx, .pt2, or a folder's name for OpenVINO, or name the format")
    return known[suffix]


def export_model(
    model: MaskRCNN,
    label_map: LabelMap,
    content: Mapping[str, Any],
    export: Export,
    images: Sequence[Tensor] = (),
    say: Callable[[str], None] | None = None,
) -> Proof | Scores:
    """Writes the file, and returns how far its detections are from the model's, on images and on drawn ones.

    In 8 bits: the AP of both. content: of the weights' file; say: is told of each stage as it begins, None: nobody is.
    Raises InputError, and leaves no file, where differences are above LIMITS, or more than MOST_LOST of an AP is lost.
    """
    if isinstance(model, ExportedModel):
        raise InputError("the model is of an exported file; give the checkpoint that it was made of")
    if next(model.parameters()).device.type != "cpu":
        model = copy.deepcopy(model).to("cpu")
    model.eval()
    if export.photo == "uint8" and model.config.value_range is not None:
        raise InputError("postprocess uint8: the model knows images of more than 8 bits; take float, scaled to 0..1")
    about = describe(model.config, label_map, content, export.batch, export.photo)
    names = ("torch", *(name for name in PACKAGES.get(export.format, ()) if name != "onnxscript"))
    about["versions"] = {"maskrcnn": __version__, **{name: version(name) for name in names}}
    images = [*images, *check_images(model.config.channels, min(model.config.min_size[-1], model.config.max_size))]
    proofs, stage = [], say or (lambda line: None)

    def proven(run: Run) -> str:
        """Returns the description with the proof, as JSON."""
        exported = opened(run, about)
        if export.int8:
            stage("scoring the model and the file")
            proofs.append(export.int8.judge(model, exported))
        else:
            stage(f"comparing the file with the model on {counted(len(images), 'image')}")
            proofs.append(prove(model, exported, images, shown=say is not None))
        faults = proofs[0].faults()
        if faults:
            helps = ""
            if export.int8:
                helps = f"; more images to calibrate on than {len(export.int8.images)} may help, else leave it in float"
            found = f"it finds other things than the model: {', '.join(faults)}"
            raise InputError(f"{export.path}: not written, as {found}{helps}")
        return json.dumps({**about, "proof": proofs[0].record()})

    def in_onnx() -> Any:
        """Returns the model in ONNX, in 8 bits where that is asked for."""
        program = in_torch()
        stage("translating the trace to ONNX")
        with without_torchvision():
            whole = to_onnx(program)
        if export.int8 is not None:
            stage(f"calibrating 8 bits on {counted(len(export.int8.images), 'image')}")
            with unfinished_folder(export.path.parent) as room:
                whole = quantised(whole, model, export.int8.images, room, export.batch or 1)
        return with_whole_image(whole, model.config, export.photo) if export.photo else whole

    def in_torch() -> torch.export.ExportedProgram:
        stage("tracing the model")
        return trace(model, export.batch)

    WRITERS[export.format](export.path, in_onnx if export.format in PACKAGES else in_torch, proven)
    return proofs[0]


@contextmanager
def without_torchvision() -> Iterator[None]:
    """Drops the translator's warnings that torchvision is not installed: of its operators, the model has none."""

    def tells(record: logging.LogRecord) -> bool:
        return not str(record.msg).startswith("torchvision is not installed")

    logger = logging.getLogger(TRANSLATOR)
    logger.addFilter(tells)
    try:
        yield
    finally:
        logger.removeFilter(tells)


Made = Callable[[], Any]  # gives an onnx.ModelProto, or a torch.export.ExportedProgram
Proven = Callable[[Run], str]


def _write_onnx(path: Path, made: Made, proven: Proven) -> None:
    with atomic_file(path) as file:
        model = made()
        run, _ = open_onnx(model.SerializeToString())
        model.metadata_props.add(key=KEY, value=proven(run))
        file.write(model.SerializeToString())


def _write_openvino(path: Path, made: Made, proven: Proven) -> None:
    openvino = optional_package("openvino", "format openvino")
    with new_folder(path) as room:
        # by ONNX, as OpenVINO's front end for torch reads RoIAlign's sampling ratio wrongly
        model = openvino.Core().read_model(nudge_thresholds(made()).SerializeToString())
        openvino.save_model(model, room / MODEL, compress_to_fp16=False)
        run, _ = open_openvino(room, mapped=False)
        model.set_rt_info(proven(run), KEY)
        openvino.save_model(model, room / MODEL, compress_to_fp16=False)


def _write_program(path: Path, made: Made, proven: Proven) -> None:
    content, program = io.BytesIO(), made()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "No complete tensor found")  # says that weights may not be on the CPU
        torch.export.save(program, content)
    with atomic_file(path) as file:
        run, _ = open_program(content)
        with zipfile.ZipFile(content, "a") as archive:
            root = archive.namelist()[0].partition("/")[0]
            archive.writestr(f"{root}/extra/{EXTRA}", proven(run))
        file.write(content.getbuffer())


WRITERS = {"onnx": _write_onnx, "openvino": _write_openvino, "torch_export": _write_program}
