"""Every option of a training run, in one place: flag, --help, checkpoint entry and resume rule follow from its line.

`resume` says what a resumed run does with an option: "same" (nothing said) takes the checkpoint's value and refuses
another one, "free" lets it differ, "place" does too and belongs to --data-path, "batch" is checked together with the
other "batch" options, "own" is of this process and machine and never taken from the checkpoint.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from backbone.errors import InputError
from backbone.settings import Settings, setting
from network_files import MaskRCNNConfig
from train_utils.cli.flags import add_flags, add_model_flags, given_model, given_settings, settings_of
from train_utils.cli.parser import Parser
from train_utils.cli.suggestions import no_such
from train_utils.data.augmentations.options import Augmentation, with_preset
from train_utils.data.objects.fitting import AUTO, FITTED
from train_utils.data.options import BELOW_SEED, DataOptions, LoaderOptions
from train_utils.data.tiles.tiling import TrainingTiles
from train_utils.evaluation.limits import MAX_DETS
from train_utils.processes.distributed import TIMEOUT

USED_MOST = (
    "data_path", "output_dir", "epochs", "batch_size", "weights", "backbone", "min_size", "max_size", "lr", "resume"
)  # fmt: skip
LR_PER_IMAGE = 0.00125  # the linear rule's unit: 0.02 for 16 images, as in Detectron and torchvision
LR_ADAMW = 1e-4
WEIGHT_DECAY = {"sgd": 1e-4, "adamw": 1e-2}
USUAL_RECIPE, REFERENCE, SMALL = "usual", "reference", "small"
# What --recipe stands for: of few images on a CPU it makes the most (docs/fine_tuning.md, section 6)
RECIPES: dict[str, dict[str, Any]] = {
    SMALL: dict(
        backbone="mobilenet_v2",
        fpn_channels=64,
        box_head_channels=256,
        mask_head_channels=64,
        rpn_pre_nms_top_n_train=600,
        rpn_post_nms_top_n_train=300,
        box_batch_size_per_image=64,
        min_size=(AUTO,),
        anchor_sizes=(AUTO,),
        optimizer="adamw",
        lr=5e-4,
        lr_schedule="cosine",
        augment="medium",
    )
}


def with_recipe(given: dict[str, Any]) -> dict[str, Any]:
    """Returns options by name with what --recipe stands for, which those given overrule.

    A rate is its optimiser's, and steps at which it falls are none of a cosine: another one given leaves these out.
    """
    recipe = dict(RECIPES.get(given.get("recipe"), {}))
    if given.get("optimizer") not in (None, recipe.get("optimizer")):
        recipe.pop("lr", None)
    if given.keys() & {"lr_steps", "lr_step_size"}:
        recipe.pop("lr_schedule", None)
    return {**recipe, **given}


@dataclass(frozen=True)
class Optimisation(Settings):
    """Optimisation: how gradients become steps."""

    optimizer: str | None = setting(None, "default: sgd (built-in data: adamw)", choices=("sgd", "adamw"))
    lr: float | str | None = setting(
        None,
        f"default: {LR_PER_IMAGE} x global batch; adamw: {LR_ADAMW}; auto: by a test of 40 steps before the run",
        above=0,
        word=AUTO,
    )
    momentum: float = setting(0.9, "of sgd", least=0, below=1)
    weight_decay: float | None = setting(
        None, "default: " + ", ".join(f"{k!r}: {v}" for k, v in WEIGHT_DECAY.items()), least=0, most=1, short="--wd"
    )
    lr_schedule: str | None = setting(None, "default: steps (built-in data: cosine)", choices=("steps", "cosine"))
    lr_steps: tuple[float, ...] | None = setting(
        None,
        "when the rate falls, in epochs, such as 6.4 (default: 16/26 and 22/26 of the run, 0.85 of one below 1000 "
        "steps)",
        above=0,
        metavar="EPOCH",
    )
    lr_gamma: float = setting(0.1, "factor of each fall", above=0, most=1)
    warmup_iters: int | None = setting(
        None,
        "steps of linear warm-up (default: 1000, at most an epoch and a tenth of the run, at least 50 or a "
        "quarter of it)",
        least=0,
    )
    recipe: str = setting(
        USUAL_RECIPE,
        "reference: torchvision's 26 epochs, warm-up and falls, however few images there are; small: a small network "
        "with size, anchors, rate and augmentation for few images on a CPU, which single flags overrule",
        choices=(USUAL_RECIPE, REFERENCE, SMALL),
    )
    clip_grad_norm: float | None = setting(
        None, "clip the gradient to this norm (default: 10 in a run by sgd below 1000 steps)", above=0, metavar="NORM"
    )
    ema: bool = setting(False, "average the weights; the average is what is evaluated")
    ema_decay: float = setting(0.999, "of --ema, per step", least=0, below=1)
    amp: bool | str = setting(
        False,
        "mixed precision: bfloat16, or float16 on a GPU without it; left off on a CPU where it is slower, unless it is "
        "given as force",
        word="force",
    )


@dataclass(frozen=True)
class Running(Settings):
    """Run: what it begins with, how long it takes, what it writes."""

    output_dir: str | Path | None = setting(
        None, "run folder (default: ./save_weights; train_multi_GPU.py: ./multi_train)", resume="own"
    )
    device: str = setting("auto", "auto, cpu, cuda or cuda:i", resume="own")
    weights: str | Path | None = setting(
        None,
        "coco, coco_v2, imagenet, none, a file, or a run folder, of which the best (default: coco for ResNet-50, "
        "imagenet for the others with a published file, "
        "none for MobileNetV1 and for the built-in data)",
    )
    num_classes: int | None = setting(
        None,
        "classes without background; normally left out, as the data has the count (an error if they differ)",
        least=1,
        resume="free",
    )
    resume: str | Path | None = setting(
        None, "auto (newest checkpoint of --output-dir), a checkpoint, or a run folder", resume="own"
    )
    test_only: bool = setting(False, "evaluate the weights and stop", resume="own")
    epochs: int | None = setting(
        None, "passes over the data (default: 26, up to 100 of few images; built-in data: 4)", least=1
    )
    print_freq: int = setting(50, "steps between printed lines", least=1, resume="free")
    save_every_steps: int | None = setting(None, "also save within an epoch", least=1, metavar="N", resume="free")
    save_every_epochs: int = setting(
        1, "keep every N-th epoch's checkpoint, the newest and the best", least=1, metavar="N", resume="free"
    )
    keep: int | None = setting(
        None, "keep the newest N checkpoints, and the best (default: all)", least=1, metavar="N", resume="free"
    )
    allow_changed: tuple[str, ...] | None = setting(
        None,
        "flags that may differ from the resumed run's, such as lr epochs; data: changed images or labels",
        metavar="NAME",
        resume="own",
    )
    skip_bad_batches: int = setting(
        0, "skip up to N steps whose loss is not finite; 0: stop", least=0, metavar="N", resume="free"
    )
    log_steps: bool = setting(False, "write steps.jsonl: images, losses and rate of each step", resume="free")
    dist_timeout: float = setting(
        TIMEOUT, "how long processes wait for one that is stuck", above=0, most=10**6, metavar="SECONDS", resume="own"
    )
    early_stop: int | None = setting(
        None, "stop after N epochs without a better mask AP", least=1, metavar="N", resume="free"
    )
    max_dets: int = setting(
        MAX_DETS, "detections of a class in an image that AP, and so the best checkpoint, counts", least=10, metavar="N"
    )
    recompute: bool = setting(
        False,
        "less memory for more time: compute the backbone's activations twice, on a CPU hand back freed memory at once",
        resume="free",
    )
    compile: bool = setting(False, "torch.compile: faster steps after a slow start; needs a C++ compiler")


@dataclass(frozen=True)
class OtherProjects(Settings):
    """Flags of other projects' scripts, so that their commands run here too."""

    pretrain: bool | None = setting(
        None, "True: --weights coco; False: --weights imagenet", resume="own", stands_for="weights"
    )
    freeze_at: int | None = setting(
        None,
        "freeze that many stages of the backbone: --trainable-layers 5 - N",
        choices=tuple(range(6)),
        metavar="0..5",
        resume="own",
        stands_for="trainable_layers",
    )
    sync_bn: bool = setting(False, "batch norm over all processes: --norm sync", resume="own", stands_for="norm")
    lr_step_size: int | None = setting(
        None,
        "the rate falls every N epochs: --lr-steps N 2N ...",
        least=1,
        metavar="N",
        resume="own",
        stands_for="lr_steps",
    )
    start_epoch: int = setting(
        0,
        "begin with epoch N and its learning rate, as after N epochs; a resumed run goes on where it was",
        least=0,
        metavar="N",
        resume="own",
    )
    world_size: int | None = setting(None, "has no effect: torchrun's --nproc_per_node decides", least=1, resume="own")
    dist_url: str | None = setting(None, "has no effect: torchrun decides", metavar="URL", resume="own")


