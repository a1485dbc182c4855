"""The formats of data, a module each; FORMATS is their one registry.

A module has
    recognises(path) -> bool                        whether a path is such data, where --dataset does not say it
    find_splits(path, options, split) -> {role: place}   role: "train", "val", or "all" for a whole that is to be split;
                                                    empty where there is no data
    read(place, options, problems) -> Annotations   None where nothing is sound (and `problems` collects)
    UNUSED = {field of DataOptions: why}            options that the format has no use for
"""

from types import ModuleType

from train_utils.data.formats import coco, npy, packed, voc

FORMATS: dict[str, ModuleType] = {"coco": coco, "voc": voc, "npy": npy, "packed": packed}
