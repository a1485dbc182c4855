"""Finds what is odd about classes and splits: names, numbers of objects, and what train and val share."""

import filecmp
import os
from collections import defaultdict
from pathlib import Path

import numpy as np

from tools.doctor.finds import NOTE, WARNING, Finds, Kind
from tools.doctor.table import Table
from train_utils.data import dataset
from train_utils.data.dataset import ImageDataset
from train_utils.io.plain_text import counted

FEW, UNEVEN = 10, 100  # objects of a class; times the median class

UNUSED = Kind(WARNING, "classes without any object", "Take them out of the categories, or annotate some.")
ONLY_CROWDS = Kind(
    WARNING,
    "classes with crowd regions alone",
    "They are never trained on. Where a tool wrote iscrowd 1 for each RLE, --crowd-as-objects reads them as objects, "
    "and with --fix writes them so.",
)
MANY_CROWDS = Kind(
    WARNING,
    "classes with many crowd regions beside their objects",
    "Crowd regions are never trained on. Where a tool wrote iscrowd 1 for each RLE, --crowd-as-objects reads them as "
    "objects, and with --fix writes them so.",
)
MOSTLY_SKIPPED = Kind(WARNING, "classes whose annotations are mostly skipped", "Correct these annotations first.")
LACKING = {dataset.CROWDS_ALONE: ONLY_CROWDS, dataset.MANY_CROWDS: MANY_CROWDS, dataset.MOSTLY_SKIPPED: MOSTLY_SKIPPED}
ONLY_VAL = Kind(WARNING, "classes in val, but not in train", "They can't be learnt.")
ONLY_TRAIN = Kind(NOTE, "classes in train, but not in val", "Their AP is n/a.")
RARE = Kind(
    NOTE,
    f"classes of fewer than {FEW} objects in training",
    "Few of them will be found: annotate more where it matters.",
)
IMBALANCE = Kind(NOTE, f"classes of over {UNEVEN} times as many objects as the middle one", "")
ALIKE = Kind(
    WARNING,
    "classes whose names differ only in capitals, blanks or signs, or not at all",
    "If they are one class, give them one id.",
)
SAME_IMAGE = Kind(WARNING, "images both in train and in val", "The AP on val is too good: take them out of one.")
SAME_NAME = Kind(NOTE, "file names both in train and in val", "Different files; the full pass compares what they show.")
SAME_IDS = Kind(NOTE, "image ids both in train and in val", "Harmless where each split numbers its own images.")


def look_at_classes(tables: dict[str, Table], finds: Finds) -> dict[str, dict[str, int]]:
    """Finds odd classes; returns {class: {split: objects}}, crowds apart."""
    label_map = next(iter(tables.values())).data_set.label_map
    labels = label_map.labels()
    counts = {
        split: np.bincount(table.labels[~table.crowd], minlength=label_map.num_labels)
        for split, table in tables.items()
    }
    sources = " and ".join(str(table.data_set.source) for table in tables.values())
    training = counts.get("train", counts.get("all"))
    rare = []
    for split, table in tables.items():
        data_set = table.data_set
        for what, named in data_set.lacking_classes().items():
            for name, count in named.items():
                finds.add(LACKING[what], f"{data_set.source}: class {name!r}: {count}", split)
    crowds = {label for table in tables.values() for label in table.labels[table.crowd].tolist()}
    for label in labels:
        name, each = label_map.name(label), {split: int(count[label]) for split, count in counts.items()}
        class_ = f"{sources}: class {name!r} (category {label_map.to_category(label)})"
        if not any(each.values()) and label not in crowds:
            finds.add(UNUSED, class_)
        if training is not None and 0 < training[label] < FEW:
            rare.append(label)
        if {"train", "val"} <= each.keys():
            if each["val"] and not each["train"]:
                finds.add(ONLY_VAL, f"{class_}: {counted(each['val'], 'object')} in val")
            if each["train"] and not each["val"]:
                finds.add(ONLY_TRAIN, f"{class_}: {counted(each['train'], 'object')} in train")
        if training is not None and training[label] > UNEVEN * max(np.median(training[labels]), 1):
            finds.add(
                IMBALANCE,
                f"{class_}: {counted(int(training[label]), 'object')}, "
                f"the middle class has {np.median(training[labels]):.0f}",
            )
    for label in rare:
        finds.add(RARE, f"{sources}: class {label_map.name(label)!r}: {counted(int(training[label]), 'object')}")
    alike = defaultdict(list)
    for label in labels:
        name = label_map.name(label)
        alike["".join(filter(str.isalnum, name.casefold())) or name].append(label)
    for group in alike.values():
        if len(group) > 1:
            names = ", ".join(f"{label_map.name(label)!r} (category {label_map.to_category(label)})" for label in group)
            finds.add(ALIKE, f"{sources}: {names}")
    return {
        label_map.distinct_name(label): {split: int(count[label]) for split, count in counts.items()}
        for label in labels
    }


def look_across(tables: dict[str, Table], finds: Finds) -> None:
    """Finds what train and val share. Files are read only where two have one name and one size."""
    if not {"train", "val"} <= tables.keys():
        return
    train, val = (tables[split].data_set for split in ("train", "val"))
    of_name = defaultdict(list)
    for i, name in enumerate(_base_names(train)):
        of_name[name].append(Path(train.file_name(i)))
    for j, name in enumerate(_base_names(val)):
        if name not in of_name:
            continue
        others, path = of_name[name], Path(val.file_name(j))
        same = next((each for each in others if path == each or _same_content(path, each)), None)
        other = same or others[-1]
        if same:
            finds.add(SAME_IMAGE, f"{other} (train) and {path} (val)", "val", val.given_id(j))
        else:
            finds.add(SAME_NAME, f"{other} (train) and {path} (val)", "val", val.given_id(j))
    numbered = train.annotations.fixed_labels  # VOC's lists and packed files have no ids of their own
    ids = [set() if numbered else {part.given_id(i) for i in range(len(part))} for part in (train, val)]
    shared = ids[0] & ids[1]
    if shared:
        some = ", ".join(map(str, sorted(shared, key=str)[:5]))
        finds.add(
            SAME_IDS,
            f"{train.source} and {val.source}: {counted(len(shared), 'id')}, such as {some}",
            count=len(shared),
        )


def _base_names(data_set: ImageDataset) -> list[str]:
    names = data_set.annotations.file_names()  # all at once: a path for each takes seconds
    return [os.path.basename(names[row]) for row in data_set.rows.tolist()]


def _same_content(one: Path, other: Path) -> bool:
    try:
        return one.stat().st_size > 0 and filecmp.cmp(one, other, shallow=False)  # which looks at the sizes first
    except OSError:  # missing: reported elsewhere
        return False
