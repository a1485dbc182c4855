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
ResNet-50 some 3 s on a CPU with 2 cores. `torchrun --nproc_per_node=8 predict.py ...` shares the images among 8 GPUs.
Exit status 1: finished, but some images could not be read (they are named); --strict makes that an error.
"""

from __future__ import annotations

import dataclasses
import json
import signal
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import backbone  # noqa: F401  isort: skip  before torch, for how its threads wait
import torch
from PIL import Image

from backbone.settings import setting
from network_files import InputError
from network_files.config import EACH_PAGE
from train_utils.cli.busy import say_if_busy
from train_utils.cli.command import run_command
from train_utils.cli.device import pick_device, shared_world
from train_utils.cli.flags import add_flags, add_model_flags, given_model, given_settings
from train_utils.cli.parser import Parser
from train_utils.data.dataset import ImageDataset
from train_utils.data.demands import report_missing
from train_utils.data.formats.coco.reading import read_annotations
from train_utils.data.images import ImageError, read_image, refuse
from train_utils.data.images.pages import page_of
from train_utils.data.images.reading import AS_STORED
from train_utils.data.images.windows import open_image
from train_utils.data.labels import LabelMap, read_json
from train_utils.evaluation.limits import left_out_line
from train_utils.evaluation.tiled_model import TiledModel
from train_utils.io import files, unfinished
from train_utils.io.plain_text import counted, visible
from train_utils.prediction.agreeing import refuse_other_work
from train_utils.prediction.data import notes_on_classes
from train_utils.prediction.data_sets import FORMS, check_place, write_data_set
from train_utils.prediction.growing_results import GrowingResults
from train_utils.prediction.large_drawings import OVERVIEW, QUALITY, draw_parts, is_large
from train_utils.prediction.looking import LookingOptions
from train_utils.prediction.model import ModelOptions, about_weights, load_model
from train_utils.prediction.pipeline import (
    Finished,
    Pace,
    Read,
    Seen,
    Source,
    Work,
    pace_of,
    predict_and_keep,
    stamp_of,
    stopping,
)
from train_utils.prediction.predictor import Predictor
from train_utils.processes.distributed import World
from train_utils.processes.stop_signal import StopSignal
from train_utils.show import video
from train_utils.show.captions import AUTO, FEW, MODES
from train_utils.show.drawing import Style
from train_utils.show.image_lists import drawn_suffix, find_images, output_names, pages_of

RESULT_NAME, DATA_SET = "test_result", "data_set"
USED_MOST = (
    "weights_path", "img_path", "output_dir", "score", "classes", "captions", "write", "verbose", "device", "resume"
)  # fmt: skip
LISTED = 10  # images that --order prints
DEFAULT_SCORE = 0.5  # of what is drawn: below it a detection is more often wrong than right


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
    if options.order is not None and options.coco_json is not None:
        parser.error("--order goes with --img-path")
    if options.write is not None and options.coco_json is not None:
        parser.error("--write goes with --img-path: --coco-json has a data set already")
    return options


def predictor_of(options: PredictOptions, least_score: float, world: World) -> Predictor:
    """Returns the model with what the options say about its detections."""
    model, label_map, content = load_model(options, world.device)
    with world.one_voice():
        print(about_weights(options.weights_file, content, label_map))
    model = options.looking(model, content, options.mask_threshold)
    if isinstance(model, TiledModel):
        model.bar = world.is_main
    wanted = options.mask_threshold, options.classes, options.strict
    return Predictor(model, label_map, least_score, *wanted, content.get("smallest_scale"))


def predict_images(options: PredictOptions, world: World) -> int:
    """Draws and prints each image's detections, writes all of them as json; returns the exit status."""
    images = world.on_main(images_of, options)
    with world.main_first():
        predictor = predictor_of(options, DEFAULT_SCORE if options.score is None else options.score, world)
    if predictor.reading.pages == EACH_PAGE:
        images = world.on_main(all_pages, options, images)
    folder, names = world.on_main(places_of, options, images)
    say_if_busy(world, None if any(map(video.is_video, images)) else len(images))
    json_path, as_json = options.folder / f"{RESULT_NAME}.json", not all(map(video.is_video, images))

    def finished(seen: Seen) -> Finished:
        at = seen.read.at
        done, page = drawn_image(options, predictor, seen, images[at], folder / names[at]), page_of(images[at])[1]
        if predictor.reading.pages != EACH_PAGE and page is None:
            return done
        return done._replace(results=[{**result, "page": page or 0} for result in done.results])

    def film(read: Read) -> None:
        before = predictor.tally()
        path = images[read.at]
        try:
            predict_video(options, predictor, video.open_video(path), path, folder / names[read.at])
        except ImageError as error:
            predictor.skip(error)
            return
        kept.add(read.at, {"image": str(path), "stamp": read.stamp, **predictor.since(before)}, [])

    pace = options.pace(world.device)
    if world.device.type == "cpu" and any(map(video.is_video, images)):
        pace = pace._replace(batch_size=1)  # its frames come one after another, and want all threads

    def read(at: int) -> torch.Tensor | None:
        return None if video.is_video(images[at]) else open_image(images[at], predictor.reading)

    source = Source(images.__getitem__, read)
    work = Work(source, finished, film, lambda at: (folder / names[at]).is_file(), silent=False)
    refuse_other_work(world, asked(options), predictor.model, predictor.label_map)
    world.on_main(say_replaced, options, *([json_path] if as_json else []))
    with stopping(world), GrowingResults(json_path, asked(options), len(images), as_json, world) as kept:
        predict_and_keep(work, predictor, kept, pace, options.resume)
    return world.on_main(conclude, options, predictor, kept, images)


