"""What a training run leaves for people, beside its numbers: curves, drawn detections, explained faults, last lines."""

import math
import os
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from PIL import Image

from backbone.errors import InputError
from network_files import MaskRCNN
from network_files.losses import LOSS_NAMES
from network_files.operators.boxes import scale_boxes
from network_files.operators.cropped_masks import CroppedMasks
from network_files.operators.instance_masks import mask_probs_to_bool
from train_utils.cli.console import script_path, start_of
from train_utils.data.dataset import ImageDataset
from train_utils.data.images.pages import file_of
from train_utils.data.labels import LabelMap
from train_utils.evaluation.limits import MAX_DETS
from train_utils.io.files import atomic_file
from train_utils.io.memory import LESS_IN_TRAINING, first_line
from train_utils.io.plain_text import counted, pasted, visible
from train_utils.logs.console import duration
from train_utils.logs.result_files import ResultsWriter
from train_utils.processes.distributed import World
from train_utils.run.config import RunConfig
from train_utils.run.step import NonFiniteLoss, OutOfMemory
from train_utils.show.curves import plot_average_precision, plot_loss_and_lr, plot_losses
from train_utils.show.drawing import Style, draw_detections, fitting_size, resized_to_draw

DRAWN = (256, 1024)  # height and width that drawings fit, as the board's grid shows them: letters can be read
PACE_STEPS = 10  # after which a run says how long it takes
SHORT, LONG = 60, 2 * 3600  # seconds: a run that is not worth a line, and one worth advice
SMALL_SIDE, SMALL_BACKBONES = 400, ("resnet18", "mobilenet_v2")
SHOWN_SCORE = 0.5  # detections below it would hide the image


def image_rows(samples: Iterable[tuple], label_map: LabelMap, geometry: str) -> list[tuple[Image.Image, Image.Image]]:
    """Draws (ground truth, prediction) of each (image, target, detection) of an evaluation, as large as fits DRAWN.

    geometry: the model's.
    """
    rows, style = [], Style(magnify=1)
    for image, target, detection in samples:
        shown = detection["scores"] > SHOWN_SCORE
        boxes, labels, scores = (detection[key][shown] for key in ("boxes", "labels", "scores"))
        size, small = tuple(image.shape[-2:]), fitting_size(image.shape[-2:], DRAWN, enlarge=True)
        image, objects, regions = resized_to_draw(image, target["boxes"], target["masks"], small)
        boxes = scale_boxes(boxes, size, small)
        if "masks" in detection:  # of tiles
            masks = detection["masks"][shown].resize(small)
        else:
            masks = mask_probs_to_bool(detection["mask_probs"][shown], boxes, small, geometry)
        truth = draw_detections(image, objects, target["labels"], None, regions, label_map.name, style)
        rows.append((truth, draw_detections(image, boxes, labels, scores, masks, label_map.name, style)))
    return rows


def write_curves(
    folder: Path,
    writer: ResultsWriter,
    curve: Sequence[tuple[float, float]],
    stride: int,
    steps_per_epoch: int,
    about: str,
) -> None:
    """Writes the PNGs of a run; curve: (loss, lr) of each `stride` steps; writer: the run's; about: a line of text."""
    losses, rates = zip(*curve, strict=True)
    records = writer.history()
    epochs = [record["epoch"] for record in records]
    train, val = ([record.get(f"{part}_losses") or {} for record in records] for part in ("train", "val"))
    sums = [None if len(v) < len(LOSS_NAMES) or None in v.values() else sum(v.values()) for v in val]
    val_loss = dict(zip(epochs, sums, strict=True))
    path = folder / f"loss_and_lr{writer.stamp}.png"
    plot_loss_and_lr(path, losses, rates, steps_per_epoch, val_loss, about, stride)
    plot_losses(folder / f"losses{writer.stamp}.png", LOSS_NAMES, epochs, train, val, about)
    numbers = {
        f"{what} {name}": [record[name] for record in writer.history(iou_type)]
        for iou_type, what in (("segm", "mask"), ("bbox", "box"))
        for name in ("AP", "AP50")
    }
    plot_average_precision(folder / f"mAP{writer.stamp}.png", epochs, numbers, "mask AP", about)


def explain_non_finite(
    error: NonFiniteLoss, folder: Path, model: MaskRCNN, data_set: ImageDataset, rank: int
) -> InputError:
    """Saves this rank's batch behind a NonFiniteLoss, and the weights; returns the error that names both."""
    if error.batch is None:
        return InputError(f"step {error.step}: another process met a loss that is not finite; see its message")
    path = folder / (f"non_finite_step{error.step}_rank{rank}.pth" if rank else f"non_finite_step{error.step}.pth")
    names = [data_set.file_name(i) for i in error.batch.indices]
    losses = dict(zip(LOSS_NAMES, error.losses.tolist(), strict=True))
    content = {
        "images": error.batch.images,
        "targets": [{**target, "masks": plain_masks(target["masks"])} for target in error.batch.targets],
        "files": names,
        "losses": losses,
        "model": model.state_dict(),
        "config": model.config.to_dict(),
    }
    with atomic_file(path) as file:
        torch.save(content, file)
    bad = ", ".join(f"{name} {value}" for name, value in losses.items() if not math.isfinite(value))
    return InputError(
        f"step {error.step}: {bad} on {', '.join(names)}; try a lower --lr, --clip-grad-norm, or look at the "
        f"images' annotations; batch and weights are in {path} (python: model(images, targets))"
    )


