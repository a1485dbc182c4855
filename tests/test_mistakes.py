"""The kinds of mistakes and their cost by hand, and beside slow plain loops; AP beside pycocotools."""

import math
import re
from types import SimpleNamespace

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given, settings

from tests.spoilt_results import result, spoil
from train_utils.data.formats.shapes import make_shapes
from train_utils.data.opening import open_data
from train_utils.evaluation.mistakes.advice import WORTH, advise, raise_limit, train_on
from train_utils.evaluation.mistakes.average_precision import RECALLS, curves_at, mean_of_known
from train_utils.evaluation.mistakes.confusion import confusion_matrix, most_confused
from train_utils.evaluation.mistakes.crowding import by_crowding, mean_ap
from train_utils.evaluation.mistakes.errors import KINDS, costs, kinds_of, missed_of
from train_utils.evaluation.mistakes.gallery import ASIDE, FINE, Shown
from train_utils.evaluation.mistakes.matching import match
from train_utils.evaluation.mistakes.outlines import border_loops, mask_loops, path_of
from train_utils.evaluation.mistakes.scores import best_f1, best_of_all, calibration, score_to_show
from train_utils.evaluation.numbers import evaluate_results

SIZE = 100


def truth(boxes, images=1, categories=2):
    """A COCO dict of images 1.. of SIZE x SIZE pixels; boxes: (image, category, x, y, w, h, crowd or not)."""
    annotations = [
        {"id": i, "image_id": image, "category_id": category, "bbox": [x, y, w, h], "area": w * h,
         "iscrowd": int(bool(crowd)), "segmentation": [[x, y, x + w, y, x + w, y + h, x, y + h]]}
        for i, (image, category, x, y, w, h, *crowd) in enumerate(boxes, start=1)
    ]  # fmt: skip
    return {
        "images": [{"id": i, "file_name": f"{i}.png", "height": SIZE, "width": SIZE} for i in range(1, images + 1)],
        "annotations": annotations,
        "categories": [{"id": i, "name": f"class {i}"} for i in range(1, categories + 1)],
    }


def found(*boxes):
    """Results; boxes: (image, category, score, x, y, w, h)."""
    return [
        {"image_id": image, "category_id": category, "score": score, "bbox": list(box)}
        for image, category, score, *box in boxes
    ]


TWO = [(1, 1, 0, 0, 20, 20), (1, 2, 50, 50, 20, 20)]
HIT = (1, 2, 0.9, 50, 50, 20, 20)  # of the second of TWO


@pytest.mark.parametrize(
    ("wrong", "kind", "ap", "put_right"),
    [
        ((1, 2, 0.8, 0, 0, 20, 20), "class", 0.5, 1.0),  # becomes a hit of class 1
        ((1, 1, 0.8, 0, 12, 20, 20), "location", 0.5, 1.0),  # IoU 0.25
        ((1, 2, 0.95, 0, 12, 20, 20), "both", 0.25, 0.5),  # IoU 0.25 with class 1; above the hit: precision 1 / 2
        ((1, 2, 0.95, 80, 0, 20, 20), "background", 0.25, 0.5),
        ((1, 2, 0.95, 50, 52, 20, 20), "duplicate", 0.5, 0.5),  # HIT becomes the duplicate, beyond full recall
    ],
)
def test_a_mistake_of_each_kind(wrong, kind, ap, put_right):
    matches = match(truth(TWO), found(HIT, wrong), "bbox")
    cost = costs(matches)
    named = [KINDS[k] for k in kinds_of(matches) if k >= 0]
    assert named == [kind] and cost[kind] == (1, pytest.approx(put_right - ap))
    assert mean_of_known(curves_at(matches, 0).mean(axis=1)) == pytest.approx(ap)
    # the object of class 1 is missed, unless a detection of another class or place lies on it
    covered = kind in ("class", "location")
    assert missed_of(matches, kinds_of(matches)).tolist() == [not covered, False]
    states = Shown(matches, kinds_of(matches), 0.0).object_state.tolist()
    assert states == [KINDS.index(kind if covered else "missed"), FINE]
    assert cost["missed"][0] == (not covered) and cost["false negatives"][0] == 1
    others = {name for name in KINDS if name not in (kind, "missed")}
    assert all(cost[name] == (0, 0.0) for name in others)


