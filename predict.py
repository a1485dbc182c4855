"""Find and outline objects in images with a trained model.

    python predict.py --weights-path save_weights/model_best.pth --img-path photo.jpg
    python predict.py --weights-path W --img-path photos/ --score 0.7 --classes person "traffic light"
    python predict.py --weights-path W --img-path clip.mp4                         (0, 1, ...: a camera, until Ctrl-C)
    python predict.py --weights-path W --coco-json val.json --image-dir val2017 --output results.json

The first writes test_result.jpg and test_result.json into --output-dir. For a folder and an --output-dir
(--img-path input_image --output-dir output_image) the drawn images go straight into it under their own stems, with
test_result.json beside them; a folder without --output-dir, and a glob, give a folder test_result/ of them. Videos
(which need requirements-video.txt) become .mp4 files without sound, frame for frame; Ctrl-C leaves what is done, whole.
The last line writes every detection for every image of a COCO json, ready for pycocotools. A 640x480 photo takes a
ResNet-50 some 3 s on a CPU with 2 cores.
Exit status 1: finished, but some images could not be read (they are named); --strict makes that an error.
"""

import argparse
import signal
import sys
import time
from pathlib import Path

from tqdm import tqdm

from network_files import InputError
from train_utils.cli import command
from train_utils.data.dataset import ImageDataset
from train_utils.data.formats.coco.reading import read_annotations
from train_utils.data.images import ImageError, read_image, refuse
from train_utils.data.labels import LabelMap, read_json
from train_utils.data.problems import STOP
from train_utils.evaluation.numbers import write_results
from train_utils.io import files
from train_utils.io.plain_text import visible
from train_utils.prediction.predictor import Predictor, add_model_arguments
from train_utils.processes.distributed import World
from train_utils.processes.stop_signal import StopSignal
from train_utils.show import video
from train_utils.show.image_lists import drawn_suffix, find_images, output_names

RESULT_NAME = "test_result"
DEFAULT_SCORE = 0.5  # of what is drawn: below it a detection is more often wrong than right


def parse_args() -> argparse.Namespace:
    parser = command.Parser(description=__doc__)
    parser.add_argument(
        "--img-path", nargs="+", metavar="PATH", help="an image, a video, a folder, a glob, or a camera's number"
    )
    parser.add_argument("--coco-json", metavar="J", help="in place of --img-path: the images of a COCO json")
    parser.add_argument("--image-dir", metavar="D", help="folder of the images that --coco-json names")
    parser.add_argument("--output", metavar="R.json", help="the results file that --coco-json leads to")
    parser.add_argument(
        "--score", type=command.fraction, help="least score of a detection (default: 0.5; with --coco-json none)"
    )
    parser.add_argument(
        "--mask-threshold",
        type=command.fraction,
        default=0.5,
        help="a mask's pixels are those with a probability above this (default: 0.5)",
    )
    parser.add_argument("--classes", nargs="+", metavar="NAME", help="only these classes (default: all)")
    parser.add_argument(
        "--magnify",
        type=command.positive_int,
        default=1,
        help="enlarge what is drawn this many times, for small images (default: 1)",
    )
    parser.add_argument(
        "--every",
        type=command.positive_int,
        default=1,
        metavar="N",
        help="only every N-th frame of a video (default: 1)",
    )
    command.add_flag(
        parser, "--follow-links", help="follow images of a folder that are links out of it (else they are an error)"
    )
    command.add_flag(parser, "--strict", help="an image that cannot be read is an error, before any is predicted")
    add_model_arguments(parser)
    args = parser.parse_args()
    if (args.img_path is None) == (args.coco_json is None):
        parser.error("give either --img-path, or --coco-json with --image-dir and --output")
    if args.coco_json is not None and (args.image_dir is None or args.output is None):
        parser.error("--coco-json needs --image-dir and --output")
    return args


def predict_images(args: argparse.Namespace) -> int:
    """Draws and prints each image's detections, writes all of them as json; returns the exit status."""
    images = find_images(args.img_path, args.follow_links)
    for path in images:  # what ends the command does so before it has drawn anything
        check_video(path, args.strict) if video.is_video(path) else read_image(path) if args.strict else refuse(path)
    predictor = Predictor(args, DEFAULT_SCORE if args.score is None else args.score)
    output_dir = files.user_path(args.output_dir)
    folder, names = drawn_places(args, output_dir, images)
    files.make_folder(folder)
    refuse_to_overwrite(images, [folder / name for name in names])
    results = []
    for image_id, (path, name) in enumerate(zip(images, names, strict=True), start=1):
        start = time.perf_counter()
        try:
            if video.is_video(path):
                predict_video(args, predictor, video.open_video(path), path, folder / name)
                continue
            image = read_image(path)
        except ImageError as error:
            predictor.skip(error)
            continue
        found = predictor.detect(image)
        seconds = time.perf_counter() - start
        for result in predictor.results(found, image_id, image):
            category = predictor.label_map.given.get(result["category_id"], result["category_id"])
            results.append({**result, "category_id": category, "file_name": str(path)})
        with files.atomic_file(folder / name) as file:  # subsampled colour would blur small text
            predictor.draw(found, image, args.magnify).save(file, "JPEG", quality=92, subsampling=0)
        for line in predictor.describe(found):
            print(f"{visible(str(path))}: {line}")
        count = len(found["scores"])
        print(f"{visible(str(path))}: {count} detection(s) in {seconds:.2f} s -> {folder / name}", flush=True)
    if not all(map(video.is_video, images)):
        write_results(output_dir / f"{RESULT_NAME}.json", results)
        print(f"{len(results)} detection(s) written to {output_dir / RESULT_NAME}.json")
    return predictor.status(len(images))


