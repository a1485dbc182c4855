"""A user's own augmentation -> one of the project's: of a function, of a file, of torchvision or albumentations.

Law: what it gives is a function of (image, target, generator), whatever it draws from.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import importlib.util
import inspect
import random
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Generator, Tensor

from backbone.errors import InputError
from network_files.operators.cropped_masks import CroppedMasks
from train_utils.data.augmentations.common import PER_OBJECT, REMOVED, kept
from train_utils.data.images.reading import Reading
from train_utils.data.in_python.data_sets import target_of
from train_utils.data.in_python.images import image_of
from train_utils.io.files import user_path

RNG_NAMES = ("rng", "generator")  # of a third parameter with a default, that is given the generator nevertheless


class OwnAugmentation:
    """A function of a user's, (image, target, rng) -> (image, target), in the place of transforms.build_augment.

    Its target has masks uint8 [N, H, W]. It may leave rng out, and draw from torch, numpy.random and random: these
    are seeded by it for the call, and are afterwards as before; a third parameter with a default is left at it, unless
    it is named rng or generator. So every draw is a function of seed, epoch and image
    in any number of worker processes, and a resumed run repeats it. name: what messages call it.
    """

    def __init__(self, function: Callable[..., tuple[Any, dict]], name: str = "augment") -> None:
        self.function, self.name = function, name
        try:
            signature = inspect.signature(function)
            signature.bind(None, None, None)
            third = list(signature.parameters.values())[2:3]  # with a default it is an option, unless its name says rng
            self.takes_rng = all(p.default is p.empty or p.name in RNG_NAMES for p in third)
        except TypeError:
            self.takes_rng = False
        except ValueError:  # a builtin without a signature
            self.takes_rng = True

    def __reduce__(self) -> tuple:
        return (
            (own_augmentation, (self.name,)) if ".py:" in self.name else (OwnAugmentation, (self.function, self.name))
        )

    def __repr__(self) -> str:
        return self.name

    def __call__(self, image: Tensor, target: dict, rng: Generator) -> tuple[Tensor, dict]:
        """Calls the function, and checks what it gives. Raises InputError where it fails, or gives no target."""
        masks = target["masks"]
        plain = {**target, "masks": masks.to_masks() if isinstance(masks, CroppedMasks) else masks}
        with seeded(rng):
            try:
                pair = self.function(image, plain, rng) if self.takes_rng else self.function(image, plain)
            except Exception as error:  # a user's function may raise anything
                raise InputError(f"{self.name}: {where(error)}, of image {target.get('image_id')}") from error
        if not (isinstance(pair, tuple | list) and len(pair) == 2):
            raise InputError(f"{self.name}: must return a pair (image, target)")
        image = image_of(pair[0], f"{self.name}'s image", Reading(len(image)))
        size, removed = tuple(image.shape[1:]), len(target["labels"])
        changed = {**target, **target_of(pair[1], size, f"{target.get('image_id')} of {self.name}")}
        removed -= len(changed["labels"])
        return image, {**changed, REMOVED: removed} if removed > 0 else changed


def name_of_function(augment: OwnAugmentation | None) -> str | None:
    """Returns the name of a function that is given in Python, None where there is none."""
    if augment is None:
        return None
    return getattr(augment.function, "__name__", type(augment.function).__name__)


@contextlib.contextmanager
def seeded(rng: Generator) -> Iterator[None]:
    """Lets torch, numpy.random and random draw what follows from the generator; afterwards all four are as before."""
    seed = int(torch.randint(2**62, (), generator=torch.Generator().set_state(rng.get_state())))
    before = random.getstate(), np.random.get_state()  # noqa: NPY002 what users' functions draw from
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            random.seed(seed)
            np.random.seed(seed % 2**32)  # noqa: NPY002
            yield
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])  # noqa: NPY002


def where(error: Exception) -> str:
    """Returns an error in a line, with where in the user's code it was raised."""
    last = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__}: {error} ({Path(last.filename).name}, line {last.lineno})"


