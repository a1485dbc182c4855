"""Find and outline objects in images with a trained model.

    python predict.py --weights-path coco --img-path photo.jpg         published weights, fetched once (170 MB)
    python predict.py --weights-path save_weights --img-path photo.jpg       the best checkpoint of a training
    python predict.py --weights-path W --img-path photos/ --score 0.7 --classes person "traffic light"
    python predict.py --weights-path W --img-path clip.mp4                         (0, 1, ...: a camera, until Ctrl-C)
    python predict.py --weights-path W --coco-json val.json --image-dir val2017 --output results.json

The first writes test_result.jpg and test_result.json into --output-dir. For a folder and an --output-dir
(--img-path input_image --output-dir output_image) the drawn images go straight into it under their own stems, with
test_result.json beside them; a folder without --output-dir, and a glob, give a folder test_result/ of them. Videos
(which need requirements-video.txt) become .mp4 files without sound, frame for frame. Results are kept image by image:
Ctrl-C leaves what is done, whole, a kill leaves it in test_result.json.unfinished, and --resume goes on from there.
--write coco, labelme, yolo, masks or voc makes a data set of images and detections, to be corrected and trained on.
The last line writes every detection for every image of a COCO json, ready for pycocotools. A 640x480 photo takes a
ResNet-50 some 3 s on a CPU with 2 cores.
Exit status 1: finished, but some images could not be read (they are named); --strict makes that an error.
"""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from tqdm import tqdm

from backbone.settings import setting
from network_files import InputError
from train_utils.checkpoints.checkpoint import load_file
from train_utils.cli.command import run_command
from train_utils.cli.device import pick_device
from train_utils.cli.flags import add_flags, add_model_flags, given_model, given_settings
from train_utils.cli.parser import Parser
from train_utils.data.dataset import ImageDataset
from train_utils.data.demands import report_missing
from train_utils.data.formats.coco.reading import read_annotations
from train_utils.data.images import ImageError, read_image, refuse
from train_utils.data.labels import LabelMap, read_json
from train_utils.evaluation.limits import left_out_line
from train_utils.io import files, unfinished
from train_utils.io.plain_text import visible
from train_utils.prediction.data import notes_on_classes
from train_utils.prediction.data_sets import FORMS, check_place, write_data_set
from train_utils.prediction.growing_results import GrowingResults
from train_utils.prediction.model import ModelOptions, about_weights, load_model
from train_utils.prediction.predictor import Predictor
from train_utils.processes.distributed import World
from train_utils.processes.stop_signal import StopSignal
from train_utils.show import video
from train_utils.show.captions import AUTO, MODES
from train_utils.show.drawing import Style
from train_utils.show.image_lists import drawn_suffix, find_images, output_names

RESULT_NAME, DATA_SET = "test_result", "data_set"
USED_MOST = (
    "weights_path", "img_path", "output_dir", "score", "classes", "captions", "write", "verbose", "device", "resume"
)  # fmt: skip
DEFAULT_SCORE = 0.5  # of what is drawn: below it a detection is more often wrong than right


@dataclass(frozen=True)
class PredictOptions(ModelOptions):
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
    no_boxes: bool = setting(False, "draw no boxes around masks")
    magnify: int | None = setting(
        None, "enlarge what is drawn this many times (default: small images as often as fits 640 pixels)", least=1
    )
    verbose: bool = setting(False, "a line for each detection, too")
    every: int = setting(1, "only every N-th frame of a video", least=1, metavar="N")
    follow_links: bool = setting(False, "follow images of a folder that are links out of it (else they are an error)")
    strict: bool = setting(False, "an image that cannot be read is an error, before any is predicted")
    write: str | None = setting(
        None,
        "also write images and detections as a data set that train.py opens, into data_set/ of the output folder",
        choices=FORMS,
    )
    resume: bool = setting(False, "go on with the same command that was cut: what is done is not done again")

    @property
    def folder(self) -> Path:
        """The folder that files are written into."""
        return files.user_path(self.output_dir or ".")

    @property
    def style(self) -> Style:
        """How detections are drawn."""
        return Style(self.captions, not self.no_boxes, self.magnify)


