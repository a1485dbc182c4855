"""CocoDataset: what each form of annotation becomes, and what a wrong one says."""

import json
import math
import pickle
import shutil

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from backbone.errors import InputError
from my_dataset_coco import CocoDataset
from tests.coco_folders import annotation, coco, square, write
from train_utils.data.formats.coco.reading import read_annotations
from train_utils.data.images import ImageError
from train_utils.data.labels import LabelMap, coco_names, read_json
from train_utils.data.rle import decode_counts, decode_many, rles_fit
from train_utils.io.plain_text import of_several

SIZE = (20, 30)
RING = [[2, 3, 12, 3, 12, 13, 2, 13], [15.5, 5, 25, 5, 25, 10.25, 15.5, 10.25]]  # two parts


def open_one(folder, *annotations, **content):
    path = write(folder, coco(annotations=list(annotations), **content))
    return CocoDataset(path, folder / "images", folder)


def mask_of(*ones):
    """bool [20, 30] with the given (rows, columns) slices set."""
    mask = np.zeros(SIZE, dtype=np.uint8, order="F")
    for rows, columns in ones:
        mask[rows, columns] = 1
    return mask


def compressed(mask):
    return {"size": list(mask.shape), "counts": coco_mask.encode(np.asfortranarray(mask))["counts"].decode()}


def uncompressed(mask):
    flat = mask.flatten(order="F")
    edges = np.flatnonzero(np.diff(flat)) + 1
    counts = np.diff([0, *edges, flat.size]).tolist()
    return {"size": list(mask.shape), "counts": counts if flat[0] == 0 else [0, *counts]}


def test_target_of_a_plain_annotation(tmp_path):
    image, target = open_one(tmp_path, annotation())[0]
    assert image.shape == (3, *SIZE) and image.dtype == torch.uint8
    assert target["boxes"].tolist() == [[2, 3, 12, 13]] and target["boxes"].dtype == torch.float32
    assert target["labels"].tolist() == [1] and target["labels"].dtype == torch.int64
    assert target["area"].tolist() == [100] and target["area"].dtype == torch.float32
    assert target["iscrowd"].tolist() == [0] and target["iscrowd"].dtype == torch.uint8
    assert target["image_id"] == 1
    mask = target["masks"].to_masks()
    assert mask.shape == (1, *SIZE) and mask.sum() == 100 and mask[0, 3:13, 2:12].all()


def test_each_form_of_segmentation(tmp_path):
    mask = mask_of((slice(3, 13), slice(2, 12)), (slice(5, 10), slice(15, 25)))
    mask[6:8, 4:6] = 0  # a hole
    ds = open_one(
        tmp_path,
        annotation(1, segmentation=RING),
        annotation(2, segmentation=square()[0]),  # one polygon, not in a list
        annotation(3, segmentation=compressed(mask)),
        annotation(4, segmentation=uncompressed(mask), iscrowd=1),
    )
    masks = ds[0][1]["masks"].to_masks().numpy()
    parts = coco_mask.frPyObjects(RING, *SIZE)
    assert (masks[0] == coco_mask.decode(coco_mask.merge(parts))).all() and masks[0].sum() > 130
    assert masks[1].sum() == 100
    assert (masks[2] == mask).all() and (masks[3] == mask).all()
    assert ds[0][1]["iscrowd"].tolist() == [0, 0, 0, 1]


def test_a_polygon_as_a_list_of_points_is_told_how_to_be_written(tmp_path):
    ds = open_one(tmp_path, annotation(1), annotation(2, segmentation=[[2, 3], [12, 3], [12, 13]]))
    assert "skipped 1 annotation whose polygon is a list of points (write each as one list: [[x1, y1," in ds.describe()


def test_what_is_missing_is_computed(tmp_path):
    mask = mask_of((slice(4, 9), slice(10, 17)))
    ds = open_one(
        tmp_path,
        annotation(1, bbox=None, area=None, iscrowd=None),
        annotation(2, bbox=[], area=None, segmentation=compressed(mask)),
    )
    target = ds[0][1]
    assert target["boxes"].tolist() == [[2, 3, 12, 13], [10, 4, 17, 9]]
    assert target["area"].tolist() == [100, 35] and target["iscrowd"].tolist() == [0, 0]
    assert [a["area"] for a in ds.ground_truth()["annotations"]] == [100, 35]


