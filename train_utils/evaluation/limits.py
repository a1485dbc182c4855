"""Ground truth and results -> the limits that cut the numbers, a line with counts for each that was met."""

from collections import Counter
from collections.abc import Collection, Sequence
from typing import NamedTuple

from train_utils.data.images import PAGES, TRANSPARENCY

MAX_DETS = 100  # of a class in an image, COCO's
DROPPED = {PAGES: "pages after the first, which are left out", TRANSPARENCY: "transparency, which is left out"}
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
        ("objects_beyond_max_dets", own, "{images} image(s) have more than {most} objects of a class, {beyond} beyond"),
        ("detections_beyond_max_dets", results, "{images} image(s) have {beyond} detections beyond {most} of a class"),
    ):
        beyond = Counter()
        for (image, _), count in Counter((e["image_id"], e["category_id"]) for e in entries).items():
            if count > max_dets:
                beyond[image] += count - max_dets
        if beyond:
            counts = {"images": len(beyond), "beyond": beyond.total(), "most": max_dets}
            limits.append(Limit(name, len(beyond), beyond.total(), f"{line}: they {CUT}".format(**counts)))
    full = sum(count >= per_image for count in Counter(r["image_id"] for r in results).values()) if per_image else 0
    return limits + full_images(full, per_image)


def full_images(count: int, per_image: int | None) -> list[Limit]:
    """Returns the limit of per_image detections in an image, where so many images met it; empty for none."""
    line = f"{count} image(s) have {per_image} detections, all that --box-detections-per-img allows"
    return [Limit("full_images", count, 0, line)] if count else []


def dropped_limits(dropped: Counter[str]) -> list[Limit]:
    """Returns what reading images left out, of `images.take_dropped`."""
    return [Limit(what, count, 0, f"{count} image(s) have {DROPPED[what]}") for what, count in sorted(dropped.items())]


def record_of(limits: Sequence[Limit]) -> dict[str, dict[str, int]]:
    """Returns plain values for a record."""
    return {limit.name: {"images": limit.images, "beyond": limit.beyond} for limit in limits}
