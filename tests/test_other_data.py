"""Data that lies, or is written, in another way than COCO's own: opened, or said what it is and what to do."""

import json

import pytest

from backbone.errors import InputError
from tests.coco_folders import annotation, coco, write_image
from tests.npy_folders import many
from tests.small_runs import call
from tools import check_data
from train_utils.data.opening import KNOWN, open_data
from train_utils.data.options import DataOptions

VIA = {"a.png0": {"filename": "a.png", "size": 0, "regions": [], "file_attributes": {}}}
LABELME = {"version": "5.0.0", "shapes": [], "imagePath": "a.png", "imageData": None}


def write(folder, name, count, images="."):
    """A json of images with a square each, and the images."""
    listed = [{"id": i, "file_name": f"{i}.png", "height": 20, "width": 30} for i in range(1, count + 1)]
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(coco(listed, [annotation(i["id"], i["id"]) for i in listed])))
    for image in listed:
        write_image(folder / images / image["file_name"])
    return path


def test_an_export_for_each_split(tmp_path):
    for split, count, images in (("train", 3, "images"), ("validation", 2, "images/default")):
        write(tmp_path / split, "annotations/instances_default.json", count, images)
    for i in (1, 2, 3):
        write_image(tmp_path / f"images/{i}.png")  # of the same names, and of neither
    splits = open_data(tmp_path)
    assert (len(splits.train), len(splits.val)) == (3, 2)
    assert splits.train.file_name(0) == str(tmp_path / "train/images/1.png")
    assert splits.val.file_name(0) == str(tmp_path / "validation/images/default/1.png")


def test_of_several_folders_the_split_itself_is_taken(tmp_path):
    for folder, count in (("train", 3), ("valid", 2), ("valid-mini", 1)):
        write(tmp_path / folder, "_annotations.coco.json", count)
    splits = open_data(tmp_path)
    assert [len(part) for part in splits[:2]] == [3, 2]
    assert splits.train.describe().endswith("not read: 1 json beside it, valid-mini/_annotations.coco.json")
    (tmp_path / "valid").rename(tmp_path / "valid-large")
    with pytest.raises(InputError) as error:
        open_data(tmp_path)
    listed = "valid-large/_annotations.coco.json, valid-mini/_annotations.coco.json"
    assert f"{tmp_path}: cannot choose between {listed}; give one as --data-path" in str(error.value)


@pytest.mark.parametrize(
    "names, said",
    [
        (["train", "val", "test"], None),
        (["train", "val", "more"], "1 json beside it, more.json"),
        (["train", "test"], "1 json beside it, test.json"),
        (["train2014", "train2017", "val2017"], "1 json beside it, train2014.json"),
    ],
)
def test_jsons_beside_those_that_are_read_are_said(tmp_path, names, said):
    for name in names:
        write(tmp_path, f"{name}.json", 2)
    notes = [part.annotations.notes for part in open_data(tmp_path).by_role().values()]
    assert notes[0] == ((f"not read: {said}",) if said else ())
    assert said is None or notes[1] == (notes[0] if len(names) == 2 else ())  # which both are of one json
    assert said != "1 json beside it, train2014.json" or not open_data(tmp_path, year="2017").train.annotations.notes


@pytest.mark.parametrize("by_id", [("annotations",), ("images", "annotations", "categories")])
def test_objects_by_id_stand_for_lists(tmp_path, by_id):
    path = write(tmp_path / "data", "instances.json", 3)
    content = json.loads(path.read_text())
    lists = {key: list(reversed(content[key])) for key in by_id}  # their order counts, not that of the ids
    plain = open_data(path, "val", val_fraction=1.0).val
    keyed = {key: {str(entry["id"]): entry for entry in entries} for key, entries in lists.items()}
    del keyed["annotations"]["2"]["id"]  # the key is the id
    path.write_text(json.dumps({**content, **keyed}))
    data = open_data(path, "val", val_fraction=1.0).val
    assert "annotations are an object by id, read in its order" in data.describe()
    ids = [data.image_id(i) for i in range(3)]
    assert ids == ([3, 2, 1] if "images" in by_id else [1, 2, 3])
    for i, number in enumerate(ids):
        assert data[i][1]["boxes"].tolist() == plain[number - 1][1]["boxes"].tolist()
    assert sorted(a["id"] for a in data.ground_truth()["annotations"]) == [1, 2, 3]
    assert call(check_data, path, "--output-dir", tmp_path / "out", "--fix", tmp_path / "fixed") < 2
    assert type(json.loads((tmp_path / "fixed/instances.json").read_text())["annotations"]) is list


@pytest.mark.parametrize("sized", [True, False])  # else the json is read item by item
def test_file_names_of_lvis_are_in_its_urls(tmp_path, sized):
    path = write(tmp_path, "lvis_v1_train.json", 2, "images/train2017")
    content = json.loads(path.read_text())
    for image in content["images"]:
        image["coco_url"] = f"http://images.cocodataset.org/train2017/{image.pop('file_name')}"
    if not sized:
        del content["images"][0]["height"]
    path.write_text(json.dumps(content))
    data = open_data(path, "train", val_fraction=0).train
    assert data.file_name(1) == str(tmp_path / "images/train2017/2.png") and data[1][0].shape == (3, 20, 30)
    del content["images"][1]["coco_url"]
    path.write_text(json.dumps(content))
    with pytest.raises(InputError, match="image id 2: file_name None is not a file name"):
        open_data(path)


