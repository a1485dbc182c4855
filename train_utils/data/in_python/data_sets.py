"""A torch Dataset of (image, target) pairs, as torchvision's detection models take them -> an ImageDataset.

A pair's image is any that `image_of` takes. Its target has boxes [N, 4] (x1 y1 x2 y2), labels [N] (1..C) and masks
[N, H, W], maybe iscrowd, area [N] and image_id. Each pair is read once at the start: sizes, counts of objects, and the
ground truth of evaluation, are known before the first step.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from backbone.errors import InputError
from network_files.operators.cropped_masks import CroppedMasks
from network_files.transform import check_target, check_units
from train_utils.data.annotations import Annotations
from train_utils.data.dataset import ImageDataset
from train_utils.data.images.reading import USUAL, Reading
from train_utils.data.in_python.images import image_of
from train_utils.data.labels import LabelMap
from train_utils.data.masks import RLE, PolygonsAndRle, Ragged, encoded

ANY_LABEL = 2**31  # where the number of classes is not known yet
SHOWN_AFTER = 3.0  # seconds, from which on a bar says how far the reading has come


class Pairs(ImageDataset):
    """The pairs of a torch Dataset, which is asked anew each time: its own augmentation, if any, stays at work."""

    pairs: Any  # the torch Dataset
    in_python = True

    def __getitem__(self, i: int) -> tuple[Tensor, dict]:
        image, target = pair_of(self.pairs, int(self.rows[i]), reading=self.reading)
        return image, {**target, "image_id": self.image_id(i)}


class SteadyPairs(Pairs):
    """The same for evaluation, whose ground truth is that of the first reading: a pair that differs is an error."""

    def __getitem__(self, i: int) -> tuple[Tensor, dict]:
        image, target = super().__getitem__(i)
        before = self.target(i)
        same = torch.equal(target["labels"], before["labels"]) and torch.equal(target["area"], before["area"])
        if tuple(image.shape[1:]) != self._size(i) or not same:
            raise InputError(
                f"{self.file_name(i)}: gives another image or target than before; validation data may not be "
                "augmented at random"
            )
        return image, target


class _Read:
    """The images of a torch Dataset, as a table's source of images; varies: pairs may be augmented at random."""

    def __init__(self, pairs: Any, name: str, varies: bool = False) -> None:
        self.pairs, self.name, self.varies = pairs, name, varies

    def path(self, name: str) -> str:
        """Returns what stands for an image's path."""
        return name

    def read(self, row: int, name: str, size: tuple[int, int], reading: Reading = USUAL) -> Tensor:
        """Asks for the pair again."""
        return pair_of(self.pairs, row, reading=reading)[0]

    def claim(self, name: str, size: tuple[int, int], image_id: int | str) -> str:
        """Returns what said the size."""
        return f"it was {size[1]}x{size[0]} before; give the same images each time"


def data_set_of(
    pairs: Any, label_map: LabelMap | None = None, steady: bool = False, reading: Reading = USUAL
) -> ImageDataset:
    """Reads each pair of a torch Dataset once; returns its data set. steady: for evaluation.

    label_map: by default "class 1", ... up to the highest label. Raises InputError for a pair that can't be used.
    """
    name, rows = type(pairs).__name__, []
    if not (hasattr(pairs, "__len__") and hasattr(pairs, "__getitem__")):
        raise InputError(f"{name}: is no torch Dataset with a length; give one, a path, or DataOptions")
    if not len(pairs):
        raise InputError(f"{name}: has no image")
    silent = None if "ipykernel" not in sys.modules else False  # a notebook is no terminal
    classes = label_map.num_labels if label_map else ANY_LABEL
    with torch.random.fork_rng(devices=[]):  # so that a run that is resumed reads the same
        torch.manual_seed(0)
        for i in tqdm(range(len(pairs)), desc=f"reading {name}", unit="image", disable=silent, delay=SHOWN_AFTER):
            image, target = pair_of(pairs, i, classes, reading)
            masks = encoded(target.pop("masks"))
            rows.append((tuple(image.shape[1:]), target, [mask["counts"].encode() for mask in masks]))
    if label_map is None:
        highest = max((int(target["labels"].max(initial=0)) for target in _arrays(rows)), default=0)
        label_map = LabelMap.from_names({label: f"class {label}" for label in range(1, max(highest, 1) + 1)})
    data_set = (SteadyPairs if steady else Pairs)(_table(name, rows, label_map, _Read(pairs, name, not steady)))
    data_set.pairs, data_set.reading = pairs, reading
    return data_set


def _arrays(rows: list[tuple]) -> list[dict[str, np.ndarray]]:
    return [{key: np.asarray(value) for key, value in target.items()} for _, target, _ in rows]


