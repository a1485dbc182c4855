"""The flags that train.py and train_multi_GPU.py share, and the values they take when they are not given."""

import os

import torch

from backbone.errors import InputError
from network_files.weight_files.weights import COCO, IMAGENET
from train_utils.cli.command import (
    add_config_arguments,
    add_flag,
    fraction,
    non_negative_int,
    positive_float,
    positive_int,
    seed,
    times,
)
from train_utils.cli.reference_flags import add_reference_arguments, lr_steps
from train_utils.data.opening import LAYOUTS
from train_utils.processes.distributed import TIMEOUT

LR_PER_IMAGE = 0.00125  # the linear rule's unit: 0.02 for 16 images, as in Detectron and torchvision
LR_ADAMW = 1e-4
LR_STEPS = (16 / 26, 22 / 26)  # shares of the run, from torchvision's 26 epochs with steps at 16 and 22

# Without --data-path: a model small enough for the built-in data and two CPU cores.
BUILT_IN_MODEL = dict(
    backbone="resnet18",
    backbone_width=32,
    fpn_channels=64,
    min_size=[128],
    max_size=128,
    anchor_sizes=[16, 32, 64, 128, 256],
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

# What of the flags makes a training sample of what is loaded: the arguments of transforms.build_augment, in order.
AUGMENTATION = (
    "horizontal_flip",
    "vertical_flip",
    "photometric",
    "large_scale_jitter",
    "jitter_scale",
    "expand",
    "mini_mask",
)
# Flags that stand for another one.
ALIASES = {"pretrain": "weights", "freeze_at": "trainable_layers", "sync_bn": "norm", "lr_step_size": "lr_steps"}
USUAL = dict(epochs=26, batch_size=2, optimizer="sgd", lr_schedule="steps", backbone="resnet50")
WEIGHT_DECAY = {"sgd": 1e-4, "adamw": 1e-2}


def add_arguments(parser):
    """Add every flag of training to a command.Parser. Flags left out are None where resolve() decides."""
    _add_data_arguments(parser.add_argument_group("data"))
    _add_run_arguments(parser.add_argument_group("run"))
    _add_optimizer_arguments(parser.add_argument_group("optimisation"))
    add_reference_arguments(parser.add_argument_group("of other projects' scripts"))
    add_config_arguments(parser)


def _add_data_arguments(group):
    add = group.add_argument
    add("--data-path", help="data set folder (COCO, VOC, .npy); absent: the built-in shapes, drawn into ./data/shapes")
    add("--dataset", default="auto", choices=LAYOUTS, help="layout of the data (default: auto)")
    add("--image-dir", help="folder of the images, where it is not the usual one")
    add("--year", help="VOC year, where the folder holds several")
    add("--label-json-path", metavar="J", help='class names of .npy data: a json file {"1": "person", ...}')
    add("--val-fraction", type=fraction, default=0.2, help="validation share of data without a split (default: 0.2)")
    add("--num-classes", type=positive_int, help="without background; checked against the data, which tells it")
    add_flag(group, "--drop-empty", help="leave out training images without objects")
    add_flag(group, "--follow-links", help="follow images that are links out of the data (else an error)")
    add_flag(group, "--strict", help="unreadable images and unusable annotations are errors, not skipped")
    add(
        "--aspect-ratio-group-factor",
        type=non_negative_int,
        default=3,
        help="groups of image shapes that batches are formed within; 0: none (default: 3)",
    )
    add("--repeat", type=positive_int, default=1, metavar="N", help="times that an epoch has each image (default: 1)")
    add("--workers", "-j", type=non_negative_int, help="loader processes (default: few on a CPU, 8 beside a GPU)")
    add_augmentation_arguments(group)


def add_augmentation_arguments(group):
    """Flags named AUGMENTATION."""
    add = group.add_argument
    add("--horizontal-flip", type=fraction, default=0.5, metavar="P", help="probability (default: 0.5)")
    add(
        "--vertical-flip",
        type=fraction,
        nargs="?",
        const=0.5,
        default=0.0,
        metavar="P",
        help="probability (default: 0; bare flag: 0.5)",
    )
    add_flag(group, "--photometric", help="jitter brightness, contrast, saturation and hue")
    add(
        "--large-scale-jitter",
        type=positive_int,
        nargs="?",
        const=1024,
        metavar="SIZE",
        help="scale and crop to a square of SIZE pixels (bare flag: 1024)",
    )
    add(
        "--jitter-scale",
        type=positive_float,
        nargs=2,
        default=[0.1, 2.0],
        metavar=("LOW", "HIGH"),
        help="range of scales of --large-scale-jitter (default: 0.1 2)",
    )
    add(
        "--expand",
        type=times,
        nargs="?",
        const=4.0,
        metavar="MAX",
        help="put every other image on a canvas of 1 to MAX times its sides (bare flag: 4)",
    )
    add(
        "--mini-mask",
        type=positive_int,
        metavar="SIZE",
        help="keep masks to train on in at most SIZE x SIZE cells of their box, such as 56: less memory, rounder edges",
    )


def _add_run_arguments(group):
    add = group.add_argument
    add("--output-dir", help="run folder (default: ./save_weights; train_multi_GPU.py: ./multi_train)")
    add("--device", default="auto", help="auto, cpu, cuda or cuda:i (default: auto)")
    add(
        "--weights",
        help="coco, imagenet, none or a file (default: coco for ResNet-50, imagenet for the others "
        "with a published file, none for MobileNetV1 and for the built-in data)",
    )
    add_flag(group, "--pretrain", default=None, help="True: --weights coco; False: --weights imagenet")
    add(
        "--resume",
        type=lambda text: text or None,  # "": the default of other projects' scripts
        help="auto (newest checkpoint of --output-dir), a checkpoint, or a run folder",
    )
    add_flag(group, "--test-only", help="evaluate the weights and stop")
    add("--epochs", type=positive_int, help="passes over the data (default: 26; built-in data: 4)")
    add("--batch-size", "-b", type=positive_int, help="images per process (default: 2; built-in data: 4)")
    add("--accumulate-steps", type=positive_int, default=1, help="batches per optimiser step (default: 1)")
    add("--seed", type=seed, default=0, help="of weights, order, augmentation and sampling (default: 0)")
    add("--print-freq", type=positive_int, default=50, help="steps between printed lines (default: 50)")
    add("--save-every-steps", type=positive_int, metavar="N", help="also save within an epoch")
    add(
        "--save-every-epochs",
        type=positive_int,
        default=1,
        metavar="N",
        help="keep every N-th epoch's checkpoint, the newest and the best (default: 1)",
    )
    add("--keep", type=positive_int, metavar="N", help="of these keep the newest N and the best (default: all)")
    add(
        "--allow-changed",
        nargs="+",
        metavar="NAME",
        help="flags that may differ from the resumed run's, such as lr epochs; data: other images",
    )
    add(
        "--skip-bad-batches",
        type=non_negative_int,
        default=0,
        metavar="N",
        help="pass over up to N steps whose loss is not finite (default: 0, stop)",
    )
    add_flag(group, "--log-steps", help="write steps.jsonl: images, losses and rate of each step")
    add(
        "--dist-timeout",
        type=positive_float,
        default=TIMEOUT,
        metavar="SECONDS",
        help=f"how long processes wait for one that is stuck (default: {TIMEOUT:g})",
    )
    add("--early-stop", type=positive_int, metavar="N", help="stop after N epochs without a better mask AP")
    add_flag(group, "--amp", help="mixed precision: bfloat16, or float16 on a GPU without it")
    add_flag(group, "--recompute", help="less memory for more time: compute the backbone's activations twice")
    add_flag(group, "--compile", help="torch.compile: faster steps after a slow start; needs a C++ compiler")


def _add_optimizer_arguments(group):
    add = group.add_argument
    add("--optimizer", choices=["sgd", "adamw"], help="default: sgd (built-in data: adamw)")
    add("--lr", type=positive_float, help=f"default: {LR_PER_IMAGE} x global batch; adamw: {LR_ADAMW}")
    add("--momentum", type=fraction, default=0.9, help="of sgd (default: 0.9)")
    add("--weight-decay", "--wd", type=fraction, help=f"default: {WEIGHT_DECAY}".replace("{", "").replace("}", ""))
    add("--lr-schedule", choices=["steps", "cosine"], help="default: steps (built-in data: cosine)")
    add(
        "--lr-steps",
        type=positive_float,
        nargs="+",
        metavar="EPOCH",
        help="when the rate falls, in epochs, such as 6.4 (default: 16/26 and 22/26 of the run)",
    )
    add("--lr-gamma", type=positive_float, default=0.1, help="factor of each fall (default: 0.1)")
    add("--warmup-iters", type=non_negative_int, help="steps of linear warm-up (default: 1000, at most an epoch)")
    add("--clip-grad-norm", type=positive_float, metavar="NORM", help="clip the gradient to this norm")
    add_flag(group, "--ema", help="average the weights; the average is what is evaluated")
    add("--ema-decay", type=fraction, default=0.999, help="of --ema, per step (default: 0.999)")
    add(
        "--freeze-at",
        type=int,
        choices=range(6),
        metavar="0..5",
        help="freeze that many stages of the backbone: --trainable-layers 5 - N",
    )
    add_flag(group, "--sync-bn", help="batch norm over all processes: --norm sync")


def resolve(args, world):
    """Fill in, in place, what was not given. Raises InputError for flags that contradict each other."""
    built_in = args.data_path is None
    resolve_aliases(args, (BUILT_IN_RUN if built_in else USUAL)["epochs"])
    if built_in:
        model = built_in_model(args.weights)
        # The built-in optimiser goes with its learning rate: either both are its own, or neither.
        own = args.optimizer is None and args.lr is None and args.lr_steps is None
        _fill(args, {**model, **BUILT_IN_RUN, **(BUILT_IN_OPTIMIZER if own else {})})
    _fill(args, USUAL)
    if args.weights is None:
        args.weights = "none" if built_in else default_weights(args.backbone, args.variant)
    if args.weights == "none":
        # A random backbone does not train under frozen norm: its activations grow without bound.
        _fill(args, dict(norm="batch", trainable_layers=5))
    if args.norm == "sync" and world.device.type == "cpu":
        raise InputError("--norm sync works on GPUs only: give --norm batch, frozen or group on a CPU")
    if args.lr is None:
        args.lr = LR_ADAMW if args.optimizer == "adamw" else LR_PER_IMAGE * global_batch(args, world)
    if args.weight_decay is None:
        args.weight_decay = WEIGHT_DECAY[args.optimizer]
    if args.lr_steps is None:
        args.lr_steps = [share * args.epochs for share in LR_STEPS]
    if args.workers is None:
        args.workers = default_workers(world)


def built_in_model(weights):
    """BUILT_IN_MODEL, as far as published weights fit into it: theirs is the width, for COCO's all of it."""
    if weights == "coco":
        return {}
    return {**BUILT_IN_MODEL, "backbone_width": None} if weights == "imagenet" else BUILT_IN_MODEL


def resolve_aliases(args, usual_epochs):
    """Say --pretrain, --freeze-at, --sync-bn and --lr-step-size by the flags they stand for, in place.

    usual_epochs: of a run without --epochs.
    """
    if args.lr_step_size is not None:
        args.lr_steps = lr_steps(args, usual_epochs)
    if args.pretrain is not None:
        chosen = "coco" if args.pretrain else "imagenet"
        if args.weights not in (None, chosen):
            raise InputError(
                f"--pretrain {args.pretrain} means --weights {chosen}, not {args.weights}; give one of them"
            )
        args.weights = chosen
    if args.freeze_at is not None:
        if args.trainable_layers not in (None, 5 - args.freeze_at):
            raise InputError(
                f"--freeze-at {args.freeze_at} means --trainable-layers {5 - args.freeze_at}, "
                f"not {args.trainable_layers}; give one of them"
            )
        args.trainable_layers = 5 - args.freeze_at
    if args.sync_bn:
        if args.norm not in (None, "sync"):
            raise InputError(f"--sync-bn means --norm sync, not {args.norm}; give one of them")
        args.norm = "sync"


def _fill(args, values):
    for name, value in values.items():
        if getattr(args, name) is None:
            setattr(args, name, value)


def global_batch(args, world):
    """Images per optimiser step."""
    return args.batch_size * args.accumulate_steps * world.size


def default_weights(backbone, variant):
    """What --weights is when it is not given: the most that is published for this backbone."""
    if (backbone, variant or "v1") in COCO:
        return "coco"
    return "imagenet" if backbone in IMAGENET else "none"


def default_workers(world):
    """On a CPU the model needs the cores itself; beside a GPU the loaders have them."""
    cores = os.cpu_count() or 1
    if world.device.type == "cpu":
        return 0 if cores <= 2 else 2
    return min(8, max(cores // max(torch.cuda.device_count(), 1), 1))
