"""Flags, model flags, device and exit status of the commands."""

import argparse
import ast
import dataclasses
import importlib.machinery
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from backbone.errors import InputError
from backbone.settings import Settings, setting
from backbone.waiting import WAIT_VARIABLES, chosen_by_user, usual_wait, without_wait
from network_files import MaskRCNNConfig
from tests.small_runs import ROOT, call
from train_utils.cli import busy
from train_utils.cli.command import run_command
from train_utils.cli.device import pick_device, shared_world
from train_utils.cli.flags import add_flags, add_model_flags, given_model, number, parse_bool
from train_utils.cli.parser import Parser
from train_utils.cli.suggestions import OTHER_WORDS
from train_utils.prediction.pipeline import pace_of
from train_utils.processes.distributed import World
from train_utils.run.config import RunConfig, add_arguments
from train_utils.run.defaults import default_workers

ENVIRONMENT = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, sys.path)])}


@dataclasses.dataclass(frozen=True)
class Some(Settings):
    """Some settings."""

    amp: bool = setting(False, "faster")
    img_path: str | None = setting(None, "an image")
    flip: float = setting(0.0, "probability", least=0, most=1, bare=0.5)
    scales: tuple[float, float] = setting((0.1, 2.0), "a range", above=0, metavar=("LOW", "HIGH"))
    size: int | None = setting(None, "pixels", least=1, short="-s")
    kind: str = setting("new", "one of two", choices=("new", "old"))
    plain: str = "no setting"


def model_parser():
    parser = Parser()
    add_flags(parser, Some)
    add_model_flags(parser)
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
    ],
)
def test_boolean_flag_means_what_it_says(words, expected):
    assert Some(**given(words)).amp is expected


def test_boolean_flag_refuses_other_words():
    with pytest.raises(argparse.ArgumentTypeError, match="'maybe' is neither True nor False"):
        parse_bool("maybe")


def given(words):
    return model_parser().given(words)


def test_both_spellings_of_every_flag_and_untouched_values():
    words = ["--min_size", "3", "4", "--max_size=77", "--img_path", "__a_b/--c_d", "--amp"]
    assert given(words) == {"min_size": (3, 4), "max_size": 77, "img_path": "__a_b/--c_d", "amp": True}


def test_flags_follow_from_the_settings_of_a_dataclass(capsys):
    assert given([]) == {} and not hasattr(model_parser().parse_args([]), "plain")
    words = "--flip --scales 0.5 1 -s 3 --kind old"
    assert Some(**given(words.split())) == Some(flip=0.5, scales=(0.5, 1.0), size=3, kind="old")
    text = " ".join(model_parser().format_help().split())
    assert "Some settings: --amp [True|False] faster --img-path IMG_PATH an image --flip [FLOAT]" in text
    assert "probability (default: 0; bare flag: 0.5) --scales LOW HIGH a range (default: 0.1 2)" in text
    for wrong, said in (("--size 0", "'0' is not a whole number of at least 1"), ("--kind x", "invalid choice: 'x'")):
        with pytest.raises(SystemExit):
            given(wrong.split())
        assert said in capsys.readouterr().err


def test_settings_keep_their_rules():
    assert Some(scales=[1.0, 2.0]).scales == (1.0, 2.0) and Some(size=None).size is None
    for values, said in (
        ({"size": 0}, "size: 0 is not a whole number of at least 1"),
        ({"flip": float("nan")}, "flip: nan is not a number between 0 and 1"),
        ({"scales": (0.0, 1.0)}, "scales: 0.0 is not a number above 0"),
        ({"kind": "x"}, "kind 'x' is not known: new or old"),
    ):
        with pytest.raises(InputError, match=said):
            Some(**values)
    with pytest.raises(TypeError, match="leest: no rule of a setting"):
        setting(0, "a number", leest=0)


def test_abbreviated_flag_is_refused_in_one_line(capsys):
    with pytest.raises(SystemExit) as stop:
        model_parser().parse_args(["--min-siz", "3"])
    message = capsys.readouterr().err
    assert stop.value.code == 2
    assert message.startswith("error: unrecognized arguments: --min-siz") and message.count("\n") == 1