def test_a_duplicate_costs_what_it_pushes_down():
    boxes = [(1, 1, 0, 0, 20, 20), (1, 1, 50, 50, 20, 20)]
    results = found((1, 1, 0.9, 0, 0, 20, 20), (1, 1, 0.8, 0, 1, 20, 20), (1, 1, 0.7, 50, 50, 20, 20))
    cost = costs(match(truth(boxes, categories=1), results, "bbox"))
    # precision 1 up to recall 0.5 (51 of the 101 points), 2 / 3 beyond
    assert cost["duplicate"] == (1, pytest.approx(1 - (51 + 50 * 2 / 3) / 101))


def test_put_right_the_better_of_two_stays():
    """A detection of the wrong class on an object that a worse one has found: the worse one goes."""
    results = found((1, 2, 0.9, 0, 0, 20, 20), (1, 1, 0.8, 0, 0, 20, 20), (1, 1, 0.85, 80, 80, 10, 10))
    matches = match(truth([(1, 1, 0, 0, 20, 20)]), results, "bbox")
    cost = costs(matches)
    # now at 0.85 on the background and then the hit: 1 / 2; the hit at 0.9: 1
    assert cost["class"] == (1, pytest.approx(0.5)) and cost["missed"] == (0, 0.0)


def test_put_right_the_worse_of_two_is_neither_right_nor_wrong():
    """Objects A, B, C; A is detected as class 2 and, with a lower score, rightly; B below both; C is missed."""
    some = truth([(1, 1, 0, 0, 20, 20), (1, 1, 50, 50, 20, 20), (1, 1, 0, 70, 20, 20)])
    results = found((1, 2, 0.9, 0, 0, 20, 20), (1, 1, 0.8, 0, 0, 20, 20), (1, 1, 0.7, 50, 50, 20, 20))
    assert costs(match(some, results, "bbox"))["class"] == (1, pytest.approx(0))  # precision 1 to recall 2 / 3, still


def test_of_equal_overlaps_the_last_object_is_taken():
    """As in pycocotools; else the second detection were a duplicate."""
    some = truth([(1, 1, 0, 0, 20, 20), (1, 1, 10, 0, 20, 20)])
    matches = match(some, found((1, 1, 0.9, 5, 0, 20, 20), (1, 1, 0.8, 0, 0, 20, 20)), "bbox")  # IoU 0.6 with both
    assert matches.matched[0].tolist() == [1, 0] and kinds_of(matches).tolist() == [-1, -1]


def test_the_greater_overlap_decides_the_kind():
    boxes = [(1, 1, 0, 0, 20, 20), (1, 2, 0, 10, 20, 20)]
    matches = match(truth(boxes), found((1, 1, 0.9, 0, 9, 20, 20)), "bbox")  # IoU 0.38 with 1, 0.90 with 2
    assert [KINDS[k] for k in kinds_of(matches)] == ["class"]


def test_crowds_are_neither_found_nor_wrong():
    boxes = [(1, 1, 0, 0, 50, 50, True), (1, 1, 60, 60, 20, 20)]
    inside = [(1, 1, 0.9, 5 * i, 5, 20, 20) for i in range(4)]
    matches = match(truth(boxes), found(*inside, (1, 2, 0.9, 5, 5, 20, 20), (1, 1, 0.5, 60, 60, 20, 20)), "bbox")
    cost = costs(matches)
    assert matches.ignored[0].sum() == 4 and cost["background"][0] == 1  # class 2 has no crowd there
    assert confusion_matrix(matches, 0.0).tolist() == [[1, 0, 0], [0, 0, 0], [0, 0, 0]]  # a crowd of any class
    shown = Shown(matches, kinds_of(matches), 0.0)
    assert shown.object_state.tolist() == [ASIDE, FINE] and shown.state.tolist().count(ASIDE) == 4


def test_nothing_found_and_nothing_to_find():
    nothing = match(truth(TWO), [], "bbox")
    cost = costs(nothing)
    assert cost["missed"] == (2, 1.0) and cost["false positives"] == (0, 0.0)
    assert "no detection at all" in advise(nothing, cost, np.zeros((3, 3)), 0.5, ["a", "b"], np.full(2, 9.0))[0]
    assert best_of_all(nothing) is None and math.isnan(calibration(nothing)[1]) and by_crowding(nothing)[0].ap == 0
    empty = match(truth([]), found(HIT), "bbox")
    assert costs(empty)["background"][0] == 1 and math.isnan(costs(empty)["background"][1])
    assert best_of_all(empty) is None and by_crowding(empty) == [] and Shown(empty, kinds_of(empty), 0).mistakes()
    crowd = match(truth([(1, 1, 0, 0, 50, 50, True)]), found((1, 1, 0.9, 0, 0, 9, 9)), "bbox")
    assert math.isnan(mean_ap(crowd)[0]) and kinds_of(crowd).tolist() == [-1]


