"""Annotations packed in batches: exactly what checking them one by one gives, in every mixture."""

import json

import numpy as np
import pytest

from backbone.errors import InputError
from my_dataset_coco import CocoDataset
from tests.coco_folders import annotation, coco, square
from train_utils.data.formats.coco import packer as annotation_packer
from train_utils.data.formats.coco import reading as coco_annotations
from train_utils.data.formats.coco.reading import read_annotations
from train_utils.data.masks import HUNDREDTHS, POLYGON, RLE, pack_polygons, unpack_polygon
from train_utils.io import json_stream

IMAGES = [{"id": i, "file_name": f"{i}.png", "height": 20 + i, "width": 30} for i in range(7)]
FINE = [
    {},
    {"segmentation": [*square(), *square(12)]},
    {"segmentation": [[0.01, 0.07, 29.99, 0, 3, 19.13]]},
    {"segmentation": [[1 / 3, 2, 3, 4, 5, 6.5]]},
    {"segmentation": [[-1, 2, 3, 4, 5, 6]]},
    {"bbox": [-4, -4, 9, 9.5]},
    {"segmentation": [[0, 0, 299, 0, 5, 5]]},
    {"area": None},
    {"area": 12.345},
    {"bbox": None},
    {"iscrowd": None},
    {"id": None},
    {"id": lambda n: 7.0 + n},
    {"category_id": 1.0},
    {"image_id": 3.0},
    {"segmentation": square()[0]},
    {"id": lambda n: f"a{n}"},
    {"id": lambda n: -n},
    {"id": lambda n: 10**30 + n},
    {"image_id": "3"},
    {"category_id": "1"},
    {"segmentation": [[1, 1, 5, 5], *square()]},
    {"segmentation": [["1", "2", "3", "4", "9", "1"]]},
]
SKIPPED = [
    {"bbox": [2, 3, 0, 10]},
    {"bbox": [30, 3, 10, 10]},
    {"bbox": [29.9999999, 3, 1e-9, 10]},
    {"segmentation": None},
    {"segmentation": [[1, 1, 5, 5]]},
    {"image_id": 99},
    {"bbox": [2, -10, 5, 10]},
    {"segmentation": []},
    {"segmentation": [[1, 1, 2, 2, 3, 4, 5]]},
    {"segmentation": [*square(), [1, 1, 2]]},
    {"segmentation": square(30)},
    {"segmentation": [[1, 1, 5, 1, 9, 1]]},
    {"segmentation": [[-3, 5, -1, 5, -1, 9]]},
    {"image_id": "99"},
]
WRONG = [
    {"bbox": [1, 2, 3]},
    {"bbox": [1, 2, 3, True]},
    {"bbox": [1, 2, 1e308, 3]},
    {"bbox": [1, 2, 3, 10**400]},
    {"area": float("nan")},
    {"area": "x"},
    {"area": True},
    {"category_id": 2},
    {"category_id": None},
    {"iscrowd": 2},
    {"segmentation": [[1, 1, 300 + 7 * 10 + 1, 5, 5, 5]]},
    {"segmentation": [[1, 1, float("inf"), 5, 5, 5]]},
    {"segmentation": [[1, 1, float("nan"), 5, 5, 5]]},
    {"segmentation": None, "bbox": None},
    {"segmentation": "x"},
    {"segmentation": [[1, 1, 2, 2, 3, "x"]]},
    {"segmentation": [[1, 1, None, 2, 3, 3]]},
    {"image_id": 1.5},
    {"segmentation": [[1e308] * 6]},
    {"segmentation": [[1, 1, 2], [1, 1, float("nan"), 5, 5, 5]]},
]


def some(rng, forms, count):
    picked = [forms[i] for i in rng.integers(len(forms), size=count)]
    return [
        annotation(
            **{"i": n + 100, "image_id": int(rng.integers(7))}
            | {"i" if k == "id" else k: v(n) if callable(v) else v for k, v in form.items()}
        )
        for n, form in enumerate(picked)
    ]


def read_both_ways(path, monkeypatch, streamed=True):
    """What batches give, and what single annotations give; a message where it is an error."""
    results = []
    for one_by_one in (False, True):
        with monkeypatch.context() as patch:
            if one_by_one:
                patch.setattr(
                    annotation_packer._Plain, "take", lambda self, batch, _: list(enumerate(batch, self.start))
                )
            raw = None if streamed else json.loads(path.read_text())
            try:
                results.append(read_annotations(path, raw=raw))
            except InputError as error:
                results.append(str(error))
    return results


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("streamed", [True, False])
def test_batches_equal_single_annotations(tmp_path, monkeypatch, seed, streamed):
    monkeypatch.setattr(json_stream, "BATCH", 8)
    monkeypatch.setattr(coco_annotations, "BATCH", 8)
    rng = np.random.default_rng(seed)
    path = tmp_path / "instances.json"
    path.write_text(json.dumps(coco(IMAGES, some(rng, FINE * 4 + SKIPPED, 60))))
    batch, single = read_both_ways(path, monkeypatch, streamed)
    assert list(batch.skipped.items()) == list(single.skipped.items()) and sum(batch.skipped.values())
    assert batch.first_skipped == single.first_skipped and batch.first_skipped.keys() == batch.skipped.keys()
    assert set(np.unique(batch.masks.kinds)) == {HUNDREDTHS, POLYGON}
    for name in ("first", "annotation_ids", "category_ids", "iscrowd", "boxes"):
        assert np.array_equal(getattr(batch, name), getattr(single, name)), name
    for name in ("kinds", "first_part"):
        assert np.array_equal(getattr(batch.masks, name), getattr(single.masks, name)), name
    assert np.array_equal(batch.areas, single.areas, equal_nan=True)
    assert np.array_equal(batch.masks.parts.first, single.masks.parts.first)
    assert np.array_equal(batch.masks.parts.values, single.masks.parts.values)


