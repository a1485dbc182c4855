"""Runs the whole network beside torchvision's: inference and training steps on the same weights and images.

The weights are random but alive (`torchvision_model.live_state`): scores and boxes are spread as a trained
network's are, so that NMS, pasting and the mask branch have their usual work.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import nn

from benchmarks import torchvision_model
from benchmarks.harness import Benchmark, LeftOut, Settings, Sides, largest_difference
from benchmarks.harness.inputs import Pair, as_torchvision, photos
from network_files import MaskRCNN, create_model, matching
from train_utils.data.loaders import Batch
from train_utils.io.memory import returning_freed_memory
from train_utils.run.optimization import Precision, build_optimizer, cpu_has_bf16

TRAINED = 3  # stages, as both sides' default
_LIVE: dict[str, dict[str, torch.Tensor]] = {}  # the last state of `live_state`, by its key


@dataclass(frozen=True)
class Case:
    """What both models do.

    ours, theirs: bf16 or float32. size: of the images before they are resized; objects: in each (None: its own);
    options: of both networks, by torchvision's names. fixed_size: that ours pads all images to, its backbone as CUDA
    graphs on a GPU.
    """

    images: int = 1
    size: tuple[int, int] = (480, 640)
    objects: int | None = 8
    ours: torch.dtype = torch.float32
    theirs: torch.dtype = torch.float32
    paste: bool = True
    backbone: str = "resnet50"
    options: dict = field(default_factory=dict)
    gpu: bool = False
    recompute: bool = False
    compiled: bool = False
    fixed_size: tuple[int, int] | None = None


def build_sides(case: Case, settings: Settings, training: bool) -> tuple[MaskRCNN, nn.Module, list[Pair]]:
    """Returns our and torchvision's model with the same weights, and the images as (image, target) pairs."""
    if case.gpu and settings.device.type != "cuda":
        raise LeftOut("it is for a GPU: --device cuda")
    if torch.bfloat16 in (case.ours, case.theirs) and settings.device.type == "cpu" and not cpu_has_bf16():
        raise LeftOut("this processor does not compute in bfloat16 itself")
    pairs = photos(settings.data, case.images, case.size, case.objects)
    options = {"backbone": case.backbone, **case.options}
    state = live_state(pairs[:1], options, repr((case.size, case.objects, settings.data, options)))
    theirs = torchvision_model.build(**options, trainable=TRAINED)
    ours = create_model(91, **options, trainable_layers=TRAINED, fixed_size=case.fixed_size)
    for model in (ours, theirs):
        model.load_state_dict(state)
        model.to(settings.device).train(training)
    if case.recompute:
        ours.recompute_activations()
    if case.compiled:
        ours.compile_parts()
    if case.fixed_size and settings.device.type == "cuda":
        capture_backbone(ours, case)
    return ours, theirs, pairs


def live_state(pairs: list[Pair], options: dict, key: str) -> dict[str, torch.Tensor]:
    """Returns weights that are alive on these pairs, kept for the next call of the same key: it takes seconds."""
    if key not in _LIVE:
        images, targets = as_torchvision(pairs, torch.device("cpu"))
        # enough to make the weights alive, and quicker
        small = {"min_size": min(320, options.get("min_size", 320)), "max_size": min(544, options.get("max_size", 544))}
        samples = list(zip(images, targets, strict=True))
        _LIVE.clear()
        _LIVE[key] = torchvision_model.live_state(samples, **options | small, trainable=TRAINED)
    return _LIVE[key]


def capture_backbone(model: MaskRCNN, case: Case) -> None:
    """Replaces the passes of the backbone of a model on a GPU by CUDA graphs, for batches of `case.images`."""
    device = next(model.parameters()).device
    sample = torch.zeros(case.images, 3, *case.fixed_size, device=device).to(memory_format=torch.channels_last)
    # a weight that is cast once for all would be cast outside of the graph
    with torch.autocast(device.type, case.ours, enabled=case.ours != torch.float32, cache_enabled=False):
        torch.cuda.make_graphed_callables(model.backbone, (sample,))


