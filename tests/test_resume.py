"""What a resumed run takes over, and what it refuses to change without leave."""

import json
import multiprocessing
import os
import re
import shutil
import threading
import time
from dataclasses import dataclass
from functools import partial

import pytest
import torch

import train
from backbone.errors import InputError
from backbone.settings import setting
from tests.faults.processes import end_all, start_all, wait_for
from tests.small_runs import call, differences, flags, same
from train_utils.checkpoints import checkpoint, run_lock
from train_utils.checkpoints.checkpoint import save_checkpoint
from train_utils.checkpoints.run_lock import RunLock
from train_utils.cli.parser import Parser
from train_utils.data.formats.shapes import make_shapes
from train_utils.processes.distributed import World
from train_utils.run import evaluation, resume, step
from train_utils.run import loop as train_loop
from train_utils.run.config import RunConfig, add_arguments
from train_utils.run.defaults import resolve
from train_utils.run.resume import _share_batch

ENDED = ("--epochs", 1, "--allow-changed", "epochs")  # of a run of two: nothing is left to train


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return make_shapes(tmp_path_factory.mktemp("data") / "shapes", train=6, val=2, size=48)


@pytest.fixture(scope="module")
def cut(data, tmp_path_factory):
    """The folder of a run of one epoch out of two, with rates unlike the defaults."""
    folder = tmp_path_factory.mktemp("runs")
    assert call(train, *flags(data, folder / "run", "--epochs", 2, "--momentum", 0.5, "--log-steps")) == 0
    (folder / "run" / "model_1.pth").unlink()
    return folder / "run"


@pytest.fixture
def resumed(cut, data, tmp_path, capsys):
    """A function: flags -> (exit status, what was printed) of going on with that run in another folder."""

    def go_on(*more):
        bare = ["--resume", cut / "model_0.pth", "--output-dir", tmp_path / "run", "--device", "cpu"]
        status = call(train, *bare, *more)
        printed = capsys.readouterr()
        return status, printed.out + printed.err

    return go_on


def test_the_parser_tells_which_flags_were_given():
    parser = Parser()
    add_arguments(parser)
    given = parser.given(["--lr_gamma", "0.1", "--amp", "--epochs=3"])
    assert given == {"lr_gamma": 0.1, "amp": True, "epochs": 3} and RunConfig.of(given).horizontal_flip == 0.5
    assert RunConfig.of(parser.given(["--amp", "force"])).amp == "force" and RunConfig(amp=True).amp is True
    with pytest.raises(InputError, match="amp 'maybe' is neither True nor False"):
        RunConfig(amp="maybe")


def test_flags_that_are_not_given_are_the_checkpoints(resumed, cut, tmp_path):
    status, printed = resumed()
    assert status == 0 and "learning rate 0.002, global batch 2" in printed
    ours, theirs = (json.loads((folder / "args.json").read_text()) for folder in (tmp_path / "run", cut))
    own = {"resume", "output_dir"}
    assert {k: v for k, v in ours.items() if k not in own} == {k: v for k, v in theirs.items() if k not in own}
    groups = torch.load(tmp_path / "run" / "model_1.pth", weights_only=True)["optimizer"]["param_groups"]
    assert groups[0]["momentum"] == 0.5


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (("--lr", 0.1), "--lr 0.1 was 0.002 before; leave the flag out, or give --allow-changed lr"),
        (("--seed", 1), "--seed 1 was 0 before"),
        (("--ema", "False"), "--ema False was True before"),
        (("--min-size", 32), "--min-size 32 was 48 before"),
        (("--repeat", 2), "--repeat 2 was 1 before"),
        (("--expand",), "--expand 4.0 was None before"),
        (("--fixed-size", 64, 64), "--fixed-size 64 64 was None before"),
        (("--freeze-at", 2), "--trainable-layers 3 was 5 before"),
        (("--pretrain",), "--weights coco was none before"),
        (("--batch-size", 3), "--batch-size 3 x --accumulate-steps 1 x 1 process = 3, it was 2 before"),
        (("--batch-size", 1, "--accumulate-steps", 2), "--batch-size 1 was 2 before, and --norm batch depends on it"),
        (("--allow-changed", "rate"), "--allow-changed rate: give flags' names, or data"),
    ],
)
def test_what_would_change_the_run_is_refused(resumed, tmp_path, more, said):
    status, printed = resumed(*more)
    assert status == 2 and said in printed and not (tmp_path / "run").exists()


