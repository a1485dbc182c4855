"""LabelMe's jsons: every shape there is, parts that belong together, images in files and within jsons."""

import base64
import io
import json

import numpy as np
import pytest
from PIL import Image

from backbone.errors import InputError
from tests.coco_folders import coco, write
from tests.small_runs import call
from tools import npy_to_coco, pack_dataset
from train_utils.data.formats import found, labelme
from train_utils.data.images import ImageError
from train_utils.data.opening import find_data, open_data
from train_utils.data.options import DataOptions
from train_utils.io import array_cache

SIZE = (40, 60)


def png(pixels):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


def shape(points=((10, 5), (30, 5), (30, 25)), label="cell", kind="polygon", **more):
    return {"label": label, "points": [list(point) for point in points], "shape_type": kind, **more}


def make(folder, *shapes, name="1", image="png", **more):
    """A json and its image; image: its ending, None for no file."""
    folder.mkdir(parents=True, exist_ok=True)
    if image:
        Image.fromarray(np.full((*SIZE, 3), 80, np.uint8)).save(folder / f"{name}.{image}")
    content = {"version": "5.4.1", "flags": {}, "shapes": list(shapes), "imagePath": f"{name}.{image or 'png'}"}
    content |= {"imageData": None, "imageHeight": SIZE[0], "imageWidth": SIZE[1], **more}
    (folder / f"{name}.json").write_text(json.dumps({k: v for k, v in content.items() if v != "absent"}))
    return folder


def whole(folder, **options):
    return open_data(folder, "train", val_fraction=0, **options).train


def masks_of(data, i=0):
    return data.target(i)["masks"].to_masks().numpy().astype(bool)


def box(x1, y1, x2, y2):
    mask = np.zeros(SIZE, dtype=bool)
    mask[y1:y2, x1:x2] = True
    return mask


L_SHAPE = np.zeros((8, 6), np.uint8)
L_SHAPE[:, :2], L_SHAPE[6:] = 1, 1


def test_every_shape_with_an_area(tmp_path):
    corners = ((10, 5), (30, 5), (30, 25), (10, 25))
    typeless = shape(corners)
    del typeless["shape_type"]  # version 3
    make(
        tmp_path,
        shape(corners),
        shape(((30, 25), (10, 5)), kind="rectangle"),
        shape(corners, kind="rectangle"),
        shape(corners, kind="oriented_rectangle"),
        typeless,
        shape(((30, 20), (30, 30)), kind="circle"),
        shape(((4, 3), (9, 10)), kind="mask", mask=png(L_SHAPE * 255)),
        shape(((57, 36), (62, 43)), kind="mask", mask=png(L_SHAPE.astype(bool))),  # partly outside
    )
    assert find_data(DataOptions(tmp_path))[1] == "labelme"
    data = whole(tmp_path)
    masks = masks_of(data)
    assert all((mask == box(10, 5, 30, 25)).all() for mask in masks[:5])
    y, x = np.mgrid[: SIZE[0], : SIZE[1]] + 0.5
    disc = (x - 30) ** 2 + (y - 20) ** 2 < 100
    assert (masks[5] != disc).sum() <= 12 and data.target(0)["boxes"][5].tolist() == pytest.approx(
        [20, 10, 40, 30], abs=0.01
    )
    expected = np.zeros((2, *SIZE), dtype=bool)
    expected[0, 3:11, 4:10], expected[1, 36:, 57:] = L_SHAPE, L_SHAPE[:4, :3]
    assert (masks[6:] == expected).all() and data.target(0)["boxes"][6].tolist() == [4, 3, 10, 11]


def test_one_group_of_one_label_is_one_object(tmp_path):
    first, second, other = ((0, 0), (5, 5)), ((10, 10), (15, 15)), ((20, 20), (25, 25))
    make(
        tmp_path,
        shape(first, kind="rectangle", group_id=1),
        shape(other, kind="rectangle", group_id=1, label="dirt"),
        shape(second, kind="rectangle", group_id=1),
        shape(other, kind="rectangle"),
        shape(((12, 12), (17, 19)), kind="mask", mask=png(L_SHAPE), group_id=7),
        shape(second, kind="rectangle", group_id=7),
    )
    data = whole(tmp_path)
    masks, labels = masks_of(data), data.target(0)["labels"].tolist()
    assert data.label_map.names == ("cell", "dirt") and labels == [1, 2, 1, 1]
    assert (masks[0] == box(*first[0], *first[1]) | box(*second[0], *second[1])).all()
    mixed = box(10, 10, 15, 15)
    mixed[12:20, 12:18] |= L_SHAPE.astype(bool)
    assert (masks[3] == mixed).all()
    assert len(data.ground_truth()["annotations"][0]["segmentation"]) == 2