def test_a_key_that_is_not_the_id_is_named(tmp_path):
    path = write(tmp_path, "instances.json", 1)
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, "annotations": {"7": content["annotations"][0]}}))
    with pytest.raises(InputError, match="annotations: the entry of key '7' has id 1; correct one"):
        open_data(path)


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({"some.yaml": "names: [thing]"}, "some.yaml is a YAML file that names classes, as YOLO's data has one"),
        ({"train/labels/1.txt": "0 0.1 0.1 0.2 0.2"}, "train/labels/ holds .txt files, as YOLO's data has them"),
        ({"train/via.json": json.dumps(VIA)}, "train/via.json is VIA's own json (VGG Image Annotator): export it"),
        ({"1.json": json.dumps(LABELME)}, "it is labelme data, which --dataset labelme opens"),
        ({"x.json": json.dumps([{"id": 1, "data": {}, "annotations": []}])}, "x.json is Label Studio's own json"),
        ({"annotations.xml": "<?xml version='1.0'?><annotations>"}, "annotations.xml is CVAT's XML: export it there"),
        ({"1.xml": "<annotation><object/>"}, "1.xml is VOC's XML, which has boxes alone: masks are needed"),
        ({"1.xml": "<annotation><object><polygon/>"}, "1.xml is LabelMe's older XML, as CVAT writes it: export"),
        ({"1.json": json.dumps({"item": {}, "annotations": []})}, "1.json is Darwin's json of one image (V7): export"),
        ({"export.zip": "PK"}, "export.zip is an archive: unpack it, and give the folder"),
        ({"gt/1.png": None, "pictures/1.png": None}, "gt/ holds images, perhaps masks: call it masks/"),
        (
            {"a/1.png": None, "a/2.png": None, "INDEX.tsv": "1"},
            "2 images are there without annotations: give the folder that holds both (docs/data.md has the layouts)",
        ),
        ({"some.json": "{"}, "some.json is no valid json: download or export it again"),
        ({"read.me": "?"}, "no data set found; looked for"),
    ],
)
def test_what_is_no_data_set_is_named(tmp_path, files, said):
    for name, text in files.items():
        if text is None:
            write_image(tmp_path / name)
        else:
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text(text)
    with pytest.raises(InputError) as error:
        open_data(DataOptions(tmp_path, dataset="coco"))
    assert said in str(error.value)
    assert str(error.value).startswith(f"{tmp_path}: no data set found; ")


def test_a_data_set_that_lies_deeper_is_named(tmp_path):
    for split in ("train", "valid"):
        write(tmp_path / "some/data" / split, "_annotations.coco.json", 2)
    with pytest.raises(InputError, match=f"a data set lies deeper: give {tmp_path / 'some/data'}$"):
        open_data(tmp_path)
    assert len(open_data(tmp_path / "some/data").train) == 2


def test_data_of_another_format_is_named(tmp_path):
    many(tmp_path, 2)
    with pytest.raises(InputError, match="no data set found; it is npy data, which --dataset npy opens$"):
        open_data(tmp_path, dataset="coco")


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("data.yaml", "names: [thing]", "names neither train nor val; write where the images are"),
        ("1.json", json.dumps(LABELME), "it is LabelMe's json of one image: give the folder of the jsons"),
        ("via.json", json.dumps(VIA), "no list of images, annotations, categories; it is VIA's own json"),
        ("results.json", json.dumps([{"image_id": 1, "score": 1}]), "it is a file of results, for validation.py"),
        ("table.csv", "1,2", "not a COCO json, but a table: convert it to COCO"),
        ("a.png", "", "not a COCO json, but an image: give a folder"),
        ("other.json", "[[1]]", "not a COCO instances json: it has no list of images, annotations, categories"),
    ],
)
def test_a_file_that_is_no_data_is_named(tmp_path, name, text, said):
    (tmp_path / name).write_text(text)
    with pytest.raises(InputError) as error:
        open_data(tmp_path / name)
    assert said in str(error.value) and "download" not in str(error.value)


def test_a_folder_that_says_nothing_is_answered_in_a_short_line(tmp_path):
    with pytest.raises(InputError) as error:
        open_data(tmp_path)
    assert str(error.value) == f"{tmp_path}: the folder is empty; {KNOWN}" and len(KNOWN) < 130
    (tmp_path / "read.me").touch()
    with pytest.raises(InputError, match="no data set found; looked for data of coco, .*; --dataset with one of these"):
        open_data(tmp_path)
    with pytest.raises(InputError, match="looked for annotations/instances_train2017.json .* single COCO json$"):
        open_data(tmp_path, dataset="coco")
    with pytest.raises(InputError, match="^--dataset nosuch: auto, coco, .* can be opened$"):
        open_data(tmp_path / "nowhere", dataset="nosuch")  # a slip in the command comes before what lies there
