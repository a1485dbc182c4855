"""The training run that train.py and train_multi_GPU.py share.

`run` reads as the run goes: open the data, build the model, resume, then train. The epochs are in trainer.py, one
step in step.py, one evaluation in evaluation.py, the flags in arguments.py.
"""

import sys
from contextlib import ExitStack
from functools import partial

import torch

from backbone.errors import InputError
from network_files import create_model, load_weights
from train_utils.checkpoints import checkpoint as checkpoints
from train_utils.checkpoints import run_folder as run_folders
from train_utils.cli.command import config_from_args
from train_utils.cli.reference_flags import check_reference_flags
from train_utils.cli.run_flags import add_arguments, resolve
from train_utils.data.labels import LabelMap
from train_utils.data.opening import open_data
from train_utils.evaluation.evaluators import choose_evaluator
from train_utils.io.memory import returning_freed_memory
from train_utils.processes.stop_signal import StopSignal
from train_utils.run import resume
from train_utils.run.epochs import Trainer, val_loader
from train_utils.run.evaluation import evaluate

__all__ = ["add_arguments", "run"]


def run(args, world, output_dir="./save_weights"):
    """Train (with --test-only: evaluate) as the flags say. output_dir: used where --output-dir is absent.

    Raises InputError for wrong input; SystemExit(128 + signal) after SIGTERM or SIGINT, all being saved.
    """
    say = print if world.is_main else lambda *_, **__: None
    with ExitStack() as at_end:
        if world.device.type == "cpu":
            at_end.enter_context(returning_freed_memory())
        find = partial(run_folders.find_checkpoint, args.output_dir, args.resume, output_dir)
        path = world.on_main(find)
        checkpoint = checkpoints.load_checkpoint(path) if path else None
        notes = resume.take_over(args, checkpoint, world) if checkpoint else []
        given = config_from_args(args)
        resolve(args, world)
        notes += check_reference_flags(args, world, checkpoint is not None)
        choose_evaluator()  # a mistake there is told now, not after an epoch
        with world.main_first():
            splits = open_splits(args)
        say(f"train: {splits.train.describe()}\nval: {splits.val.describe()}")
        check_num_classes(args.num_classes, splits.label_map)
        data = resume.fingerprint(splits.train)
        if checkpoint and not args.test_only:
            resume.check_data(args, checkpoint, data)

        def own_folder():
            prepared = run_folders.prepare_run_folder(args.output_dir, args.resume, path, output_dir)
            at_end.enter_context(prepared.lock)
            if path and path.parent.resolve() == prepared.path.resolve():
                run_folders.complete_names(prepared.path, path, checkpoint.get("names", ()))
            return prepared.path

        folder = None if args.test_only else world.on_main(own_folder)
        with world.main_first():
            model, about = build_model(args, given, splits.label_map, checkpoint)
        say("\n".join(about + notes))
        model.to(world.device)
        if args.recompute:
            model.recompute_activations()
        if args.compile:
            model.compile_parts()

        if args.test_only:
            test(args, world, splits.val, model, checkpoint, say)
            return
        with StopSignal(world) as stop:
            Trainer(args, world, splits, data, model, folder, checkpoint, stop, say).fit()


def open_splits(args):
    return open_data(
        args.data_path,
        dataset=args.dataset,
        image_dir=args.image_dir,
        val_fraction=args.val_fraction,
        seed=args.seed,
        drop_empty=args.drop_empty,
        year=args.year,
        strict=args.strict,
        follow_links=args.follow_links,
        label_json_path=args.label_json_path,
    )


def check_num_classes(given, label_map):
    """--num-classes is the data's count of classes, or its highest label (COCO's 80 reach up to 90)."""
    possible = sorted({len(label_map.names), label_map.num_labels - 1})
    if given is not None and given not in possible:
        raise InputError(
            f"--num-classes {given}: the data has {' or '.join(map(str, possible))} (without background); "
            "leave the flag out, it is read from the data"
        )


def build_model(args, given, label_map, checkpoint):
    """(model, lines to print). given: config fields whose flags were given: they precede the checkpoint's."""
    torch.manual_seed(args.seed)
    if checkpoint is None:
        model = create_model(label_map.num_labels, **config_from_args(args))
        lines = ["weights: none, random initialisation"]
        if args.weights != "none":
            lines = load_weights(model, args.weights, replace_predictors=True)
    else:
        saved = LabelMap.from_dict(checkpoint["label_map"])
        if saved != label_map:
            raise InputError(
                f"--resume: the checkpoint has other classes ({len(saved)}, such as {saved.names[0]!r}) than the data "
                f"({len(label_map)}, such as {label_map.names[0]!r}); start from it with --weights instead"
            )
        settings = checkpoints.fitting_settings("--resume", checkpoint["config"], given, checkpoint["model"])
        model = create_model(**settings)
        lines = []
        load_weights(model, checkpoint["model"])
    config, parameters = model.config, list(model.parameters())
    total, trained = (sum(p.numel() for p in parameters if p.requires_grad or all_) / 1e6 for all_ in (True, False))
    about = (
        f"model: Mask R-CNN {config.variant}, {config.backbone}, {len(label_map.names)} classes, "
        f"{total:.1f} M parameters, {trained:.1f} M of them trained"
    )
    return model, [about, *lines]


def test(args, world, data_set, model, checkpoint, say):
    """--test-only: print the COCO numbers, of the averaged weights where the checkpoint has them."""
    if checkpoint and "ema" in checkpoint:
        model.load_state_dict(checkpoint["ema"])
    loader = val_loader(args, world, data_set, model.config, args.strict)
    result = evaluate(model, loader, data_set, world)
    for name in result.found.skipped:
        say(f"skipped: {name}", file=sys.stderr)
    for iou_type, numbers in result.stats.items():
        say(f"IoU type: {iou_type}", *numbers.lines, sep="\n")