def test_missing_image_size_is_read_from_the_file(tmp_path):
    ds = open_one(tmp_path, annotation(), images=[{"id": 1, "file_name": "a.png"}])
    assert ds.sizes.tolist() == [[20, 30]]


def test_boxes_are_clipped_in_targets_alone(tmp_path):
    ds = open_one(tmp_path, annotation(bbox=[-5, 3, 50, 10.5]))
    assert ds[0][1]["boxes"].tolist() == [[0, 3, 30, 13.5]]
    assert ds.ground_truth()["annotations"][0]["bbox"] == [-5, 3, 50, 10.5]


def test_what_has_no_area_is_skipped_and_counted(tmp_path):
    ds = open_one(
        tmp_path,
        annotation(1, bbox=[2, 3, 0, 10]),
        annotation(2, bbox=[2, 3, 10, -1]),
        annotation(3, bbox=[31, 3, 10, 10]),
        annotation(4, bbox=[29.9999999, 3, 1e-9, 10]),
        annotation(5, segmentation=[[1, 1, 5, 5]]),
        annotation(6, segmentation=[]),
        annotation(7, segmentation=None),
        annotation(8, segmentation=compressed(mask_of())),
        annotation(9, image_id=7),
        annotation(10),
        annotation(11, segmentation=square(40)),
        annotation(12, segmentation=[[1, 1, 5, 5, 9]]),
    )
    assert len(ds[0][1]["boxes"]) == 1
    assert sorted(ds.skipped.values()) == [1, 1, 1, 1, 1, 2, 4] and sum(ds.skipped.values()) == 11
    assert list(ds.first_skipped.values()) == [f"id {i}" for i in (1, 5, 6, 8, 9, 11, 12)]
    for reason, count in ds.skipped.items():
        assert f"{count} {of_several(count, reason)} (first: {ds.first_skipped[reason]})" in ds.describe()
    assert [a["id"] for a in ds.ground_truth()["annotations"]] == [10]


def test_polygon_parts_of_two_points_are_left_out(tmp_path):
    target = open_one(tmp_path, annotation(segmentation=[[1, 1, 5, 5], *square()]))[0][1]
    assert target["masks"].areas().tolist() == [100]


def test_images_without_objects_have_empty_targets(tmp_path):
    images = [{"id": i, "file_name": f"{i}.png", "height": 20, "width": 30} for i in (1, 2, 3)]
    ds = open_one(tmp_path, annotation(1, 2), annotation(2, 3, iscrowd=1), images=images)
    target = ds[0][1]
    assert target["boxes"].shape == (0, 4) and target["labels"].shape == (0,) and target["area"].shape == (0,)
    assert len(target["masks"]) == 0 and target["masks"].size == SIZE
    assert ds.object_counts().tolist() == [0, 1, 0]
    assert ds.object_counts(crowd=True).tolist() == [0, 0, 1]


def test_sparse_and_float_ids(tmp_path):
    ds = open_one(
        tmp_path,
        annotation(5.0, 70.0, category_id=30.0),
        annotation(9, 70, category_id=10),
        images=[{"id": 70.0, "file_name": "a.png", "height": 20.0, "width": 30.0}],
        categories=[{"id": 30.0, "name": "late"}, {"id": 10, "name": "early"}],
    )
    target = ds[0][1]
    assert target["labels"].tolist() == [2, 1] and target["image_id"] == 70
    assert ds.label_map.category_ids == (10, 30) and ds.label_map.names == ("early", "late")
    truth = ds.ground_truth()
    assert [a["category_id"] for a in truth["annotations"]] == [30, 10]
    assert [a["id"] for a in truth["annotations"]] == [5, 9] and truth["images"][0]["id"] == 70


