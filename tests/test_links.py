"""Links among data: a user's own keep working, those that lead out of the data need --follow-links."""

import json

import numpy as np
import pytest
from PIL import Image

from backbone.errors import InputError
from tests.faults.hostile_data import voc
from tests.tiny_model import write_coco
from train_utils.data import links
from train_utils.data.formats.coco.checks import check_categories
from train_utils.data.labels import LabelMap
from train_utils.data.opening import open_data
from train_utils.data.problems import STOP
from train_utils.io.plain_text import brief, one_line, visible
from train_utils.show.image_lists import find_images


def moved(folder, name):
    """Put `name` of a data folder elsewhere, and a link in its place."""
    place = folder.parent / "elsewhere"
    place.mkdir(exist_ok=True)
    (folder / name).rename(place / "it")
    (folder / name).symlink_to(place / "it")


@pytest.fixture
def data(tmp_path):
    return write_coco(tmp_path / "data")


def test_a_folder_that_is_a_link_works(data, tmp_path):
    moved(data, "images")
    (tmp_path / "link").symlink_to(data)
    for path in (data, tmp_path / "link", tmp_path / "link" / "instances_val.json"):
        assert len(open_data(path, split="val").val) > 0
    splits = open_data(data, image_dir=tmp_path / "elsewhere" / "it")
    assert len(splits.train) == 4


def test_links_within_the_data_work(data):
    (data / "images" / "0.png").rename(data / "kept.png")
    (data / "images" / "0.png").symlink_to(data / "kept.png")
    assert open_data(data).train[0][0].shape == (3, 48, 64)


def test_an_image_that_is_a_link_out_needs_the_flag(data):
    moved(data, "images/1.png")
    with pytest.raises(InputError, match=r"1\.png leads out of the data by a link, to .*elsewhere.*--follow-links"):
        open_data(data)
    assert open_data(data, follow_links=True).train[1][0].shape == (3, 64, 48)


def test_a_folder_of_images_that_is_a_link_out_needs_the_flag(data):
    (data / "images" / "sub").mkdir()
    (data / "images" / "2.png").rename(data / "images" / "sub" / "2.png")
    for path in data.glob("*.json"):
        content = json.loads(path.read_text())
        content["images"][2]["file_name"] = "sub/2.png"
        path.write_text(json.dumps(content))
    assert len(open_data(data).train) == 4
    moved(data, "images/sub")
    with pytest.raises(InputError, match="sub leads out of the data"):
        open_data(data)
    assert len(open_data(data, follow_links=True).train) == 4


def test_each_folder_is_looked_at_once(data, monkeypatch):
    looks, scandir = [], links.os.scandir
    monkeypatch.setattr(links.os, "scandir", lambda path: looks.append(path) or scandir(path))
    assert not list(links.links_out("x.json", data / "images", data, [f"{i}.png" for i in range(4)] * 100))
    assert len(looks) == 1


@pytest.mark.parametrize("link", ["JPEGImages/a.jpg", "SegmentationObject/a.png", "Annotations/a.xml"])
def test_voc_files_that_are_links_out_need_the_flag(tmp_path, link):
    folder = voc(link=link)(tmp_path / "case", None) / "data"
    with pytest.raises(InputError, match="--follow-links"):
        open_data(folder)
    if not link.endswith("Object/a.png"):  # of which the secret is none
        assert len(open_data(folder, follow_links=True).train) == 1


def test_images_to_predict(tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(tmp_path / "a.png")
    (folder / "a.png").symlink_to(tmp_path / "a.png")
    assert find_images([str(folder / "a.png")]) == [folder / "a.png"]  # named by the user
    for path in (folder, folder / "*.png"):
        with pytest.raises(InputError, match="--follow-links"):
            find_images([str(path)])
        assert find_images([str(path)], follow_links=True) == [folder / "a.png"]
        with pytest.raises(InputError, match="^--check /"):
            find_images([str(path)], flag="--check")
    (tmp_path / "linked").symlink_to(folder)
    (folder / "a.png").unlink()
    Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(folder / "b.png")
    assert find_images([str(tmp_path / "linked" / "*.png")]) == [tmp_path / "linked" / "b.png"]


def test_names_reach_no_terminal_as_they_are():
    assert visible("ok žába \u200d") == "ok žába \u200d"
    assert visible("a\x1b[2J\nb\x9b\u202e\u2028") == "a\\x1b[2J\\nb\\x9b\\u202e\\u2028"
    assert LabelMap([1], [1], ["a\x1b[2J"]).names == ("a\\x1b[2J",)
    assert check_categories([{"id": 1, "name": "a\nb"}], "x.json", STOP) == ({1: "a\\nb"}, {})
    assert one_line("a\n b\x07") == "a b\\x07" and len(one_line("x" * 10**6)) < 1600


def test_values_in_messages_are_short():
    deep = []
    for _ in range(10_000):
        deep = [deep]
    assert len(brief(deep)) < 100 and len(brief({"a": "x" * 10**6, "b": list(range(10**5))})) < 200