def test_a_flag_that_an_older_version_had_not_is_a_change(data, cut, tmp_path, capsys):
    saved = torch.load(cut / "model_0.pth", weights_only=True)
    del saved["args"]["repeat"]
    save_checkpoint(tmp_path / "model_0.pth", saved)
    assert call(train, *flags(data, tmp_path, "--resume", "auto", "--repeat", 2, "--momentum", 0.5)) == 2
    assert "--repeat 2 was None before" in capsys.readouterr().err


def test_what_may_change_applies(resumed, tmp_path):
    status, printed = resumed("--lr", 1e-4, "--workers", 1, "--print-freq", 2, "--allow-changed", "lr")
    assert status == 0 and "changed: --lr 0.002 -> 0.0001" in printed and "learning rate 0.0001" in printed
    curve = torch.load(tmp_path / "run" / "model_1.pth", weights_only=True)["progress"]["curve"]
    assert curve.shape == (6, 2) and (curve[:3, 1] <= 2e-3).all()
    # one step of warm-up is left out: the rate of the second epoch is a tenth of 1e-4, as both milestones allow
    assert (curve[3:, 1] <= 1e-4).all() and curve[3, 1] > 0


def test_momentum_is_kept_where_another_torch_names_more_of_its_options(resumed, cut, tmp_path):
    assert resumed()[0] == 0
    checkpoint = torch.load(cut / "model_0.pth", weights_only=True)
    checkpoint["optimizer"]["param_groups"][0]["another"] = None
    save_checkpoint(tmp_path / "model_0.pth", checkpoint)
    bare = ("--resume", tmp_path / "model_0.pth", "--output-dir", tmp_path / "other", "--device", "cpu")
    assert call(train, *bare) == 0
    one, two = (torch.load(tmp_path / name / "model_1.pth", weights_only=True)["model"] for name in ("run", "other"))
    assert same(one, two)


def test_what_an_optimizer_or_a_recipe_stands_for_changes_with_it(resumed):
    status, printed = resumed("--optimizer", "adamw", *ENDED, "optimizer")
    assert status == 0 and "changed: --lr and --weight-decay: the usual of adamw, as no other was given\n" in printed
    assert "adamw: learning rate 0.0001," in printed
    status, printed = resumed("--optimizer", "adamw", "--lr", 0.003, *ENDED, "optimizer", "lr")
    assert "changed: --weight-decay: the usual of adamw" in printed and "adamw: learning rate 0.003," in printed
    status, printed = resumed("--recipe", "small", "--allow-changed", "recipe")
    assert status == 2 and "--recipe small was usual before; it stands for other flags" in printed


def test_a_run_that_is_set_back_has_its_own_best_again_and_goes_on_from_there(cut, tmp_path, capsys, monkeypatch):
    first = torch.load(cut / "model_0.pth", weights_only=True)
    shutil.copytree(cut, tmp_path / "run")
    path, best, lowest, later, last = (
        tmp_path / "run" / f"model_{name}.pth" for name in (0, "best", "min_val_loss", 1, 2)
    )
    save_checkpoint(path, {**first, "names": ["best", 0]})
    for name in (best, lowest, later, last):
        names = [name.stem.removeprefix("model_"), "best", "min_val_loss"]
        save_checkpoint(name, {**first, "epoch": 1, "names": names, "progress": {**first["progress"], "best_ap": 0.9}})
    damaged = bytearray(last.read_bytes())
    damaged[len(damaged) // 2] ^= 4
    last.write_bytes(damaged)
    words = ("--resume", path, *ENDED, "--device", "cpu")
    with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="cut"):
        patch.setattr(train_loop.Trainer, "fit", fail)
        call(train, *words)
    said = re.findall(r"set back to model_0.pth: (.*)", capsys.readouterr().out)
    dates = [re.search(r"_[\d-]+.pth$", line)[0] for line in said]
    assert [line.removesuffix(date) for line, date in zip(said, dates, strict=True)] == [
        "of the epochs left behind 1 checkpoint stays under the time of saving: model_1.pth is model_1",
        "model_best.pth is that of model_0.pth again; that of the epochs left behind is model_best",
        "model_min_val_loss.pth comes with the next better epoch; that of the epochs left behind is model_min_val_loss",
    ]
    assert best.read_bytes() == path.read_bytes() and not lowest.exists() and not later.exists() and last.exists()
    left = [path.with_name(f"model_{name}{date}") for name, date in zip((1, "best"), dates, strict=False)]
    assert [torch.load(name, weights_only=True)["epoch"] for name in left] == [1, 1]
    assert call(train, "--output-dir", path.parent, "--resume", "auto", *ENDED, "--device", "cpu") == 0
    out, err = capsys.readouterr()
    assert f"resuming from {best}" not in out and f"resuming from {path}" in out and f"{last} is damaged" in err
    assert "set back" not in out
    assert call(train, "--resume", left[0], *ENDED, "--device", "cpu") == 0  # and forward again
    assert f"resuming from {left[0]}" in capsys.readouterr().out
    assert torch.load(best, weights_only=True)["epoch"] == torch.load(later, weights_only=True)["epoch"] == 1


