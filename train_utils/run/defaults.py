"""What a run does about options that were not given: they follow from the data, the backbone and the processes."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from backbone.errors import InputError
from network_files.config import ALL_PAGES, EACH_PAGE, MaskRCNNConfig, as_value_range
from network_files.operators.boxes import HALF_PIXEL, HALF_PIXEL_MASKS, TORCHVISION
from network_files.weight_files.architecture import OF_SHAPES
from network_files.weight_files.weights import COCO, COCO_CLASSES, IMAGENET, PUBLISHED, classes_of, holds_heads
from train_utils.checkpoints.checkpoint import fitting_settings, is_checkpoint, load_file
from train_utils.checkpoints.weights_source import FROM_NAMES, weights_to_begin_from
from train_utils.data.dataset import ImageDataset
from train_utils.data.images.pages import page_of
from train_utils.data.images.reading import Reading
from train_utils.data.images.survey import LOOKED_AT, advise, spread
from train_utils.data.objects.fitting import AUTO
from train_utils.data.opening import DataSplits
from train_utils.io.plain_text import counted
from train_utils.processes.cores import usable_cores
from train_utils.processes.distributed import World
from train_utils.run.config import LR_ADAMW, LR_PER_IMAGE, REFERENCE, WEIGHT_DECAY, RunConfig, model_fields
from train_utils.run.schedule import lr_steps

# What a model takes of image files: how they are read, and how their values become 0..1.
OF_FILES = ("channels", "pages")
OF_VALUES = ("value_range", "image_mean", "image_std")

# Without --data-path: a model small enough for the built-in data and two CPU cores. In the same time larger images of
# fewer channels, and more of them a step, came to a mask AP of 0.74, where 128 pixels, 32 and 64 channels and 4 images
# came to 0.70.
BUILT_IN_MODEL = dict(
    backbone="resnet18",
    backbone_width=16,
    fpn_channels=32,
    min_size=(192,),
    max_size=192,
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
BUILT_IN_RUN = dict(epochs=6, batch_size=8)
BUILT_IN_OPTIMIZER = dict(optimizer="adamw", lr=1.5e-3, lr_schedule="cosine", warmup_iters=30)
USUAL = dict(batch_size=2, optimizer="sgd", lr_schedule="steps", backbone="resnet50")


def resolve(config: RunConfig, world: World) -> RunConfig:
    """Returns the config with what was not given filled in, as far as it does not follow from the number of images.

    The rest is `schedule.with_length`'s. InputError for options that contradict each other.
    """
    built_in = config.data_path is None
    config = resolve_aliases(config, BUILT_IN_RUN["epochs"] if built_in else None)
    if built_in:
        # The built-in optimiser goes with its learning rate: either both are its own, or neither.
        own = config.optimizer is None and config.lr is None and config.lr_steps is None
        run = {**BUILT_IN_RUN, **(BUILT_IN_OPTIMIZER if own else {})} if config.recipe != REFERENCE else {}
        config = config.filled({**built_in_model(config.weights), **run})
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
    return config.filled(
        {
            "lr": usual_rate(config, world),
            "weight_decay": WEIGHT_DECAY[config.optimizer],
            "workers": default_workers(world),
        }
    )


def usual_rate(config: RunConfig, world: World) -> float:
    """Returns the learning rate of a run without --lr."""
    return LR_ADAMW if config.optimizer == "adamw" else LR_PER_IMAGE * config.global_batch(world.size)


def built_in_model(weights: str | None) -> dict[str, Any]:
    """Returns BUILT_IN_MODEL, as far as published weights fit into it: theirs is the width, for COCO's all of it."""
    if weights in PUBLISHED:
        return {}
    left_out = "backbone_width" if weights == "imagenet" else None
    return {name: value for name, value in BUILT_IN_MODEL.items() if name != left_out}


def resolve_aliases(config: RunConfig, usual_epochs: int | None) -> RunConfig:
    """Returns the config with --pretrain, --freeze-at, --sync-bn and --lr-step-size said by what they stand for.

    usual_epochs: of a run without --epochs; None: not known yet, and with it --lr-step-size.
    """
    epochs = config.epochs or usual_epochs
    if config.lr_step_size is not None and epochs is not None:
        config = config.replaced({"lr_steps": lr_steps(config, epochs)})
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


