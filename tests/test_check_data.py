"""The data doctor: what the loader says of each odd case, all of it; oddities, doubles, anchors, corrected copies."""

import json
import os
import random
import sys
from unittest.mock import patch

import numpy as np
import pytest
import torch
from PIL import Image

from backbone.errors import InputError
from network_files.anchors import AnchorGrid
from network_files.config import MaskRCNNConfig
from network_files.operators.boxes import box_iou
from tests.browser import Browser, needs_browser
from tests.coco_folders import annotation, coco, many, write, write_image
from tests.faults import catalogue, fuzz
from tests.npy_folders import add, rectangles
from tests.npy_folders import many as many_npy
from tests.small_runs import call
from tests.test_yolo import TRIANGLE
from tests.test_yolo import pair as yolo_pair
from tests.tiny_model import write_checkpoint, write_coco, write_images
from tools import check_data, pack_dataset
from tools.doctor import classes, duplicates, finds, images, looks, page, statistics
from tools.doctor.opening import open_all
from tools.doctor.table import outlines, table_of
from train_utils.data.dataset import ImageDataset
from train_utils.data.formats.shapes import make_shapes
from train_utils.data.objects import anchors
from train_utils.data.opening import open_data
from train_utils.data.options import DataOptions
from train_utils.io import array_cache as annotation_cache
from train_utils.io.plain_text import of_several


@pytest.fixture
def run(command, tmp_path):
    """Runs the command -> (exit status, stdout, stderr, check_data.json or None)."""
    path = tmp_path / "checked" / "check_data.json"

    def run(*words, samples=0):
        path.unlink(missing_ok=True)
        done = command(check_data, *words, "--output-dir", path.parent, "--samples", samples)
        return *done, json.loads(path.read_text()) if path.exists() else None

    return run


def texts(found: dict, severity: str) -> list[str]:
    return [find["text"] for kind in found["finds"] if kind["severity"] == severity for find in kind["finds"]]


def counts(found: dict) -> dict[str, int]:
    return {kind["title"]: kind["count"] for kind in found["finds"]}


@pytest.mark.parametrize("case", catalogue.cases(), ids=lambda case: case.name)
def test_each_case_of_the_catalogue_is_told_as_training_tells_it(case, tmp_path, run):
    data = case.data(tmp_path / "data")
    case.make(data)
    data.write()
    with (
        patch.dict(os.environ, {"MASKRCNN_CACHE": str(tmp_path / "cache")}),
        patch.object(annotation_cache, "WORTHWHILE", 1),
    ):
        for _ in range(1 + (case.outcome == catalogue.SKIP)):  # the second reads what the first has stored
            status, _, err, found = run(data.folder, "--min-size", 64, "--max-size", 96)
            assert not err, err
    errors, warnings = texts(found, "error"), texts(found, "warning")
    if case.outcome == catalogue.ERROR:
        assert status == 2 and any(all(word in text for word in case.says) for text in [*errors, found["error"] or ""])
        assert errors and found["error"]
    else:
        assert status < 2 and not errors and found["error"] is None, errors
    if case.outcome == catalogue.SKIP:
        if case.of == "images":
            skipped = [text for text in warnings if all(word in text for word in case.says)]
            assert len(skipped) == 2 * case.skips  # in train and in val
        else:
            (reason,) = case.says
            number, reason = reason.split(" (first")[0].split(" ", 1)
            titles = {title: of_several(int(number), title.removeprefix("skipped: ")) for title in counts(found)}
            found_skipped = [n for title, n in counts(found).items() if titles[title] == reason]
            assert found_skipped == [2 * int(number)] == [2 * case.skips]


@pytest.mark.parametrize(
    "message, title",
    [
        ("a.json: annotation 7: iscrowd '0' is neither 0 nor 1; mend it", "iscrowd is neither 0 nor 1"),
        (
            "b/1.png: the image is 48x65 (width x height), but b/a.json says 48x64 for image id 1",
            "images of another size than annotated",
        ),
        ("b.xml: object 2: class 'Cat' is not in names.json (is 'cat' meant?); give it", "class is not in names.json"),
        ("a.json: annotation 7: 'category_id' is missing", "'category_id' is missing"),
        ("a.json: " + "word " * 30, "word " * 19 + "…"),
        ("m.png: cannot read this mask (no image 'a/b (1).png')", "cannot read this mask"),
    ],
)
def test_the_title_of_a_message_has_no_values_and_ends_with_a_word(message, title):
    assert finds.kind_of(message) == title


def both(folder, content):
    """The content as train and, with other images, as val."""
    write(folder, content, "annotations/instances_train2017.json", "train2017")
    write(folder, many(6, 1001), "annotations/instances_val2017.json", "val2017")
    noise(folder)
    return folder


def noise(folder):
    """Other pixels in each image."""
    for number, path in enumerate(sorted(folder.rglob("*.png"))):
        size = Image.open(path).size[::-1]
        pixels = np.random.default_rng(number).integers(0, 256, (4, 4), dtype=np.uint8)
        Image.fromarray(pixels).resize(size[::-1]).save(path)


def test_data_without_a_complaint(run, tmp_path):
    before = {path: path.read_bytes() for path in both(tmp_path / "d", many(6)).rglob("*") if path.is_file()}
    status, out, _, found = run(tmp_path / "d", "--min-size", 40, "--max-size", 60, "--anchor-sizes", 8, 16, 20, 64, 99)
    assert status == 0 and "train.py would open this data" in out, out
    assert counts(found) == {"classes of fewer than 10 objects in training": 1}
    assert {path: path.read_bytes() for path in (tmp_path / "d").rglob("*") if path.is_file()} == before
    assert found["splits"]["train"]["objects"] == 6 and found["classes"] == {"thing": {"train": 6, "val": 6}}
    assert found["histograms"]["objects by size"]["16-32"] == 12


