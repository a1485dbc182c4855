"""The train commands as a user runs them, the files they leave, and that a cut run goes on bit for bit."""

import json
import re
import signal
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import predict
import train
import validation
from network_files import InputError, MaskRCNNConfig
from tests.faults.processes import end_all, launch, start_all, wait_for
from tests.small_runs import ROOT, call, differences, flags, start
from tests.tiny_model import tiny
from train_utils.cli.parser import Parser
from train_utils.data.formats.shapes import make_shapes
from train_utils.processes.distributed import World
from train_utils.run import epochs as trainer
from train_utils.run.config import LR_PER_IMAGE, RunConfig, add_arguments
from train_utils.run.defaults import BUILT_IN_MODEL, resolve, with_network
from train_utils.run.reports import about_speed
from train_utils.run.schedule import with_length

STEPS = 6  # per epoch: 12 images in batches of 2


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    return make_shapes(tmp_path_factory.mktemp("data") / "shapes", train=12, val=3, size=48)


@pytest.fixture(scope="module")
def finished(shapes, tmp_path_factory):
    """(run folder, what was printed) of an uninterrupted run."""
    folder = tmp_path_factory.mktemp("finished")
    process = start([ROOT / "train.py"], flags(shapes, "run"), folder)
    output, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    assert sorted(path.name for path in folder.iterdir()) == ["run"]
    return folder / "run", output


# --- a whole run ---


