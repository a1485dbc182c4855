"""Schedules of short runs: epochs, warm-up and falls follow from the number of images; torchvision's by one flag."""

import pytest
import torch

from train_utils.io.plain_text import counted
from train_utils.processes.distributed import World
from train_utils.run import resume
from train_utils.run.config import RunConfig
from train_utils.run.defaults import resolve
from train_utils.run.schedule import describe, fall_steps, with_length

ONE = World(0, 1, 0, torch.device("cpu"))


def planned(images, steps, **given):
    """The config of a run whose epoch has so many images and steps, and what is said about it."""
    return with_length(resolve(RunConfig.of({"data_path": "d", **given}), ONE), images, steps)


@pytest.mark.parametrize(
    ("images", "epochs"), [(1, 100), (20, 100), (60, 100), (100, 60), (230, 27), (231, 26), (118_000, 26)]
)
def test_epochs_follow_from_the_images(images, epochs):
    config, (line,) = planned(images, max(1, images // 2))
    assert config.epochs == epochs and line.startswith(
        f"epochs: {epochs}, as an epoch has {counted(images, 'image')} ("
    )
    assert planned(images, 10, epochs=3)[1] == []


@pytest.mark.parametrize(
    ("steps", "epochs", "warmup", "falls"),
    [
        (39, 2, 19, [66]),  # a quarter of 78 steps; torchvision's would leave 9 of them at the full rate
        (20, 26, 50, [442]),  # an epoch is too short for new heads
        (67, 8, 53, [456]),  # a tenth
        (100, 26, 100, [1600, 2200]),  # from here on as torchvision's
        (2000, 26, 1000, [32000, 44000]),
        (1, 1, 0, [1]),
    ],
)
def test_warm_up_and_falls_suit_the_length(steps, epochs, warmup, falls):
    config, _ = planned(2 * steps, steps, epochs=epochs)
    assert (config.warmup_iters, fall_steps(config, steps)) == (warmup, falls)
    assert config.clip_grad_norm == (10 if steps * epochs < 1000 else None)


def test_the_reference_is_torchvisions_schedule():
    config, lines = planned(78, 39, recipe="reference")
    assert (config.epochs, config.warmup_iters, config.clip_grad_norm, lines) == (26, 39, None, [])
    assert config.lr_steps == pytest.approx([16, 22])
    config, _ = planned(78, 39, recipe="reference", epochs=13, lr_steps=(9,), warmup_iters=5)
    assert (config.epochs, config.warmup_iters, config.lr_steps) == (13, 5, (9,))
    built_in, _ = with_length(resolve(RunConfig.of({"recipe": "reference"}), ONE), 40, 20)
    assert (built_in.optimizer, built_in.epochs, built_in.lr_schedule) == ("sgd", 26, "steps")


def test_the_small_recipe_is_what_no_flag_says_otherwise():
    config, (line,) = planned(268, 134, recipe="small", lr=0.001, min_size=(64,), rotate=0.0)
    assert config.epochs == 12 and line.startswith("epochs: 12, as an epoch has 268 images")
    assert planned(10, 5, recipe="small")[0].epochs == 100 and planned(100, 50, recipe="small")[0].epochs == 32
    assert (config.optimizer, config.lr, config.lr_schedule, config.augment) == ("adamw", 0.001, "cosine", "medium")
    medium = planned(9, 9, augment="medium")[0]
    assert (config.zoom, config.rotate, medium.rotate) == (medium.zoom, 0.0, 10.0) and config.zoom != RunConfig().zoom
    assert (config.value("backbone"), config.weights) == ("mobilenet_v2", "imagenet")
    assert (config.value("min_size"), config.value("anchor_sizes")) == ((64,), ("auto",))
    other, same = (planned(9, 9, recipe="small", optimizer=name)[0] for name in ("sgd", "adamw"))
    assert (other.lr, same.lr) == (planned(9, 9)[0].lr, 5e-4)  # a rate is its optimiser's
    assert planned(9, 9, recipe="small", lr_steps=(2,))[0].lr_schedule == "steps"


def test_the_schedule_is_told_in_steps():
    config, _ = planned(78, 39, epochs=2)
    assert (
        describe(config, 39) == "19 steps of warm-up, gradients clipped to a norm of 10, the rate falls after step 66"
    )
    config, _ = planned(78, 39, epochs=2, lr_steps=(1, 1.5, 9))
    assert describe(config, 39).endswith("the rate falls after steps 39 and 58")
    config, _ = planned(78, 39, epochs=2, lr_schedule="cosine")
    assert describe(config, 39).endswith("then half a cosine to 0")


def test_an_older_run_keeps_its_warm_up():
    args = resolve(RunConfig.of({"data_path": "d", "epochs": 9, "lr_steps": (6, 8)}), ONE).to_args()
    del args["recipe"]  # as a version had it that computed the warm-up anew each time
    before = {"args": args, "progress": {"steps_per_epoch": 39, "global_batch": 2, "world_size": 1}}
    before["config"] = {"num_classes": 2, "norm": "frozen"}
    config, _ = resume.take_over(["resume"], RunConfig.of({"resume": "auto"}), before, ONE)
    config, lines = with_length(config, 78, 39, resumed=True)
    assert (config.epochs, config.warmup_iters, config.lr_steps, lines) == (9, 39, (6, 8), [])
    assert config.clip_grad_norm is None
