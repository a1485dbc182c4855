"""Images with .npy annotations: found by layout, read whichever way the masks lie, mistakes named."""

import json
import os
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools.coco import COCO

import train
import validation
from backbone.errors import InputError
from network_files.operators.cropped_masks import CroppedMasks
from tests.npy_folders import add, image, many, rectangles, turned
from tests.small_runs import call, flags
from train_utils.data.formats import found as found_objects
from train_utils.data.formats import npy
from train_utils.data.formats import npy_folder as npy_format
from train_utils.data.images import ImageError
from train_utils.data.labels import LabelMap
from train_utils.data.opening import open_data
from train_utils.io import array_cache as annotation_cache

TWO = rectangles((1, 2, 3, 12, 15), (2, 10, 0, 30, 8))


def whole(root, **options):
    """All of a folder without a split."""
    return open_data(root, split="train", val_fraction=0, **options).train


def one(root, content, **options):
    """The data set of a single image, 7.png."""
    add(root, 7, content, **options)
    return whole(root)


def masks_of(data, i=0):
    return data.target(i)["masks"].to_masks().numpy()


def test_the_target(tmp_path):
    data = one(tmp_path, TWO)
    image, target = data[0]
    assert image.dtype == torch.uint8 and image.shape == (3, 20, 30)
    assert {k: v.dtype for k, v in target.items() if isinstance(v, torch.Tensor)} == {
        "boxes": torch.float32,
        "labels": torch.int64,
        "area": torch.float32,
        "iscrowd": torch.uint8,
    }
    assert target["boxes"].tolist() == TWO["boxes"].tolist() and target["labels"].tolist() == [1, 2]
    assert isinstance(target["masks"], CroppedMasks) and (masks_of(data) == TWO["masks"]).all()
    assert target["image_id"] == 7 and target["area"].tolist() == [119, 159] and target["iscrowd"].tolist() == [0, 0]
    assert data.object_counts().tolist() == [2] and not data.missing.any() and data.skipped == {}
    assert data.sizes.tolist() == [[20, 30]] and data.label_map.names == ("class_1", "class_2")
    assert "\n" not in data.describe() and "1 image (0 without objects), 2 objects of 2 classes" in data.describe()


def test_the_ground_truth_is_what_pycocotools_reads(tmp_path):
    data = one(tmp_path, {**TWO, "iscrowd": [0, 1]})
    coco = COCO()
    coco.dataset = data.ground_truth()
    coco.createIndex()
    assert [coco.anns[i]["bbox"] for i in (1, 2)] == [[2, 3, 10, 12], [10, 0, 20, 8]]
    assert (np.stack([coco.annToMask(coco.anns[i]) for i in (1, 2)]) == TWO["masks"]).all()
    assert [(a["area"], a["iscrowd"], a["category_id"]) for a in coco.anns.values()] == [(119, 0, 1), (159, 1, 2)]
    assert data.object_counts().tolist() == data.object_counts(crowd=True).tolist() == [1]
    assert coco.cats[2]["name"] == "class_2" and coco.imgs[7]["file_name"] == "7.png"


@pytest.mark.parametrize(
    ("train", "val"),
    [
        (("images_train", "annotations_train"), ("images_val", "annotations_val")),
        (("image_train", "annotation_train"), ("image_val", "annotation_val")),
        (("images", "annotations"), ("images_valid", "annotations_valid")),
        (("image", "annotations"), ("images_test", "annotation_test")),
    ],
)
def test_layouts(tmp_path, train, val):
    for names, suffix, count in ((train, "_a", 4), (val, "_b", 2)):
        many(tmp_path, count, suffix)
        for kind, name in zip(("images", "annotations"), names, strict=True):
            (tmp_path / (kind + suffix)).rename(tmp_path / name)
    splits = open_data(tmp_path)
    assert (len(splits.train), len(splits.val), len(splits.label_map)) == (4, 2, 2)
    assert splits.val.file_name(1) == str(tmp_path / val[0] / "2.png") and splits.val[1][0].shape == (3, 20, 30)
    assert open_data(tmp_path, split="val", dataset="npy").train is None