def test_every_mistake_is_listed(run, tmp_path):
    data = many(6)
    data["images"] += [{"id": 3, "file_name": "3.png", "height": 20, "width": 30}, {"id": 8}, {"file_name": "9.png"}]
    data["images"][0]["height"] = 0
    changes = [
        {"bbox": [1, 2, 3]}, {"bbox": [1, 2, float("nan"), 4]}, {"iscrowd": "0"}, {"category_id": 5},
        {"segmentation": "x"}, {"segmentation": []}, {"image_id": 99}, {"image_id": 8}, {"id": 2},
        {"id": 3, "bbox": [1]},
    ]  # fmt: skip
    for number, change in enumerate(changes, 20):
        data["annotations"].append({**annotation(number, 2), **change})
    data["categories"] += [{"id": 1, "name": "again"}, {"name": "no id"}]
    for image in data["images"]:
        write_image(tmp_path / "d" / "images" / image.setdefault("file_name", "8.png"))
    data["images"][-2].pop("file_name")
    (tmp_path / "d" / "instances.json").write_text(json.dumps(data))
    (tmp_path / "d" / "images" / "5.png").unlink()
    status, _, _, found = run(tmp_path / "d")
    errors = "\n".join(texts(found, "error"))
    for said in (
        "image id 1: a size of 30x0", "image id 3 is duplicated", "image id 8: file_name None", "has no id",
        "annotation 20: bbox has 3", "annotation 21: bbox holds a number", "annotation 22: iscrowd '0'",
        "annotation 23: category_id 5 is not in", "annotation 24: segmentation is neither",
        "annotation id 2 is duplicated", "annotation id 3 is duplicated", "category id 1 is duplicated", "'no id'",
        "5.png is missing",
    ):  # fmt: skip
        assert said in errors, said
    assert status == 2 and found["counts"]["error"] == len(errors.splitlines()) == 15, errors
    listed = counts(found)
    assert listed["skipped: annotations without segmentation"] == 1
    assert listed["skipped: annotations of images that are not listed"] == 1
    assert listed["annotations of images that have an error: not checked"] == 2  # of images 1 and 8
    wanted = {"images": 5, "objects": 6, "crowd_regions": 0}
    assert found["splits"]["all"] == {"source": found["splits"]["all"]["source"], **wanted}


def box(i, x, y, w, h, area):
    """Fields of an annotation whose polygon is its box."""
    outline = [[x, y, x + w, y, x + w, y + h, x, y + h]]
    return {"id": i, "bbox": [x, y, w, h], "segmentation": outline, "area": area}


ODD = [  # more annotations of image 2, and what they are told as
    ({"id": 30, "image_id": 2}, "objects annotated twice (same class, boxes of IoU over 0.95)"),
    ({"id": 31, "bbox": [20, 3, 9, 9]}, "boxes that are not their mask's (IoU under 0.5)"),
    (box(32, 2, 3, 60, 10, 280), "boxes that reach out of the image"),
    ({"id": 33, "area": 1000}, "areas that are not their mask's"),
    (box(34, 5, 5, 0.9, 9, 8), "objects less than a pixel wide or high"),
    ({"id": 35, "bbox": [5, 5, 2, 2], "segmentation": [[5, 5, 7, 7, 5, 5]], "area": 1}, "polygons that cover no pixel"),
    (box(36, 0, 0, 30, 20, 600), "objects that cover over 95% of their image"),
    (box(37, 0, 5, 29, 1.2, 29), "objects over 20 times as long as wide"),
]


def spoilt(folder):
    """All of ODD, on an image each, and what the loader itself skips or refuses but can be corrected."""
    data = many(20)
    data["categories"].append({"id": 2, "name": "Thing "})
    for row, (fields, _) in enumerate(ODD):
        data["annotations"].append(annotation(**{"image_id": row + 2, **fields, "i": fields["id"]}))
    return both(folder, data)


def test_each_oddity_is_told(run, tmp_path):
    status, _, _, found = run(spoilt(tmp_path / "d"), "--min-size", 40, "--max-size", 60)
    listed = {kind["title"]: [find["annotation"] for find in kind["finds"]] for kind in found["finds"]}
    assert status == 1 and found["error"] is None
    for fields, title in ODD:
        assert fields["id"] in listed[title], title
    assert counts(found)["classes whose names differ only in capitals, blanks or signs, or not at all"] == 1
    assert counts(found)["classes without any object"] == 1
    table = table_of(open_data(tmp_path / "d").train)
    masks = outlines(table)
    for k in range(len(table.ids)):  # polygons with whole numbers of pixels measure what they enclose
        if (masks.tight[k] % 1 == 0).all() and table.ids[k] not in (35,):
            assert masks.areas[k] == (masks.tight[k, 2:] - masks.tight[k, :2]).prod()


