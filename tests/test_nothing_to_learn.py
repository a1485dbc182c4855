"""Data without objects, or with classes without any: training stops, or says so, with the cause by counts."""

import json

import pytest
from pycocotools import mask as coco_mask

import train
from tests import npy_folders
from tests.coco_folders import annotation, coco, many, square, write
from tests.small_runs import call, flags
from tests.test_dataset_voc import CAT, DOG, Maker
from tools import check_data
from train_utils.data.demands import without_objects
from train_utils.data.opening import open_data
from train_utils.io.plain_text import counted

TWO = [{"id": 1, "name": "ring"}, {"id": 2, "name": "bar"}]


def as_rle(content: dict) -> dict:
    """The content as brush tools write it: each mask an RLE with iscrowd 1."""
    for entry in content["annotations"]:
        rle = coco_mask.merge(coco_mask.frPyObjects(entry["segmentation"], 20, 30))
        entry.update(segmentation={"size": [20, 30], "counts": rle["counts"].decode()}, iscrowd=1)
    return content


def write_splits(folder, train_content, val_content):
    write(folder, train_content, "instances_train.json")
    write(folder, val_content, "instances_val.json")
    return folder


@pytest.fixture
def crowds(tmp_path):
    return write_splits(tmp_path / "data", as_rle(many(4)), as_rle(many(2, 5)))


@pytest.mark.parametrize(
    "content, cause",
    [
        (as_rle(many(4)), "4 crowd regions (iscrowd 1), of 'thing' (4); --crowd-as-objects reads them"),
        (many(4, bbox=[2, 3, 0, 1]), "skipped 4 annotations whose box has no area in the image (first: id 1)"),
        (many(4, segmentation={"size": [20, 30], "counts": [600]}), "skipped 4 annotations whose mask is empty"),
        (coco(annotations=[]), "no object in its 1 image: none is annotated"),
    ],
)
@pytest.mark.parametrize("more", [(), ("--drop-empty",)])
def test_training_stops_before_the_first_step_and_names_the_cause(tmp_path, capsys, content, cause, more):
    data = write_splits(tmp_path / "data", content, many(2, 5))
    assert call(train, *flags(data, tmp_path / "run", *more)) == 2
    error = capsys.readouterr().err
    assert "nothing to learn" in error and cause in error and "Epoch" not in error


def test_objects_that_are_all_held_out_are_named(tmp_path):
    content = many(4)
    write(tmp_path, content)
    held_out = open_data(tmp_path, "val", val_fraction=0.25).val.image_id(0)
    content["annotations"] = [a for a in content["annotations"] if a["image_id"] == held_out]
    write(tmp_path, content)
    cause = without_objects(open_data(tmp_path, "train", val_fraction=0.25).train)
    assert cause == "no object in its 3 images: 1 object is in the images left out of it (--val-fraction)"


def test_crowds_as_objects(crowds, tmp_path):
    plain, read = open_data(crowds), open_data(crowds, crowd_as_objects=True)
    for before, after in zip(plain[:2], read[:2], strict=True):
        assert not before.object_counts().any()
        assert after.object_counts().tolist() == before.object_counts(crowd=True).tolist()
        assert after.target(0)["iscrowd"].tolist() == [0]
        assert after.target(0)["masks"].to_masks().equal(before.target(0)["masks"].to_masks())
        assert {a["iscrowd"] for a in after.ground_truth()["annotations"]} == {0}
        assert f"{counted(len(after), 'crowd region', 'are')} read as objects" in after.describe()


def test_difficult_objects_stay_ignored_where_crowds_become_objects(tmp_path):
    Maker(tmp_path).add("a", [(1, DOG, (2, 3, 12, 13))], [("dog", (3, 4, 12, 13), 1)])
    data = open_data(tmp_path, "train", crowd_as_objects=True).train
    assert data.annotations.ignored.tolist() == [1]


def test_validation_without_objects_is_said_and_the_loss_chooses(tmp_path, capsys):
    data = write_splits(tmp_path / "data", many(4), coco(many(2, 5)["images"], []))
    run = tmp_path / "run"
    assert call(train, *flags(data, run, "--epochs", 4, "--lr", 1e-9, "--early-stop", 1)) == 0
    printed = capsys.readouterr().out
    assert printed.count("AP is n/a: the lowest validation loss chooses the best, model_min_val_loss.pth") == 1
    assert "model_best" not in printed and not (run / "model_best.pth").exists()
    assert "done: best mask AP n/a" in printed and f"--weights-path {run} --report" in printed
    assert (run / "model_1.pth").exists()  # the first epoch's loss is lower than none
    assert (run / "model_3.pth").exists() or "stopping early: no lower validation loss for 1 epoch" in printed