@pytest.mark.parametrize("damage", [lambda c: c["progress"].pop("data"), lambda c: c.update(environment="cpu")])
def test_a_training_state_without_what_is_asked_for_is_told(cut, tmp_path, capsys, damage):
    checkpoint = torch.load(cut / "model_0.pth", weights_only=True)
    damage(checkpoint)
    save_checkpoint(tmp_path / "model_0.pth", checkpoint)
    assert call(train, "--resume", tmp_path / "model_0.pth", "--output-dir", tmp_path / "run") == 2
    assert "the checkpoint's training state is missing or damaged" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("norm", "before", "size", "becomes"),
    [
        ("batch", (2, 2, 4), 2, (2, 4)),
        ("sync", (2, 2, 4), 2, (4, 2)),
        ("sync", (2, 2, 2), 4, (1, 2)),
        ("sync", (1, 2, 2), 4, "--batch-size 1 x 4 processes was 1 x 2 before, and --norm sync depends on it; give"),
    ],
)
def test_other_processes_keep_what_a_norm_sees(norm, before, size, becomes):
    batch, accumulate, processes = before
    config = RunConfig(batch_size=batch, accumulate_steps=accumulate)
    progress = {"global_batch": batch * accumulate * processes, "world_size": processes}
    checkpoint = {"progress": progress, "args": config.to_args(), "config": {"norm": norm}}
    share = partial(_share_batch, config, checkpoint, set(), set(), World(0, size, 0, torch.device("cpu")))
    if isinstance(becomes, str):
        with pytest.raises(InputError, match=becomes):
            share()
    else:
        shared, _ = share()
        assert (shared.batch_size, shared.accumulate_steps) == becomes


def test_a_run_that_had_ended_ends_at_once_in_another_folder(resumed, tmp_path):
    status, printed = resumed("--epochs", 1, "--allow-changed", "epochs")
    assert status == 0 and f"The resumed run had ended: nothing new is in {tmp_path / 'run'}" in printed


def test_a_run_in_a_thread_trains(data, tmp_path):
    status = []
    run = flags(data, tmp_path / "run", "--epochs", 1)
    thread = threading.Thread(target=lambda: status.append(call(train, *run)))
    thread.start()
    thread.join()
    assert status == [0] and (tmp_path / "run" / "model_0.pth").exists()


def test_other_images_are_refused_without_leave(resumed, tmp_path):
    other = make_shapes(tmp_path / "other", train=8, val=2, size=48, seed=3)
    status, printed = resumed("--data-path", other)
    assert status == 2 and "the data is not that of before: train: 2 images are new, other labels of 6 im" in printed
    assert (
        "; val: 1 of 2 images are gone, " not in printed
        and "Put the data back, or give --allow-changed data" in printed
    )
    status, printed = resumed("--data-path", other, "--allow-changed", "data")
    assert status == 0 and "changed: train: 2 images are new" in printed
    assert torch.load(tmp_path / "run" / "model_1.pth", weights_only=True)["step"] == 2 * 4


