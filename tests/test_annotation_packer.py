"""Annotations packed in batches: exactly what checking them one by one gives, in every mixture."""

import json

import numpy as np
import pytest

from backbone.errors import InputError
from my_dataset_coco import CocoDataset
from tests.coco_folders import annotation, coco, square
from train_utils.data.formats.coco import packer as annotation_packer
from train_utils.data.formats.coco import reading as coco_annotations
from train_utils.data.formats.coco.polygon_text import take_out
from train_utils.data.formats.coco.reading import read_annotations
from train_utils.data.formats.coco.rle_text import with_counts
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
TEXT = [form for form in (*FINE, *SKIPPED) if not {"area", "bbox", "iscrowd", "id", "category_id"} & form.keys()]
TEXT += [{"bbox": [2, 3, 0, 10]}, {"bbox": [30, 3, 10, 10]}, {"area": 12.345}, {"iscrowd": 1}]
TEXT += [{"segmentation": {"size": [25, 30], "counts": [100, 50, 600]}, "image_id": 5}]
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
                patch.setattr(annotation_packer._Plain, "take", lambda self, annotations, _: annotations)
                patch.setattr(annotation_packer, "take_out", lambda text: None)
                patch.setattr(annotation_packer, "with_counts", lambda text: None)
            raw = None if streamed else json.loads(path.read_text())
            try:
                results.append(read_annotations(path, raw=raw))
            except InputError as error:
                results.append(str(error))
    return results


def assert_same(batch, single):
    assert list(batch.skipped.items()) == list(single.skipped.items())
    assert batch.first_skipped == single.first_skipped and batch.first_skipped.keys() == batch.skipped.keys()
    assert set(np.unique(batch.masks.kinds)) >= {HUNDREDTHS, POLYGON}
    for name in ("first", "annotation_ids", "category_ids", "iscrowd", "boxes"):
        assert np.array_equal(getattr(batch, name), getattr(single, name)), name
    for name in ("kinds", "first_part"):
        assert np.array_equal(getattr(batch.masks, name), getattr(single.masks, name)), name
    assert np.array_equal(batch.areas, single.areas, equal_nan=True)
    assert np.array_equal(batch.masks.parts.first, single.masks.parts.first)
    assert np.array_equal(batch.masks.parts.values, single.masks.parts.values)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("streamed", [True, False])
def test_batches_equal_single_annotations(tmp_path, monkeypatch, seed, streamed):
    for module, name, value in (
        (json_stream, "BATCH", 8),
        (json_stream, "PORTION", 1500),
        (coco_annotations, "BATCH", 8),
    ):
        monkeypatch.setattr(module, name, value)
    rng = np.random.default_rng(seed)
    path = tmp_path / "instances.json"
    path.write_text(json.dumps(coco(IMAGES, some(rng, FINE * 4 + SKIPPED, 60))))
    batch, single = read_both_ways(path, monkeypatch, streamed)
    assert sum(batch.skipped.values())
    assert_same(batch, single)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("spelling", [{}, {"separators": (",", ":")}, {"indent": 1}])
def test_polygons_from_text_equal_single_annotations(tmp_path, monkeypatch, seed, spelling):
    rng, sizes, from_text = np.random.default_rng(seed), [], annotation_packer._FromText.take
    annotations = some(rng, [{}] * 4 * len(TEXT) + TEXT, 150)
    for a in annotations:
        if a.get("segmentation") == square():
            polygons = [rng.integers(0, 2000, 2 * n) for n in rng.integers(3, 9, rng.integers(1, 4))]
            a["segmentation"] = [(numbers / 100).tolist() for numbers in polygons]

    def take(self, *given):
        others = from_text(self, *given)
        sizes.append(len(self.taken))
        return others

    path = tmp_path / "instances.json"
    path.write_text(json.dumps(coco(IMAGES, annotations), **spelling))
    monkeypatch.setattr(json_stream, "PORTION", 4000)
    monkeypatch.setattr(annotation_packer._FromText, "take", take)
    assert_same(*read_both_ways(path, monkeypatch))
    assert (len(sizes) > 3 and sum(sizes) > 75) == ("indent" not in spelling)


COUNTED = "0 7 10 655 655.35 0.0 0.5 0.05 0.00 0.10 12.3 99.99 123.45".split()
OTHER = "655.36 700 12.345 -1 -0 1e2 1E-1 0.1e1 1000 65535 1e-400".split()
OTHER += ["1 ", "\n1", " 1.5\t"]
NO_JSON = [
    "01",
    "00.5",
    "1.",
    ".5",
    "1.2.3",
    "1..2",
    "+1",
    "",
    "1 2",
    "1,,2",
    "- 1",
    "0x1",
    "1]",
    "[1",
    "é",
    "1/2",
    "nan",
]
NO_JSON += ["1\x002", "1\x012", "1\n2", "1;2", "1:2"]