def test_a_wrong_evaluator_is_told_first(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("MASKRCNN_EVALUATOR", "fastest")
    assert call(train, *flags(tmp_path / "nowhere", tmp_path)) == 2
    assert "MASKRCNN_EVALUATOR is 'fastest'" in capsys.readouterr().err


def test_a_run_prints_what_it_does(finished, shapes):
    folder, output = finished
    first = output.splitlines()[0]
    assert first.startswith("trains Mask R-CNN v1 on resnet18, weights none, on ")
    assert first.endswith(": 2 epochs, 2 images a step, on 1 x cpu")
    assert "12 images" in output and "Mask R-CNN v1, resnet18, 3 classes" in output
    assert "learning rate 0.002" in output and "run folder: run" in output
    line = re.compile(
        r"^Epoch: \[1\]  \[5/6\]  eta: \d:\d\d:\d\d  lr: 0\.\d{6}"
        r"  loss: \d+\.\d{4} \(\d+\.\d{4}\)"
        r"  loss_classifier: .*  loss_box_reg: .*  loss_mask: .*  loss_objectness: .*  loss_rpn_box_reg: .*"
        r"  time: .*  data: [\d.]+$",
        re.M,
    )
    assert line.search(output)


def test_the_commands_that_a_run_ends_with_work(finished, tmp_path, monkeypatch):
    folder, output = finished
    monkeypatch.chdir(folder.parent)
    lines = [line.partition("python ")[2].split() for line in output.splitlines()[-3:]]
    commands = {Path(line[0]).stem: line[1:] for line in lines}
    assert commands["validation"] == ["--weights-path", "run", "--report"]
    elsewhere = ("--output-dir", tmp_path, "--device", "cpu")
    assert call(predict, *commands["predict"], *elsewhere) == 0
    assert call(validation, *commands["validation"][:-1], *elsewhere) == 0
    assert commands["train"][:4] == ["--output-dir", "run", "--resume", "auto"]
    given = RunConfig.of(parsed(commands["train"]))
    assert given.epochs == 4 and given.allow_changed == ("epochs",)


def parsed(words):
    """What the words of train.py's command give."""
    parser = Parser()
    add_arguments(parser)
    return parser.given(words)


def test_a_run_says_how_long_it_takes_and_on_a_cpu_what_is_sooner():
    config = RunConfig.of({"data_path": "D"})
    config = resolve(config, SimpleNamespace(size=1, device=torch.device("cpu")))
    config, _ = with_length(config, 1848, 924)
    large, small = (SimpleNamespace(config=MaskRCNNConfig(backbone=name)) for name in ("resnet50", "resnet18"))
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    about, sooner = about_speed(4.5, 24_000, config, large, cpu)
    assert about.startswith(
        "after 10 steps: about 30 hours for the 24,000 steps to epoch 26 at this speed (4.50 s a step), "
    )
    assert "--epochs, --min-size 400 --max-size 666 (a quarter of the pixels), --backbone resnet18" in sooner
    assert "--backbone" not in about_speed(4.5, 24_000, config, small, cpu)[1]
    assert len(about_speed(4.5, 24_000, config, large, gpu)) == len(about_speed(4.5, 400, config, large, cpu)) == 1
    assert about_speed(0.1, 500, config, large, cpu) == []


def test_a_run_leaves_its_files(finished):
    folder, _ = finished
    names = {re.sub(r"\d{8}-\d{6}", "DATE", path.name) for path in folder.iterdir()}
    assert names == {
        "model_0.pth", "model_1.pth", "model_best.pth", "args.json", "tensorboard", "det_resultsDATE.txt",
        "seg_resultsDATE.txt", "det_results.json", "seg_results.json", "loss_and_lrDATE.png", "mAPDATE.png", ".lock",
        "lossesDATE.png", "model_min_val_loss.pth",
    }  # fmt: skip
    for line in next(folder.glob("det_results*.txt")).read_text().splitlines():
        assert re.fullmatch(r"epoch:\d (-?\d\.\d{4}  ){12}\d+\.\d{4}  0\.\d{6}", line)
    checkpoint = torch.load(folder / "model_1.pth", weights_only=True)
    assert (checkpoint["step"], checkpoint["epoch"], checkpoint["progress"]["epochs_done"]) == (2 * STEPS, 1, 2)
    assert checkpoint["config"]["norm"] == "batch" and checkpoint["config"]["trainable_layers"] == 5
    assert json.loads((folder / "args.json").read_text())["lr"] == 0.002
    losses = json.loads((folder / "seg_results.json").read_text())
    assert losses[0]["loss"] > losses[1]["loss"] > 0 and losses[0]["val_losses"]["loss_mask"] > 0


def board_of(folder):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    return EventAccumulator(str(folder / "tensorboard"), size_guidance={"scalars": 0, "tensors": 0}).Reload()


def test_tensorboard_tells_what_one_looks_for(finished):
    read = board_of(finished[0])
    measures = ("gradient norm", "positive anchors", "positive RoIs", "proposal recall 0.5")
    values = {name: [event.value for event in read.Scalars(f"train/{name}")] for name in measures}
    assert all(len(each) == 2 * STEPS and min(each) >= 0 for each in values.values())
    assert min(values["gradient norm"]) > 0 and max(values["positive anchors"]) > 0
    assert len(read.Scalars("AP50 of masks/ellipse")) == len(read.Scalars("AP50 of boxes/ellipse")) == 2
    assert [event.step for event in read.Images("val/ground truth | prediction")] == [STEPS - 1, 2 * STEPS - 1]
    (command,) = read.Tensors("run/command/text_summary")
    assert b"train.py" in command.tensor_proto.string_val[0]
    assert {"run/flags/text_summary", "run/model/text_summary"} <= set(read.Tags()["tensors"])


# --- cut and resumed ---


@pytest.mark.slow
def test_terminated_within_an_epoch_it_resumes_bit_for_bit(finished, shapes, tmp_path):
    run, log = tmp_path / "run", tmp_path / "log"
    (process,) = start_all(shapes, run, log=log)
    assert wait_for(lambda: log.exists() and "\nEpoch: [0]  [1/6]" in log.read_text())
    process.terminate()
    assert end_all([process]) == [128 + signal.SIGTERM], log.read_text()
    cut = torch.load(run / "model_0.pth", weights_only=True)
    assert 2 <= cut["step"] < STEPS
    log.unlink()
    assert end_all(start_all(shapes, run, "--resume", "auto", "--workers", 1, log=log)) == [0], log.read_text()
    output = log.read_text()
    assert f"[{cut['step']}/6]" in output and "[1/6]" not in output.split("Epoch: [1]")[0]
    assert differences(finished[0], tmp_path / "run") == []
    norms = board_of(tmp_path / "run").Scalars("train/gradient norm")
    assert [event.step for event in norms] == list(range(2 * STEPS))  # also of the last step before the cut


@pytest.mark.slow
def test_killed_in_an_evaluation_it_resumes_bit_for_bit(finished, shapes, tmp_path, monkeypatch):
    def killed(*_, **__):
        raise RuntimeError("killed")

    with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="killed"):
        patch.setattr(trainer, "evaluate", killed)
        call(train, *flags(shapes, tmp_path / "run"))
    assert torch.load(tmp_path / "run" / "model_0.pth", weights_only=True)["step"] == STEPS
    assert call(train, *flags(shapes, tmp_path / "run", "--resume", "auto")) == 0
    assert differences(finished[0], tmp_path / "run") == []


