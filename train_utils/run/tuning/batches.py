"""`--batch-size auto`: as many images at a time as the memory holds, the global batch being kept by accumulation."""

from contextlib import suppress

import numpy as np
import torch

from backbone.errors import InputError
from backbone.norm import APART, sync_norms
from network_files import MaskRCNN
from network_files.transform import resized_size
from train_utils.data.dataset import ImageDataset
from train_utils.data.images import ImageError
from train_utils.data.loaders import Batch, sample_seed
from train_utils.io.memory import LESS_IN_TRAINING, is_lack_of_memory
from train_utils.io.plain_text import counted
from train_utils.processes.distributed import World
from train_utils.run.config import RunConfig
from train_utils.run.optimization import Precision
from train_utils.run.step import running_statistics

GLOBAL = {"cuda": 16, "cpu": 4}  # images of a step, over all processes; 16 is torchvision's and Detectron's
MOMENTS = {"sgd": 1, "adamw": 2}  # numbers that an optimiser keeps of each weight


def first_try(config: RunConfig, world: World) -> RunConfig:
    """Returns the config with the batch size that is tried first."""
    parts = config.accumulate_steps * world.size
    return config.replaced({"batch_size": max(1, GLOBAL.get(world.device.type, 16) // parts)})


def fitting_batch(
    model: MaskRCNN, data_set: ImageDataset, config: RunConfig, precision: Precision, world: World
) -> tuple[RunConfig, str]:
    """Returns the config with a batch that fits, and a line about it; the model is as before.

    A step of the largest images with most objects is tried; while some process lacks memory, of at most half as many,
    a divisor of a process's images of a step. InputError where not even one image fits.
    """
    batch, whole = config.batch_size, config.batch_size * config.accumulate_steps
    while True:
        if world.is_main:
            print(f"batch_size: tries a step of {counted(batch, 'image')}", flush=True)
        failed = world.sum(torch.tensor(float(not fits(model, data_set, batch, config, precision)))).item()
        if not failed:
            break
        if batch == 1:
            raise InputError(f"batch_size auto: there is not enough memory for one image; {LESS_IN_TRAINING}")
        batch = max(size for size in range(1, batch // 2 + 1) if whole % size == 0)
    accumulate = whole // batch
    chosen = config.replaced({"batch_size": batch, "accumulate_steps": accumulate})
    return chosen, (
        f"batch_size: {batch} (auto), accumulate_steps: {accumulate}: the largest images fit so; global batch "
        f"{chosen.global_batch(world.size)}"
    )


def fits(model: MaskRCNN, data_set: ImageDataset, count: int, config: RunConfig, precision: Precision) -> bool:
    """Returns whether a step of the `count` heaviest images has the memory that it needs.

    Processes exchange nothing here: where one lacks memory, no other waits for what it would send.
    """
    statistics, device = running_statistics(model), next(model.parameters()).device
    model.train()
    try:
        images, targets = heaviest(model, data_set, count).to(device)
        moments = [torch.empty_like(p) for p in model.parameters() if p.requires_grad] * MOMENTS[config.optimizer]
        with precision.autocast(), sync_norms(model, APART):
            losses = model(images, targets)
        sum(losses.values()).backward()
        return len(moments) > 0
    except (RuntimeError, MemoryError) as error:
        if not is_lack_of_memory(error):
            raise
        return False
    finally:
        model.zero_grad()
        with torch.no_grad():
            for buffer, before in statistics:
                buffer.copy_(before)
        if device.type == "cuda":
            torch.cuda.empty_cache()


def heaviest(model: MaskRCNN, data_set: ImageDataset, count: int) -> Batch:
    """Returns the images that are largest after resizing, those with most objects first, as often as is needed."""
    cfg, batch = model.config, Batch([], [], [], [])
    sizing = max(cfg.min_size), cfg.max_size, cfg.fixed_size
    areas = [-np.prod(resized_size(height, width, *sizing)) for height, width in data_set.sizes.tolist()]
    order = np.lexsort((-data_set.object_counts(), areas)).tolist()
    for i in order:
        if len(batch.images) == count:
            break
        with suppress(ImageError):  # it is named when its turn comes
            image, target = data_set[i]
            batch.images.append(image)
            batch.targets.append({**target, "sample_seed": sample_seed(0, 0, i)})
    if not batch.images:
        raise InputError("batch_size auto: no training image could be read")
    times = -(-count // len(batch.images))
    return batch._replace(images=(batch.images * times)[:count], targets=(batch.targets * times)[:count])
