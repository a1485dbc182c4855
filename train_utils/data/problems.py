"""Problems that a check reports -> an error, or a collection: one sink decides which.

A mistake is what training stops at. A skip leaves an annotation out and is counted. A note is a decision that the
reader took, or something that is good to know.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

from backbone.errors import InputError
from train_utils.io.plain_text import of_several

MISTAKE, SKIP, NOTE = "mistake", "skip", "note"
MISSING = "image files are missing"
# Skips of objects that have a box: what they show is trained as background.
NO_SEGMENTATION, NO_MASK = "annotations without segmentation", "XML objects without a mask"
Id = int | float | str | None  # of an image or an annotation, as the data has it


class Problem(NamedTuple):
    """One problem of the data.

    title: what is counted ("" for a mistake, whose text says all); text: one line that names the file, and the
    annotation where it is about one; image, annotation: their ids as the data has them; count: how many it is about.
    """

    severity: str
    title: str
    text: str
    split: str = ""
    image: Id = None
    annotation: Id = None
    count: int = 1


class StopAtFirst:
    """Raises the first mistake: for training, validation and prediction. Readers count their skips themselves."""

    collects = False

    def mistake(
        self, error: str | InputError, image: Id = None, annotation: Id = None, cause: Exception | None = None
    ) -> None:
        """Raises `error` as an InputError, `cause` being what it came from."""
        raise (error if isinstance(error, InputError) else InputError(error)) from cause

    def skip(self, title: str, text: str, image: Id = None, annotation: Id = None, count: int = 1) -> None:
        """Reports annotations that are left out; `title` says why, in the plural."""

    def note(self, title: str, text: str, image: Id = None, annotation: Id = None, count: int = 1) -> None:
        """Reports a decision, or what is good to know."""

    def missing(self, summary: str, files: Iterable[tuple[str, Id]]) -> None:
        """Reports image files that are missing, all in one mistake; files: (text, image id) of each."""
        self.mistake(summary)

    def of(self, split: str) -> StopAtFirst:
        """Returns the sink for what is read of a split."""
        return self


class Collect(StopAtFirst):
    """Hands every problem to `keep` and goes on: for the data doctor."""

    collects = True

    def __init__(self, keep: Callable[[Problem], None], split: str = "", parent: Collect | None = None) -> None:
        self.keep, self.split, self._parent = keep, split, parent
        self._first: str | None = None

    @property
    def first(self) -> str | None:
        """The text of the first mistake, at which training would stop."""
        return self._parent.first if self._parent else self._first

    def mistake(
        self, error: str | InputError, image: Id = None, annotation: Id = None, cause: Exception | None = None
    ) -> None:
        """Keeps a mistake."""
        self.keep(Problem(MISTAKE, "", str(error), self.split, image, annotation))
        root = self._parent or self
        root._first = root._first or str(error)

    def skip(self, title: str, text: str, image: Id = None, annotation: Id = None, count: int = 1) -> None:
        """Keeps a skip."""
        self.keep(Problem(SKIP, title, text, self.split, image, annotation, count))

    def note(self, title: str, text: str, image: Id = None, annotation: Id = None, count: int = 1) -> None:
        """Keeps a note."""
        self.keep(Problem(NOTE, title, text, self.split, image, annotation, count))

    def missing(self, summary: str, files: Iterable[tuple[str, Id]]) -> None:
        """Keeps a mistake for each missing file."""
        root = self._parent or self
        root._first = root._first or summary
        for text, image in files:
            self.keep(Problem(MISTAKE, MISSING, text, self.split, image))

    def of(self, split: str) -> Collect:
        """Returns a sink for the split that hands on to the same `keep`."""
        return Collect(self.keep, split, self._parent or self)


STOP = StopAtFirst()


def describe_skips(skipped: dict[str, int], first: dict[str, str]) -> str:
    """Returns "3 annotations without segmentation (first: id 17), ..."; empty where nothing was skipped."""
    counts = [(reason, count) for reason, count in skipped.items() if count]
    return ", ".join(f"{count} {of_several(count, reason)} (first: {first[reason]})" for reason, count in counts)


def few_counts(counts: dict[str, object]) -> str:
    """Returns "'cell' (12), 'dog' (3) and 4 more", the first three."""
    shown = ", ".join(f"{name!r} ({count})" for name, count in list(counts.items())[:3])
    return shown + (f" and {len(counts) - 3} more" if len(counts) > 3 else "")
