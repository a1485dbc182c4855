"""YOLO segmentation data as Ultralytics and Roboflow lay it out; the part of YAML that a data.yaml uses."""

import os
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from backbone.errors import InputError
from tests.coco_folders import coco, write
from tests.small_runs import call
from tools import check_data, npy_to_coco
from train_utils.data.formats import found, yolo
from train_utils.data.formats.yolo.data_yaml import read_yaml
from train_utils.data.opening import find_data, open_data
from train_utils.data.options import DataOptions
from train_utils.io import array_cache
from train_utils.show.image_lists import find_images

TRIANGLE = "0 0.1 0.1 0.5 0.1 0.5 0.5"  # of an image of 20 x 40 (H, W): corners (4, 2), (20, 2), (20, 10)
NAMES = "names: [cell, dirt]\n"


def picture(path, size=(20, 40)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((*size, 3), 80, np.uint8)).save(path)


def pair(images, labels, name="1", text=TRIANGLE):
    picture(images / f"{name}.png")
    labels.mkdir(parents=True, exist_ok=True)
    (labels / f"{name}.txt").write_text(text)


def make(root, yaml="train: images/train\nval: images/val\n" + NAMES, text=TRIANGLE):
    """Ultralytics' layout: image 1 for training, with this txt, and 2 for validation."""
    for number, split in enumerate(("train", "val"), 1):
        pair(root / "images" / split, root / "labels" / split, str(number), text if split == "train" else TRIANGLE)
    (root / "data.yaml").write_text(yaml)


def numbers(splits):
    return [splits.train.image_id(0), splits.val.image_id(0)]


def test_an_object_is_its_polygon(tmp_path):
    make(tmp_path, text=f"1 0.5 0.5 0.75 0.5 0.75 1 0.5 1\r\n\n{TRIANGLE}\n")
    data = open_data(tmp_path).train
    target = data.target(0)
    assert target["labels"].tolist() == [2, 1] and target["boxes"].tolist() == [[20, 10, 30, 20], [4, 2, 20, 10]]
    assert target["masks"].to_masks()[0].nonzero().tolist() == [[y, x] for y in range(10, 20) for x in range(20, 30)]
    assert data.annotations.categories == {0: "cell", 1: "dirt"}
    assert data.ground_truth()["annotations"][1]["segmentation"] == [[4, 2, 20, 2, 20, 10]]