def test_classes_of_crowds_alone_or_mostly_skipped_are_named(tmp_path):
    content = many(6)
    content["categories"] = TWO + [{"id": 3, "name": "dot"}]
    for i, entry in enumerate(content["annotations"]):
        entry["category_id"] = i % 3 + 1
    as_rle({"annotations": content["annotations"][::3]})
    content["annotations"].append(annotation(7, 1, category_id=2, bbox=[2, 3, 0, 1]))  # 1 of 3: not mostly
    content["annotations"] += [annotation(i, 1, category_id=3, segmentation=[square()[0][:4]]) for i in (8, 9, 10)]
    write(tmp_path, content)
    said = open_data(tmp_path, "train", val_fraction=0).train.describe()
    assert " reads as objects: 'ring' (2); classes mostly skipped: 'dot' (3 of 5)" in said


def test_classes_of_objects_and_many_crowds_are_named(tmp_path, capsys):
    content = many(63)
    for entry in content["annotations"][40:]:
        entry["category_id"] = 2 + entry["id"] // 61
    content["categories"] = [*TWO, {"id": 3, "name": "dot"}]
    as_rle({"annotations": content["annotations"][38:42]})  # 2 of 40 rings: as COCO has crowds; 2 of 20 bars
    as_rle({"annotations": content["annotations"][-1:]})  # 1 of 3 dots: one is no habit
    write(tmp_path / "data", content)
    said = open_data(tmp_path / "data", "train", val_fraction=0).train.describe()
    line = "which are not trained on; --crowd-as-objects reads them as objects: 'bar' (2 of 20)"
    assert f"; classes with many crowd regions, {line}" in said and "'ring'" not in said and "'dot'" not in said
    found = run_doctor(tmp_path, capsys, tmp_path / "data", "--quick")[2]
    (kind,) = (kind for kind in found["finds"] if "many crowd regions" in kind["title"])
    assert [find["text"].split(": ", 1)[1] for find in kind["finds"]] == ["class 'bar': 2 of 20"]


def test_skipped_classes_are_counted_in_every_format(tmp_path):
    npy_folders.add(tmp_path / "npy", 7, npy_folders.rectangles((2, 2, 3, 12, 13), (1, 5, 5, 5, 9)))
    objects = [("dog", (3, 4, 12, 13), 0), ("cat", (40, 40, 50, 50), 0)]
    Maker(tmp_path / "voc").add("a", [(1, DOG, (2, 3, 12, 13))], objects)
    for folder, category in ("npy", 1), ("voc", CAT):
        data = open_data(tmp_path / folder, "train", val_fraction=0).train
        assert data.annotations.skipped_of == {category: 1}
        assert f"classes mostly skipped: {data.label_map.name(category)!r} (1 of 1)" in data.describe()


def run_doctor(tmp_path, capsys, *words):
    status = call(check_data, *words, "--output-dir", tmp_path / "page")
    return status, capsys.readouterr().out, json.loads((tmp_path / "page" / "check_data.json").read_text())


def test_the_doctor_names_the_cause(crowds, tmp_path, capsys):
    status, said, found = run_doctor(tmp_path, capsys, crowds)
    assert status == 2 and "train.py would stop" in said
    assert "nothing to learn: no object in its 4 images: 4 crowd regions (iscrowd 1)" in found["error"]
    assert "warning: classes with crowd regions alone: 2" in said and "annotate some" not in said
    assert found["anchors"] == [] and "% of the objects" not in said  # of none
    assert run_doctor(tmp_path, capsys, crowds, "--crowd-as-objects")[1:] != (said, found)


def test_fix_makes_objects_of_crowds_where_there_is_nothing_else_or_where_asked(crowds, tmp_path, capsys):
    run_doctor(tmp_path, capsys, crowds, "--fix", tmp_path / "fixed")
    fixed = open_data(tmp_path / "fixed", image_dir=crowds / "images")
    assert (fixed.train.object_counts().sum(), fixed.val.object_counts().sum()) == (4, 2)
    content = as_rle(many(4))
    content["annotations"][0]["iscrowd"] = 0
    mixed = write_splits(tmp_path / "mixed", content, many(2, 5))
    for more, count in ((), 1), (("--crowd-as-objects",), 4):
        out = tmp_path / f"fixed{count}"
        run_doctor(tmp_path, capsys, mixed, "--fix", out, *more)
        assert open_data(out, image_dir=mixed / "images").train.object_counts().sum() == count
