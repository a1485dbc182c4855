"""Images with .npy annotations -> COCO data: jsons with polygons or compressed RLE, and the images.

    python -m tools.npy_to_coco NPY_DATA OUT
    python -m tools.npy_to_coco DATA OUT --dataset masks       # yolo, labelme, ...: data of another layout

Writes OUT/annotations/instances_train.json with OUT/train/, the same for val where NPY_DATA has it (else
OUT/instances.json with OUT/images/). Image ids are the numbers in the file names where all are numbers, else 1, 2, ...
in their order. `train.py --data-path OUT` reads it, and so does pycocotools.
Exit status 1: finished, but some images, or annotations without an image, could not be used: they are named and
left out.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from backbone.errors import InputError
from backbone.settings import setting
from tools.conversion import content_in_annotations, open_splits, place_image
from train_utils.cli.command import EXIT_OK, EXIT_SOME_UNUSABLE, run_command
from train_utils.cli.flags import add_flags
from train_utils.cli.parser import Parser
from train_utils.data.dataset import ImageDataset
from train_utils.data.formats.npy_folder import NO_ANNOTATION, NO_IMAGE
from train_utils.data.images import ImageError, image_size, read_image
from train_utils.data.images.pages import file_of, page_of
from train_utils.data.options import DataOptions
from train_utils.io.files import new_folder, user_path, write_text
from train_utils.io.plain_text import counted, visible
from train_utils.io.unfinished import new_file


@dataclass(frozen=True)
class Options(DataOptions):
    """Conversion: from where, to where."""

    data_path: str | None = setting(None, "folder with images/ and annotations/", positional=True, metavar="NPY_DATA")
    out: str | None = setting(None, "folder to be made", positional=True, metavar="OUT")
    link: bool = setting(False, "link the images in place of copying them")


def parse() -> Options:
    """Returns the options that the command names."""
    parser = Parser(description=__doc__)
    names = ("data_path", "out", "dataset", "label_json_path", "split_components", "link", "follow_links", "strict")
    add_flags(parser, Options, only=names)
    return Options(**{"dataset": "npy", **parser.given()})


def write_split(out: Path, name: str, data_set: ImageDataset, link: bool) -> int:
    """Converts one split; returns the number of images and annotations that could not be used."""
    json_path = out / "annotations" / f"instances_{name}.json" if name else out / "instances.json"
    folder = out / (name or "images")
    for each in (json_path.parent, folder):
        each.mkdir(exist_ok=True)
    content = data_set.ground_truth()
    difficult = _with_own_crowds(content["annotations"], data_set)
    usable, placed, linked = set(), set(), 0
    for i in tqdm(range(len(data_set)), desc=name or "images", unit="image", disable=None):
        source = Path(file_of(data_set.file_name(i)))
        try:
            inner = content_in_annotations(data_set, i)
            if inner is None:
                image_size(data_set.file_name(i))
            else:
                read_image(source, content=inner)
        except ImageError as error:
            print(f"not converted: {error}", file=sys.stderr, flush=True)
            continue
        usable.add(data_set.image_id(i))
        target = folder / data_set.annotations.file_name(data_set.rows[i])
        if page_of(data_set.file_name(i))[1] is not None:  # the json names the page, its file is placed once
            target = target.with_name(source.name)
        if target not in placed:
            target.parent.mkdir(parents=True, exist_ok=True)
            if inner is None:
                linked += place_image(source, target, link)
            else:
                with new_file(target) as file:
                    file.write(inner)
            placed.add(target)
    numbered = all(isinstance(data_set.given_id(i), int) for i in range(len(data_set)))
    new_ids = {image["id"]: image["id"] if numbered else n for n, image in enumerate(content["images"], 1)}
    label_map = data_set.label_map
    content["categories"] = [{"id": i, "name": n} for i, n in zip(label_map.category_ids, label_map.names, strict=True)]
    content["images"] = [{**image, "id": new_ids[image["id"]]} for image in content["images"] if image["id"] in usable]
    content["annotations"] = [
        {**a, "image_id": new_ids[a["image_id"]]} for a in content["annotations"] if a["image_id"] in usable
    ]
    write_text(json_path, json.dumps(content))
    notes = f", {counted(linked, 'image', 'are')} linked: training needs --follow-links" if linked else ""
    notes += f", {counted(difficult, 'difficult object', 'are')} like any other" if difficult else ""
    objects = counted(len(content["annotations"]), "object")
    print(f"{json_path.relative_to(out)}: {counted(len(usable), 'image')}, {objects}{notes}")
    without = sum(data_set.skipped.get(reason, 0) for reason in (NO_ANNOTATION, NO_IMAGE))
    return len(data_set) - len(usable) + without


def _with_own_crowds(annotations: list[dict], data_set: ImageDataset) -> int:
    """Gives annotations of the ground truth, where all that is ignored is a crowd, the data's own iscrowd.

    Returns how many it changes: VOC's difficult objects, which train like any other.
    """
    changed = 0
    for annotation, crowd in zip(annotations, data_set.annotations.iscrowd[data_set.object_rows()[0]], strict=True):
        changed += annotation["iscrowd"] != crowd
        annotation["iscrowd"] = int(crowd)
    return changed


def main() -> int:
    """Runs the command; returns its exit status."""
    options = parse()
    if not user_path(options.data_path).is_dir():
        raise InputError(f"{options.data_path}: no such folder")
    splits = open_splits(options)
    with new_folder(options.out) as out:
        for name, data_set in splits.items():
            print(f"{name or 'data'}: {data_set.describe()}")
        unusable = [write_split(out, name, data_set, options.link) for name, data_set in splits.items()]
    print(f"written: {visible(options.out)}")
    return EXIT_SOME_UNUSABLE if any(unusable) else EXIT_OK


if __name__ == "__main__":
    sys.exit(run_command(main))
