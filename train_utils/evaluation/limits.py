"""Ground truth and results -> the limits that cut the numbers, a line with counts for each that was met."""

from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from network_files import MaskRCNNConfig
from network_files.transform import resized_size
from train_utils.data.augmentations.common import REMOVED
from train_utils.data.images import BYTES, CHANNELS, DEPTH, NARROWED, PAGES, TRANSPARENCY
from train_utils.io.plain_text import counted

MAX_DETS = 100  # of a class in an image, COCO's
DROPPED = {
    PAGES: "pages after the first, which are left out (--pages channels reads all as channels, each as images)",
    TRANSPARENCY: "transparency, which is left out",
    CHANNELS: "channels beyond grey, colour and alpha, which are left out (--channels N reads all)",
    DEPTH: "more than 8 bits, read as 0 to 65535, as there is no --value-range: small values come out dark",
    NARROWED: "more than 8 bits, of which their format gives 8: save them as PNG or TIFF",
    BYTES: "8 bits, read as 0 to 255: --value-range is of those with more",
}
SHRUNK = 0.5  # of the smallest scale of training, below which an image is said to be shrunk
CUT = "are scored by {most} detections of a class in an image; --max-dets N scores by N"


class Limit(NamedTuple):
    """A limit that was met; name: in records; images: how many met it; beyond: objects or detections that it cut."""

    name: str
    images: int
    beyond: int
    line: str


def limits_met(
    truth: dict,
    results: Sequence[dict],
    image_ids: Collection[int] | None = None,
    max_dets: int = MAX_DETS,
    per_image: int | None = None,
) -> list[Limit]:
    """Returns the limits that were met in these images (None: all).

    max_dets: of a class in an image, beyond which objects and detections are cut; per_image: detections that the model
    may find in an image.
    """
    own = [a for a in truth["annotations"] if not a["iscrowd"] and (image_ids is None or a["image_id"] in image_ids)]
    limits = []
    for name, entries, line in (
        ("objects_beyond_max_dets", own, "{images} more than {most} objects of a class, {beyond} beyond"),
        ("detections_beyond_max_dets", results, "{images} {beyond} detections beyond {most} of a class"),
    ):
        beyond = Counter()
        for (image, _), count in Counter((e["image_id"], e["category_id"]) for e in entries).items():
            if count > max_dets:
                beyond[image] += count - max_dets
        if beyond:
            counts = {"images": counted(len(beyond), "image", "have"), "beyond": beyond.total(), "most": max_dets}
            limits.append(Limit(name, len(beyond), beyond.total(), f"{line}: they {CUT}".format(**counts)))
    full = sum(count >= per_image for count in Counter(r["image_id"] for r in results).values()) if per_image else 0
    return limits + full_images(full, per_image)


def full_images(count: int, per_image: int | None, what: str = "image") -> list[Limit]:
    """Returns the limit of per_image detections in an image (or tile), where so many met it; empty for none."""
    found = counted(per_image or 0, "detection")
    line = f"{counted(count, what, 'have')} {found}, all that --box-detections-per-img allows"
    return [Limit("full_images", count, 0, line)] if count else []


def dropped_limits(dropped: Counter[str]) -> list[Limit]:
    """Returns what reading images left out, of `images.take_dropped`, and the objects that augmentation did."""
    removed = dropped[REMOVED]
    line = f"augmentation left out {counted(removed, 'object')} of an epoch, which it had moved out of sight or covered"
    return [
        *(
            Limit(k, n, 0, f"{counted(n, 'image', 'have')} {DROPPED[k]}")
            for k, n in sorted(dropped.items())
            if k != REMOVED
        ),
        *([Limit(REMOVED, 0, removed, line)] if removed else []),
    ]


def scale_of(size: tuple[int, int], config: MaskRCNNConfig, min_size: int | None = None) -> float:
    """Returns the factor by which a model resizes an image of size (H, W); min_size: default evaluation's."""
    resized = resized_size(*size, min_size or config.min_size[-1], config.max_size, config.fixed_size)
    return max(resized[0] / size[0], resized[1] / size[1])


def smallest_scale(
    sizes: Iterable[tuple[int, int]], config: MaskRCNNConfig, square: int | None, low: float, expand: float | None
) -> float:
    """Returns the smallest factor by which training resizes images of these sizes (H, W).

    square, low: of large-scale jitter, its side and lowest factor; expand: the most that a canvas enlarges an image.
    """
    scales = []
    for height, width in set(sizes):
        jitter = min(low * square / max(height, width), 1.0) if square else 1.0
        shown = (square, square) if square else (height, width)
        shown = (round(shown[0] * (expand or 1)), round(shown[1] * (expand or 1)))
        scales.append(jitter * scale_of(shown, config, min(config.min_size)))
    return min(scales)


def shrunk_images(
    sizes: Iterable[tuple[int, int]], config: MaskRCNNConfig, smallest: object, what: str = "image"
) -> list[Limit]:
    """Returns the limit of images that are shrunk more than twice as far as any in training.

    smallest: `smallest_scale` of the training, as a checkpoint has it; anything but a number: not known.
    """
    if not isinstance(smallest, float):
        return []
    least = min(1.0, smallest) * SHRUNK
    scales = [scale for scale in (scale_of(size, config) for size in sizes) if scale < least]
    line = (
        f"{counted(len(scales), what, 'are')} shrunk to as little as {min(scales, default=1):.2g} of the size, in "
        f"training to {min(1.0, smallest):.2g} at most: small objects may be missed; a larger --min-size and "
        "--max-size shrink less, --tile auto looks at parts"
    )
    return [Limit("shrunk_images", len(scales), 0, line)] if scales else []


def left_out_line(path: str | Path, count: int) -> str:
    """Returns what is said of so many detections that `ImageDataset.with_given_ids` left out of a file."""
    return (
        f"left out of {path}: {counted(count, 'detection')} of classes that the data lacks, whose ids mean other "
        "classes there"
    )


def record_of(limits: Sequence[Limit]) -> dict[str, dict[str, int]]:
    """Returns plain values for a record."""
    return {limit.name: {"images": limit.images, "beyond": limit.beyond} for limit in limits}
