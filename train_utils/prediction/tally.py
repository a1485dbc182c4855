"""What images, or frames of videos, count for -> the sums that the last lines of a call say."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

Size = tuple[int, int]


@dataclass
class Tally:
    """The sums of some images. Law: `add` of another's `plain` counts its images, too."""

    sizes: Counter[Size] = field(default_factory=Counter)  # images by (H, W)
    best: tuple[float, int] | None = None  # highest score of a class that is wanted, and its label
    full: int = 0  # images with as many sure detections as the model may find
    tiles: int = 0  # that images were cut into
    empty_tiles: int = 0  # of these left out as empty
    reduced: int = 0  # images that are drawn smaller than asked for
    unboxed: int = 0  # images that are drawn without boxes: `Predictor.is_unboxed`
    empty: int = 0  # detections whose mask has no pixel
    foreign: int = 0  # detections of classes that the data lacks
    left_out: Counter[str] = field(default_factory=Counter)  # detections, by why
    dropped: Counter[str] = field(default_factory=Counter)  # `take_dropped`'s

    def add(self, counted: Mapping[str, Any]) -> None:
        """Counts an image, or several: values by the sums' names, as `plain` gives them; what is not there is 0.

        What earlier versions have kept of an image has its "size" in place of sizes.
        """
        best = [tuple(best) for best in (self.best, counted.get("best")) if best]
        self.best = max(best, key=lambda one: one[0], default=None)
        for size, count in counted.get("sizes", [(counted["size"], 1)] if "size" in counted else ()):
            self.sizes[tuple(size)] += count
        for name, own in vars(self).items():
            if isinstance(own, int):
                setattr(self, name, own + counted.get(name, 0))
        self.left_out.update(counted.get("left_out", {}))
        self.dropped.update(counted.get("dropped", {}))

    def plain(self) -> dict[str, Any]:
        """Returns the sums as values that a json can have; sizes: [[(H, W), images], ...]."""
        return {**vars(self), "sizes": list(self.sizes.items())}
