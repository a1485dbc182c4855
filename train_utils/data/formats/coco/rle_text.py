"""Text of COCO annotations -> their dicts, with the counts of uncompressed RLEs in arrays.

A crowd's RLE has a thousand counts and more, each an object of Python where json reads it; numpy reads those of a text
at once, eight digits as one word. M counts, K RLEs of a text.
"""

import re

import numpy as np

from train_utils.io.json_stream import NAN, objects_without

COUNTS = re.compile(r'"counts"[ \t\n\r]*:[ \t\n\r]*\[([^\]]*)\]')
COMMA, LAST = b",\0"  # what ends a count, in place of "," "]"
ZERO = ord("0")
WORD = 8  # bytes: a count has fewer digits
U64 = np.uint64
EACH, ALL = U64(0x0101010101010101), U64(2**64 - 1)
LEAST = np.array([1, 0, *(10**i for i in range(1, WORD - 1))])  # that a count of so many digits is
STEPS = ((8, 10, 0x00FF00FF00FF00FF), (16, 100, 0x0000FFFF0000FFFF), (32, 10_000, 0x00000000FFFFFFFF))


def with_counts(text: str) -> list[dict] | None:
    """Returns the annotations that a text lists, the counts of their uncompressed RLEs as int64 arrays.

    None where it has no such RLE, or where that is not certain (`objects_without`).
    """
    if '"counts"' not in text or "\0" in text:
        return None
    found = objects_without(text, COUNTS, "counts")
    counts = None if found is None else _read(found[1])
    if counts is None:
        return None
    segmentations = [entry.get("segmentation") for entry in found[0]]
    rles = [rle for rle in segmentations if type(rle) is dict and rle.get("counts") is NAN]
    if len(rles) < len(counts):  # the others are somewhere else
        return None
    for rle, own in zip(rles, counts, strict=True):
        rle["counts"] = own
    return found[0]


def _read(spelt: list[str]) -> list[np.ndarray] | None:
    """Reads what stands between the brackets of each RLE's counts; None unless all are whole numbers of few digits."""
    joined = "\0".join(spelt) + "\0"
    joined = joined.replace(", ", ",") if " " in joined else joined
    text = np.frombuffer(b"0" * (WORD - 1) + joined.encode("ascii", "replace"), np.uint8)
    ends = np.flatnonzero(text[WORD - 1 :] < ZERO)  # [M]
    words = np.ndarray(len(text) - WORD + 1, "<u8", text.data, strides=(1,))[ends]  # the bytes up to each end
    kinds = (words >> U64(56)).astype(np.uint8)
    digits = np.diff(ends, prepend=-1) - 1
    words = (words << U64(8)) ^ EACH * U64(ZERO)  # a digit is its value
    words &= ALL << (64 - 8 * digits).astype(U64)  # without what comes before the number
    right = ((words + EACH * U64(128 - 10)) | words) & EACH * U64(128) == 0
    for shift, weight, kept in STEPS:  # pairs, fours, all eight
        words = (words * U64(weight) + (words >> U64(shift))) & U64(kept)
    counts = words.astype(np.int64)
    right &= (digits > 0) & (digits < WORD) & (counts >= LEAST[np.minimum(digits, WORD - 1)])
    if not (right & ((kinds == COMMA) | (kinds == LAST))).all():
        return None
    return np.split(counts, np.flatnonzero(kinds == LAST)[:-1] + 1)
