"""What every data format has to give, tried on each of them, and on one that is written after CONTRIBUTING.md."""

import json
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from backbone.errors import InputError
from tests import csv_format
from tests.coco_folders import annotation
from tests.small_runs import call
from tests.test_dataset_voc import Maker
from tools import check_data, npy_to_coco, pack_dataset
from train_utils.checkpoints.held_out import open_scored
from train_utils.data.formats import FORMATS
from train_utils.data.masks import encoded
from train_utils.data.opening import open_data, read_parts
from train_utils.data.options import DataOptions
from train_utils.data.problems import MISTAKE, STOP, Collect
from train_utils.evaluation.numbers import evaluate_results

SIZE = (20, 30)  # height, width
KNOW_BOUNDS = {"coco", "voc", "packed", "masks", "yolo", "labelme"}  # of masks, without decoding them
OBJECTS = {  # image: (class number, x1, y1, x2, y2) each
    "train": {"1.png": [(1, 2, 3, 12, 15), (2, 14, 0, 30, 8)], "2.png": [], "3.png": [(2, 0, 0, 9, 20)]},
    "val": {"4.png": [(1, 5, 5, 25, 15)], "5.png": [(2, 1, 1, 8, 9), (1, 10, 2, 20, 18)]},
}


def write_images(folder: Path, names) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        Image.fromarray(np.full((*SIZE, 3), 90, dtype=np.uint8)).save(folder / name)


def write_coco(root: Path) -> None:
    for split, images in OBJECTS.items():
        write_images(root / "images", images)
        listed = [{"id": int(Path(n).stem), "file_name": n, "height": SIZE[0], "width": SIZE[1]} for n in images]
        rows = [(int(Path(name).stem), *row) for name, rows in images.items() for row in rows]
        annotations = [
            {
                **annotation(number, image_id, category_id=label, bbox=[x1, y1, x2 - x1, y2 - y1]),
                "segmentation": [[x1, y1, x2, y1, x2, y2, x1, y2]],
                "area": (x2 - x1) * (y2 - y1),
            }
            for number, (image_id, label, x1, y1, x2, y2) in enumerate(rows, 1)
        ]
        content = {"images": listed, "annotations": annotations}
        content["categories"] = [{"id": i, "name": f"class {i}"} for i in (1, 2)]
        (root / f"instances_{split}.json").write_text(json.dumps(content))


def spoil_coco(root: Path) -> None:
    content = json.loads((root / "instances_val.json").read_text())
    content["annotations"][1]["bbox"] = [1, 2, 3]
    (root / "instances_val.json").write_text(json.dumps(content))


def write_voc(root: Path) -> None:
    maker = Maker(root)
    (maker.folder / "pascal_voc_indices.json").write_text('{"class 1": 1, "class 2": 2}')
    for images in OBJECTS.values():
        for name, rows in images.items():
            maker.add(Path(name).stem, [(k, row[0], row[1:]) for k, row in enumerate(rows, 1)], size=SIZE)
    for split, images in OBJECTS.items():
        maker.list(split, [Path(name).stem for name in images])


def spoil_voc(root: Path) -> None:
    (root / "VOC2012" / "SegmentationObject" / "5.png").write_bytes(b"broken")


def write_npy(root: Path) -> None:
    for split, images in OBJECTS.items():
        write_images(root / f"images_{split}", images)
        for name, rows in images.items():
            masks = np.zeros((len(rows), *SIZE), dtype=np.uint8)
            for mask, (_, x1, y1, x2, y2) in zip(masks, rows, strict=True):
                mask[y1:y2, x1:x2] = 1
            boxes = np.array([row[1:] for row in rows]).reshape(-1, 4)
            content = {"boxes": boxes, "labels": np.array([row[0] for row in rows], dtype=np.int64), "masks": masks}
            path = root / f"annotations_{split}" / f"{Path(name).stem}.npy"
            path.parent.mkdir(exist_ok=True)
            np.save(path, content)
    (root / "classes.txt").write_text("class 1\nclass 2\n")


def spoil_npy(root: Path) -> None:
    (root / "annotations_val" / "5.npy").write_bytes(b"broken")


def write_packed(root: Path) -> None:
    write_coco(root.parent / "unpacked")
    assert call(pack_dataset, root.parent / "unpacked", root) == 0


