"""What a run does about options that were not given: they follow from the data, the backbone and the processes."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from backbone.errors import InputError
from network_files.operators.boxes import HALF_PIXEL, TORCHVISION
from network_files.weight_files.weights import COCO, IMAGENET, PUBLISHED, holds_heads
from train_utils.checkpoints.checkpoint import is_checkpoint, load_file
from train_utils.checkpoints.weights_source import FROM_NAMES, weights_to_begin_from
from train_utils.processes.distributed import World
from train_utils.run.config import LR_ADAMW, LR_PER_IMAGE, WEIGHT_DECAY, RunConfig

LR_STEPS = (16 / 26, 22 / 26)  # shares of the run, from torchvision's 26 epochs with steps at 16 and 22

# Without --data-path: a model small enough for the built-in data and two CPU cores.
BUILT_IN_MODEL = dict(
    backbone="resnet18",
    backbone_width=32,
    fpn_channels=64,
    min_size=(128,),
    max_size=128,
    anchor_sizes=(16, 32, 64, 128, 256),
    rpn_pre_nms_top_n_train=200,
    rpn_pre_nms_top_n_test=200,
    rpn_post_nms_top_n_train=100,
    rpn_post_nms_top_n_test=100,
    box_batch_size_per_image=32,
    box_head_channels=256,
    mask_head_channels=64,
    mask_head_layers=2,
)
BUILT_IN_RUN = dict(epochs=4, batch_size=4)
BUILT_IN_OPTIMIZER = dict(optimizer="adamw", lr=1e-3, lr_schedule="cosine", warmup_iters=50)
USUAL = dict(epochs=26, batch_size=2, optimizer="sgd", lr_schedule="steps", backbone="resnet50")


def resolve(config: RunConfig, world: World) -> RunConfig:
    """Returns the config with what was not given filled in. InputError for options that contradict each other."""
    built_in = config.data_path is None
    config = resolve_aliases(config, (BUILT_IN_RUN if built_in else USUAL)["epochs"])
    if built_in:
        # The built-in optimiser goes with its learning rate: either both are its own, or neither.
        own = config.optimizer is None and config.lr is None and config.lr_steps is None
        optimizer = BUILT_IN_OPTIMIZER if own else {}
        config = config.filled({**built_in_model(config.weights), **BUILT_IN_RUN, **optimizer})
    if config.weights in PUBLISHED and config.weights != "coco":  # "coco" is of any variant
        backbone, variant = PUBLISHED[config.weights]
        config = config.filled({"backbone": backbone, "variant": variant})
    config = config.filled(USUAL)
    weights = "none" if built_in else default_weights(config.model["backbone"], config.value("variant"))
    config = config.filled({"weights": weights})
    if config.weights == "none":
        # A random backbone does not train under frozen norm: its activations grow without bound.
        config = config.filled({"norm": "batch", "trainable_layers": 5})
    if config.value("norm") == "sync" and world.device.type == "cpu":
        raise InputError("--norm sync works on GPUs only: give --norm batch, frozen or group on a CPU")
    sgd_rate = LR_PER_IMAGE * config.global_batch(world.size)
    return config.filled(
        {
            "lr": LR_ADAMW if config.optimizer == "adamw" else sgd_rate,
            "weight_decay": WEIGHT_DECAY[config.optimizer],
            "lr_steps": [share * config.epochs for share in LR_STEPS],
            "workers": default_workers(world),
        }
    )


def built_in_model(weights: str | None) -> dict[str, Any]:
    """Returns BUILT_IN_MODEL, as far as published weights fit into it: theirs is the width, for COCO's all of it."""
    if weights in PUBLISHED:
        return {}
    left_out = "backbone_width" if weights == "imagenet" else None
    return {name: value for name, value in BUILT_IN_MODEL.items() if name != left_out}