def test_a_missing_split_is_drawn(tmp_path):
    splits = open_data(many(tmp_path, 10, "_train"))
    assert (len(splits.train), len(splits.val)) == (8, 2)
    ids = [[part.image_id(i) for i in range(len(part))] for part in splits[:2]]
    assert sorted(ids[0] + ids[1]) == list(range(1, 11))
    assert ids[1] != [open_data(tmp_path, seed=1).val.image_id(i) for i in range(2)]
    assert len(open_data(tmp_path, val_fraction=0.5).val) == 5
    assert splits.val.label_map is splits.train.label_map


def test_labels_of_both_parts_count(tmp_path):
    many(tmp_path, 2, "_train", classes=1)
    many(tmp_path, 3, "_val", classes=3)
    splits = open_data(tmp_path)
    assert splits.label_map.names == ("class_1", "class_2", "class_3") == splits.train.label_map.names


def test_a_folder_that_is_not_complete_is_named(tmp_path):
    many(tmp_path, 2, "_train")
    (tmp_path / "images_val").mkdir()
    with pytest.raises(InputError, match="images_val: there is no folder annotations_val beside it"):
        open_data(tmp_path)
    (tmp_path / "images_val").rmdir()
    (tmp_path / "image_train").mkdir()
    with pytest.raises(InputError, match="has both images_train and image_train"):
        open_data(tmp_path)
    (tmp_path / "image_train").rmdir()
    (tmp_path / "images_test").mkdir()  # without annotations, as test sets often are
    assert len(open_data(tmp_path).train) == 1
    with pytest.raises(InputError, match=f"{tmp_path}/none: no such file"):
        open_data(tmp_path / "none", dataset="npy")
    with pytest.raises(InputError, match="--dataset npy: give the folder"):
        open_data(tmp_path / "annotations_train" / "1.npy", dataset="npy")
    with pytest.raises(InputError, match="no .npy data found; looked for images_train"):
        open_data(tmp_path / "images_train", dataset="npy")
    for option in ({"image_dir": "x"}, {"year": "2017"}):
        with pytest.raises(InputError, match="leave the flag out"):
            open_data(tmp_path, **option)


def test_masks_that_lie_the_other_way(tmp_path):
    data = one(tmp_path, turned(TWO))
    assert (masks_of(data) == TWO["masks"]).all() and "masks are [n, width, height] in 1 file" in data.describe()


def square(*objects):
    return rectangles(*objects, size=(24, 24))


def test_square_images_lie_as_their_boxes(tmp_path):
    contents = [square((1, 2, 3, 20, 7), (1, 0, 10, 3, 20)), square((1, 5, 5, 15, 15)), square((1, 1, 14, 23, 20))]
    for i, content in enumerate(contents):
        add(tmp_path / "a", i, content, size=(24, 24))
        add(tmp_path / "b", i, turned(content), size=(24, 24))
    for name, way in (("a", "[n, height, width]"), ("b", "[n, width, height]")):
        data = whole(tmp_path / name)
        for i, content in enumerate(contents):  # the second alone would not tell
            assert (masks_of(data, i) == content["masks"]).all()
        assert f"taken as {way} in 3 files, as the boxes lie" in data.describe()


def test_square_images_lie_as_the_others(tmp_path):
    unclear = square((1, 5, 5, 15, 15))
    unclear["masks"][0, 5:7, 5:15] = 0  # the box does not tell any more
    add(tmp_path / "a", 1, turned(unclear), size=(24, 24))
    add(tmp_path / "a", 2, turned(TWO))
    data = whole(tmp_path / "a")
    assert (masks_of(data) == unclear["masks"]).all() and data.target(0)["masks"].areas().tolist() == [80]
    assert "in 1 file, as the others'" in data.describe()
    add(tmp_path / "b", 1, square((1, 5, 5, 15, 15)), size=(24, 24))
    (tmp_path / "b" / "annotations" / "1.npy").unlink()
    np.save(tmp_path / "b" / "annotations" / "1.npy", {**unclear, "masks": unclear["masks"] * 0 + 1})
    assert "as nothing says otherwise" in whole(tmp_path / "b").describe()


