"""Images of rare classes come more often: repeat-factor sampling (Gupta et al. 2019, "LVIS", appendix B).

I images, C classes. A class that a share f of the images have has the factor max(1, sqrt(threshold / f)); an image has
the largest factor of its classes, and comes about that often in an epoch.
"""

import numpy as np
import torch

from train_utils.data.dataset import ImageDataset
from train_utils.io.plain_text import counted


def class_factors(data_set: ImageDataset, threshold: float) -> tuple[dict[int, float], np.ndarray]:
    """Returns ({category id: its factor}, the factor of each image float64 [I]); crowd regions do not count."""
    rows, image = data_set.object_rows()
    table = data_set.annotations
    own = table.iscrowd[rows] == 0
    pairs = np.unique(np.stack((image[own], table.category_ids[rows][own]), 1), axis=0)  # images and their classes
    ids, inverse, images = np.unique(pairs[:, 1], return_inverse=True, return_counts=True)
    factors = np.maximum(1, np.sqrt(threshold / (images / max(len(data_set), 1))))
    found = np.ones(len(data_set))
    np.maximum.at(found, pairs[:, 0], factors[inverse])
    return dict(zip(ids.tolist(), factors.tolist(), strict=True)), found


def samples_per_epoch(factors: np.ndarray) -> int:
    """Returns how many samples an epoch has: the same in each."""
    whole, rest = np.divmod(factors, 1)
    return int(whole.sum()) + int(rest.sum() + 1e-9)


def indices(factors: np.ndarray, rng: torch.Generator) -> np.ndarray:
    """Returns the samples of an epoch, int64 [samples_per_epoch]: sample k * I + i is image i for the k-th time.

    Image i comes floor(factor) times, and once more with the rest as its chance: evenly spaced points over the running
    sum of the rests, in a random order, so that their number does not change.
    """
    whole, rest = np.divmod(factors, 1)
    counts, more = whole.astype(np.int64), samples_per_epoch(rest)
    if more:
        order = torch.randperm(len(factors), generator=rng).numpy()
        ends = np.cumsum(rest[order])
        points = (np.arange(more) + torch.rand((), generator=rng).item()) * (ends[-1] / more)
        counts[order[np.searchsorted(ends, points, side="right").clip(max=len(order) - 1)]] += 1
    times = [np.flatnonzero(counts > k) + k * len(factors) for k in range(int(counts.max(initial=0)))]
    return np.concatenate(times) if times else np.zeros(0, dtype=np.int64)


def describe(data_set: ImageDataset, threshold: float, samples: int) -> str:
    """Returns a line that says which classes come more often, the most repeated first."""
    factors, _ = class_factors(data_set, threshold)
    names = data_set.label_map
    rare = sorted(((f, names.name(names.to_label(c))) for c, f in factors.items() if f > 1), reverse=True)
    if not rare:
        return f"--balance {threshold:g}: without effect, each class is in at least that share of the images"
    few = ", ".join(f"{name} x {factor:.2g}" for factor, name in rare[:5]) + (", ..." if len(rare) > 5 else "")
    of = f"{counted(samples, 'sample')} of {counted(len(data_set), 'image')}"
    return f"--balance {threshold:g}: an epoch has {of}; more often come {few}"
