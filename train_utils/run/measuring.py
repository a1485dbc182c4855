"""A model and the images to score it on -> an evaluation, with a bar that shows how far it has come, and its files."""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tqdm import tqdm

from network_files import MaskRCNN
from train_utils.checkpoints.held_out import Scored
from train_utils.data.dataset import ImageDataset
from train_utils.data.loaders import Batch, EvalLoader
from train_utils.data.options import LoaderOptions
from train_utils.evaluation.limits import Limit, left_out_line, record_of, shrunk_images
from train_utils.evaluation.numbers import write_record, write_results
from train_utils.processes.distributed import World
from train_utils.run.evaluation import EvalResult, evaluate


def measure(
    model: MaskRCNN, data_set: ImageDataset, loading: LoaderOptions, world: World, max_dets: int, smallest_scale: object
) -> EvalResult:
    """Returns the evaluation, images that are shrunk among its limits; smallest_scale: of the checkpoint."""
    silent = None if "ipykernel" not in sys.modules else False  # a notebook is no terminal
    loader = EvalLoader(data_set, world, loading, model.config)
    of = f"process 0 of {world.size}" if world.size > 1 else None
    with tqdm(total=loader.images, desc=of, unit="image", disable=silent if world.is_main else True) as bar:

        def count(batch: Batch) -> None:
            bar.update(len(batch.images) + len(batch.skipped))

        result = evaluate(model, loader, data_set, world, on_batch=count, max_dets=max_dets)
    sizes = map(tuple, data_set.sizes.tolist())
    result.limits.extend(shrunk_images(sizes, model.config, smallest_scale))
    return result


def of_limits(max_dets: int, limits: list[Limit]) -> dict[str, Any]:
    """Returns what a record says of the limits."""
    return {"max_dets": max_dets, "limits": record_of(limits)}


def write_measured(folder: Path, result: EvalResult, scored: Scored, max_dets: int) -> tuple[list[Path], list[str]]:
    """Writes record_mAP.txt and .json and detections.json; returns their paths, and lines on what they leave out."""
    found = result.found
    results = sorted(found.results, key=lambda r: r["image_id"])  # batches come in any order
    written = scored.data_set.with_given_ids(results)
    left_out = len(results) - len(written)
    about: Mapping[str, Any] = scored.counts(len(found.skipped)) | of_limits(max_dets, result.limits)
    of_results = {"unreadable_images": found.skipped, "results_left_out": left_out}
    paths = [*write_record(folder, result.stats, {**about, **of_results}), folder / "detections.json"]
    write_results(paths[-1], written)
    return paths, [left_out_line(paths[-1], left_out)] if left_out else []