def check_video(path: Path, strict: bool) -> None:
    """InputError for a video that must end the command: one that is refused, and under strict a broken one."""
    try:
        video.open_video(path).close()
    except ImageError:
        if strict:
            raise


def predict_video(args: argparse.Namespace, predictor: Predictor, container, source, target: Path) -> None:
    """Writes the drawn video. SIGINT and SIGTERM end it after a frame, whole, and the command then (but a camera's)."""

    def annotate(image):
        return predictor.draw(predictor.detect(image), image, args.magnify)

    with StopSignal(World.single(predictor.device)) as stop:
        done = video.annotate_video(container, source, target, annotate, args.every, stop.requested)
    speed = f"{done.seconds:.1f} s, {done.frames / max(done.seconds, 1e-9):.2f} frames/s"
    notes = f" ({', '.join(done.notes)})" if done.notes else ""
    print(f"{visible(str(source))}: {done.frames} frame(s) in {speed} -> {target}{notes}", flush=True)
    if done.broken:
        print(f"predicted in part: {ImageError(source, done.broken)}", file=sys.stderr, flush=True)
        predictor.in_part += 1
    if stop.requested() and not (args.camera is not None and stop.number == signal.SIGINT):
        stop.leave()


def predict_camera(args: argparse.Namespace) -> int:
    """Draws what a camera sees until Ctrl-C; returns the exit status."""
    container = video.open_camera(args.camera)
    predictor = Predictor(args, DEFAULT_SCORE if args.score is None else args.score)
    folder = files.make_folder(files.user_path(args.output_dir))
    predict_video(args, predictor, container, f"camera {args.camera}", folder / f"{RESULT_NAME}.mp4")
    return predictor.status(1)


def drawn_places(args: argparse.Namespace, output_dir: Path, images: list[Path]) -> tuple[Path, list[str]]:
    """(folder, file names) of the drawn images. InputError if a folder's were to be drawn into that folder."""
    (first, *more) = map(files.user_path, args.img_path)
    if not more and images == [first]:
        return output_dir, [RESULT_NAME + drawn_suffix(first)]
    if more or not first.is_dir() or "output_dir" not in args.given:
        return output_dir / RESULT_NAME, output_names(images)
    if output_dir.resolve() == first.resolve():
        raise InputError(f"--output-dir {output_dir}: is the folder of the images; give another for the drawn ones")
    return output_dir, output_names(images)


def refuse_to_overwrite(images: list[Path], drawn: list[Path]) -> None:
    """InputError if a drawn image would take the place of one of the images."""
    own = {path.resolve() for path in images}
    for path in drawn:
        if path.resolve() in own:
            raise InputError(f"{path}: is one of the images, and would be overwritten; give an --output-dir")


def open_images(args: argparse.Namespace, raw: object, label_map: LabelMap) -> ImageDataset:
    """The images that a COCO json (`raw`: its content) names; its annotations are not looked at."""
    folder = Path(args.image_dir)
    if not folder.is_dir():
        raise InputError(f"--image-dir {args.image_dir}: no such folder")
    if isinstance(raw, dict):  # a test set's json has none of either
        names = dict(zip(label_map.category_ids, label_map.names, strict=True))
        categories = [{"id": label_map.given.get(i, i), "name": name} for i, name in names.items()]
        raw = {**raw, "annotations": [], "categories": categories}
    table = read_annotations(args.coco_json, lambda names: (folder, folder), args.follow_links, raw=raw)
    data_set = ImageDataset(table, label_map)
    STOP.missing(data_set)
    return data_set


def predict_coco_json(args: argparse.Namespace) -> int:
    """Writes the results file for every image that a COCO json names; returns the exit status."""
    raw = read_json(args.coco_json)
    files.make_folder(Path(args.output).parent)  # rather now than after hours
    if Path(args.output).is_dir():
        raise InputError(f"--output {args.output}: is a folder; give the results file's name")
    predictor = Predictor(args, args.score or 0.0)
    data_set = open_images(args, raw, predictor.label_map)
    results, start = [], time.perf_counter()
    for i in tqdm(range(len(data_set)), unit="image", disable=None):
        try:
            image, _ = data_set[i]
        except ImageError as error:
            predictor.skip(error)
            continue
        results += predictor.results(predictor.detect(image), data_set.image_id(i), image)
    write_results(args.output, data_set.with_given_ids(results))
    print(f"{len(results)} detection(s) written to {args.output} in {time.perf_counter() - start:.1f} s")
    return predictor.status(len(data_set))


def main() -> int:
    sys.stdout.reconfigure(errors="backslashreplace")  # file names need not be text in the terminal's encoding
    args = parse_args()
    if args.coco_json is not None:
        return predict_coco_json(args)
    args.camera = video.camera_number(args.img_path)
    return predict_images(args) if args.camera is None else predict_camera(args)


if __name__ == "__main__":
    sys.exit(command.run_command(main))