@pytest.mark.parametrize(
    "script, words, said",
    [
        ("predict", "--model m --source a", "--model: did you mean --weights-path?; --source: did you mean --img-"),
        ("predict", "--weights m.pth --img-path a.jpg", "did you mean --weights-path?"),
        ("predict", "--weights-path m.pth --conf=0.3", "did you mean --score or --box-score-thresh?"),
        ("predict", "--weights-path m.pth --dropout 0.1", "--dropout acts in training alone"),
        ("train", "--imgsz 640 --epoch 3", "did you mean --min-size or --max-size?; --epoch: did you mean --epochs?"),
        ("train", "--batch 3", "did you mean --batch-size?"),
        ("train", "--weights-path a.pth", "did you mean --weights"),
        ("train", "--ouput-dir a", "did you mean --output-dir?"),
        ("predict", "a.jpg", "a.jpg; values follow a flag: --img-path a.jpg (python"),
        ("train", "my_data", "my_data; values follow a flag: --data-path my_data (python"),
        ("train", "epochs=3", "flags begin with two dashes: --epochs"),
        ("train", "--nothing-like-it 3", "--nothing-like-it (python"),
    ],
)
def test_a_flag_that_there_is_not_is_answered_with_what_is_meant(script, words, said, command):
    status, _, told = command(importlib.import_module(script), *words.split())
    assert status == 2 and told.startswith("error: unrecognized arguments: ") and said in told and told.count("\n") == 1


def test_each_word_of_other_projects_leads_to_a_flag_that_there_is(capsys):
    known = set()
    for script in ("train", "predict", "validation"):
        call(importlib.import_module(script), "--help")
        known |= set(re.findall(r"--[a-z][a-z-]*", capsys.readouterr().out))
    wanted = {f"--{flag}" for flags in OTHER_WORDS.values() for flag in flags}
    assert wanted <= known
    words = [word for key in OTHER_WORDS for word in key.split()]
    assert len(words) == len(set(words))


@pytest.mark.parametrize("script", ["train", "train_multi_GPU", "predict", "validation", "tools.check_data"])
def test_help_begins_with_what_is_used_most(script, command):
    module = importlib.import_module(script)
    _, text, _ = command(module, "--help")
    usage, *_ = text.splitlines()
    assert usage.startswith("usage: ") and usage.endswith(" [flags]") and len(usage) < 80
    used = text.partition("Used most:")[2].partition("\n\n")[0]
    names = re.findall(r"^  (?:--)?([a-z][a-z-]*)", used, re.M)
    assert [name.replace("-", "_").removeprefix("data") for name in names] == [
        name.removeprefix("data" if name != "data_path" or script != "tools.check_data" else "data_path")
        for name in module.USED_MOST
    ]
    assert text.index("Used most:") < text.index("options:")
    assert ("--dropout" in text) == ("--rpn-fg-iou-thresh" in text) == script.startswith("train")
    assert ("a checkpoint's own precede these defaults" in text) != script.startswith("train")
    assert "default: torchvision" not in text and "half_pixel for a new mask head" in " ".join(text.split())


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
    "kind, good, bad, wanted",
    [
        (number(int, least=1), "1", ["0", "-1", "1.5", "x"], "a whole number of at least 1"),
        (number(int, least=0), "0", ["-1", "x"], "a whole number of at least 0"),
        (number(float, above=0), "1e-9", ["0", "-1", "nan", "inf", "x"], "a number above 0"),
        (number(float, least=1), "1", ["0.9", "inf", "nan"], "a number of at least 1"),
        (number(float, least=0, most=1), "1", ["1.01", "-0.1", "nan"], "a number between 0 and 1"),
        (number(int, least=0, below=2**63), "0", ["-1", str(2**63), "x", "9" * 400], "at least 0, below 2^63"),
    ],
)
def test_number_types(kind, good, bad, wanted):
    assert kind(good) == float(good)
    for text in bad:
        with pytest.raises(argparse.ArgumentTypeError, match=f"'{text}' is not .*{re.escape(wanted)}$"):
            kind(text)


