"""Finds images that show the same: by their pixels exactly, or nearly, by difference hashes and then by thumbnails.

A pair of hashes that differ in few bits has, by the pigeonhole principle, an equal byte, so only pairs with an equal
byte are compared. Dark or even images have similar hashes; thumbnails that hardly correlate show that they differ.
N images of all splits.
"""

from typing import NamedTuple

import numpy as np

from tools.doctor.finds import NOTE, WARNING, Finds, Kind

MOST_BITS = 7  # that the hashes of a pair may differ in: one less than there are bytes
CORRELATION = 0.99  # of the thumbnails, from which they show the same
EVEN = 1.0  # standard deviation of a thumbnail, of 255, below which correlation says nothing
BLOCK = 1024  # hashes compared with all of their byte at once
MOST_PAIRS = 100_000
BITS = np.array([bin(i).count("1") for i in range(256)], dtype=np.uint8)

LEAK = Kind(WARNING, "the same image in train and in val", "The AP on val is too good: take it out of one of them.")
NEAR_LEAK = Kind(
    WARNING,
    "nearly the same image in train and in val",
    "Frames of one video or copies of one photo belong into the same split.",
)
TWICE = Kind(WARNING, "the same image twice in a split", "Are both annotated alike? Keep one.")
NEAR = Kind(NOTE, "nearly the same image twice in a split", "Fine for frames of a video; they count twice.")
SPLIT_BY_CHANCE = " A split by chance (--val-fraction) puts some of them on both sides."


ENDED = Kind(
    WARNING,
    "the search for doubles ended early",
    "More of them, across splits too, may be there: take out those that are named, and check again.",
)


class Double(NamedTuple):
    """Two images, (split, position) each; same: in every pixel; correlation of their thumbnails."""

    first: tuple[str, int]
    second: tuple[str, int]
    same: bool
    correlation: float


def find_doubles(seen: dict[str, list], finds: Finds) -> list[Double]:
    """Returns the doubles among the `Seen` of each split: across splits first, then the most alike.

    finds: takes a note where there are so many that the search ends early.
    """
    everything = [(split, one) for split, records in seen.items() for one in records if not one.blank]
    if len(everything) < 2:
        return []
    hashes = np.array([one.hash for _, one in everything], dtype=np.uint64)
    thumbs = np.stack([np.frombuffer(one.thumb, np.uint8) for _, one in everything])  # [N, THUMB^2]
    digests = [one.digest for _, one in everything]
    found, pairs = [], near_hashes(hashes)
    if len(pairs) > MOST_PAIRS:
        finds.add(ENDED, f"after {len(pairs):,} pairs of images that look alike, of {len(hashes):,} images")
    for i, j in pairs:
        same, alike = digests[i] == digests[j], correlation(thumbs[i], thumbs[j])
        if same or alike > CORRELATION:
            first, second = ((everything[k][0], everything[k][1].i) for k in (i, j))
            found.append(Double(first, second, same, 1.0 if same else alike))
    return sorted(found, key=lambda d: (d.first[0] == d.second[0], not d.same, -d.correlation))


def near_hashes(hashes: np.ndarray) -> list[tuple[int, int]]:
    """Returns pairs i < j of hashes uint64 [N] that differ in at most MOST_BITS bits, each once.

    With more than MOST_PAIRS of them the search has ended early, and others may be missing.
    """
    pairs: set[tuple[int, int]] = set()
    octets = hashes[:, None].view(np.uint8)  # [N, 8]
    for column in range(8):
        order = np.argsort(octets[:, column], kind="stable")
        bounds = np.flatnonzero(np.diff(octets[order, column])) + 1
        for group in np.split(order, bounds):
            for start in range(0, len(group) - 1, BLOCK):
                rows, others = group[start : start + BLOCK], group[start:]
                differ = BITS[(hashes[rows, None] ^ hashes[others])[..., None].view(np.uint8)].sum(-1)  # [rows, others]
                a, b = np.nonzero(np.triu(differ <= MOST_BITS, 1))
                pairs.update(zip(rows[a].tolist(), others[b].tolist(), strict=True))
            if len(pairs) > MOST_PAIRS:
                return sorted(pairs)
    return sorted((min(pair), max(pair)) for pair in pairs)


def correlation(one: np.ndarray, other: np.ndarray) -> float:
    """Returns the correlation of two thumbnails, -1 to 1; 0 where one of them is even."""
    a, b = (thumb.astype(np.float64) - thumb.mean() for thumb in (one, other))
    spread = np.sqrt((a * a).mean() * (b * b).mean())
    return float((a * b).mean() / spread) if min(a.std(), b.std()) >= EVEN else 0.0


def report_doubles(doubles: list[Double], splits: dict, finds: Finds) -> None:
    """Adds each double to the finds."""
    for double in doubles:
        names = [f"{path_of(splits, place)} ({place[0] or 'image'})" for place in (double.first, double.second)]
        across = double.first[0] != double.second[0]
        if double.same:
            kind = LEAK if across else TWICE
        else:
            kind = NEAR_LEAK if across else NEAR
        if not across and double.first[0] == "all":
            kind = kind._replace(advice=kind.advice + SPLIT_BY_CHANCE)
        likeness = "the same pixels" if double.same else f"correlation {double.correlation:.4f}"
        split, i = double.second
        image = None if isinstance(splits[split], list) else splits[split].given_id(i)
        finds.add(kind, f"{names[0]} and {names[1]}: {likeness}", split, image)


def path_of(splits: dict, place: tuple[str, int]) -> str:
    """Returns the path of the image at a (split, position)."""
    split, i = place
    return str(splits[split][i]) if isinstance(splits[split], list) else splits[split].file_name(i)
