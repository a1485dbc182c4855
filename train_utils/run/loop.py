"""The training run that train.py and train_multi_GPU.py share.

`run` reads as the run goes: open the data, build the model, resume, then train. The epochs are in epochs.py, one
step in step.py, one evaluation in evaluation.py, the options in config.py.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from backbone.errors import InputError
from network_files import MaskRCNN, create_model, load_weights
from train_utils.checkpoints import checkpoint as checkpoints
from train_utils.checkpoints import run_folder as run_folders
from train_utils.checkpoints.data_state import State, data_state, digests
from train_utils.checkpoints.held_out import SHARE, Scored, check_same_classes, fingerprint, open_scored
from train_utils.checkpoints.weights_source import weights_to_begin_from
from train_utils.cli.busy import say_if_busy
from train_utils.cli.command import EXIT_OK, EXIT_SOME_UNUSABLE
from train_utils.data.demands import refuse_nothing_to_learn, without_objects
from train_utils.data.in_python.data_sets import Pairs
from train_utils.data.labels import LabelMap, check_num_classes
from train_utils.data.loaders import image_factors, steps_per_epoch
from train_utils.data.objects import balance
from train_utils.data.objects.fitting import AUTO, asks_for_fit, fitted
from train_utils.data.opening import DataSplits, open_data
from train_utils.data.tiles.cutting import Tiles
from train_utils.evaluation.evaluators import choose_evaluator
from train_utils.evaluation.tiled_model import TiledModel
from train_utils.io.files import folder_to_write, user_path
from train_utils.io.memory import returning_freed_memory
from train_utils.io.plain_text import counted, visible
from train_utils.processes.agreement import Digest, Fact, digest, refuse_differences, version_facts
from train_utils.processes.distributed import World
from train_utils.processes.stop_signal import StopSignal
from train_utils.run import resume
from train_utils.run.config import RunConfig
from train_utils.run.defaults import content_of, resolve, with_geometry, with_images, with_network, without_effect
from train_utils.run.epochs import Additions, Run, Trainer
from train_utils.run.evaluation import measure, write_measured
from train_utils.run.optimization import Precision, amp_dtype
from train_utils.run.schedule import with_length
from train_utils.run.tuning.batches import first_try, fitting_batch
from transforms import augmentation_of

NOTHING_MORE = Additions()


def run(
    given: dict[str, Any], world: World, output_dir: str = "./save_weights", additions: Additions = NOTHING_MORE
) -> Path | int:
    """Trains (with test_only: evaluates) as the options say; returns the run folder (with test_only the exit status).

    given: the options of RunConfig and fields of MaskRCNNConfig that were given; output_dir: where these have none.
    Raises InputError for wrong input; SystemExit(128 + signal) after SIGTERM or SIGINT, all being saved.
    """
    with ExitStack() as at_end:
        start = read_options(given, output_dir, world)
        if start.checkpoint:
            start.notes += resume.check_function(start.config, start.checkpoint, additions.augment)
        say = print if world.is_main else lambda *_, **__: None
        scored, splits, states = open_alike(start, given, additions, world, say)
        data = "" if scored else fingerprint(splits.train)
        splits = follow_data(start, splits, world, say)
        config, checkpoint = start.config, start.checkpoint
        if checkpoint and not scored:
            start.notes += resume.check_data(config, checkpoint, splits, data, states)
        folder = None if scored else world.on_main(own_folder, start, output_dir, at_end)
        this = Run(config, world, splits, data, states, folder, checkpoint, additions)
        with world.main_first():
            model, about = build_model(start, splits.label_map)
        start.begun = {}  # its memory is free
        say("\n".join(map(visible, about + start.notes)))
        model.to(world.device)
        if config.recompute:
            model.recompute_activations()
            if world.device.type == "cpu":
                at_end.enter_context(returning_freed_memory())
        if config.compile:
            model.compile_parts()
        if scored:
            scored = scored._replace(data_set=splits.val)  # read as the model takes its images
            return test(this, model, scored, user_path(config.output_dir or output_dir))
        if start.fit_batch:
            precision = Precision(world.device, amp_dtype(world.device, config.amp))
            config, about_batch = fitting_batch(model, splits.train, config, precision, world)
            this = replace(this, config=config)
            say(about_batch)
        for line in world.on_main(run_folders.set_back, folder, start.path) if checkpoint else ():
            say(visible(line))
        with StopSignal(world) as stop:
            Trainer(this, model, stop).fit()
        return folder


@dataclass
class Start:
    """What a run begins with; what is not given is filled in on the way."""

    config: RunConfig
    notes: list[str]  # lines to print
    path: Path | None  # of the checkpoint that the run goes on from
    checkpoint: resume.Checkpoint | None
    chosen: dict[str, Any]  # fields of the model's config that precede the checkpoint's
    begun: dict[str, Any]  # `content_of` --weights
    fit_batch: bool  # --batch-size auto
    given: frozenset[str] = frozenset()  # the names of the options that were given


def read_options(given: dict[str, Any], output_dir: str, world: World) -> Start:
    """Returns the resolved options of a run, with the checkpoint that it goes on from; says what it will do.

    A mistake in them is an error here, before the data are read, which may take long.
    """
    config, notes = RunConfig.of(given), []
    path = world.on_main(run_folders.find_checkpoint, config.output_dir, config.resume, output_dir)
    checkpoint = checkpoints.load_checkpoint(path) if path else None
    if checkpoint:
        config, notes = resume.take_over(given, config, checkpoint, world)
    if config.test_only and asks_for_fit(config.model):
        raise InputError(f"{asks_for_fit(config.model)[0]} auto follows from training data: leave it out here")
    fit_batch = config.batch_size == AUTO
    if fit_batch:
        config = first_try(config, world)
    chosen = config.model
    with world.main_first():
        begun = {} if checkpoint or config.weights is None else content_of(config.weights)
    config, about_network = with_network(config, begun)
    notes += about_network
    config = resolve(config, world)
    if world.is_main:
        print(visible(intention(config, world, path)), flush=True)
    say_if_busy(world)
    with world.main_first():
        if config.own and not config.test_only:
            augmentation_of(config)
    choose_evaluator()
    return Start(config, notes, path, checkpoint, chosen, begun, fit_batch, frozenset(given))


def open_alike(
    start: Start, given: Collection[str], additions: Additions, world: World, say: Callable[..., None]
) -> tuple[Scored | None, DataSplits, dict[str, State]]:
    """Returns what --test-only scores, the data, and their states, which are alike on all processes.

    Says what the data are. The geometry follows from weights and classes.
    """
    scored = None
    with world.main_first():
        if start.config.test_only:
            scored = open_scored_alone(start, given)
        splits, lines = described(scored) if scored else open_splits(start.config, additions.splits)
        classes = None if scored else splits.label_map.num_labels
        start.config, about_geometry = with_geometry(start.config, start.checkpoint, start.begun, classes)
    start.notes.append(about_geometry)
    say("\n".join(map(visible, lines)))
    states = {}
    if world.size > 1 or not scored:
        states = {role: data_state(part) for role, part in splits.by_role().items()}
    if world.size > 1:
        refuse_differences(world, facts(start.config, world, splits, states))
    return scored, splits, states


def follow_data(start: Start, splits: DataSplits, world: World, say: Callable[..., None]) -> DataSplits:
    """Returns the data as the model takes their images; what the options left to the data is filled in."""
    config = start.config
    if not config.test_only:
        refuse_nothing_to_learn(splits.train)
        splits, about_tiles = cut_into_tiles(config, splits)
        say(*map(visible, about_tiles), sep="\n", end="\n" * bool(about_tiles))
        model, about_sizes = fitted(config.model, splits.train)
        config = replace(config, model=model)
        samples = balance.samples_per_epoch(image_factors(splits.train, config))
        steps = steps_per_epoch(samples, config.global_batch(world.size))
        config, about_length = with_length(config, samples, steps, start.checkpoint is not None)
        start.notes += [*about_sizes, *about_length]
        if config.balance is not None:
            start.notes.append(balance.describe(splits.train, config.balance, samples))
    start.notes += without_effect(config, world, start.checkpoint is not None, start.given)
    check_num_classes(config.num_classes, splits.label_map)
    start.config, splits, lines = with_images(config, splits, start.checkpoint, start.begun, world)
    say(*map(visible, lines), sep="\n", end="\n" * bool(lines))
    return splits


def cut_into_tiles(config: RunConfig, splits: DataSplits) -> tuple[DataSplits, list[str]]:
    """Returns the data with the training images as tiles, where --tile asks for it, and lines that say so."""
    if config.tiling is None:
        return splits, []
    if isinstance(splits.train, Pairs):
        raise InputError("--tile cuts the images of a path: of a torch Dataset give tiles, or leave tile out")
    tiles = Tiles(splits.train, config.tiling, config.tile_negatives)
    lines = [
        f"train: {tiles.describe_cut()}",
        "val: images are looked at in such tiles, whose detections are joined; losses are the means of tiles",
    ]
    return splits._replace(train=tiles), lines


def own_folder(start: Start, output_dir: str, at_end: ExitStack) -> Path:
    """Returns the folder that the run writes into, locked until the end; one that then holds nothing goes again."""
    config, path = start.config, start.path
    prepared = run_folders.prepare_run_folder(config.output_dir, config.resume, path, output_dir)
    at_end.enter_context(prepared.lock)
    at_end.callback(prepared.remove_unused)
    if path and path.parent.resolve() == prepared.path.resolve():
        run_folders.complete_names(prepared.path, path, start.checkpoint.get("names", ()))
    return prepared.path


def intention(config: RunConfig, world: World, path: Path | None) -> str:
    """Returns a line that says what a resolved run is about to do; path: of the checkpoint that it goes on from."""
    data = config.data_path or "the built-in shapes"
    weights = f"weights {config.weights}" if path is None else f"going on from {path}"
    network = f"Mask R-CNN {config.value('variant') or 'v1'} on {config.value('backbone') or 'resnet50'}, {weights}"
    if config.test_only:
        return f"evaluates {network}, on {data}, on {world.size} x {world.device.type}"
    length = f"{counted(config.epochs, 'epoch')}, " if config.epochs else ""
    length += f"{counted(config.global_batch(world.size), 'image')} a step"
    return f"trains {network}, on {data}: {length}, on {world.size} x {world.device.type}"


def open_splits(config: RunConfig, splits: DataSplits | None = None) -> tuple[DataSplits, list[str]]:
    """Returns the data of a training, unless it is given, and lines that describe it."""
    splits = splits or open_data(config)
    lines = [f"train: {splits.train.describe()}", f"val: {splits.val.describe()}"]
    if cause := without_objects(splits.val):
        lines.append(f"val: {cause}; AP is n/a: the lowest validation loss chooses the best, model_min_val_loss.pth")
    return splits, lines


def open_scored_alone(start: Start, given: Collection[str]) -> Scored:
    """Returns the data that --test-only scores, in the classes of the weights; InputError where it has others."""
    config, content, asked = start.config, start.checkpoint or start.begun, bool({*given} & {*SHARE})
    if not checkpoints.is_checkpoint(content):
        return open_scored(config, content, asked)
    names = config.label_json_path
    label_map = LabelMap.from_dict(content["label_map"]) if names is None else LabelMap.from_json(user_path(names))
    scored = open_scored(config, content, asked, label_map)
    check_same_classes(start.path or config.weights, label_map, scored.data_set, named=True)
    return scored


def described(scored: Scored) -> tuple[DataSplits, list[str]]:
    """Returns images to score as data without a training split, and lines that describe it."""
    data_set = scored.data_set
    return DataSplits(None, data_set, data_set.label_map), [f"val: {line}" for line in scored.lines]


def facts(config: RunConfig, world: World, splits: DataSplits, states: dict[str, State]) -> list[list[Fact]]:
    """Returns what all processes must have alike, in groups."""
    classes = Fact("class names or ids", digest(splits.label_map.to_dict()))
    groups = [version_facts(), [*resume.common_options(config), Fact("device", world.device.type)], [classes]]
    for role, part in splits.by_role().items():
        columns = digests(part, states[role])
        facts = [Fact(f"{name} of {role}", Digest(value), name == "names") for name, value in columns.items()]
        counts = [Fact(f"images of {role}", len(part), decides=True)]
        groups.append([*counts, Fact(f"format of {role}", states[role]["form"], decides=True), *facts])
    return groups


def build_model(start: Start, label_map: LabelMap) -> tuple[MaskRCNN, list[str]]:
    """Returns the model and lines to print."""
    config, checkpoint, begun = start.config, start.checkpoint, start.begun
    torch.manual_seed(config.seed)
    if checkpoint is None:
        model = create_model(label_map.num_labels, **config.model)
        trained = f"norm {model.config.norm}, {model.config.trainable_layers} of 5 stages of the backbone trained"
        lines = [f"weights: none, random initialisation ({trained})"]
        if config.weights != "none":
            weights = weights_to_begin_from(config.weights)
            lines = load_weights(model, weights, replace_predictors=not config.test_only, content=begun or None)
    else:
        saved = LabelMap.from_dict(checkpoint["label_map"])
        if saved != label_map:
            raise InputError(
                f"--resume: the checkpoint has other classes ({len(saved)}, such as {saved.names[0]!r}) than the data "
                f"({len(label_map)}, such as {label_map.names[0]!r}); start from it with --weights instead"
            )
        settings = checkpoints.fitting_settings("--resume", checkpoint["config"], start.chosen, checkpoint["model"])
        model = create_model(**settings)
        lines = []
        load_weights(model, checkpoint["model"])
    sizes = [(parameter.numel() / 1e6, parameter.requires_grad) for parameter in model.parameters()]
    about = (
        f"model: Mask R-CNN {model.config.variant}, {model.config.backbone}, {counted(len(label_map), 'class')}, "
        f"{sum(size for size, _ in sizes):.1f} M parameters, "
        f"{sum(size for size, trained in sizes if trained):.1f} M of them trained"
    )
    return model, [about, *lines]


def test(run: Run, model: MaskRCNN, scored: Scored, folder: Path) -> int:
    """Prints the COCO numbers (--test-only) and writes them; returns the exit status.

    They are of the averaged weights where the checkpoint has them.
    """
    if run.checkpoint and "ema" in run.checkpoint:
        model.load_state_dict(run.checkpoint["ema"])
    run.world.on_main(folder_to_write, folder)  # rather now than after hours
    if run.config.tiling is not None:
        model = TiledModel(model, run.config.tiling, losses=True)
    smallest, max_dets = (run.checkpoint or {}).get("smallest_scale"), run.config.max_dets
    result = measure(model, scored.data_set, run.config, run.world, max_dets, smallest)
    for name in result.found.skipped:
        run.say(visible(f"skipped: {name}"), file=sys.stderr)
    for iou_type, numbers in result.stats.items():
        run.say(f"IoU type: {iou_type}", *numbers.lines, sep="\n")
    for limit in result.limits:
        run.say(limit.line)
    paths, notes = run.world.on_main(write_measured, folder, result, scored, max_dets)
    run.say(*notes, f"written: {' '.join(visible(str(path)) for path in paths)}", sep="\n")
    return run.world.on_main(lambda: EXIT_SOME_UNUSABLE if result.found.skipped else EXIT_OK)
