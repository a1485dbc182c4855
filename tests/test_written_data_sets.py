"""Detections written as data sets: train.py's reader gives them back, holes, parts and classes included."""

import json
import tracemalloc

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

import maskrcnn
import predict
from backbone.errors import InputError
from tests.tiny_model import write_checkpoint, write_images
from train_utils.data.labels import LabelMap
from train_utils.data.opening import open_data
from train_utils.prediction.data_sets import FORMS, WRITERS, check_classes, check_place, write_data_set
from train_utils.prediction.outlines import bridged, outlines

SIZE = (60, 80)
LABELS = LabelMap.from_categories({3: "cellulé 细胞", 9: "dirt/ wet", 12: "dirt: wet"})


def shapes():
    """Masks that don't overlap: a disc, one with a hole, one of two parts, a ragged one that touches it."""
    y, x = np.mgrid[: SIZE[0], : SIZE[1]]
    disc, ring = (x - 14) ** 2 + (y - 14) ** 2 < 100, (x - 40) ** 2 + (y - 14) ** 2 < 150
    ring &= (x - 41) ** 2 + (y - 13) ** 2 > 20
    parts = np.zeros(SIZE, dtype=bool)
    parts[40:50, 2:9], parts[45:58, 12:15] = True, True
    ragged = np.random.default_rng(0).random(SIZE) < 0.8
    ragged[:40], ragged[:, :15] = False, False
    return [disc, ring, parts, ragged]


def result(image_id, mask, category, score):
    rle = coco_mask.encode(np.asfortranarray(mask).view(np.uint8))
    segmentation = {"size": list(SIZE), "counts": rle["counts"].decode()}
    return {"image_id": image_id, "category_id": category, "score": score, "segmentation": segmentation}


def make(folder, form):
    """Two images: one with four objects of both classes, one with none."""
    paths = []
    for name in ("b.png", "a.png"):
        folder.mkdir(exist_ok=True)
        Image.fromarray(np.full((*SIZE, 3), 70, np.uint8)).save(folder / name)
        paths.append(folder / name)
    results = [result(1, mask, (3, 3, 9, 12)[k], 0.9 - k / 10) for k, mask in enumerate(shapes())]
    return write_data_set(form, folder / "out", [*paths, folder / "missing.png"], results, LABELS)


@pytest.mark.parametrize("form", FORMS)
def test_the_reader_gives_them_back(tmp_path, form):
    line = make(tmp_path, form)
    assert line.startswith(f"2 images with 4 objects written as {form} data to {tmp_path / 'out'}")
    data = open_data(tmp_path / "out", "train", val_fraction=0).train
    names = (LABELS.names[0], "dirt_ wet", "dirt_ wet_3") if form == "masks" else LABELS.names
    assert data.label_map.names == names and data.object_counts().sum() == 4 and not data.skipped
    (i,) = data.object_counts().nonzero()[0].tolist()
    image, target = data[i]
    assert image.shape == (3, *SIZE) and target["labels"].tolist() == [1, 1, 2, 3]
    masks = target["masks"].to_masks().numpy().astype(bool)
    assert [(one == other).all() for one, other in zip(masks, shapes(), strict=True)] == [True] * 4


@pytest.mark.parametrize("form", FORMS)
def test_what_ends_half_way_leaves_nothing(tmp_path, monkeypatch, form):
    def ends(self):
        assert (self.images / "b.png").is_file()  # it had begun
        raise KeyboardInterrupt

    monkeypatch.setattr(WRITERS[form], "finish", ends)
    with pytest.raises(KeyboardInterrupt):
        make(tmp_path, form)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.png", "b.png"]


def test_shared_pixels_are_the_surer_ones_and_said(tmp_path):
    Image.fromarray(np.zeros(SIZE, np.uint8)).save(tmp_path / "a.png")
    disc = shapes()[0]
    over = np.roll(disc, 5, axis=1)
    results = [result(1, disc, 3, 0.5), result(1, over, 3, 0.6)]
    line = write_data_set("voc", tmp_path / "out", [tmp_path / "a.png"], results, LABELS)
    shared = int((disc & over).sum())
    assert f"; {shared} pixels shared by detections became the surer one's; train.txt and val.txt both list" in line
    masks = open_data(tmp_path / "out").val.target(0)["masks"].to_masks().numpy().astype(bool)
    assert (masks[0] == over).all() and (masks[1] == disc & ~over).all()


@pytest.mark.parametrize("form", FORMS)
def test_masks_are_decoded_one_after_another(tmp_path, form):
    mask = np.zeros((300, 400), np.uint8)
    Image.fromarray(mask).save(tmp_path / "a.png")
    mask[9:12, 9:12] = 1
    rle = {"size": mask.shape, "counts": coco_mask.encode(np.asfortranarray(mask))["counts"].decode()}
    results = [{"image_id": 1, "category_id": 3, "score": 0.5, "segmentation": rle}] * 30
    tracemalloc.start()
    write_data_set(form, tmp_path / "out", [tmp_path / "a.png"], results, LABELS)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 15 * mask.size  # bytes; together they have 30 times as many


