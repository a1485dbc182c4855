"""The detections of one image -> names, masks, polygons, COCO results, a drawn image.

D detections of an image of H x W pixels. Masks are kept as probabilities in their boxes, and pasted where asked for.
"""

from __future__ import annotations

import io
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from backbone.errors import InputError
from network_files.operators.boxes import scale_boxes
from network_files.operators.cropped_masks import CroppedMasks
from network_files.operators.instance_masks import encode_cropped, mask_probs_to_bool
from train_utils.data.images.shown import shown
from train_utils.data.images.windows import Windows
from train_utils.data.labels import LabelMap
from train_utils.evaluation.mistakes.outlines import border_loops, simplified
from train_utils.evaluation.numbers import to_coco_results
from train_utils.io.files import atomic_file, user_path
from train_utils.prediction.data_sets import write_data_set
from train_utils.show.captions import AUTO
from train_utils.show.drawing import Style, draw_detections, fitting_size, resized

OVERVIEW = 4000  # pixels a side that are drawn of an image that is read in parts, or is large and looked at in tiles
Which = int | slice | Sequence[int] | Sequence[bool] | np.ndarray | torch.Tensor


class Masks(Sequence):
    """The masks of an image's detections, bool [H, W] each, made when they are asked for.

    masks[i] is one of them, masks[a:b] several, bool [k, H, W]; masks[:] and numpy.asarray(masks) are all.
    """

    def __init__(
        self, cropped: Callable[[slice | Sequence[int]], CroppedMasks], count: int, size: tuple[int, int]
    ) -> None:
        self._cropped, self.shape = cropped, (count, *size)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, which: Which) -> torch.Tensor:
        if isinstance(which, int | np.integer):
            return self._cropped([range(len(self))[which]]).to_masks()[0].bool()  # IndexError ends a loop
        return self._cropped(_positions(which, len(self))).to_masks().bool()

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        masks = self[:].numpy()
        return masks if dtype is None else masks.astype(dtype)

    def __repr__(self) -> str:
        return f"Masks(bool {list(self.shape)})"