def test_only_the_images_that_count():
    boxes = [(1, 1, 0, 0, 20, 20), (2, 1, 0, 0, 20, 20)]
    matches = match(truth(boxes, images=2), found((2, 1, 0.9, 0, 0, 20, 20)), "bbox", image_ids=[2])
    assert mean_ap(matches)[1] == pytest.approx(1) and len(matches.crowd) == 1


numbers = st.integers(0, 8)
three, box = st.integers(1, 3), (numbers,) * 4
objects = st.lists(st.tuples(three, three, *box, st.booleans()), max_size=8)
detections = st.lists(st.tuples(three, three, st.sampled_from([0.2, 0.5, 0.6, 0.9]), *box), max_size=12)


@given(objects, detections)
@settings(max_examples=30)
def test_ap_and_kinds_are_those_of_plain_loops(objects, detections):
    """Boxes on a coarse grid, so that overlaps and scores are often equal."""
    some = truth([(i, c, 5 * x, 5 * y, 10 + 5 * w, 10 + 5 * h, crowd) for i, c, x, y, w, h, crowd in objects], 3, 3)
    results = found(*((i, c, s, 5 * x, 5 * y, 10 + 5 * w, 10 + 5 * h) for i, c, s, x, y, w, h in detections))
    matches = match(some, results, "bbox")
    theirs = evaluate_results(some, results, ["bbox"], evaluator="pycocotools")["bbox"]
    each, ap = curves_at(matches, 0).mean(axis=1), mean_ap(matches)
    assert np.nan_to_num(each, nan=-1) == pytest.approx([-1 if v is None else v for v in theirs.per_class.values()])
    assert np.nan_to_num(ap, nan=-1).tolist() == pytest.approx(theirs.stats[:2])
    kinds, cost = plain_kinds(some, results), costs(matches)
    own = {int(matches.result[d]): KINDS[k] for d, k in enumerate(kinds_of(matches)) if k >= 0}
    assert own == kinds
    if not math.isnan(ap[0]):
        for kind in ("class", "location"):
            assert cost[kind][1] == pytest.approx(plain_ap(some, results, kinds, kind) - ap[1])
        for kind in ("both", "duplicate", "background"):
            rest = [r for i, r in enumerate(results) if kinds.get(i) != kind]
            assert cost[kind][1] == pytest.approx(evaluate_results(some, rest, ["bbox"])["bbox"].stats[1] - ap[1])
        assert all(cost[kind][1] > -1e-9 for kind in cost if kind not in ("class", "location"))


def plain_iou(a, b):
    (ax, ay, aw, ah), (bx, by, bw, bh) = a, b
    inter = max(0, min(ax + aw, bx + bw) - max(ax, bx)) * max(0, min(ay + ah, by + bh) - max(ay, by))
    return inter / (aw * ah + bw * bh - inter)


def plain_kinds(some, results):
    """{index of the result: kind} of those that are wrong."""
    taken, kinds = {}, {}
    for i in sorted(range(len(results)), key=lambda i: -results[i]["score"]):
        one = results[i]
        near = [a for a in some["annotations"] if a["image_id"] == one["image_id"]]
        real = [(plain_iou(one["bbox"], a["bbox"]), a["id"], a["category_id"]) for a in near if not a["iscrowd"]]
        own = [(iou, a) for iou, a, category in real if category == one["category_id"]]
        other = max((iou for iou, _, category in real if category != one["category_id"]), default=0)
        free = [pair for pair in own if pair[0] >= 0.5 and pair[1] not in taken]
        if free:
            taken[max(free)[1]] = i
            continue
        crowds = [a["bbox"] for a in near if a["iscrowd"] and a["category_id"] == one["category_id"]]
        if any(inside(one["bbox"], crowd) >= 0.5 for crowd in crowds):
            continue
        best = max(own, default=(0, 0))[0]
        if best >= 0.5:
            kinds[i] = "duplicate"
        elif other >= 0.5:
            kinds[i] = "class"
        else:
            kinds[i] = "location" if best >= 0.1 else "both" if other >= 0.1 else "background"
    return kinds


def inside(a, crowd):
    (ax, ay, aw, ah), (bx, by, bw, bh) = a, crowd
    return max(0, min(ax + aw, bx + bw) - max(ax, bx)) * max(0, min(ay + ah, by + bh) - max(ay, by)) / (aw * ah)