def test_an_image_stored_sideways(tmp_path):
    add(tmp_path, 1, TWO)
    exif = Image.Exif()
    exif[0x0112] = 6
    path = tmp_path / "images" / "2.jpg"
    Image.fromarray(np.zeros((20, 30, 3), np.uint8)).save(path, exif=exif)  # upright 30 high, 20 wide
    np.save(tmp_path / "annotations" / "2.npy", TWO)  # annotated as stored
    assert whole(tmp_path)[1][0].shape == (3, 20, 30)
    upright = rectangles((1, 2, 3, 12, 25), size=(30, 20))
    np.save(tmp_path / "annotations" / "2.npy", upright)
    data = whole(tmp_path)
    assert data[1][0].shape == (3, 30, 20) and (masks_of(data, 1) == upright["masks"]).all()
    np.save(tmp_path / "annotations" / "1.npy", turned(TWO))
    np.save(tmp_path / "annotations" / "2.npy", turned(upright))
    data = whole(tmp_path)
    assert data[1][0].shape == (3, 30, 20) and (masks_of(data, 1) == upright["masks"]).all()


@pytest.mark.parametrize(
    "form",
    [
        lambda m: m.astype(bool),
        lambda m: m * 255,
        lambda m: m.astype(np.float32),
        lambda m: m * 0.9,
        lambda m: m * 255.0,
        lambda m: m.astype(np.int64) * 300,
        lambda m: m.tolist(),
        list,
        np.asfortranarray,
        lambda m: np.where(m, 200, 60).astype(np.uint8),
    ],
)
def test_forms_of_masks(tmp_path, form):
    assert (masks_of(one(tmp_path, {**TWO, "masks": form(TWO["masks"])})) == TWO["masks"]).all()


@pytest.mark.parametrize(
    "form",
    [
        lambda c: {key: value.tolist() for key, value in c.items()},
        lambda c: np.array([c], dtype=object),
        lambda c: {**c, "labels": c["labels"].astype(np.float32), "boxes": c["boxes"].astype(np.int16)},
        lambda c: {**c, "image_id": 3, "area": [1.5, 2.5], "iscrowd": None},
    ],
    ids=["lists", "an array of one dict", "other types", "other keys"],
)
def test_forms_of_files(tmp_path, form):
    target = one(tmp_path, form(TWO)).target(0)
    assert target["boxes"].tolist() == TWO["boxes"].tolist() and target["labels"].tolist() == [1, 2]
    assert (target["masks"].to_masks().numpy() == TWO["masks"]).all()


@pytest.mark.parametrize(
    "content",
    [
        rectangles(),
        {"boxes": [], "labels": [], "masks": []},
        {"boxes": np.zeros((0, 4)), "labels": np.zeros(0), "masks": np.zeros((0, 5, 9))},
    ],
    ids=["shapes", "lists", "any sides"],
)
def test_images_without_objects(tmp_path, content):
    add(tmp_path, 3, TWO)
    data = one(tmp_path, content)
    assert data.object_counts().tolist() == [2, 0] and data[1][0].shape == (3, 20, 30)
    assert data.target(1)["boxes"].shape == (0, 4) and data.target(1)["masks"].size == (20, 30)
    assert len(whole(tmp_path, drop_empty=True)) == 1


