"""Measure a trained model: the COCO numbers, each category's AP, and the detections behind them.

    python validation.py --weights-path save_weights                        the data that it was trained with
    python validation.py --weights-path save_weights --data-path DATA       its best checkpoint, on other data
    python validation.py --detections submission.json --data-path DATA      a COCO results json, without a model
    python validation.py --weights-path save_weights --report               a page about its mistakes, too
    torchrun --nproc_per_node=8 validation.py --weights-path save_weights   on 8 GPUs: the same files

Evaluates the val split (of data without one: all images, but of the checkpoint's own the share that
training held out) and writes record_mAP.txt, record_mAP.json and detections.json into --output-dir.
The numbers do not depend on --batch-size. 100 photos of 640x480 take a ResNet-50 some 5 minutes on a CPU
with 2 cores, seconds on a GPU.
Exit status 1: finished, but some images could not be read: they are named and left out of the numbers.
--strict makes these, and annotations that can't be used (skipped and counted else), an error.
Results (--detections) are scored on the val split too, and on all images of data with a single json.
--report writes report.html: what each kind of mistake costs, class by class, and the images that show it.
"""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from backbone.settings import setting
from train_utils.checkpoints.checkpoint import is_checkpoint
from train_utils.checkpoints.held_out import SHARE, Scored, open_scored
from train_utils.cli.busy import say_if_busy
from train_utils.cli.command import EXIT_OK, EXIT_SOME_UNUSABLE, run_command
from train_utils.cli.device import shared_world
from train_utils.cli.flags import add_flags, add_model_flags, given_model, given_settings
from train_utils.cli.parser import Parser
from train_utils.data.images.reading import AS_STORED, Reading
from train_utils.data.options import DataOptions, LoaderOptions
from train_utils.evaluation.boundary import BOUNDARY
from train_utils.evaluation.detections_file import read_detections
from train_utils.evaluation.evaluators import choose_evaluator
from train_utils.evaluation.limits import MAX_DETS, Limit, limits_met
from train_utils.evaluation.mistakes import IMAGES, Evaluated, write_report
from train_utils.evaluation.numbers import IouTypeResult, evaluate_results, format_record, write_record
from train_utils.io.files import folder_to_write, replaced_lines, user_path
from train_utils.io.memory import explaining_lack_of_memory
from train_utils.io.plain_text import counted, visible
from train_utils.prediction.agreeing import refuse_other_work
from train_utils.prediction.data import add_data_flags, open_split_of
from train_utils.prediction.looking import LookingOptions
from train_utils.prediction.model import ModelOptions, about_weights, load_model
from train_utils.prediction.runtimes.exported_model import filled_up, have_in_flight
from train_utils.processes.distributed import World
from train_utils.run.evaluation import EvalResult, detections_per_image, measure, of_limits, write_measured

USED_MOST = ("weights_path", "data_path", "output_dir", "report", "detections", "max_dets", "batch_size", "device")
LOADING = ("batch_size", "workers")  # the flags of LoaderOptions


@dataclass(frozen=True)
class ValidationOptions(ModelOptions, LookingOptions):
    """What is measured, and whether the mistakes are looked at."""

    weights_path: str | Path | None = setting(
        None,
        "a run folder (its best checkpoint), a checkpoint, a bare state dict, an exported file, or coco or coco_v2 "
        "(published weights)",
        metavar="W",
    )
    detections: str | Path | None = setting(None, "in place of --weights-path: the results to score", metavar="R.json")
    boundary: bool = setting(False, "also the AP of the masks' borders, which shows ragged outlines")
    max_dets: int = setting(MAX_DETS, "detections of a class in an image that AP counts", least=10, metavar="N")
    report: bool = setting(False, "write report.html too, a page about the mistakes")
    report_images: int = setting(
        IMAGES,
        "images to look at in it, those with most mistakes; its size is bounded: the more, the smaller they are",
        least=0,
        metavar="N",
    )


