"""Defines what a stage shows, images and numbers, and finds where in the code a function is."""

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from PIL import Image
from torch import Tensor

ROOT = Path(__file__).resolve().parent.parent.parent


class Panel(NamedTuple):
    """An image of a stage and what it shows."""

    caption: str
    image: Image.Image


Facts = list[tuple[str, str]]  # what, its value
Shown = tuple[list[Panel], Facts]


def where(function: Callable) -> str:
    """Returns `network_files/rpn.py:78 RegionProposalNetwork.forward` of a function or class of the project."""
    function = inspect.unwrap(function)  # of no_grad and the like
    lines, first = inspect.getsourcelines(function)
    line = first + next(i for i, text in enumerate(lines) if text.lstrip().startswith(("def ", "class ")))
    path = Path(inspect.getsourcefile(function)).resolve().relative_to(ROOT)
    return f"{path.as_posix()}:{line} {function.__qualname__}"


def shape(tensor: Tensor) -> str:
    """Returns a tensor's shape as text."""
    return str(list(tensor.shape))


def spread(values: Tensor, digits: int = 2) -> str:
    """Returns the smallest, the median and the largest of values [N] as text."""
    if not len(values):
        return "none"
    return " / ".join(f"{float(v):,.{digits}f}" for v in (values.min(), values.median(), values.max()))


def size_of(box: Tensor) -> str:
    """Returns `12 x 30` of a box [4]: width x height in pixels."""
    x1, y1, x2, y2 = box.tolist()
    return f"{x2 - x1:.0f} x {y2 - y1:.0f}"