def spoil_packed(root: Path) -> None:
    (root / "val.pack").write_bytes((root / "val.pack").read_bytes()[:-9])


def write_masks(root: Path) -> None:
    for split, images in OBJECTS.items():
        write_images(root / split / "images", images)
        for name, rows in images.items():
            labels, classes = np.zeros(SIZE, dtype=np.uint16), np.zeros(SIZE, dtype=np.uint8)
            for value, (label, x1, y1, x2, y2) in enumerate(rows, 700):
                labels[y1:y2, x1:x2], classes[y1:y2, x1:x2] = value, label
            for folder, values in (("masks", labels), ("classes", classes)):
                (root / split / folder).mkdir(exist_ok=True)
                Image.fromarray(values).save(root / split / folder / f"{Path(name).stem}.tif")
    (root / "classes.txt").write_text("class 1\nclass 2\n")


def spoil_masks(root: Path) -> None:
    (root / "val" / "masks" / "5.tif").write_bytes(b"broken")


def write_yolo(root: Path) -> None:
    for split, images in OBJECTS.items():
        write_images(root / split / "images", images)
        for name, rows in images.items():
            lines = [[label - 1, x1, y1, x2, y1, x2, y2, x1, y2] for label, x1, y1, x2, y2 in rows]
            shares = [[line[0], *(v / SIZE[1 - k % 2] for k, v in enumerate(line[1:]))] for line in lines]
            path = root / split / "labels" / f"{Path(name).stem}.txt"
            path.parent.mkdir(exist_ok=True)
            if rows:  # an image without a txt has no objects
                path.write_text("\n".join(" ".join(map(repr, line)) for line in shares))
    (root / "data.yaml").write_text("train: ../train/images\nval: ../val/images\nnames: ['class 1', 'class 2']\n")


def spoil_yolo(root: Path) -> None:
    with open(root / "val" / "labels" / "5.txt", "a") as file:
        file.write("\n0 0.1 0.2")


def write_labelme(root: Path) -> None:
    for split, images in OBJECTS.items():
        write_images(root / split, images)
        for name, rows in images.items():
            shapes = [
                {"label": f"class {label}", "points": [[x1, y1], [x2, y2]], "shape_type": "rectangle"}
                for label, x1, y1, x2, y2 in rows
            ]
            content = {"version": "5.4.1", "flags": {}, "shapes": shapes, "imagePath": name, "imageData": None}
            size = {"imageHeight": SIZE[0], "imageWidth": SIZE[1]}
            (root / split / f"{Path(name).stem}.json").write_text(json.dumps(content | size))


def spoil_labelme(root: Path) -> None:
    path = root / "val" / "5.json"
    path.write_text(path.read_text().replace("[1, 1]", "[1]"))


def write_csv(root: Path) -> None:
    for split, images in OBJECTS.items():
        write_images(root / "images", images)
        lines = [",".join(map(str, (name, *row))) for name, rows in images.items() for row in rows or [()]]
        (root / f"{split}.csv").write_text("\n".join(lines))


def spoil_csv(root: Path) -> None:
    with open(root / "val.csv", "a") as file:
        file.write("\n5.png,1,2,x,4,5")


WRITERS = {
    "coco": (write_coco, spoil_coco),
    "voc": (write_voc, spoil_voc),
    "npy": (write_npy, spoil_npy),
    "packed": (write_packed, spoil_packed),
    "masks": (write_masks, spoil_masks),
    "yolo": (write_yolo, spoil_yolo),
    "labelme": (write_labelme, spoil_labelme),
    "csv": (write_csv, spoil_csv),
}


@pytest.fixture(params=WRITERS)
def name(request, monkeypatch) -> str:
    """A format's name; the one that is not the project's own is registered."""
    monkeypatch.setitem(FORMATS, "csv", csv_format)
    return request.param


@pytest.fixture
def folder(name, tmp_path) -> Path:
    """The same objects in this format."""
    path = tmp_path / "data"
    if name != "packed":
        path.mkdir()
    WRITERS[name][0](path)
    return path


def test_every_format_is_tried():
    assert FORMATS.keys() == WRITERS.keys() - {"csv"}


