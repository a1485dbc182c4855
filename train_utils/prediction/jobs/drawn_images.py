"""Images and videos with places for their drawings -> work for the pipeline, which draws each and keeps its results."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import torch

from network_files.config import EACH_PAGE
from train_utils.data.images import ImageError
from train_utils.data.images.pages import page_of
from train_utils.data.images.windows import open_image
from train_utils.io import files
from train_utils.io.plain_text import visible
from train_utils.prediction.jobs.options import PredictOptions
from train_utils.prediction.jobs.videos import predict_video
from train_utils.prediction.kept.growing_results import GrowingResults
from train_utils.prediction.large_drawings import OVERVIEW, QUALITY, draw_parts, is_large
from train_utils.prediction.pipeline import Finished, Pace, Read, Seen, Source, Work
from train_utils.prediction.predictor import Predictor
from train_utils.show import video


class DrawnImages(NamedTuple):
    """The images and videos that are drawn; folder, names: where each one's drawing goes."""

    options: PredictOptions
    predictor: Predictor
    images: list[Path]
    folder: Path
    names: list[str]

    @property
    def has_videos(self) -> bool:
        """Whether there is a video among them."""
        return any(map(video.is_video, self.images))

    @property
    def as_json(self) -> bool:
        """Whether there are images, of which there will be a json."""
        return not all(map(video.is_video, self.images))

    def pace(self, device: torch.device) -> Pace:
        """Returns how many are in work at once: of a video frames come one after another, and want a CPU's threads."""
        pace = self.options.pace(device)
        return pace._replace(batch_size=1) if device.type == "cpu" and self.has_videos else pace

    def work(self, kept: GrowingResults) -> Work:
        """Returns what is to be done; kept: has the results."""

        def film(read: Read) -> None:
            if about := self.film(read):
                kept.add(read.at, about, [])

        source = Source(self.images.__getitem__, self.read)
        return Work(source, self.finish, film, lambda at: self.place(at).is_file(), silent=False)

    def place(self, at: int) -> Path:
        """Returns where the drawing of the image at a position goes."""
        return self.folder / self.names[at]

    def read(self, at: int) -> torch.Tensor | None:
        """Returns the image at a position, as the model takes it; None for a video."""
        return None if video.is_video(self.images[at]) else open_image(self.images[at], self.predictor.reading)

    def film(self, read: Read) -> dict[str, Any] | None:
        """Draws a video; returns what is kept of it, None where it is broken."""
        path = self.images[read.at]
        try:
            counts = predict_video(self.options, self.predictor, video.open_video(path), path, self.place(read.at))
        except ImageError as error:
            self.predictor.skip(error)
            return None
        self.predictor.recall(counts)
        return {"image": str(path), "stamp": read.stamp, **counts}

    def finish(self, seen: Seen) -> Finished:
        """Draws an image's detections; returns what is kept of it."""
        options, predictor, image, found = self.options, self.predictor, seen.read.image, seen.found
        if image is None:
            return Finished(error=seen.read.error)
        at, size, style = seen.read.at, tuple(image.shape[-2:]), options.style
        path, target, masks = self.images[at], self.place(at), predictor.masks(found, size)
        large = is_large(size, predictor.tiled and predictor.tiled.tiling)
        drawn, reduced = predictor.draw(found, image, style, masks, *[OVERVIEW] * large)
        note = f" ({draw_parts(predictor, found, image, style, masks, target)})" if large else ""
        with files.atomic_file(target) as file:
            drawn.save(file, **QUALITY)
        results, empty = predictor.results(found, at + 1, size, masks)  # not beside what drawing takes: they are many
        about = {"at": at, "image": str(path), "stamp": seen.read.stamp, "empty": empty}
        about["reduced"] = int(reduced and not large)
        about["unboxed"] = int(predictor.is_unboxed(found, style))
        said = [f"{visible(str(path))}: {line}" for line in (predictor.describe(found) if options.verbose else ())]
        counts = predictor.counted(found)
        said.append(f"{visible(str(path))}: {counts} in {seen.seconds:.2f} s -> {visible(str(target) + note)}")
        return Finished({**about, **seen.counts}, self.named(results, path), "\n".join(said))

    def named(self, results: list[dict], path: Path) -> list[dict]:
        """Returns results with the given ids of their classes and the image's name; of pages of files with the page."""
        given, page = self.predictor.label_map.given, page_of(path)[1]
        paged = self.predictor.reading.pages == EACH_PAGE or page is not None
        more = {"file_name": str(path), **({"page": page or 0} if paged else {})}
        return [{**r, "category_id": given.get(r["category_id"], r["category_id"]), **more} for r in results]