def test_config_fields_round_trip_through_their_flags():
    """Each field's default, typed as flags, gives the field's default back; absent flags give nothing."""
    config = MaskRCNNConfig(num_classes=3).to_dict()
    words = []
    for name, value in config.items():
        if name == "num_classes":
            continue
        values = value if isinstance(value, (list, tuple)) else [value]
        words += ["--" + name.replace("_", "-"), *("none" if v is None else str(v) for v in values)]
    fields = given_model(given(words))
    assert set(fields) == set(config) - {"num_classes"} and given_model(given([])) == {}
    assert MaskRCNNConfig.from_dict({**fields, "num_classes": 3}).to_dict() == config


def test_config_values_take_their_types():
    words = "--anchor-sizes 8 16 32 64 128 --aspect-ratios 0.5 1 --box-score-thresh 0.3 --backbone resnet18"
    assert given(words.split()) == {
        "anchor_sizes": (8, 16, 32, 64, 128),
        "aspect_ratios": (0.5, 1.0),
        "box_score_thresh": 0.3,
        "backbone": "resnet18",
    }


def test_none_switches_an_optional_field_off():
    assert given(["--crowd-ioa-thresh", "None", "--fixed-size", "64", "96"]) == {
        "crowd_ioa_thresh": None,
        "fixed_size": (64, 96),
    }


def test_help_can_be_printed():
    text = model_parser().format_help()
    assert "--box-batch-size-per-image" in text and "512" in text


def test_pick_device():
    assert pick_device("cpu") == torch.device("cpu")
    assert pick_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    for wrong in ("gpu", "cuda:x", "cuda:99", "cpu:0", "", "cuda:"):
        with pytest.raises(InputError, match="--device"):
            pick_device(wrong)


def test_the_args_of_a_run_are_json_and_come_back():
    config = RunConfig.of(
        {"data_path": Path("a/b"), "jitter_scale": [1, 2], "crowd_ioa_thresh": None, "min_size": (9,)}
    )
    args = json.loads(json.dumps(config.to_args()))
    assert (args["data_path"], args["jitter_scale"], args["lr"], args["norm"]) == ("a/b", [1, 2], None, None)
    back = RunConfig().with_args({**args, "of_another_version": 3}, [*args, "of_another_version"])
    assert back.replaced({"data_path": Path("a/b")}) == config.replaced({"min_size": [9]})


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


def test_the_death_of_a_loader_within_a_save_is_one_line(capsys):
    def save():
        try:
            raise RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed. ")
        finally:
            raise RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 2299072 vs 2298968")

    assert run_command(save) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: DataLoader worker (pid 7) is killed by signal: Killed: a process that reads images")
    with pytest.raises(RuntimeError, match="enforce fail"):
        run_command(raises(RuntimeError("[enforce fail at inline_container.cc:672]")))


@pytest.mark.parametrize(
    "name, value, said",
    [
        ("fpn_channels", 0, "at least 1"),
        ("box_head_channels", -1, "at least 1"),
        ("image_mean", (1, 2), "give 3"),
        ("box_detections_per_img", -1, "at least 1"),
        ("image_std", (0, 0, 0), "above 0, at most 1"),
        ("image_std", (58.4, 57.1, 57.4), "above 0, at most 1"),
        ("image_mean", (123.7, 116.3, 103.5), "between 0 and 1"),
        ("bbox_reg_weights", (1,), "give 4"),
        ("rpn_nms_thresh", 70, "between 0 and 1"),
        ("box_score_thresh", -0.5, "between 0 and 1"),
        ("trainable_layers", 6, "between 0 and 5"),
        ("anchor_sizes", (0, 16, 32, 64, 128), "at least 1"),
        ("aspect_ratios", (), "at least one"),
        ("aspect_ratios", (float("inf"),), "above 0"),
        ("min_size", (800.5,), "a whole number"),
        ("max_size", "large", "'large' is not a whole number"),
        ("box_bg_iou_thresh", 0.6, "larger than box_fg_iou_thresh 0.5"),
    ],
)
def test_numbers_that_no_model_can_have(name, value, said):
    with pytest.raises(InputError, match=f"{name}.*{said}"):
        MaskRCNNConfig(**{name: value})