def without_effect(config: RunConfig, world: World, resumed: bool, given: Collection[str] = ()) -> list[str]:
    """Returns lines that say which flags of a resolved config have no effect.

    resumed: there is a checkpoint to go on from; given: the names of the options that were given.
    """
    lines = []
    if resumed and config.start_epoch:
        lines.append(f"--start-epoch {config.start_epoch}: left aside, the resumed run goes on where it was")
    elif not config.test_only and config.start_epoch >= config.epochs:
        raise InputError(f"--start-epoch {config.start_epoch}: nothing is left of {config.epochs} --epochs")
    late = [f"{step:g}" for step in config.lr_steps or () if not config.test_only and step >= config.epochs]
    if late and config.lr_schedule == "steps":
        lines.append(f"--lr-steps {' '.join(late)}: without effect, the unit is epochs and the run has {config.epochs}")
    if config.world_size not in (None, world.size):
        lines.append(f"--world-size {config.world_size}: left aside, torchrun started {counted(world.size, 'process')}")
    if config.dist_url not in (None, "env://"):
        lines.append(f"--dist-url {config.dist_url}: left aside, torchrun decides where processes meet")
    if config.test_only:
        return lines
    chosen = resumed or "lr" not in given or "optimizer" in given or config.optimizer != "sgd"
    if config.data_path is None and config.recipe != REFERENCE and not chosen:
        own = "--optimizer {optimizer} --lr-schedule {lr_schedule} --warmup-iters {warmup_iters}"
        own = own.format(**BUILT_IN_OPTIMIZER)
        lines.append(f"--lr {config.lr}: of sgd, as the built-in data's adamw has its own rate; to keep it: {own}")
    return lines + _idle(config, given)


def _idle(config: RunConfig, given: Collection[str]) -> list[str]:
    """Returns a line for each group of options given that act beside another one alone, which a training lacks."""
    alone = [
        (("lr_steps", "lr_step_size", "lr_gamma"), config.lr_schedule == "steps", "the rate falls along a cosine"),
        (("ema_decay",), config.ema, "it is of --ema"),
        (("jitter_scale",), config.large_scale_jitter is not None, "it is of --large-scale-jitter"),
        (("overlap", "tile_negatives"), config.tile is not None, "there is no --tile"),
        (("momentum",), config.optimizer == "sgd", "adamw has its own"),
        (("box_head_convs",), config.value("variant") == "v2", "the box head of --variant v1 has none"),
    ]
    found = [([name for name in names if name in given], why) for names, acts, why in alone if not acts]
    flags = [(" ".join(f"--{name.replace('_', '-')}" for name in names), why) for names, why in found if names]
    return [f"{named}: without effect, {why}" for named, why in flags]


def content_of(weights: str | Path) -> dict[str, Any]:
    """Returns what is in the file that --weights names; {} where it names none."""
    path = weights_to_begin_from(weights)
    return load_file(path) if path not in FROM_NAMES and Path(path).is_file() else {}


def with_network(config: RunConfig, begun: Mapping[str, Any]) -> tuple[RunConfig, list[str]]:
    """Returns a config with the network of the checkpoint that --weights names, where none is given, and a line on it.

    To train from it, these are the fields that its weights have their shapes from; for --test-only all that a model is
    evaluated with. Geometry, channels and values of images follow later. begun: `content_of` --weights.
    """
    own = begun.get("config") if is_checkpoint(begun) else None
    if not isinstance(own, dict):
        return config, []
    own = {**own, "norm": "batch"} if own.get("norm") == "sync" else own  # the same in evaluation, on a CPU too
    fitting_settings(config.weights, own, {}, begun["model"])
    names = model_fields() - {"geometry", *OF_FILES, *OF_VALUES} if config.test_only else {*OF_SHAPES}
    names -= {"norm"} if own.get("norm") != "group" and not config.test_only else set()
    theirs = {name: _tuple_of(own[name]) for name in names if own.get(name) is not None and name not in config.model}
    usual = MaskRCNNConfig()
    other = [f"{name} {_words(theirs[name])}" for name in sorted(theirs) if theirs[name] != getattr(usual, name)]
    line = f"network: as in --weights {config.weights}: {', '.join(other)}"
    return config.filled(theirs), [line] if other else []


def _words(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, tuple) else str(value)


def with_geometry(
    config: RunConfig, resumed: dict[str, Any] | None, begun: dict[str, Any] | None = None, classes: int | None = None
) -> tuple[RunConfig, str]:
    """Returns a resolved config with a geometry, and a line that says which and why.

    A run keeps to what its heads were trained with; a new mask head takes the one in which masks fit, and so do masks
    where predictors are new. resumed: the checkpoint that the run goes on from; begun: `content_of` --weights, where it
    has been read; classes: see `default_geometry`.
    """
    if chosen := config.value("geometry"):
        return config, f"geometry: {chosen}"
    content = resumed or (content_of(config.weights) if begun is None else begun)
    geometry = default_geometry(config.weights, content, classes)
    reason = "as the mask head is new"
    if is_checkpoint(content):
        reason = f"that of {'the resumed checkpoint' if resumed else f'--weights {config.weights}'}"
    elif geometry != HALF_PIXEL:
        asked = f"--weights {config.weights}"
        reason = f"in which {asked} was trained" if config.weights in PUBLISHED else f"as {asked} does not say its own"
        if geometry == HALF_PIXEL_MASKS:
            reason = f"as the predictors are new, and the rest of {asked} knows torchvision's RoIs"
    return config.replaced({"geometry": geometry}), f"geometry: {geometry}, {reason}"


