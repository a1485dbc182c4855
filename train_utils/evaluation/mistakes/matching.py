"""Matches detections with the objects of the ground truth, as pycocotools does, and finds what the others lie on.

D detections, G objects of the ground truth (crowd regions included), T IoU thresholds. d and g are those of one
image. The overlap with a crowd region is the part of the detection inside it, as in pycocotools.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from pycocotools import mask as coco_mask

from train_utils.data.masks import rasterise
from train_utils.evaluation.evaluators import in_order
from train_utils.evaluation.limits import MAX_DETS

IOU_THRESHOLDS = np.linspace(0.5, 0.95, 10)  # COCO's
FOREGROUND, BACKGROUND = 0.5, 0.1  # IoU: on an object; on nothing (TIDE's tf and tb)
NONE, IN_CROWD = -1, -2  # in place of an object's index


@dataclass(frozen=True)
class Matches:
    """All detections and objects of an evaluation, in flat arrays; detections by image, best score first.

    image_ids: in pycocotools' order; category_ids: rising. result int64 [D]: which of the results; image, category
    int64 [D]: positions in those lists; score float64 [D]; matched int64 [T, D]: the object, or NONE; ignored
    bool [T, D]: inside a crowd region, neither right nor wrong; own_iou, other_iou float64 [D]: highest IoU with an
    object of its class, and of another (crowds aside), own, other int64 [D]: which; blind int64 [D]: the object of any
    class that it takes when detections choose by score at IoU 0.5, NONE or IN_CROWD.
    annotation int64 [G]: which annotation; object_image, object_category, crowd [G]; cut bool [G]: only detections of
    its class beyond the limit of a class in an image lie on it (IoU 0.5): it was found, and does not count as found.
    """

    iou_type: str
    image_ids: list[int]
    category_ids: list[int]
    result: np.ndarray
    image: np.ndarray
    category: np.ndarray
    score: np.ndarray
    matched: np.ndarray
    ignored: np.ndarray
    own_iou: np.ndarray
    own: np.ndarray
    other_iou: np.ndarray
    other: np.ndarray
    blind: np.ndarray
    annotation: np.ndarray
    object_image: np.ndarray
    object_category: np.ndarray
    crowd: np.ndarray
    cut: np.ndarray


def match(
    truth: dict,
    results: Sequence[dict],
    iou_type: str,
    image_ids: Sequence[int] | None = None,
    max_dets: int = MAX_DETS,
) -> Matches:
    """Matches the results of all images with the objects.

    truth: a COCO dict; results: COCO results, each with a bbox ("bbox") or a segmentation ("segm"); image_ids: the
    images that count (default: all); max_dets: detections of a class in an image that count, the best. Results of a
    category that the truth does not list are left out, as the evaluation leaves them out.
    """
    sizes = {image["id"]: (image["height"], image["width"]) for image in truth["images"]}
    wanted = set(sizes if image_ids is None else image_ids)
    image_ids = [i for i in in_order(truth["images"]) if i in wanted]  # ties of scores go by it
    category_ids = sorted({category["id"] for category in truth["categories"]})
    row_of, column_of = ({value: i for i, value in enumerate(ids)} for ids in (image_ids, category_ids))
    objects, found = ([[] for _ in image_ids] for _ in range(2))
    for entries, lists in ((truth["annotations"], objects), (results, found)):
        for i, entry in enumerate(entries):
            if entry["image_id"] in row_of and entry["category_id"] in column_of:
                lists[row_of[entry["image_id"]]].append(i)
    parts, first = [], 0
    for row, image_id in enumerate(image_ids):
        own = [truth["annotations"][i] for i in objects[row]]
        categories = np.array([column_of[a["category_id"]] for a in own], dtype=np.int64)
        crowd = np.array([a.get("iscrowd", 0) for a in own], dtype=bool)
        kept, beyond = _best(found[row], results, column_of, max_dets)
        shapes = [_shape(a, iou_type, sizes[image_id]) for a in own]
        iou = _overlaps([_shape(results[i], iou_type) for i in kept], shapes, crowd)  # [d, g]
        labels = np.array([column_of[results[i]["category_id"]] for i in kept], dtype=np.int64)
        scores = np.array([results[i]["score"] for i in kept], dtype=np.float64)
        of_detections = np.array(kept, dtype=np.int64), np.full(len(kept), row), labels, scores
        matched = _match_image(iou, labels[:, None] == categories, crowd, first)
        cut = np.zeros(len(own), dtype=bool)
        if beyond:
            others = np.array([column_of[results[i]["category_id"]] for i in beyond], dtype=np.int64)
            of_beyond = _overlaps([_shape(results[i], iou_type) for i in beyond], shapes, crowd)  # [beyond, g]
            met = ((iou >= FOREGROUND) & (labels[:, None] == categories)).any(axis=0)  # [g]
            cut = ((of_beyond >= FOREGROUND) & (others[:, None] == categories)).any(axis=0) & ~met & ~crowd
        of_objects = np.array(objects[row], dtype=np.int64), np.full(len(own), row), categories, crowd, cut
        parts.append((*of_detections, *matched, *of_objects))
        first += len(own)
    columns = [np.concatenate(column, axis=-1) for column in zip(*parts, strict=True)]
    return Matches(iou_type, image_ids, category_ids, *columns)


def _best(
    indices: list[int], results: Sequence[dict], column_of: dict[int, int], max_dets: int
) -> tuple[list[int], list[int]]:
    """Returns, of one image, the best max_dets of each class, best first, and those beyond."""
    order = sorted(indices, key=lambda i: -results[i]["score"])  # stable, as the mergesort of pycocotools
    if len(order) <= max_dets:
        return order, []
    counts, kept, beyond = dict.fromkeys(column_of, 0), [], []
    for i in order:
        counts[results[i]["category_id"]] += 1
        (kept if counts[results[i]["category_id"]] <= max_dets else beyond).append(i)
    return kept, beyond


def _shape(entry: dict, iou_type: str, size: tuple[int, int] = (0, 0)) -> list[float] | dict:
    """Returns what pycocotools compares: a box x y w h, or an RLE."""
    if iou_type == "bbox":
        return entry["bbox"]
    return to_rle(entry["segmentation"], size)


def empty_masks(matches: Matches, results: Sequence[dict]) -> int:
    """Returns how many of the detections have a mask without a pixel; 0 where boxes are matched."""
    if matches.iou_type == "bbox":
        return 0
    return sum(int(coco_mask.area(_shape(results[i], "segm"))) == 0 for i in matches.result.tolist())


def to_rle(segmentation: list | dict, size: tuple[int, int]) -> dict:
    """Turns polygons, runs or compressed RLE of an image of `size` (H, W) into compressed RLE."""
    if isinstance(segmentation, list):
        return rasterise(segmentation, size)
    if isinstance(segmentation["counts"], list):
        return coco_mask.frPyObjects(segmentation, *size)
    return segmentation


def _overlaps(found: list, shapes: list, crowd: np.ndarray) -> np.ndarray:
    if not found or not shapes:
        return np.zeros((len(found), len(shapes)))
    return np.asarray(coco_mask.iou(found, shapes, crowd.astype(np.uint8).tolist()))  # [d, g]


def _match_image(iou: np.ndarray, same: np.ndarray, crowd: np.ndarray, first: int) -> tuple:
    """Returns columns of `Matches` for the detections of one image, best first; first: index of its first object."""
    count = len(iou)
    matched, ignored = np.full((len(IOU_THRESHOLDS), count), NONE), np.zeros((len(IOU_THRESHOLDS), count), dtype=bool)
    blind, used, used_by_any = np.full(count, NONE), np.zeros((len(IOU_THRESHOLDS), iou.shape[1]), dtype=bool), set()
    for d in np.flatnonzero((iou >= FOREGROUND).any(axis=1)).tolist():
        # crowds last; then the highest IoU, of equal ones the last, as pycocotools chooses
        near = sorted(np.flatnonzero(iou[d] >= FOREGROUND).tolist(), key=lambda g: (crowd[g], -iou[d, g], -g))
        own = [g for g in near if same[d, g]]
        for t, threshold in enumerate(IOU_THRESHOLDS.tolist()):
            g = next((g for g in own if iou[d, g] >= threshold and (crowd[g] or not used[t, g])), None)
            if g is not None:
                used[t, g], matched[t, d], ignored[t, d] = True, first + g, crowd[g]
        free = [g for g in near if crowd[g] or g not in used_by_any]
        if free:
            # an equal overlap goes to its own class
            g = min(free, key=lambda g: (crowd[g], -iou[d, g], not same[d, g]))
            blind[d] = IN_CROWD if crowd[g] else first + g
            used_by_any.add(g)
    return matched, ignored, *_highest(iou, same & ~crowd, first), *_highest(iou, ~same & ~crowd, first), blind


def _highest(iou: np.ndarray, allowed: np.ndarray, first: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns (highest IoU of each detection with the allowed objects, which object): 0 and NONE without any."""
    if not iou.size:
        return np.zeros(len(iou)), np.full(len(iou), NONE)
    among = np.where(allowed, iou, 0.0)
    best = among.argmax(axis=1)
    highest = among[np.arange(len(iou)), best]
    return highest, np.where(highest > 0, first + best, NONE)
