"""Looks at a mosaic of validation images whole, in tiles, and by SAHI around the same model: found, doubled, seconds.

    python -m benchmarks.large_images.tiles --weights-path save_weights                    of the built-in data
    python -m benchmarks.large_images.tiles --weights-path W --data-path DATA --side 256
    python -m benchmarks.large_images.tiles --weights-path save_weights --offsets 50       borders in 50 places, too

SAHI is measured where it is installed (`pip install sahi`). Recall: the share of the objects, without crowd regions,
whose box a detection meets by an IoU of 0.5. Of the detections, each object has the one that meets it best; others meet
an object that another one has ("again"), lie with half of their box in that of a crowd region, whose shapes are no
objects, or with nine tenths in the box of an object, or are elsewhere. Doubled: pairs of detections of one class whose
boxes meet. Lost and more: those of the whole image at full size that are met by none, and those that meet none of it.
Seconds are the process's CPU time, the median of --repeats. Without --one-ground the borders of the images are to be
seen, and a corner of an image may pass for a rectangle. Offsets: the mosaic is moved under the tiles, and counted is
the same. Cut: detections that end at a border of a tile, beyond which the whole image's goes on.
"""

import argparse
import itertools
import sys
import time
from collections import Counter
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

import maskrcnn
from network_files.operators.boxes import box_ioa, box_iou
from train_utils.cli.command import run_command
from train_utils.cli.flags import number
from train_utils.cli.parser import Parser
from train_utils.data.opening import open_data
from train_utils.data.options import DataOptions
from train_utils.data.tiles.tiling import Tiling
from train_utils.evaluation.tiled_model import AT_BORDER, PROPOSALS, room_for
from train_utils.io.plain_text import counted
from train_utils.prediction.detector import Detector
from train_utils.prediction.looking import tiling_of

MET = 0.5  # IoU of boxes; share of a box in a crowd region's
WITHIN = 0.9  # share of a box in an object's
SCORE = 0.5  # least score
FULL = "whole, at full size"


class Found(NamedTuple):
    """Boxes [D, 4] and labels [D] of an image."""

    boxes: Tensor
    labels: Tensor


