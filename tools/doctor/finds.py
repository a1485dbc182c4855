"""Collects what was found: each find is of a kind, which has a severity and advice.

error: train.py stops at it. warning: it is skipped, or most likely a mistake. note: good to know.
"""

import re
import textwrap
from collections import Counter
from collections.abc import Callable
from typing import Any, NamedTuple

from train_utils.data.problems import Id
from train_utils.io.plain_text import one_line

ERROR, WARNING, NOTE = "error", "warning", "note"
SEVERITIES = (ERROR, WARNING, NOTE)
KEPT = 20_000  # finds of one kind that are listed; the rest is counted
MOST_KINDS = 200  # kinds made of messages
TITLES = {  # of the commonest messages, by how they begin
    r"the image is \d+x\d+": "images of another size than annotated",
    r"a size of \S+x\S+$": "images whose size cannot be",
    r"bbox has \d+ number": "boxes that have not four numbers",
    r"polygon reaches": "polygons that reach far out of their image",
    r"RLE is for a size": "RLEs for another size than their image's",
    r"RLE does not fit its size": "RLEs that do not fit their size",
    r"a decompression bomb": "images of far too many pixels",
    r"cannot be read: '\S+' codec": "files that are no UTF-8 text",
    r"\S+ images are not read": "images of a format that is not read",
}
ADVICE = {"annotation id is duplicated": "--fix numbers them anew, and drops those that are the same."}  # by title
BY_FIX = re.compile(r"(?:; |, and with |, so | \()--fix [^.:)]*\)?")  # of an advice
VALUES = re.compile(
    r"(?P<kept>neither 0 nor 1|'[a-z_]+'(?= is missing))|'[^']*'|\"[^\"]*\"|[^\s()]*/[^\s()]+"
    r"|\[[^\]]*\]|[-+]?\d[\d.,]*(?:e[-+]?\d+)?|\b(?:nan|inf)\b"
)


class Kind(NamedTuple):
    """A kind of finds; title: what is counted; advice: what to do about it."""

    severity: str
    title: str
    advice: str = ""


class Find(NamedTuple):
    """One find; text: a line that names the file, and the annotation where it is about one."""

    text: str
    split: str
    image: Id
    annotation: Id


OTHER = Kind(ERROR, "other mistakes")


class Finds:
    """All finds by kind, in the order of severity; also: others that get the same."""

    def __init__(self, also: "Finds | None" = None) -> None:
        self._also = also
        self.fixable = True  # whether --fix takes the data
        self._of: dict[Kind, list[Find]] = {}
        self._counts: Counter[Kind] = Counter()

    def add(
        self, kind: Kind, text: str, split: str = "", image: Id = None, annotation: Id = None, count: int = 1
    ) -> None:
        """Adds a find; count: of several that the text reports in one line."""
        if self._also is not None:
            self._also.add(kind, text, split, image, annotation, count)
        listed = self._of.setdefault(kind, [])
        self._counts[kind] += count
        if len(listed) < KEPT:
            listed.append(Find(one_line(str(text)), split, _plain(image), _plain(annotation)))

    def mistake(self, message: str, advice: str = "", **where: Id) -> None:
        """Adds an error in the loader's words; its kind is what remains of them without names and values."""
        title = kind_of(message)
        kind = Kind(ERROR, title, advice or ADVICE.get(title, ""))
        self.add(kind if kind in self._of or len(self._of) < MOST_KINDS else OTHER, message, **where)

    def take(self, other: "Finds", rename: Callable[[str], str] = str) -> None:
        """Takes the errors and warnings of another; rename: what becomes of their texts."""
        for kind, count in other.counts():
            if kind.severity != NOTE:
                self._counts[kind] += count
                self._of.setdefault(kind, []).extend(find._replace(text=rename(find.text)) for find in other[kind])

    def __getitem__(self, kind: Kind) -> list[Find]:
        return self._of.get(kind, [])

    def counts(self) -> list[tuple[Kind, int]]:
        """Returns (kind, how often), errors first."""
        return sorted(self._counts.items(), key=lambda item: SEVERITIES.index(item[0].severity))

    def total(self, severity: str) -> int:
        """Returns how many finds there are of a severity."""
        return sum(count for kind, count in self._counts.items() if kind.severity == severity)

    def texts(self, severity: str) -> list[str]:
        """Returns the texts of the finds of a severity."""
        return [find.text for kind, found in self._of.items() if kind.severity == severity for find in found]

    def advice(self, kind: Kind) -> str:
        """Returns what to do about a kind, without --fix where it does not take the data."""
        return kind.advice if self.fixable else BY_FIX.sub("", kind.advice)

    def to_list(self) -> list[dict]:
        """Returns plain values for json."""
        return [
            {
                **kind._asdict(),
                "advice": self.advice(kind),
                "count": count,
                "finds": [find._asdict() for find in self._of[kind]],
            }
            for kind, count in self.counts()
        ]


def kind_of(message: str) -> str:
    """Returns what a message says but for names, values and parentheses.

    Of "a.json: annotation 7: iscrowd '0' is neither 0 nor 1, ..." that is "iscrowd is neither 0 nor 1".
    """
    parts = one_line(message).split(": ")
    parts = parts[1:] if len(parts) > 1 else parts  # the first is the file
    if len(parts) > 1 and re.match(r"(annotation|image|category|object|masks|labels)\b", parts[0]):
        parts = parts[1:]
    whole = ": ".join(parts)
    for start, title in TITLES.items():
        if re.match(start, whole):
            return title
    words = re.sub(r" \([^()]*(?:\([^()]*\)[^()]*)*\)", "", VALUES.sub(lambda found: found["kept"] or "…", whole))
    words = re.sub(r"\b(id|category_id|class|key|iscrowd|width|height) …", r"\1", words.split(";")[0]).strip(" ,")
    return textwrap.shorten(words, 100, placeholder=" …") or "mistakes"


def _plain(value: Any) -> Id:
    """Returns an id as json has it: an integer of numpy as Python's."""
    return int(value) if hasattr(value, "item") else value