def test_ids_of_text_and_of_any_length_are_written_back(tmp_path):
    """Inside they are numbers, of which pycocotools can make an index."""
    ids = ["7", "img-a", 10**30, 5]
    ds = open_one(
        tmp_path,
        *(annotation(f"u{i}", image_id, category_id="cat") for i, image_id in enumerate(ids)),
        images=[{"id": i, "file_name": f"{n}.png", "height": 20, "width": 30} for n, i in enumerate(ids)],
        categories=[{"id": "cat", "name": "a"}, {"id": 8, "name": "b"}],
    )
    assert [ds.given_id(i) for i in range(4)] == ids and ds.object_counts().tolist() == [1] * 4
    truth = ds.ground_truth()
    numbers = [image["id"] for image in truth["images"]]
    assert numbers[0] == 7 and numbers[3] == 5 and all(0 < number < 2**62 for number in numbers)
    results = [{"image_id": a["image_id"], "category_id": a["category_id"], "score": 1} for a in truth["annotations"]]
    assert ds.with_given_ids(results) == [{"image_id": i, "category_id": "cat", "score": 1} for i in ids]
    again = LabelMap.from_dict(json.loads(json.dumps(ds.label_map.to_dict())))
    assert again == ds.label_map and again.given == {truth["annotations"][0]["category_id"]: "cat"}


def test_an_id_as_text_and_as_a_number_is_one(tmp_path):
    ds = open_one(tmp_path, annotation(1, "1", category_id="1"), annotation("2", 1.0))
    assert len(ds[0][1]["boxes"]) == 2 and ds.given_id(0) == 1


@pytest.mark.parametrize("ids", [(0, 1), (-4, 4), (None, 3), (None, None)])
def test_ground_truth_ids_are_positive_and_unique(tmp_path, ids):
    ds = open_one(tmp_path, *(annotation(i) for i in ids))
    assert [a["id"] for a in ds.ground_truth()["annotations"]] == [1, 2]


def test_subset_shares_the_annotations(tmp_path):
    images = [{"id": i, "file_name": f"{i}.png", "height": 20 + i, "width": 30} for i in range(1, 5)]
    ds = open_one(tmp_path, *(annotation(i, i) for i in range(1, 5)), images=images)
    part = ds.subset([3, 1])
    assert [part.image_id(i) for i in range(2)] == [4, 2] and part.sizes.tolist() == [[24, 30], [22, 30]]
    assert part.annotations is ds.annotations
    assert [a["image_id"] for a in part.ground_truth()["annotations"]] == [4, 2]
    assert [c["id"] for c in part.ground_truth()["categories"]] == [1]


def test_annotations_are_packed(tmp_path):
    """What grows with the data is numpy or torch: nothing with a reference count per annotation."""
    count = 300
    images = [{"id": i, "file_name": f"{i}.png", "height": 20, "width": 30} for i in range(count)]
    ds = open_one(tmp_path, *(annotation(i, i) for i in range(count)), images=images)
    for owner in (ds, ds.annotations, ds.annotations.masks, ds.annotations.masks.parts, ds.annotations.names):
        for name, value in vars(owner).items():
            assert not isinstance(value, (list, tuple, dict)) or len(value) < 10, name
    assert (pickle.loads(pickle.dumps(ds))[7][0] == ds[7][0]).all()