class Truth(NamedTuple):
    """Boxes [G, 4] of an image's objects, and [K, 4] of its crowd regions."""

    boxes: Tensor
    crowds: Tensor


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Reads the command line."""
    parser = Parser(description=__doc__)
    parser.add_argument("--weights-path", required=True)
    parser.add_argument("--data-path", help="default: the built-in shapes")
    parser.add_argument("--side", type=number(int, least=32), default=128, help="of each image of the mosaic, and tile")
    parser.add_argument("--images", type=number(int, least=1), default=6, help="images a row, and a column")
    parser.add_argument("--one-ground", action="store_true", help="bring the images' grounds to one colour")
    parser.add_argument("--overlap", type=float, default=0.25)
    parser.add_argument("--offsets", type=number(int, least=0), default=0, metavar="N")
    parser.add_argument("--repeats", type=number(int, least=1), default=3)
    return parser.parse_args(argv)


def mosaic_of(args: argparse.Namespace) -> tuple[Tensor, Truth]:
    """Returns an image uint8 [3, H, W] of validation images, again from the first when all are there, and its truth."""
    data = open_data(DataOptions(data_path=args.data_path), "val").val
    side, across = args.side, args.images
    image, boxes, crowds = torch.zeros(3, side * across, side * across, dtype=torch.uint8), [], []
    large = [i for i, size in enumerate(data.sizes.tolist()) if min(size) >= side]
    for placed, i in enumerate(itertools.islice(itertools.cycle(large), across**2)):
        part, target = data[i]
        y, x = (side * place for place in divmod(placed, across))
        image[:, y : y + side, x : x + side] = (one_ground(part, target) if args.one_ground else part)[:, :side, :side]
        own = target["boxes"].clamp(max=side)
        seen, crowd = ((own[:, 2:] - own[:, :2]) > 1).all(1), target["iscrowd"] > 0
        own = own + torch.tensor([x, y, x, y])
        boxes.append(own[seen & ~crowd])
        crowds.append(own[seen & crowd])
    return image, Truth(torch.cat(boxes), torch.cat(crowds))


def one_ground(image: Tensor, target: dict) -> Tensor:
    """Returns an image uint8 [3, H, W] in other colours: its mean outside of the objects becomes the middle grey."""
    ground = ~target["masks"].to_masks().bool().any(0)
    shift = 128 - image[:, ground].float().mean(1)
    return (image + shift[:, None, None]).round().clamp(0, 255).to(torch.uint8)


def at_full_size(args: argparse.Namespace, trained: Detector) -> Detector:
    """Returns a detector that sees the mosaic at the scale of training, with room for its objects."""
    config = trained.model.config
    wanted = round(config.min_size[-1] * args.images * args.side / min(args.side, config.min_size[-1]))
    room = {name: max(count, 6000) for name, count in room_for(config, wanted**2, PROPOSALS).items()}
    return maskrcnn.load(
        args.weights_path, min_size=(wanted,), max_size=wanted, box_detections_per_img=2000, device="cpu", **room
    )


def by_sahi(args: argparse.Namespace, trained: Detector) -> Callable[[Tensor], Found] | None:
    """Returns SAHI's sliced prediction with the model; None where it is not installed."""
    try:
        from sahi.models.torchvision import TorchVisionDetectionModel
        from sahi.predict import get_sliced_prediction
    except ImportError:
        return None
    names = {str(i): trained.label_map.name(i) for i in trained.label_map.labels()}
    model = TorchVisionDetectionModel(
        model=trained.model, confidence_threshold=SCORE, device="cpu", load_at_init=True, category_mapping=names
    )
    sides = dict.fromkeys(("slice_height", "slice_width"), args.side)
    overlaps = dict.fromkeys(("overlap_height_ratio", "overlap_width_ratio"), args.overlap)

    def look(image: Tensor) -> Found:
        result = get_sliced_prediction(image.permute(1, 2, 0).numpy(), model, **sides, **overlaps, verbose=0)
        own = result.object_prediction_list
        boxes = torch.tensor([one.bbox.to_xyxy() for one in own], dtype=torch.float32).reshape(-1, 4)
        return Found(boxes, torch.tensor([int(one.category.id) for one in own]))

    return look


def each_alone(args: argparse.Namespace, trained: Detector) -> Callable[[Tensor], Found]:
    """Returns a look at each image of the mosaic by itself."""

    def look(image: Tensor) -> Found:
        corners = [(x, y) for y in range(0, image.shape[1], args.side) for x in range(0, image.shape[2], args.side)]
        results = trained([image[:, y : y + args.side, x : x + args.side] for x, y in corners], score=SCORE)
        boxes = [one.boxes + torch.tensor([x, y, x, y]) for one, (x, y) in zip(results, corners, strict=True)]
        return Found(torch.cat(boxes), torch.cat([one.labels for one in results]))

    return look


def kinds_of(found: Found, truth: Truth) -> Counter[str]:
    """Returns how many detections are of objects, of one again, in crowd regions, within an object, elsewhere."""
    iou = box_iou(found.boxes, truth.boxes)  # [D, G]
    pairs = torch.nonzero(iou >= MET).tolist()
    taken: dict[int, int] = {}  # detections by object
    for i, g in sorted(pairs, key=lambda pair: -float(iou[tuple(pair)])):
        if g not in taken and i not in taken.values():
            taken[g] = i
    again = {i for i, _ in pairs} - {*taken.values()}
    crowd, own = (
        (box_ioa(boxes, found.boxes) >= least).any(0) for boxes, least in ((truth.crowds, MET), (truth.boxes, WITHIN))
    )
    rest = [i for i in range(len(found.boxes)) if i not in again and i not in taken.values()]
    kinds = ["in crowd regions" if crowd[i] else "within an object" if own[i] else "elsewhere" for i in rest]
    return Counter({"of objects": len(taken), "of one again": len(again)}) + Counter(kinds)


def doubled(found: Found) -> int:
    """Returns how many pairs of one class meet."""
    meet = (box_iou(found.boxes, found.boxes) >= MET) & (found.labels[:, None] == found.labels)
    return (int(meet.sum()) - len(found.boxes)) // 2