def _table(name: str, rows: list[tuple], label_map: LabelMap, images: _Read) -> Annotations:
    """Returns the table of what was read: (size, target without masks, RLEs) of each image."""
    targets = _arrays(rows)
    counts = [len(target["boxes"]) for target in targets]
    joined = {key: np.concatenate([t[key] for t in targets]) for key in ("boxes", "labels", "area", "iscrowd")}
    boxes = joined["boxes"].astype(np.float64)
    boxes[:, 2:] -= boxes[:, :2]
    ids = [target.get("image_id") for target in targets]
    own = all(value is not None and value.size == 1 and value.dtype.kind in "iu" for value in ids)
    ids = [int(value.reshape(())) for value in ids] if own else []
    known = [label_map.has_label(label) for label in joined["labels"].tolist()]
    if not all(known):
        label = joined["labels"][known.index(False)]
        raise InputError(f"{name}: label {label} has no name; the classes are {', '.join(label_map.names)}")
    masks = [code for _, _, codes in rows for code in codes]
    numbers = np.arange(len(masks) + 1)
    parts = Ragged(np.frombuffer(b"".join(masks), np.uint8), np.cumsum([0, *map(len, masks)], dtype=np.int64))
    return Annotations(
        source=name,
        image_ids=np.array(ids if len(set(ids)) == len(rows) else range(len(rows)), dtype=np.int64),
        sizes=np.array([size for size, _, _ in rows], dtype=np.int64).reshape(-1, 2),
        names=Ragged.of(f"{name}[{i}]" for i in range(len(rows))),
        first=np.cumsum([0, *counts], dtype=np.int64),
        annotation_ids=numbers[1:],
        category_ids=np.array([label_map.to_category(label) for label in joined["labels"].tolist()], dtype=np.int64),
        boxes=boxes,
        areas=joined["area"].astype(np.float64),
        iscrowd=joined["iscrowd"],
        ignored=joined["iscrowd"],
        masks=PolygonsAndRle(np.full(len(masks), RLE), numbers, parts, numbers[1:], name),
        images=images,
        label_map=label_map,
        categories=dict(zip(label_map.category_ids, label_map.names, strict=True)),
        missing=np.zeros(len(rows), dtype=bool),
    )


def pair_of(pairs: Any, i: int, classes: int = ANY_LABEL, reading: Reading = USUAL) -> tuple[Tensor, dict]:
    """Returns pair i of a torch Dataset in the form of `ImageDataset`. InputError where it has another one.

    A target of an image_id alone is of an image without objects: so torchvision's wrapped CocoDetection has them.
    """
    name = f"{type(pairs).__name__}[{i}]"
    pair = pairs[i]
    if not (isinstance(pair, tuple | list) and len(pair) == 2):
        raise InputError(f"{name}: must be a pair (image, target), as torchvision's detection models take it")
    image = image_of(pair[0], name, reading)
    target, size = pair[1], tuple(image.shape[1:])
    if isinstance(target, Mapping) and set(target) == {"image_id"}:
        nothing = torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64), torch.zeros(0, *size, dtype=torch.uint8)
        target = {**target, **dict(zip(("boxes", "labels", "masks"), nothing, strict=True))}
    return image, target_of(target, size, name, classes)


def target_of(target: Any, size: tuple[int, int], name: str, classes: int = ANY_LABEL) -> dict:
    """Returns a target of an image of `size` in the form of `ImageDataset`; entries beyond it are left out.

    classes: background included. Raises InputError for a target that does not fit.
    """
    if not isinstance(target, Mapping):
        raise InputError(f"{name}: its target is a {type(target).__name__}: it must be a dict of boxes, labels, masks")
    given = {key: _plain(target[key]) for key in ("boxes", "labels", "masks", "iscrowd", "area") if key in target}
    try:
        if "boxes" in given:
            given["boxes"] = given["boxes"].reshape(-1, 4) if not given["boxes"].numel() else given["boxes"].float()
        if "masks" in given and isinstance(given["masks"], Tensor):
            empty = not given["masks"].numel() and not len(given.get("boxes", ()))
            given["masks"] = CroppedMasks.empty(size) if empty else given["masks"]
        if "labels" in given and not given["labels"].numel():
            given["labels"] = given["labels"].long()
        check_target({**given, "image_id": name}, size, classes)
        check_units({**given, "image_id": name})
        if isinstance(given["masks"], Tensor):
            given["masks"] = CroppedMasks.from_masks(given["masks"])
        count = len(given["boxes"])
        area, crowd = given.get("area"), given.get("iscrowd", torch.zeros(count))
        given |= {
            "boxes": given["boxes"].float(),
            "labels": given["labels"].long(),
            "area": given["masks"].areas().float() if area is None else area.float().reshape(count),
            "iscrowd": crowd.to(torch.uint8).reshape(count),
        }
    except (ValueError, RuntimeError) as error:
        raise InputError(str(error).removeprefix("image ")) from error
    return given | (_id_of(target["image_id"]) if "image_id" in target else {})


def _id_of(value: Any) -> dict[str, int]:
    """Returns an image id as an entry; {} for what is no number, such as a file's name: images are then counted."""
    try:
        return {"image_id": int(value)}
    except (TypeError, ValueError, RuntimeError, OverflowError):
        return {}


def _plain(value: Any) -> Tensor | CroppedMasks:
    """Returns masks as they are, other values as plain tensors on the CPU."""
    if isinstance(value, CroppedMasks):
        return value
    return torch.as_tensor(value).as_subclass(Tensor).detach().cpu()
