"""COCO -> .npy -> COCO as a user converts: nothing lost on the way, samples balanced, mistakes named."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.coco_folders import annotation, coco, many, write
from tests.npy_folders import add, rectangles, turned
from tests.npy_folders import many as many_npy
from tests.small_runs import ROOT
from tools import coco_to_npy, conversion, npy_to_coco
from train_utils.data.formats.npy_file import read_npy
from train_utils.data.opening import open_data


def contents(data):
    """{image's stem: (pixels, boxes, names of labels, masks, iscrowd)} of a data set."""
    found = {}
    for i in range(len(data)):
        image, target = data[i]
        names = [data.label_map.name(label) for label in target["labels"].tolist()]
        found[Path(data.file_name(i)).stem] = (
            image,
            target["boxes"],
            names,
            target["masks"].to_masks(),
            target["iscrowd"],
        )
    return found


def assert_same(one, other, count=None):
    """All images of both, or those that `count` images of the other are."""
    found = contents(other)
    assert len(found) == len(other) == (len(one) if count is None else count)
    one = one.subset([i for i in range(len(one)) if Path(one.file_name(i)).stem in found])
    for name, parts in contents(one).items():
        for a, b in zip(parts, found.pop(name), strict=True):
            assert a == b if isinstance(a, list) else a.dtype == b.dtype and torch.equal(a, b), name
    assert not found


def there_and_back(command, data, folder, count=None):
    limit = () if count is None else ("--limit", count)
    assert command(coco_to_npy, data, folder / "npy", *limit)[0] == 0
    assert command(npy_to_coco, folder / "npy", folder / "coco")[0] == 0
    found = [open_data(path) for path in (data, folder / "npy", folder / "coco")]
    for split in ("train", "val"):
        for other in found[1:]:
            assert_same(getattr(found[0], split), getattr(other, split), count)
    assert found[0].label_map.names == found[1].label_map.names == found[2].label_map.names


def test_photos_there_and_back(command, tmp_path, shared_data):
    there_and_back(command, shared_data / "coco_mini", tmp_path, 6)


def test_odd_boxes_crowds_and_empty_images_there_and_back(command, tmp_path):
    data = many(6)
    data["categories"] = [{"id": 9, "name": "bird"}, {"id": 1, "name": "thing"}]
    ring = np.zeros((20, 30), bool)
    ring[3:15, 4:20], ring[6:9, 8:12] = True, False
    changes = np.flatnonzero(np.diff(ring.T.reshape(-1), prepend=False))
    runs = np.diff(changes, prepend=0, append=ring.size)
    crowd = annotation(70, 2, category_id=9, iscrowd=1, segmentation={"size": [20, 30], "counts": runs.tolist()})
    data["annotations"] += [crowd, annotation(71, 3, bbox=[1.1, 2.3, 40, 5.7])]
    data["annotations"] = [a for a in data["annotations"] if a["id"] != 4]  # an image without objects
    for split in ("train", "val"):
        write(tmp_path / "data", data, f"instances_{split}.json")
    there_and_back(command, tmp_path / "data", tmp_path)
    assert (read_npy(tmp_path / "npy" / "annotations_val" / "2.npy")["masks"][1] == ring).all()
    assert read_npy(tmp_path / "npy" / "annotations_val" / "2.npy")["iscrowd"].tolist() == [0, 1]
    assert (tmp_path / "npy" / "classes.txt").read_text() == "thing\nbird\n"


def test_npy_there_and_back(command, tmp_path):
    data = many_npy(tmp_path / "a", 3, "_train", classes=3)
    add(data, "café", turned(rectangles((2, 1, 1, 5, 9))), "_val")
    (tmp_path / "names.json").write_text('{"1": "x", "2": "y", "3": "z"}')
    assert command(npy_to_coco, data, tmp_path / "b", "--label-json-path", tmp_path / "names.json")[0] == 0
    val = json.loads((tmp_path / "b" / "annotations" / "instances_val.json").read_text())
    assert [(i["id"], i["file_name"]) for i in val["images"]] == [(1, "café.png")] and len(val["categories"]) == 3
    assert command(coco_to_npy, tmp_path / "b", tmp_path / "c")[0] == 0
    for split in ("train", "val"):
        one = getattr(open_data(data, label_json_path=tmp_path / "names.json"), split)
        assert_same(one, getattr(open_data(tmp_path / "c"), split))


def test_a_single_json_stays_whole(command, tmp_path):
    path = write(tmp_path / "data", many(5))
    assert command(coco_to_npy, path, tmp_path / "npy")[0] == 0
    assert sorted(p.name for p in (tmp_path / "npy").iterdir()) == ["annotations", "classes.txt", "images"]
    assert command(npy_to_coco, tmp_path / "npy", tmp_path / "coco")[0] == 0
    assert sorted(p.name for p in (tmp_path / "coco").iterdir()) == ["images", "instances.json"]
    assert_same(open_data(path).val, open_data(tmp_path / "coco").val)


def test_only_a_val_split(command, tmp_path):
    write(tmp_path / "data", many(3), "instances_val.json")
    assert command(coco_to_npy, tmp_path / "data", tmp_path / "npy")[0] == 0
    assert command(npy_to_coco, tmp_path / "npy", tmp_path / "coco")[0] == 0
    assert_same(*(open_data(tmp_path / name, split="val").val for name in ("data", "coco")))


@pytest.fixture
def three_classes(tmp_path):
    """30 images of a cat, 6 of a dog, 3 of both, 2 of a bird alone, 4 of nothing."""
    shows = [{1}] * 30 + [{2}] * 6 + [{1, 2}] * 3 + [{3}] * 2 + [set()] * 4
    images = [{"id": i, "file_name": f"{i}.png", "height": 20, "width": 30} for i in range(1, len(shows) + 1)]
    pairs = [(i, category) for i, of in enumerate(shows, 1) for category in sorted(of)]
    annotations = [annotation(k, i, category_id=category) for k, (i, category) in enumerate(pairs, 1)]
    categories = [{"id": i, "name": name} for i, name in ((1, "cat"), (2, "dog"), (3, "bird"))]
    return write(tmp_path / "data", coco(images, annotations, categories))


def taken(folder):
    """{label: images that show it}, and how many images there are."""
    data = open_data(folder, split="train", val_fraction=0).train
    labels = [set(data.target(i)["labels"].tolist()) for i in range(len(data))]
    return {label: sum(label in of for of in labels) for label in data.label_map.labels()}, len(data)


@pytest.mark.parametrize(
    ("flags", "counts", "images"),
    [
        ("", {1: 33, 2: 9, 3: 2}, 45),
        ("--classes dog", {1: 9}, 9),
        ("--classes dog cat", {1: 9, 2: 33}, 39),
        ("--classes dog --limit 4", {1: 4}, 4),
        ("--classes dog cat --limit 8 --balanced", {1: 4, 2: 4}, 8),
        ("--classes cat dog --limit 16 --balanced", {1: 10, 2: 9}, 16),  # 3 of both and 6 of a dog are all there is
        ("--classes cat dog bird --limit 12 --balanced", {1: 5, 2: 5, 3: 2}, 12),
        ("--classes bird cat --balanced", {1: 2, 2: 2}, 4),
        ("--limit 3 --balanced", {1: 1, 2: 1, 3: 1}, 3),
        ("--limit 7", None, 7),
    ],
)
def test_samples(command, tmp_path, three_classes, flags, counts, images):
    status, told, _ = command(coco_to_npy, three_classes, tmp_path / "npy", *flags.split())
    found = taken(tmp_path / "npy")
    assert status == 0 and found[1] == images and counts in (None, found[0])
    assert f"images: {images} of 45 images" in told
    names = (tmp_path / "npy" / "classes.txt").read_text().split()
    if "--classes" in flags:
        assert names == [word for word in flags.split() if word in ("cat", "dog", "bird")]


def test_the_seed_chooses(command, tmp_path, three_classes):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        command(coco_to_npy, three_classes, tmp_path / name, "--limit", "10", "--seed", seed)
    a, b, c = (sorted(p.name for p in (tmp_path / name / "images").iterdir()) for name in "abc")
    assert a == b != c


def test_images_may_be_linked(command, tmp_path, monkeypatch):
    path = write(tmp_path / "data", many(2))
    assert command(coco_to_npy, path, tmp_path / "npy", "--link")[0] == 0
    assert os.path.samefile(tmp_path / "npy/images/1.png", tmp_path / "data/images/1.png")
    assert len(open_data(tmp_path / "npy").train) == 1

    def other_disk(*_):
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(conversion.os, "link", other_disk)
    status, told, _ = command(coco_to_npy, path, tmp_path / "npy2", "--link")
    assert status == 0 and "2 images are linked: training needs --follow-links" in told
    assert (tmp_path / "npy2/images/1.png").is_symlink()


def test_names_that_stand_twice_are_parted(command, tmp_path):
    images = [{"id": i, "file_name": name, "height": 20, "width": 30} for i, name in enumerate(("a/1.png", "b/1.png"))]
    path = write(tmp_path / "data", coco(images, [annotation(1, 0), annotation(2, 1)]))
    assert command(coco_to_npy, path, tmp_path / "npy")[0] == 0
    assert [len(list((tmp_path / "npy" / name).iterdir())) for name in ("images", "annotations")] == [2, 2]


def test_images_that_cannot_be_read_are_named(command, tmp_path):
    path = write(tmp_path / "data", many(3))
    (tmp_path / "data" / "images" / "2.png").write_bytes(b"broken")
    status, told, error = command(coco_to_npy, path, tmp_path / "npy")
    assert status == 1 and "2 of 3 images" in told and "not converted: " in error and "2.png" in error
    assert not (tmp_path / "npy/images/2.png").exists() and not (tmp_path / "npy/annotations/2.npy").exists()
    (tmp_path / "npy" / "images" / "3.png").write_bytes(b"broken")
    status, told, error = command(npy_to_coco, tmp_path / "npy", tmp_path / "coco")
    assert status == 1 and "1 image, 1 object" in told and "3.png" in error
    assert [i["id"] for i in json.loads((tmp_path / "coco" / "instances.json").read_text())["images"]] == [1]
    (tmp_path / "npy" / "annotations" / "3.npy").unlink()
    assert command(npy_to_coco, tmp_path / "npy", tmp_path / "coco2")[0] == 1
    assert command(npy_to_coco, tmp_path / "npy", tmp_path / "coco3", "--strict")[0] == 2


def test_mistakes_are_named(command, tmp_path, monkeypatch):
    path, empty = write(tmp_path / "data", many(3)), write(tmp_path / "data" / "empty", coco(annotations=[]))
    out = tmp_path / "out"
    for tool, words, told in (
        (coco_to_npy, [path, tmp_path / "data"], "data: exists already"),
        (coco_to_npy, [path, out, "--classes", "dog"], "--classes dog: the data has thing"),
        (coco_to_npy, [empty, out, "--balanced"], "none of its 1 image shows a class to choose by"),
        (coco_to_npy, [empty, out, "--classes", "thing"], "none of its 1 image shows a class to choose by"),
        (coco_to_npy, [tmp_path / "none", out], "no such file"),
        (npy_to_coco, [tmp_path / "none", out], "no such folder"),
        (npy_to_coco, [tmp_path / "data", out], "images_train/ with annotations_train/"),
        (coco_to_npy, [path], "the following arguments are required: OUT"),
    ):
        status, _, error = command(tool, *words)
        assert status == 2 and error.startswith("error: ") and told in error and error.count("\n") == 1, error
        assert not out.exists()

    with monkeypatch.context() as patch:
        patch.setattr(coco_to_npy.npy_reader, "MAX_PICKLE", 2**20 + 599)
        status, _, error = command(coco_to_npy, path, out)
        assert status == 2 and "1.png: its 1 mask would take more than a .npy file may have" in error
        patch.setattr(coco_to_npy.npy_reader, "MAX_PICKLE", 2**20 + 600)
        assert command(coco_to_npy, path, tmp_path / "fits")[0] == 0

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(conversion.shutil, "copyfileobj", full)
    status, _, error = command(coco_to_npy, path, out)
    assert status == 2 and f"{out}: no room left to write it (No space left" in error and "give another OUT" in error
    assert sorted(p.name for p in tmp_path.iterdir()) == ["data", "fits"]  # nothing is left of what was begun


def test_from_the_command_line(tmp_path):
    write(tmp_path / "data", many(2))
    words = [sys.executable, "-m", "tools.coco_to_npy", tmp_path / "data", "npy"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(words, cwd=tmp_path, text=True, capture_output=True, env=environment)
    assert done.returncode == 0 and "written: npy" in done.stdout, done.stderr