def own_augmentation(place: str) -> OwnAugmentation:
    """Returns the function at `my_file.py:name`. InputError where there is none."""
    file, _, name = place.rpartition(":")
    path = user_path(file)
    if not path.is_file():
        raise InputError(f"augment {place}: there is no file {path}")
    place_on_disk = path.resolve()
    unique = hashlib.sha256(str(place_on_disk).encode()).hexdigest()[:12]  # files of other folders may have this name
    spec = importlib.util.spec_from_file_location(f"augment_{path.stem}_{unique}", path)
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)  # where dataclasses look it up
    if str(place_on_disk.parent) not in sys.path:
        sys.path.append(str(place_on_disk.parent))  # for modules beside it; last, so that they hide no other
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # a user's file may raise anything
        del sys.modules[spec.name]
        raise InputError(f"augment {place}: {where(error)}") from error
    function = getattr(module, name, None)
    if not callable(function):
        known = [key for key, value in vars(module).items() if inspect.isfunction(value) and not key.startswith("_")]
        raise InputError(f"augment {place}: {path.name} has no function {name}; it has {', '.join(known) or 'none'}")
    return OwnAugmentation(function, place)


def from_torchvision(transform: Callable[..., Any]) -> Callable[[Tensor, dict], tuple[Tensor, dict]]:
    """Returns a transform of torchvision.transforms.v2 as a function for `augment`.

    It gets an Image, BoundingBoxes, Mask and "labels" (positions of the objects, so that all entries stay together).
    Boxes are then taken anew from the masks, and objects without a pixel are left out.
    """
    tensors = importlib.import_module("torchvision.tv_tensors")

    def augment(image: Tensor, target: dict) -> tuple[Tensor, dict]:
        sample = {
            "image": tensors.Image(image),
            "boxes": tensors.BoundingBoxes(target["boxes"], format="XYXY", canvas_size=tuple(image.shape[1:])),
            "masks": tensors.Mask(target["masks"]),
            "labels": torch.arange(len(target["labels"])),
        }
        changed = transform(sample)
        return changed["image"].as_subclass(Tensor), rejoined(target, changed["masks"], changed["labels"])

    return augment


def from_albumentations(transform: Callable[..., dict]) -> Callable[[Tensor, dict, Generator], tuple[Tensor, dict]]:
    """Returns a Compose of albumentations (without bbox_params) as a function for `augment`.

    It gets the image as [H, W, C] and a list of masks; boxes are taken anew from these, and objects without a pixel
    are left out. Its own generator is seeded for each image where it has `set_random_seed` (version 2).
    """

    def augment(image: Tensor, target: dict, rng: Generator) -> tuple[Tensor, dict]:
        if hasattr(transform, "set_random_seed"):
            transform.set_random_seed(int(torch.randint(2**31, (), generator=rng)))
        masks = list(target["masks"].numpy())
        changed = transform(image=image.permute(1, 2, 0).contiguous().numpy(), **({"masks": masks} if masks else {}))
        image = torch.from_numpy(np.ascontiguousarray(changed["image"])).permute(2, 0, 1)
        masks = torch.from_numpy(np.stack(changed["masks"])) if masks else image.new_zeros(0, *image.shape[1:])
        return image, rejoined(target, masks, torch.arange(len(masks)))

    return augment


def rejoined(target: dict, masks: Tensor, positions: Tensor) -> dict:
    """Returns the objects at these positions with other masks [N, H, W], and boxes and areas of these."""
    positions = torch.as_tensor(positions).as_subclass(Tensor).long()
    crops = CroppedMasks.from_masks(torch.as_tensor(masks).as_subclass(Tensor))
    own = {key: target[key][positions] for key in PER_OBJECT if key in target and key != "masks"}
    changed = {**target, **own, "masks": crops, "boxes": crops.boxes.float(), "area": crops.areas().float()}
    return kept(changed, changed["area"] > 0)