def test_samples(folder, name):
    splits = open_data(folder)
    for split, images in OBJECTS.items():
        data = getattr(splits, split)
        assert [Path(data.file_name(i)).stem for i in range(len(data))] == [Path(name).stem for name in images]
        assert data.sizes.tolist() == [list(SIZE)] * len(images) and not data.missing.any()
        assert data.object_counts().tolist() == [len(rows) for rows in images.values()]
        assert data.object_counts(crowd=True).tolist() == [0] * len(images)
        for i, rows in enumerate(images.values()):
            image, target = data[i]
            assert image.shape == (3, *SIZE) and image.dtype == torch.uint8
            assert target["boxes"].dtype == torch.float32 and target["boxes"].tolist() == [
                list(row[1:]) for row in rows
            ]
            assert target["labels"].dtype == torch.int64 and target["labels"].tolist() == [row[0] for row in rows]
            assert target["area"].dtype == torch.float32 and target["iscrowd"].dtype == torch.uint8
            assert target["area"].tolist() == target["masks"].areas().tolist()
            assert target["masks"].boxes.tolist() == [list(row[1:]) for row in rows]
            if name in KNOW_BOUNDS:
                bounds = data.annotations.masks.bounds(data.annotations.objects(data.rows[i]), SIZE)
                np.testing.assert_allclose(bounds, target["boxes"], atol=1e-3)
            assert target["image_id"] == data.image_id(i) and target["iscrowd"].tolist() == [0] * len(rows)


def test_ground_truth_is_what_evaluation_takes(folder):
    data = open_data(folder, split="val").val
    truth = data.ground_truth()
    assert [c["name"] for c in truth["categories"]] == ["class 1", "class 2"]
    results = [
        {key: a[key] for key in ("image_id", "category_id", "bbox", "segmentation")} | {"score": 0.9}
        for a in open_data(folder, split="val").val.ground_truth()["annotations"]
    ]
    for result, crop in zip(results, (c for i in range(len(data)) for c in rles(data, i)), strict=True):
        result["segmentation"] = crop
    numbers = evaluate_results(truth, results)
    assert [numbers[iou_type].stats[0] for iou_type in ("bbox", "segm")] == [1.0, 1.0]


def rles(data, i: int) -> list[dict]:
    """The masks of image i as RLEs."""
    return encoded(data.target(i)["masks"])


def test_subsets_and_copies(folder):
    data = open_data(folder).train
    part = pickle.loads(pickle.dumps(data.subset([2, 0])))
    assert len(part) == 2 and [part.image_id(i) for i in (0, 1)] == [data.image_id(2), data.image_id(0)]
    assert torch.equal(part[0][0], data[2][0]) and part[1][1]["boxes"].tolist() == data[0][1]["boxes"].tolist()
    assert len(part.ground_truth()["annotations"]) == 3


def test_the_line_that_is_printed(folder):
    splits = open_data(folder)
    assert "3 images (1 without objects), 3 objects of 2 classes, 0 crowd regions" in splits.train.describe()
    assert splits.train.describe().startswith(f"{splits.train.source}: ")
    assert len(open_data(folder, drop_empty=True).train) == 2


def test_missing_images_are_refused(folder, name):
    if name == "packed":
        (folder / "val.pack").unlink()
        with pytest.raises(InputError, match="val.pack: no such file"):
            open_data(folder)
        return
    next(path for path in folder.rglob("5.[jp][pn]g") if "Segmentation" not in str(path)).unlink()
    if name in ("npy", "masks", "yolo"):  # then its annotation has no image, which is skipped and counted
        assert len(open_data(folder).val) == 1
        return
    with pytest.raises(InputError, match=r"1 of its 2 image files are missing, the first is .*5\.[jp][pn]g"):
        open_data(folder)


def test_options_without_use_are_refused(folder, name):
    for field, reason in FORMATS[name].UNUSED.items():
        with pytest.raises(InputError, match=f"--{field.replace('_', '-')}: .* is {name} data, {reason}"):
            open_data(folder, **{field: True if field == "split_components" else "x"})


