"""Commands and checkpoints of older Mask R-CNN projects: torchvision's reference scripts and those made after them."""

import argparse
import json
import sys
from pathlib import Path

import pytest
import torch

import predict
import train
import train_multi_GPU
import validation
from tests.small_runs import call, flags
from tests.tiny_model import NAMES, older_names, tiny_model, write_coco, write_images
from train_utils.cli.parser import Parser
from train_utils.data.formats.shapes import make_shapes
from train_utils.processes.distributed import World
from train_utils.run.config import RunConfig, add_arguments
from train_utils.run.defaults import resolve, without_effect
from train_utils.run.schedule import with_length

ONE = World(0, 1, 0, torch.device("cpu"))
TRAIN = [  # words of a command -> the flag's name here and its value
    ("--device cuda:1", "device", "cuda:1"),
    ("--data-path /data/coco2017", "data_path", "/data/coco2017"),
    ("--dataset coco", "dataset", "coco"),
    ("--num-classes 90", "num_classes", 90),
    ("--output-dir ./multi_train", "output_dir", "./multi_train"),
    ("--resume ./save_weights/model_3.pth", "resume", "./save_weights/model_3.pth"),
    ("--start_epoch 2", "start_epoch", 2),
    ("--epochs 26", "epochs", 26),
    ("--lr 0.004", "lr", 0.004),
    ("--momentum 0.8", "momentum", 0.8),
    ("--wd 1e-3", "weight_decay", 1e-3),
    ("--weight-decay 1e-3", "weight_decay", 1e-3),
    ("--batch_size 3", "batch_size", 3),
    ("-b 3", "batch_size", 3),
    ("-j 4", "workers", 4),
    ("--workers 4", "workers", 4),
    ("--aspect-ratio-group-factor 2", "aspect_ratio_group_factor", 2),
    ("--pretrain True", "weights", "coco"),
    ("--pretrain False", "weights", "imagenet"),
    ("--amp", "amp", True),
    ("--amp False", "amp", False),
    ("--lr-steps 7 12", "lr_steps", [7, 12]),
    ("--lr-step-size 8 --epochs 26", "lr_steps", [8, 16, 24]),
    ("--lr-gamma 0.33", "lr_gamma", 0.33),
    ("--print-freq 20", "print_freq", 20),
    ("--test-only", "test_only", True),
    ("--world-size 1", "world_size", 1),
    ("--dist-url env://", "dist_url", "env://"),
]
VALIDATION = [
    ("--device cpu", "device", "cpu"),
    ("--num-classes 90", "num_classes", 90),
    ("--data-path /data/coco2017", "data_path", "/data/coco2017"),
    ("--label-json-path coco91_indices.json", "label_json_path", "coco91_indices.json"),
    ("--batch_size 2", "batch_size", 2),
    ("-b 2", "batch_size", 2),
]


def parsed_for_training(words):
    parser = Parser()
    add_arguments(parser)
    return RunConfig.of(parser.given(words))


def spellings(words):
    """The command with - and with _ in its flags, which comes to the same."""
    turned = [word[:2] + word[2:].replace("-", "_") if word.startswith("--") else word for word in words.split()]
    return words.split(), turned


@pytest.mark.parametrize(("words", "name", "value"), TRAIN, ids=lambda value: str(value))
def test_flags_of_training(words, name, value):
    for spelled in spellings(words):
        config, _ = with_length(resolve(parsed_for_training(spelled), ONE), 8, 2)
        assert config.to_args()[name] == value
        late = "--lr-steps 7 12: without effect, the unit is epochs and the run has 6"
        assert without_effect(config, ONE, False) == ([late] if words == "--lr-steps 7 12" else [])


def test_sync_bn_is_a_norm():
    assert parsed_for_training(["--sync-bn"]).sync_bn is True
    config = resolve(parsed_for_training(["--sync_bn"]), World(0, 2, 0, torch.device("cuda")))
    assert config.model["norm"] == "sync"


@pytest.mark.parametrize(("words", "name", "value"), VALIDATION, ids=lambda value: str(value))
def test_flags_of_validation(monkeypatch, words, name, value):
    for spelled in spellings(f"{words} --weights-path model_25.pth"):
        monkeypatch.setattr(sys, "argv", ["validation.py", *spelled])
        assert validation.parse()[name] == value


