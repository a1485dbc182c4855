"""The flags of predict.py -> what is asked for: of which images, and what becomes of the detections."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from backbone.settings import setting
from train_utils.io import files
from train_utils.prediction.data_sets import FORMS
from train_utils.prediction.looking import LookingOptions
from train_utils.prediction.model import ModelOptions
from train_utils.prediction.pipeline import Pace, pace_of, stamp_of
from train_utils.show.captions import AUTO, FEW, MODES
from train_utils.show.drawing import Style

RESULT_NAME, DATA_SET = "test_result", "data_set"
DEFAULT_SCORE = 0.5  # of what is drawn: below it a detection is more often wrong than right
# settings that results do not depend on
PLACES = ("img_path", "output", "output_dir", "device", "strict", "follow_links", "resume", "verbose", "write")
HOW = ("batch_size", "workers", "order")


@dataclass(frozen=True)
class PredictOptions(ModelOptions, LookingOptions):
    """Prediction: of which images, and what becomes of the detections."""

    img_path: tuple[str, ...] | None = setting(
        None, "an image, a video, a folder, a glob, or a camera's number", metavar="PATH"
    )
    coco_json: str | None = setting(None, "in place of --img-path: the images of a COCO json", metavar="J")
    image_dir: str | None = setting(None, "folder of the images that --coco-json names", metavar="D")
    output: str | None = setting(None, "the results file that --coco-json leads to", metavar="R.json")
    output_dir: str | None = setting(None, "where files are written (default: the working folder)", metavar="O")
    score: float | None = setting(
        None, "least score of a detection (default: 0.5; with --coco-json none)", least=0, most=1
    )
    mask_threshold: float = setting(0.5, "a mask's pixels are those with a probability above this", least=0, most=1)
    classes: tuple[str, ...] | None = setting(None, "only these classes (default: all)", metavar="NAME")
    captions: str = setting(
        AUTO,
        "names and scores where they leave the image to be seen (auto), none, scores, or all (full)",
        choices=MODES,
    )
    no_boxes: bool = setting(False, f"draw no boxes around masks, as in an image of more than {FEW} objects")
    magnify: int | None = setting(
        None, "enlarge what is drawn this many times (default: small images as often as fits 640 pixels)", least=1
    )
    verbose: bool = setting(False, "a line for each detection, too")
    every: int = setting(1, "only every N-th frame of a video", least=1, metavar="N")
    follow_links: bool = setting(False, "follow images of a folder that are links out of it (else they are an error)")
    strict: bool = setting(False, "an image that cannot be read is an error, before any is predicted")
    order: str | None = setting(
        None,
        "uncertain: list the images most worth annotating next, with the most doubtful objects: each detection counts "
        "1 - |2 score - 1|",
        choices=("uncertain",),
    )
    show_channels: tuple[int, ...] | None = setting(
        None, "channels, from 0, that are drawn as red, green and blue, or one as grey (default: the first)", least=0
    )
    write: str | None = setting(
        None,
        "also write images and detections as a data set that train.py opens, into data_set/ of the output folder",
        choices=FORMS,
    )
    batch_size: int | None = setting(
        None, "images at a time on a GPU, most in work at once of an exported file (default: 8)", least=1, short="-b"
    )
    workers: int | None = setting(
        None, "processes that read images (default: on a CPU none, else up to 8)", least=0, most=1024, short="-j"
    )
    resume: bool = setting(False, "go on with the same command that was cut: what is done is not done again")

    @property
    def folder(self) -> Path:
        """The folder that files are written into."""
        return files.user_path(self.output_dir or ".")

    def pace(self, device: torch.device) -> Pace:
        """Returns how many images are in work at once."""
        return pace_of(device, self.batch_size, self.workers)

    @property
    def style(self) -> Style:
        """How detections are drawn."""
        return Style(self.captions, not self.no_boxes, self.magnify, self.show_channels)

    @property
    def least_score(self) -> float:
        """The score that a detection must have to be drawn."""
        return DEFAULT_SCORE if self.score is None else self.score

    def asked(self) -> dict[str, Any]:
        """Returns what the results depend on, beside the images themselves."""
        names = (field.name for field in dataclasses.fields(self) if field.name not in PLACES + HOW)
        values = {name: getattr(self, name) for name in names}
        values["weights_path"] = str(self.weights_file)
        read = ("weights_path", "label_json_path", "coco_json")
        return {**values, **{name: stamp_of(values[name]) for name in read if values[name] is not None}}