def images_of(options: PredictOptions) -> list[Path]:
    """Returns the images and videos; what ends the command does so before anything is drawn."""
    images = find_images(options.img_path, options.follow_links)
    for path in images:
        if video.is_video(path):
            check_video(path, options.strict)
        else:
            tiled = options.tile is not None
            read_image(path, reading=AS_STORED) if options.strict and not tiled else refuse(path, guarded=not tiled)
    if options.write:
        if any(map(video.is_video, images)):
            raise InputError("--write: a video has no image files to make a data set of; leave it out")
        check_place(options.write, options.folder / DATA_SET, images)
    return images


def all_pages(options: PredictOptions, images: list[Path]) -> list[Path]:
    """Returns the images with the pages of each file that has several in its place."""
    pages = [page for path in images for page in pages_of(path)]
    if options.write and pages != images:
        raise InputError("--write: pages have no image files of their own; leave it out, or --pages each")
    return pages


def places_of(options: PredictOptions, images: list[Path]) -> tuple[Path, list[str]]:
    """Returns folder and file names of the drawn images; the folders are there then."""
    folder, names = drawn_places(options, images)
    refuse_to_overwrite(images, [folder / name for name in names])
    make_places(options.folder, folder)
    return folder, names


def conclude(options: PredictOptions, predictor: Predictor, kept: GrowingResults, images: list[Path]) -> int:
    """Says what was written, and writes a data set where that is asked for; returns the exit status."""
    if kept.as_json:
        print(f"{counted(kept.count, 'detection')} written to {visible(str(kept.path))}")
    if options.order:
        print(*ordered(options.folder, images, predictor.doubts), sep="\n")
    if options.write:
        results = json.loads(kept.path.read_bytes())
        print(write_data_set(options.write, options.folder / DATA_SET, images, results, predictor.label_map))
    return predictor.status(len(images))


def ordered(folder: Path, images: list[Path], doubts: dict[int, float]) -> list[str]:
    """Writes the images, the most doubtful first; returns lines that name the first of them."""
    most = sorted(doubts, key=lambda at: (-doubts[at], at))
    rows = [f"{doubts[at]:.3f}\t{images[at]}" for at in most]
    path = folder / f"{RESULT_NAME}_order.txt"
    files.write_text(path, "".join(f"{row}\n" for row in rows))
    first = [visible("  " + row.replace("\t", "  ")) for row in rows[:LISTED]]
    return [f"annotate next, by doubtful objects (all {len(rows)} are in {visible(str(path))}):", *first]


def say_replaced(options: PredictOptions, *results: Path) -> None:
    """Prints that results of an earlier call are replaced; those that --resume goes on with are not."""
    for line in [] if options.resume else files.replaced_lines(*results):
        print(visible(line), flush=True)


def make_places(output_dir: Path, drawn: Path) -> None:
    """Creates --output-dir, and in it the folder of the drawn images."""
    files.folder_to_write(output_dir)
    if drawn != output_dir:
        unfinished.clear_leftovers(files.inner_folder(output_dir, drawn.name))


def drawn_image(options: PredictOptions, predictor: Predictor, seen: Seen, path: Path, target: Path) -> Finished:
    """Draws an image's detections into `target`."""
    read, image, found = seen.read, seen.read.image, seen.found
    if image is None:
        return Finished(error=read.error)
    size = tuple(image.shape[-2:])
    masks, results = predictor.masks(found, size), []
    of_image, empty = predictor.results(found, read.at + 1, size, masks)
    for result in of_image:
        category = predictor.label_map.given.get(result["category_id"], result["category_id"])
        results.append({**result, "category_id": category, "file_name": str(path)})
    large = is_large(size, predictor.tiled and predictor.tiled.tiling)
    drawn, reduced = predictor.draw(found, image, options.style, masks, *[OVERVIEW] * large)
    note = f" ({draw_parts(predictor, found, image, options.style, masks, target)})" if large else ""
    with files.atomic_file(target) as file:
        drawn.save(file, **QUALITY)
    about = {"at": read.at, "image": str(path), "stamp": read.stamp, "empty": empty}
    about["reduced"] = int(reduced and not large)
    about["unboxed"] = int(options.style.boxes and len(found["labels"]) > FEW)
    said = [f"{visible(str(path))}: {line}" for line in (predictor.describe(found) if options.verbose else ())]
    counts = predictor.counted(found)
    said.append(f"{visible(str(path))}: {counts} in {seen.seconds:.2f} s -> {visible(str(target) + note)}")
    return Finished({**about, **seen.counts}, results, "\n".join(said))


