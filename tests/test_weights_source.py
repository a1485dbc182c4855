"""What a weights flag may name: published weights, a run folder, a file; and the newer run beside it that is told."""

import re
import shutil
from types import SimpleNamespace

import pytest
import torch

import predict
import train
import validation
from network_files import InputError
from network_files.weight_files import weights
from tests.small_runs import call, flags
from tests.test_weights import hub, publish  # noqa: F401  (a fixture)
from tests.tiny_model import tiny, write_checkpoint, write_coco, write_images
from tools import check_data
from train_utils.checkpoints.run_folder import write_args
from train_utils.checkpoints.weights_source import newer_run, weights_file
from train_utils.run.config import RunConfig
from train_utils.run.defaults import default_geometry, resolve


@pytest.fixture
def published(tmp_path, hub, monkeypatch):  # noqa: F811
    """Small weights at the addresses of "coco" and "coco_v2"; the folder of the site."""
    monkeypatch.chdir(tmp_path)
    for name, variant in (("coco", "v1"), ("coco_v2", "v2")):
        torch.manual_seed(0)
        model = tiny(91, variant=variant, backbone_width=8, **({"box_head_convs": 1} if variant == "v2" else {}))
        monkeypatch.setitem(weights.PUBLISHED, name, ("resnet18", variant))
        url = publish(tmp_path / "site", model.state_dict(), name)
        monkeypatch.setitem(weights.COCO, ("resnet18", variant), url)
    return tmp_path / "site"


def test_published_weights_detect_by_name_and_are_fetched_once(published, hub, tmp_path, command):  # noqa: F811
    (image,) = write_images(tmp_path / "in")[:1]
    words = ["--weights-path", "coco_v2", "--device", "cpu", "--img-path", image, "--min-size", 48, "--score", 0]
    status, printed, told = command(predict, *words)
    (cached,) = hub.iterdir()
    size = round(cached.stat().st_size / 1e6)
    assert status == 0 and told.startswith(f"fetching {published.as_uri()}/{cached.name} ({size} MB), once, into {hub}")
    assert printed.startswith(f"weights: {cached}: knows person, bicycle, car")
    shutil.rmtree(published)
    assert "fetching" not in command(predict, *words)[2]
    status, _, told = command(predict, "--weights-path", "coco", *words[2:])
    wanted = f"error: cannot fetch .*coco-.*: put that file into {re.escape(str(hub))} or the working folder\n"
    assert status == 2 and re.fullmatch(wanted, told)


def test_a_file_put_there_by_hand_is_taken(published, hub, tmp_path, capsys):  # noqa: F811
    (file,) = published.glob("coco-*.pth")
    shutil.move(file, tmp_path / file.name)
    assert weights_file("coco").name == file.name and capsys.readouterr().err == "" and not hub.exists()
    torch.save({"mine": torch.ones(1)}, tmp_path / file.name)
    weights_file("coco")
    assert "is not torchvision's file" in capsys.readouterr().err  # and so says which it takes


def test_the_doctor_and_validation_take_the_names_too(published, tmp_path, command):
    data = write_coco(tmp_path / "data")
    status, printed, _ = command(check_data, data, "--weights-path", "coco", "--samples", 0)
    assert status == 1 and "anchors of the model of" in printed
    status, _, told = command(validation, "--weights-path", "coco", "--data-path", data, "--device", "cpu")
    assert status == 2 and "trained for 90 classes" in told


def test_training_from_the_second_of_them_is_of_its_variant():
    world = SimpleNamespace(size=1, device=torch.device("cpu"))
    config = resolve(RunConfig.of({"weights": "coco_v2", "data_path": "D"}), world)
    assert (config.value("backbone"), config.value("variant")) == ("resnet50", "v2")
    assert default_geometry("coco_v2", {}) == default_geometry("coco", {})
    with pytest.raises(InputError, match=r"no coco_v2 weights for resnet18 v1 \(there are for: resnet50 v2\)"):
        weights.load_weights(tiny(), "coco_v2")


def run_folder(place, data):
    """A run folder with a checkpoint of epoch 0, which is its best."""
    place.mkdir(parents=True)
    write_args(place, {"data_path": data})
    return write_checkpoint(place / "model_best.pth", width=8, data_path=data)


def test_a_run_folder_stands_for_its_best(tmp_path):
    best = run_folder(tmp_path / "runs" / "mine", "D")
    write_checkpoint(best.with_name("model_1.pth"), width=8)
    assert weights_file(tmp_path / "runs" / "mine") == best
    best.rename(best.with_name("model_min_val_loss.pth"))
    assert weights_file(best.parent).name == "model_min_val_loss.pth"
    (best.parent / "model_min_val_loss.pth").unlink()
    assert weights_file(best.parent).name == "model_1.pth"
    with pytest.raises(InputError, match=rf"runs: this folder holds no checkpoint .* give a run in it: .*{'mine'}$"):
        weights_file(tmp_path / "runs")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="empty: .* give a run's folder, or a file$"):
        weights_file(tmp_path / "empty")


def test_a_newer_run_beside_the_one_that_is_taken_is_told(tmp_path, monkeypatch, command):
    monkeypatch.chdir(tmp_path)
    (image,) = write_images(tmp_path / "in")[:1]
    for name, data in (("save_weights", None), ("save_weights-2", "my cells"), ("save_weights_old", "x")):
        run_folder(tmp_path / name, data)
    words = ("--weights-path", "save_weights/model_best.pth", "--device", "cpu", "--img-path", image)
    status, printed, _ = command(predict, *words)
    line = printed.splitlines()[1]
    wanted = r"note: there is a newer run: save_weights-2, 20.*, on my cells; --weights-path save_weights-2 takes it"
    assert status == 0 and re.fullmatch(wanted, line)
    assert newer_run(weights_file("save_weights-2")) is newer_run(weights_file("save_weights_old")) is None
    write_checkpoint(tmp_path / "save_weights" / "model_1.pth", width=8)  # the former went on
    line = newer_run(weights_file("save_weights-2")).line()
    assert ": save_weights, 20" in line and "on the built-in data" in line


def test_a_training_begins_from_the_best_of_a_run_folder(tmp_path, capsys):
    data, best = write_coco(tmp_path / "data"), run_folder(tmp_path / "run", "D")
    write_checkpoint(best.with_name("model_0.pth"), width=8)  # saved later
    words = [w for w in flags(data, tmp_path / "out", "--test-only") if w not in ("--ema",)]
    words[words.index("--backbone-width") + 1] = "8"
    words[words.index("none")] = str(best.parent)
    words[words.index("--mask-head-layers") + 1] = "1"
    assert call(train, *words) == 0
    assert f"weights: {best} (" in capsys.readouterr().out