def changed(**fields):
    return {**TWO, **fields}


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (changed(labels=[1, 0]), r"labels\[1\] is 0, but 0 is background"),
        (changed(labels=[-1, 1]), r"labels\[0\] is -1"),
        (changed(labels=[1.5, 1]), r"labels\[0\] is 1.5, not an integer"),
        (changed(labels=[float("nan"), 1]), r"labels\[0\] is nan, not an integer"),
        (changed(labels=[1, 10**9]), r"labels\[1\] is 1000000000, but they go from 1 to at most"),
        (changed(labels=[True, True]), r"labels\[0\] is True, not an integer"),
        (changed(labels=["a", "b"]), "labels is an array of <U1"),
        (changed(labels=[[1], [2]]), r"shapes do not fit: boxes \[2, 4\], labels \[2, 1\]"),
        (changed(labels=[1]), r"labels \[1\], masks \[2, 20, 30\]"),
        (changed(labels=3), "labels is a single value"),
        (changed(boxes=np.ones((2, 5))), r"boxes \[2, 5\]"),
        (changed(boxes=[[0, 0, 9, float("nan")], [0, 0, 9, 9]]), r"boxes\[0\] is .*nan"),
        (changed(boxes=[[0, 0, 9, 9], [0, 0, 9, float("inf")]]), r"boxes\[1\] is .*inf"),
        (changed(boxes=[[0, 0, 9], [0, 0, 9, 9]]), "boxes is not an array: its rows differ in length"),
        (
            changed(masks=np.ones((2, 21, 30), bool)),
            r"masks are \[21, 30\], but .*7.png has a height of 20 and a width",
        ),
        (changed(masks=np.ones((2, 600), bool)), r"masks \[2, 600\]"),
        (changed(masks=TWO["masks"] * np.nan), r"masks\[0\] holds values from nan to nan"),
        (changed(masks=-TWO["masks"].astype(int)), r"masks\[0\] holds values from -1 to 0"),
        (changed(masks=TWO["masks"] * 256.0), r"masks\[0\] holds values from 0.0 to 256.0"),
        (changed(masks=TWO["masks"] * 1j), "masks is an array of complex128"),
        (changed(iscrowd=[0, 2]), r"iscrowd\[1\] is 2"),
        (changed(iscrowd=[0]), r"iscrowd \[1\]"),
        ({"boxes": [], "labels": []}, "holds a dict without masks"),
        ([1, 2], "holds a ndarray"),
        ("text", "holds a ndarray"),
    ],
    ids=str,
)
def test_mistakes_are_named(tmp_path, content, told):
    with pytest.raises(InputError, match=told) as error:
        one(tmp_path, content)
    assert str(error.value).startswith(f"{tmp_path}/annotations/7.npy: ") and "\n" not in str(error.value)


def test_what_is_left_out_is_counted_and_named(tmp_path):
    objects = (1, 2, 3, 12, 15), (1, 5, 5, 5, 9), (1, 40, 0, 50, 9), (1, 4, 4, 9, 9), (1, 9, 9, 4, 12)
    content = rectangles(*objects, (1, 25, 15, 40, 40))
    content["masks"][1, 5:9, 5] = content["masks"][2, 0, 0] = content["masks"][4, 9, 9] = 1
    content["masks"][3] = 0
    data = one(tmp_path, content)
    assert data.skipped == {npy.NO_BOX: 3, npy.EMPTY: 1}
    assert data.first_skipped == {npy.NO_BOX: "index 1 of 7.npy", npy.EMPTY: "index 3 of 7.npy"}
    assert data.target(0)["boxes"].tolist() == [[2, 3, 12, 15], [25, 15, 30, 20]]  # clipped
    with pytest.raises(InputError, match="--strict: 3 objects whose box .*index 1 of 7.npy"):
        whole(tmp_path, strict=True)


def test_files_without_a_partner_are_counted_and_named(tmp_path):
    many(tmp_path, 3)
    assert whole(tmp_path, strict=True).skipped == {}
    for i in (8, 9, 30, 4, 5, 6):
        image(tmp_path / "images" / f"{i}.jpg")
    (tmp_path / "annotations" / "2.npy").rename(tmp_path / "annotations" / "no\nne.npy")
    (tmp_path / "annotations" / "notes.txt").touch()
    (tmp_path / "images" / ".hidden").touch()
    data = whole(tmp_path)
    assert [data.image_id(i) for i in range(len(data))] == [1, 3]
    assert data.skipped == {npy_format.NO_ANNOTATION: 7, npy_format.NO_IMAGE: 1, npy_format.OTHER_FILES: 1}
    said = data.describe()
    assert "7 images without annotation (first: 2.png, 4.jpg, 5.jpg, 6.jpg, 8.jpg, ...)" in said
    assert r"(first: no\nne.npy)" in said and "(first: notes.txt)" in said
    with pytest.raises(InputError, match="--strict: 7 images without annotation"):
        whole(tmp_path, strict=True)
    image(tmp_path / "images" / "3.jpg")
    with pytest.raises(InputError, match="3.jpg and 3.png would both belong to 3.npy"):
        whole(tmp_path)


