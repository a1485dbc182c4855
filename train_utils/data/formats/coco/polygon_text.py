"""Text of COCO annotations -> their dicts without polygons, and the polygons' numbers in flat arrays.

Nearly all of a json is polygons, and an object of Python for each number takes most of the time of reading it. COCO's
numbers have two decimals at most: numpy reads all of a text at once, one digit of each at a time. Polygons that are
spelt otherwise, with 1e2, -3 or 700, are left to json.
M numbers, R polygons, K segmentations of a text.
"""

import re
from json import JSONDecoder
from typing import Any, NamedTuple

import numpy as np

from train_utils.io.json_stream import NAN, Unusual, object_of, objects_without

SEGMENTATION = re.compile(r'"segmentation"[ \t\n\r]*:[ \t\n\r]*\[\[([^\]]*(?:\], ?\[[^\]]*)*)\]\]')
COMMA, LAST_OF_POLYGON, LAST_OF_ALL = b",\1\0"  # what ends a number, in place of "," "]" "]]"
BRACKET, BETWEEN = ord("]"), len("],[")
DOT, ZERO = b".0"
LONGEST = len("655.35")
CAREFUL = JSONDecoder(object_pairs_hook=object_of).scan_once


class Polygons(NamedTuple):
    """The polygons of K segmentations that were taken out of a list of annotations.

    spelt: their text; hundredths uint16 [M]: x y x y ... in hundredths of a pixel; lengths int64 [R]: numbers of each
    polygon; counts int64 [K]: polygons of each segmentation; plain bool [K]: whether all its polygons have three
    points or more, and numbers from 0 to 655.35 of two decimals at most. Those of others mean nothing. owners int64
    [K]: positions of the annotations in the list.
    """

    spelt: list[str]
    hundredths: np.ndarray
    lengths: np.ndarray
    counts: np.ndarray
    plain: np.ndarray
    owners: np.ndarray

    def parsed(self, k: int) -> Any:
        """Returns segmentation k as json has it; raises ValueError or StopIteration where it is no json."""
        text = f"[[{self.spelt[k]}]]"
        value, end = CAREFUL(text, 0)
        if end < len(text):
            raise ValueError("text after the polygons")
        return value


def take_out(text: str) -> tuple[list[dict], Polygons] | None:
    """Returns the annotations that a text lists, and the polygons in whose place they have NAN: all that are plain.

    None where that is not certain (`objects_without`), or where most annotations have none.
    """
    if "\1" in text or "\0" in text:
        return None
    found = objects_without(text, SEGMENTATION, "segmentation")
    if found is None or 2 * len(found[1]) < len(found[0]):
        return None
    annotations, spelt = found
    owners = [i for i, entry in enumerate(annotations) if entry.get("segmentation") is NAN]
    if len(owners) < len(spelt):  # the others are somewhere within annotations
        return None
    polygons = _read(spelt, np.array(owners))
    try:
        for k in np.flatnonzero(~polygons.plain).tolist():
            annotations[owners[k]]["segmentation"] = polygons.parsed(k)
    except (StopIteration, ValueError, RecursionError, Unusual):
        return None
    return annotations, polygons


def _read(spelt: list[str], owners: np.ndarray) -> Polygons:
    """Reads what stands between the outer brackets of each segmentation."""
    joined = "\0".join(spelt) + "\0"
    if " " in joined:
        joined = joined.replace("], [", "],[").replace(", ", ",")
    text = np.frombuffer(bytearray(b"0" * LONGEST + joined.encode("ascii", "replace")), np.uint8)
    brackets = np.flatnonzero(text == BRACKET)
    text[brackets], text[brackets + 1] = LAST_OF_POLYGON, BRACKET  # one end for the three characters between polygons
    ends = np.flatnonzero(text[LONGEST:] < DOT) + LONGEST  # [M], at a minus and at blanks too
    kinds = text[ends]
    starts = np.concatenate(([LONGEST], ends[:-1] + 1))
    starts[np.searchsorted(ends, brackets) + 1] += BETWEEN - 1
    hundredths, right = _numbers(text, starts, ends)
    right &= (kinds == COMMA) | (kinds <= LAST_OF_POLYGON)
    last = np.flatnonzero(kinds <= LAST_OF_POLYGON)  # [R] each polygon's last number
    last_polygon = np.flatnonzero(kinds[last] == LAST_OF_ALL)  # [K] each segmentation's
    lengths, counts = np.diff(last, prepend=-1), np.diff(last_polygon, prepend=-1)
    right = np.logical_and.reduceat(right, last - lengths + 1) & (lengths >= 6) & (lengths % 2 == 0)  # [R]
    plain = np.logical_and.reduceat(right, last_polygon - counts + 1)  # [K]
    return Polygons(spelt, hundredths, lengths, counts, plain, owners)


def _numbers(text: np.ndarray, starts: np.ndarray, ends: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns numbers in hundredths, uint16 [M], and whether each is one of two decimals at most, bool [M].

    text: bytes, of which LONGEST come before the first number; starts, ends int64 [M]: where each number is.
    """
    last, second, third = text[ends - 1], text[ends - 2], text[ends - 3]  # [M] each, counted from the end
    one = second == DOT  # so many decimals
    two = (third == DOT) & ~one
    point = ends - (one * np.uint8(2) + two * np.uint8(3))  # where the whole part ends
    digits = point - starts  # of the whole part
    right = (digits == 1) | (digits > 1) & (digits <= 3) & (text[starts] != ZERO)
    total = np.zeros(len(ends), np.uint32)
    for weight, there, character in (
        (10_000, digits > 2, text[point - 3]),
        (1_000, digits > 1, text[point - 2]),
        (100, True, text[point - 1]),
        (10, one | two, np.where(two, second, last)),
        (1, two, last),
    ):
        digit = (character - np.uint8(ZERO)) * there  # what is no digit becomes 10 or more
        right &= digit < 10
        total += np.uint32(weight) * digit
    right &= total < 2**16
    return total.astype(np.uint16), right
