"""A video or a camera -> a drawn video, whole however it ends."""

from __future__ import annotations

import signal
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from backbone.errors import InputError
from train_utils.data.images import ImageError
from train_utils.io.plain_text import counted, visible
from train_utils.prediction.jobs.options import PredictOptions
from train_utils.prediction.predictor import Predictor
from train_utils.prediction.tally import Tally
from train_utils.processes.distributed import World
from train_utils.processes.stop_signal import StopSignal
from train_utils.show import video


def check_video(path: Path, strict: bool) -> None:
    """Raises InputError for a video that must end the command: one that is refused, and under strict a broken one."""
    try:
        video.open_video(path).close()
    except ImageError:
        if strict:
            raise


def predict_video(
    options: PredictOptions, predictor: Predictor, container: Any, source: Path | str, target: Path
) -> dict[str, Any]:
    """Writes the drawn video of a file (source: its Path) or a camera; returns what it counts for (`recall`).

    SIGINT and SIGTERM end the video after a frame, so that it is whole, and then the command; a camera's SIGINT ends
    the video alone.
    """
    if predictor.reading.channels != 3:
        raise InputError(
            f"{source}: a video is RGB, and the model takes {counted(predictor.reading.channels, 'channel')}"
        )
    tally, style = Tally(), replace(options.style, magnify=options.magnify or 1)  # a video keeps its size

    def annotate(image: torch.Tensor) -> Image.Image:
        found = predictor.detect(image, tally)
        drawn, reduced = predictor.draw(found, image, style)
        tally.reduced += reduced
        tally.unboxed += predictor.is_unboxed(found, style)
        return drawn

    with StopSignal(World.single(predictor.device)) as stop:
        done = video.annotate_video(container, source, target, annotate, options.every, stop.requested)
    speed = f"{done.seconds:.1f} s, {done.frames / max(done.seconds, 1e-9):.2f} frames/s"
    notes = f" ({', '.join(done.notes)})" if done.notes else ""
    print(
        f"{visible(str(source))}: {counted(done.frames, 'frame')} in {speed} -> {visible(str(target))}{notes}",
        flush=True,
    )
    if done.broken:
        print(f"predicted in part: {ImageError(source, done.broken)}", file=sys.stderr, flush=True)
    counts = {"in_part": int(bool(done.broken)), "frames": tally.plain()}
    if stop.requested() and (isinstance(source, Path) or stop.number != signal.SIGINT):
        stop.leave()
    return counts