def wrong(**fields):
    return {"annotations": [annotation(5, **fields)]}


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (wrong(category_id=9), "category_id 9 is not in"),
        (wrong(category_id="x"), "category_id 'x' is not in the json's list"),
        (wrong(category_id=1.5), "category_id 1.5 is neither an integer nor text"),
        (wrong(category_id=None), "category_id' is missing"),
        (wrong(bbox=[1, 2, 3]), "bbox has 3 numbers"),
        (wrong(bbox=[1, 2, 3, math.nan]), "bbox holds a number that is not finite"),
        (wrong(bbox=[1, 2, 3, "x"]), "bbox is not a list of numbers"),
        (wrong(bbox=[1, 2, 3, 10**400]), "bbox holds a number that is not finite"),
        (wrong(area=math.inf), "area holds a number that is not finite"),
        (wrong(segmentation=[[1, 1, math.inf, 5, 5, 5]]), "polygon holds a number that is not finite"),
        (wrong(segmentation=None, bbox=None), "has neither segmentation nor bbox"),
        (wrong(segmentation=[[[1, 1], [5, 5], [9, 1]]]), "polygon is not a flat list"),
        (wrong(segmentation=[[1, 1, 1e9, 5, 5, 5]]), "polygon reaches 1e"),
        (wrong(segmentation="x"), "neither a list of polygons nor an RLE"),
        (wrong(segmentation={"size": [30, 20], "counts": [600]}), r"RLE is for a size of \[30, 20\]"),
        (wrong(segmentation={"size": [20, 30], "counts": [10, 5, 3]}), "RLE does not fit its size"),
        (wrong(segmentation={"size": [20, 30], "counts": [10, -5, 595]}), "RLE does not fit its size"),
        (wrong(segmentation={"size": [20, 30], "counts": "0"}), "RLE does not fit its size"),
        (wrong(segmentation={"size": [20, 30], "counts": [2**60] * 16 + [600]}), "RLE does not fit its size"),
        (wrong(segmentation={"size": [20, 30], "counts": "\x01"}), "RLE counts are damaged"),
        (wrong(segmentation={"size": [20, 30], "counts": "P"}), "RLE counts are damaged"),
        (wrong(segmentation={"size": [20, 30]}), "RLE has no counts"),
        (wrong(segmentation={"size": [20, 30], "counts": "\ud800"}), "RLE counts are damaged"),
        (wrong(iscrowd="0"), "iscrowd '0' is neither 0 nor 1"),
        (wrong(iscrowd=math.nan), "iscrowd nan is neither 0 nor 1"),
    ],
)
def test_a_wrong_annotation_is_named(tmp_path, content, told):
    path = tmp_path / "instances.json"
    path.write_text(json.dumps(coco(**content)))
    with pytest.raises(InputError, match=told) as error:
        read_annotations(path)
    assert str(error.value).startswith(f"{path}: annotation 5: ") and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (coco(annotations=[annotation(segmentation=None)]), "no annotation has a segmentation"),
        (coco(images=[{"id": 1, "file_name": "a.png", "height": 0, "width": 3}]), "id 1: a size of 3x0"),
        (coco(images=[{"id": 1.5, "file_name": "a.png", "height": 9, "width": 3}]), "image id 1.5: id 1.5"),
        (coco(images=[{"id": "x", "file_name": "a.png", "height": "9", "width": 3}]), "image id x: height '9' is not"),
        (coco(images=[{"id": 1, "height": 9, "width": 3}]), "image id 1: file_name None"),
        (coco(images=[{"id": 1, "file_name": "a", "height": 9, "width": 3}] * 2), r"id 1 is duplicated \(a and a\)"),
        (coco(images=[{"id": i, "file_name": "a", "height": 9, "width": 3} for i in ("7", 7)]), "image id 7 is dup"),
        (coco(categories=[]), "list of categories is empty"),
        (coco(categories=[{"id": 1, "name": "a"}] * 2), "category id 1 is duplicated"),
        (coco(categories=[{"name": "a"}]), "has no id"),
        (coco(categories=[{"id": 1, "name": "\ud800"}]), "category id 1: name '.ud800' is not text"),
        (coco(images=[{"id": 1, "file_name": "\ud800.png", "height": 9, "width": 3}]), "is not a file name"),
        (coco(annotations=[None]), "annotation None: is not an object"),
        ({"images": []}, "no list of annotations, categories"),
        ([1, 2], "no list of images"),
    ],
)
def test_a_wrong_json_is_named(tmp_path, content, told):
    path = tmp_path / "instances.json"
    path.write_text(json.dumps(content))
    with pytest.raises(InputError, match=told) as error:
        read_annotations(path)
    assert str(error.value).startswith(f"{path}: ")


@pytest.mark.parametrize("streamed", [True, False])
def test_a_key_that_stands_twice_is_named(tmp_path, streamed):
    path = tmp_path / "instances.json"
    for old, new, said in (
        ('"area": 100', '"area": 100, "area": 1', "key 'area' is duplicated in the object with id 1"),
        ('"images"', '"images": [], "images"', "key 'images' is duplicated in the object of images, annotations"),
    ):
        path.write_text(json.dumps(coco()).replace(old, new))
        with pytest.raises(InputError, match=f"instances.json: {said}"):
            read_annotations(path) if streamed else read_json(path)


@pytest.mark.parametrize("text", [json.dumps(coco())[:50], "9" * 5000])
def test_broken_json_is_named(tmp_path, text):
    path = tmp_path / "instances.json"
    path.write_text(text)
    with pytest.raises(InputError, match="instances.json: not valid json"):
        read_annotations(path)


