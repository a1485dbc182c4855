"""maskrcnn.train and validate: the runs and numbers of the commands, on paths and on torch Datasets."""

import os
import signal

import numpy as np
import pytest
import torch
from PIL import Image

import maskrcnn
import train
from tests.small_runs import call, differences
from tests.tiny_model import FEW, FIELDS, NAMES, train_flags, write_coco
from train_utils.evaluation.numbers import STAT_NAMES

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
    """A run of two epochs on a path."""
    callbacks = {"on_step": told["steps"].append, "on_epoch": told["epochs"].append}
    return maskrcnn.train(folder / "data", epochs=2, output_dir=folder / "one", log_steps=True, **callbacks, **OPTIONS)


def test_a_run_is_that_of_the_command(run, folder):
    flags = train_flags(**SIZES, epochs=2, log_steps=True)
    assert call(train, "--data-path", folder / "data", "--output-dir", folder / "two", *flags) == 0
    assert differences(folder / "one", folder / "two") == []
    assert run.folder == folder / "one" and run.best.exists() and maskrcnn.Run(run.folder) == run


def test_callbacks_and_history_have_the_numbers(run, told):
    assert [(row["epoch"], row["step"]) for row in told["steps"]] == [(0, 0), (0, 1), (1, 2), (1, 3)]
    assert {"loss", "lr", "loss_mask", "loss_objectness"} <= told["steps"][0].keys()
    assert told["epochs"] == run.history and [row["epoch"] for row in run.history] == [0, 1]
    assert {"loss", "val_loss", "loss_mask", "val_loss_mask", "segm_AP", "bbox_ARl", "seconds"} <= run.history[0].keys()
    assert all(isinstance(value, int | float) for value in run.history[0].values())  # flat: a table of pandas
    mean = sum(row["loss"] for row in told["steps"][:2]) / 2
    assert run.history[0]["loss"] == pytest.approx(mean)


def test_ctrl_c_leaves_a_run_to_resume(run, folder):
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]

    def interrupt(row):
        if row["step"] == 2:
            os.kill(os.getpid(), signal.SIGINT)

    place = {"output_dir": folder / "cut", "log_steps": True, "epochs": 2}
    with pytest.raises(KeyboardInterrupt, match='resume="auto"'):
        maskrcnn.train(folder / "data", on_step=interrupt, **place, **OPTIONS)
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before
    again = maskrcnn.train(folder / "data", resume="auto", **place, **OPTIONS)
    assert again.folder == folder / "cut" and differences(folder / "cut", folder / "one") == []


def test_datasets_of_torch_are_trained_on_and_validated(folder, capsys):
    seen = []

    def augment(image, target):
        seen.append((float(torch.rand(())), target["masks"].dtype, tuple(target["masks"].shape)))
        flipped = {
            "boxes": target["boxes"][:, [2, 1, 0, 3]] * torch.tensor([-1, 1, -1, 1]) + torch.tensor([56, 0, 56, 0])
        }
        return image.flip(2), {**target, **flipped, "masks": target["masks"].flip(2)}

    more = {"names": ["cat", "dog"], "augment": augment, "epochs": 1, **OPTIONS}
    one, two = (
        maskrcnn.train(Squares(), Squares((2, 1)), output_dir=folder / name, **more) for name in ("own", "twin")
    )
    half = len(seen) // 2
    assert seen[:half] == seen[half:] and seen[0] != seen[1]  # its draws are a function of the seed, epoch and image
    assert {entry[1:] for entry in seen} == {(torch.uint8, (1, 48, 56))}
    assert differences(one.folder, two.folder, epoch=0) == []
    detector = one.detector(device="cpu")
    assert detector.names == ["cat", "dog"]
    numbers = maskrcnn.validate(detector, Squares((2, 1)), output_dir=folder / "numbers", report=True)
    assert {f"segm_{name}": value for name, value in numbers["segm"].items()}.items() <= one.history[-1].items()
    assert numbers["report"].exists() and [path.name for path in numbers["files"]] == [
        "record_mAP.txt",
        "record_mAP.json",
    ]
    assert "Squares: 3 images (0 without objects), 3 objects of 2 classes" in capsys.readouterr().out


def test_validation_gives_the_numbers_of_the_run(run, folder):
    with pytest.warns(UserWarning, match="4 image.s. have 10 detections, all that box_detections_per_img allows"):
        numbers = maskrcnn.validate(run.folder / "model_1.pth", device="cpu")  # on the data that it was trained with
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
        ({"epoch": 3}, "^epoch: a run has no such option"),
        ({"epochs": -1}, "^epochs: -1 is not a whole number of at least 1"),
        ({"test_only": True}, r"^test_only: validate\("),
        ({"augment": print, "photometric": True}, "^photometric: augment takes the place"),
        ({"names": ["a"]}, "^val and names go with a torch Dataset"),
        ({"data": [1]}, "^data is a list: give a path, DataOptions, or a torch Dataset"),
        ({"data": Squares(labels=())}, "^Squares: has no image"),
        ({"data": Squares((1, 3)), "names": ["a", "b"]}, r"^Squares\[1\]: label 3: it must be 1 to 2"),
        ({"data": Squares(masks=torch.zeros(2, 48, 56))}, r"^Squares\[0\]: masks has shape \[2, 48, 56\]"),
        ({"data": Squares(boxes=torch.tensor([[8, 8, 8, 9]]))}, r"^Squares\[0\]: box .* has no area"),
        ({"data": Squares((1, 1)), "val": Squares((2,))}, r"^Squares\[0\]: label 2: it must be 1 to 1"),
        ({"data": maskrcnn.DataOptions("nowhere", year="2012")}, "^nowhere: no such"),
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