@pytest.mark.parametrize(
    ("words", "resumed", "said"),
    [
        ("--start-epoch 3", True, "--start-epoch 3: left aside"),
        ("--world-size 4", False, "--world-size 4: left aside, torchrun started 1 process"),
        (
            "--lr-steps 2 60000 --epochs 3",
            False,
            "--lr-steps 60000: without effect, the unit is epochs and the run has 3",
        ),
        ("--dist-url tcp://localhost:1234", False, "--dist-url tcp://localhost:1234: left aside"),
        ("--dist-url tcp://host --test-only --start-epoch 26", False, "--dist-url tcp://host: left aside"),
        (
            "--lr-steps 1 --lr-gamma 0.5 --lr-schedule cosine",
            False,
            "--lr-steps --lr-gamma: without effect, the rate falls along a cosine",
        ),
        ("--ema-decay 0.9", True, "--ema-decay: without effect, it is of --ema"),
        ("--jitter-scale 0.5 1", False, "--jitter-scale: without effect, it is of --large-scale-jitter"),
        ("--overlap 0.1 --tile-negatives 3", False, "--overlap --tile-negatives: without effect, there is no --tile"),
        ("--optimizer adamw --momentum 0.5", False, "--momentum: without effect, adamw has its own"),
        (
            "--lr 0.002",
            False,
            "--lr 0.002: of sgd, as the built-in data's adamw has its own rate; to keep it: --optimizer adamw "
            "--lr-schedule cosine --warmup-iters 30",
        ),
        ("--box-head-convs 2", False, "--box-head-convs: without effect, the box head of --variant v1 has none"),
    ],
)
def test_what_contradicts_is_told(words, resumed, said):
    config, _ = with_length(resolve(parsed_for_training(words.split()), ONE), 8, 2)
    given = {word[2:].replace("-", "_") for word in words.split() if word.startswith("--")}
    (line,) = without_effect(config, ONE, resumed, given)
    assert line.startswith(said)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--start-epoch 2 --epochs 2", "--start-epoch 2: nothing is left of 2 --epochs"),
        ("--lr-step-size 8 --lr-steps 16 22 --epochs 26", "--lr-step-size 8 and --lr-steps 16 22: give one"),
    ],
)
def test_what_cannot_be_meant_is_an_error(tmp_path, capsys, words, said):
    data = write_coco(tmp_path / "data")
    assert call(train, *flags(data, tmp_path / "run"), *words.split()) == 2
    assert said in capsys.readouterr().err and not (tmp_path / "run").exists()


def test_steps_of_the_built_in_data_end_with_its_epochs():
    config = resolve(parsed_for_training(["--lr-step-size", "2"]), ONE)
    assert (config.epochs, config.lr_steps) == (6, (2, 4))  # what a resumed run will make of it


def test_a_run_that_starts_with_a_later_epoch(tmp_path, capsys):
    data = make_shapes(tmp_path / "shapes", train=4, val=1, size=48)
    more = ("--start-epoch", 2, "--epochs", 3, "--lr-step-size", 2, "--warmup-iters", 1)
    assert call(train, *flags(data, tmp_path / "run", *more)) == 0
    out = capsys.readouterr().out
    assert "Epoch: [2]" in out and "Epoch: [1]" not in out and "lr: 0.000200" in out
    saved = torch.load(tmp_path / "run" / "model_2.pth", weights_only=True)
    assert (saved["step"], saved["epoch"], saved["progress"]["epochs_done"]) == (6, 2, 3)
    assert [path.name for path in (tmp_path / "run").glob("model_?.pth")] == ["model_2.pth"]
    more = ("--resume", "auto", "--start-epoch", 1, "--epochs", 4, "--allow-changed", "epochs")
    assert call(train, *flags(data, tmp_path / "run", *more)) == 0
    out = capsys.readouterr().out
    assert "--start-epoch 1: left aside" in out and "Epoch: [3]" in out and "Epoch: [1]" not in out


@pytest.mark.parametrize(
    ("script", "said"),
    [(train_multi_GPU, "torchrun --nproc_per_node"), (validation, "--weights-path"), (predict, "--weights-path")],
)
def test_commands_without_flags_say_what_to_give(monkeypatch, command, script, said):
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    status, _, err = command(script)
    assert status == 2 and err.startswith("error: ") and err.count("\n") == 1 and said in err


SEVERAL = {"args": argparse.Namespace(lr=0.08, lr_steps=[16, 22], resume=""), "scaler": {"scale": 2.0}}


@pytest.mark.parametrize(("prefix", "more"), [("", {}), ("module.", SEVERAL)])
def test_a_checkpoint_of_theirs(tmp_path, monkeypatch, capsys, prefix, more):
    model = tiny_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    state = older_names(model.state_dict(), prefix)
    assert f"{prefix}roi_heads.mask_head.mask_fcn1.weight" in state and f"{prefix}rpn.head.conv.weight" in state
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, [16, 22]).state_dict()
    content = {"model": state, "optimizer": optimizer.state_dict(), "lr_scheduler": schedule, "epoch": 25, **more}
    torch.save(content, tmp_path / "model_25.pth")
    monkeypatch.chdir(tmp_path)
    data = write_coco(tmp_path / "data", {1: "circle", 2: "square", 3: "big triangle"})
    model_flags = ["--weights-path", "model_25.pth", "--min-size", "64", "--max-size", "96", "--device", "cpu"]
    Path("names.json").write_text(json.dumps({"1": "circle", "2": "square", "3": "big triangle"}))
    commands = {
        validation: ["--data-path", str(data), "--label-json-path", "names.json", "--num-classes", str(len(NAMES))],
        predict: ["--img-path", str(write_images(tmp_path / "in")[0]), "--label-json-path", "names.json"],
    }
    for script, words in commands.items():
        assert call(script, *model_flags, *words) == 0, capsys.readouterr().err
    assert " circle in " in capsys.readouterr().out
    small = flags(data, "run", "--epochs", 1)
    assert call(train, *small, "--resume", "model_25.pth") == 2
    assert "model_25.pth: holds weights but no training state; start from it with --weights" in capsys.readouterr().err
    monkeypatch.setattr("train_utils.run.epochs.Trainer.fit", lambda trainer: None)
    heads = ("--box-head-channels", 32, "--mask-head-channels", 16, "--norm", "batch")
    assert call(train, *small, *heads, "--weights", "model_25.pth") == 0
    assert "weights: model_25.pth" in capsys.readouterr().out