def default_geometry(weights: str | Path, content: Mapping, classes: int | None = None) -> str:
    """Returns the geometry of a run that begins with these weights.

    content: of their file, or of the one resumed; classes: of the run's data, background counted, which replace the
    predictors for another number; None: they stay.
    """
    if is_checkpoint(content) and isinstance(content["config"], dict):
        return content["config"].get("geometry", TORCHVISION)  # the only one when older checkpoints were written
    if weights not in PUBLISHED and not holds_heads(content):
        return HALF_PIXEL
    theirs = COCO_CLASSES if weights in PUBLISHED else classes_of(content)
    return TORCHVISION if classes in (None, theirs) else HALF_PIXEL_MASKS


def with_images(
    config: RunConfig, splits: DataSplits, resumed: dict[str, Any] | None, begun: dict[str, Any], world: World
) -> tuple[RunConfig, DataSplits, list[str]]:
    """Returns a resolved config with what its model takes of images, the data read so, and lines that say what is new.

    A resumed run keeps its checkpoint's, --test-only those of the weights that it scores, and a run that begins with a
    checkpoint's weights its channels and pages. All else that is not given follows from the training images. resumed:
    the checkpoint that the run goes on from; begun: `content_of` --weights.
    """
    kept = OF_FILES + OF_VALUES if resumed or config.test_only else OF_FILES
    config = config.filled(_of_weights(resumed or begun, kept))
    asked, lines = is_auto(config.value("value_range")), []
    if asked:
        config = config.without("value_range")
    paged = next((part for part in splits.by_role().values() if _of_pages(part)), None)
    if paged is not None and config.value("pages") == ALL_PAGES:
        raise InputError(
            f"--pages channels: images of {paged.source} are pages, such as {paged.file_name(0)}; leave the flag out"
        )
    if paged is not None:
        config = config.filled({"pages": EACH_PAGE})
    reading = Reading(
        config.value("channels") or 3,
        config.value("pages") or Reading.pages,
        as_value_range(config.value("value_range")),
    )
    if config.stain_jitter and reading.channels != 3 and not config.test_only:
        raise InputError(
            f"--stain-jitter splits red, green and blue, and images have {counted(reading.channels, 'channel')} here: "
            "leave it out"
        )
    if not resumed and not config.test_only:
        wants_mean = all(config.value(name) is None for name in ("image_mean", "image_std"))
        advice = world.on_main(advise, splits.train, reading, asked, wants_mean)
        config, lines = config.filled(advice.fields), advice.lines
        reading = replace(reading, value_range=as_value_range(config.value("value_range")))
        if reading.channels not in (1, 3) and config.weights != "none":
            config = config.filled({"trainable_layers": 5})  # no published stem knows such channels
    reading = replace(reading, by_windows=config.tiling is not None)
    read = {role: part.read_as(reading) for role, part in splits.by_role().items()}
    return config, splits._replace(**read), lines


def _of_pages(data_set: ImageDataset) -> bool:
    """Says whether images of a data set are pages of files, by the names of a sample."""
    return any(page_of(data_set.file_name(i))[1] is not None for i in spread(len(data_set), LOOKED_AT))


def is_auto(value_range: Any) -> bool:
    """Says whether a value range is to be measured."""
    return value_range == AUTO or (isinstance(value_range, tuple | list) and list(value_range) == [AUTO])


def fixed_range(value_range: Any) -> tuple[float, ...] | None:
    """Returns a value range as numbers; None for one that is to be measured."""
    return None if is_auto(value_range) else as_value_range(value_range)


def _of_weights(content: Mapping[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
    """Returns these fields of a checkpoint's config, as far as they are not usual; none of other content."""
    own = content.get("config") if is_checkpoint(content) else None
    if not isinstance(own, dict):
        return {}
    usual = MaskRCNNConfig()
    return {name: own[name] for name in names if name in own and _tuple_of(own[name]) != getattr(usual, name)}


def _tuple_of(value: Any) -> Any:
    """Returns a list of a checkpoint as the tuple that a config has."""
    return tuple(value) if isinstance(value, list) else value


def default_weights(backbone: str, variant: str | None) -> str:
    """Returns what --weights is when it is not given: the most that is published for this backbone."""
    if (backbone, variant or "v1") in COCO:
        return "coco"
    return "imagenet" if backbone in IMAGENET else "none"


def default_workers(world: World) -> int:
    """Returns the number of loader processes: on a CPU few, as the model needs the cores itself.

    Cores that this process may not use (`usable_cores`) don't count. A machine's GPUs share the cores.
    """
    cores = usable_cores()
    if world.device.type == "cpu":
        return 0 if cores <= 2 else 2
    return min(8, max(cores // max(torch.cuda.device_count(), 1), 1))