@dataclass(frozen=True)
class RunConfig(OtherProjects, Optimisation, Running, Augmentation, TrainingTiles, LoaderOptions, DataOptions):
    """A training run: every option, and the fields of MaskRCNNConfig that differ from their defaults.

    None stands for what `defaults.resolve` fills in.
    """

    seed: int = setting(0, "of weights, order, augmentation, sampling and split", least=0, below=BELOW_SEED)
    batch_size: int | str | None = setting(
        None,
        "images per process (default: 2; built-in data: 4); auto: of 16 a step, on a CPU 4, as many at a time as the "
        "memory holds",
        least=1,
        short="-b",
        resume="batch",
        word=AUTO,
    )
    workers: int | None = setting(
        None, "loader processes (default: few on a CPU, 8 beside a GPU)", least=0, most=1024, short="-j", resume="own"
    )
    model: dict[str, Any] = field(default_factory=dict)  # fields of MaskRCNNConfig

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.resume == "":  # the default of other projects' scripts
            object.__setattr__(self, "resume", None)

    @classmethod
    def of(cls, given: dict[str, Any]) -> RunConfig:
        """Returns the config of given options and model fields, by name. InputError for a name that there is not."""
        return cls().replaced(with_preset(with_recipe(given)))

    def replaced(self, values: dict[str, Any]) -> RunConfig:
        """Returns the config with other values of options and model fields, by name."""
        own, model = given_settings(type(self), values), given_model(values)
        unknown = values.keys() - own.keys() - model.keys()
        if unknown:
            raise InputError(no_such(unknown, {*settings_of(type(self)), *model_fields()}, "a run"))
        return replace(self, **own, model={**self.model, **model})

    def without(self, name: str) -> RunConfig:
        """Returns the config without a value for a model field."""
        return replace(self, model={key: value for key, value in self.model.items() if key != name})

    def filled(self, values: dict[str, Any]) -> RunConfig:
        """Returns the config with those of the values that it has no value of its own for."""
        return self.replaced(
            {name: value for name, value in values.items() if name not in self.model and self.value(name) is None}
        )

    def value(self, name: str) -> Any:
        """Returns an option's or a model field's value; None for a model field without one."""
        return self.model.get(name) if name in model_fields() else getattr(self, name)

    def to_args(self) -> dict[str, Any]:
        """Returns plain values for checkpoints and args.json: every option and model field, by name."""
        own = {name: getattr(self, name) for name in settings_of(type(self))}
        model = {name: "none" if value is None else value for name, value in self.model.items()}
        values = {**dict.fromkeys(model_fields()), **own, **model}
        return {name: _plain(values[name]) for name in sorted(values)}

    def with_args(self, args: dict[str, Any], names: Iterable[str]) -> RunConfig:
        """Returns the config with the values of these names in a checkpoint's `args`, as far as it knows the names."""
        own = {name: args[name] for name in names if name in settings_of(type(self))}
        model = {name: args[name] for name in names if name in model_fields() and args[name] is not None}
        model = {name: None if value in ("none", ["none"]) else value for name, value in model.items()}
        return self.replaced({**own, **model})

    def global_batch(self, processes: int) -> int:
        """Returns the number of images per optimiser step."""
        return self.batch_size * self.accumulate_steps * processes


def model_fields() -> set[str]:
    """Returns the names of MaskRCNNConfig's fields that a run has."""
    return settings_of(MaskRCNNConfig).keys() - {"num_classes"}


def add_arguments(parser: Parser, config: type[RunConfig] = RunConfig) -> None:
    """Adds every flag of training."""
    add_flags(parser, config)
    add_model_flags(parser, may_be_auto=FITTED)


def _plain(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    return value if value is None or isinstance(value, (bool, int, float, str)) else str(value)
