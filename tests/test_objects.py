"""What training objects say about a run: how often images come, anchors and sizes."""

from collections import Counter

import numpy as np
import pytest
import torch

import train
from tests.coco_folders import annotation, coco, write
from tests.small_runs import call, flags
from train_utils.checkpoints.checkpoint import load_file
from train_utils.data.loaders import TrainLoader
from train_utils.data.objects import balance
from train_utils.data.objects.anchors import Objects
from train_utils.data.objects.fitting import fitted, fitted_size, size_for
from train_utils.data.opening import open_data
from train_utils.data.options import LoaderOptions
from train_utils.processes.distributed import World

CLASSES = [[1, *([2] if i == 3 else []), *([3] if i < 4 else [])] for i in range(10)]  # of ten images


def rare():
    """A COCO dict of ten images: each has a leaf, one a spot too, four a hole; the last two are for validation."""
    pairs = [(i, label) for i, labels in enumerate(CLASSES) for label in labels]
    annotations = [annotation(k + 1, i + 1, category_id=label) for k, (i, label) in enumerate(pairs)]
    images = [{"id": i + 1, "file_name": f"{i}.png", "height": 40, "width": 48} for i in range(10)]
    return coco(images, annotations, [{"id": i, "name": n} for i, n in ((1, "leaf"), (2, "spot"), (3, "hole"))])


def test_rare_classes_come_more_often(tmp_path):
    write(tmp_path, rare())
    data = open_data(tmp_path, val_fraction=0, split="train").train
    by_class, factors = balance.class_factors(data, 0.5)
    assert by_class == pytest.approx({1: 1, 2: 5**0.5, 3: 1.25**0.5})
    assert factors.tolist() == pytest.approx([1.25**0.5] * 3 + [5**0.5] + [1] * 6)
    line = balance.describe(data, 0.5, 11)
    assert line == "--balance 0.5: an epoch has 11 samples of 10 images; more often come spot x 2.2, hole x 1.1"
    assert "without effect" in balance.describe(data, 0.1, 10)
    assert balance.class_factors(data, 0.1)[1].tolist() == [1] * 10

    loader = TrainLoader(data, None, World.single("cpu"), LoaderOptions(1, balance=0.5, repeat=2))
    assert loader.samples == loader.steps_per_epoch == int(2 * factors.sum()) == 23
    for epoch in (0, 1):
        seen = [batch.indices[0] for batch in loader.epoch(epoch)]
        assert seen == [batch.indices[0] for batch in loader.epoch(epoch)]  # by seed and epoch alone
        assert seen[5:] == [batch.indices[0] for batch in loader.epoch(epoch, 5)]
        assert all(np.floor(2 * f) <= Counter(seen)[i] <= np.ceil(2 * f) for i, f in enumerate(factors))
    assert seen != [batch.indices[0] for batch in loader.epoch(0)]
    keys = {target["sample_seed"] for batch in loader.epoch(0) for target in batch.targets}
    assert len(keys) == 23  # each time with other random numbers


def test_the_rests_of_factors_are_chances():
    factors = np.array([1.0, 1.5, 2.25, 1.25, 3.0])
    rng, counts = torch.Generator().manual_seed(0), np.zeros(5)
    for _ in range(400):
        chosen = balance.indices(factors, rng)
        assert len(chosen) == len(set(chosen.tolist())) == balance.samples_per_epoch(factors) == 9
        counts += np.bincount(chosen % 5, minlength=5)
    assert counts / 400 == pytest.approx(factors, abs=0.08)
    assert balance.indices(np.full(3, 2.0), rng).tolist() == [0, 1, 2, 3, 4, 5]


