"""Flags, model flags, device and exit status of the commands."""

import argparse
import dataclasses
import importlib.machinery
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from backbone.errors import InputError
from network_files import MaskRCNNConfig
from tests.small_runs import ROOT
from train_utils.cli.command import (
    Parser,
    add_config_arguments,
    add_flag,
    config_from_args,
    fraction,
    non_negative_int,
    parse_bool,
    pick_device,
    plain_args,
    positive_float,
    positive_int,
    run_command,
    seed,
)

ENVIRONMENT = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, sys.path)])}


def model_parser():
    parser = Parser()
    add_flag(parser, "--amp")
    parser.add_argument("--img-path")
    add_config_arguments(parser)
    return parser


@pytest.mark.parametrize(
    "words, expected",
    [
        ([], False),
        (["--amp"], True),
        (["--amp", "True"], True),
        (["--amp", "False"], False),
        (["--amp", "false"], False),
        (["--amp=True"], True),
        (["--amp", "--min-size", "5"], True),
    ],
)
def test_boolean_flag_means_what_it_says(words, expected):
    assert model_parser().parse_args(words).amp is expected


def test_boolean_flag_refuses_other_words():
    with pytest.raises(argparse.ArgumentTypeError, match="'maybe' is neither True nor False"):
        parse_bool("maybe")


def test_both_spellings_of_every_flag_and_untouched_values():
    args = model_parser().parse_args(["--min_size", "3", "4", "--max_size=77", "--img_path", "__a_b/--c_d"])
    assert (args.min_size, args.max_size, args.img_path) == ([3, 4], 77, "__a_b/--c_d")


def test_abbreviated_flag_is_refused_in_one_line(capsys):
    with pytest.raises(SystemExit) as stop:
        model_parser().parse_args(["--min-siz", "3"])
    message = capsys.readouterr().err
    assert stop.value.code == 2
    assert message.startswith("error: unrecognized arguments: --min-siz") and message.count("\n") == 1


@pytest.mark.parametrize(
    "module, told",
    [
        (None, "python train.py"),
        ("tools.check_data", "python -m tools.check_data"),
        ("benchmarks.__main__", "python -m benchmarks"),
    ],
)
def test_the_program_is_named_as_it_is_started(module, told, monkeypatch, capsys):
    spec = module and importlib.machinery.ModuleSpec(module, None)
    monkeypatch.setattr(sys.modules["__main__"], "__spec__", spec)
    monkeypatch.setattr(sys, "argv", ["/somewhere/train.py", "--bad"])
    parser = model_parser()
    assert parser.format_usage().startswith(f"usage: {told} ")
    with pytest.raises(SystemExit):
        parser.parse_args()
    assert f"({told} --help lists the flags)" in capsys.readouterr().err


@pytest.mark.parametrize(
    "kind, good, bad",
    [
        (positive_int, "1", ["0", "-1", "1.5", "x"]),
        (non_negative_int, "0", ["-1", "x"]),
        (positive_float, "1e-9", ["0", "-1", "nan", "inf", "x"]),
        (fraction, "1", ["1.01", "-0.1", "nan"]),
        (seed, "0", ["-1", str(2**63), "x"]),
    ],
)
def test_number_types(kind, good, bad):
    assert kind(good) == float(good)
    for text in bad:
        with pytest.raises(argparse.ArgumentTypeError, match=text):
            kind(text)


def test_every_config_field_has_a_flag_and_absent_flags_give_nothing():
    args = model_parser().parse_args([])
    fields = {f.name for f in dataclasses.fields(MaskRCNNConfig) if f.init} - {"num_classes"}
    assert fields and all(getattr(args, name) is None for name in fields)
    assert config_from_args(args) == {}


def test_config_from_args_round_trips_every_default():
    """Each field's default, typed as flags, gives the field's default back."""
    config = MaskRCNNConfig(num_classes=3).to_dict()
    words = []
    for name, value in config.items():
        if name == "num_classes":
            continue
        values = value if isinstance(value, (list, tuple)) else [value]
        words += ["--" + name.replace("_", "-"), *("none" if v is None else str(v) for v in values)]
    given = config_from_args(model_parser().parse_args(words))
    assert set(given) == set(config) - {"num_classes"}
    assert MaskRCNNConfig.from_dict({**given, "num_classes": 3}).to_dict() == config


def test_config_values_take_their_types():
    words = "--anchor-sizes 8 16 32 64 128 --aspect-ratios 0.5 1 --box-score-thresh 0.3 --backbone resnet18"
    given = config_from_args(model_parser().parse_args(words.split()))
    assert given == {
        "anchor_sizes": (8, 16, 32, 64, 128),
        "aspect_ratios": (0.5, 1.0),
        "box_score_thresh": 0.3,
        "backbone": "resnet18",
    }


def test_none_switches_an_optional_field_off():
    args = model_parser().parse_args(["--crowd-ioa-thresh", "None", "--fixed-size", "none"])
    assert config_from_args(args) == {"crowd_ioa_thresh": None, "fixed_size": None}
    args = model_parser().parse_args(["--fixed-size", "64", "96"])
    assert config_from_args(args) == {"fixed_size": (64, 96)}


def test_help_can_be_printed():
    text = model_parser().format_help()
    assert "--box-batch-size-per-image" in text and "512" in text


def test_pick_device():
    assert pick_device("cpu") == torch.device("cpu")
    assert pick_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    for wrong in ("gpu", "cuda:x", "cuda:99", "cpu:0", "", "cuda:"):
        with pytest.raises(InputError, match="--device"):
            pick_device(wrong)


def test_plain_args_are_json():
    args = argparse.Namespace(path=Path("a/b"), size=(1, 2), lr=None, amp=True)
    expected = {"amp": True, "lr": None, "path": "a/b", "size": [1, 2]}
    assert json.loads(json.dumps(plain_args(args))) == expected


def raises(error):
    def main():
        raise error

    return main


def test_run_command_exit_status(capsys):
    assert run_command(lambda: None) == 0
    assert run_command(lambda: 1) == 1
    assert run_command(raises(KeyboardInterrupt())) == 130
    capsys.readouterr()
    assert run_command(raises(InputError("a.json: annotation 3:\n no category"))) == 2
    assert capsys.readouterr().err == "error: a.json: annotation 3: no category\n"
    assert run_command(lambda: open("no/such/file")) == 2
    assert capsys.readouterr().err == "error: no/such/file: No such file or directory\n"
    with pytest.raises(ZeroDivisionError):
        run_command(raises(ZeroDivisionError()))


@pytest.mark.parametrize(
    "name, value, said",
    [
        ("fpn_channels", 0, "1 or more"),
        ("box_head_channels", -1, "1 or more"),
        ("image_mean", (1, 2), "give 3"),
        ("box_detections_per_img", -1, "1 or more"),
        ("image_std", (0, 0, 0), "positive"),
        ("bbox_reg_weights", (1,), "give 4"),
    ],
)
def test_numbers_that_no_model_can_have(name, value, said):
    with pytest.raises(InputError, match=f"{name}.*{said}"):
        MaskRCNNConfig(**{name: value})


def test_closed_pipe_is_no_traceback(tmp_path):
    program = (
        "import sys; from train_utils.cli.command import run_command\n"
        "def main():\n    for i in range(10**5): print(i)\n"
        "sys.exit(run_command(main))"
    )
    process = subprocess.Popen(
        [sys.executable, "-B", "-c", program],
        cwd=tmp_path,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=ENVIRONMENT,
    )
    process.stdout.readline()
    process.stdout.close()
    error = process.stderr.read()
    process.stderr.close()
    assert process.wait() == 1 and error == ""