def test_nothing_is_overwritten_and_names_are_told_apart(tmp_path):
    make(tmp_path, "coco")
    with pytest.raises(InputError, match="out: exists already; move it away"):
        make(tmp_path, "coco")
    with pytest.raises(InputError, match=r"a\.png and .*a\.jpg would have one name"):
        write_data_set("yolo", tmp_path / "new", [tmp_path / "a.png", tmp_path / "b" / "a.jpg"], [], LABELS)


def test_outlines_enclose_the_mask_and_have_corners_alone():
    rng = np.random.default_rng(0)
    for _ in range(100):
        mask = rng.random(rng.integers(1, 9, 2)) < rng.random()
        if not mask.any():
            assert outlines(mask) == []
            continue
        loops = outlines(mask)
        points = bridged(loops).reshape(-1).tolist()
        filled = coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects([points], *mask.shape)))
        assert (filled == mask).all()
        for loop in loops:
            steps = np.diff(np.concatenate([loop, loop[:1]]), axis=0)
            assert ((steps * np.roll(steps, 1, axis=0)).sum(1) == 0).all() and len(loop) >= 4
    assert [len(loop) for loop in outlines(np.eye(2, dtype=bool))] == [4, 4]  # they touch at a corner alone
    y, x = np.mgrid[:60, :60]
    disc = (x - 30) ** 2 + (y - 30) ** 2 < 400
    (exact,), (fewer,) = outlines(disc), outlines(disc, 1.0)
    assert len(fewer) < len(exact) / 3


def full_disk(*_):
    raise InputError("no room")


def test_what_a_form_cannot_hold_is_refused_before_the_prediction(tmp_path):
    check_place("masks", tmp_path / "out", [tmp_path / "caf\udce9.png"])
    with pytest.raises(InputError, match="--write voc: .*this name is no UTF-8; rename it"):
        check_place("voc", tmp_path / "out", [tmp_path / "caf\udce9.png"])
    many = LabelMap.from_categories({i: f"class {i}" for i in range(1, 256)})
    check_classes("masks", many)
    with pytest.raises(InputError, match="--write voc: the model knows 255 classes, its images number 254"):
        check_classes("voc", many)


def test_predict_writes_a_data_set(tmp_path, monkeypatch, command):
    monkeypatch.chdir(tmp_path)
    weights, images = write_checkpoint(tmp_path / "model.pth"), write_images(tmp_path / "in")[:2]
    flags = ("--weights-path", weights, "--device", "cpu", "--img-path", *images, "--score", 0, "--write", "coco")
    flags = (*flags[:-2], "--order", "uncertain", *flags[-2:])
    with monkeypatch.context() as patch:
        patch.setattr(predict, "write_data_set", full_disk)
        status, out, err = command(predict, *flags)
    assert status == 2 and "no room" in err and "ended by an error: 2 of 2 images kept in test_result.json" in out
    status, out, _ = command(predict, *flags, "--resume")
    assert "resuming: 2 of 2 images done" in out and not list(tmp_path.glob("*.unfinished"))
    results = json.loads((tmp_path / "test_result.json").read_text())
    content = json.loads((tmp_path / "data_set" / "instances.json").read_text())
    assert status == 0 and f"2 images with {len(content['annotations'])} objects written as coco data" in out
    kept = {(r["segmentation"]["counts"], r["category_id"]) for r in results}
    assert {(a["segmentation"]["counts"], a["category_id"]) for a in content["annotations"]} <= kept
    assert sum(open_data(tmp_path / "data_set", "train").train.object_counts()) > 0
    rows = [line.split("\t") for line in (tmp_path / "test_result_order.txt").read_text().splitlines()]
    doubts = {
        str(path): sum(1 - abs(2 * r["score"] - 1) for r in results if r["file_name"] == str(path)) for path in images
    }
    assert [name for _, name in rows] == sorted(doubts, key=lambda name: -doubts[name])
    assert all(float(doubt) == pytest.approx(doubts[name], abs=0.6) for doubt, name in rows)  # more are below 0.05
    assert (
        f"annotate next, by doubtful objects (all 2 are in test_result_order.txt):\n  {rows[0][0]}  {rows[0][1]}" in out
    )
    status, _, said = command(predict, *flags)
    assert status == 2 and "data_set: exists already" in said
    detector = maskrcnn.load(weights)
    found = detector(list(images), score=0)
    for form in ("labelme", "yolo", "masks", "voc"):
        line = getattr(found[0], f"to_{form}")(tmp_path / form)
        assert line.startswith("1 image with ") and f"written as {form} data" in line
        assert open_data(tmp_path / form, "train", val_fraction=0).train.object_counts().sum() > 0
    assert maskrcnn.save_data_set(found, "coco", tmp_path / "coco").startswith("2 images")
    with pytest.raises(InputError, match="is no file; a data set needs image files"):
        detector(np.zeros((40, 40), np.uint8)).to_yolo(tmp_path / "other")
    status, _, said = command(predict, *flags[:2], "--coco-json", "x", "--image-dir", "y", "--output", "z", *flags[-2:])
    assert status == 2 and "--write goes with --img-path" in said
