"""maskrcnn.train and validate: the runs and numbers of the commands, on paths and on torch Datasets; and the pages.

Every line of Python in README.md, docs/python.md and docs/output.md runs, on small data and small models.
"""

import json
import os
import re
import shutil
import signal
from fnmatch import fnmatch
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import maskrcnn
import network_files
import train
from network_files import InputError
from tests.small_runs import ROOT, call, differences
from tests.tiny_model import FEW, FIELDS, NAMES, tiny, write_coco
from train_utils.data.augmentations.own import OwnAugmentation
from train_utils.data.in_python.data_sets import data_set_of
from train_utils.evaluation.numbers import STAT_NAMES
from train_utils.run.config import RunConfig
from train_utils.run.defaults import resolve

SIZES = {"min_size": 48, "max_size": 48, "anchor_sizes": (4, 8, 16, 32, 64), "backbone_width": 16}
OPTIONS = FIELDS | FEW | SIZES | {"device": "cpu", "workers": 0, "weights": "none", "batch_size": 2, "lr": 0.002}


class Squares(torch.utils.data.Dataset):
    """A pair for each label: a square of it on noise."""

    def __init__(self, labels=(1, 2, 1), **changed):
        self.labels, self.changed = labels, changed

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, i):
        image = np.random.default_rng(i).integers(0, 256, (48, 56, 3), dtype=np.uint8)
        masks = torch.zeros(1, 48, 56, dtype=torch.bool)
        masks[0, 8:32, 8:30] = True
        target = {"boxes": torch.tensor([[8, 8, 30, 32]]), "labels": torch.tensor([self.labels[i]]), "masks": masks}
        return Image.fromarray(image), {**target, **self.changed}