@pytest.mark.parametrize("place", [0, 3, 9])
@pytest.mark.parametrize("number", [*COUNTED, *OTHER, *NO_JSON])
def test_numbers_of_a_text_are_those_of_json(number, place):
    numbers = ["1.5", "20", "3.25", "400.01", "5", "66.6", "7.77", "80", "9.9", "0"]
    fine, numbers[place] = ",".join(numbers), number
    odd = ", ".join(numbers)
    text = ", ".join(f'{{"id": {i}, "segmentation": [[{odd if i == 3 else fine}], [{fine}]]}}' for i in range(7))
    taken = take_out(text)
    if number in NO_JSON:
        assert taken is None
        return
    expected = json.loads(f"[{text}]")
    annotations, polygons = taken
    starts = np.cumsum([0, *polygons.lengths]).tolist()
    for i, entry in enumerate(annotations):
        if entry["segmentation"] is json_stream.NAN:
            parts = [polygons.hundredths[starts[r] : starts[r + 1]] / 100 for r in (2 * i, 2 * i + 1)]
            entry["segmentation"] = [part.tolist() for part in parts]
            assert polygons.parsed(i) == entry["segmentation"]
    assert annotations == expected and polygons.plain.all() == (number in COUNTED) and polygons.plain.sum() >= 6


@pytest.mark.parametrize(
    "other",
    [
        '{"id": 1, "id": 2, "segmentation": [[1,2,3,4,5,6]]}',
        '{"segmentation": [[1,2,3,4,5,6]], "segmentation": [[1,2,3,4,5,6]]}',
        '{"of": {"segmentation": [[1,2,3,4,5,6]]}}',
        '{"text": "a \\"segmentation\\": [[1,2,3,4,5,6]]"}',
        '{"segmentation": [[{"k": 1, "k": 2}]]}',
        '{"segmentation": NaN}',
        '{"area": NaN}',
        '{"segmentation": [[1,2,3,4,5,6]',
        '"segmentation": [[1,2,3,4,5,6]]',
        "[]",
    ],
)
def test_a_text_is_not_taken_where_it_may_say_something_else(other):
    plain = '{"id": 1, "segmentation": [[1,2,3,4,5,6]]}'
    assert take_out(f"{plain}, {plain}") is not None
    assert take_out(f"{plain}, {other}, {plain}") is None


RLES = [[100, 50, 600], [0, 750], [750], [0, 1, 7, 10, 99, 3, 630], [3.0, 747], ["3", 747]]


@pytest.mark.parametrize("spelling", [{}, {"separators": (",", ":")}, {"indent": 1}])
def test_rles_from_text_equal_single_annotations(tmp_path, monkeypatch, spelling):
    rng, taken = np.random.default_rng(0), []
    forms = [{"segmentation": {"size": [25, 30], "counts": counts}, "image_id": 5} for counts in RLES * 3]
    forms += [{}, {"segmentation": [[1 / 3, 2, 3, 4, 5, 6.5]]}]
    annotations = some(rng, forms, 120)

    def noted(text):
        found = with_counts(text)
        taken.append(found is not None)
        return found

    path = tmp_path / "instances.json"
    path.write_text(json.dumps(coco(IMAGES, annotations), **spelling))
    monkeypatch.setattr(json_stream, "PORTION", 300)
    monkeypatch.setattr(annotation_packer, "with_counts", noted)
    assert_same(*read_both_ways(path, monkeypatch))
    assert (sum(taken) > 10) == ("indent" not in spelling) and not all(taken)
    wrong = annotation(**{"i": 7, "segmentation": {"size": [25, 30], "counts": [3, 748]}, "image_id": 5})
    path.write_text(json.dumps(coco(IMAGES, [*annotations, wrong, {"id": 8}]), **spelling))
    batch, single = read_both_ways(path, monkeypatch)
    assert batch == single and "annotation 7: RLE does not fit its size" in batch


@pytest.mark.parametrize("between", [",", ", "])
def test_counts_of_a_text_are_those_of_json(between):
    rng = np.random.default_rng(0)
    counts = [[int(rng.integers(10 ** rng.integers(1, 8))) for _ in range(n)] for n in (1, 5, 200)]
    counts += [[0], [9_999_999, 1_000_000, 10, 9, 0]]
    rles = ({"id": i, "segmentation": {"size": [3, 4], "counts": own}} for i, own in enumerate(counts))
    text = (
        ",\n".join(json.dumps(rle, separators=(between, ": ")) for rle in rles) + ', {"id": 9, "segmentation": [[1]]}'
    )
    *found, last = with_counts(text)
    assert last == json.loads(f"[{text}]")[-1] and [entry["id"] for entry in found] == [0, 1, 2, 3, 4]
    assert [entry["segmentation"]["counts"].tolist() for entry in found] == counts


OTHER_COUNTS = "-1 01 00 1.0 1e2 12345678 +1 1/2 1:2 x \u00e9 null [2] 1,,2 1;2".split()


@pytest.mark.parametrize(
    "other",
    [
        *(f'{{"segmentation": {{"counts": [3,{count},3]}}}}' for count in OTHER_COUNTS),
        '{"segmentation": {"counts": []}}',
        '{"segmentation": {"counts": [1,2}}',
        '{"segmentation": {"counts": [1,2]]}}',
        '{"segmentation": {"counts": [1], "counts": [2]}}',
        '{"segmentation": {"of": {"counts": [1,2]}}}',
        '{"counts": [1,2]}',
        '{"area": NaN}',
    ],
)
def test_counts_are_not_taken_where_they_may_be_something_else(other):
    plain = '{"id": 1, "segmentation": {"counts": [1,22,333]}}'
    assert with_counts(f"{plain}, {plain}") is not None
    assert with_counts(f"{plain}, {other}, {plain}") is None


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