@pytest.mark.parametrize("form", range(len(WRONG)))
def test_the_first_mistake_is_named(tmp_path, monkeypatch, form):
    rng = np.random.default_rng(form)
    annotations = [{**a, "id": i} for i, a in enumerate(some(rng, FINE, 20))]
    for position in (5, 11):
        other = WRONG[form] if position == 5 else WRONG[form - 1]
        annotations[position] = annotation(**{"i": 100 + position, "image_id": 6, **other})
    path = tmp_path / "instances.json"
    path.write_text(json.dumps(coco(IMAGES, annotations)))
    batch, single = read_both_ways(path, monkeypatch)
    assert batch == single and "annotation 105: " in batch


@pytest.mark.parametrize("streamed", [True, False])
@pytest.mark.parametrize("other", [{}, {"segmentation": []}, {"image_id": 99}])
def test_an_annotation_id_that_stands_twice_is_named(tmp_path, monkeypatch, streamed, other):
    monkeypatch.setattr(coco_annotations, "BATCH", 2)
    monkeypatch.setattr(json_stream, "BATCH", 2)
    path = tmp_path / "instances.json"
    for twice, said in (("u7", "u7"), (5, "5"), (0, "0")):
        annotations = [annotation(i, 2) for i in (1, None, None, twice)] + [annotation(**{"i": twice, **other})]
        path.write_text(json.dumps(coco(IMAGES, annotations)))
        with pytest.raises(InputError, match=f"instances.json: annotation id {said} is duplicated"):
            read_annotations(path, raw=None if streamed else json.loads(path.read_text()))


def test_the_first_skipped_is_named_by_its_id_or_its_place(tmp_path):
    forms = [{}, {"i": None, "segmentation": []}, {"i": "u", "bbox": [2, 3, 0, 10]}, {"segmentation": []}]
    annotations = [annotation(**{"i": i, "image_id": 2, **form}) for i, form in enumerate(forms)]
    path = tmp_path / "instances.json"
    path.write_text(json.dumps(coco(IMAGES, annotations)))
    assert list(read_annotations(path).first_skipped.values()) == ["number 2 of the list, without id", "id u"]


@pytest.mark.parametrize("form", [form for form in SKIPPED if "image_id" not in form])
def test_an_unlisted_category_is_named_also_where_the_annotation_would_be_skipped(tmp_path, form):
    path = tmp_path / "instances.json"
    path.write_text(json.dumps(coco(IMAGES, [annotation(1, 2), annotation(**{"i": 4, "category_id": 9, **form})])))
    with pytest.raises(InputError, match="annotation 4: category_id 9 is not in the json's list"):
        read_annotations(path)


def test_annotations_keep_the_jsons_order_within_an_image(tmp_path):
    forms = [{"segmentation": {"size": [25, 30], "counts": [100, 50, 600]}}, {}, {"bbox": None}]
    annotations = [annotation(i, 5 - i % 2, **(forms[i % 3] if i % 2 == 0 else {})) for i in range(1, 30)]
    path = tmp_path / "instances.json"
    path.write_text(json.dumps(coco(IMAGES, annotations)))
    packed = read_annotations(path)
    assert packed.annotation_ids.tolist() == [*range(1, 30, 2), *range(2, 30, 2)] and RLE in packed.masks.kinds


def test_annotations_before_images_and_no_images(tmp_path):
    whole = coco(IMAGES, [annotation(3, 2)])
    path = tmp_path / "instances.json"
    path.write_text(json.dumps({key: whole[key] for key in ("annotations", "categories", "images")}))
    assert read_annotations(path).annotation_ids.tolist() == [3]
    path.write_text(json.dumps({**whole, "images": []}))
    assert read_annotations(path).skipped == {"annotations of images that are not listed": 1}
    assert len(CocoDataset(path, tmp_path)) == 0


@pytest.mark.parametrize(
    ("numbers", "kind"),
    [
        ([0, 655.35, 0.1, 0.29, 1.15, 4.35], HUNDREDTHS),
        ([0, 655.36], POLYGON),
        ([-0.01, 3], POLYGON),
        ([0.125, 3], POLYGON),
        ([0.1 + 0.2, 1], POLYGON),
    ],
)
def test_packed_polygons_lose_nothing(numbers, kind):
    found, (part,) = pack_polygons([np.array(numbers, dtype=np.float64)])
    assert found == kind and unpack_polygon(kind, part).tolist() == numbers
    assert len(part) == len(numbers) * (2 if kind == HUNDREDTHS else 8)


def test_every_hundredth_is_exact():
    numbers = np.array([float(f"{i // 100}.{i % 100:02d}") for i in range(65536)])
    kind, (part,) = pack_polygons([numbers])
    assert kind == HUNDREDTHS and (unpack_polygon(kind, part) == numbers).all()
