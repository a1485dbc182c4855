"""The formats of data, a module each; `train_utils.data.options.FORMATS` names them.

A module has
    recognises(path) -> bool                        whether a path is such data, where --dataset does not say it
    find_splits(path, options, split) -> {role: place}   role: "train", "val", or "all" for a whole that is to be split
    read(place, options, problems) -> Annotations   None where nothing is sound (and `problems` collects)
    UNUSED = {field of DataOptions: why}            options that the format has no use for
"""

from importlib import import_module
from types import ModuleType

from train_utils.data import options

FORMATS: dict[str, ModuleType] = {
    name: import_module(f"train_utils.data.formats.{name}") for name in options.FORMATS if name != "auto"
}
