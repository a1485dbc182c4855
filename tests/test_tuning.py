"""What a run finds out by trying: --lr auto, --batch-size auto, a burst in the first steps."""

import re
from types import SimpleNamespace

import pytest
import torch

import train
from network_files import MaskRCNN
from tests.small_runs import call, flags
from tests.tiny_model import tiny
from train_utils.checkpoints.checkpoint import load_file
from train_utils.data.formats.shapes import make_shapes
from train_utils.data.opening import open_data
from train_utils.run.config import RunConfig
from train_utils.run.tuning import batches, bursts, rates


def test_a_rate_and_a_batch_that_fit_are_found(tmp_path, monkeypatch, capsys):
    """A run with both comes to the same weights as one that is given what they found: nothing of the trials stays."""
    data = make_shapes(tmp_path / "shapes", train=6, val=1, size=48)
    forward, counts = MaskRCNN.forward, []

    def scarce(self, images, targets=None, **more):
        if targets is not None and self.training:
            counts.append(len(images))
            if len(images) > 2:
                raise torch.OutOfMemoryError("out of memory")
        return forward(self, images, targets, **more)

    monkeypatch.setattr(MaskRCNN, "forward", scarce)
    monkeypatch.setattr(rates, "STEPS", 6)
    more = ("--epochs", 1, "--norm", "batch")
    assert call(train, *flags(data, tmp_path / "auto", *more, "--lr", "auto", "--batch-size", "auto")) == 0
    out = capsys.readouterr().out
    assert counts[:2] == [4, 2] and set(counts[2:]) == {2}
    assert "batch_size: 2 (auto), accumulate_steps: 2: the largest images fit so; global batch 4" in out
    assert "batch_size: tries a step of 4 images\nbatch_size: tries a step of 2 images\n" in out
    rate = re.search(r"learning rate: (\S+) \(auto\): in \d steps", out)[1]
    assert f"learning rate {rate}, global batch 4" in out
    known = ("--lr", rate, "--batch-size", 2, "--accumulate-steps", 2)
    assert call(train, *flags(data, tmp_path / "given", *more, *known)) == 0
    one, other = (load_file(tmp_path / name / "model_0.pth") for name in ("auto", "given"))
    assert one["args"] | {"output_dir": ""} == other["args"] | {"output_dir": ""} and float(rate) == one["args"]["lr"]
    assert all(torch.equal(one["model"][name], other["model"][name]) for name in one["model"])
    again = ("--lr", "auto", "--batch-size", "auto", "--resume", "auto")  # nothing is left to train or to try
    assert call(train, "--data-path", data, "--output-dir", tmp_path / "auto", *again) == 0
    assert "(auto)" not in capsys.readouterr().out

    monkeypatch.setattr(MaskRCNN, "forward", lambda *_, **__: (_ for _ in ()).throw(MemoryError()))
    assert call(train, *flags(data, tmp_path / "none", *more, "--batch-size", "auto")) == 2
    assert "there is not enough memory for one image" in capsys.readouterr().err
    assert not (tmp_path / "none").exists()
    assert call(train, *flags(data, tmp_path / "none", "--lr", "most")) == 2
    assert call(train, *flags(data, tmp_path / "none", *more, "--lr", "auto")) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert "the test of --lr auto: out of memory" in error and "(48x48, 48x48); try a smaller --batch-size" in error
    assert "--resume" not in error


def test_a_batch_that_fits_keeps_the_global_one(monkeypatch):
    world = SimpleNamespace(size=3, device=torch.device("cuda"), is_main=False, sum=lambda failed: failed)
    config = batches.first_try(RunConfig.of({"batch_size": "auto"}), world)
    monkeypatch.setattr(batches, "fits", lambda model, data_set, count, *_: count <= 2)
    chosen, line = batches.fitting_batch(None, None, config, None, world)
    assert config.global_batch(3) == chosen.global_batch(3) == 15
    assert line == "batch_size: 1 (auto), accumulate_steps: 5: the largest images fit so; global batch 15"


@pytest.mark.parametrize(
    ("losses", "said"),
    [
        ([2.0] * 10 + [2.5] * 10, False),
        ([2.0] * 10 + [4.5] * 10, True),
        ([2.0] * 10 + [1.5] * 60 + [4.5] * 10, True),
        ([2.0] * 10 + [4.5] * 9, False),  # too early
        ([2.0] * 10 + [4.5] * 91, False),  # too late: single images burst
        ([2.0] * 10 + [float("nan")] * 10, False),  # is told by itself
    ],
)
def test_a_burst_is_noticed_early(losses, said):
    line = bursts.warning([(loss, 0.02) for loss in losses])
    assert (line is not None) == said
    if said:
        assert line.startswith("the loss has risen from 2 to 4.5 in ") and "--lr 0.005" in line


def test_the_heaviest_images_are_tried(tmp_path):
    splits = open_data(make_shapes(tmp_path / "shapes", train=6, val=1, size=48))
    batch = batches.heaviest(tiny(2), splits.train, 8)
    counts = [len(target["labels"]) for target in batch.targets[:6]]
    assert counts == sorted(counts, reverse=True) and len(set(counts)) > 1
    assert len(batch.images) == 8 and batch.images[6] is batch.images[0]