def test_points_lines_and_background_are_skipped_and_counted(tmp_path):
    lines = [shape(((1, 1), (2, 2)), kind=kind) for kind in ("point", "points", "line", "linestrip")]
    make(tmp_path, *lines, shape(label="__ignore__"), shape(((1, 1), (5, 5))), shape())
    data = whole(tmp_path)
    assert len(masks_of(data)) == 1
    assert data.skipped == {
        "points and lines, which have no area": 4,
        "shapes labelled _background_ or __ignore__": 1,
        "annotations whose polygons have fewer than 3 points": 1,
    }
    assert data.first_skipped["points and lines, which have no area"] == "1.json: shapes[0]"


def test_splits_share_the_labels_of_all(tmp_path):
    make(tmp_path / "train", shape(label="b"), shape(label="d"))
    make(tmp_path / "val", shape(label="c"), shape(label="d"), shape(label="a", kind="point"), name="2")
    splits = open_data(tmp_path)
    assert splits.label_map.names == ("b", "c", "d") and "matched" not in splits.val.describe()
    assert splits.train.target(0)["labels"].tolist() == [1, 3] and splits.val.target(0)["labels"].tolist() == [2, 3]


@pytest.mark.parametrize("given", ["..\\images\\1.jpg", "../images/1.jpg", "C:\\me\\images\\1.jpg", "/home/me/1.jpg"])
def test_image_paths_of_other_machines(tmp_path, given):
    inner = given.startswith("..")
    make(tmp_path / "images", image="jpg")
    (tmp_path / "images" / "1.json").unlink()
    folder = make(tmp_path / ("jsons" if inner else "images"), shape(), image=None, imagePath=given)
    data = whole(tmp_path)
    assert data.file_name(0) == str(tmp_path / "images" / "1.jpg") and data[0][0].shape == (3, *SIZE)
    if inner:
        with pytest.raises(InputError, match=r"1\.json: imagePath .*1\.jpg leaves the data folder .*jsons; give the"):
            whole(folder)


def test_the_image_within_the_json_stands_for_a_missing_file(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 255, (*SIZE, 3), np.uint8)
    make(tmp_path, shape(), image=None, imageData=png(pixels), imageHeight="absent", imageWidth="absent")
    make(tmp_path, shape(), name="2", image=None, imageData="?")
    data = whole(tmp_path)
    assert (data[0][0].numpy() == pixels.transpose(2, 0, 1)).all() and not data.missing.any()
    assert data.describe().endswith("2 images have no file: read from the json")
    with pytest.raises(ImageError, match=r"2\.json: its imageData is no base64 text"):
        data[1]


def test_images_within_jsons_are_converted_and_packed(tmp_path):
    for name in "12":
        content = png(np.full((*SIZE, 3), 70, np.uint8))
        make(tmp_path / "data", shape(), name=name, image=None, imageData=content)
    assert call(npy_to_coco, tmp_path / "data", tmp_path / "json", "--dataset", "labelme") == 0
    assert whole(tmp_path / "json").image(0).unique().tolist() == [70]
    assert call(pack_dataset, tmp_path / "data", tmp_path / "pack", "--keep-encoded") == 0
    assert open_data(tmp_path / "pack").train.image(0).unique().tolist() == [70]


def test_leftovers_are_counted_and_missing_images_refused(tmp_path):
    make(tmp_path, shape())
    (tmp_path / "settings.json").write_text('{"a": 1}')
    make(tmp_path, name="9")
    (tmp_path / "9.json").unlink()
    data = whole(tmp_path)
    assert data.first_skipped == {
        "json files that are not LabelMe's": "settings.json",
        "images without annotation": "9.png",
    }
    make(tmp_path, name="2", image=None)
    with pytest.raises(InputError, match=r"1 of its 2 image files are missing, the first is .*2\.png"):
        whole(tmp_path)


def test_a_size_that_is_not_the_images_is_an_error(tmp_path):
    make(tmp_path, shape(), imageHeight=41)
    with pytest.raises(InputError, match=r"1\.png: the image is 60x40 .*1\.json says 60x41; correct it or put back"):
        whole(tmp_path)[0]