def test_none_with_a_partner(tmp_path):
    many(tmp_path, 1)
    (tmp_path / "images" / "1.png").rename(tmp_path / "images" / "image1.png")
    with pytest.raises(InputError, match="none of its 1 .npy file has the name of one of the 1 image in"):
        whole(tmp_path)


def test_class_names(tmp_path):
    many(tmp_path, 4)
    for name, content in (("a.json", {"1": "cat", "2": "dog"}), ("b.json", {"cat": 1, "dog": 2})):
        (tmp_path / name).write_text(json.dumps(content))
        assert whole(tmp_path, label_json_path=tmp_path / name).label_map.names == ("cat", "dog")
    (tmp_path / "classes.txt").write_text("cat\ndog\nbird\n")
    data = whole(tmp_path)
    assert data.label_map.names == ("cat", "dog", "bird") and data.label_map.category_ids == (1, 2, 3)
    with pytest.raises(InputError, match="a.json: its names are not those of .*classes.txt"):
        whole(tmp_path, label_json_path=tmp_path / "a.json")
    (tmp_path / "classes.txt").write_text("cat\n")
    with pytest.raises(InputError, match=r"annotations/1.npy: label 2 is none of the 1 class cat;"):
        whole(tmp_path)
    (tmp_path / "classes.txt").write_text("cat\n\ndog\n")
    with pytest.raises(InputError, match="classes.txt: line 2 is empty"):
        whole(tmp_path)
    (tmp_path / "classes.txt").write_bytes(b"caf\xe9\n")
    with pytest.raises(InputError, match="classes.txt: is not UTF-8"):
        whole(tmp_path)


def test_names_of_a_checkpoint(tmp_path):
    many(tmp_path, 4)
    names = LabelMap.from_categories({1: "cat", 2: "dog", 3: "bird"})
    assert whole(tmp_path, label_map=names).ground_truth()["categories"][2] == {"id": 3, "name": "bird"}
    with pytest.raises(InputError, match=r"annotations: category 2 \(class_2\) of image id 1 is not one of"):
        whole(tmp_path, label_map=LabelMap.from_categories({1: "cat"}))


def test_other_data_names_its_classes(tmp_path):
    (tmp_path / "instances.json").write_text('{"images": [], "annotations": [], "categories": []}')
    with pytest.raises(InputError, match="coco data, whose classes have names"):
        open_data(tmp_path, label_json_path="names.json")


def test_image_ids(tmp_path):
    for name in ("7", "007", "12", "0012a", "cat"):
        add(tmp_path, name, TWO)
    data = whole(tmp_path)
    assert [data.given_id(i) for i in range(5)] == ["007", 7, 12, "0012a", "cat"]
    assert [data.image_id(i) for i in (1, 2)] == [7, 12]
    results = [{"image_id": data.image_id(i), "category_id": 1} for i in (0, 2)]
    assert [r["image_id"] for r in data.with_given_ids(results)] == ["007", 12]


def test_an_unreadable_image_is_left_to_the_reader(tmp_path):
    many(tmp_path, 2)
    np.save(tmp_path / "annotations" / "1.npy", turned(TWO))
    np.save(tmp_path / "annotations" / "2.npy", turned(TWO))
    (tmp_path / "images" / "1.png").write_bytes(b"broken")
    data = whole(tmp_path)
    assert data.sizes.tolist() == [[20, 30]] * 2 and (masks_of(data) == TWO["masks"]).all()
    with pytest.raises(ImageError, match="1.png"):
        data[0]