LAYOUTS = {
    "folders": "train: images/train\nval: images/val\n",
    "path": "path: .\ntrain: images/train # comment\nval:\n  - images/val\n",
    "a path of another machine": "path: ../datasets/mine\ntrain: images/train\nval: images/val\n",
    "outside": "path: /nowhere\ntrain: ../images/train\nval: ../images/val\n",
    "backslashes": "train: images\\train\nval: images\\val\n",
    "txt": "train: train.txt\nval: [val.txt]\n",
    "windows": "train: C:\\Users\\me\\d\\images\\train\nval: /home/me/d/images/val\n",
    "test": "train: images/train\ntest: images/val\n",
    "other words": "Train: images/train\nvalid: images/val\n",
    "none": "",
    "older CVAT's txt": "train: cvat.txt\nval: images/val\n",
    "a txt of another machine": "train: images/train\nval: colab.txt\n",
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_where_splits_are(tmp_path, layout):
    make(tmp_path, LAYOUTS[layout] + NAMES)
    (tmp_path / "train.txt").write_text("./images/train/1.png\n\n")
    (tmp_path / "val.txt").write_text("images/val/2.png")
    (tmp_path / "cvat.txt").write_text("data/images/train/1.png\r\n")
    (tmp_path / "colab.txt").write_text("/content/data/images/val/2.png\n")
    assert find_data(DataOptions(tmp_path))[1] == find_data(DataOptions(tmp_path / "data.yaml"))[1] == "yolo"
    (tmp_path / "labels" / "train" / "1.txt").rename(tmp_path / "labels" / "train" / "1.TXT")
    for path in (tmp_path, tmp_path / "data.yaml"):
        splits = open_data(path)
        assert splits.train.object_counts().tolist() == [1]
        assert ("of another machine is" in splits.val.describe()) == (layout == "windows")
        told = "1 file name differs" in splits.train.describe() + splits.val.describe()
        assert told == (layout in ("older CVAT's txt", "a txt of another machine"))
        assert numbers(splits) == [1, 2] and splits.label_map.names == ("cell", "dirt")


def test_what_lies_outside_the_yamls_folder_is_named(tmp_path):
    make(tmp_path / "data")
    (tmp_path / "cfg").mkdir()
    yaml, disk = tmp_path / "cfg" / "data.yaml", tmp_path / "disk"
    yaml.write_text("path: ../data\ntrain: images/train\n" + NAMES)
    with pytest.raises(
        InputError, match=r"images/train is \S*/data/images/train, outside of .*; put the yaml into the"
    ):
        open_data(yaml)
    (tmp_path / "data" / "images").rename(disk)
    (tmp_path / "data" / "images").symlink_to(disk)
    with pytest.raises(InputError, match=r"images/train is a link out of .*; give --follow-links"):
        open_data(tmp_path / "data")
    assert numbers(open_data(tmp_path / "data", follow_links=True)) == [1, 2]


def test_images_may_be_arrays(tmp_path):
    make(tmp_path)
    (images := tmp_path / "images" / "train").joinpath("1.png").unlink()
    np.save(images / "1.npy", np.full((20, 40, 3), 9, np.uint8))
    assert open_data(tmp_path).train.image(0).unique().tolist() == [9] and find_images([str(images)]) == [
        images / "1.npy"
    ]
    picture(images / "1.png")  # beside which the array is something else
    assert open_data(tmp_path).train.file_name(0).endswith("1.png") and find_images([str(images)]) == [images / "1.png"]


def test_folders_in_capitals_are_to_be_renamed(tmp_path):
    pair(tmp_path / "Images", tmp_path / "Labels")
    with pytest.raises(InputError, match="Images and Labels hold YOLO data; call them images and labels"):
        open_data(tmp_path)


@pytest.mark.parametrize("form", ["images/{}", "{}/images"])
def test_data_without_a_yaml(tmp_path, form):
    for number, split in enumerate(("train", "test"), 1):
        images = tmp_path / form.format(split)
        pair(images, tmp_path / form.format(split).replace("images", "labels"), str(number))
    splits = open_data(tmp_path)
    assert numbers(splits) == [1, 2] and splits.label_map.names == ("class_0",)
    (tmp_path / "classes.txt").write_text("cell\ndirt\n")
    assert open_data(tmp_path).train.annotations.categories == {0: "cell", 1: "dirt"}


def test_a_whole_without_a_yaml_and_images_beside_their_txt(tmp_path):
    pair(tmp_path / "flat" / "images", tmp_path / "flat" / "labels")
    assert len(open_data(tmp_path / "flat", "train", val_fraction=0).train) == 1
    pair(tmp_path / "beside" / "all", tmp_path / "beside" / "all")
    (tmp_path / "beside" / "my.yaml").write_text("train: all\n" + NAMES)
    assert open_data(tmp_path / "beside", "train", val_fraction=0).train.object_counts().tolist() == [1]


def test_images_without_a_txt_are_negatives_and_other_leftovers_are_said(tmp_path):
    make(tmp_path, text=f"{TRIANGLE}\n{TRIANGLE}\n1 0.5 0.5 0.2 0.4\n0 0.1 0.1 0.1 0.1 0.1 0.1\n")
    picture(tmp_path / "images" / "train" / "3.png")
    pair(tmp_path / "images" / "train", tmp_path / "labels" / "train", "4", "")
    (tmp_path / "labels" / "train" / "9.txt").write_text(TRIANGLE)
    data = open_data(tmp_path).train
    assert data.object_counts().tolist() == [1, 0, 0]
    assert data.skipped == {
        "annotations without an image": 1,
        "lines that are there twice": 1,
        "annotations without segmentation": 1,
        "annotations whose polygons have no area in the image": 1,
    }
    assert data.first_skipped["annotations without segmentation"] == "labels/train/1.txt: line 3"
    assert "background: 1 box without a mask" in data.describe()
    assert data.describe().endswith("1 image has no txt, and so no objects")
    box = data.ground_truth(unmasked=True)["annotations"][1]
    assert np.allclose(box.pop("bbox"), [16, 6, 8, 8]) and "segmentation" not in box and box["category_id"] == 1
    with pytest.raises(InputError, match="--strict: 1 annotation without an image"):
        open_data(tmp_path, strict=True)


def test_corners_a_little_outside_are_cut_and_said(tmp_path):
    make(tmp_path, text="0 0.5 0.5 1.04 0.5 1.04 1.01 0.5 1.01")
    data = open_data(tmp_path).train
    target = data.target(0)
    assert target["boxes"].tolist() == [[20, 10, 40, 20]] and target["masks"].areas().tolist() == [200]
    assert data.describe().endswith("1 polygon is cut at the image's edge, reaching past it by 4.00% at most")


def test_the_same_images_in_both_splits_are_said(tmp_path):
    make(tmp_path, "train: images/train\nval: images/train\n" + NAMES)
    splits = open_data(tmp_path)
    assert "same images" in splits.val.describe() and "same images" not in splits.train.describe()


def test_images_of_one_name_in_several_folders_are_converted_apart(tmp_path):
    make(tmp_path / "data", "train: [images/train, images/more]\n" + NAMES)
    pair(tmp_path / "data" / "images" / "more", tmp_path / "data" / "labels" / "more", "1", "")
    picture(tmp_path / "data" / "images" / "more" / "1.png", (10, 10))
    assert call(npy_to_coco, tmp_path / "data", tmp_path / "json", "--dataset", "yolo") == 0
    data = open_data(tmp_path / "json", "train", val_fraction=0).train
    assert data.sizes.tolist() == [[20, 40], [10, 10]] and [data[i][0].shape[1] for i in (0, 1)] == [20, 10]


def test_missing_images_of_a_list_are_refused(tmp_path):
    make(tmp_path, "train: train.txt\nval: images/val\n" + NAMES)
    (tmp_path / "train.txt").write_text("images/train/1.png\nimages/train/7.png\n")
    with pytest.raises(InputError, match="1 of its 2 image files are missing, the first is .*images/train/7.png"):
        open_data(tmp_path)


def test_two_images_of_one_txt_are_refused(tmp_path):
    make(tmp_path)
    picture(tmp_path / "images" / "train" / "1.jpg")
    with pytest.raises(
        InputError, match=r"images/train/1\.jpg and images/train/1\.png have one name but for the ending"
    ):
        open_data(tmp_path)


MISTAKES = {
    "0 0.1 0.1 0.5 0.1 0.5": r"1\.txt: line 1: has 5 numbers behind its class; x y of three corners",
    f"{TRIANGLE}\n0": r"1\.txt: line 2: has 0 numbers behind its class",
    "2 0.1 0.1 0.5 0.1 0.5 0.5": r"1\.txt: line 1: class 2 is none of the 2 classes, 0 to 1 \(cell, dirt\)",
    "0.5 0.1 0.1 0.5 0.1 0.5 0.5": r"1\.txt: line 1: class 0\.5 is no whole number from 0",
    "-1 0.1 0.1 0.5 0.1 0.5 0.5": r"1\.txt: line 1: class -1 is no whole number from 0",
    "0 4 2 20 2 20 10": r"1\.txt: line 1: 20 is no share of the image's side: corners go from 0 to 1",
    "0 -0.2 0.1 0.5 0.1 0.5 0.5": r"1\.txt: line 1: -0\.2 is no share",
    "0 nan 0.1 0.5 0.1 0.5 0.5": r"1\.txt: line 1: holds a number that is not finite",
    "cell 0.1 0.1 0.5 0.1 0.5 0.5": r"1\.txt: line 1: 'cell 0\.1 .*' are not numbers",
    "0 0.5 0.5 0.1 0.1\n0 0.2 0.2 0.1 0.1": r"train: all 2 lines of its txt files are boxes of 4 numbers",
}


@pytest.mark.parametrize("text", MISTAKES)
def test_mistakes_name_file_and_line(tmp_path, text):
    make(tmp_path, text=text)
    with pytest.raises(InputError, match=MISTAKES[text]):
        open_data(tmp_path)


def test_the_doctor_names_each(tmp_path, capsys):
    make(tmp_path / "data", text="0 1\n7 0.1 0.1 0.5 0.1 0.5 0.5\n" + TRIANGLE)
    assert call(check_data, tmp_path / "data", "--output-dir", tmp_path / "out") == 2
    said = capsys.readouterr().out
    assert "line 1: has 1 number behind" in said and "line 2: class 7" in said


YAMLS = {
    "train: images/nowhere\n" + NAMES: r"data\.yaml: train: images/nowhere is not there; looked for .*images/nowhere",
    "train: images/train\nval: valid\n" + NAMES: r"val: valid is not there; .*; without val in the yaml a share of the",
    "train: images/train\nval: empty\n" + NAMES: r"empty: no image found; put them there, or take it out of the yaml",
    "train: ../../../etc\n" + NAMES: r"data\.yaml: train: \.\./\.\./\.\./etc is not there",
    "test: []\nkpt: 1\n": r"data\.yaml: has no names of the classes",
    "train: images/train\n": r"data\.yaml: has no names of the classes",
    "train: images/train\nnc: 3\n" + NAMES: r"data\.yaml: nc is 3, but names has 2 classes",
    "train: images/train\nnc: x\n": r"nc 'x' is no number of classes",
    "train: images/train\nnames: {a: b}\n": r"names: 'a': 'b' is no number and name of a class",
    "train: images/train\nnames: []\n": r"names is no list of names",
    "train: images/train\nnames: [a, b\n": r"data\.yaml: line 2: is no list or dict that ends with \]",
    "train: images/train\nnames: &x [a]\n": r"line 2: '&x \[a\]' is YAML that is not read here",
    "train: images/train\nnames:\n  0: a\n  0: b\n": r"line 4: 0 is there twice; keep one of them",
    "train: images/train\ntrain: images/val\n" + NAMES: r"line 2: train is there twice",
    "train: images/train\n\tval: x\n": r"line 2: begins with a tab",
    "train: images/train\nnames\n": r"line 2: is no entry",
    "train: images/train\nkpt_shape: [4, 2]\n" + NAMES: r"data\.yaml: has kpt_shape: pose data .*; export polygons",
    "train: list.txt\n" + NAMES: r"list\.txt: line 1: \.\./x\.png leads out of",
}


@pytest.mark.parametrize("text", YAMLS)
def test_mistakes_of_a_yaml_name_it(tmp_path, text):
    make(tmp_path / "data", text)
    (tmp_path / "data" / "list.txt").write_text("../x.png\n")
    (tmp_path / "data" / "empty").mkdir()
    with pytest.raises(InputError, match=YAMLS[text]):
        open_data(tmp_path / "data", dataset="yolo")


def test_a_class_of_boxes_alone_is_a_class_without_names(tmp_path):
    make(tmp_path, text=TRIANGLE + "\n2 0.5 0.5 0.2 0.2\n")
    (tmp_path / "data.yaml").unlink()
    splits = open_data(tmp_path)
    assert splits.label_map.names == ("class_0", "class_1", "class_2")
    truth = splits.train.ground_truth(unmasked=True)
    assert {a["category_id"] for a in truth["annotations"]} <= {c["id"] for c in truth["categories"]}


def test_a_yaml_that_names_classes_alone_needs_folders(tmp_path):
    picture(tmp_path / "pictures" / "1.png")
    (tmp_path / "data.yaml").write_text(NAMES)
    with pytest.raises(InputError, match=r"data\.yaml: names neither train nor val; write where the images are"):
        open_data(tmp_path)


def test_what_a_yaml_may_hold(tmp_path):
    path = tmp_path / "data.yaml"

    def read(text):
        path.write_text(text)
        return read_yaml(path, ("names", "train"))

    assert read("---\nnames:\n- a\n- yes\n- 'it''s # c' # no\n- 1.0\n") == {"names": ["a", "yes", "it's # c", "1.0"]}
    assert read('names: {0: a, 1: "b: c, d", "2": it\'s}') == {"names": {"0": "a", "1": "b: c, d", "2": "it's"}}
    assert read(r'names: ["caf\xE9", "\u7EC6", "\U0001F331\n"]') == {"names": ["café", "细", "🌱\n"]}  # as of PyYAML
    assert read(r'names: ["\ud83c\udf31", "\UFFFFFFFF"]') == {"names": ["🌱", r"\UFFFFFFFF"]}  # as of json; none
    assert read('names: [a,\n   "b\\"c",\n  d e]\n# end') == {"names": ["a", 'b"c', "d e"]}
    assert read("download: |\n  x = {'a': [1}\n\n  y: z\nother:\n  a:\n    - b: c\ntrain:\n") == {"train": None}


def test_what_is_other_data_is_left_to_others(tmp_path):
    write(tmp_path, coco())
    (tmp_path / "data.yaml").write_text("train: images\n" + NAMES)
    assert find_data(DataOptions(tmp_path))[1] == "coco"
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "other.yaml").write_text("a: b")
    assert not yolo.recognises(tmp_path / "empty")
    with pytest.raises(InputError, match="no YOLO data found; looked for data.yaml"):
        open_data(tmp_path / "empty", dataset="yolo")