@dataclass(frozen=True, eq=False, repr=False)
class Results:
    """What a model found in one image, by falling score.

    found: boxes float32 [D, 4] (x1 y1 x2 y2 in the image's pixels), labels int64 [D], scores float32 [D] in 0..1,
    mask_probs [D, 28, 28], or of tiles masks (CroppedMasks); size: (H, W); geometry: the model's; image: gives the
    image [3, H, W], as Windows where it is too large to be read whole; source: its path, or what stands for it;
    mask_threshold: a mask's pixels are those with a probability above it.

    results[i], results[a:b], results[results.scores > 0.9] are the Results of these detections alone.
    """

    found: Mapping[str, torch.Tensor]
    size: tuple[int, int]
    label_map: LabelMap
    geometry: str
    image: Callable[[], torch.Tensor | Windows]
    source: str = "an image"
    mask_threshold: float = 0.5

    @property
    def boxes(self) -> torch.Tensor:
        """Boxes x1 y1 x2 y2 in pixels, float32 [D, 4]."""
        return self.found["boxes"]

    @property
    def labels(self) -> torch.Tensor:
        """Labels 1..C, int64 [D]."""
        return self.found["labels"]

    @property
    def scores(self) -> torch.Tensor:
        """Scores in 0..1, float32 [D]."""
        return self.found["scores"]

    @property
    def names(self) -> list[str]:
        """The class of each detection."""
        return [self.label_map.name(label) for label in self.labels.tolist()]

    @property
    def masks(self) -> Masks:
        """Masks, bool [D, H, W], each made when it is asked for."""
        return Masks(self.cropped_masks, len(self), self.size)

    def cropped_masks(self, which: slice | Sequence[int] = slice(None)) -> CroppedMasks:
        """Returns masks as the pixels in their boxes."""
        if "masks" in self.found:  # of tiles
            return self.found["masks"][which]
        probs, boxes = self.found["mask_probs"][which], self.boxes[which]
        return mask_probs_to_bool(probs, boxes, self.size, self.geometry, self.mask_threshold)

    def polygons(self, max_points: int | None = None) -> list[list[np.ndarray]]:
        """Returns, per detection, the outlines of its mask's parts, each [n, 2] x y in pixels, clockwise.

        They run along the pixels' edges; with max_points none has more corners than that, at least 3: the points that
        matter least are left out. Holes are left out, as COCO's polygons have none; `rle` has them.
        """
        if max_points is not None and max_points < 3:
            raise InputError(f"max_points {max_points}: a polygon has at least 3")
        masks = self.cropped_masks()
        return [
            [loop + corner for loop in _outlines(crop.numpy(), max_points)]
            for crop, corner in zip(masks.crops(), masks.boxes[:, :2].numpy(), strict=True)
        ]

    def rle(self) -> list[dict]:
        """Returns each mask as COCO's compressed RLE: {"size": [H, W], "counts": str}."""
        return encode_cropped(self.cropped_masks())

    def to_coco(self, image_id: int | str = 0) -> list[dict]:
        """Returns COCO results: image_id, category_id, bbox (x y w h), segmentation (RLE), score."""
        of_masks = self.geometry, self.mask_threshold
        one = to_coco_results([self.found], [image_id], [self.size], self.label_map, *of_masks)
        given = self.label_map.given
        return [{**result, "category_id": given.get(result["category_id"], result["category_id"])} for result in one]

    def to_labelme(self, folder: str | Path) -> str:
        """Writes the image and its detections as LabelMe data into a new folder; returns a line that says so."""
        return save_data_set([self], "labelme", folder)

    def to_yolo(self, folder: str | Path) -> str:
        """Writes the same as YOLO data."""
        return save_data_set([self], "yolo", folder)

    def to_masks(self, folder: str | Path) -> str:
        """Writes the same as mask images."""
        return save_data_set([self], "masks", folder)

    def to_voc(self, folder: str | Path) -> str:
        """Writes the same as VOC data."""
        return save_data_set([self], "voc", folder)

    def draw(self, captions: str = AUTO, boxes: bool = True, magnify: int | None = None) -> Image.Image:
        """Returns the image with masks, boxes, names and scores on it; arguments as of `show.drawing.Style`.

        Of one that is too large to be read whole, an overview of at most OVERVIEW pixels a side is drawn.
        """
        image, rectangles, masks = self.image(), self.boxes, self.cropped_masks()
        if isinstance(image, Windows):
            size = fitting_size(self.size, (OVERVIEW, OVERVIEW))
            warnings.warn(f"{self.source}: is drawn at {size[1]}x{size[0]}, too large as a whole", stacklevel=2)
            image = resized(shown(image.overview(OVERVIEW)), size)
            rectangles, masks = scale_boxes(rectangles, self.size, size), masks.resize(size)
        instances = self.labels, self.scores, masks, self.label_map.name, Style(captions, boxes, magnify)
        return draw_detections(image, rectangles, *instances)

    def save(self, path: str | Path) -> None:
        """Writes the drawn image; the suffix of the path says as what."""
        drawn, form = self.draw(), Image.registered_extensions().get(Path(path).suffix.lower())
        if form is None:
            raise InputError(f"{path}: no image is written by this suffix; give .png or .jpg")
        with atomic_file(path) as file:
            drawn.save(file, form)

    def filter(self, score: float = 0.0, classes: str | Sequence[str] | None = None) -> Results:
        """Returns the detections with at least this score, and of one of these classes."""
        keep = self.scores >= score
        if classes is not None:
            keep &= torch.isin(self.labels, torch.tensor(labels_of(self.label_map, classes), dtype=torch.int64))
        return self[keep]

    def __len__(self) -> int:
        return len(self.scores)

    def __getitem__(self, which: Which) -> Results:
        which = [range(len(self))[which]] if isinstance(which, int | np.integer) else _positions(which, len(self))
        return replace(self, found={key: value[which] for key, value in self.found.items()})

    def __iter__(self) -> Iterator[Results]:
        return (self[i] for i in range(len(self)))

    def __repr__(self) -> str:
        counts = ", ".join(f"{count} {name}" for name, count in Counter(self.names).most_common())
        low, high = (f"{f(self.scores.tolist()):.2f}" for f in (min, max)) if len(self) else ("", "")
        found = f"{counts}, scores {low} to {high}" if counts else "nothing found"
        return f"Results({self.source}, {self.size[1]}x{self.size[0]}: {found})"

    def _repr_png_(self) -> bytes:
        """Returns the drawn image for a notebook, which shows it by itself."""
        file = io.BytesIO()
        self.draw().save(file, "PNG")
        return file.getvalue()


