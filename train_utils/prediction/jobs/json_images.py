"""A COCO json without need of annotations -> its images as a data set, and their detections as its results."""

from __future__ import annotations

from typing import Any

from backbone.errors import InputError
from train_utils.data.dataset import ImageDataset
from train_utils.data.demands import report_missing
from train_utils.data.formats.coco.reading import read_annotations
from train_utils.data.labels import LabelMap
from train_utils.io.files import user_path
from train_utils.prediction.data import notes_on_classes
from train_utils.prediction.jobs.options import PredictOptions
from train_utils.prediction.pipeline import Finished, Seen
from train_utils.prediction.predictor import Predictor


def open_images(options: PredictOptions, raw: Any, label_map: LabelMap) -> ImageDataset:
    """Returns the images that a COCO json (`raw`: its content) names; its annotations are not looked at."""
    folder = user_path(options.image_dir)
    if not folder.is_dir():
        raise InputError(f"--image-dir {options.image_dir}: no such folder")
    if isinstance(raw, dict):  # a test set's json need not have either
        names = dict(zip(label_map.category_ids, label_map.names, strict=True))
        own = [{"id": label_map.given.get(i, i), "name": name} for i, name in names.items()]
        raw = {**raw, "annotations": [], "categories": raw.get("categories") or own}
    table = read_annotations(options.coco_json, lambda names: (folder, folder), options.follow_links, raw=raw)
    data_set = ImageDataset(table, label_map)
    report_missing(data_set)
    for line in notes_on_classes(data_set):
        print(line)
    return data_set


def kept_of(predictor: Predictor, data_set: ImageDataset, seen: Seen) -> Finished:
    """Returns what is kept of an image of the json: its detections, with the json's ids."""
    at, image = seen.read.at, seen.read.image
    if image is None:
        return Finished(error=seen.read.error)
    results, empty = predictor.results(seen.found, data_set.image_id(at), tuple(image.shape[-2:]))
    written = data_set.with_given_ids(results, of=at)
    about = {"at": at, "image": data_set.file_name(at), "stamp": seen.read.stamp, "empty": empty}
    return Finished({**about, "foreign": len(results) - len(written), **seen.counts}, written)