def test_sizes_follow_from_small_objects():
    def size(side, shorter, **model):
        boxes = np.array([[0, 0, side, side]] * 10 + [[0, 0, 1, 1]] * 5, dtype=float)
        crowd = np.array([False] * 10 + [True] * 5)  # do not count
        objects = Objects(np.array([[shorter, 2 * shorter]]), np.zeros(15, int), boxes, crowd)
        assert size_for(objects).bounded == (shorter == 40)  # the others are of the objects, or of their images
        return fitted_size(model, objects)[0]

    assert size(32, 256) == {"min_size": (256,), "max_size": 512}  # large enough as they are
    assert size(12, 300)["min_size"] == (400 // 32 * 32,)
    assert size(2, 256)["min_size"] == (512,)  # enlarged twice at most
    assert size(50, 3000)["min_size"] == (800,) and size(50, 40)["min_size"] == (128,)
    assert size(32, 256, max_size=999)["max_size"] == 999
    assert size(32, 256, max_size=100) == {"min_size": (100,), "max_size": 100}


@pytest.mark.parametrize(
    ("shape", "side", "model", "found", "said"),
    [
        ((256, 256), 8, {}, (512, 853), "853: images have a shorter side of 256 pixels in the middle, 512 after"),
        ((375, 1242), 40, {}, (384, 1272), "40 pixels, 41 then"),
        ((1000, 100), 20, {}, (128, 1280), "20 pixels, 25.6 then"),
        ((1024, 2048), 40, {}, (800, 1333), "1024 pixels in the middle, 666 after resizing"),
        ((375, 1242), 40, {"max_size": 640}, (384, 640), "40 pixels, 20.6 then"),
        ((256, 256), 8, {"fixed_size": (128, 192)}, (512, 853), "effect beside fixed_size 128 192: images have a"),
    ],
)
def test_the_sizes_that_are_said_are_those_after_resizing(shape, side, model, found, said):
    objects = Objects(np.array([shape]), np.zeros(1, int), np.array([[0.0, 0, side, side]]), np.array([False]))
    sizes, line = fitted_size(model, objects)
    assert (*sizes["min_size"], sizes["max_size"]) == found and said in line


def test_anchors_follow_from_the_objects_after_resizing(tmp_path):
    write(tmp_path, rare())  # squares of 10 pixels
    data = open_data(tmp_path, val_fraction=0, split="train").train
    model, (line,) = fitted(
        {"min_size": (80,), "max_size": 400, "anchor_sizes": "auto", "value_range": ("auto",)}, data
    )
    assert 20 in model["anchor_sizes"] and "100.0% by IoU 0.5" in line and "of 15 training objects; 32 64" in line
    model, lines = fitted({"min_size": ("auto",), "anchor_sizes": ("auto",)}, data)
    assert model["min_size"] == (128,) and any(28 <= size <= 36 for size in model["anchor_sizes"])
    assert lines[0].startswith("min_size: 128 (auto), max_size: 213") and len(lines) == 2
    assert fitted({"min_size": (80,)}, data) == ({"min_size": (80,)}, [])


def test_a_run_keeps_what_auto_came_to(tmp_path, capsys):
    write(tmp_path / "data", rare())
    more = ("--anchor-sizes", "auto", "--balance", 0.5, "--epochs", 1)
    assert call(train, *flags(tmp_path / "data", tmp_path / "run", *more)) == 0
    out = capsys.readouterr().out
    assert "anchor_sizes: " in out and "(auto)" in out and "--balance 0.5: an epoch has" in out
    checkpoint = load_file(tmp_path / "run" / "model_0.pth")
    sizes = checkpoint["config"]["anchor_sizes"]
    assert "auto" not in str(sizes) and list(checkpoint["args"]["anchor_sizes"]) == list(sizes)
    again = ("--resume", "auto", "--allow-changed", "epochs", "--epochs", 2, "--anchor-sizes", "auto")
    assert call(train, "--data-path", tmp_path / "data", "--output-dir", tmp_path / "run", *again) == 0
    assert load_file(tmp_path / "run" / "model_1.pth")["config"]["anchor_sizes"] == sizes
    wrong = ("--test-only", "--weights", tmp_path / "run" / "model_0.pth", "--min-size", "auto")
    assert call(train, "--data-path", tmp_path / "data", *wrong) == 2
    assert "min_size auto follows from training data" in capsys.readouterr().err.replace("--min-size", "min_size")