def prepare_inference(settings: Settings, case: Case) -> Sides:
    """Returns both sides from images (ours uint8, theirs float) to detections; with `paste` to full-size masks too."""
    ours, theirs, pairs = build_sides(case, settings, training=False)
    small = [image.to(settings.device) for image, _ in pairs]
    images, _ = as_torchvision(pairs, settings.device)
    our_precision, their_precision = (Precision(settings.device, _amp(dtype)) for dtype in (case.ours, case.theirs))

    @torch.inference_mode()
    def run_ours() -> list[torch.Tensor]:
        with our_precision.autocast():
            return [d["scores"] for d in ours(small, paste_masks=case.paste)]

    @torch.inference_mode()
    def run_theirs() -> list[torch.Tensor]:
        with their_precision.autocast():
            if case.paste:
                return [d["scores"] for d in theirs(images)]
            batch, _ = theirs.transform(images)
            maps = theirs.backbone(batch.tensors)
            proposals, _ = theirs.rpn(batch, maps)
            return [d["scores"] for d in theirs.roi_heads(maps, proposals, batch.image_sizes)[0]]

    return run_ours, run_theirs


def prepare_training(settings: Settings, case: Case) -> Sides:
    """Returns both sides' forward, backward and step of SGD, on evenly spread samples, so that losses compare."""
    ours, theirs, pairs = build_sides(case, settings, training=True)
    torchvision_model.without_chance(theirs)
    matching.draw = torchvision_model.spread_ranks
    batch = Batch([image for image, _ in pairs], [target for _, target in pairs], [], [])

    dense = as_torchvision(pairs, settings.device)

    def side(
        model: nn.Module, dtype: torch.dtype, inputs: Callable[[], tuple]
    ) -> Callable[[], list[torch.Tensor]]:  # so small a rate that the weights stay what they are
        return partial(
            train_step, model, build_optimizer(model, "sgd", 1e-9), inputs, Precision(settings.device, _amp(dtype))
        )

    ours = side(ours, case.ours, lambda: batch.to(settings.device))
    if case.recompute and settings.device.type == "cpu":
        ours = returning_freed_memory()(ours)  # as train.py does
    return ours, side(theirs, case.theirs, lambda: dense)


def train_step(
    model: nn.Module, optimizer: torch.optim.Optimizer, inputs: Callable[[], tuple], precision: Precision
) -> list[torch.Tensor]:
    """Takes a training step; returns the five losses in the order of their names."""
    images, targets = inputs()
    with precision.autocast():
        losses = model(images, targets)
    precision.backward(sum(losses.values()))
    precision.step(optimizer)
    return [losses[name].detach() for name in sorted(losses)]


def _amp(dtype: torch.dtype) -> torch.dtype | None:
    return None if dtype == torch.float32 else dtype


BF16 = torch.bfloat16
INFERENCE = {
    "inference": ("inference, ResNet-50-FPN, 640x480 to 1088x800, float32", Case()),
    "inference_compiled": ("the same, ours with --compile", Case(compiled=True)),
    "inference_bf16": ("the same, ours in bfloat16", Case(ours=BF16)),
    "inference_bf16_both": ("the same, both in bfloat16", Case(ours=BF16, theirs=BF16)),
    "gpu_inference_16": ("inference, 16 images of 1333x800, bfloat16", Case(16, (480, 800), 8, BF16, BF16, gpu=True)),
    "gpu_inference_1": (
        "inference before pasting, 1 image of 1333x800, bfloat16",
        Case(1, (480, 800), 8, BF16, BF16, paste=False, gpu=True),
    ),
}
SMALL = {"min_size": 256, "max_size": 256, "anchor_sizes": (8, 16, 32, 64, 128), "box_batch_size_per_image": 128}
TRAINING = {
    "training_step": ("training step, ResNet-50-FPN, 2 images of 8 objects, float32", Case(2)),
    "training_step_bf16": ("the same, ours in bfloat16", Case(2, ours=BF16)),
    "training_step_small": (
        "training step, ResNet-18-FPN, 4 images of 256x192, float32",
        Case(4, objects=None, backbone="resnet18", options=SMALL),
    ),
    "training_step_200": ("training step, 2 images of 200 objects, float32", Case(2, objects=200)),
    "training_step_recompute": ("training step, 2 images of 8 objects, ours with --recompute", Case(2, recompute=True)),
    "training_step_200_recompute": (
        "training step, 2 images of 200 objects, ours with --recompute",
        Case(2, objects=200, recompute=True),
    ),
    "gpu_training": ("training step, 12 images of 1333x800, bfloat16", Case(12, (480, 800), 8, BF16, BF16, gpu=True)),
    "gpu_training_compiled": (
        "the same, ours with --compile",
        Case(12, (480, 800), 8, BF16, BF16, gpu=True, compiled=True),
    ),
}
BENCHMARKS = [
    Benchmark(name, what, partial(prepare, case=case), largest_difference)
    for prepare, cases in ((prepare_inference, INFERENCE), (prepare_training, TRAINING))
    for name, (what, case) in cases.items()
]