def test_other_steps_per_epoch_or_classes_do_not_resume(finished, shapes, tmp_path, capsys):
    more = ("--resume", finished[0] / "model_0.pth", "--batch-size", 4)
    assert call(train, *flags(shapes, tmp_path / "run", *more)) == 2
    assert "= 4, it was 2 before" in capsys.readouterr().err


def test_test_only_gives_the_numbers_of_the_run(finished, shapes, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    arguments = flags(shapes, tmp_path / "tested", "--test-only", "--resume", finished[0] / "model_1.pth")
    assert call(train, *arguments) == 0
    output = capsys.readouterr().out
    recorded = json.loads((finished[0] / "seg_results.json").read_text())[1]
    recalls = re.findall(r"Average Recall .* all \| maxDets=100 \] = (-?[\d.]+)", output)
    assert len(recalls) == 2 and float(recalls[1]) == pytest.approx(recorded["AR100"], abs=6e-4)
    record = json.loads((tmp_path / "tested" / "record_mAP.json").read_text())
    assert record["segm"]["stats"]["AR100"] == recorded["AR100"] and [*tmp_path.iterdir()] == [tmp_path / "tested"]


# --- several processes ---


@pytest.mark.slow
def test_torchrun_trains_as_one_process_with_accumulation(shapes, tmp_path):
    """In float32 the first losses agree to 1e-5, under frozen norm and without dropout."""
    more = ("--epochs", 1, "--norm", "frozen", "--dropout", 0, "--accumulate-steps", 1, "--batch-size", 1)
    process = launch(shapes, tmp_path / "two", *more, log=tmp_path / "log")
    assert call(train, *flags(shapes, tmp_path / "one", *more, "--accumulate-steps", 2)) == 0
    codes, output = end_all([process], 300), (tmp_path / "log").read_text()
    assert codes == [0], output
    assert output.count("Test: [0]") == output.count("run folder:") == 1
    saved = [torch.load(tmp_path / name / "model_0.pth", weights_only=True) for name in ("one", "two")]
    curves = [checkpoint["progress"]["curve"] for checkpoint in saved]
    assert curves[0].shape == (STEPS, 2)
    torch.testing.assert_close(curves[0][0], curves[1][0], rtol=1e-5, atol=0)


# --- options and bad input ---


@pytest.mark.slow
def test_many_options_at_once(shapes, tmp_path, capsys):
    more = """--norm group --optimizer adamw --lr-schedule cosine --warmup-iters 3 --clip-grad-norm 1 --amp True
        --accumulate-steps 2 --early-stop 1 --epochs 9 --large-scale-jitter 64 --vertical-flip --freeze-at 2
        --recompute --save-every-steps 2 --drop-empty --num-classes 3 --lr 1e-9""".split()
    assert call(train, *flags(shapes, tmp_path / "run", *more)) == 0
    output = capsys.readouterr().out
    assert "adamw: learning rate 1e-09, global batch 4" in output and "stopping early" in output
    assert " --resume auto --device cpu --epochs 18 --allow-changed epochs --early-stop 2\n" in output
    assert torch.load(tmp_path / "run" / "model_best.pth", weights_only=True)["config"]["trainable_layers"] == 3


def test_unreadable_images_are_skipped_and_counted(shapes, tmp_path, capsys):
    data = make_shapes(tmp_path / "shapes", train=4, val=2, size=48, seed=1)
    for path in (data / "train2017" / "000000000001.png", data / "val2017" / "000000000001.png"):
        path.write_bytes(path.read_bytes()[:200])
    run = flags(data, tmp_path / "run", "--epochs", 1, "--batch-size", 1)
    assert call(train, *run) == 0
    output = capsys.readouterr()
    assert "1 in training so far, 1 in validation" in output.out
    assert output.err.count("train2017/000000000001.png") == output.err.count("val2017/000000000001.png") == 1
    assert "an epoch has" not in output.out
    assert call(train, *run, "--strict", "--batch-size", 3, "--repeat", 2) == 2
    output = capsys.readouterr()
    assert "000000000001.png" in output.err.splitlines()[-1]
    assert "an epoch has 6 of 8 images, others each time: the rest would not fill a batch\n" in output.out
    assert call(train, *run, "--strict", "--batch-size", 3, "--accumulate-steps", 2) == 2
    said = "a step has 4 images, all that there are, where the global batch is 6, which the usual --lr is for: give a"
    assert said in capsys.readouterr().out and "a step has" not in output.out
    of_weights = ["--data-path", data, "--weights", tmp_path / "run", "--device", "cpu", "--workers", 0]
    assert call(train, *of_weights, "--test-only", "--output-dir", tmp_path / "tested") == 1  # an image is skipped
    output = capsys.readouterr()
    assert "skipped: " in output.err and f"network: as in --weights {tmp_path / 'run'}: anchor_sizes 4 8" in output.out
    assert json.loads((tmp_path / "tested" / "record_mAP.json").read_text())["about"]["images"] == 1
    assert call(train, *of_weights, "--fpn-channels", 32, "--output-dir", tmp_path / "other") == 2
    assert "it was made with fpn_channels 16" in capsys.readouterr().err


def test_a_run_from_a_checkpoint_has_its_network():
    weights = {"norm": "batch", "mask_head_layers": 1, "aspect_ratios": (0.5, 2.0), "min_size": (64,), "channels": 5}
    model = tiny(3, **weights)
    content = {"format_version": 1, "model": model.state_dict(), "config": model.config.to_dict(), "label_map": {}}
    config, (line,) = with_network(RunConfig.of({"weights": "w", "mask_head_layers": 4}), content)
    shaped = {"backbone": "resnet18", "fpn_channels": 16, "aspect_ratios": (0.5, 2.0), "mask_head_layers": 4}
    assert shaped.items() <= config.model.items() and not {"norm", "min_size", "channels"} & config.model.keys()
    assert (
        line.startswith("network: as in --weights w: aspect_ratios 0.5 2.0, backbone resnet18, ")
        and "min_size" not in line
        and "mask_head_layers" not in line  # which was given
    )
    with pytest.raises(InputError, match="w: does not fit its own settings"):
        with_network(RunConfig.of({"weights": "w"}), {**content, "config": {**content["config"], "fpn_channels": 32}})
    content["config"]["norm"] = "sync"  # on several GPUs
    tested, _ = with_network(RunConfig.of({"weights": "w", "test_only": True, "max_size": 99}), content)
    whole = {"min_size": (64,), "anchor_sizes": model.config.anchor_sizes, "max_size": 99, "norm": "batch"}
    assert whole.items() <= tested.model.items() and not {"geometry", "channels"} & tested.model.keys()
    for other in ({}, model.state_dict()):
        assert with_network(RunConfig.of({"weights": "w"}), other)[1] == []


def test_a_loss_that_is_not_finite_names_the_images_and_keeps_the_batch(shapes, tmp_path, capsys):
    assert call(train, *flags(shapes, tmp_path / "run", "--lr", 1e20, "--warmup-iters", 0)) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    (path,) = (tmp_path / "run").glob("non_finite_step*.pth")
    replay = torch.load(path, weights_only=True)
    assert len(replay["files"]) == len(replay["images"]) == len(replay["targets"]) == 2
    assert str(path) in error and all(name in error for name in replay["files"])


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ("--data-path nowhere", "nowhere: no such file or folder"),
        ("--num-classes 7", "--num-classes 7: the data has 3"),
        ("--weights lost.pth", "lost.pth"),
        ("--pretrain True --weights imagenet", "--weights coco, not imagenet"),
        ("--freeze-at 2 --trainable-layers 5", "--trainable-layers 3, not 5"),
        ("--sync-bn --norm group", "--norm sync, not group"),
        ("--sync-bn", "sync"),
        ("--recompute --norm batch", "recompute does not go with norm batch"),
        ("--resume lost.pth", "--resume lost.pth"),
        ("--device cuda:99", "--device cuda:99"),
        ("--epochs 0", "--epochs"),
        ("--expand 0.5", "--expand"),
        ("--repeat 0", "--repeat"),
        ("--fixed-size 64 65", "fixed_size is (64, 65)"),
        ("--weight-decay -1", "--weight-decay"),
    ],
)
def test_wrong_input_is_one_line(shapes, tmp_path, monkeypatch, capsys, more, message):
    monkeypatch.chdir(tmp_path)
    arguments = flags(shapes, tmp_path / "run", *more.split())
    assert call(train, *arguments) == 2
    lines = capsys.readouterr().err.splitlines()
    assert lines[-1].startswith("error: ") and message in lines[-1] and "Traceback" not in "".join(lines)
    assert not (tmp_path / "run").exists()


