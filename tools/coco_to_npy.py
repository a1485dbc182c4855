"""COCO data -> images with .npy annotations, all of it or a sample of some classes.

    python -m tools.coco_to_npy COCO_DATA OUT
    python -m tools.coco_to_npy COCO_DATA OUT --classes person dog --limit 200 --balanced

Writes OUT/images_train/NAME.jpg with OUT/annotations_train/NAME.npy, the same for val where COCO_DATA has it (of a
single json: images/ and annotations/), and OUT/classes.txt. Each .npy holds a dict: boxes float32 [n, 4] (x1 y1 x2
y2), labels int64 [n] (1..C in the order of --classes, else of the category ids), masks uint8 [n, height, width], and
iscrowd uint8 [n] where there is a crowd region. `train.py --data-path OUT` reads it.
Exit status 1: finished, but some images could not be read: they are named and left out.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from backbone.errors import InputError
from backbone.settings import setting
from tools.conversion import open_splits, place_image
from train_utils.cli.command import EXIT_OK, EXIT_SOME_UNUSABLE, run_command
from train_utils.cli.flags import add_flags
from train_utils.cli.parser import Parser
from train_utils.data.dataset import ImageDataset
from train_utils.data.formats import npy_file as npy_reader
from train_utils.data.formats.npy_folder import CLASS_FILE
from train_utils.data.images import ImageError, image_size
from train_utils.data.images.pages import page_of
from train_utils.data.labels import LabelMap
from train_utils.data.options import BELOW_SEED, DataOptions
from train_utils.io.files import new_folder, write_text
from train_utils.io.plain_text import counted, of_several, visible
from train_utils.io.unfinished import new_file
from train_utils.show.image_lists import output_names


@dataclass(frozen=True)
class Options(DataOptions):
    """Conversion: of which images, to where."""

    data_path: str | None = setting(None, "COCO folder, or a json", positional=True, metavar="COCO_DATA")
    out: str | None = setting(None, "folder to be made", positional=True, metavar="OUT")
    classes: tuple[str, ...] | None = setting(
        None, "only these, and only images that show one (default: all classes and images)", metavar="NAME"
    )
    limit: int | None = setting(
        None, "at most N images of each split, chosen at random (default: all)", least=1, metavar="N"
    )
    balanced: bool = setting(False, "choose as equal numbers of images of each class as can be")
    seed: int = setting(0, "of the choice", least=0, below=BELOW_SEED)
    link: bool = setting(False, "link the images in place of copying them")


def parse() -> Options:
    """Returns the options that the command names."""
    parser = Parser(description=__doc__)
    unused = ("dataset", "year", "label_json_path", "val_fraction", "drop_empty", "strict", "split_components")
    add_flags(parser, Options, leave_out=unused)
    return Options(dataset="coco", **parser.given())


def new_labels(label_map: LabelMap, classes: Sequence[str] | None) -> dict[int, int]:
    """Returns {label of the data: label to write}, in the order of the latter."""
    of_name = {label_map.name(label): label for label in label_map.labels()}
    unknown = [name for name in classes or () if name not in of_name]
    if unknown:
        raise InputError(f"--classes {' '.join(unknown)}: the data has {', '.join(of_name)}")
    chosen = label_map.labels() if classes is None else [of_name[name] for name in dict.fromkeys(classes)]
    return {label: number for number, label in enumerate(chosen, 1)}


def choose(classes_of: list[set[int]], every: bool, limit: int | None, balanced: bool, seed: int) -> list[int]:
    """Returns positions of the images to take, sorted. classes_of: the chosen classes that each image shows.

    every: images without any as well. balanced: the class with the fewest images so far gets the next
    one, an image of few other classes first, until `limit`; without a limit, until a class has run out.
    """
    order = np.random.default_rng(seed).permutation(len(classes_of)).tolist()
    order = [i for i in order if classes_of[i] or every and not balanced]
    if not balanced:
        return sorted(order[:limit])
    order.sort(key=lambda i: -len(classes_of[i]))  # stable; taken from the end
    waiting = {c: [i for i in order if c in classes_of[i]] for c in sorted(set().union(*classes_of))}
    total, counts, taken = {c: len(waiting[c]) for c in waiting}, dict.fromkeys(waiting, 0), set()
    while waiting and (limit is None or len(taken) < limit):
        poorest = min(waiting, key=lambda c: (counts[c], total[c]))
        if counts[poorest] == total[poorest]:  # has run out
            if limit is None:
                break
            del waiting[poorest]
            continue
        while (i := waiting[poorest].pop()) in taken:
            pass
        taken.add(i)
        for c in classes_of[i]:
            counts[c] += 1
    return sorted(taken)


def shown_classes(data_set: ImageDataset, labels: dict[int, int]) -> list[set[int]]:
    """Returns the labels, among those to write, that each image shows; no mask is decoded for it."""
    packed, to_label = data_set.annotations, data_set.label_map.to_label
    found = [packed.category_ids[packed.objects(row)].tolist() for row in data_set.rows]
    return [{to_label(category) for category in categories} & labels.keys() for categories in found]


def content_of(target: dict, labels: dict[int, int], source: Path) -> tuple[dict, Counter[int]]:
    """Returns (what the .npy of an image holds, {label: how many of its objects are written}).

    Objects without a pixel are not written. Raises InputError where the masks would take more than a .npy file may
    have.
    """
    masks = target["masks"]
    full = (masks.boxes[:, 2] > 0).tolist()
    kept = [k for k, label in enumerate(target["labels"].tolist()) if label in labels and full[k]]
    if len(kept) * masks.size[0] * masks.size[1] > npy_reader.MAX_PICKLE - 2**20:
        raise InputError(
            f"{source}: its {counted(len(kept), 'mask')} would take more than a .npy file may have "
            f"({npy_reader.MAX_PICKLE >> 30} GiB); scale the image down, or choose fewer --classes"
        )
    own = target["labels"][kept].tolist()
    content = {
        "boxes": target["boxes"][kept].numpy(),
        "labels": np.array([labels[label] for label in own], dtype=np.int64),
        "masks": masks[kept].to_masks().numpy(),
    }
    if target["iscrowd"][kept].any():
        content["iscrowd"] = target["iscrowd"][kept].numpy()
    return content, Counter(own)


def write_split(out: Path, name: str, data_set: ImageDataset, labels: dict[int, int], options: Options) -> int:
    """Converts one split; returns the number of images that could not be read."""
    classes_of = shown_classes(data_set, labels)
    chosen = choose(classes_of, options.classes is None, options.limit, options.balanced, options.seed)
    if not chosen:
        raise InputError(
            f"{data_set.source}: none of its {counted(len(data_set), 'image')} shows a class to choose by; give "
            "other --classes, leave --balanced out, or convert the other split's json alone"
        )
    folders = [out / f"{kind}_{name}".rstrip("_") for kind in ("images", "annotations")]
    for folder in folders:
        folder.mkdir()
    sources = [Path(data_set.file_name(i)) for i in chosen]
    if pages := [path for path in sources if page_of(path)[1] is not None]:
        raise InputError(f"{pages[0]}: is a page of a file, and .npy data has a file for each image; save it as one")
    shown, counts = Counter(dict.fromkeys(labels, 0)), Counter()
    stems = [Path(drawn).stem for drawn in output_names(sources)]  # none twice
    for i, source, stem in tqdm(
        list(zip(chosen, sources, stems, strict=True)), desc=name or "images", unit="image", disable=None
    ):
        try:
            image_size(source)
        except ImageError as error:
            print(f"not converted: {error}", file=sys.stderr, flush=True)
            counts["images could not be read"] += 1
            continue
        target = data_set.target(i)
        content, written = content_of(target, labels, source)
        symbolic = place_image(source, folders[0] / (stem + source.suffix), options.link)
        with new_file(folders[1] / f"{stem}.npy") as file:
            np.save(file, content)
        shown.update(written.keys())
        wanted = sum(label in labels for label in target["labels"].tolist())
        counts["images"] += 1
        counts["objects"] += written.total()
        counts["objects of other classes left out"] += len(target["labels"]) - wanted
        counts["objects without a pixel left out"] += wanted - written.total()
        counts["images are linked: training needs --follow-links"] += symbolic
    report(folders[0].name, data_set, counts, shown)
    return counts["images could not be read"]


def report(folder: str, data_set: ImageDataset, counts: Counter[str], shown: Counter[int]) -> None:
    """Prints what was written; shown: {label: images that show it}."""
    images, objects = counts.pop("images", 0), counts.pop("objects", 0)
    line = f"{folder}: {images} of {counted(len(data_set), 'image')}, {counted(objects, 'object')}"
    others = (f"{count} {of_several(count, what)}" for what, count in counts.items() if count)
    print(visible(", ".join([line, *others])))
    if len(shown) <= 20:
        classes = (f"{data_set.label_map.name(label)} {count}" for label, count in shown.items())
        print(visible(f"images of each class: {', '.join(classes)}"))


def main() -> int:
    """Runs the command; returns its exit status."""
    options = parse()
    splits = open_splits(options)
    label_map = next(iter(splits.values())).label_map
    labels = new_labels(label_map, options.classes)
    with new_folder(options.out) as out:
        for name, data_set in splits.items():
            print(f"{name or 'data'}: {data_set.describe()}")
        unreadable = [write_split(out, name, data_set, labels, options) for name, data_set in splits.items()]
        names = "".join(f"{label_map.name(label)}\n" for label in labels)
        write_text(out / CLASS_FILE, names)
    print(f"written: {visible(options.out)}")
    return EXIT_SOME_UNUSABLE if any(unreadable) else EXIT_OK


if __name__ == "__main__":
    sys.exit(run_command(main))