MISTAKES = {
    "points": (shape(((1, 2), (3,), (4, 5))), r"shapes\[1\]: a point has 1 number, x y are 2"),
    "text": (shape((("a", 2), (3, 4), (4, 5))), r"shapes\[1\]: a point is not a list of numbers"),
    "none": (shape(()), r"shapes\[1\]: has no points"),
    "circle": (shape(kind="circle"), r"shapes\[1\]: a circle has 2 points, this one has 3"),
    "type": (shape(kind="cube"), r"shapes\[1\]: its shape_type 'cube' is none of LabelMe's"),
    "label": (shape(label=3), r"shapes\[1\]: its label 3 is no name of a class"),
    "group": (shape(group_id=[1]), r"shapes\[1\]: its group_id \[1\] is no number"),
    "mask": (shape(((1, 1), (3, 3)), kind="mask"), r"shapes\[1\]: a mask needs its picture as text"),
    "base64": (shape(((1, 1), (3, 3)), kind="mask", mask="?"), r"shapes\[1\]: its picture is no base64 text"),
    "picture": (shape(((1, 1), (3, 3)), kind="mask", mask="abcd"), r"shapes\[1\]: its picture: not an image"),
    "box": (shape(((1, 1), (3, 3)), kind="mask", mask=png(L_SHAPE)), r"its mask is 6x8, but its box is 3x3; draw"),
    "far": (shape(((1, 1), (3, 3), (1e9, 0))), r"shapes\[1\]: polygon reaches 1e\+09, the image is 60x40"),
    "shape": (7, r"shapes\[1\]: 7 is no shape"),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_mistakes_name_the_json_and_the_shape(tmp_path, case):
    wrong, message = MISTAKES[case]
    make(tmp_path, shape(), wrong)
    with pytest.raises(InputError, match=r"1\.json: .*" + message):
        whole(tmp_path)


JSONS = {
    "path": ({"imagePath": None}, r"1\.json: imagePath None is not a file name"),
    "no file": ({"imagePath": "../.."}, r"1\.json: imagePath '\.\./\.\.' is not a file name"),
    "size": ({"imageHeight": 0}, r"1\.json: a size of 60x0; correct it"),
    "twice": ({"imagePath": "2.png"}, r"2\.json: 2\.png is annotated in .*1\.json too; take one of them out"),
    "nothing": ({"shapes": []}, r"none of its 1 json has a shape with an area; nothing can be learnt"),
}


@pytest.mark.parametrize("case", JSONS)
def test_mistakes_of_a_json_name_it(tmp_path, case):
    more, message = JSONS[case]
    make(tmp_path, **{"shapes": [shape()], **more})
    if case == "twice":
        make(tmp_path, shape(), name="2")
    with pytest.raises(InputError, match=message):
        whole(tmp_path, dataset="labelme")


def test_another_json_above_hides_nothing(tmp_path):
    make(tmp_path / "all", shape())
    (tmp_path / "classes.json").write_text("{}")
    assert find_data(DataOptions(tmp_path))[1] == "labelme" and len(whole(tmp_path)) == 1


def test_what_is_other_data_is_left_to_others(tmp_path):
    write(tmp_path, coco())
    make(tmp_path / "images", shape())
    assert find_data(DataOptions(tmp_path))[1] == "coco"
    with pytest.raises(InputError, match="no LabelMe data found"):
        open_data(tmp_path / "instances.json", dataset="labelme")


def test_large_data_is_read_once(tmp_path, monkeypatch):
    make(tmp_path / "data", shape(), image=None, imageData=png(np.zeros((*SIZE, 3), np.uint8)))
    monkeypatch.setenv("MASKRCNN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(array_cache, "WORTHWHILE", 1)
    monkeypatch.setattr(found, "SETTLED", 0)
    first = whole(tmp_path / "data")
    monkeypatch.setattr(labelme, "_entry_of", None)
    again = whole(tmp_path / "data")
    assert again.ground_truth() == first.ground_truth() and again[0][0].shape == (3, *SIZE)
    Image.fromarray(np.zeros((*SIZE, 3), np.uint8)).save(tmp_path / "data" / "1.png")  # now there is a file
    with pytest.raises(TypeError):
        whole(tmp_path / "data")