def test_what_an_older_checkpoint_says_of_the_data_is_compared(resumed, cut, data, tmp_path):
    saved = torch.load(cut / "model_0.pth", weights_only=True)
    del saved["data"]
    save_checkpoint(tmp_path / "model_0.pth", saved)
    path = data / "annotations" / "instances_train2017.json"
    content = path.read_text()
    labels = json.loads(content)
    for annotation in labels["annotations"]:
        annotation["category_id"] = annotation["category_id"] % 3 + 1
    try:
        path.write_text(json.dumps(labels))
        status, printed = resumed()
        assert status == 2 and "error: --resume: the data is not that of before: train: other labels of " in printed
        labels["images"].pop()
        labels["annotations"] = [a for a in labels["annotations"] if a["image_id"] < 6]
        path.write_text(json.dumps(labels))
        status, printed = resumed("--resume", tmp_path / "model_0.pth")
        assert status == 2 and "train: other images (names, sizes or numbers of objects). Put the data" in printed
    finally:
        path.write_text(content)


def test_another_machine_version_or_augmentation_is_said(tmp_path):
    world, own = World.single("cpu"), tmp_path / "mine.py"
    own.write_text("def f(image, target):\n    return image, target\n")
    config = RunConfig(augment=f"{own}:f")
    now = resume.environment(world, config)
    assert resume.other_environment({"environment": now}, world, config) == []
    assert torch.backends.cpu.get_cpu_capability() in now["processor"]
    before = {"environment": {**now, "torch": "2.9.0", "processor": "Zen 2 with AVX2"}}
    (line,) = resume.other_environment(before, world, config)
    differs = [f"torch 2.9.0 -> {torch.__version__}", f"processor Zen 2 with AVX2 -> {now['processor']}"]
    assert line == f"last bits may differ from an uncut run: {', '.join(differs)}"
    own.write_text("def f(image, target):\n    return image.flip(2), target\n")
    (line,) = resume.other_environment({"environment": now}, world, config)
    assert line.startswith("last bits may differ from an uncut run: file of --augment ")


def test_another_preset_is_taken_whole():
    """With leave: what the old one stood for goes, single flags stay."""
    world = World.single("cpu")
    args = resolve(RunConfig.of({"data_path": "d", "augment": "heavy", "epochs": 2, "lr_steps": (1,)}), world).to_args()
    before = {
        "args": {**args, "warmup_iters": 1},
        "progress": {"steps_per_epoch": 9, "global_batch": 2, "world_size": 1},
    }
    before["config"] = {"num_classes": 2, "norm": "frozen"}
    given = {"augment": "light", "blur": 2.0, "resume": "auto", "allow_changed": ("augment", "blur")}
    config, lines = resume.take_over(given, RunConfig.of(given), before, world)
    assert (config.noise, config.zoom, config.blur, config.epochs) == (0, (0.8, 1.25), 2.0, 2)
    assert lines == ["changed: --augment heavy -> light", "changed: --blur 1.5 -> 2.0"]
    with pytest.raises(InputError, match="--augment light was heavy before"):
        resume.take_over({"augment"}, RunConfig.of({"augment": "light"}), before, world)


def test_the_same_images_may_lie_elsewhere(resumed, data, tmp_path):
    moved = tmp_path / "moved"
    moved.symlink_to(data)
    assert resumed("--data-path", moved)[0] == 0


def test_a_run_in_a_locked_folder_is_refused(data, cut, monkeypatch, capsys):
    monkeypatch.setattr(run_lock, "_lock_file", busy)
    assert call(train, *flags(data, cut, "--resume", "auto", "--momentum", 0.5)) == 2
    error = capsys.readouterr().err
    assert "another run writes to this folder (process" in error and str(cut) in error


def busy(_):
    raise BlockingIOError


def test_a_lock_ends_with_its_process(tmp_path):
    def hold(ready):
        with RunLock.take(tmp_path):
            ready.set()
            time.sleep(60)

    forks = multiprocessing.get_context("fork")
    ready = forks.Event()
    process = forks.Process(target=hold, args=(ready,))
    process.start()
    assert ready.wait(30)
    assert RunLock.take(tmp_path) is None
    process.kill()
    process.join()
    with RunLock.take(tmp_path) as lock:
        assert os.fstat(lock.file.fileno()).st_ino == (tmp_path / ".lock").stat().st_ino


