"""Data -> data sets as train.py would open them; where it would not, every mistake, and what is sound.

The readers are the loader's; their mistakes are collected and not raised. The first one is what training stops at.
"""

from pathlib import Path
from typing import NamedTuple

from backbone.errors import InputError
from tools.doctor.finds import ERROR, NOTE, WARNING, Finds, Kind
from tools.doctor.images import images_below
from train_utils.data.dataset import ImageDataset
from train_utils.data.demands import report_missing, without_objects
from train_utils.data.formats import FORMATS, voc
from train_utils.data.formats.coco.packer import UNCHECKED
from train_utils.data.links import links_out_of
from train_utils.data.opening import find_places, format_of, read_parts, refuse_single, undivided
from train_utils.data.options import DataOptions
from train_utils.data.problems import MISSING, MISTAKE, SKIP, Collect, Problem
from train_utils.io.files import user_path

NO_TRAINING = Kind(WARNING, "no training data", "validation.py can use it, train.py cannot.")
MISSING_FILES = Kind(ERROR, MISSING, "Put them there, or take their entries out (--fix does).")
LEFT_OUT = "Training leaves them out and counts them; under --strict they are an error. Correct them{}."
DECIDED = "Training goes on as the title says; correct the XML or the mask where that is wrong."
NOTES = {
    UNCHECKED: (NOTE, "Correct the images first."),
    voc.NO_XML: (NOTE, DECIDED),
    voc.FRACTIONS: (NOTE, "The masks' own boxes are used, so nothing is lost."),
}


class Opened(NamedTuple):
    """What was opened.

    path: of the data; layout: coco, voc, npy, packed, images or "no known layout"; splits: {"train" | "val" |
    "all": data set} as far as they are sound; verdict: the error that train.py would end with, or None; images:
    files, where there are no annotations.
    """

    path: Path
    layout: str
    splits: dict[str, ImageDataset]
    verdict: str | None
    images: list[Path]


def open_all(options: DataOptions, finds: Finds) -> Opened:
    """Opens the data; every problem goes to `finds`. Raises InputError where there is nothing to look at."""
    path = user_path(options.data_path)
    if not path.exists():
        raise InputError(f"{path}: no such file or folder")
    layout = options.dataset if options.dataset in FORMATS else format_of(path)
    splits, places, images = {}, {}, []
    finds.fixable = layout == "coco"
    collect = Collect(lambda problem: _keep(problem, layout, finds))
    try:
        _, module, places = find_places(options, "train" if path.is_file() else None)
        places = undivided(places)
        splits = read_parts(module, places, options, problems=collect)
        if "all" in splits:
            refuse_single(path, splits["all"])
    except InputError as error:
        collect.mistake(error)
    for split, part in splits.items():
        report_missing(part, collect.of(split))
        if split != "val" and (cause := without_objects(part)):
            collect.of(split).mistake(f"{part.source}: nothing to learn: {cause}")
    verdict = collect.first
    if places and not {"train", "all"} & places.keys():
        lacking = f"{path}: no training data beside the validation data"
        finds.add(NO_TRAINING, lacking)
        verdict = verdict or lacking
    if not places and path.is_dir():
        images = _images_alone(path, options.follow_links, finds)
    is_other_file = path.is_file() and path.suffix.lower() != ".json"
    if options.dataset == "auto" and layout == "coco" and not splits and (not places or is_other_file):
        layout = "no known layout"
    return Opened(path, "images" if images else layout, splits, verdict, images)


def _keep(problem: Problem, layout: str, finds: Finds) -> None:
    """Adds a problem of the readers as a find."""
    severity, title, text, *where, count = problem
    if severity == MISTAKE and not title:
        split, image, annotation = where
        finds.mistake(text, split=split, image=image, annotation=annotation)
    elif severity == MISTAKE:
        finds.add(MISSING_FILES, text, *where)
    elif severity == SKIP:
        advice = LEFT_OUT.format(", or --fix" if layout == "coco" else "")
        finds.add(Kind(WARNING, f"skipped: {title}", advice), text, *where, count=count)
    else:
        severity, advice = NOTES.get(title, (WARNING, DECIDED))
        finds.add(Kind(severity, title, advice), text, *where, count=count)


def _images_alone(path: Path, follow_links: bool, finds: Finds) -> list[Path]:
    """Returns the image files of a folder that holds no data set."""
    images = images_below(path)
    if follow_links:
        return images
    for error in links_out_of(sorted({image.parent for image in images}), path):
        finds.mistake(str(error))
    return [image for image in images if path.resolve() in image.resolve().parents]
