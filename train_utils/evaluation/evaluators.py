"""COCO results and ground truth -> matches, by pycocotools, or in less time by faster-coco-eval if it is installed.

faster-coco-eval (`pip install -r requirements-fast.txt`) does the same in C++. It takes over only the two steps that
cost time: the 12 numbers and their lines are pycocotools' own summary of the arrays that either one fills.
"""

import contextlib
import importlib
import importlib.metadata
import io
import os
import re
from collections.abc import Sequence

from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from backbone.errors import InputError
from train_utils.evaluation.boundary import BOUNDARY, BoundaryEval
from train_utils.evaluation.limits import MAX_DETS
from train_utils.processes.agreement import versions

VARIABLE = "MASKRCNN_EVALUATOR"
PYCOCOTOOLS, FASTER = "pycocotools", "faster-coco-eval"
FASTER_SINCE = (1, 8)  # the first version whose numbers were compared


def choose_evaluator(wanted: str | None = None, iou_type: str | None = None) -> str:
    """Returns the name of the evaluator; of the borders' IoU always pycocotools.

    It is the one wanted, else that of the environment variable MASKRCNN_EVALUATOR, else faster-coco-eval if it is
    installed in a version that is known to agree, else pycocotools. Raises InputError for any other name, for one that
    is not installed, and for one that can't be imported.
    """
    wanted = wanted or os.environ.get(VARIABLE) or None
    if wanted not in (None, PYCOCOTOOLS, FASTER):
        raise InputError(f"{VARIABLE} is {wanted!r}: give {PYCOCOTOOLS} or {FASTER}")
    if wanted == PYCOCOTOOLS or iou_type == BOUNDARY:
        return PYCOCOTOOLS
    version = _faster_version()
    if version >= FASTER_SINCE:
        try:
            importlib.import_module("faster_coco_eval")
        except ImportError as error:
            raise InputError(
                f"{FASTER} is installed but does not work ({error}): install it anew, or set {VARIABLE}={PYCOCOTOOLS}"
            ) from error
        return FASTER
    if wanted == FASTER:
        needed = ".".join(map(str, FASTER_SINCE))
        raise InputError(
            f"{VARIABLE} is {FASTER}, of which version {needed} or newer is not installed: "
            f"pip install '{FASTER}>={needed}', or give {PYCOCOTOOLS}"
        )
    return PYCOCOTOOLS


def versions_with(evaluator: str) -> dict[str, str]:
    """Returns the versions of the packages that an evaluation's numbers depend on."""
    try:
        version = importlib.metadata.version(evaluator)
    except importlib.metadata.PackageNotFoundError:  # imported from a folder of its own
        version = "unknown"
    return {**versions(), evaluator: version}


def _faster_version() -> tuple[int, ...]:
    """Returns (major, minor) of faster-coco-eval, () if it is absent."""
    try:
        text = importlib.metadata.version(FASTER)
    except importlib.metadata.PackageNotFoundError:
        return ()
    return tuple(int(part) for part in re.findall(r"\d+", text)[:2])  # also of 1.8rc1


def accumulate(
    evaluator: str,
    truth: dict,
    results: list[dict],
    iou_type: str,
    image_ids: Sequence[int] | None = None,
    max_dets: int = MAX_DETS,
) -> COCOeval:
    """Runs evaluate and accumulate; returns the COCOeval, whose `eval` is filled and `summarize` can be called.

    truth: a COCO dict; results: its detections as annotations. Both are changed. Prints nothing.
    """
    with contextlib.redirect_stdout(io.StringIO()):
        coco, evaluation = (COCO, BoundaryEval) if iou_type == BOUNDARY else _classes(evaluator)
        truth, results, image_ids = _renumbered(truth, results, image_ids)
        evaluation = evaluation(_index(coco, truth), _index(coco, {**truth, "annotations": results}), iou_type)
        if image_ids is not None:
            evaluation.params.imgIds = list(image_ids)
        evaluation.params.maxDets = [1, 10, max_dets]
        evaluation.evaluate()
        evaluation.accumulate()
        if evaluator == PYCOCOTOOLS:
            evaluation.params.maxDets = [1, 10, MAX_DETS]  # summarize looks for 100
            return evaluation
        summary = COCOeval(iouType=iou_type)
        summary.eval = {key: evaluation.eval[key] for key in ("precision", "recall")}
        return summary


def _classes(evaluator: str) -> tuple[type[COCO], type[COCOeval]]:
    if evaluator == PYCOCOTOOLS:
        return COCO, COCOeval
    faster = importlib.import_module("faster_coco_eval")
    return faster.COCO, faster.COCOeval_faster


def _renumbered(
    truth: dict, results: list[dict], image_ids: Sequence[int] | None
) -> tuple[dict, list[dict], Sequence[int] | None]:
    """Returns the same with ids of images and categories 1..N, in their order, without what belongs to none.

    faster-coco-eval fails on ids below 0 and from 2^53 on; ties of scores go by image id.
    """
    images = {i: n for n, i in enumerate(in_order(truth["images"]), start=1)}
    categories = {i: n for n, i in enumerate(sorted({entry["id"] for entry in truth["categories"]}), start=1)}

    def renumber(annotations: list[dict]) -> list[dict]:
        kept = [a for a in annotations if a["image_id"] in images and a["category_id"] in categories]
        for a in kept:
            a["image_id"], a["category_id"] = images[a["image_id"]], categories[a["category_id"]]
        return kept

    truth = {
        "images": [{**image, "id": images[image["id"]]} for image in truth["images"]],
        "categories": [{**category, "id": categories[category["id"]]} for category in truth["categories"]],
        "annotations": renumber(truth["annotations"]),
    }
    if image_ids is not None:
        image_ids = [images[i] for i in image_ids if i in images]
    return truth, renumber(results), image_ids


def in_order(images: Sequence[dict]) -> list[int]:
    """Returns the ids of images as pycocotools sorts them: as the data has them, all as text where one is text."""
    given = {image["id"]: image.get("given_id", image["id"]) for image in images}
    is_text = any(isinstance(value, str) for value in given.values())
    return sorted(given, key=lambda i: str(given[i]) if is_text else given[i])


def _index(coco: type[COCO], data_set: dict) -> COCO:
    indexed = coco()
    indexed.dataset = data_set
    indexed.createIndex()
    return indexed