def test_old_checkpoints_are_pruned_and_the_best_stays(data, tmp_path):
    run = tmp_path / "run"
    assert call(train, *flags(data, run, "--epochs", 4, "--keep", 2, "--save-every-steps", 1)) == 0
    assert sorted(path.name for path in run.glob("*.pth")) == [
        "model_2.pth",
        "model_3.pth",
        "model_best.pth",
        "model_min_val_loss.pth",
    ]


def test_every_nth_epoch_is_kept_beside_the_newest_and_the_best(data, tmp_path):
    for more, kept in ([], {1, 3, 4}), (["--keep", 1], {3, 4}):
        run = tmp_path / f"run{len(more)}"
        assert call(train, *flags(data, run, "--epochs", 5, "--save-every-epochs", 2, *more)) == 0
        names = {path.name for path in run.glob("*.pth")}
        assert names == {"model_best.pth", "model_min_val_loss.pth", *(f"model_{epoch}.pth" for epoch in kept)}


def test_the_lowest_validation_loss_has_a_checkpoint(data, tmp_path, monkeypatch, capsys):
    """The run also tells of an image that is written anew after its second epoch."""
    original, sums, image = evaluation.summarize, iter([0.5, 0.25, float("nan"), 0.75]), next(data.rglob("*.png"))

    def summarize(*args):
        if sums.__length_hint__() == 3:
            image.touch()
        stats, losses, limits = original(*args)
        return stats, {**dict.fromkeys(losses, 0.0), "loss_mask": next(sums)}, limits

    monkeypatch.setattr(evaluation, "summarize", summarize)
    assert call(train, *flags(data, tmp_path / "run", "--epochs", 4)) == 0
    saved = torch.load(tmp_path / "run" / "model_min_val_loss.pth", weights_only=True)
    assert (saved["epoch"], saved["progress"]["lowest_val_loss"]) == (1, 0.25)
    lines = [line for line in capsys.readouterr().out.splitlines() if "changed since the run began" in line]
    assert [line.partition(", such")[0].partition(": ")[2] for line in lines] == [
        "files of 1 image have been changed since the run began"
    ]


def test_killed_between_the_names_of_a_checkpoint_a_run_makes_up_for_them(data, tmp_path, monkeypatch):
    run = tmp_path / "run"
    with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="cut"):
        original = checkpoint.copy_checkpoint
        copy = lambda path, to: original(path, to) if "previous" in to.name else fail()  # noqa: E731
        patch.setattr(checkpoint, "copy_checkpoint", copy)
        call(train, *flags(data, run))
    assert not (run / "model_best.pth").exists()
    assert call(train, *flags(data, run, "--resume", "auto")) == 0
    best = torch.load(run / "model_best.pth", weights_only=True)
    lowest = torch.load(run / "model_min_val_loss.pth", weights_only=True)
    assert best["progress"]["best_ap"] == torch.load(run / "model_1.pth", weights_only=True)["progress"]["best_ap"]
    assert "best" in best["names"] and "min_val_loss" in lowest["names"]


