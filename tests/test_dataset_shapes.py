"""The built-in data set: complete or absent, the same every time, and what COCO's own tool reads from it."""

import json
import os
import subprocess
from collections import Counter

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO

import train_utils.data.formats.shapes
from backbone.errors import InputError
from tests.small_runs import in_fork
from train_utils.data.formats.shapes import CLASSES, CROWD, EMPTY, EVERY, draw_image, make_shapes

SMALL = {"train": 22, "val": 14, "size": 64}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_shapes(tmp_path_factory.mktemp("data") / "shapes", **SMALL)


def files_of(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def read(folder, split):
    data = json.loads((folder / "annotations" / f"instances_{split}2017.json").read_text())
    coco = COCO()
    coco.dataset = data
    coco.createIndex()
    return coco


@pytest.mark.parametrize("split", ["train", "val"])
def test_it_is_coco_data(folder, split, capsys):
    coco = read(folder, split)
    assert [c["name"] for c in coco.dataset["categories"]] == list(CLASSES)
    assert len(coco.imgs) == SMALL[split] == len(list((folder / f"{split}2017").iterdir()))
    for image in coco.dataset["images"]:
        with Image.open(folder / f"{split}2017" / image["file_name"]) as opened:
            assert opened.mode == "RGB" and opened.size == (image["width"], image["height"]) == (64, 64)
        count = sum(not a["iscrowd"] for a in coco.imgToAnns[image["id"]])
        assert count == 0 if image["id"] % EVERY == EMPTY else 1 <= count <= 5
    for annotation in coco.dataset["annotations"]:
        mask = coco.annToMask(annotation)
        ys, xs = np.nonzero(mask)
        x, y, w, h = annotation["bbox"]
        assert (x, y, x + w, y + h) == (xs.min(), ys.min(), xs.max() + 1, ys.max() + 1)
        assert annotation["area"] == mask.sum() > 0
        assert isinstance(annotation["segmentation"]["counts"], list if annotation["iscrowd"] else str)


def test_empty_images_crowds_and_classes(folder):
    coco = read(folder, "train")
    crowds = [a["image_id"] for a in coco.dataset["annotations"] if a["iscrowd"]]
    assert crowds == [CROWD]
    assert EMPTY in coco.imgs and coco.imgToAnns[EMPTY] == []
    assert set(Counter(a["category_id"] for a in coco.dataset["annotations"])) == {1, 2, 3}


def test_masks_are_modal(folder):
    """No pixel belongs to two objects, some objects do overlap, and each is of one colour."""
    hidden = 0
    for split in ("train", "val"):
        coco = read(folder, split)
        for image in coco.dataset["images"]:
            masks = [coco.annToMask(a) for a in coco.imgToAnns[image["id"]]]
            if not masks:
                continue
            assert sum(m.astype(int) for m in masks).max() == 1
            pixels = np.array(Image.open(folder / f"{split}2017" / image["file_name"]))
            for annotation, mask in zip(coco.imgToAnns[image["id"]], masks, strict=True):
                if not annotation["iscrowd"]:
                    assert len(np.unique(pixels[mask == 1], axis=0)) == 1
                    x, y, w, h = annotation["bbox"]
                    hidden += annotation["category_id"] == 1 and annotation["area"] < w * h
    assert hidden > 0


def test_the_same_every_time_and_another_with_another_seed(folder, tmp_path):
    assert files_of(make_shapes(tmp_path / "again", **SMALL)) == files_of(folder)
    other = files_of(make_shapes(tmp_path / "other", **SMALL, seed=1))
    assert other.keys() == files_of(folder).keys() and other != files_of(folder)
    # an image does not depend on how many there are
    more = files_of(make_shapes(tmp_path / "more", train=23, val=14, size=64))
    name = "train2017/000000000022.png"
    assert more[name] == files_of(folder)[name]


def test_train_and_val_differ(folder):
    files = files_of(folder)
    assert files["train2017/000000000001.png"] != files["val2017/000000000001.png"]


def test_drawn_only_once(folder, monkeypatch):
    before = {p: p.stat().st_mtime_ns for p in folder.rglob("*")}
    monkeypatch.setattr(train_utils.data.formats.shapes, "_draw_split", None)
    assert make_shapes(folder, **SMALL) == folder
    assert {p: p.stat().st_mtime_ns for p in folder.rglob("*")} == before


def test_an_interrupted_draw_leaves_no_data_set(tmp_path, monkeypatch):
    real = train_utils.data.formats.shapes._draw_split

    def interrupted(root, split, *rest):
        if split == "val2017":
            raise KeyboardInterrupt
        real(root, split, *rest)

    monkeypatch.setattr(train_utils.data.formats.shapes, "_draw_split", interrupted)
    with pytest.raises(KeyboardInterrupt):
        make_shapes(tmp_path / "shapes", **SMALL)
    assert list(tmp_path.iterdir()) == []
    monkeypatch.undo()
    make_shapes(tmp_path / "shapes", **SMALL)
    assert [p.name for p in tmp_path.iterdir()] == ["shapes"]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="fork is POSIX")
def test_a_killed_draw_is_not_mistaken_for_a_data_set(tmp_path):
    def killed():
        shapes, real = train_utils.data.formats.shapes, train_utils.data.formats.shapes._draw_split
        shapes._draw_split = lambda root, split, *a: os._exit(9) if "val" in split else real(root, split, *a)
        make_shapes(tmp_path / "shapes", train=3, val=2, size=64)

    assert in_fork(killed) == 9
    assert not (tmp_path / "shapes").exists()
    make_shapes(tmp_path / "shapes", train=3, val=2, size=64)
    assert len(read(tmp_path / "shapes", "val").imgs) == 2


def test_another_process_finishing_first_wins(tmp_path, monkeypatch, folder):
    def rename(source, target):
        make_first(target)
        real(source, target)

    real = os.rename
    make_first = lambda target: subprocess.run(["cp", "-r", str(folder), str(target)], check=True)  # noqa: E731
    monkeypatch.setattr(os, "rename", rename)
    assert files_of(make_shapes(tmp_path / "shapes", **SMALL)) == files_of(folder)
    assert [p.name for p in tmp_path.iterdir()] == ["shapes"]


def test_foreign_folders_are_left_alone(tmp_path, folder):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("dear")
    with pytest.raises(InputError, match="mine exists and is not a shapes data set"):
        make_shapes(tmp_path / "mine", **SMALL)
    assert (tmp_path / "mine" / "letter.txt").read_text() == "dear"
    with pytest.raises(InputError, match="other settings"):
        make_shapes(folder, **SMALL, seed=3)
    with pytest.raises(InputError, match="letter.txt"):
        make_shapes(tmp_path / "mine" / "letter.txt" / "shapes", **SMALL)
    with pytest.raises(InputError, match="32 x 32"):
        make_shapes(tmp_path / "tiny", size=8)
    (tmp_path / "empty").mkdir()
    make_shapes(tmp_path / "empty", train=1, val=1, size=32)


def test_every_shape_stays_visible():
    for seed in range(30):
        _, objects = draw_image(np.random.default_rng(seed), 64, 5, crowded=seed % 2 == 0)
        assert len(objects) == 5 + (seed % 2 == 0)
        assert all(mask.sum() > 8 for _, mask, _ in objects)