def parse(words: list[str] | None = None) -> PredictOptions:
    """Returns the options that the command names."""
    parser = Parser(description=__doc__, first=USED_MOST)
    add_flags(parser, PredictOptions)
    add_model_flags(parser, training=False)
    given = parser.given(words)
    options = PredictOptions(**given_settings(PredictOptions, given), model=given_model(given))
    if (options.img_path is None) == (options.coco_json is None):
        parser.error("give either --img-path, or --coco-json with --image-dir and --output")
    if options.coco_json is not None and (options.image_dir is None or options.output is None):
        parser.error("--coco-json needs --image-dir and --output")
    if options.write is not None and options.coco_json is not None:
        parser.error("--write goes with --img-path: --coco-json has a data set already")
    return options


def predictor_of(options: PredictOptions, least_score: float) -> Predictor:
    """Returns the model with what the options say about its detections."""
    model, label_map = load_model(options, pick_device(options.device))
    content = load_file(options.weights_file)
    print(about_weights(options.weights_file, content, label_map))
    wanted = options.mask_threshold, options.classes, options.strict
    return Predictor(model, label_map, least_score, *wanted, content.get("smallest_scale"))


def predict_images(options: PredictOptions) -> int:
    """Draws and prints each image's detections, writes all of them as json; returns the exit status."""
    images = find_images(options.img_path, options.follow_links)
    for path in images:  # what ends the command does so before it has drawn anything
        if video.is_video(path):
            check_video(path, options.strict)
        else:
            read_image(path) if options.strict else refuse(path)
    if options.write:
        if any(map(video.is_video, images)):
            raise InputError("--write: a video has no image files to make a data set of; leave it out")
        check_place(options.write, options.folder / DATA_SET, images)
    predictor = predictor_of(options, DEFAULT_SCORE if options.score is None else options.score)
    folder, names = drawn_places(options, images)
    refuse_to_overwrite(images, [folder / name for name in names])
    make_places(options.folder, folder)
    json_path, as_json = options.folder / f"{RESULT_NAME}.json", not all(map(video.is_video, images))
    with unfinished.stopped_in_order(), GrowingResults(json_path, asked(options), len(images), as_json) as kept:
        if options.resume:
            take_up(kept, predictor, lambda at: images[at], lambda at: folder / names[at])
        for at, (path, name) in enumerate(zip(images, names, strict=True)):
            if at not in kept:
                predict_file(options, predictor, at, path, folder / name, kept)
        kept.finish()
    if as_json:
        print(f"{kept.count} detection(s) written to {visible(str(json_path))}")
    if options.write:
        results = json.loads(json_path.read_bytes())
        print(write_data_set(options.write, options.folder / DATA_SET, images, results, predictor.label_map))
    return predictor.status(len(images))


def make_places(output_dir: Path, drawn: Path) -> None:
    """Creates --output-dir, and in it the folder of the drawn images."""
    files.folder_to_write(output_dir)
    if drawn != output_dir:
        unfinished.clear_leftovers(files.inner_folder(output_dir, drawn.name))


def predict_file(
    options: PredictOptions, predictor: Predictor, at: int, path: Path, target: Path, kept: GrowingResults
) -> None:
    """Draws the image or video at a position into `target`, keeps its results and prints them."""
    start, stamp = time.perf_counter(), stamp_of(path)
    before = predictor.tally()
    try:
        if video.is_video(path):
            predict_video(options, predictor, video.open_video(path), path, target)
            kept.add(at, {"image": str(path), "stamp": stamp, **predictor.since(before, None)}, [])
            return
        image = read_image(path)
    except ImageError as error:
        predictor.skip(error)
        return
    found = predictor.detect(image)
    seconds = time.perf_counter() - start
    results = []
    for result in predictor.results(found, at + 1, image):
        category = predictor.label_map.given.get(result["category_id"], result["category_id"])
        results.append({**result, "category_id": category, "file_name": str(path)})
    with files.atomic_file(target) as file:  # subsampled colour would blur small text
        predictor.draw(found, image, options.style).save(file, "JPEG", quality=92, subsampling=0)
    kept.add(at, {"image": str(path), "stamp": stamp, **predictor.since(before, image.shape[-2:])}, results)
    for line in predictor.describe(found) if options.verbose else ():
        print(f"{visible(str(path))}: {line}")
    counts = predictor.counted(found)
    print(f"{visible(str(path))}: {counts} in {seconds:.2f} s -> {visible(str(target))}", flush=True)