def plain_ap(some, results, kinds, kind):
    """AP where those of a kind are given class and box of the object that they lie on, matched again."""
    real = [a for a in some["annotations"] if not a["iscrowd"]]
    changed, claimed = [], set()
    hits = {}  # object -> result, as pycocotools matches
    order = sorted(range(len(results)), key=lambda i: -results[i]["score"])
    for i in order:
        if i in kinds:
            continue
        near = [a for a in real if all(a[key] == results[i][key] for key in ("image_id", "category_id"))]
        near = [(plain_iou(results[i]["bbox"], a["bbox"]), a["id"]) for a in near]
        free = [pair for pair in near if pair[0] >= 0.5 and pair[1] not in hits]
        if free:
            hits[max(free)[1]] = i
    meant = {i: a for a, i in hits.items()}
    by_id = {a["id"]: a for a in real}
    for i in order:
        one = results[i]
        if kinds.get(i) == kind:
            near = [a for a in real if a["image_id"] == one["image_id"]]
            near = [a for a in near if (a["category_id"] == one["category_id"]) == (kind == "location")]
            meant[i] = max(near, key=lambda a: (plain_iou(one["bbox"], a["bbox"]), -a["id"]))["id"]
        if i not in meant:
            changed.append((i, one))
        elif meant[i] not in claimed:
            claimed.add(meant[i])
            target = by_id[meant[i]]
            changed.append((i, {**one, "category_id": target["category_id"], "bbox": target["bbox"], "hit": True}))
    judged = [(i, one, one.get("hit", False)) for i, one in sorted(changed, key=lambda pair: pair[0])]
    return plain_mean(some, [(one, hit) for i, one, hit in judged if hit or i in kinds])


def plain_mean(some, judged):
    values = []
    for category in (c["id"] for c in some["categories"]):
        count = sum(a["category_id"] == category and not a["iscrowd"] for a in some["annotations"])
        if not count:
            continue
        own = [pair for pair in judged if pair[0]["category_id"] == category]
        own.sort(key=lambda pair: (-pair[0]["score"], pair[0]["image_id"]))
        hits, points = 0, []
        for n, (_, right) in enumerate(own, start=1):
            hits += right
            points.append((hits / count, hits / n))
        values.append(np.mean([max((p for recall, p in points if recall >= r), default=0) for r in RECALLS]))
    return np.mean(values)


def test_the_best_f1_takes_equal_scores_together():
    best = best_f1(np.array([0.5, 0.9, 0.5, 0.2]), np.array([True, True, False, False]), 2)
    assert best == (0.5, pytest.approx(2 / 3), 1.0, pytest.approx(0.8))
    assert best_f1(np.zeros(0), np.zeros(0, dtype=bool), 2) is None
    assert best_f1(np.array([0.5]), np.array([False]), 0) is None


def test_where_nothing_is_right_as_many_are_shown_as_there_are_objects():
    matches = SimpleNamespace(
        score=np.array([0.9, 0.3, 0.8, 0.2]),
        ignored=np.zeros((1, 4), bool),
        crowd=np.array([False, False, False, True]),
    )
    wrong = best_f1(matches.score, np.zeros(4, bool), 3)
    assert wrong.score == 0.9 and wrong.f1 == 0
    score, why = score_to_show(matches, wrong, 0.5)
    assert score == 0.3 and "no detection is right" in why
    right = best_f1(matches.score, np.array([False, True, False, False]), 3)
    assert score_to_show(matches, right, 0.5) == (0.3, "there F1 over all classes is highest")
    assert score_to_show(matches, None, 0.5) == (0.5, "")


def test_calibration_by_hand():
    boxes = [(1, 1, 0, 0, 20, 20), (1, 1, 50, 50, 20, 20)]
    results = found((1, 1, 1.0, 0, 0, 20, 20), (1, 1, 0.85, 80, 0, 20, 20), (1, 1, 0.81, 50, 50, 20, 20))
    bins, error = calibration(match(truth(boxes), results, "bbox"))
    assert [b.count for b in bins] == [0] * 8 + [2, 1] and bins[8].precision == 0.5 and bins[9].score == 1.0
    assert bins[8].score == pytest.approx(0.83) and error == pytest.approx((2 * 0.33 + 0) / 3)