def test_a_damaged_newest_checkpoint_is_replaced_by_the_one_before(data, tmp_path, monkeypatch, capsys):
    """Also within an epoch, whose file each save replaces: the run ends as the uncut one."""
    more = ("--save-every-steps", 1, "--log-steps")
    assert call(train, *flags(data, tmp_path / "uncut", *more)) == 0
    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr("train_utils.run.epochs.evaluate", fail)
        with pytest.raises(RuntimeError, match="cut"):
            call(train, *flags(data, run, *more))
    newest = run / "model_0.pth"
    content = bytearray(newest.read_bytes())
    content[len(content) // 2] ^= 4
    newest.unlink()
    newest.write_bytes(content)
    assert torch.load(run / "model_previous.pth", weights_only=True)["step"] == 2
    assert call(train, *flags(data, run, *more, "--resume", "auto")) == 0
    warned = capsys.readouterr().err
    assert f"{newest} is damaged" in warned and f"{run / 'model_previous.pth'} is used in its place" in warned
    assert differences(tmp_path / "uncut", run) == []


def fail(*_, **__):
    raise RuntimeError("cut")


def test_bad_batches_are_skipped_up_to_a_number(data, tmp_path, monkeypatch, capsys):
    original, calls = step.accumulate_gradients, []

    def poisoned(state, *more):
        losses = original(state, *more)
        calls.append(None)
        if len(calls) in (2, 3):
            losses[0].value[2] = float("nan")
            next(state.model.buffers()).fill_(float("nan"))
        return losses

    monkeypatch.setattr(step, "accumulate_gradients", poisoned)
    assert call(train, *flags(data, tmp_path / "run", "--epochs", 1, "--skip-bad-batches", 2)) == 0
    error = capsys.readouterr().err
    assert "skipped (2 of 2 that --skip-bad-batches allows): step 2: loss_mask nan on" in error
    assert len(list((tmp_path / "run").glob("non_finite_step*.pth"))) == 2
    checkpoint = torch.load(tmp_path / "run" / "model_0.pth", weights_only=True)
    assert checkpoint["progress"]["bad_batches"] == 2 and checkpoint["step"] == 3
    assert all(value.isfinite().all() for value in checkpoint["model"].values())
    calls.clear()
    assert call(train, *flags(data, tmp_path / "other", "--epochs", 1, "--skip-bad-batches", 1)) == 2
    assert "step 2: loss_mask nan" in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.slow
def test_each_rank_keeps_the_batch_of_a_loss_that_is_not_finite(data, tmp_path):
    """Weights that have grown without bound give such a loss to all of them at once."""
    more = ("--batch-size", 1, "--lr", 1e20, "--warmup-iters", 0)
    assert end_all(start_all(data, tmp_path / "run", *more, log=tmp_path / "log", size=2)) == [2, 2]
    assert len(list((tmp_path / "run").glob("non_finite_step*.pth"))) == 2


@pytest.mark.slow
def test_another_number_of_processes_keeps_order_and_rates(data, tmp_path, capsys):
    """Begun with 2 ranks, stopped in the first epoch, ended by one process: steps as if that had begun it."""
    one, two = tmp_path / "one", tmp_path / "two"
    uncut = start_all(data, one, "--log-steps", "--batch-size", 1, "--accumulate-steps", 2, log=tmp_path / "1")
    fault = ("pause", "step", 2, tmp_path / "marker")
    ranks = start_all(data, two, "--log-steps", "--batch-size", 1, log=tmp_path / "2", size=2, fault=fault)
    assert wait_for((tmp_path / "marker").exists)
    ranks[0].terminate()
    assert end_all(ranks) == [143, 143] and end_all(uncut) == [0]
    # finished with the flags of the checkpoint alone
    assert call(train, "--resume", "auto", "--output-dir", two) == 0
    printed = capsys.readouterr().out
    assert "resumed with --batch-size 1 x --accumulate-steps 2 x 1 process: global batch 2" in printed
    assert "last bits may differ from an uncut run: processes 2 -> 1" in printed
    steps = [[json.loads(line) for line in (run / "steps.jsonl").read_text().splitlines()] for run in (one, two)]
    for key in ("step", "lr", "image_ids"):
        assert [step[key] for step in steps[0]] == [step[key] for step in steps[1]]
    assert len(steps[0]) == 6


def test_an_option_is_one_line(cut, capsys):
    """A field of the config is a flag with its help, an entry of the checkpoint, and a rule for resuming."""

    @dataclass(frozen=True)
    class Longer(RunConfig):
        """A run with two more options."""

        patience: int = setting(3, "epochs to wait", least=1, metavar="N")
        note: str = setting("", "of no effect", resume="free")

    parser = Parser()
    add_arguments(parser, Longer)
    assert "--patience N epochs to wait (default: 3)" in " ".join(parser.format_help().split())
    given = parser.given(["--patience", "5", "--note", "new"])
    config = Longer.of(given)
    assert (config.to_args()["patience"], config.to_args()["note"]) == (5, "new")
    with pytest.raises(SystemExit):
        parser.given(["--patience", "0"])
    assert "argument --patience: '0' is not a whole number of at least 1" in capsys.readouterr().err

    checkpoint = torch.load(cut / "model_0.pth", weights_only=True)
    checkpoint["args"] |= {"patience": 4, "note": "old"}
    with pytest.raises(InputError, match="--patience 5 was 4 before"):
        resume.take_over(given, config, checkpoint, World.single("cpu"))
    resumed, lines = resume.take_over(["note"], Longer.of({"note": "new"}), checkpoint, World.single("cpu"))
    assert (resumed.patience, resumed.note, resumed.momentum, lines) == (4, "new", 0.5, [])