def test_images_and_splits(run, tmp_path, monkeypatch):
    data = many(12)
    data["annotations"] = [a for a in data["annotations"] if a["image_id"] != 3]
    data["annotations"] += [annotation(100 + i, 4, bbox=[i % 28, i % 17, 2, 3]) for i in range(60)]
    for number, name in ((1001, "1001.png"), (2002, "1002.png")):
        data["images"].append({"id": number, "file_name": name, "height": 20, "width": 30})
    data["categories"] = [{"id": 0, "name": "other"}, {"id": 1, "name": "thing"}]
    for a in data["annotations"]:
        a["category_id"] = 0
    folder = both(tmp_path / "d", data)
    (folder / "train2017" / "1001.png").write_bytes((folder / "val2017" / "1001.png").read_bytes())
    for split, value in (("train2017", 3), ("val2017", 4)):  # of one name and one size, but not the same
        Image.new("RGB", (30, 20), (value, 9, 9)).save(folder / split / "1002.png", "BMP")
    write_image(folder / "train2017" / "5.png")  # of one colour
    upright, exif = Image.open(folder / "train2017" / "6.png"), Image.Exif()
    exif[0x0112] = 6
    upright.rotate(90, expand=True).save(folder / "train2017" / "6.png", exif=exif)
    (folder / "train2017" / "7.png").write_bytes(b"text")
    status, out, _, found = run(folder, "--min-size", 40, "--max-size", 60, "--box-detections-per-img", 50)
    listed = {kind["title"]: [find["image"] for find in kind["finds"]] for kind in found["finds"]}
    assert listed["images without objects"] == [3, 1001, 2002] and listed["images of one colour"] == [5]
    assert listed["images with suspiciously many objects"] == [4]
    assert listed["images with more objects than the model may report"] == [4]
    assert listed["images both in train and in val"] == [1001] == listed["the same image in train and in val"]
    assert listed["file names both in train and in val"] == [1002]
    assert listed["images turned by their EXIF orientation"] == [6]
    assert listed["skipped: images that cannot be read"] == [7]
    assert counts(found)["image ids both in train and in val"] == counts(found)["category ids that begin at 0"] == 1
    assert counts(found)["classes in val, but not in train"] == 1
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    quick = run(folder, "--quick", samples=2)
    assert all(stage in quick[2] for stage in ("reading the data", "looking at the objects", "trying anchors", "sheet"))
    assert "images of one colour" not in counts(quick[3])
    assert "--full opens all" in (tmp_path / "checked" / "check_data.html").read_text()


def test_doubles(tmp_path, shared_data):
    """Saved, smaller and darker copies are found; of dark microscopy images none is taken for another."""
    paths = sorted((shared_data / "nuclei" / "images").glob("*.png"))[:40]
    image = Image.open(sorted((shared_data / "coco_mini" / "val2017").glob("*.jpg"))[0])
    for name, other in (
        ("a.jpg", image),
        ("b.png", image),
        ("c.jpg", image.resize((320, 213))),
        ("d.jpg", image.point(lambda value: value * 0.7)),
        ("e.png", image.transpose(0)),
    ):
        other.save(tmp_path / name, quality=60)
    seen = {"": images.full_pass([*sorted(tmp_path.iterdir()), *paths], 0, finds.Finds())}
    found = {(double.first[1], double.second[1]) for double in duplicates.find_doubles(seen, finds.Finds())}
    assert found == {(0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3)}


def test_images_of_one_hash_are_told_apart_by_their_thumbnails():
    thumbs = np.random.default_rng(0).integers(0, 256, (3, images.THUMB**2), dtype=np.uint8)
    thumbs[1, :600] = thumbs[0, :600]  # correlate by a half
    thumbs[2] = thumbs[0] // 2
    seen = [images.Seen(i, None, False, (), bytes([i]), 5, thumb.tobytes(), 0.0) for i, thumb in enumerate(thumbs)]
    noted = finds.Finds()
    (double,) = duplicates.find_doubles({"train": seen[:2], "val": seen[2:]}, noted)
    assert (double.first, double.second) == (("train", 0), ("val", 2)) and not double.same
    assert not noted.texts(finds.WARNING)
    with patch.object(duplicates, "MOST_PAIRS", 2):
        duplicates.find_doubles({"": seen}, noted)
    assert noted.texts(finds.WARNING) == ["after 3 pairs of images that look alike, of 3 images"]


def test_near_hashes_are_those_of_a_plain_loop():
    rng = np.random.default_rng(0)
    hashes = rng.integers(0, 2**63, 60, dtype=np.uint64)
    for bits in range(1, 10):
        flips = rng.choice(64, bits, replace=False).astype(np.uint64)
        hashes = np.append(hashes, hashes[bits] ^ np.bitwise_or.reduce(np.uint64(1) << flips))
    for byte in range(8):  # a bit of all others
        hashes = np.append(hashes, hashes[20 + byte] ^ np.uint64(0x0101010101010101 & ~(1 << 8 * byte)))
    with patch.object(duplicates, "BLOCK", 3):
        found = duplicates.near_hashes(hashes)
    wanted = [
        (i, j)
        for j in range(len(hashes))
        for i in range(j)
        if bin(int(hashes[i] ^ hashes[j])).count("1") <= duplicates.MOST_BITS
    ]
    assert sorted(found) == sorted(wanted) and len(wanted) >= 15