def resolved(*arguments, size=1):
    """The options that a command comes to, and the fields of its model."""
    parser = Parser()
    add_arguments(parser)
    config = resolve(RunConfig.of(parser.given(arguments)), World(0, size, 0, torch.device("cpu")))
    return SimpleNamespace(**config.to_args())


def test_what_is_not_given_follows_from_the_data_and_the_backbone():
    built_in = resolved()
    assert (built_in.weights, built_in.norm, built_in.trainable_layers) == ("none", "batch", 5)
    assert (built_in.optimizer, built_in.lr, built_in.lr_schedule) == ("adamw", 1.5e-3, "cosine")
    small = RunConfig.of(BUILT_IN_MODEL).to_args()
    assert all(getattr(built_in, name) == small[name] for name in BUILT_IN_MODEL)
    own = resolved("--data-path", "d", "--batch-size", "4", "--accumulate-steps", "3", size=2)
    assert (own.weights, own.norm, own.trainable_layers, own.backbone) == ("coco", None, None, "resnet50")
    assert (own.optimizer, own.lr, own.fpn_channels) == ("sgd", 24 * LR_PER_IMAGE, None)
    assert resolved("--data-path", "d", "--backbone", "resnet34").weights == "imagenet"
    assert resolved("--data-path", "d", "--weights", "none").norm == "batch"
    assert resolved("--data-path", "d", "--lr_steps", "6.4", "--epochs", "8").lr_steps == [6.4]


def test_published_weights_fit_the_model_of_the_built_in_data():
    bodies = resolved("--weights", "imagenet")
    assert (bodies.backbone, bodies.backbone_width) == ("resnet18", None)
    assert bodies.fpn_channels == BUILT_IN_MODEL["fpn_channels"]
    whole = resolved("--pretrain", "True")
    assert (whole.backbone, whole.backbone_width, whole.fpn_channels) == ("resnet50", None, None)
    assert resolved("--weights", "mine.pth").backbone_width == BUILT_IN_MODEL["backbone_width"]


def test_the_line_of_the_design_means_what_it_says():
    args = resolved(*"--batch-size 8 --lr 0.08 --pretrain False --amp True".split(), size=8)
    assert (args.weights, args.amp, args.lr, args.optimizer, args.norm) == ("imagenet", True, 0.08, "sgd", None)
