"""Which images are scored: what was asked for as a whole, but the held-out share of the checkpoint's own data."""

import json
import re
import shutil

import pytest
import torch

import train
import validation
from network_files import MaskRCNNConfig
from tests.coco_folders import coco, many, write, write_image
from tests.small_runs import call, flags
from tests.tiny_model import NAMES, write_checkpoint
from train_utils.checkpoints.held_out import open_scored, was_divided
from train_utils.data.labels import LabelMap
from train_utils.data.opening import find_places
from train_utils.data.options import DataOptions
from train_utils.prediction.runtimes.exported_model import describe

CATEGORIES = [{"id": i, "name": name} for i, name in NAMES.items()]


def ten(folder, start=1, json_name="_annotations.coco.json", image_dir="."):
    """Ten images with a square each, of the tiny model's classes."""
    content = many(10, start)
    return write(folder, {**content, "categories": CATEGORIES}, json_name, image_dir)


@pytest.fixture
def trained(tmp_path):
    """A function that trains on data for an epoch -> its checkpoint."""

    def run(data, *more):
        assert call(train, *flags(data, tmp_path / "run", "--epochs", 1, *more)) == 0
        return tmp_path / "run" / "model_0.pth"

    return run


@pytest.fixture
def scored(tmp_path, capsys, monkeypatch):
    """A function that validates -> (ids of images with detections, the record's "about", what was printed)."""

    def run(weights, *words):
        monkeypatch.chdir(tmp_path)
        capsys.readouterr()
        assert call(validation, "--device", "cpu", "--weights-path", weights, *words) == 0
        ids = {entry["image_id"] for entry in json.loads((tmp_path / "detections.json").read_text())}
        return ids, json.loads((tmp_path / "record_mAP.json").read_text())["about"], capsys.readouterr().out

    return run


@pytest.mark.parametrize("name", ["test", "valid", "photos", "train"])
def test_other_data_is_scored_whole(tmp_path, scored, name):
    path = ten(tmp_path / "export" / name)
    weights = write_checkpoint(tmp_path / "w.pth", data_path=str(tmp_path / "export"), val_fraction=0.2, seed=0)
    for data in (path.parent, path):
        ids, about, printed = scored(weights, "--data-path", data)
        assert (about["images"], about["of"], ids) == (10, 10, set(range(1, 11)))
        assert printed.count("scored: all 10 images\n") == 1
        about_weights = rf"^weights: {weights}: epoch \d of a run on {tmp_path / 'export'}, 20.*, knows circle"
        assert re.search(about_weights, printed)


def test_of_the_checkpoints_own_data_the_held_out_share_is_scored(tmp_path, trained, scored):
    path = ten(tmp_path / "data", json_name="val.json", image_dir="images")  # what it is called does not matter
    weights = trained(path)
    own = scored(weights)
    assert (own[1]["images"], own[1]["of"]) == (2, 10) and len(own[0]) <= 2
    assert own[2].count("scored: 2 of the 10 images, the share of 0.2 that training held out\n") == 1
    assert scored(weights, "--data-path", path)[:2] == own[:2]
    shutil.move(tmp_path / "data", tmp_path / "moved")  # its training images are known again elsewhere
    assert scored(weights, "--data-path", tmp_path / "moved" / "val.json")[0] == own[0]
    other = ten(tmp_path / "other", start=50, json_name="val.json", image_dir="images")
    assert scored(weights, "--data-path", other)[1]["images"] == 10
    asked = scored(weights, "--data-path", other, "--val-fraction", 0.5)
    assert asked[1]["images"] == 5 and "the share of 0.5 that the command asks for" in asked[2]


def test_corrected_training_data_is_not_scored_on_what_it_was_trained_on(tmp_path, trained, scored):
    path = ten(tmp_path / "data", image_dir="images")
    weights = trained(path.parent)
    content = json.loads(path.read_text())
    del content["annotations"][::2]
    path.write_text(json.dumps(content))
    assert scored(weights, "--data-path", path)[1]["images"] == 2


def test_dropped_images_do_not_hide_the_training_data(tmp_path, trained, scored):
    path = ten(tmp_path / "data", image_dir="images")
    content = json.loads(path.read_text())
    del content["annotations"][:3]
    path.write_text(json.dumps(content))
    weights = trained(path, "--drop-empty")
    shutil.move(tmp_path / "data", tmp_path / "moved")
    assert scored(weights, "--data-path", tmp_path / "moved")[1]["images"] == 2
    content = torch.load(weights, weights_only=True)  # and so does what an exported file says of itself
    config, label_map = MaskRCNNConfig.from_dict(content["config"]), LabelMap.from_dict(content["label_map"])
    kept = json.loads(json.dumps(describe(config, label_map, content, 1)["content"]))
    assert len(open_scored(DataOptions(tmp_path / "moved"), kept, asked=False).data_set) == 2
    assert kept["progress"]["step"] == content["step"] and "curve" not in kept["progress"]


def test_divided_data_is_known_again_by_where_it_lies(tmp_path):
    for folder in ("images", "masks"):
        write_image(tmp_path / "masks" / folder / "1.png")
    for i, name in enumerate(("train", "test")):
        ten(tmp_path / "coco", 10 * i + 1, f"{name}.json", "images")
    paths = {tmp_path / "masks": tmp_path / "masks", tmp_path / "coco": tmp_path / "coco" / "train.json"}
    for trained_on, scored_now in paths.items():
        places = find_places(DataOptions(scored_now), "val")[2]
        assert was_divided({"data_path": str(trained_on)}, places)
        assert not was_divided({"data_path": str(tmp_path / "nowhere")}, places)


