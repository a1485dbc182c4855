"""Measure a trained model: the COCO numbers, each category's AP, and the detections behind them.

    python validation.py --weights-path save_weights/model_best.pth --data-path DATA
    python validation.py --weights-path save_weights/model_best.pth         the data that it was trained with
    python validation.py --detections submission.json --data-path DATA      a COCO results json, without a model
    python validation.py --weights-path save_weights/model_best.pth --report       a page about its mistakes, too

Evaluates the val split (of data with a single json: the share that training held out) and writes
record_mAP.txt, record_mAP.json and detections.json into --output-dir. The numbers do not depend on
--batch-size. 100 photos of 640x480 take a ResNet-50 some 5 minutes on a CPU with 2 cores, seconds on a GPU.
Exit status 1: finished, but some images could not be read: they are named and left out of the numbers.
--strict makes these, and annotations that can't be used (skipped and counted else), an error.
Results (--detections) are scored on the val split too, and on all images of data with a single json.
--report writes report.html: what each kind of mistake costs, class by class, and the images that show it.
"""

import argparse
import sys
import time
from pathlib import Path

from tqdm import tqdm

from train_utils.checkpoints.checkpoint import is_checkpoint, load_file
from train_utils.cli import command
from train_utils.evaluation.detections_file import read_detections
from train_utils.evaluation.evaluators import choose_evaluator
from train_utils.evaluation.mistakes import IMAGES, Evaluated, write_report
from train_utils.evaluation.numbers import evaluate_results, format_record, write_record, write_results
from train_utils.io.files import make_folder, user_path
from train_utils.prediction.predictor import (
    add_data_arguments,
    add_model_arguments,
    load_model,
    open_split,
    open_split_of,
)
from train_utils.processes.distributed import World
from train_utils.run.engine import EvalResult, evaluate
from train_utils.run.epochs import val_loader


def parse_args() -> argparse.Namespace:
    parser = command.Parser(description=__doc__)
    add_model_arguments(parser, required=False)
    parser.add_argument("--detections", metavar="R.json", help="in place of --weights-path: the results to score")
    add_data_arguments(parser)
    parser.add_argument(
        "--batch-size",
        "-b",
        type=command.positive_int,
        default=1,
        help="images at a time, of equal size each time (default: 1)",
    )
    parser.add_argument(
        "--workers", "-j", type=command.non_negative_int, default=0, help="processes that read images (default: 0)"
    )
    command.add_flag(parser, "--report", help="write report.html too, a page about the mistakes")
    parser.add_argument(
        "--report-images",
        type=command.non_negative_int,
        default=IMAGES,
        metavar="N",
        help=f"images to look at in it, those with most mistakes; its size is bounded: the more, the "
        f"smaller they are (default: {IMAGES})",
    )
    args = parser.parse_args()
    if "report_images" in args.given and not args.report:
        parser.error("--report-images N is about the page of --report; give both")
    if (args.weights_path is None) == (args.detections is None):
        parser.error("give either --weights-path W, or --detections R.json with --data-path DATA")
    if args.detections is not None and args.data_path is None:
        parser.error("--detections needs --data-path DATA, the data that the results are about")
    return args


def score_detections(args: argparse.Namespace) -> int:
    """Writes and prints the numbers of a results file, of its boxes, of its masks, or of both; the exit status."""
    data_set = open_split(args, "val", {"val_fraction": 1.0}, None, args.label_json_path)
    print(data_set.describe())
    truth = data_set.ground_truth()
    found = read_detections(args.detections, data_set, {category["id"] for category in truth["categories"]})
    output_dir = make_folder(user_path(args.output_dir))
    stats = {t: evaluate_results(truth, results, [t])[t] for t, results in found.items()}
    paths = write_record(output_dir, stats)
    print(format_record(stats))
    images = len({result["image_id"] for results in found.values() for result in results})
    counts = f"{len(found['bbox'])} box(es), {len(found.get('segm', []))} mask(s)"
    print(f"{counts} in {images} of {len(data_set)} images")
    print("written:", *paths)
    return write_page_of(args, stats, found[list(stats)[-1]], data_set, None, None) if args.report else command.EXIT_OK


def write_page_of(
    args: argparse.Namespace, stats: dict, results: list[dict], data_set, image_ids, progress: dict | None
) -> int:
    """Writes the report and says so; the exit status."""
    start, folder = time.perf_counter(), user_path(args.output_dir)
    source = args.weights_path if args.detections is None else args.detections
    evaluated = Evaluated(source, stats, results, data_set, image_ids, progress)
    made = write_report(folder, evaluated, args.report_images, args.strict)
    for name in made.unreadable:
        print(f"not in the report: {name}", file=sys.stderr)
    print(
        f"written: {made.path} ({made.size / 1e6:.2f} MB, {made.drawn} of {made.images} images to look at, "
        f"{time.perf_counter() - start:.1f} s)"
    )
    return command.EXIT_SOME_UNUSABLE if made.unreadable else command.EXIT_OK


def report(folder: Path, result: EvalResult, data_set) -> int:
    """Writes the files, prints the numbers; returns the exit status."""
    paths = write_record(folder, result.stats)
    paths.append(folder / "detections.json")
    results = sorted(result.results, key=lambda r: r["image_id"])  # batches come in any order
    write_results(paths[-1], data_set.with_given_ids(results))
    print(format_record(result.stats))
    print(f"loss {sum(result.losses.values()):.4f}, {len(result.results)} detections, {result.seconds:.1f} s")
    for name in result.skipped:
        print(f"not evaluated: {name}", file=sys.stderr)
    if result.skipped:
        print(f"{len(result.skipped)} image(s) could not be read: left out of the numbers", file=sys.stderr)
    print("written:", *paths)
    return command.EXIT_SOME_UNUSABLE if result.skipped else command.EXIT_OK


def main() -> int | None:
    args = parse_args()
    device = command.pick_device(args.device)
    choose_evaluator()  # a mistake there is told now, not after the images
    if args.detections is not None:
        return score_detections(args)
    content = load_file(args.weights_path)
    model, label_map = load_model(args, device)
    data_set, _ = open_split_of(args, "val", content, label_map)
    output_dir = make_folder(user_path(args.output_dir))  # rather now than after hours
    world = World.single(device)
    with tqdm(total=len(data_set), unit="image", disable=None) as bar:
        loader = val_loader(args, world, data_set, model.config, args.strict)

        def count(batch):
            bar.update(len(batch.images) + len(batch.skipped))

        result = evaluate(model, loader, data_set, world, on_batch=count)
    status = report(output_dir, result, data_set)
    if args.report:
        progress = content.get("progress") if is_checkpoint(content) else None
        status = max(status, write_page_of(args, result.stats, result.results, data_set, result.image_ids, progress))
    return status


if __name__ == "__main__":
    sys.exit(command.run_command(main))
