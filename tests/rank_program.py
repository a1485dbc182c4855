"""What test_distributed.py runs as one process, and as several: some steps and an evaluation, in float64."""

import os
import warnings
from pathlib import Path

import torch

from backbone.errors import InputError
from network_files import MaskRCNNConfig
from tests.tiny_model import FEW, tiny
from train_utils.data.loaders import EvalLoader, TrainLoader
from train_utils.data.opening import open_data
from train_utils.data.options import LoaderOptions
from train_utils.processes.agreement import Fact, refuse_differences
from train_utils.processes.distributed import World
from train_utils.run.evaluation import evaluate
from train_utils.run.optimization import Precision, TrainState, build_optimizer, build_schedule
from train_utils.run.step import train_one_epoch

STEPS = 12


def small_model(num_classes):
    torch.manual_seed(0)
    sizes = {"min_size": 32, "max_size": 32, "anchor_sizes": (4, 8, 16, 32, 64)}
    few = {"rpn_batch_size_per_image": 32, "box_batch_size_per_image": 8}
    model = tiny(num_classes, backbone_width=16, trainable_layers=5, **FEW | sizes | few)
    for name, buffer in model.named_buffers():
        if name.endswith("bn2.weight"):
            buffer.fill_(0.2)  # else activations grow from block to block under a frozen identity
    return model.double()


def program(world, data, accumulate):
    splits = open_data(data)
    model = small_model(splits.label_map.num_labels)
    val_loader = EvalLoader(splits.val, world, LoaderOptions(2), MaskRCNNConfig(min_size=32, max_size=32))
    evaluation = evaluate(model, val_loader, splits.val, world, keep_samples=1)

    optimizer = build_optimizer(model, "sgd", 0.01)
    schedule = build_schedule(optimizer, total_steps=STEPS, warmup_steps=5)
    state = TrainState(model, world.wrap(model), optimizer, schedule, Precision(world.device))
    loader = TrainLoader(splits.train, None, world, LoaderOptions(1, accumulate))
    losses = []
    for epoch in range(-(-STEPS // loader.steps_per_epoch)):
        losses += [record.losses for record in train_one_epoch(state, loader, world, epoch)]
    return {
        "losses": losses[:STEPS],
        "parameters": {name: p.detach() for name, p in model.named_parameters()},
        "stats": {iou_type: numbers.stats for iou_type, numbers in evaluation.stats.items()},
        "val_losses": evaluation.losses,
        "results": evaluation.found.results,
    }


def check_world(world, marker):
    """The world's own promises, which need several ranks: raises AssertionError."""
    rank, size = world.rank, world.size
    assert world.gather(rank) == list(range(size))
    assert world.gather_on_main(rank) == (list(range(size)) if rank == 0 else [])
    assert world.broadcast(("from", rank)) == ("from", 0)
    assert world.sum(torch.tensor([1.0, rank])).tolist() == [size, sum(range(size))]
    assert world.on_main(lambda: rank) == 0
    norm = torch.nn.BatchNorm1d(2)
    norm.running_mean.fill_(float(rank))
    world.broadcast_buffers(norm)
    assert norm.running_mean.tolist() == [0.0, 0.0]
    with world.main_first():
        assert marker.exists() == (rank > 0)
        marker.touch()
    refuse_differences(world, [[Fact("--lr", 0.1)]])
    disagree = lambda: refuse_differences(world, [[Fact("--lr", rank)]])  # noqa: E731
    for stop_together in (lambda: world.on_main(fail), lambda: fail_in(world), *[disagree][: size - 1]):
        try:
            stop_together()
        except InputError as error:
            assert rank == 0 and (str(error) == "no room left" or ": --lr 1, not 0. " in str(error))
        except SystemExit as stop:
            assert rank > 0 and stop.code == 2
        else:
            raise AssertionError("one rank failed, and the others went on")


def fail():
    raise InputError("no room left")


def fail_in(world):
    with world.main_first():
        fail()


def run(data: Path, out: Path, accumulate: int, place: dict[str, str]) -> None:
    """A process's part; place: torchrun's variables, or none.

    Rank 0 writes `out`: the evaluation before training, the losses of each step, the parameters after them.
    """
    os.setpgrp()  # a group of its own, as `end_all` kills it
    os.environ.update(place)
    warnings.simplefilter("error", FutureWarning)
    torch.set_num_threads(1)
    world = World.from_environment("cpu") if place else World.single("cpu")
    check_world(world, out.with_suffix(".marker"))
    outcome = program(world, data, accumulate)
    if world.is_main:
        torch.save(outcome, out)
    world.close()