@pytest.mark.parametrize(
    "fields",
    [
        {"min_size": (64,), "max_size": 96},
        {"min_size": (100,), "max_size": 333},
        {"fixed_size": (128, 160), "anchor_sizes": (11, 20, 33, 70, 140), "aspect_ratios": (0.3, 1.0)},
    ],
)
def test_anchors_are_those_of_the_grid(tmp_path, fields):
    """Each object's best IoU is that of box_iou with every anchor of its image's grid."""
    config = MaskRCNNConfig(**{"anchor_sizes": (8, 16, 32, 64, 128), **fields})
    rng, data = random.Random(3), many(0)
    for i, (height, width) in enumerate([(40, 64), (64, 40), (33, 90)], 1):
        data["images"].append({"id": i, "file_name": f"{i}.png", "height": height, "width": width})
        for number in range(30):
            x, y = rng.uniform(-3, width - 3), rng.uniform(-3, height - 3)
            w, h = rng.uniform(4, width - x), rng.uniform(4, height - y)
            corners = [[x, y, x + w, y, x + w, y + h, x, y + h]]
            data["annotations"].append(annotation(100 * i + number, i, bbox=[x, y, w, h], segmentation=corners))
    write(tmp_path, data)
    table = table_of(open_data(tmp_path, val_fraction=0, split="train").train)
    objects = anchors.scene(table, config)
    found = anchors.best_iou(objects, config.anchor_sizes, config.aspect_ratios)
    small, padded = anchors.resized(table, config)
    grid, wanted = AnchorGrid(config.anchor_sizes, config.aspect_ratios), []
    for i, (high, wide) in enumerate(padded.tolist()):
        maps = [torch.zeros(1, 1, high // s, wide // s) for s in anchors.STRIDES]
        maps.append(torch.nn.functional.max_pool2d(maps[-1], 1, 2))
        every = torch.cat(grid(maps, (high, wide))).double()
        boxes = torch.from_numpy(objects.boxes[table.image == i])
        wanted.append(box_iou(boxes, every).max(1).values)
    assert np.allclose(found, torch.cat(wanted).numpy(), atol=1e-6)


def test_better_anchors_are_proposed_and_reach_what_is_said(run, tmp_path):
    both(tmp_path / "d", many(12))  # squares of 10 pixels
    _, out, _, found = run(tmp_path / "d", "--min-size", 20, "--max-size", 30)
    own, better = found["anchors"][:2]
    assert own["share_at_0.5"] < 0.1 and better["share_at_0.5"] == 1.0
    sizes = [str(size) for size in better["anchor_sizes"]]
    assert f"--anchor-sizes {' '.join(sizes)}" in out
    again = run(tmp_path / "d", "--min-size", 20, "--max-size", 30, "--anchor-sizes", *sizes)[3]
    assert again["anchors"] == [better]
    _, out, _, of_auto = run(tmp_path / "d", "--min-size", 20, "--max-size", 30, "--anchor-sizes", "auto")
    assert of_auto["anchors"] == [better] and f"anchor_sizes: {' '.join(sizes)} (auto): they overlap 100.0% by" in out
    whole = write(tmp_path / "whole", many(10)), "--image-dir", tmp_path / "whole/images"  # of which training has 8
    assert "of 8 training objects" in run(*whole, "--min-size", "auto", "--anchor-sizes", "auto", "--quick")[1]


def test_what_a_perfect_mask_head_reaches_is_said(run, tmp_path):
    cracks = [[x, 4, x + 3, 4, x + 52, 44, x + 49, 44] for x in (2, 9)]  # thinner than a cell of 6 in their boxes
    squares = [[x, 30, x + 6, 30, x + 6, 36, x, 36] for x in (4, 12)]
    objects = []
    for points in cracks + squares:
        (x1, x2), (y1, y2) = ((min(side), max(side)) for side in (points[::2], points[1::2]))
        objects.append(annotation(len(objects) + 1, bbox=[x1, y1, x2 - x1, y2 - y1], segmentation=[points]))
    objects.append(annotation(9, iscrowd=1, segmentation=[squares[0]]))
    both(tmp_path / "d", coco([{"id": 1, "file_name": "a.png", "height": 48, "width": 64}], objects))
    flags = ("--geometry", "torchvision", "--mask-roi-size", 3, "--min-size", 64, "--max-size", 86)
    out, found = run(tmp_path / "d", *flags)[1::2]
    kinds = [("torchvision", 3), ("half_pixel", 3), ("half_pixel", 6), ("half_pixel", 12)]
    assert [(kind["geometry"], kind["mask_roi_size"]) for kind in found["masks"]] == kinds
    assert {kind["objects"] for kind in found["masks"]} == {4 + 6}
    torchvision, half, finer, finest = found["masks"]
    assert half["share_above_0.9"] == half["share_above_0.5"] == 0.8  # all squares come back, the cracks do not
    assert torchvision["share_above_0.9"] < 0.8 and torchvision["mean_iou"] < half["mean_iou"] < finer["mean_iou"]
    assert finest["share_above_0.5"] == 1
    numbers = f"mean IoU {half['mean_iou']:.3f}, 80.0% above 0.5, 80.0% above 0.9"
    page = (tmp_path / "checked" / "check_data.html").read_text()
    for text in (out, page):
        assert "--geometry half_pixel --mask-roi-size 12" in text and numbers in text
    assert "(--geometry torchvision --mask-roi-size 3: 6 x 6 cells): a perfect mask head reaches mean IoU" in out
    assert "on 10 objects" in out and "(16 times the mask head" in page
    advised = [kind for kind in kinds[1:] if "<pre>--geometry {} --mask-roi-size {}</pre>".format(*kind) in page]
    assert advised == [("half_pixel", 3), ("half_pixel", 12)]  # 6 reaches no more objects than 3


def test_images_whose_masks_cannot_be_read_are_left_out_and_counted(run, tmp_path, monkeypatch):
    target = ImageDataset.target
    folder = write_coco(tmp_path / "d")

    def first_is_broken(self, i):
        if i == 0:
            raise InputError("0.png: its mask is damaged")
        return target(self, i)

    monkeypatch.setattr(ImageDataset, "target", first_is_broken)
    _, out, _, found = run(folder, "--quick")
    # train.py's default on COCO weights, whose predictors are replaced for these classes
    assert {kind["geometry"] for kind in found["masks"]} == {"half_pixel_masks"}
    assert (
        found["masks"][0]["objects"] == 3 + 3 and "on 6 objects; 2 images left out, whose masks cannot be read" in out
    )


def test_masks_of_real_photos_and_cells_come_back(shared_data, monkeypatch):
    monkeypatch.setattr(statistics, "SAMPLE", 80)
    config = MaskRCNNConfig(geometry="half_pixel")
    for name, least in (("coco_mini", 0.97), ("nuclei", 0.995)):
        (reach, *_) = statistics.mask_reach({"val": open_data(shared_data / name, split="val").val}, config, 0)
        assert reach.roi_size == 14 and reach.ious.mean() > least and reach.share(0.9) > 0.99


def test_the_model_is_the_checkpoints_or_the_built_in_ones(run, tmp_path, monkeypatch):
    """And the console says which, and how many classes have objects."""
    data = many(12)
    data["categories"].append({"id": 2, "name": "other"})
    both(tmp_path / "data" / "shapes", data)
    monkeypatch.chdir(tmp_path)
    _, out, _, found = run("data/shapes")
    assert "(--min-size 192 --max-size 192 --anchor-sizes 16 32 64 128 256 --aspect-ratios 0.5 1 2)" in out
    assert "train: 12 images (0 without objects), 12 objects of 2 classes (1 of them with objects)" in out
    checkpoint = write_checkpoint(tmp_path / "W.pth")
    _, out, _, found = run("data/shapes", "--weights-path", checkpoint, "--max-size", 77)
    assert f"anchors of the model of {checkpoint}, and the flags given (--min-size 64 --max-size 77 --anchor" in out
    assert found["anchors"][0]["anchor_sizes"] == [8, 16, 32, 48, 64]
    (tmp_path / "none.pth").write_bytes(b"")
    status, _, err, _ = run("data/shapes", "--weights-path", tmp_path / "none.pth")
    assert status == 2 and err.startswith("error: ") and "none.pth" in err and err.count("\n") == 1


def fixable(folder):
    """`spoilt`, and more that the loader skips or refuses."""
    spoilt(folder)
    path = folder / "annotations" / "instances_train2017.json"
    data = json.loads(path.read_text())
    data["images"].append({"id": 70, "file_name": "gone.png", "height": 20, "width": 30})
    data["images"].append(dict(data["images"][0]))
    data["images"][1].update(height=None, width=None)
    changes = [
        {"bbox": [1, 2, 3]}, {"bbox": [1, 2, float("nan"), 4]}, {"bbox": [4, 4, 0, 9]}, {"iscrowd": "0"},
        {"area": float("nan")}, {"segmentation": []}, {"image_id": 99}, {"image_id": 70}, {"id": 2},
        {"segmentation": [[1, 2, 3]]},
    ]  # fmt: skip
    for number, change in enumerate(changes, 50):
        right, bottom = 3 + number % 7, 11 + number % 7
        whole = annotation(number, 15 + number % 5, segmentation=[[right, 4, 13, 4, 13, bottom, 3, bottom]], bbox=None)
        data["annotations"].append({**whole, **change})
    data["annotations"].append(dict(data["annotations"][3], id=90))
    path.write_text(json.dumps(data))
    return folder


FIXED = [t for _, t in ODD if t.startswith(("boxes", "areas", "polygons")) and not t.startswith("boxes that are not")]


def test_a_corrected_copy_has_nothing_left_of_what_was_corrected(run, tmp_path):
    folder = fixable(tmp_path / "d")
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    status, out, _, found = run(folder, "--fix", tmp_path / "fixed")
    assert status == 2 and set(FIXED) <= counts(found).keys()
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
    listed = json.loads((tmp_path / "fixed" / "changes.json").read_text())
    changes = {(c["about"], c["id"], c["what"]) for c in listed["changes"]}
    wanted = {
        ("annotation", "bbox"): (32, 50, 51, 52), ("annotation", "area"): (33, 54), ("annotation", "id"): (2,),
        ("annotation", "iscrowd"): (53,), ("annotation", "entry"): (30, 35, 55, 56, 57, 59, 90),
        ("image", "entry"): (1, 70), ("image", "width, height"): (2,),
    }  # fmt: skip
    assert changes >= {(about, i, what) for (about, what), ids in wanted.items() for i in ids}, changes
    assert len((tmp_path / "fixed" / "changes.txt").read_text().splitlines()) == len(listed["changes"])
    assert not any(kind["title"] in FIXED or kind["severity"] == "error" for kind in listed["left_to_you"])
    image_dir = listed["image_dir"]
    assert f"train.py --data-path {tmp_path / 'fixed'} --image-dir {image_dir}" in out
    data = open_data(tmp_path / "fixed", image_dir=image_dir, strict=True)
    assert len(data.train) == 20 and len(data.val) == 6 and data.train[0][0].shape == (3, 20, 30)
    status, _, _, again = run(tmp_path / "fixed", "--image-dir", image_dir, "--fix", tmp_path / "twice")
    assert status == 1 and not set(FIXED) & counts(again).keys()
    assert json.loads((tmp_path / "twice" / "changes.json").read_text())["changes"] == []
    for name in ("instances_train.json", "instances_val.json"):
        assert (tmp_path / "twice" / name).read_bytes() == (tmp_path / "fixed" / name).read_bytes()


def test_what_a_correction_makes_the_same_is_taken_out_once(run, tmp_path):
    folder = write_coco(tmp_path / "d")
    for path in folder.glob("*.json"):
        content = json.loads(path.read_text())
        first = content["annotations"][0]
        content["annotations"] += [{**first, "id": 8, "iscrowd": "0"}, {**first, "id": 9, "bbox": [30, 30, 5, 5]}]
        path.write_text(json.dumps(content))
    run(folder, "--fix", tmp_path / "one")
    run(tmp_path / "one", "--image-dir", folder / "images", "--fix", tmp_path / "two")
    first, second = (json.loads((tmp_path / name / "changes.json").read_text())["changes"] for name in ("one", "two"))
    taken_out = [change["id"] for change in first if change["what"] == "entry"]
    assert taken_out == [8, 8] and second == []


def test_a_box_and_a_mask_that_disagree_both_stay(run, tmp_path):
    data = many(12)
    wrong = [
        {"bbox": [20, 10, 8, 8]},
        {"segmentation": [[0.1, 0.2, 0.4, 0.2, 0.4, 0.6]]},
        {"bbox": [0.1, 0.2, 0.4, 0.3]},
    ]
    for own, changed in zip(data["annotations"], wrong, strict=False):
        own |= {"area": 999, **changed}
    write(tmp_path / "d", data)
    _, out, _, found = run(tmp_path / "d", "--fix", tmp_path / "fixed")
    assert json.loads((tmp_path / "fixed" / "instances.json").read_text()) == data and "nothing to correct" in out
    assert "left to you: warning: boxes that are not their mask's (IoU under 0.5): 3" in out
    shares = next(title for title in counts(found) if "numbers are all from 0 to 1" in title)
    assert counts(found)[shares] == 2 and "train on it" not in out


def test_a_split_keeps_its_objects(run, tmp_path):
    data = many(12)
    for own in data["annotations"]:
        own["segmentation"] = [[1, 1, 2, 2]]
    write(tmp_path / "d", many(12), "instances_train.json")
    write(tmp_path / "d", data, "instances_val.json")
    _, out, _, _ = run(tmp_path / "d", "--fix", tmp_path / "fixed")
    assert json.loads((tmp_path / "fixed" / "instances_val.json").read_text()) == data
    assert "left as it is, as it would lose all its 12 objects: training skips it: " in out and "train on it" not in out


def test_more_finds_than_before_are_said(run, tmp_path):
    data = many(12)
    data["categories"].append({"id": 2, "name": "rare"})
    data["annotations"][0] |= {
        "category_id": 2,
        "segmentation": [[1, 1, 1.01, 1, 1.01, 1.01]],
        "bbox": [1, 1, 0.01, 0.01],
    }
    write(tmp_path / "d", data)
    _, out, _, _ = run(tmp_path / "d", "--fix", tmp_path / "fixed")
    assert "more than before: classes without any object: 0 -> 1" in out and "train on it" not in out


def test_what_cannot_be_meant_stays(run, tmp_path):
    data = many(3)
    data["annotations"] += [annotation(20, 1, category_id=7), annotation(21, 2, segmentation="x")]
    write(tmp_path / "d", data)
    _, out, _, _ = run(tmp_path / "d", "--fix", tmp_path / "fixed")
    fixed = json.loads((tmp_path / "fixed" / "instances.json").read_text())
    assert fixed == data and "left to you: error" in out and "nothing to correct" in out
    assert "training would still stop: " in out and "; left to you: 2 errors" in out and "train on it" not in out
    assert f"{tmp_path / 'fixed' / 'instances.json'}: annotation 20" in out


def test_what_only_the_images_tell_is_left_to_the_user(run, tmp_path):
    """And file names that begin elsewhere are no correction."""
    data = many(12)
    data["annotations"].append(annotation(20, 4, bbox=[2, 3, 5, 5], segmentation=[[2, 3, 7, 3, 7, 8, 2, 8]], area=25))
    folder = both(tmp_path / "d", data)
    (folder / "train2017" / "2.png").write_bytes(b"text")
    write_image(folder / "train2017" / "3.png", (20, 31))
    _, out, _, _ = run(folder, "--box-detections-per-img", 1, "--fix", tmp_path / "fixed")
    left = json.loads((tmp_path / "fixed" / "changes.json").read_text())
    titles = [kind["title"] for kind in left["left_to_you"]]
    for title in ("skipped: images that cannot be read", "images with more objects than the model may report"):
        assert title in titles, titles
    assert "training would still stop: " in out and "3.png" in out and "; left to you: 1 error\n" in out
    assert left["changes"] == [] and "nothing to correct" in out and "begins with train2017/" in left["remarks"][0]


def test_the_contact_sheet_augments_training_images_only(run, tmp_path):
    data, seen = many(6), []
    data["categories"].append({"id": 2, "name": "unused"})

    def record(image, target, rng):
        seen.append(int(target["image_id"]))
        return image.flip(2), target

    with patch.object(page, "augmentation_of", lambda *_: record):
        run(both(tmp_path / "d", data), samples=20)
    told = (tmp_path / "checked" / "check_data.html").read_text()
    assert sorted(seen) == [1, 2, 3, 4, 5, 6] and "mirrored by chance" in told
    assert "(1 object, train)" in told and "width:0.0%" not in told and "</b>class without any object" in told
    write_images(tmp_path / "images")
    run(tmp_path / "images", samples=20)
    told = (tmp_path / "checked" / "check_data.html").read_text()
    assert "Some of the images" in told and "mirrored" not in told


def test_what_is_no_data_set_is_said_once(run, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes.txt").write_text("text")
    for name in ("empty", "notes.txt"):
        status, out, _, found = run(tmp_path / name)
        assert status == 2 and f"{tmp_path / name} (no known layout)" in out and out.count("looked for") <= 1
        assert found["error"] and found["layout"] == "no known layout"
        assert "image was opened" not in (tmp_path / "checked" / "check_data.html").read_text()


@pytest.mark.parametrize(
    "words, said",
    [
        (["NONE"], "no such file or folder"),
        (["DATA", "--fix", "DATA/images"], "exists already"),
        (["NPY", "--fix", "OUT"], "only COCO jsons are corrected"),
        (["DATA", "--full", "--quick"], "not allowed with"),
    ],
)
def test_wrong_use_is_one_line(run, tmp_path, words, said):
    many_npy(tmp_path / "NPY", 2)
    write_coco(tmp_path / "DATA")
    words = [str(tmp_path / word) if word.isupper() or "/" in word else word for word in words]
    status, _, err, _ = run(*words)
    assert status == 2 and said in err and err.count("\n") == 1


def test_the_output_does_not_go_into_the_data(tmp_path, command):
    data = write_coco(tmp_path / "d")
    for out in (data, data / "new"):
        status, _, err = command(check_data, data, "--output-dir", out)
        assert status == 2 and "lies in the data" in err
    assert not (data / "new").exists()


def test_other_layouts(run, tmp_path):
    many_npy(tmp_path / "npy", 3)
    for i in (7, 8):
        add(tmp_path / "npy", i, {**rectangles((1, 2, 3, 9, 9)), "labels": [0]})
    found = run(tmp_path / "npy")[3]
    assert [text.split(": ")[0].rsplit("/")[-1] for text in texts(found, "error")] == ["7.npy", "8.npy"]
    packed = tmp_path / "packed"
    assert call(pack_dataset, write_coco(tmp_path / "coco"), packed) == 0
    status, _, _, found = run(packed)
    assert status == 1 and found["layout"] == "packed" and found["splits"]["val"]["objects"] == 4
    write_images(tmp_path / "images" / "deep")
    (tmp_path / "images" / "x.png").write_bytes(b"")
    status, _, _, found = run(tmp_path / "images")
    assert status == 2 and len(texts(found, "error")) == 1 and "no data set found" in found["error"]
    assert texts(found, "warning") == [f"{tmp_path / 'images' / 'x.png'}: the file is empty"]


def test_data_of_another_format_that_is_divided(run, tmp_path):
    dot = "0 0.5 0.5 0.51 0.5 0.51 0.51"
    for i in range(3):
        yolo_pair(
            tmp_path / "d" / "images" / "train", tmp_path / "d" / "labels" / "train", str(i), f"{TRIANGLE}\n{dot}"
        )
    (tmp_path / "d" / "images" / "train" / "x.png").write_bytes((tmp_path / "d/images/train/0.png").read_bytes())
    (tmp_path / "d" / "data.yaml").write_text("train: images/train\nnames: [cell]\n")
    _, out, _, found = run(tmp_path / "d")
    assert "  all: 1 image has no txt, and so no objects\n" in out and "as there are 3 images to train on" in out
    assert f"{tmp_path}/d/images/train: object 2 of image 0 (cell): a box of 0.4 x 0.2 pixels" in texts(
        found, "warning"
    )
    assert "--fix" not in json.dumps(found["finds"])


def test_what_training_does_not_open_is_not_said_to_open(tmp_path):
    write(tmp_path / "val", many(2), "annotations/instances_val2017.json", "val2017")
    assert "no training data beside" in open_all(DataOptions(tmp_path / "val"), finds.Finds()).verdict
    write(tmp_path / "one", many(1))
    assert "has one image, which cannot be divided" in open_all(DataOptions(tmp_path / "one"), finds.Finds()).verdict


def test_each_image_of_one_name_is_compared(tmp_path):
    content = many(1)
    content["images"] = [{**content["images"][0], "id": i, "file_name": f"{i}/1.png"} for i in (1, 2)]
    write(tmp_path, content, "annotations/instances_train2017.json", "train2017")
    write(tmp_path, many(1), "annotations/instances_val2017.json", "val2017")
    write_image(tmp_path / "train2017" / "2" / "1.png", value=9)
    tables = {split: table_of(part) for split, part in open_data(tmp_path).by_role().items()}
    classes.look_across(tables, found := finds.Finds())
    assert [find.text for find in found[classes.SAME_IMAGE]] == [
        f"{tmp_path}/train2017/1/1.png (train) and {tmp_path}/val2017/1.png (val)"
    ]


def test_classes_of_one_name_and_lvis_images_by_their_addresses(run, tmp_path):
    content = many(6)
    content["categories"] = [{"id": i, "name": "thing"} for i in (1, 2)]
    for i, one in enumerate(content["annotations"]):
        one["category_id"] = 1 + i % 3 // 2
    path = write(tmp_path / "d", content, image_dir="train2017")
    for image in content["images"]:
        image["coco_url"] = f"http://images.cocodataset.org/train2017/{image.pop('file_name')}"
    path.write_text(json.dumps(content))
    _, out, _, found = run(tmp_path / "d", "--fix", tmp_path / "fixed")
    assert found["classes"] == {"thing (category 1)": {"all": 4}, "thing (category 2)": {"all": 2}}
    assert "each image has a file_name in the copy" in out
    assert len(open_data(tmp_path / "fixed", image_dir=str(tmp_path / "d"), val_fraction=0, split="train").train) == 6


def test_photos_in_voc_layout_disagree_with_their_masks(run, shared_data):
    status, _, _, found = run(shared_data / "voc_mini")
    listed = {kind["title"]: {find["image"]: find["text"] for find in kind["finds"]} for kind in found["finds"]}
    assert status == 1 and found["error"] is None
    disagree = listed["instances without an XML object (class from SegmentationClass)"]
    assert disagree.keys() == {"2011_000003", "2011_000006"} and disagree["2011_000006"].endswith(
        "(class from SegmentationClass): 2"
    )
    assert len(listed["XML files whose boxes have fractions"]) == 3


def test_odd_jsons_are_told_in_lines(run, tmp_path):
    """Documents of the fuzz: a status of 0 to 2, never a traceback."""
    bases = fuzz.Bases()
    documents = (fuzz.document(bases, index) for index in range(60))
    for index, (_, data) in enumerate(d for d in documents if d[0] == "coco"):
        folder = tmp_path / str(index)
        write_image(folder / "images" / "a.png")
        (folder / "instances.json").write_bytes(data)
        status, _, err, _ = run(folder, "--fix", tmp_path / f"fixed{index}")
        assert status in (0, 1, 2) and err.count("\n") <= 1


@pytest.mark.parametrize("linked", ["0.png", "more/secret.png"])
def test_links_out_of_the_data_are_not_followed(run, tmp_path, monkeypatch, linked):
    """Neither for a size, nor for the contact sheet, nor by the full pass."""
    write_images(tmp_path / "outside")
    folder = write_coco(tmp_path / "d")
    data = json.loads((folder / "instances_val.json").read_text())
    if linked == "0.png":
        (folder / "images" / "0.png").unlink()
        (folder / "images" / "0.png").symlink_to(tmp_path / "outside" / "0.png")
    else:
        (folder / "images" / "more").symlink_to(tmp_path / "outside")
    data["images"][0] = {"id": 10, "file_name": linked if linked == "0.png" else "more/0.png"}
    (folder / "instances_val.json").write_text(json.dumps(data))
    opened, real = [], Image.open
    monkeypatch.setattr(Image, "open", lambda path, *args, **how: opened.append(str(path)) or real(path, *args, **how))
    status, _, _, found = run(folder, "--dataset", "coco", samples=8)
    assert status == 2 and any("leads out of the data" in text for text in texts(found, "error"))
    assert found["splits"]["val"]["images"] == 3 and len(opened) > 6
    assert not any(os.path.realpath(path).startswith(str(tmp_path / "outside")) for path in opened)


@needs_browser
def test_the_page_in_a_browser(run, tmp_path):
    """Light and dark, wide and narrow: nothing is fetched, nothing complained of, and names stay text."""
    folder = make_shapes(tmp_path / "d<b>", train=8, val=4, size=64)
    (folder / "val2017" / "000000000002.png").write_bytes((folder / "train2017" / "000000000003.png").read_bytes())
    run(folder, "--min-size", 64, "--max-size", 64, samples=4)
    with Browser(1200, 900) as browser:
        for scheme, width in (("light", 1200), ("dark", 360)):
            browser.prefer(scheme)
            browser.resize(width, 800)
            browser.open(tmp_path / "checked" / "check_data.html")
            assert not browser.too_wide() and not browser.errors and not browser.fetched
        assert "d<b>" in browser.text("h1") and browser.run("document.querySelectorAll('#sheet img').length") == 4
        assert "same in every pixel" in browser.text("#doubles") and "In both splits" in browser.text("#doubles")
        browser.run("document.querySelector('summary').focus()")
        browser.press("Enter")
        assert browser.run("document.querySelector('details').open")


@pytest.mark.parametrize("traced", [True, False])
def test_what_tools_do_to_masks_when_they_write_polygons(tmp_path, traced):
    """Outlines through the centres of pixels are a pixel narrow; a hole as a second polygon is filled."""
    diamond = [value + (0 if traced else 0.5) for value in (2, 12, 12, 2, 22, 12, 12, 22)]
    hole, beside = [10, 12, 12, 10, 14, 12, 12, 14], [30, 3, 33, 6, 30, 9, 27, 6]
    parts = ([diamond], [diamond, hole], [diamond, beside], [diamond])
    objects = [annotation(i, 1, bbox=[2, 2, 20, 20], area=200, segmentation=each) for i, each in enumerate(parts, 1)]
    content = coco([{"id": 1, "file_name": "a.png", "height": 48, "width": 64}], objects)
    found, seen = finds.Finds(), table_of(open_data(both(tmp_path / "d", content), "train").train)
    looks.look_at_outlines(seen, "train", found)
    holes, narrow = found[looks.FILLED_HOLES], found[looks.NARROW]
    assert [find.annotation for find in holes] == [2] and "1 of its 2 polygons inside of another" in holes[0].text
    assert [find.text.endswith(": 4 of 4 outlines looked at") for find in narrow] == [True] * traced
    square = np.array([[0, 0], [9, 0], [9, 9], [0, 9]])
    assert not looks.is_traced(square) and looks.lies_within(square / 2 + 1, square)
    assert not looks.lies_within(square, square / 2)