def met(boxes: Tensor, others: Tensor) -> Tensor:
    """Returns which boxes one of the others meets, bool."""
    return (box_iou(boxes, others) >= MET).any(1) if len(others) else torch.zeros(len(boxes), dtype=torch.bool)


def cut(found: Found, whole: Found, tiling: Tiling, size: tuple[int, int]) -> int:
    """Returns how many detections end at a border between tiles, while the whole image's goes on beyond it."""
    if not len(found.boxes) or not len(whole.boxes):
        return 0
    meet = box_iou(found.boxes, whole.boxes) * (found.labels[:, None] == whole.labels)
    overlap, best = meet.max(1)
    tiles, (height, width) = tiling.boxes(size), size
    count = 0
    for box, other, touches in zip(found.boxes, whole.boxes[best], overlap > 0, strict=True):
        for side, outwards, end in ((0, -1, 0), (1, -1, 0), (2, 1, width), (3, 1, height)):
            borders = tiles[:, side][tiles[:, side] != end]
            at_border = bool(((borders - box[side]).abs() <= AT_BORDER).any())
            if touches and at_border and float(outwards * (other[side] - box[side])) > 2 * AT_BORDER:
                count += 1
                break
    return count


def main() -> int:
    """Prints the table."""
    args = parse_args()
    torch.set_num_threads(1)
    image, truth = mosaic_of(args)
    trained = maskrcnn.load(args.weights_path, device="cpu")
    large = at_full_size(args, trained)

    def ours(detector: Detector, **how: object) -> Callable[[Tensor], Found]:
        def look(image: Tensor) -> Found:
            result = detector(image, score=SCORE, **how)
            return Found(result.boxes, result.labels)

        return look

    ways = {
        FULL: ours(large),
        "whole, as trained": ours(trained),
        "each image alone": each_alone(args, trained),
        f"tiles of {args.side}": ours(trained, tile=args.side, overlap=args.overlap),
        "tiles, auto": ours(trained, tile="auto", overlap=args.overlap),
        "SAHI": by_sahi(args, trained),
    }
    shown = f"{len(truth.boxes)} objects and {counted(len(truth.crowds), 'crowd region')}"
    print(f"{shown} in {image.shape[2]}x{image.shape[1]}, overlap {args.overlap:g}")
    seconds, whole = {name: [] for name, look in ways.items() if look}, ways[FULL](image)
    for _ in range(args.repeats):
        for name in seconds:
            start = time.process_time()
            found = ways[name](image)
            seconds[name].append(time.process_time() - start)
            if len(seconds[name]) == args.repeats:
                middle = sorted(seconds[name])[args.repeats // 2]
                kinds = ", ".join(f"{count} {kind}" for kind, count in kinds_of(found, truth).items())
                lost, more = int((~met(whole.boxes, found.boxes)).sum()), int((~met(found.boxes, whole.boxes)).sum())
                recall = float(met(truth.boxes, found.boxes).float().mean())
                print(f"{name}: recall {recall:.3f}, {len(found.boxes)} detections: {kinds}; {doubled(found)} doubled; "
                      f"beside the whole's {lost} lost, {more} more; {middle:.2f} s", flush=True)  # fmt: skip
    generator, lost, more, twice, ended, count = torch.Generator().manual_seed(0), 0, 0, 0, 0, 0
    tiling = tiling_of("auto", args.overlap, 0.0, trained.model.config, trained.content)
    for _ in range(args.offsets):
        dy, dx = torch.randint(1, args.side, (2,), generator=generator).tolist()
        moved = image.roll((dy, dx), (1, 2))
        whole, tiled = ways[FULL](moved), ways["tiles, auto"](moved)
        lost += int((~met(whole.boxes, tiled.boxes)).sum())
        more += int((~met(tiled.boxes, whole.boxes)).sum())
        twice += doubled(tiled) - doubled(whole)
        ended += cut(tiled, whole, tiling, tuple(moved.shape[-2:]))
        count += len(whole.boxes)
    if args.offsets:
        print(
            f"{args.offsets} offsets: of the whole's {count} detections {lost} lost; {more} more, "
            f"{twice} more doubled, {ended} cut"
        )
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
