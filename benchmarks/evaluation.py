"""Measures how long a detections file takes to evaluate, boxes and masks: ours beside pycocotools driven by hand.

    python -m benchmarks.evaluation                                       val2017's size: 5,000 images x 100 results
    python -m benchmarks.evaluation --evaluator faster-coco-eval          with the optional package
    python -m benchmarks.evaluation --images 1000 --folder FOLDER       smaller; drawn files are kept in FOLDER

Both sides begin with the two json files and end with the 12 numbers of both types, each in a process of its own,
one after the other. pycocotools takes four minutes for the full size. Prints seconds, the peak of resident memory,
and the largest difference of the numbers.
"""

import contextlib
import io
import json
import sys
import tempfile
import time
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path

from backbone.errors import InputError
from benchmarks.coco_size import write_val
from benchmarks.harness import SIDES, Benchmark, LeftOut, Settings, Sides, in_fresh_process, resident_mib
from train_utils.cli.command import run_command
from train_utils.cli.flags import number
from train_utils.cli.parser import Parser
from train_utils.data.labels import read_json
from train_utils.evaluation.evaluators import FASTER, PYCOCOTOOLS, choose_evaluator
from train_utils.evaluation.numbers import evaluate_results

IOU_TYPES = ("bbox", "segm")
SMALL = 250  # images of the benchmarks in the table


def ours(truth_path: Path, results_path: Path, evaluator: str) -> dict[str, list[float]]:
    """Returns IoU type -> 12 numbers."""
    results = evaluate_results(read_json(truth_path), read_json(results_path), IOU_TYPES, evaluator=evaluator)
    return {iou_type: result.stats for iou_type, result in results.items()}


def by_hand(truth_path: Path, results_path: Path) -> dict[str, list[float]]:
    """Returns the same, as pycocotools' demo does it.

    It gets one kind of result at a time: beside boxes it would take the boxes' areas for the masks'.
    """
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    stats = {}
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(truth_path))
        results = json.loads(results_path.read_text())
        for iou_type, other in zip(IOU_TYPES, ("segmentation", "bbox"), strict=True):
            some = [{key: value for key, value in result.items() if key != other} for result in results]
            evaluation = COCOeval(truth, truth.loadRes(some), iou_type)
            evaluation.evaluate()
            evaluation.accumulate()
            evaluation.summarize()
            stats[iou_type] = evaluation.stats.tolist()
    return stats


def difference(a: dict[str, list[float]], b: dict[str, list[float]]) -> float:
    """Returns the largest difference between the numbers of both."""
    return max(abs(x - y) for iou_type in IOU_TYPES for x, y in zip(a[iou_type], b[iou_type], strict=True))


def draw(folder: str | Path, images: int) -> tuple[Path, Path]:
    """Returns ground truth and detections of so many images, drawn unless they are in `folder`."""
    folder = Path(folder) / f"evaluation_{images}"
    paths = folder / "annotations" / "instances_val2017.json", folder / "detections.json"
    return paths if all(path.exists() for path in paths) else write_val(folder, images)


def prepare(evaluator: str, settings: Settings) -> Sides:
    """Returns both evaluations of drawn results."""
    try:
        choose_evaluator(evaluator)
    except InputError as error:
        raise LeftOut(str(error)) from error
    folder = tempfile.TemporaryDirectory()
    paths = draw(folder.name, SMALL)

    def run_ours() -> dict[str, list[float]]:
        return ours(*paths, evaluator)

    run_ours.folder = folder  # deleted with this function
    return run_ours, lambda: by_hand(*paths)


BENCHMARKS = [
    Benchmark(name, what, partial(prepare, evaluator), difference, "pycocotools")
    for name, what, evaluator in (
        ("evaluation", f"evaluation of {SMALL} images x 100 results", PYCOCOTOOLS),
        ("evaluation_faster", f"the same with {FASTER}", FASTER),
    )
]


def _run_alone(side: str, paths: tuple[Path, Path], evaluator: str, sender: Connection) -> None:
    start = time.perf_counter()
    stats = ours(*paths, evaluator) if side == "ours" else by_hand(*paths)
    sender.send((time.perf_counter() - start, resident_mib("VmHWM"), stats))


def main(argv: list[str] | None = None) -> None:
    """Prints seconds, memory and numbers of each side."""
    parser = Parser(description=__doc__)
    parser.add_argument("--images", type=number(int, least=1), default=5000)
    parser.add_argument("--evaluator", choices=[PYCOCOTOOLS, FASTER], default=PYCOCOTOOLS, help="of our side")
    parser.add_argument("--side", choices=SIDES, help="this one only")
    parser.add_argument("--folder", type=Path, help="where the drawn files are kept (default: nowhere)")
    args = parser.parse_args(argv)
    choose_evaluator(args.evaluator)  # InputError where it is not installed
    with tempfile.TemporaryDirectory() as scratch:
        paths = draw(args.folder or scratch, args.images)
        outcomes = {}
        for side in [args.side] if args.side else SIDES:
            seconds, peak, stats = outcomes[side] = in_fresh_process(_run_alone, side, paths, args.evaluator)
            print(
                f"{side:6} {args.evaluator if side == 'ours' else PYCOCOTOOLS:16} {seconds:7.1f} s  {peak:6.0f} MiB  "
                f"{json.dumps(stats)}",
                flush=True,
            )
    if len(outcomes) == 2:
        (seconds, peak, stats), (their_seconds, their_peak, their_stats) = outcomes.values()
        print(
            f"ratio {seconds / their_seconds:.2f} of time, {peak / their_peak:.2f} of memory; "
            f"largest difference {difference(stats, their_stats):.1e}"
        )


if __name__ == "__main__":
    sys.exit(run_command(main))
