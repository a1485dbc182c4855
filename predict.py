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
Exit status 1: finished, but some images could not be read: they are named; 2: none could, or with --strict one not.
"""

from __future__ import annotations

import json
import sys
import time
from functools import partial
from pathlib import Path

import backbone  # noqa: F401  isort: skip  before torch, for how its threads wait

from network_files import InputError
from network_files.config import EACH_PAGE
from train_utils.cli.busy import say_if_busy
from train_utils.cli.command import run_command
from train_utils.cli.device import pick_device, shared_world
from train_utils.cli.flags import add_flags, add_model_flags, given_model, given_settings
from train_utils.cli.parser import Parser
from train_utils.data.dataset import ImageDataset
from train_utils.data.labels import read_json
from train_utils.evaluation.limits import left_out_line
from train_utils.evaluation.tiled_model import TiledModel
from train_utils.io import files
from train_utils.io.plain_text import visible
from train_utils.prediction.agreeing import refuse_other_work
from train_utils.prediction.data_sets import check_classes, write_data_set
from train_utils.prediction.jobs.drawn_images import DrawnImages
from train_utils.prediction.jobs.json_images import kept_of, open_images
from train_utils.prediction.jobs.options import DATA_SET, RESULT_NAME, PredictOptions
from train_utils.prediction.jobs.places import all_pages, images_of, places_of
from train_utils.prediction.jobs.videos import predict_video
from train_utils.prediction.kept.growing_results import GrowingResults
from train_utils.prediction.model import about_weights, load_model
from train_utils.prediction.pipeline import Source, Work, predict_and_keep, stopping
from train_utils.prediction.predictor import Predictor
from train_utils.prediction.runtimes.exported_model import filled_up
from train_utils.processes.distributed import World
from train_utils.show import video

USED_MOST = (
    "weights_path", "img_path", "output_dir", "score", "classes", "captions", "write", "verbose", "device", "resume"
)  # fmt: skip
DRAWING = ("output_dir", "captions", "no_boxes", "magnify", "every", "show_channels")  # options of what is drawn
LISTED = 10  # images that --order prints


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
    for name in DRAWING if options.coco_json is not None else ():
        if name in given:
            parser.error(f"--{name.replace('_', '-')} goes with --img-path: --coco-json draws nothing")
    for flag, value in (("--output", options.output), ("--image-dir", options.image_dir)):
        if value is not None and options.coco_json is None:
            parser.error(f"{flag} goes with --coco-json; what --img-path makes goes into --output-dir")
    if options.order is not None and options.coco_json is not None:
        parser.error("--order goes with --img-path")
    if options.write is not None and options.coco_json is not None:
        parser.error("--write goes with --img-path: --coco-json has a data set already")
    return options


def predictor_of(options: PredictOptions, least_score: float, world: World) -> Predictor:
    """Returns the model with what the options say about its detections."""
    model, label_map, content = load_model(options, world.device)
    with world.one_voice():
        notes = [*filter(None, [filled_up(model)]), *map(visible, options.notes(content))]
        print(about_weights(options.weights_file, content, label_map), *notes, sep="\n")
    model = options.looking(model, content, options.mask_threshold)
    if isinstance(model, TiledModel):
        model.bar = world.is_main
    wanted = options.mask_threshold, options.classes, options.strict
    return Predictor(model, label_map, least_score, *wanted, content.get("smallest_scale"))


def predict_images(options: PredictOptions, world: World) -> int:
    """Draws and prints each image's detections, writes all of them as json; returns the exit status."""
    images = world.on_main(images_of, options)
    with world.main_first():
        predictor = predictor_of(options, options.least_score, world)
    if predictor.reading.pages == EACH_PAGE:
        images = world.on_main(all_pages, options, images)
    if options.write:
        world.on_main(check_classes, options.write, predictor.label_map)
    drawn = DrawnImages(options, predictor, images, *world.on_main(places_of, options, images))
    if options.every > 1 and not drawn.has_videos and world.is_main:
        print(f"--every {options.every}: without effect, there is no video")
    say_if_busy(world, None if drawn.has_videos else len(images))
    refuse_other_work(world, options.asked(), predictor.model, predictor.label_map)
    path = options.folder / f"{RESULT_NAME}.json"
    world.on_main(say_replaced, options, *[path] * drawn.as_json)
    with stopping(world), GrowingResults(path, options.asked(), len(images), drawn.as_json, world) as kept:
        predict_and_keep(drawn.work(kept), predictor, kept, drawn.pace(world.device), options.resume)
        status = world.on_main(conclude, options, predictor, kept, images)  # may fail, as disks are full
        world.on_main(kept.remove)
    return status


def say_replaced(options: PredictOptions, *results: Path) -> None:
    """Prints that results of an earlier call are replaced; those that --resume goes on with are not."""
    for line in [] if options.resume else files.replaced_lines(*results):
        print(visible(line), flush=True)


def conclude(options: PredictOptions, predictor: Predictor, kept: GrowingResults, images: list[Path]) -> int:
    """Says what was written, and writes a data set where that is asked for; returns the exit status."""
    if kept.as_json:
        print(kept.outcome())
    if kept.as_json and not kept.is_written:
        return predictor.status(len(images))
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
    files.write_text(path, "".join(f"{row}\n" for row in rows).encode(errors="backslashreplace").decode())
    first = [visible("  " + row.replace("\t", "  ")) for row in rows[:LISTED]]
    return [f"annotate next, by doubtful objects (all {len(rows)} are in {visible(str(path))}):", *first]


def predict_camera(options: PredictOptions, number: int) -> int:
    """Draws what a camera sees until Ctrl-C; returns the exit status."""
    container = video.open_camera(number)
    world = World.single(pick_device(options.device))
    predictor = predictor_of(options, options.least_score, world)
    folder = files.folder_to_write(options.folder)
    counts = predict_video(options, predictor, container, f"camera {number}", folder / f"{RESULT_NAME}.mp4")
    predictor.recall(counts)
    return predictor.status(1)


def predict_coco_json(options: PredictOptions, world: World) -> int:
    """Writes the results file for every image that a COCO json names; returns the exit status."""
    path = files.user_path(options.output)
    with world.main_first(), world.one_voice():
        raw = read_json(options.coco_json)
        files.folder_to_write(path.parent)  # rather now than after hours
        if path.is_dir():
            raise InputError(f"--output {options.output}: is a folder; give the results file's name")
        predictor = predictor_of(options, options.score or 0.0, world)
        data_set = open_images(options, raw, predictor.label_map).read_as(predictor.reading)
    say_if_busy(world, len(data_set))
    start = time.perf_counter()
    work = Work(Source(data_set.file_name, lambda at: data_set[at][0]), partial(kept_of, predictor, data_set))
    refuse_other_work(world, options.asked(), predictor.model, predictor.label_map, data_set)
    world.on_main(say_replaced, options, path)
    with stopping(world), GrowingResults(path, options.asked(), len(data_set), world=world) as kept:
        predict_and_keep(work, predictor, kept, options.pace(world.device), options.resume)
        status = world.on_main(conclude_json, options, predictor, kept, data_set, start)
        world.on_main(kept.remove)
    return status


def conclude_json(
    options: PredictOptions, predictor: Predictor, kept: GrowingResults, data_set: ImageDataset, start: float
) -> int:
    """Says what was written since `start`, and what the json has no class for; returns the exit status."""
    print(kept.outcome(f" in {time.perf_counter() - start:.1f} s"))
    if predictor.images.foreign:
        print(left_out_line(options.output, predictor.images.foreign))
    return predictor.status(len(data_set))


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
