"""Scalars, COCO numbers, images and text of a run -> TensorBoard."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from backbone.errors import InputError
from train_utils.evaluation.numbers import IOU_TYPES, STAT_NAMES
from train_utils.io.files import make_folder, writing
from train_utils.io.plain_text import encodable
from train_utils.logs.callbacks import EpochNumbers, StepNumbers

LONG = 4  # most times that an image of the grid is as wide as the grid's rows are high


class TensorBoard:
    """Writes under `folder`/tensorboard: scalars of each step; COCO numbers, classes and images of each epoch; text.

    The x axis of all is the optimiser step (0-based; an evaluation has the last step before it), so that TensorBoard
    drops what a run that resumes with `steps_done` writes again.
    """

    def __init__(self, folder: str | Path, steps_done: int = 0, enabled: bool = True) -> None:
        self.writer = None
        self.waiting: list[tuple[int, Mapping[str, Any]]] = []  # (step, its on_the_way)
        if enabled:
            from torch.utils.tensorboard import SummaryWriter  # slow to import

            self.path = make_folder(Path(folder) / "tensorboard")
            with writing(self.path):
                try:
                    self.writer = SummaryWriter(str(self.path), purge_step=steps_done, flush_secs=30)
                except UnicodeEncodeError as error:  # bytes that are no text
                    raise InputError(
                        f"{self.path}: TensorBoard can't write below this name, which is not UTF-8; give "
                        "another --output-dir"
                    ) from error

    def run(self, steps_done: int, command: str, **tables: Mapping) -> None:
        """Logs as text what is run: the command line, and tables of names and values."""
        if self.writer:
            texts = {"command": f"    {encodable(command)}"}
            for name, values in tables.items():
                rows = (f"| {key} | `{json.dumps(value)}` |" for key, value in values.items())
                texts[name] = "\n".join(["| name | value |", "|---|---|", *rows])
            with writing(self.path):
                for name, text in texts.items():
                    self.writer.add_text(f"run/{name}", text, steps_done)

    def on_step(self, numbers: StepNumbers) -> None:
        """Logs an optimiser step; what is on the way is logged with the next one, so that nothing waits for it."""
        self._log_waiting()
        self.waiting = [(numbers.step, numbers.on_the_way)] if numbers.on_the_way else []
        own = {name: value for name, value in numbers.row().items() if name not in ("epoch", "step")}
        self._scalars({f"train/{name}": value for name, value in own.items()}, numbers.step)

    def on_epoch(self, numbers: EpochNumbers) -> None:
        """Logs an evaluation; a class without ground truth is left out."""
        self._log_waiting()
        scalars = {
            f"{iou_type}/{name}": value
            for iou_type, stats in numbers.stats.items()
            for name, value in zip(STAT_NAMES, stats, strict=True)
        }
        for iou_type, values in numbers.per_class.items():
            scalars.update(
                {f"AP50 of {IOU_TYPES[iou_type]}/{name}": value for name, value in values.items() if value is not None}
            )
        if numbers.val_losses:
            scalars.update({f"val/{name}": value for name, value in numbers.val_losses.items()})
            scalars["val/loss"] = sum(numbers.val_losses.values())
        self._scalars(scalars, numbers.steps_done - 1)
        if self.writer:
            with writing(self.path):
                self.writer.flush()

    def images(
        self, steps_done: int, rows: Sequence[Sequence[Image.Image]], tag: str = "val/ground truth | prediction"
    ) -> None:
        """Logs a grid of images: one row per sequence, ground truth left, prediction right."""
        if self.writer and rows:
            with writing(self.path):
                self.writer.add_image(tag, np.asarray(image_grid(rows)), steps_done - 1, dataformats="HWC")

    def close(self) -> None:
        """Logs what the last step measured, and closes the files."""
        self._log_waiting()
        if self.writer:
            with writing(self.path):
                self.writer.close()
            self.writer = None

    def _log_waiting(self) -> None:
        for step, values in self.waiting:
            self._scalars({f"train/{name}": float(value.read()) for name, value in values.items()}, step)
        self.waiting = []

    def _scalars(self, scalars: Mapping[str, float], step: int) -> None:
        if self.writer:
            with writing(self.path):
                for name, value in scalars.items():
                    self.writer.add_scalar(name, value, step)


def image_grid(rows: Sequence[Sequence[Image.Image]], height: int = 256, gap: int = 4) -> Image.Image:
    """Returns rows of images as one RGB image; each becomes `height` pixels high, a long one LONG times as wide."""
    scaled = [[_fitted(image.convert("RGB"), height) for image in row] for row in rows]
    width = max(sum(image.width + gap for image in row) for row in scaled) - gap
    heights = [max(image.height for image in row) for row in scaled]
    grid, top = Image.new("RGB", (width, sum(heights) + gap * (len(rows) - 1)), "white"), 0
    for row, high in zip(scaled, heights, strict=True):
        left = 0
        for image in row:
            grid.paste(image, (left, top))
            left += image.width + gap
        top += high + gap
    return grid


def _fitted(image: Image.Image, height: int) -> Image.Image:
    scale = min(height / image.height, LONG * height / image.width)
    return image.resize((max(1, round(image.width * scale)), max(1, round(image.height * scale))))