def test_scores_beyond_0_and_1_count_in_the_outer_bins():
    results = found((1, 1, 1e18, 0, 0, 20, 20), (1, 1, -3.0, 80, 0, 20, 20))
    bins, _ = calibration(match(truth(TWO), results, "bbox"))
    assert [b.count for b in bins] == [1] + [0] * 8 + [1] and bins[9].precision == 1


def test_the_confusion_matrix_by_hand():
    boxes = [*TWO, (1, 2, 0, 70, 20, 20)]
    results = found((1, 2, 0.9, 0, 0, 20, 20), (1, 1, 0.8, 0, 0, 20, 20), HIT, (1, 1, 0.1, 0, 70, 20, 20))
    matrix = confusion_matrix(match(truth(boxes), results, "bbox"), 0.5)
    # class 1 was taken for 2; the right detection came too late; class 2 was found once, and missed once
    assert matrix.tolist() == [[0, 1, 0], [0, 1, 1], [1, 0, 0]]
    assert most_confused(matrix, 10) == [(0, 1, 1)]


def test_crowding_groups_by_the_objects_of_an_image():
    boxes = [(1, 1, 0, 0, 20, 20), *((2, 1, 0, 10 * i, 9, 9) for i in range(6)), (1, 1, 50, 50, 40, 40, True)]
    groups = by_crowding(match(truth(boxes, images=3), found((1, 1, 0.9, 0, 0, 20, 20)), "bbox"))
    assert [group[:4] for group in groups] == [("1 object", 1, 1, pytest.approx(1)), ("6 to 15", 1, 6, 0.0)]


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    return open_data(make_shapes(tmp_path_factory.mktemp("shapes") / "data", 1, 40, 96), split="val").val


@pytest.mark.parametrize("iou_type", ["segm", "bbox"])
def test_ap_of_masks_and_boxes_is_that_of_pycocotools(shapes, iou_type):
    some = shapes.ground_truth()
    results = spoil(some)
    matches = match(some, results, iou_type)
    theirs = evaluate_results(some, results, [iou_type], evaluator="pycocotools")[iou_type]
    assert mean_ap(matches) == pytest.approx(theirs.stats[:2], abs=1e-12) and 0.2 < theirs.stats[1] < 0.9
    assert curves_at(matches, 0).mean(axis=1).tolist() == pytest.approx(list(theirs.per_class.values()), abs=1e-12)
    assert all(count for count, _ in costs(matches).values())
    part = np.arange(len(matches.image_ids)) % 2 == 0
    some_ids = [i for i, used in zip(matches.image_ids, part, strict=True) if used]
    theirs = evaluate_results(some, [r for r in results if r["image_id"] in some_ids], [iou_type], some_ids)[iou_type]
    assert mean_ap(matches, part) == pytest.approx(theirs.stats[:2], abs=1e-12)


def test_more_than_100_of_a_class_in_an_image_are_left_out():
    results = found(*((1, 1, 0.9, 80, 0, 20, 20) for _ in range(100)), (1, 1, 0.5, 0, 0, 20, 20), HIT)
    some = truth(TWO)
    theirs = evaluate_results(some, results, ["bbox"], evaluator="pycocotools")["bbox"].stats
    matches = match(some, results, "bbox")
    assert len(matches.score) == 101 and mean_ap(matches) == pytest.approx(theirs[:2])
    assert matches.cut.tolist() == [True, False] and costs(matches)["missed"][0] == 0  # found, and cut
    assert Shown(matches, kinds_of(matches), 0.0).object_state.tolist() == [ASIDE, FINE]
    assert confusion_matrix(matches, 0.0)[:2, 2].tolist() == [0, 0]
    assert "limit (1 of 2 objects)" in raise_limit(matches, 100)[0]
    more = match(some, results, "bbox", max_dets=101)
    assert not more.cut.any() and len(more.score) == 102 and raise_limit(more, 101) == []
    other = found(*((1, 1, 0.9, 80, 0, 20, 20) for _ in range(100)), (1, 1, 0.5, 50, 50, 20, 20))
    assert not match(some, other, "bbox").cut.any()  # of another class than the object


def test_advice_names_what_costs_most(shapes):
    some = shapes.ground_truth()
    results = spoil(some, shares={"right": 0.5, "class": 0.3, "missed": 0.2})
    matches = match(some, results, "segm")
    areas = np.array([some["annotations"][i]["area"] for i in matches.annotation])
    cost, matrix = costs(matches), confusion_matrix(matches, 0.3)
    lines = advise(matches, cost, matrix, 0.3, ["a", "b", "c"], areas)
    dear = [kind for kind in sorted(KINDS, key=lambda kind: -cost[kind][1]) if cost[kind][1] >= WORTH]
    assert [line.split()[0] for line in lines] == dear[:4] and {"class", "missed"} <= set(dear)
    assert re.search(r"Of detections with a score of 0.300 or more: \w taken for", lines[dear.index("class")])
    assert "--" in lines[dear.index("missed")]
    assert advise(matches, dict.fromkeys(cost, (1, WORTH - 0.001)), matrix, 0.3, ["a", "b", "c"], areas) == []


