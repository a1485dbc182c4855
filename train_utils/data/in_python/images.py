"""A path, bytes, a PIL image, a numpy array or a tensor -> an image as the network takes it, [3, H, W].

Arrays are [H, W] or [H, W, C], as PIL and OpenCV have them, tensors [H, W] or [C, H, W], as torch has them; C is 1, 3
or 4, and RGB comes first; or C is the number of channels that the model takes.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from backbone.errors import InputError
from network_files.transform import check_image
from train_utils.data.images import read_image
from train_utils.data.images.reading import USUAL, Reading, scaled
from train_utils.data.images.windows import Windows, open_image
from train_utils.io.files import user_path

DEEP_MODES = ("I;16", "I;16L", "I;16B", "I", "F")  # of PIL, with more than 8 bits
FORMS = "give a path, bytes, a PIL image, a numpy array [H, W] or [H, W, 3], or a tensor [H, W] or [3, H, W]"


def image_of(value: Any, name: str = "the image", reading: Reading = USUAL) -> torch.Tensor | Windows:
    """Returns an image as uint8 (0..255), uint16 (0..65535) or float32 (0..1) [N, H, W]; name: for messages.

    reading: of the model, whose value range counts for files and uint16; floats are in 0..1 as they are. Grey becomes N
    equal channels, for 3 of them a fourth (transparency) is left out. Files are brought upright by their
    EXIF orientation, PIL images stay as they are. Raises ImageError for a file that is broken, InputError for what is
    no image.
    """
    if isinstance(value, str | Path):
        return open_image(user_path(value), reading)
    if isinstance(value, bytes | bytearray | memoryview):
        return read_image(f"{name} (bytes)", content=bytes(value), reading=reading)
    if isinstance(value, Image.Image):
        plain = value.mode in DEEP_MODES or len(value.getbands()) == reading.channels != 3
        plain = plain and value.mode not in ("1", "P")  # whose values are no grey
        value = np.array(value if plain else value.convert("L" if reading.channels == 1 else "RGB"))
        value = value.astype(np.uint16) if value.dtype == np.int32 and _fits(value) else value
    if not isinstance(value, torch.Tensor):
        value = _from_array(value, name, reading.channels)
    image = value.as_subclass(torch.Tensor)
    image = image[None] if image.dim() == 2 else image  # [C, H, W]
    wanted = reading.channels
    if image.dim() != 3 or len(image) not in _counts(wanted) or 0 in image.shape:
        raise InputError(f"{name}: a tensor of shape {list(value.shape)}; {_forms(wanted)}")
    image = (image.expand(wanted, -1, -1) if len(image) == 1 else image[:wanted]).cpu().contiguous()
    image = image.float() if image.is_floating_point() else image
    if image.dtype == torch.uint16 and reading.value_range is not None:
        image = scaled(image.numpy(), reading)
    try:
        check_image(image, name, channels=wanted)
    except ValueError as error:
        raise InputError(str(error)) from error
    return image


def _counts(channels: int) -> set[int]:
    """Returns how many channels an image may have for a model that takes so many."""
    return {1, 3, 4} if channels == 3 else {1, channels}


def _forms(channels: int) -> str:
    """Returns what may be given to a model of so many channels."""
    return FORMS if channels == 3 else FORMS.replace("3]", f"{channels}]").replace("[3,", f"[{channels},")


def _from_array(value: Any, name: str, channels: int = 3) -> torch.Tensor:
    """Returns an array [H, W] or [H, W, C] as a tensor [C, H, W]."""
    array = np.asarray(value)
    if array.dtype == object or array.dtype.kind not in "uif":
        raise InputError(f"{name}: is {_kind(value)}; {_forms(channels)}")
    layers = array[..., None] if array.ndim == 2 else array
    if layers.ndim != 3 or layers.shape[2] not in _counts(channels):
        raise InputError(f"{name}: an array of shape {list(array.shape)}; {_forms(channels)}")
    layers = layers.astype(layers.dtype.newbyteorder("="), copy=False)
    return torch.from_numpy(np.ascontiguousarray(layers.transpose(2, 0, 1)))


def _fits(values: np.ndarray) -> bool:
    return bool(values.size) and 0 <= values.min() and values.max() <= 65535


def _kind(value: Any) -> str:
    kind = type(value).__name__
    return f"an array of {value.dtype}" if isinstance(value, np.ndarray) else f"a {kind}"


def is_one_image(value: Any) -> bool:
    """Returns whether a value stands for one image, and not for several: a path of a folder or a glob does not."""
    if isinstance(value, str | Path):
        path = user_path(value)
        return not path.is_dir() and (path.exists() or not any(sign in str(value) for sign in "*?["))
    if isinstance(value, bytes | bytearray | memoryview | Image.Image):
        return True
    if isinstance(value, torch.Tensor | np.ndarray):
        return value.ndim != 4
    return not isinstance(value, Iterable)