@pytest.mark.parametrize(
    "name, value, said",
    [
        ("jitter_scale", (1e-9, 1.0), "is not a number between 0.01 and 10"),
        ("jitter_scale", (2.0, 0.5), "the lower one comes first"),
        ("large_scale_jitter", 1, "at least 32"),
        ("expand", 1000.0, "between 1 and 10"),
        ("momentum", 1.0, "below 1"),
        ("ema_decay", 1.0, "below 1"),
        ("lr_gamma", 10.0, "above 0, at most 1"),
        ("dist_timeout", 1e30, "above 0, at most 1000000"),
        ("workers", 100_000, "between 0 and 1024"),
        ("lr", float("inf"), "above 0"),
    ],
)
def test_values_of_a_run_that_cannot_be_meant(name, value, said, capsys):
    """A flag and a caller in Python get the same words."""
    words = ["--" + name.replace("_", "-"), *map(str, value if isinstance(value, tuple) else (value,))]
    parser = Parser()
    add_arguments(parser)
    with pytest.raises(InputError, match=said) as caught:
        RunConfig.of({name: value})
    assert "--" not in str(caught.value)
    with pytest.raises((SystemExit, InputError)) as refused:
        RunConfig.of(parser.given(words))
    assert said in capsys.readouterr().err + str(refused.value)


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


def test_a_busy_machine_is_said(monkeypatch, capsys):
    for name in WAIT_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("GOMP_SPINCOUNT", usual_wait({})["GOMP_SPINCOUNT"])  # as every command has it
    world, cores = World.single("cpu"), os.cpu_count()
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    monkeypatch.setattr(os, "getloadavg", lambda: (2 * cores + 0.5, 0, 0), raising=False)
    busy.say_if_busy(world)
    said = capsys.readouterr().err
    assert (
        f"is busy (load average {2 * cores + 0.5:.1f}, {cores} cores)" in said
        and "OMP_WAIT_POLICY=PASSIVE before" in said
    )
    busy.say_if_busy(world, busy.MANY)
    assert capsys.readouterr().err == said
    busy.say_if_busy(world, busy.MANY - 1)  # one photo is done before the line is read
    with shared_world("cpu", "start again"):
        assert capsys.readouterr().err == ""
    monkeypatch.setenv("OMP_WAIT_POLICY", "PASSIVE")
    assert busy.busy_line(world.device) is None
    monkeypatch.delenv("OMP_WAIT_POLICY")
    monkeypatch.setattr(os, "getloadavg", lambda: (2 * cores - 0.5, 0, 0))
    assert busy.busy_line(world.device) is None and busy.busy_line(torch.device("cuda")) is None


def test_loader_processes_follow_the_cores_that_the_job_may_use(monkeypatch):
    """A shared machine gives a job some of its cores; its GPUs share them."""
    cpu, gpu = World.single("cpu"), World.single("cuda")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    for cores, beside_gpu, beside_cpu in (({3, 5, 6, 7, 8, 9}, 3, 2), ({1, 4}, 1, 0), (set(range(64)), 8, 2)):
        monkeypatch.setattr(os, "sched_getaffinity", lambda _, cores=cores: cores, raising=False)
        assert default_workers(gpu) == beside_gpu == pace_of(gpu.device, None, None).workers
        assert default_workers(cpu) == beside_cpu
    monkeypatch.delattr(os, "sched_getaffinity")  # as on macOS
    monkeypatch.setattr(os, "cpu_count", lambda: 10)
    assert default_workers(gpu) == 5


def test_how_threads_wait_is_set_unless_the_user_says():
    assert usual_wait({"HOME": "/"}) == {"GOMP_SPINCOUNT": "10000"} and not chosen_by_user(usual_wait({}))
    for name, value in (("OMP_WAIT_POLICY", "PASSIVE"), ("GOMP_SPINCOUNT", "7"), ("KMP_BLOCKTIME", "0")):
        assert usual_wait({name: value}) == {} and chosen_by_user({name: value})
        assert without_wait({name: value}) == {name: value}
    assert without_wait({"HOME": "/"} | usual_wait({})) == {"HOME": "/"}
    for script in [*ROOT.glob("*.py"), ROOT / "tools" / "__init__.py", ROOT / "train_utils" / "__init__.py"]:
        imports = [node for node in ast.parse(script.read_text()).body if isinstance(node, ast.Import | ast.ImportFrom)]
        roots = [(getattr(node, "module", None) or node.names[0].name).split(".")[0] for node in imports]
        first = next(root for root in roots if root not in sys.stdlib_module_names)
        assert first in {"backbone", "train_utils"} or script.name == "transforms.py", script