def save_data_set(results: Sequence[Results], form: str, folder: str | Path) -> str:
    """Writes images and what was found in them as a data set that `train` opens, as predict.py --write does.

    form: coco, labelme, yolo, masks or voc; folder: a new one. Returns a line that says what is in it. Raises
    InputError for a folder that is there, and for images that are no files.
    """
    if not results:
        raise InputError("there are no results to write")
    for one in results:
        if not user_path(one.source).is_file():
            raise InputError(f"{one.source}: is no file; a data set needs image files, so give paths to the detector")
    found = [result for number, one in enumerate(results, 1) for result in one.to_coco(number)]
    paths = [user_path(one.source) for one in results]
    return write_data_set(form, user_path(folder), paths, found, results[0].label_map)


def labels_of(label_map: LabelMap, classes: str | Sequence[str]) -> list[int]:
    """Returns the labels of classes by name, in any capitals. InputError for a name that there is not."""
    names = [classes] if isinstance(classes, str) else list(classes)
    known: dict[str, list[int]] = {}  # several classes may have one name
    for label in label_map.labels():
        known.setdefault(label_map.name(label).lower(), []).append(label)
    unknown = [name for name in names if name.lower() not in known]
    if unknown:
        raise InputError(f"--classes {', '.join(unknown)}: the model knows {', '.join(known)}")
    return [label for name in names for label in known[name.lower()]]


def _positions(which: Which, count: int) -> list[int]:
    """Returns the positions that an index of numpy's kind names."""
    if isinstance(which, torch.Tensor):
        which = which.numpy()
    return np.arange(count)[which if isinstance(which, slice) else np.asarray(which)].tolist() if count else []


def _outlines(mask: np.ndarray, max_points: int | None) -> list[np.ndarray]:
    """Returns the outer borders of a mask [h, w], [n, 2] x y each; the largest first."""
    if not mask.any():
        return []
    loops = [(loop, _area(loop)) for loop in border_loops(mask)]
    outer = sorted([(loop, area) for loop, area in loops if area > 0], key=lambda pair: -pair[1])
    return [_limited(loop, max_points) for loop, _ in outer]


def _area(loop: np.ndarray) -> float:
    """Returns what a loop [n, 2] encloses; negative where it runs counter-clockwise, as around a hole."""
    x, y = loop.T
    return float((x * np.roll(y, -1) - np.roll(x, -1) * y).sum()) / 2


def _limited(loop: np.ndarray, max_points: int | None) -> np.ndarray:
    """Returns a loop without points on straight lines, and with at most max_points of the others."""
    kept, tolerance = simplified(loop, 0.0), 0.5
    while max_points is not None and len(kept) > max_points:
        shorter = simplified(loop, tolerance)
        if len(shorter) < 3:  # a thin part: its outermost points
            return kept[np.linspace(0, len(kept) - 1, max_points).astype(int)]
        kept, tolerance = shorter, tolerance * 1.3
    return kept