def asked(options: PredictOptions) -> dict[str, Any]:
    """Returns what the results depend on, beside the images themselves."""
    places = ("img_path", "output", "output_dir", "device", "strict", "follow_links", "resume", "verbose", "write")
    values = {f.name: getattr(options, f.name) for f in dataclasses.fields(options) if f.name not in places}
    values["weights_path"] = str(options.weights_file)
    read = ("weights_path", "label_json_path", "coco_json")
    return {**values, **{name: stamp_of(values[name]) for name in read if values[name] is not None}}


def stamp_of(path: str | Path) -> list[int] | None:
    """Returns a file's size in bytes and time of change; None where there is no such file."""
    try:
        status = os.stat(files.user_path(path))
    except OSError:
        return None
    return [status.st_size, status.st_mtime_ns]


def take_up(
    kept: GrowingResults,
    predictor: Predictor,
    path_of: Callable[[int], str | Path],
    drawn: Callable[[int], Path] | None = None,
) -> None:
    """Takes up what an earlier call has kept of images that are as they were, and whose drawings are there."""

    def is_current(at: int, about: dict[str, Any]) -> bool:
        if at >= kept.of or about["image"] != str(path_of(at)) or about["stamp"] != stamp_of(path_of(at)):
            return False
        return drawn is None or drawn(at).is_file()

    for about in kept.resume(is_current):
        predictor.recall(about)


def check_video(path: Path, strict: bool) -> None:
    """Raises InputError for a video that must end the command: one that is refused, and under strict a broken one."""
    try:
        video.open_video(path).close()
    except ImageError:
        if strict:
            raise


def predict_video(
    options: PredictOptions, predictor: Predictor, container: Any, source: Path | str, target: Path
) -> None:
    """Writes the drawn video of a file (source: its Path) or a camera.

    SIGINT and SIGTERM end the video after a frame, so that it is whole, and then the command; a camera's SIGINT ends
    the video alone.
    """
    style = replace(options.style, magnify=options.magnify or 1)  # a video keeps its size

    def annotate(image: torch.Tensor) -> Image.Image:
        return predictor.draw(predictor.detect(image), image, style)

    with StopSignal(World.single(predictor.device)) as stop:
        done = video.annotate_video(container, source, target, annotate, options.every, stop.requested)
    speed = f"{done.seconds:.1f} s, {done.frames / max(done.seconds, 1e-9):.2f} frames/s"
    notes = f" ({', '.join(done.notes)})" if done.notes else ""
    print(f"{visible(str(source))}: {done.frames} frame(s) in {speed} -> {visible(str(target))}{notes}", flush=True)
    if done.broken:
        print(f"predicted in part: {ImageError(source, done.broken)}", file=sys.stderr, flush=True)
        predictor.in_part += 1
    if stop.requested() and (isinstance(source, Path) or stop.number != signal.SIGINT):
        stop.leave()


def predict_camera(options: PredictOptions, number: int) -> int:
    """Draws what a camera sees until Ctrl-C; returns the exit status."""
    container = video.open_camera(number)
    predictor = predictor_of(options, DEFAULT_SCORE if options.score is None else options.score)
    folder = files.folder_to_write(options.folder)
    predict_video(options, predictor, container, f"camera {number}", folder / f"{RESULT_NAME}.mp4")
    return predictor.status(1)