@pytest.fixture(scope="module", autouse=True)
def without_curves():
    """Runs that draw no curves, which take most of the time of such small ones."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("train_utils.run.epochs.write_curves", lambda *_: None)
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("runs")
    write_coco(place / "data")
    return place


@pytest.fixture(scope="module")
def told():
    return {"steps": [], "epochs": []}


@pytest.fixture(scope="module")
def run(folder, told):
    """A run of one epoch on a path."""
    callbacks = {"on_step": told["steps"].append, "on_epoch": told["epochs"].append}
    return maskrcnn.train(folder / "data", epochs=1, output_dir=folder / "one", log_steps=True, **callbacks, **OPTIONS)


def test_callbacks_and_history_have_the_numbers(run, told):
    assert [(row["epoch"], row["step"]) for row in told["steps"]] == [(0, 0), (0, 1)]
    assert {"loss", "lr", "loss_mask", "loss_objectness"} <= told["steps"][0].keys()
    assert told["epochs"] == run.history and [row["epoch"] for row in run.history] == [0]
    assert {"loss", "val_loss", "loss_mask", "val_loss_mask", "segm_AP", "bbox_ARl", "seconds"} <= run.history[0].keys()
    assert all(isinstance(value, int | float) for value in run.history[0].values())  # flat: a table of pandas
    mean = sum(row["loss"] for row in told["steps"]) / 2
    assert run.history[0]["loss"] == pytest.approx(mean)


def test_ctrl_c_leaves_a_run_to_resume(run, folder):
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    options = {"output_dir": folder / "cut", "log_steps": True, "epochs": 1, **OPTIONS}
    with pytest.raises(KeyboardInterrupt, match='resume="auto"'):
        maskrcnn.train(folder / "data", on_step=lambda _: os.kill(os.getpid(), signal.SIGINT), **options)
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before
    # by the command, whose run is the same
    assert call(train, "--data-path", folder / "data", "--output-dir", folder / "cut", "--resume", "auto") == 0
    assert differences(folder / "cut", run.folder, epoch=0) == [] and maskrcnn.Run(folder / "cut").best.exists()


def flipped(image, target):
    """An augmentation with draws, in two arguments."""
    if torch.rand(()) < 0.5:
        return image, target
    boxes = target["boxes"][:, [2, 1, 0, 3]] * torch.tensor([-1, 1, -1, 1]) + torch.tensor([56, 0, 56, 0])
    return image.flip(2), {**target, "boxes": boxes, "masks": target["masks"].flip(2)}


def test_an_own_augmentation_draws_from_the_generator_of_the_sample():
    image, target = data_set_of(Squares())[0]
    draws = []
    for seed in range(8):
        for function in (flipped, lambda image, target, rng: flipped(image, target)):
            rng = torch.Generator().manual_seed(seed)
            changed, its = OwnAugmentation(function)(image, target, rng)
            masks = target["masks"] if torch.equal(changed, image) else target["masks"].hflip()
            assert torch.equal(its["masks"].to_masks(), masks.to_masks()) and its["image_id"] == target["image_id"]
            draws.append(torch.equal(changed, image))
    torch.manual_seed(99)
    again = [
        torch.equal(OwnAugmentation(flipped)(image, target, torch.Generator().manual_seed(s))[0], image)
        for s in range(8)
    ]
    assert again == draws[::2] and len(set(again)) == 2
    for wrong, said in (
        (lambda i, t: i, "must return a pair"),
        (lambda i, t: (i[:, :9], t), "0 of augment: masks has shape"),
    ):
        with pytest.raises(ValueError, match=said):
            OwnAugmentation(wrong)(image, target, torch.Generator())


def test_an_id_that_is_no_number_is_left_out():
    for given, ids in (("abc", [0, 1, 2]), (torch.tensor([7, 8]), [0, 1, 2]), (None, [0, 1, 2])):
        data_set = data_set_of(Squares(image_id=given))
        assert [data_set.image_id(i) for i in range(3)] == ids and data_set[1][1]["image_id"] == 1
    one = data_set_of(Squares((1,), image_id=torch.tensor([7])))
    assert one.image_id(0) == one[0][1]["image_id"] == 7


def test_datasets_of_torch_are_trained_on_and_validated(folder, capsys):
    more = {"names": ["cat", "dog"], "augment": flipped, "epochs": 1, **OPTIONS}
    own = maskrcnn.train(Squares(), Squares((2, 1)), output_dir=folder / "own", **more)
    detector = own.detector(device="cpu")
    assert detector.names == ["cat", "dog"]
    with pytest.warns(UserWarning, match="box_detections_per_img allows"):
        numbers = maskrcnn.validate(detector, Squares((2, 1)), output_dir=folder / "numbers", report=True)
    assert {f"segm_{name}": value for name, value in numbers["segm"].items()}.items() <= own.history[-1].items()
    assert numbers["report"].exists() and [path.name for path in numbers["files"]] == [
        "record_mAP.txt",
        "record_mAP.json",
        "detections.json",
    ]
    assert "Squares: 3 images (0 without objects), 3 objects of 2 classes" in capsys.readouterr().out
    assert json.loads((own.folder / "args.json").read_text())["augment"] == "flipped (a Python function)"
    for augment in (None, np.flip):
        again = {**more, "augment": augment, "output_dir": own.folder, "resume": "auto"}
        with pytest.raises(InputError, match="augmented by the Python function flipped before, and would be by the"):
            maskrcnn.train(Squares(), Squares((2, 1)), **again)
    assert call(train, "--data-path", folder / "data", "--output-dir", own.folder, "--resume", "auto") == 2
    assert "before, and would be by the options now; give the same (maskrcnn.train(" in capsys.readouterr().err


def test_a_resumed_run_needs_its_function(run, folder, capsys):
    shutil.copytree(run.folder, folder / "function")
    again = {"output_dir": folder / "function", "resume": "auto", "device": "cpu"}  # nothing is left to train
    with pytest.raises(InputError, match="by the options before, and would be by the Python function flipped now"):
        maskrcnn.train(folder / "data", augment=flipped, **again)
    maskrcnn.train(folder / "data", augment=flipped, allow_changed=["augment"], **again)
    said = capsys.readouterr().out
    assert "changed: images are augmented by the Python function flipped, before by the options\n" in said
    assert 'more epochs                    maskrcnn.train(..., resume="auto", epochs=2' in said


def test_validation_gives_the_numbers_of_the_run(run, folder):
    with pytest.warns(UserWarning, match="4 images have 10 detections, all that box_detections_per_img allows"):
        numbers = maskrcnn.validate(run.folder / "model_0.pth", device="cpu")  # on the data that it was trained with
    last = run.history[-1]
    assert list(numbers["bbox"]) == list(numbers["segm"]) == list(STAT_NAMES)
    assert all(numbers[t][name] == last[f"{t}_{name}"] for t in ("bbox", "segm") for name in STAT_NAMES)
    assert list(numbers["per_class"]["segm"]) == list(NAMES.values()) and numbers["images"] == 4
    assert numbers["loss"] == pytest.approx(last["val_loss"])
    assert numbers["limits"]["full_images"]["images"] == 4


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"data": "nowhere"}, "^nowhere: no such file or folder; check data_path"),
        ({"epoch": 3}, r"^epoch: a run has no such option; did you mean epochs\?$"),
        (
            {"imgsz": 64, "iou": 0.5},
            r"^imgsz, iou: a run .*; did you mean min_size or max_size\?; did you mean box_nms",
        ),
        ({"epochs": -1}, "^epochs: -1 is not a whole number of at least 1"),
        ({"amp": "False"}, "^amp 'False' is neither True nor False"),
        ({"test_only": True}, r"^test_only: validate\("),
        ({"augment": print, "photometric": True}, "^photometric: augment takes the place"),
        ({"names": ["a"]}, "^val and names go with a torch Dataset"),
        ({"data": [1]}, "^data is a list: give a path, DataOptions, or a torch Dataset"),
        ({"data": Squares(labels=())}, "^Squares: has no image"),
        ({"data": Squares((1, 3)), "names": ["a", "b"]}, r"^Squares\[1\]: label 3: it must be 1 to 2"),
        ({"data": Squares(masks=torch.zeros(2, 48, 56))}, r"^Squares\[0\]: masks has shape \[2, 48, 56\]"),
        ({"data": Squares(boxes=torch.tensor([[8, 8, 8, 9]]))}, r"^Squares\[0\]: box .* has no area"),
        (
            {"data": Squares(boxes=torch.tensor([[0.1, 0.1, 0.5, 0.6]]))},
            r"^Squares\[0\]: its boxes lie within one pixel",
        ),
        ({"data": Squares((1, 1)), "val": Squares((2,))}, r"^Squares\[0\]: label 2: it must be 1 to 1"),
        ({"data": maskrcnn.DataOptions("nowhere", year="2012")}, "^nowhere: no such"),
        ({"data": Squares((1,))}, "^Squares: has one image, which cannot be divided"),
        ({"data": Squares(), "val_fraction": 0}, "^Squares: no image is left for validation; check val_fraction"),
        (
            {"data": Squares(), "drop_empty": True, "dataset": "voc", "year": None},
            "^dataset, drop_empty: without effect, as data is a torch Dataset",
        ),
        ({"data": Squares(), "val": Squares(), "val_fraction": 0.3}, "^val_fraction: without effect"),
        ({"data": "nowhere", "data_path": "elsewhere"}, "^data_path: data says another value"),
    ],
)
def test_what_is_wrong_is_named_in_pythons_words(given, said, tmp_path):
    with pytest.raises(ValueError, match=said):
        maskrcnn.train(**{"output_dir": tmp_path / "run", **given})
    assert not (tmp_path / "run").exists()


def test_what_validation_cannot_use_is_named(run):
    detector = run.detector(device="cpu")
    for given, said in (
        ({"score": 1}, "^score: validate has no such option"),
        ({"min_size": 64}, "a detector has its settings already"),
        ({"data": Squares((1, 4))}, r"^Squares\[1\]: label 4: it must be 1 to 3"),
        ({"data": Squares(), "val_fraction": 0.3}, "^val_fraction: without effect"),
        ({"max_dets": "x"}, "^max_dets: 'x' is not a whole number of at least 10"),
        ({"max_dets": 0}, "^max_dets: 0 is not a whole number of at least 10"),
    ):
        with pytest.raises(ValueError, match=said):
            maskrcnn.validate(detector, **given)


def test_validation_data_may_not_change(run):
    class Restless(Squares):
        def __getitem__(self, i):
            self.labels = self.labels[::-1]
            return super().__getitem__(i)

    with pytest.raises(ValueError, match=r"Restless\[0\]: gives another image or target than before"):
        maskrcnn.validate(run.detector(device="cpu"), Restless((1, 2, 3)))


LIMIT = 3  # lines of a task


class Body(nn.Module):
    """A backbone as CONTRIBUTING.md says."""

    out_channels = (8, 16, 32, 64)

    def __init__(self, norm, width):
        super().__init__()
        pairs = zip((3, 8, 16, 32), self.out_channels, strict=True)
        self.stages = nn.ModuleList(nn.Conv2d(a, b, 3, 4 if a == 3 else 2, 1) for a, b in pairs)

    def freeze(self, trainable_layers):
        pass

    def forward(self, x):
        maps = []
        for stage in self.stages:
            maps.append(x := stage(x).relu())
        return maps


def see_people(model, source):
    """Weights with which much is a person."""
    with torch.no_grad():
        model.roi_heads.box_predictor.cls_score.bias[1] = 9.0


def blocks_of(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    return [block for block in re.findall(r"```python\n(.*?)```", text, re.S)]


@pytest.fixture
def place(run, folder, tmp_path, monkeypatch):
    """A folder with what the pages name; published weights are replaced by small ones, trainings by `run`."""
    (tmp_path / "DATA").symlink_to(folder / "data")
    (tmp_path / "photos").mkdir()
    photo = Image.fromarray(np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8))
    for name in ("photo.jpg", "photos/1.jpg"):
        photo.save(tmp_path / name)
    monkeypatch.chdir(tmp_path)

    def no_run(given, world, additions):
        config = RunConfig.of({**FIELDS, **SIZES, **given})
        resolve(config, world)
        tiny(3, **config.model)
        return run.folder

    monkeypatch.setattr(maskrcnn, "run_training", no_run)
    for module in (maskrcnn, network_files):
        monkeypatch.setattr(module, "create_model", lambda num_classes, **config: tiny(num_classes, **FEW, **config))
        monkeypatch.setattr(module, "load_weights", see_people)


@pytest.mark.filterwarnings("ignore:.*box_detections_per_img allows")
def test_the_lines_of_the_pages_run(place):
    names = {"torch": torch, "MyDataset": Squares, "MyOtherDataset": Squares, "MyBody": Body}
    entry = {"segmentation": {"size": [48, 64], "counts": "0PP3"}}  # a mask of all pixels
    Path("test_result.json").write_text(json.dumps([entry]))
    pages = [blocks_of(page) for page in ("README.md", "docs/python.md", "docs/output.md")]
    assert [len(blocks) for blocks in pages] == [1, 13, 1]
    assert all(sum(map(bool, block.splitlines())) <= LIMIT for block in pages[1][:10])  # the ten tasks
    for block in sum(pages, []):
        run_lines(block, names)
    assert names["numbers"]["images"] == 4 and len(names["many"][0]) > 0
    assert names["model"].config.box_detections_per_img == 20
    assert np.unique(Image.open("mask_0.png")).tolist() == [255]


def test_every_file_of_a_run_is_on_the_page_about_output(run):
    table = (ROOT / "docs" / "output.md").read_text(encoding="utf-8").split("| file | what |")[1].split("\n\n")[0]
    names = [name for row in table.splitlines() for name in re.findall(r"`([\w*./]+)`", row.split(" | ")[0])]
    left = {path.name + "/" * path.is_dir() for path in run.folder.iterdir()}
    assert {name for name in left if not any(fnmatch(name, pattern) for pattern in names)} == set()
    absent = {name for name in names if not any(fnmatch(file, name) for file in left)}
    # of the second epoch, curves (not drawn here), while a run lasts, only of a bad loss
    assert absent == {
        "model_1.pth",
        "loss_and_lr*.png",
        "losses*.png",
        "mAP*.png",
        "model_previous.pth",
        "non_finite_step*.pth",
    }


def run_lines(block, names):
    """Runs a block of a page; what it prints is swallowed by pytest."""
    exec(block, names)
