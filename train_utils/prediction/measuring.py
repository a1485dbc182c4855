"""A model and the images to score it on -> an evaluation, with a bar that shows how far it has come."""

import sys

from tqdm import tqdm

from network_files import MaskRCNN
from train_utils.data.dataset import ImageDataset
from train_utils.data.loaders import Batch, EvalLoader
from train_utils.data.options import LoaderOptions
from train_utils.evaluation.limits import shrunk_images
from train_utils.processes.distributed import World
from train_utils.run.evaluation import EvalResult, evaluate


def measure(
    model: MaskRCNN, data_set: ImageDataset, loading: LoaderOptions, max_dets: int, smallest_scale: object
) -> EvalResult:
    """Returns the evaluation, images that are shrunk among its limits; smallest_scale: of the checkpoint."""
    world = World.single(next(model.parameters()).device)
    silent = None if "ipykernel" not in sys.modules else False  # a notebook is no terminal
    with tqdm(total=len(data_set), unit="image", disable=silent) as bar:
        loader = EvalLoader(data_set, world, loading, model.config)

        def count(batch: Batch) -> None:
            bar.update(len(batch.images) + len(batch.skipped))

        result = evaluate(model, loader, data_set, world, on_batch=count, max_dets=max_dets)
    sizes = map(tuple, data_set.sizes.tolist())
    result.limits.extend(shrunk_images(sizes, model.config, smallest_scale))
    return result