def test_other_content_of_the_same_size_and_time_is_read(tmp_path, monkeypatch):
    make(tmp_path / "data")
    monkeypatch.setenv("MASKRCNN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(array_cache, "WORTHWHILE", 1)
    monkeypatch.setattr(found, "SETTLED", 0)
    same = SimpleNamespace(st_size=100, st_mtime_ns=1, st_ctime_ns=1)  # of a disk that keeps no times
    monkeypatch.setattr(found, "os", SimpleNamespace(**{**vars(os), "stat": lambda path: same}))
    label = tmp_path / "data" / "labels" / "train" / "1.txt"
    assert open_data(tmp_path / "data").train.object_counts().tolist() == [1]
    label.write_text(f"{TRIANGLE}\n1{TRIANGLE[1:]}")
    assert open_data(tmp_path / "data").train.object_counts().tolist() == [2]


def test_large_data_is_read_once(tmp_path, monkeypatch):
    make(tmp_path / "data")
    monkeypatch.setenv("MASKRCNN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(array_cache, "WORTHWHILE", 1)
    monkeypatch.setattr(found, "SETTLED", 0)
    first = open_data(tmp_path / "data").train
    monkeypatch.setattr(yolo, "_numbers", None)
    assert open_data(tmp_path / "data").train.ground_truth() == first.ground_truth()
    (tmp_path / "data" / "labels" / "train" / "1.txt").write_text(TRIANGLE * 2)
    with pytest.raises(TypeError):
        open_data(tmp_path / "data")