def explain_lack_of_memory(error: OutOfMemory, data_set: ImageDataset) -> InputError:
    """Returns the error that names the images of the step."""
    names = [data_set.file_name(index) for batch in error.batches for index in batch.indices]
    sizes = ", ".join(f"{i.shape[-1]}x{i.shape[-2]}" for batch in error.batches for i in batch.images)
    what, then = f"training step {error.step}", ", then --resume auto"
    if error.step < 0:  # nothing is saved yet
        what, then = "the test of --lr auto", ""
    return InputError(
        f"{what}: out of memory ({first_line(error.__cause__)}) on {', '.join(names)} ({sizes}); "
        f"{LESS_IN_TRAINING}{then}"
    )


def plain_masks(masks: torch.Tensor | CroppedMasks) -> torch.Tensor:
    """Returns target masks as uint8 [N, H, W]."""
    return masks if isinstance(masks, torch.Tensor) else masks.to_masks()


def about_speed(seconds: float, steps_left: int, config: RunConfig, model: MaskRCNN, device: torch.device) -> list[str]:
    """Returns lines that say how long the rest of a run takes at so many seconds a step; none for a short one.

    On a CPU that has hours ahead, also what takes less time.
    """
    if (whole := seconds * steps_left) < SHORT:
        return []
    left = counted(steps_left, "step")
    about = f"about {duration(whole)} for the {left} to epoch {config.epochs} at this speed ({seconds:.2f} s a step)"
    lines = [f"after {PACE_STEPS} steps: {about}, evaluations not counted"]
    if device.type == "cpu" and whole > LONG:
        cfg, ways = model.config, ["fewer --epochs"]
        if cfg.fixed_size is None and cfg.min_size[-1] > SMALL_SIDE:
            size = f"--min-size {cfg.min_size[-1] // 2} --max-size {cfg.max_size // 2}"
            ways.append(f"{size} (a quarter of the pixels)")
        if cfg.backbone not in SMALL_BACKBONES:
            ways.append(f"--backbone {' or '.join(SMALL_BACKBONES)}")
        lines.append(f"to be done sooner on a CPU: {', '.join(ways)}; Ctrl-C stops this run and saves it")
    return lines


def resume_command(folder: Path, config: RunConfig, world: World) -> str:
    """Returns the command that goes on with a run; options that are not in it are the checkpoint's."""
    script = "train_multi_GPU" if Path(sys.argv[0]).stem == "train_multi_GPU" else "train"
    start = start_of(script)
    if world.size > 1:
        processes = os.environ.get("LOCAL_WORLD_SIZE", world.size)
        start = f"torchrun --nproc_per_node={processes} {script_path(script)}"
    device = [] if config.device == "auto" else ["--device", config.device]
    links = ["--follow-links"] if config.follow_links else []  # a checkpoint does not say it
    return f"{start} {pasted('--output-dir', folder, '--resume', 'auto', *device, *links)}"


def print_outcome(
    folder: Path,
    best_ap: float,
    val_set: ImageDataset,
    more_epochs: str,
    max_dets: int = MAX_DETS,
    follow_links: bool = False,
) -> None:
    """Prints the last lines of a run: which file holds what, and what to do next.

    more_epochs: the command that trains further; max_dets, follow_links: of --max-dets and --follow-links, which the
    numbers were made with.
    """
    best, lowest = folder / "model_best.pth", folder / "model_min_val_loss.pth"
    reached = "n/a, as the validation images have no object" if best_ap < 0 else f"{best_ap:.4f}"
    if not any(folder.glob("model_*.pth")):
        print(f"\ndone: best mask AP {reached}. The resumed run had ended: nothing new is in {visible(str(folder))}")
        return
    print(f"\ndone: best mask AP {reached}. In {visible(str(folder))}:")
    if best.exists():
        print("  model_best.pth, model_{epoch}.pth   weights with the highest mask AP; the kept epochs', to resume")
    else:
        print("  model_{epoch}.pth                   the kept epochs' weights, to resume")
    print("  det_results*, seg_results*          COCO numbers per epoch, for boxes and masks (.txt, .json)")
    if lowest.exists():
        print("  model_min_val_loss.pth              weights with the lowest validation loss")
    print("  loss_and_lr*.png, losses*.png, mAP*.png    curves")
    print(f"  tensorboard/                        tensorboard --logdir {pasted(folder / 'tensorboard')}")
    shown = val_set.file_name(0)  # of packed data: where it lay then
    weights = pasted("--weights-path", folder)
    image = pasted("--img-path", shown if os.path.exists(file_of(shown)) else "IMAGE")
    print("next, with the best checkpoint of that folder:")
    counted_as = f" --max-dets {max_dets}" if max_dets != MAX_DETS else ""
    counted_as += " --follow-links" if follow_links else ""
    print(f"  numbers, a page of mistakes    {start_of('validation')} {weights}{counted_as} --report")
    print(f"  objects in images              {start_of('predict')} {weights} {image}")
    print(f"  more epochs                    {more_epochs}")