def test_links_out_of_the_data_need_the_flag(tmp_path):
    data = many(tmp_path / "data", 4)
    (data / "classes.txt").write_text("cat\ndog\n")
    for name in ("images/2.png", "annotations/3.npy", "classes.txt"):
        (data / name).rename(tmp_path / "elsewhere")
        (data / name).symlink_to(tmp_path / "elsewhere")
        with pytest.raises(InputError, match=rf"{name} leads out of the data by a link"):
            open_data(data)
        assert len(whole(data, follow_links=True)) == 4
        (data / name).unlink()
        (tmp_path / "elsewhere").rename(data / name)


def test_subsets_share_the_annotations(tmp_path):
    part = whole(many(tmp_path, 4)).subset([3, 1])
    assert [part.image_id(i) for i in range(2)] == [4, 2] and part.annotations is part.subset([0]).annotations


def without_change_times(path):
    found = os.stat(path)
    return SimpleNamespace(st_size=found.st_size, st_mtime_ns=found.st_mtime_ns, st_ctime_ns=0)


def test_kept_for_the_next_time(tmp_path, monkeypatch):
    monkeypatch.setenv("MASKRCNN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(annotation_cache, "WORTHWHILE", 0)
    data = many(tmp_path / "data", 4)
    whole(data)
    assert not (tmp_path / "cache").exists()  # files that are quite new may change without a trace
    monkeypatch.setattr(found_objects, "SETTLED", -(10**12))
    first = whole(data)
    read = []
    monkeypatch.setattr(npy_format, "read_npy", lambda path: read.append(path) or TWO)
    again = whole(data)
    assert read == [] and again.describe() == first.describe()
    assert all((masks_of(again, i) == masks_of(first, i)).all() for i in range(4))
    found = os.stat(data / "annotations" / "2.npy")
    np.save(data / "annotations" / "2.npy", rectangles((1, 2, 3, 12, 15)))
    os.utime(data / "annotations" / "2.npy", ns=(found.st_atime_ns, found.st_mtime_ns))  # of the same size and date
    assert len(whole(data)) == 4 and len(read) == 4
    monkeypatch.setattr(found_objects, "os", SimpleNamespace(stat=without_change_times, scandir=os.scandir))
    whole(data)
    content = bytearray((data / "annotations" / "2.npy").read_bytes())
    content[-1] ^= 1
    (data / "annotations" / "2.npy").write_bytes(content)
    os.utime(data / "annotations" / "2.npy", ns=(found.st_atime_ns, found.st_mtime_ns))
    del read[:]
    assert len(whole(data)) == 4 and len(read) == 4  # of the same size and times, as far as the disk keeps them
    (data / "classes.txt").write_text("a\nb\n")
    assert whole(data).label_map.names == ("a", "b")
    assert len(read) == 4  # names are not part of it
    (data / "images" / "9.jpg").touch()
    assert whole(data).skipped == {npy_format.NO_ANNOTATION: 1} and len(read) == 8


def test_commands(tmp_path, capsys):
    data = many(tmp_path / "data", 6)
    (data / "images" / "5.png").write_bytes(b"broken")
    (tmp_path / "names.json").write_text('{"cat": 1, "dog": 2}')
    names = ("--label-json-path", tmp_path / "names.json")
    assert call(train, *flags(data, tmp_path / "run", "--epochs", 1, *names)) == 0
    assert "annotations: 5 images" in capsys.readouterr().out
    assert call(train, *flags(data, tmp_path / "run", "--epochs", 1, "--resume", "auto")) == 0
    weights = tmp_path / "run" / "model_0.pth"
    assert torch.load(weights, weights_only=True)["label_map"]["names"] == ["cat", "dog"]
    words = ["--weights-path", weights, "--device", "cpu", "--output-dir", tmp_path, "--val-fraction", 1]
    assert call(validation, *words) == 1  # 5.png can't be read
    assert f" {'dog':15}: " in (tmp_path / "record_mAP.txt").read_text()
    assert {r["image_id"] for r in json.loads((tmp_path / "detections.json").read_text())} <= {1, 2, 3, 4, 6}