def parse(words: list[str] | None = None) -> dict[str, Any]:
    """Returns the settings that the command names."""
    parser = Parser(description=__doc__, first=USED_MOST)
    add_flags(parser, ValidationOptions)
    add_data_flags(parser)
    add_flags(parser, LoaderOptions, only=LOADING)
    add_model_flags(parser, training=False)
    given = parser.given(words)
    if "report_images" in given and not given.get("report"):
        parser.error("--report-images N is about the page of --report; give both")
    if ("weights_path" in given) == ("detections" in given):
        parser.error("give either --weights-path W, or --detections R.json with --data-path DATA")
    if "detections" in given and "data_path" not in given:
        parser.error("--detections needs --data-path DATA, the data that the results are about")
    if "detections" in given:
        for name in (*given_settings(LookingOptions, given), *given_model(given)):
            parser.error(f"--{name.replace('_', '-')} is about a model; --detections R.json are scored as they are")
    return given


def score_detections(options: ValidationOptions, given: dict[str, Any]) -> int:
    """Writes and prints the numbers of a results file, of its boxes, of its masks, or of both; the exit status."""
    data = DataOptions(**given_settings(DataOptions, given))
    scored = open_scored(data, {}, not given.keys().isdisjoint(SHARE))
    data_set = scored.data_set.read_as(AS_STORED)  # no model says how
    print(*map(visible, scored.lines), sep="\n")
    truth = data_set.ground_truth(unmasked=True)
    found, notes, read = read_detections(
        options.detections, data_set, {category["id"] for category in truth["categories"]}
    )
    output_dir = folder_to_write(user_path(options.output_dir))
    stats = {t: evaluate_results(truth, results, [t], max_dets=options.max_dets)[t] for t, results in found.items()}
    limits = limits_met(truth, list(found.values())[-1], max_dets=options.max_dets)
    of_masks = stats
    if options.boundary and "segm" in found:
        of_masks = with_borders(stats, truth, found["segm"], options)
    if options.boundary and "segm" not in found:
        notes = [*notes, "--boundary: the results have no masks, so there are no borders to score"]
    images = len({result["image_id"] for results in found.values() for result in results})
    read |= {"boxes": len(found["bbox"]), "masks": len(found.get("segm", [])), "of_images": images}
    say_replaced(output_dir)
    paths = write_record(
        output_dir, of_masks, scored.counts() | of_limits(options.max_dets, limits) | {"results": read}
    )
    print(format_record(of_masks))
    say_limits(limits)
    counts = f"{counted(len(found['bbox']), 'box')}, {counted(len(found.get('segm', [])), 'mask')}"
    print(f"{counts} in {images} of {counted(len(data_set), 'image')}", *map(visible, notes), sep="\n")
    print("written:", *(visible(str(path)) for path in paths))
    if not options.report:
        return EXIT_OK
    results = found[list(stats)[-1]]
    evaluated = Evaluated(options.detections, stats, results, data_set, max_dets=options.max_dets, limits=limits)
    return write_page_of(evaluated, options, data.strict)


def with_borders(
    stats: dict[str, IouTypeResult],
    truth: dict,
    results: list[dict],
    options: ValidationOptions,
    image_ids: list[int] | None = None,
) -> dict[str, IouTypeResult]:
    """Returns the numbers with those of the masks' borders beside them."""
    return {**stats, **evaluate_results(truth, results, [BOUNDARY], image_ids, max_dets=options.max_dets)}


def write_page_of(evaluated: Evaluated, options: ValidationOptions, strict: bool) -> int:
    """Writes the report and says so; the exit status."""
    start, folder = time.perf_counter(), user_path(options.output_dir)
    with explaining_lack_of_memory(f"writing {folder / 'report.html'}", "try fewer --report-images, or none: 0"):
        made = write_report(folder, evaluated, options.report_images, strict)
    for name in made.unreadable:
        print(visible(f"not in the report: {name}"), file=sys.stderr)
    shown = f"{made.size / 1e6:.2f} MB, {made.drawn} of {counted(made.images, 'image')} to look at"
    print(visible(f"written: {made.path} ({shown}, {time.perf_counter() - start:.1f} s)"))
    return EXIT_SOME_UNUSABLE if made.unreadable else EXIT_OK


