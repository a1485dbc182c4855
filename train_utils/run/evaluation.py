"""The one evaluation pass: a model and a data set -> losses, detections and COCO numbers, and files of them.

Batch k of the loader is dealt to rank k % size. Rank 0 gathers what all have found and computes the numbers.
"""

import itertools
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from tqdm import tqdm

from backbone.errors import InputError
from network_files import MaskRCNN
from network_files.losses import LOSS_NAMES
from train_utils.checkpoints.held_out import Scored
from train_utils.data.dataset import ImageDataset
from train_utils.data.images import ImageError, take_dropped
from train_utils.data.images.windows import unopened
from train_utils.data.labels import LabelMap
from train_utils.data.loaders import Batch, EvalLoader
from train_utils.data.options import LoaderOptions
from train_utils.evaluation.limits import (
    MAX_DETS,
    Limit,
    dropped_limits,
    left_out_line,
    limits_met,
    record_of,
    shrunk_images,
)
from train_utils.evaluation.numbers import IouTypeResult, evaluate_results, to_coco_results, write_record, write_results
from train_utils.evaluation.tiled_model import TiledModel
from train_utils.io.memory import LESS_IN_EVALUATION, explaining_lack_of_memory
from train_utils.io.naming import naming
from train_utils.processes.distributed import World
from train_utils.processes.in_flight import in_order


class Found(NamedTuple):
    """What an evaluation found in some images: those of a batch, or of the data set."""

    image_ids: list[int]
    results: list[dict]  # COCO result dicts, of both box and mask
    loss_sums: dict[str, float]  # over those of these images that have losses
    with_losses: int  # how many have: all but those whose tiles are all empty, at which the model does not look
    skipped: list[str]  # images that could not be read: they are left out of the numbers
    dropped: Counter[str]  # what reading left out of images


@dataclass(frozen=True)
class EvalResult:
    """One evaluation: `stats` and `losses` are the same on every rank, of the rest only rank 0 has all."""

    stats: dict[str, IouTypeResult]  # "bbox", "segm"
    losses: dict[str, float]  # mean over the images that the model looked at
    found: Found
    samples: list[tuple]  # (image, target, detection), on the CPU
    seconds: float
    limits: list[Limit]  # that cut the numbers

    @property
    def mask_ap(self) -> float:
        """The first of the masks' numbers: AP at IoU 0.50:0.95."""
        return self.stats["segm"].stats[0]


@torch.inference_mode()
def evaluate(
    model: MaskRCNN | TiledModel,
    loader: EvalLoader,
    data_set: ImageDataset,
    world: World,
    keep_samples: int = 0,
    on_batch: Callable[[Batch], None] | None = None,
    max_dets: int = MAX_DETS,
) -> EvalResult:
    """Evaluates a model on a data set in float32, in one pass that the ranks share.

    loader: EvalLoader of data_set; keep_samples: number of images to return with their detections; on_batch: called
    after each batch; max_dets: detections of a class in an image that AP counts.

    On a CPU the numbers depend neither on the batch size nor on the number of ranks. On a GPU the
    losses depend on the batch size: within a batch they weigh an image by its samples. Raises InputError where no
    image could be read.
    """
    start = time.perf_counter()
    world.phase("evaluation")
    model.eval()
    parts, samples = [], []

    def evaluated(batch: Batch) -> tuple[Batch, Found, list[tuple]]:
        sizes = ", ".join(f"{image.shape[-1]}x{image.shape[-2]}" for image in batch.images)
        what = explaining_lack_of_memory(f"evaluation of {sizes} pixels", LESS_IN_EVALUATION)
        with naming(*map(data_set.file_name, batch.indices)), what:
            return batch, *evaluate_batch(model, batch, data_set.label_map, world.device, loader.strict)

    with closing(in_order(evaluated, loader, getattr(model, "in_flight", 1))) as all_evaluated:
        for batch, found, seen in all_evaluated:
            parts.append(found)
            for image, target, detection in seen[: keep_samples - len(samples)]:
                samples.append((unopened(image), target, {key: value.to("cpu") for key, value in detection.items()}))
            if on_batch:
                on_batch(batch)
    turns = itertools.zip_longest(*world.gather_on_main(parts))  # batches in the loader's order again
    found = joined(part for turn in turns for part in turn if part is not None)
    found.skipped.sort()  # batches of another size come in another order
    stats, losses, limits = world.on_main(summarize, found, data_set, max_dets, detections_per_image(model))
    return EvalResult(stats, losses, found, samples, time.perf_counter() - start, limits)