def test_a_mistake_stops_training_and_is_collected_by_the_doctor(folder, name, tmp_path, monkeypatch):
    WRITERS[name][1](folder)
    with pytest.raises(InputError) as caught:
        open_data(folder)
    kept = []
    collect = Collect(kept.append)
    options = DataOptions(folder)
    parts = read_parts(FORMATS[name], FORMATS[name].find_splits(folder, options, None), options, problems=collect)
    mistakes = [problem for problem in kept if problem.severity == MISTAKE]
    assert str(caught.value) == collect.first == mistakes[0].text and mistakes[0].split == "val"
    assert len(parts["train"]) == 3
    status = call(check_data, folder, "--output-dir", tmp_path / "checked")
    found = json.loads((tmp_path / "checked" / "check_data.json").read_text())
    assert status == 2 and found["error"] == str(caught.value) and found["layout"] == name


def test_it_is_packed_and_converted_and_scored_without_loss(folder, name, tmp_path):
    """Packs hold no files to convert; validation scores all of a split of the data's own."""
    splits = open_data(folder)
    scored = open_scored(DataOptions(folder), {}, False)
    assert (len(scored.data_set), scored.of, len(scored.lines)) == (2, 2, 1)
    if name == "packed":
        return
    assert call(pack_dataset, folder, tmp_path / "pack") == 0
    assert call(npy_to_coco, folder, tmp_path / "json", "--dataset", "auto") == 0
    for other in (open_data(tmp_path / "pack"), open_data(tmp_path / "json")):
        for split, images in OBJECTS.items():
            one, two = getattr(splits, split), getattr(other, split)
            for i in range(len(images)):
                (image, target), (image_too, target_too) = one[i], two[i]
                assert torch.equal(image, image_too)
                assert torch.equal(target["masks"].to_masks(), target_too["masks"].to_masks())
                assert target["labels"].tolist() == target_too["labels"].tolist()


@pytest.mark.parametrize("name", ["coco", "voc", "npy", "masks", "yolo", "labelme"])
def test_blanks_at_the_ends_of_class_names(folder, name):
    """They make no other class; where names tell classes, or a file holds them in quotes, they are said."""
    before = open_data(folder)
    for path in [*folder.glob("**/*.json"), *folder.glob("*.yaml"), *folder.glob("*.txt")]:
        if "train" not in str(path.relative_to(folder)):
            text = path.read_text()
            for quote in ("'", '"', "\n"):
                text = text.replace(f"class 1{quote}", f"class 1 \u00a0{quote}")
            path.write_text(text)
    splits = open_data(folder)
    assert splits.label_map == before.label_map and splits.label_map.names == ("class 1", "class 2")
    assert splits.val.class_counts() == before.val.class_counts()
    said = "1 class name is read without blanks at the ends, as 'class 1 \\xa0'" in splits.val.describe()
    assert said == (name in ("coco", "yolo", "labelme"))


def test_blanks_at_the_ends_of_folders_of_classes(tmp_path):
    for split, ending in {"train": "", "val": " "}.items():
        write_images(tmp_path / split / "images", ["1.png"])
        for kind in ("a", "b"):
            (tmp_path / split / "masks" / (kind + ending)).mkdir(parents=True)
            Image.fromarray(np.eye(*SIZE, dtype=np.uint8)).save(tmp_path / split / "masks" / (kind + ending) / "1.png")
    splits = open_data(tmp_path)
    assert splits.val.class_counts() == splits.train.class_counts() == {"a": 1, "b": 1}
    assert "2 class names are read without blanks at the ends, as 'a '" in splits.train.describe()


BESIDE = {"labelme": "2 jsons", "yolo": "2 txt files", "masks": "2 mask files"}


@pytest.mark.parametrize(("name", "files"), BESIDE.items())
def test_folders_beside_the_splits_are_said_and_two_of_one_split_refused(folder, name, files):
    (folder / "data.yaml").unlink(missing_ok=True)
    shutil.copytree(folder / "val", folder / "extra")
    splits = open_data(folder)
    _, folders = splits.train.describe().split(f"not read: {files} outside the splits' folders, in ")
    assert "extra" in folders
    assert "not read" not in splits.val.describe() and numbers_of(splits.train) == [1, 2, 3]
    (folder / "extra").rename(folder / "train_2")
    with pytest.raises(InputError, match=r"several folders for train: train\S*, train_2\S*; give one as --data-path"):
        open_data(folder)


def numbers_of(data) -> list[int]:
    return [data.image_id(i) for i in range(len(data))]


def test_a_whole_is_left_to_the_sink_that_stops():
    with pytest.raises(InputError, match="a mistake"):
        STOP.mistake("a mistake")