def drawn_places(options: PredictOptions, images: list[Path]) -> tuple[Path, list[str]]:
    """Returns folder and file names of the drawn images. InputError if a folder's were to be drawn into that folder."""
    output_dir = options.folder
    first, *more = map(files.user_path, options.img_path)
    if not more and images == [first]:
        return output_dir, [RESULT_NAME + drawn_suffix(first)]
    if more or not first.is_dir() or options.output_dir is None:
        return output_dir / RESULT_NAME, output_names(images)
    if output_dir.resolve() == first.resolve():
        raise InputError(f"--output-dir {output_dir}: is the folder of the images; give another for the drawn ones")
    return output_dir, output_names(images)


def refuse_to_overwrite(images: list[Path], drawn: list[Path]) -> None:
    """Raises InputError if a drawn image would take the place of one of the images."""
    own = {path.resolve() for path in images}
    for path in drawn:
        if path.resolve() in own:
            raise InputError(f"{path}: is one of the images, and would be overwritten; give an --output-dir")


def open_images(options: PredictOptions, raw: Any, label_map: LabelMap) -> ImageDataset:
    """Returns the images that a COCO json (`raw`: its content) names; its annotations are not looked at."""
    folder = Path(options.image_dir)
    if not folder.is_dir():
        raise InputError(f"--image-dir {options.image_dir}: no such folder")
    if isinstance(raw, dict):  # a test set's json need not have either
        names = dict(zip(label_map.category_ids, label_map.names, strict=True))
        own = [{"id": label_map.given.get(i, i), "name": name} for i, name in names.items()]
        raw = {**raw, "annotations": [], "categories": raw.get("categories") or own}
    table = read_annotations(options.coco_json, lambda names: (folder, folder), options.follow_links, raw=raw)
    data_set = ImageDataset(table, label_map)
    report_missing(data_set)
    for line in notes_on_classes(data_set):
        print(line)
    return data_set


def predict_coco_json(options: PredictOptions) -> int:
    """Writes the results file for every image that a COCO json names; returns the exit status."""
    raw = read_json(options.coco_json)
    files.folder_to_write(Path(options.output).parent)  # rather now than after hours
    if Path(options.output).is_dir():
        raise InputError(f"--output {options.output}: is a folder; give the results file's name")
    predictor = predictor_of(options, options.score or 0.0)
    data_set = open_images(options, raw, predictor.label_map)
    start, path = time.perf_counter(), Path(options.output)
    with unfinished.stopped_in_order(), GrowingResults(path, asked(options), len(data_set)) as kept:
        if options.resume:
            take_up(kept, predictor, data_set.file_name)
        for i in tqdm(range(len(data_set)), unit="image", disable=None):
            if i in kept:
                continue
            name, before = data_set.file_name(i), predictor.tally()
            stamp = stamp_of(name)
            try:
                image, _ = data_set[i]
            except ImageError as error:
                predictor.skip(error)
                continue
            results = predictor.results(predictor.detect(image), data_set.image_id(i), image)
            written = data_set.with_given_ids(results, of=i)
            predictor.foreign += len(results) - len(written)
            kept.add(i, {"image": name, "stamp": stamp, **predictor.since(before, image.shape[-2:])}, written)
        kept.finish()
    print(f"{kept.count} detection(s) written to {visible(str(path))} in {time.perf_counter() - start:.1f} s")
    if predictor.foreign:
        print(left_out_line(options.output, predictor.foreign))
    return predictor.status(len(data_set))


def main() -> int:
    """Runs the command; returns its exit status."""
    sys.stdout.reconfigure(errors="backslashreplace")  # file names need not be text in the terminal's encoding
    options = parse()
    if options.coco_json is not None:
        return predict_coco_json(options)
    camera = video.camera_number(options.img_path)
    if camera is not None and options.write:
        raise InputError("--write: a camera has no image files to make a data set of; leave it out")
    return predict_images(options) if camera is None else predict_camera(options, camera)


if __name__ == "__main__":
    sys.exit(run_command(main))