def resolve_aliases(config: RunConfig, usual_epochs: int) -> RunConfig:
    """Returns the config with --pretrain, --freeze-at, --sync-bn and --lr-step-size said by what they stand for.

    usual_epochs: of a run without --epochs.
    """
    if config.lr_step_size is not None:
        config = config.replaced({"lr_steps": lr_steps(config, usual_epochs)})
    chosen = {}
    if config.pretrain is not None:
        chosen[f"--pretrain {config.pretrain}"] = ("weights", "coco" if config.pretrain else "imagenet")
    if config.freeze_at is not None:
        chosen[f"--freeze-at {config.freeze_at}"] = ("trainable_layers", 5 - config.freeze_at)
    if config.sync_bn:
        chosen["--sync-bn"] = ("norm", "sync")
    for said, (name, value) in chosen.items():
        if config.value(name) not in (None, value):
            flag = name.replace("_", "-")
            raise InputError(f"{said} means --{flag} {value}, not {config.value(name)}; give one of them")
        config = config.replaced({name: value})
    return config


def lr_steps(config: RunConfig, usual_epochs: int) -> tuple[int, ...]:
    """Returns --lr-step-size as --lr-steps. InputError where both are given and differ."""
    size, epochs = config.lr_step_size, config.epochs or usual_epochs
    steps = tuple(range(size, epochs, size))
    if config.lr_steps not in (None, steps):
        shown = " ".join(f"{step:g}" for step in config.lr_steps)
        raise InputError(f"--lr-step-size {size} and --lr-steps {shown}: give one of them")
    return steps


def without_effect(config: RunConfig, world: World, resumed: bool) -> list[str]:
    """Returns lines that say which flags of a resolved config have no effect.

    resumed: there is a checkpoint to go on from.
    """
    lines = []
    if resumed and config.start_epoch:
        lines.append(f"--start-epoch {config.start_epoch}: left aside, the resumed run goes on where it was")
    elif config.start_epoch >= config.epochs and not config.test_only:
        raise InputError(f"--start-epoch {config.start_epoch}: nothing is left of {config.epochs} --epochs")
    late = [f"{step:g}" for step in config.lr_steps if step >= config.epochs]
    if late and config.lr_schedule == "steps":
        lines.append(f"--lr-steps {' '.join(late)}: without effect, the unit is epochs and the run has {config.epochs}")
    if config.world_size not in (None, world.size):
        lines.append(f"--world-size {config.world_size}: left aside, torchrun started {world.size} process(es)")
    if config.dist_url not in (None, "env://"):
        lines.append(f"--dist-url {config.dist_url}: left aside, torchrun decides where processes meet")
    return lines


def with_geometry(config: RunConfig, resumed: dict[str, Any] | None) -> tuple[RunConfig, str]:
    """Returns a resolved config with a geometry, and a line that says which and why.

    A run keeps to what its mask head was trained with; a new mask head takes the one in which masks fit. resumed: the
    checkpoint that the run goes on from.
    """
    if chosen := config.value("geometry"):
        return config, f"geometry: {chosen}"
    weights = weights_to_begin_from(config.weights)
    content = resumed or (load_file(weights) if weights not in FROM_NAMES and Path(weights).is_file() else {})
    geometry = default_geometry(config.weights, content)
    reason = "as the mask head is new"
    if is_checkpoint(content):
        reason = f"that of {'the resumed checkpoint' if resumed else f'--weights {config.weights}'}"
    elif geometry == TORCHVISION:
        asked = f"--weights {config.weights}"
        reason = f"in which {asked} was trained" if config.weights in PUBLISHED else f"as {asked} does not say its own"
    return config.replaced({"geometry": geometry}), f"geometry: {geometry}, {reason}"


def default_geometry(weights: str | Path, content: Mapping) -> str:
    """Returns the geometry of a run that begins with these weights; content: of their file, or of the one resumed."""
    if is_checkpoint(content) and isinstance(content["config"], dict):
        return content["config"].get("geometry", TORCHVISION)  # the only one when older checkpoints were written
    return TORCHVISION if weights in PUBLISHED or holds_heads(content) else HALF_PIXEL


def default_weights(backbone: str, variant: str | None) -> str:
    """Returns what --weights is when it is not given: the most that is published for this backbone."""
    if (backbone, variant or "v1") in COCO:
        return "coco"
    return "imagenet" if backbone in IMAGENET else "none"


def default_workers(world: World) -> int:
    """Returns the number of loader processes: on a CPU few, as the model needs the cores itself."""
    cores = os.cpu_count() or 1
    if world.device.type == "cpu":
        return 0 if cores <= 2 else 2
    return min(8, max(cores // max(torch.cuda.device_count(), 1), 1))
