"""Turns the tables of a data set into plain values: histograms of its objects and images."""

from collections import Counter

import numpy as np

from network_files.config import MaskRCNNConfig
from tools.doctor.anchors import resized
from tools.doctor.table import Table

SIDES = [0, 4, 8, 16, 32, 64, 128, 256, 512, 1024, np.inf]
COUNTS = [0, 1, 2, 3, 5, 9, 17, 33, 65, 129, np.inf]
RATIOS = [0, 1 / 8, 1 / 4, 1 / 2, 4 / 5, 5 / 4, 2, 4, 8, np.inf]  # width / height
RATIO_LABELS = ["1:8+", "1:8-1:4", "1:4-1:2", "1:2-4:5", "square", "5:4-2:1", "2:1-4:1", "4:1-8:1", "8:1+"]


def histograms(tables: list[Table], config: MaskRCNNConfig) -> dict[str, dict[str, int]]:
    """Returns {what: {bin: count}} of objects that are not crowds, and of images."""
    sides, ratios = [], []
    for table in tables:
        small, _ = resized(table, config)
        scale = (small / np.maximum(table.sizes, 1))[table.image][:, ::-1]  # [A, 2] x, y
        wide_high = ((table.clipped[:, 2:] - table.clipped[:, :2]) * scale)[~table.crowd]
        sides.append(np.sqrt(wide_high.prod(1)))
        ratios.append(wide_high[:, 0] / np.maximum(wide_high[:, 1], 1e-9))
    counts = np.concatenate([table.counts() for table in tables])
    sizes = np.concatenate([table.sizes for table in tables])
    return {
        "objects by size": _binned(np.concatenate(sides), SIDES),
        "objects by width : height": _binned(np.concatenate(ratios), RATIOS, RATIO_LABELS),
        "images by objects": _binned(counts, COUNTS, whole=True),
        "images by width : height": _binned(sizes[:, 1] / np.maximum(sizes[:, 0], 1), RATIOS, RATIO_LABELS),
    }


def image_sizes(tables: list[Table], most: int = 8) -> dict[str, int]:
    """Returns {"width x height": images} of the commonest sizes, and of all others together."""
    counts = Counter(map(tuple, np.concatenate([table.sizes for table in tables]).tolist()))
    found = {f"{w} x {h}": count for (h, w), count in counts.most_common(most)}
    others = sum(counts.values()) - sum(found.values())
    return {**found, f"{len(counts) - len(found)} others": others} if others else found


def _binned(values: np.ndarray, edges: list, labels: list[str] | None = None, whole: bool = False) -> dict[str, int]:
    counts = np.histogram(values, np.array(edges))[0].tolist()
    labels = labels or [_label(low, high, whole) for low, high in zip(edges, edges[1:], strict=False)]
    return dict(zip(labels, counts, strict=True))


def _label(low: float, high: float, whole: bool) -> str:
    if high == np.inf:
        return f"{low}+"
    if whole:
        return f"{low}" if high == low + 1 else f"{low}-{high - 1}"
    return f"{low}-{high}"