@pytest.mark.parametrize(("score", "area", "said"), [
    (0.9, (1000, 2000), ["100% of them with a score of 0.5", "100% of the objects that are missed are smaller"]),
    (0.9, (1000, 1000), ["100% of them with a score of 0.5", "not even with low scores"]),  # as all objects are
    (0.1, (1024, 2000), ["nearly all with scores below 0.5", "not even with low scores"]),
])  # fmt: skip
def test_advice_looks_at_scores_and_sizes(score, area, said):
    matches = match(truth(TWO), found((1, 1, score, 80, 0, 9, 9), HIT), "bbox")
    cost = dict.fromkeys(KINDS, (1, 0.0)) | {"background": (1, 0.5), "missed": (1, 0.4)}
    lines = advise(matches, cost, np.zeros((3, 3)), 0.3, ["a", "b"], np.array(area))
    assert len(lines) == 2 and all(part in line for part, line in zip(said, lines, strict=True))
    lines = advise(matches, cost, np.zeros((3, 3)), 0.3, ["a", "b"], np.array(area), per_image=1)
    assert "100% of the objects that are missed lie in images with 1 detection, all that the model may" in lines[1]
    last = "100% are right. Give a higher --box-detections-per-img" if score > 0.5 else "0% are right."
    assert f"of the quarter with the lowest scores {last}" in lines[1]
    assert ("A higher --box-detections-per-img would find little: 100% of" in lines[1]) == (score < 0.5)


@pytest.mark.parametrize(("epochs", "steps", "said"), [
    ([2.0, 1.0, 0.94], 12, "loss 0.940 in the last 12 of 36 steps, 1.000 in the 12 before"),
    ([2.0, 1.0, 0.96], 12, None),
    ([2.0, 1.0, 1.5], 12, None),
    ([2.0, float("nan"), 1.5], 12, "loss 1.500 in the last 12 of 24 steps"),
    ([2.0, 2.0, 1.0], 4, None),  # so few steps say nothing
    ([3.0, 2.0, 1.0], 7, "loss 1.300 in the last 10 of 21 steps, 2.600 in the 10 before"),
    ([], 12, None),
])  # fmt: skip
def test_advice_is_first_to_train_on_while_the_loss_falls(epochs, steps, said):
    curve = torch.tensor([(loss, 0.01) for loss in epochs for _ in range(steps)], dtype=torch.float64)
    lines = train_on({"curve": curve, "steps_per_epoch": steps})
    assert len(lines) == bool(said) and (said or "") in "".join(lines)
    assert train_on({}) == []


def test_outlines_go_around_the_set_pixels():
    mask = np.zeros((5, 6), dtype=bool)
    mask[1:4, 1:5], mask[2, 2] = True, False
    loops = mask_loops(mask, (10, 20, 16, 25), 2.0)
    assert [sorted(map(tuple, loop)) for loop in loops][0] == [(22, 42), (22, 48), (30, 42), (30, 48)]
    rng = np.random.default_rng(0)
    for _ in range(20):  # the area inside all loops, holes less, is that of the mask
        mask = rng.random((6, 7)) < 0.5
        areas = [
            np.sum(loop[:, 0] * np.roll(loop[:, 1], -1) - np.roll(loop[:, 0], -1) * loop[:, 1]) / 2
            for loop in border_loops(mask)
        ]
        assert sum(areas) == mask.sum()


def test_stairs_of_a_mask_that_is_drawn_larger_are_a_line():
    (loop,) = mask_loops(np.tri(8), (0, 0, 8, 8), 10.0)
    assert len(loop) <= 5


def test_an_outline_that_vanishes_is_a_box():
    one = result(truth([(1, 1, 40, 40, 2, 1)])["annotations"][0], (SIZE, SIZE), 0.5)
    assert path_of(one, "segm", (SIZE, SIZE), 1.0).startswith("M40 40l")
    assert path_of({"bbox": [10, 20, 30, 40]}, "bbox", (SIZE, SIZE), 0.5) == "M5 10l15 0 0 20-15 0z"