def asked(options: PredictOptions) -> dict[str, Any]:
    """Returns what the results depend on, beside the images themselves."""
    places = ("img_path", "output", "output_dir", "device", "strict", "follow_links", "resume", "verbose", "write")
    places = (*places, "batch_size", "workers", "order")
    values = {f.name: getattr(options, f.name) for f in dataclasses.fields(options) if f.name not in places}
    values["weights_path"] = str(options.weights_file)
    read = ("weights_path", "label_json_path", "coco_json")
    return {**values, **{name: stamp_of(values[name]) for name in read if values[name] is not None}}


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
    if predictor.reading.channels != 3:
        raise InputError(
            f"{source}: a video is RGB, and the model takes {counted(predictor.reading.channels, 'channel')}"
        )
    style = replace(options.style, magnify=options.magnify or 1)  # a video keeps its size

    def annotate(image: torch.Tensor) -> Image.Image:
        drawn, reduced = predictor.draw(predictor.detect(image), image, style)
        predictor.reduced += reduced
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
        predictor.in_part += 1
    if stop.requested() and (isinstance(source, Path) or stop.number != signal.SIGINT):
        stop.leave()


def predict_camera(options: PredictOptions, number: int) -> int:
    """Draws what a camera sees until Ctrl-C; returns the exit status."""
    container = video.open_camera(number)
    world = World.single(pick_device(options.device))
    predictor = predictor_of(options, DEFAULT_SCORE if options.score is None else options.score, world)
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


def predict_coco_json(options: PredictOptions, world: World) -> int:
    """Writes the results file for every image that a COCO json names; returns the exit status."""
    with world.main_first(), world.one_voice():
        raw = read_json(options.coco_json)
        files.folder_to_write(Path(options.output).parent)  # rather now than after hours
        if Path(options.output).is_dir():
            raise InputError(f"--output {options.output}: is a folder; give the results file's name")
        predictor = predictor_of(options, options.score or 0.0, world)
        data_set = open_images(options, raw, predictor.label_map).read_as(predictor.reading)
    say_if_busy(world, len(data_set))
    start, path = time.perf_counter(), Path(options.output)

    def finished(seen: Seen) -> Finished:
        at, image = seen.read.at, seen.read.image
        if image is None:
            return Finished(error=seen.read.error)
        results, empty = predictor.results(seen.found, data_set.image_id(at), tuple(image.shape[-2:]))
        written = data_set.with_given_ids(results, of=at)
        about = {"at": at, "image": data_set.file_name(at), "stamp": seen.read.stamp, "empty": empty}
        return Finished({**about, "foreign": len(results) - len(written), **seen.counts}, written)

    work = Work(Source(data_set.file_name, lambda at: data_set[at][0]), finished)
    refuse_other_work(world, asked(options), predictor.model, predictor.label_map, data_set)
    world.on_main(say_replaced, options, path)
    with stopping(world), GrowingResults(path, asked(options), len(data_set), world=world) as kept:
        predict_and_keep(work, predictor, kept, options.pace(world.device), options.resume)

    def concluded() -> int:
        print(
            f"{counted(kept.count, 'detection')} written to {visible(str(path))} in {time.perf_counter() - start:.1f} s"
        )
        if predictor.foreign:
            print(left_out_line(options.output, predictor.foreign))
        return predictor.status(len(data_set))

    return world.on_main(concluded)


def main() -> int:
    """Runs the command; returns its exit status."""
    sys.stdout.reconfigure(errors="backslashreplace")  # file names need not be text in the terminal's encoding
    options = parse()
    with shared_world(options.device, "the same command with --resume goes on") as world:
        if options.coco_json is not None:
            return predict_coco_json(options, world)
        camera = video.camera_number(options.img_path)
        if camera is None:
            return predict_images(options, world)
        if options.write or options.order:
            flag = "--write" if options.write else "--order"
            raise InputError(f"{flag}: a camera has no image files to make a data set of; leave it out")
        return world.on_main(predict_camera, options, camera)


if __name__ == "__main__":
    sys.exit(run_command(main))