def say_replaced(folder: Path) -> None:
    """Prints which results of an earlier call are about to be replaced."""
    for line in replaced_lines(folder / "record_mAP.txt", folder / "record_mAP.json"):
        print(visible(line))


def say_limits(limits: list[Limit]) -> None:
    """Prints a line for each limit that was met."""
    for limit in limits:
        print(limit.line)


def report(folder: Path, result: EvalResult, scored: Scored, options: ValidationOptions) -> int:
    """Writes the files, prints the numbers; returns the exit status."""
    skipped = len(result.found.skipped)
    say_replaced(folder)
    paths, notes = write_measured(folder, result, scored, options.max_dets)
    print(format_record(result.stats))
    say_limits(result.limits)
    loss = f"loss {sum(result.losses.values()):.4f}, " if result.losses else ""  # an exported file has none
    print(f"{loss}{counted(len(result.found.results), 'detection')}, {result.seconds:.1f} s")
    print(*notes, sep="\n", end="\n" if notes else "")
    for name in result.found.skipped:
        print(visible(f"not evaluated: {name}"), file=sys.stderr)
    if skipped:
        print(f"{counted(skipped, 'image')} could not be read: left out of the numbers", file=sys.stderr)
    print("written:", *(visible(str(path)) for path in paths))
    return EXIT_SOME_UNUSABLE if skipped else EXIT_OK


def score_model(options: ValidationOptions, given: dict[str, Any], world: World) -> int:
    """Measures a model on images that the processes share; the first writes and prints. Returns the exit status."""
    loading = LoaderOptions(**given_settings(LoaderOptions, given))
    with world.main_first():
        model, label_map, content = load_model(options, world.device)
        notes = [*filter(None, [filled_up(model)]), *map(visible, options.notes(content))]
        print(about_weights(options.weights_file, content, label_map), *notes, sep="\n")
        scored, _ = open_split_of(content, "val", {**given, "weights_path": options.weights_file}, label_map)
    tiled = options.tile is not None
    data_set = scored.data_set.read_as(replace(Reading.of(model.config), by_windows=tiled))
    settings = {**vars(options), **vars(loading), **given}
    refuse_other_work(world, settings, model, label_map, data_set)
    output_dir = world.on_main(folder_to_write, user_path(options.output_dir))  # rather now than after hours
    say_if_busy(world, len(data_set))
    model = options.looking(model, content)
    line = have_in_flight(model, len(data_set), given.get("batch_size"))
    if line:
        print(line)
    result = measure(model, data_set, loading, world, options.max_dets, content.get("smallest_scale"))

    def written() -> int:
        shown = result
        if options.boundary:
            truth, own = data_set.ground_truth(unmasked=True), sorted(result.found.image_ids)
            shown = replace(result, stats=with_borders(result.stats, truth, result.found.results, options, own))
        status = report(output_dir, shown, scored, options)
        if not options.report:
            return status
        progress = content.get("progress") if is_checkpoint(content) else None
        found = result.found
        evaluated = Evaluated(options.weights_file, result.stats, found.results, data_set, sorted(found.image_ids))
        limits = {"max_dets": options.max_dets, "limits": result.limits}
        limits["per_image"] = detections_per_image(model)
        evaluated = evaluated._replace(progress=progress, **limits)
        return max(status, write_page_of(evaluated, options, loading.strict))

    return world.on_main(written)


def main() -> int | None:
    """Runs the command; returns its exit status, None for 0."""
    given = parse()
    options = ValidationOptions(**given_settings(ValidationOptions, given), model=given_model(given))
    with shared_world(options.device, "start again") as world, world.one_voice():
        world.on_main(choose_evaluator)  # a mistake there is reported now, not after the images
        if options.detections is not None:
            return world.on_main(score_detections, options, given)
        return score_model(options, given, world)


if __name__ == "__main__":
    sys.exit(run_command(main))
