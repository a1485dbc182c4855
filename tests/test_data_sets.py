"""open_data: layouts are found by themselves, splits are seeded, mistakes are named; label maps."""

import functools
import json
from pathlib import Path

import numpy as np
import pytest

from backbone.errors import InputError
from tests.coco_folders import annotation, coco, many, write
from train_utils.data.labels import LabelMap, coco_names
from train_utils.data.opening import open_data, split_positions


def ids(ds):
    return [ds.image_id(i) for i in range(len(ds))]


def readable(ds):
    return all(ds[i][0].shape == (3, 20, 30) for i in range(len(ds)))


LAYOUTS = {
    "COCO's own": ("annotations/instances_{}2017.json", "{}2017"),
    "COCO's own under images": ("annotations/instances_{}2017.json", "images/{}2017"),
    "flat": ("instances_{}.json", "images"),
    "flat, images beside": ("instances_{}.json", "."),
    "short names": ("annotations/{}.json", "{}"),
    "beside the images": ("{}/_annotations.coco.json", "{}"),
    "folder for each": ("{}/labels.json", "{}/data"),
    "unusual folder of images": ("instances_{}.json", "photos"),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(tmp_path, layout):
    json_name, images = LAYOUTS[layout]
    write(tmp_path, many(3), json_name.format("train"), images.format("train"))
    write(tmp_path, many(2, start=4), json_name.format("val"), images.format("val"))
    splits = open_data(tmp_path)
    assert ids(splits.train) == [1, 2, 3] and ids(splits.val) == [4, 5]
    assert readable(splits.train) and readable(splits.val)
    assert splits.label_map == splits.train.label_map == splits.val.label_map


def test_val_goes_by_other_names_and_test_is_left_alone(tmp_path):
    for role, start in (("train", 1), ("valid", 4), ("test", 7)):
        write(tmp_path, many(3, start), f"{role}/_annotations.coco.json", role)
    splits = open_data(tmp_path)
    assert ids(splits.train) == [1, 2, 3] and ids(splits.val) == [4, 5, 6]


def test_jsons_of_other_tasks_are_not_opened(tmp_path):
    write(tmp_path, many(2), "annotations/instances_train2017.json", "train2017")
    write(tmp_path, many(2), "annotations/instances_val2017.json", "val2017")
    for name in ("captions_train2017", "person_keypoints_train2017", "filtered_train2017"):
        write(tmp_path, many(9), f"annotations/{name}.json", "train2017")
    assert len(open_data(tmp_path).train) == 2


@pytest.mark.parametrize("other", ["captions_train.json", "notes_train.json"])
def test_other_jsons_are_not_opened_where_none_is_called_instances(tmp_path, other):
    write(tmp_path, many(2), "train.json")
    write(tmp_path, many(2), "val.json")
    (tmp_path / other).write_text(json.dumps(many(9) if other.startswith("captions") else {"images": 0}))
    assert len(open_data(tmp_path).train) == 2


def test_the_newest_year_or_the_one_asked_for(tmp_path):
    for year, count in ((2014, 2), (2017, 3)):
        for role in ("train", "val"):
            write(tmp_path, many(count), f"annotations/instances_{role}{year}.json", f"{role}{year}")
    assert len(open_data(tmp_path).train) == 3
    assert len(open_data(tmp_path, year="2014").train) == 2
    with pytest.raises(InputError, match="no json of year 2011"):
        open_data(tmp_path, year="2011")


@pytest.mark.parametrize("json_name", ["instances.json", "annotations/all.json", "labels/labels.json"])
def test_a_single_json_is_split(tmp_path, json_name):
    write(tmp_path, many(10), json_name, "images")
    splits = open_data(tmp_path, seed=3)
    assert len(splits.train) == 8 and len(splits.val) == 2
    assert sorted(ids(splits.train) + ids(splits.val)) == list(range(1, 11))
    assert ids(open_data(tmp_path, seed=3).val) == ids(splits.val)
    assert any(ids(open_data(tmp_path, seed=s).val) != ids(splits.val) for s in range(4, 9))
    assert len(open_data(tmp_path, val_fraction=0.5).val) == 5
    by_path = open_data(tmp_path / json_name, seed=3)
    assert ids(by_path.val) == ids(splits.val) and readable(by_path.train)


def test_the_split_does_not_depend_on_the_order_of_the_json(tmp_path):
    content = many(10)
    write(tmp_path, content)
    before = set(ids(open_data(tmp_path).val))
    content["images"].reverse()
    write(tmp_path, content)
    assert set(ids(open_data(tmp_path).val)) == before


@pytest.mark.parametrize(
    ("count", "fraction", "held_out"), [(2, 0.01, 1), (2, 0.99, 1), (5, 0, 0), (5, 1, 5), (1, 0.2, 0)]
)
def test_sizes_of_the_split(count, fraction, held_out):
    class Numbered:
        def __len__(self):
            return count

        def image_id(self, i):
            return i

    train, val = split_positions(Numbered(), fraction, 0)
    assert len(val) == held_out and sorted([*train, *val]) == list(range(count))


def test_one_split_alone(tmp_path):
    write(tmp_path, many(3), "instances_train.json")
    path = write(tmp_path, many(2, start=4), "instances_val.json")
    (tmp_path / "instances_train.json").write_text('"images" "annotations" broken')
    splits = open_data(tmp_path, split="val")
    assert splits.train is None and ids(splits.val) == [4, 5]
    assert ids(open_data(path, split="val").val) == [4, 5]  # whole, as its name says val


def test_images_without_objects_train_unless_dropped(tmp_path):
    for role in ("train", "val"):
        content = many(4)
        content["annotations"] = [annotation(1, 1), annotation(2, 2, iscrowd=1), annotation(3, 3)]
        write(tmp_path, content, f"instances_{role}.json")
    assert ids(open_data(tmp_path).train) == [1, 2, 3, 4]
    splits = open_data(tmp_path, drop_empty=True)
    assert ids(splits.train) == [1, 3] and ids(splits.val) == [1, 2, 3, 4]
    assert "2 images without objects left out (--drop-empty)" in splits.train.describe()
    assert "left out" not in splits.val.describe()


def test_image_dir(tmp_path):
    write(tmp_path / "images", many(4), "x.json", ".")
    (tmp_path / "data").mkdir()
    (tmp_path / "images" / "x.json").rename(tmp_path / "data" / "x.json")
    with pytest.raises(InputError, match=r"x.json: its images \(as 1.png\) are not in .*--image-dir"):
        open_data(tmp_path / "data")
    assert readable(open_data(tmp_path / "data", image_dir=tmp_path / "images").train)
    with pytest.raises(InputError, match="no such folder"):
        open_data(tmp_path / "data", image_dir=tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"none of its 4 images \(as .*\) is in .*empty; check --image-dir"):
        open_data(tmp_path / "data", image_dir=tmp_path / "empty", split="val")


def test_categories_of_both_jsons_make_the_label_map(tmp_path):
    first = [{"id": 3, "name": "c"}, {"id": 1, "name": "thing"}]
    second = [{"id": 1, "name": "thing"}, {"id": 2, "name": "b"}]
    write(tmp_path, coco(categories=first, annotations=[annotation(category_id=3)]), "instances_train.json")
    write(tmp_path, coco(categories=second), "instances_val.json")
    splits = open_data(tmp_path)
    assert splits.label_map.category_ids == (1, 2, 3) and splits.train[0][1]["labels"].tolist() == [3]
    second[0]["name"] = "another"
    write(tmp_path, coco(categories=second), "instances_val.json")
    with pytest.raises(InputError, match="category 1 is 'thing' in .*train.json but 'another' in .*val.json"):
        open_data(tmp_path)


def test_a_label_map_given(tmp_path):
    write(tmp_path, many(4))
    given = LabelMap([5], [1], ["thing"])
    splits = open_data(tmp_path, label_map=given)
    assert splits.label_map == given and splits.train[0][1]["labels"].tolist() == [5]


def test_shapes_are_drawn_where_asked(tmp_path, monkeypatch):
    from train_utils.data.formats.shapes import make_shapes

    few = functools.partial(make_shapes, train=3, val=2, size=64)
    monkeypatch.setattr("train_utils.data.opening.make_shapes", few)
    monkeypatch.chdir(tmp_path)
    splits = open_data()
    assert len(splits.train) == 3 and len(splits.val) == 2 and (tmp_path / "data" / "shapes").is_dir()
    assert splits.label_map.names == ("rectangle", "ellipse", "triangle")


def test_nothing_to_open_is_named(tmp_path):
    cases = {"nowhere": "no such file", "empty": "the folder is empty", "unknown": "no data set found"}
    (tmp_path / "empty").mkdir()
    (tmp_path / "unknown").mkdir()
    (tmp_path / "unknown" / "readme.txt").write_text("hello")
    (tmp_path / "unknown" / "settings.json").write_text("{}")
    for name, told in cases.items():
        with pytest.raises(InputError, match=told) as error:
            open_data(tmp_path / name)
        assert str(error.value).startswith(str(tmp_path / name)) and "\n" not in str(error.value)


def test_mistakes_are_named(tmp_path):
    write(tmp_path, many(2), "instances_a.json")
    write(tmp_path, many(2), "instances_b.json")
    with pytest.raises(InputError, match="instances_a.json, instances_b.json; give one as --data-path"):
        open_data(tmp_path)
    with pytest.raises(InputError, match="auto, coco, labelme, masks, yolo, voc, npy, packed"):
        open_data(tmp_path, dataset="csv")
    with pytest.raises(InputError, match="not VOC data|VOC"):
        open_data(tmp_path, dataset="voc")
    one = tmp_path / "instances_a.json"
    with pytest.raises(InputError, match="no image is left for validation"):
        open_data(one, val_fraction=0)
    write(tmp_path / "single", many(1), "instances_a.json")
    with pytest.raises(InputError, match="has one image, which cannot be divided .* give validation data beside it"):
        open_data(tmp_path / "single")
    assert len(open_data(tmp_path / "single", split="val", val_fraction=1).val) == 1
    with pytest.raises(InputError, match="--val-fraction 2"):
        open_data(one, val_fraction=2)
    write(tmp_path / "v", many(2), "instances_val.json")
    with pytest.raises(InputError, match="no training data beside the validation data"):
        open_data(tmp_path / "v")
    one.write_text(json.dumps({**many(2), "images": []}))
    with pytest.raises(InputError, match="holds no file_name"):
        open_data(one)


def test_missing_images_are_an_error_of_the_part_that_has_them(tmp_path):
    path = write(tmp_path / "data", many(8))  # the name of tmp_path says test
    splits = open_data(path, val_fraction=0.25)
    Path(splits.train.file_name(4)).unlink()
    said = f"2 of its 6 image files are missing, the first is {splits.train.file_name(1)} .image id "
    Path(splits.train.file_name(1)).unlink()
    with pytest.raises(InputError, match=said + str(splits.train.image_id(1))):
        open_data(path, val_fraction=0.25)
    assert len(open_data(path, val_fraction=0.25, split="val").val) == 2


def test_strict_refuses_what_would_be_skipped(tmp_path):
    content = many(4)
    path = write(tmp_path, content)
    assert open_data(path, strict=True).train.skipped == {}
    content["annotations"] += [annotation(17, 2, segmentation=[]), annotation(9, 2, bbox=[2, 3, 0, 1])]
    write(tmp_path, content)
    assert sum(open_data(path).train.skipped.values()) == 2
    with pytest.raises(InputError, match=r"s.json: --strict: 1 annotation without .*first: id 17\), 1 .*id 9\);"):
        open_data(path, strict=True)


def test_label_map_of_coco():
    labels = LabelMap.from_categories(coco_names())
    assert labels.num_labels == 91 and len(labels) == 80
    assert labels.to_label(90) == 90 and labels.name(90) == "toothbrush"
    assert labels.name(12) == labels.name(0) == labels.name(91) == "N/A" and 12 not in labels.labels()
    renamed = LabelMap.from_categories({**coco_names(), 90: "brush"})
    assert renamed.num_labels == 81 and renamed.to_label(90) == 80


def test_label_map_of_other_data(tmp_path):
    labels = LabelMap.from_categories({40: "b", 7: "a"})
    assert labels.num_labels == 3 and labels.labels() == [1, 2] and labels.category_ids == (7, 40)
    assert all(labels.to_category(labels.to_label(c)) == c for c in labels.category_ids)
    assert LabelMap.from_dict(json.loads(json.dumps(labels.to_dict()))) == labels
    assert labels.has_category(40) and not labels.has_category(1)
    with pytest.raises(KeyError):
        labels.to_label(1)
    (tmp_path / "names.json").write_text('{"2": "y", "1": "x"}')
    assert LabelMap.from_json(tmp_path / "names.json").names == ("x", "y")


@pytest.mark.parametrize(
    "names",
    [[], {"a": "b"}, {"0": "background"}, {}, None, {"a": 1, "b": 1}, {"1": "a", "01": "b"}, {"1": None}, {"1": ["a"]}],
)
def test_wrong_label_names(tmp_path, names):
    (tmp_path / "names.json").write_text(json.dumps(names))
    with pytest.raises(InputError, match="names.json: label"):
        LabelMap.from_json(tmp_path / "names.json")


@pytest.mark.parametrize(
    ("folder", "train", "val", "classes"),
    [("nuclei", 268, 66, 1), ("coco_mini", 80, 79, 80), ("voc_mini/VOCdevkit", 2, 1, 20)],
)
def test_real_data_opens_without_flags(shared_data, folder, train, val, classes):
    splits = open_data(shared_data / folder)
    assert (len(splits.train), len(splits.val), len(splits.label_map)) == (train, val, classes)
    for ds in (splits.train, splits.val):
        image, target = ds[len(ds) - 1]
        assert tuple(image.shape[1:]) == tuple(ds.sizes[len(ds) - 1].tolist()) == target["masks"].size
        boxes = target["boxes"].numpy()
        assert len(boxes) == len(target["masks"]) == len(target["labels"]) > 0
        assert (boxes[:, :2] >= 0).all() and (boxes[:, 2:] > boxes[:, :2]).all()
        assert (boxes[:, 2:] <= np.array(image.shape[:0:-1])).all()


def test_one_real_json(shared_data):
    splits = open_data(shared_data / "nuclei" / "instances_val.json")
    assert (len(splits.train), len(splits.val)) == (53, 13) and splits.train[0][0].shape == (3, 256, 256)