@torch.inference_mode()
def evaluate_batch(
    model: MaskRCNN | TiledModel, batch: Batch, label_map: LabelMap, device: torch.device, strict: bool = False
) -> tuple[Found, list[tuple]]:
    """Returns what a batch adds to an evaluation, and (image, target, detections on the device) of each image read.

    strict: an image that is read in parts, and of which one cannot be read, is an error; else it is skipped.
    """
    images, targets = batch.to(device)
    # A CPU takes them one by one: its kernels round differently for another number of images. Tiles are batches.
    one_by_one = device.type == "cpu" or isinstance(model, TiledModel)
    at_once, loss_sums, seen, skipped = 1 if one_by_one else max(len(images), 1), {}, [], []
    with_losses = 0
    for i in range(0, len(images), at_once):
        try:
            losses, here = model(images[i : i + at_once], targets[i : i + at_once], paste_masks=False)
        except ImageError as error:
            if strict:
                raise
            skipped.append(str(error))
            continue
        seen += zip(batch.images[i : i + at_once], batch.targets[i : i + at_once], here, strict=True)
        names = [name for name in LOSS_NAMES if name in losses]  # an exported file has none
        with_losses += len(here) * bool(names)
        values = torch.stack([losses[name] for name in names]).tolist() if names else []  # the host waits once
        for name, value in zip(names, values, strict=True):
            loss_sums[name] = loss_sums.get(name, 0.0) + value * len(here)
    image_ids = [int(target["image_id"]) for _, target, _ in seen]
    sizes = [tuple(image.shape[-2:]) for image, _, _ in seen]
    results = to_coco_results([found for _, _, found in seen], image_ids, sizes, label_map, model.config.geometry)
    dropped = batch.dropped + take_dropped()  # of what is read in parts
    return Found(image_ids, results, loss_sums, with_losses, batch.skipped + skipped, dropped), seen


def detections_per_image(model: MaskRCNN | TiledModel) -> int | None:
    """Returns how many objects a model finds in an image at most; None: tiles have no limit for the whole."""
    return getattr(model, "detections_per_image", model.config.box_detections_per_img)


def joined(parts: Iterable[Found]) -> Found:
    """Returns what was found in all the images of the parts."""
    parts = list(parts)
    whole = Found([], [], {}, sum(part.with_losses for part in parts), [], Counter())
    for part in parts:
        whole.image_ids.extend(part.image_ids)
        whole.results.extend(part.results)
        whole.skipped.extend(part.skipped)
        whole.dropped.update(part.dropped)
        for name, value in part.loss_sums.items():
            whole.loss_sums[name] = whole.loss_sums.get(name, 0.0) + value
    return whole


@explaining_lack_of_memory("computing the COCO numbers", "try a higher --box-score-thresh: it leaves fewer detections")
def summarize(
    found: Found, data_set: ImageDataset, max_dets: int, per_image: int | None
) -> tuple[dict[str, IouTypeResult], dict[str, float], list[Limit]]:
    """Returns the numbers per IoU type, the mean losses and the limits that were met.

    Raises InputError where no image was read.
    """
    image_ids = sorted(found.image_ids)
    if not image_ids:
        raise InputError(f"none of the {len(data_set)} validation images could be read; the first: {found.skipped[0]}")
    truth = data_set.ground_truth(unmasked=True)
    stats = evaluate_results(truth, found.results, image_ids=image_ids, max_dets=max_dets)
    losses = {name: value / found.with_losses for name, value in found.loss_sums.items()}
    limits = limits_met(truth, found.results, set(image_ids), max_dets, per_image)
    return stats, losses, limits + dropped_limits(found.dropped)


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
    tiling = getattr(model, "tiling", None)
    sizes = map(tuple if tiling is None else tiling.tile_size, data_set.sizes.tolist())
    result.limits.extend(shrunk_images(sizes, model.config, smallest_scale))
    if tiling is not None:
        result.limits.extend(limits_of_tiles(model, world))
    return result


def limits_of_tiles(model: TiledModel, world: World) -> list[Limit]:
    """Returns what cut the detections in the tiles of all processes."""
    return model.limits(sum(world.gather(model.counted)).tolist())


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