def test_a_byte_order_mark_is_read_over(tmp_path):
    path = tmp_path / "instances.json"
    path.write_text(json.dumps(coco()), encoding="utf-8-sig")
    assert len(read_annotations(path)) == 1


@pytest.mark.parametrize("name", ["../../a.png", "/etc/passwd", "x/../../../a.png"])
def test_file_names_stay_in_the_data_folder(tmp_path, name):
    content = coco(images=[{"id": 8, "file_name": name, "height": 20, "width": 30}], annotations=[])
    (tmp_path / "instances.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match="instances.json: image id 8: file_name .* leaves the data folder"):
        CocoDataset(tmp_path / "instances.json", tmp_path / "images", tmp_path)


@pytest.mark.parametrize("few", [0, 1000])
def test_missing_images_are_found_in_one_look_as_one_by_one(tmp_path, monkeypatch, few):
    monkeypatch.setattr("train_utils.data.formats.coco.file_names.FEW", few)
    names = ["a.png", "in/b.png", "./c.png", "link.png", "gone.png", "broken.png", "in"]
    images = [{"id": i, "file_name": name, "height": 20, "width": 30} for i, name in enumerate(names)]
    folder = tmp_path / "images"
    for name in ("a.png", "in/b.png", "c.png"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    (folder / "link.png").symlink_to(folder / "a.png")
    (folder / "broken.png").symlink_to(folder / "nowhere.png")
    path = tmp_path / "instances.json"
    path.write_text(json.dumps(coco(images, [])))
    assert CocoDataset(path, folder).missing.tolist() == [False] * 4 + [True] * 3
    assert CocoDataset(path, folder).subset([5, 0]).missing.tolist() == [True, False]
    with pytest.raises(InputError, match="image id 0: file_name 'a.png' leaves the data folder"):
        CocoDataset(path, folder, tmp_path / "elsewhere")


def test_file_names_may_leave_the_image_folder(tmp_path):
    write(tmp_path, coco(images=[{"id": 1, "file_name": "../other/a.png", "height": 20, "width": 30}]))
    assert CocoDataset(tmp_path / "instances.json", tmp_path / "images", tmp_path)[0][0].shape == (3, 20, 30)


def test_another_size_than_the_json_says(tmp_path):
    ds = open_one(tmp_path, annotation())
    Image.new("RGB", (31, 20)).save(tmp_path / "images" / "a.png")
    with pytest.raises(InputError, match=r"a.png: the image is 31x20 .*s.json says 30x20 for image id 1"):
        ds[0]


@pytest.mark.parametrize(("size", "corner"), [((20, 30), (0, 0)), ((30, 20), (0, 19))])
def test_exif_rotation_follows_the_annotations(tmp_path, size, corner):
    """An image stored 20 x 30 that EXIF turns by 90 degrees is used in the frame that the json gives."""
    image = {"id": 1, "file_name": "a.png", "height": size[0], "width": size[1]}
    ds = open_one(tmp_path, annotation(), images=[image])
    pixels = np.zeros((20, 30, 3), dtype=np.uint8)
    pixels[0, 0] = 255
    exif = Image.Exif()
    exif[0x0112] = 6  # the stored upper left corner is at the upper right when upright
    Image.fromarray(pixels).save(tmp_path / "images" / "a.png", exif=exif)
    found = ds[0][0]
    assert tuple(found.shape[1:]) == size and found[0][corner] == 255


def test_missing_and_broken_images_are_image_errors(tmp_path):
    ds = open_one(tmp_path, annotation())
    (tmp_path / "images" / "a.png").write_bytes(b"")
    with pytest.raises(ImageError, match="a.png: the file is empty"):
        ds[0]
    (tmp_path / "images" / "a.png").unlink()
    with pytest.raises(ImageError, match="a.png: no such file"):
        ds[0]
    ds = CocoDataset(tmp_path / "instances.json", tmp_path / "images")
    assert "1 image file is missing" in ds.describe()


def test_categories_outside_a_given_label_map(tmp_path):
    path = write(tmp_path, coco())
    with pytest.raises(InputError, match=r"category 1 \(thing\) of image id 1 is not one of the 1 category of"):
        CocoDataset(path, tmp_path / "images", label_map=LabelMap.from_categories({4: "other"}))
    ds = CocoDataset(path, tmp_path / "images", label_map=LabelMap([7], [1], ["thing"]))
    assert ds[0][1]["labels"].tolist() == [7]


def test_coco_categories_keep_their_ids(tmp_path):
    categories = [{"id": i, "name": name} for i, name in coco_names().items()]
    ds = open_one(tmp_path, annotation(category_id=90), categories=categories)
    assert ds.label_map.num_labels == 91 and ds[0][1]["labels"].tolist() == [90]


@given(st.integers(1, 12), st.integers(1, 12), st.integers(0, 2**32))
def test_counts_of_compressed_rle(height, width, seed):
    mask = np.random.default_rng(seed).random((height, width)) < 0.4
    rle = compressed(mask.astype(np.uint8))
    assert decode_counts(rle["counts"].encode()).tolist() == uncompressed(mask.astype(np.uint8))["counts"]


@given(
    st.lists(
        st.tuples(
            st.integers(1, 12),
            st.integers(1, 12),
            st.integers(0, 2**32),
            st.sampled_from(("whole", "empty", "cut", "another size", "strange")),
        ),
        min_size=1,
        max_size=6,
    )
)
def test_many_compressed_rles_at_once(several):
    counts, pixels, runs = [], [], []
    for height, width, seed, how in several:
        mask = (np.random.default_rng(seed).random((height, width)) < 0.4).astype(np.uint8)
        whole = compressed(mask)["counts"].encode()
        counts.append({"empty": b"", "cut": whole[:-1] + b"o", "strange": whole + b"\x7f"}.get(how, whole))
        pixels.append(height * width + (how == "another size"))
        runs.append(uncompressed(mask)["counts"])
    found, first, damaged = decode_many(counts)
    kinds = [how for *_, how in several]
    assert damaged.tolist() == [how in ("empty", "cut", "strange") for how in kinds]
    assert rles_fit(counts, np.array(pixels)).tolist() == [how == "whole" for how in kinds]
    for i in np.flatnonzero(~damaged):
        assert found[first[i] : first[i + 1]].tolist() == runs[i]


def test_long_runs_of_compressed_rle():
    mask = np.zeros((900, 1200), dtype=np.uint8)
    mask[100:800, 300:303] = 1
    mask[5, 5] = mask[899, 1199] = 1
    assert decode_counts(compressed(mask)["counts"].encode()).tolist() == uncompressed(mask)["counts"]


@pytest.mark.parametrize(
    ("json_name", "image_dir"),
    [
        ("coco_mini/annotations/instances_val2017.json", "coco_mini/val2017"),
        ("nuclei/instances_val.json", "nuclei/images"),
    ],
)
def test_real_data_equals_pycocotools(shared_data, json_name, image_dir):
    ds = CocoDataset(shared_data / json_name, shared_data / image_dir)
    reference = COCO(str(shared_data / json_name))
    originals = {a["id"]: a for a in reference.dataset["annotations"]}
    truth = ds.ground_truth()
    assert len(truth["annotations"]) == len(originals) and not ds.skipped
    for found in truth["annotations"]:
        keys = found.keys() - ({"segmentation"} if found["iscrowd"] else set())
        assert all(found[key] == originals[found["id"]][key] for key in keys)
    for i in range(0, len(ds), 7):
        target = ds.target(i)
        masks = [reference.annToMask(a) for a in reference.imgToAnns[ds.image_id(i)]]
        assert (target["masks"].to_masks().numpy() == np.stack(masks)).all()


def test_a_real_photo_of_another_size(shared_data, tmp_path):
    content = json.loads((shared_data / "coco_mini/annotations/instances_val2017.json").read_text())
    first, other = content["images"][0], content["images"][1]
    path = tmp_path / "instances.json"
    path.write_text(json.dumps(content))
    shutil.copy(shared_data / "coco_mini/val2017" / other["file_name"], tmp_path / first["file_name"])
    ds = CocoDataset(path, tmp_path)
    with pytest.raises(InputError, match=f"image id {first['id']}"):
        ds[0]