def test_a_split_of_its_own_is_scored_as_before(tmp_path, scored):
    ten(tmp_path / "data", 1, "instances_train.json", "images")
    ten(tmp_path / "data", 50, "instances_val.json", "images")
    ids, about, printed = scored(write_checkpoint(tmp_path / "w.pth"), "--data-path", tmp_path / "data")
    assert ids == set(range(50, 60)) and (about["images"], about["of"]) == (10, 10) and "scored:" not in printed


def test_unreadable_images_are_counted_in_the_record(tmp_path, capsys, monkeypatch):
    path = ten(tmp_path / "data")
    (path.parent / "3.png").write_bytes(b"no image")
    monkeypatch.chdir(tmp_path)
    assert call(validation, "--weights-path", write_checkpoint(tmp_path / "w.pth"), "--data-path", path) == 1
    about = json.loads((tmp_path / "record_mAP.json").read_text())["about"]
    assert (about["images"], about["of"], about["unreadable"]) == (9, 10, 1)


def test_test_only_scores_the_same_images(tmp_path, trained, capsys):
    path = ten(tmp_path / "data", image_dir="images")
    weights = trained(path)
    other = ten(tmp_path / "test", start=50)
    whole, share = "val: scored: all 10 images\n", "val: scored: 2 of the 10 images, the share of 0.2 that"
    for data, more, said in [
        (path, ("--resume", weights), share),
        (path, ("--weights", weights), share),
        (path, ("--weights", "none"), whole),
        (other.parent, ("--weights", weights), whole),
        (other, ("--resume", weights), whole),
    ]:
        capsys.readouterr()
        assert call(train, *flags(data, tmp_path / "out", "--test-only", *more)) == 0, capsys.readouterr().err
        printed = capsys.readouterr().out
        assert said in printed and "train: " not in printed and "IoU type: segm" in printed


def test_test_only_of_fewer_classes_than_training_keeps_the_checkpoints(tmp_path, trained, capsys):
    ten(tmp_path / "data", 1, "instances_train.json", "images")
    weights = trained(tmp_path / "data" / "instances_train.json", "--channels", 1)  # images are read so, too
    part = many(2, 70)
    write(tmp_path / "test", coco(part["images"], part["annotations"], CATEGORIES[:1]), "instances_test.json")
    assert call(train, *flags(tmp_path / "test", tmp_path / "out", "--test-only", "--weights", weights)) == 0
    assert "3 classes" in capsys.readouterr().out


def test_test_only_refuses_other_classes_as_validation_does(tmp_path, capsys):
    weights, words = write_checkpoint(tmp_path / "w.pth"), flags("", tmp_path / "out", "--test-only")
    words[words.index("none")] = weights
    for categories, said in [
        ([*CATEGORIES, {"id": 5, "name": "fig"}], "category 5 (fig) of image id 2 is not one of the 3 categories"),
        ([{"id": c["id"], "name": f"other {c['name']}"} for c in CATEGORIES], "category 1 is 'circle', the data's is"),
    ]:
        content = many(10)
        content["annotations"][1]["category_id"] = categories[-1]["id"]
        words[1] = write(tmp_path / "data", {**content, "categories": categories}, "_annotations.coco.json", ".")
        for script, arguments in ((train, words), (validation, ("--weights-path", weights, "--data-path", words[1]))):
            assert call(script, *arguments) == 2
            assert said in capsys.readouterr().err
    torch.save(torch.load(weights, weights_only=True)["model"], weights)
    words[1] = write(tmp_path / "data", many(10), "_annotations.coco.json", ".")
    assert call(train, *words) == 2 and "is for 3 classes, not 1 (" in capsys.readouterr().err


def test_results_are_scored_on_all_images_and_the_record_says_so(tmp_path, monkeypatch):
    path = ten(tmp_path / "data")
    (tmp_path / "R.json").write_text("[]")
    monkeypatch.chdir(tmp_path)
    for more, images in ((), 10), (("--val-fraction", 0.3), 3):
        assert call(validation, "--detections", "R.json", "--data-path", path, *more) == 0
        about = json.loads((tmp_path / "record_mAP.json").read_text())["about"]
        assert (about["images"], about["of"]) == (images, 10)


def test_validation_without_objects_says_why_there_is_no_ap(tmp_path, scored):
    content = many(3)
    write(tmp_path / "data", coco(content["images"], [], CATEGORIES))
    printed = scored(write_checkpoint(tmp_path / "w.pth"), "--data-path", tmp_path / "data")[2]
    assert "AP is n/a: no object in its 3 images: none is annotated" in printed


def test_foreign_files_with_args_are_scored_whole(tmp_path, scored):
    state = torch.load(write_checkpoint(tmp_path / "w.pth"), weights_only=True)["model"]
    torch.save({"model": state, "args": [1, 2], "progress": "text"}, tmp_path / "foreign.pth")
    path = ten(tmp_path / "data")
    names = tmp_path / "names.json"
    names.write_text(json.dumps({"1": "circle", "2": "square", "3": "big triangle"}))
    model = ("--min-size", 64, "--max-size", 96, "--anchor-sizes", 8, 16, 32, 48, 64)
    assert scored(tmp_path / "foreign.pth", "--data-path", path, *model)[1]["images"] == 10
