"""Problems that a check reports -> an error, or a collection: one sink decides which.

A mistake is what training stops at. A skip leaves an annotation out and is counted. A note is a decision that the
reader took, or something that is good to know.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

from backbone.errors import InputError

if TYPE_CHECKING:  # which imports this module
    from train_utils.data.dataset import ImageDataset

MISTAKE, SKIP, NOTE = "mistake", "skip", "note"
MISSING = "image files are missing"
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

    def missing(self, data_set: ImageDataset) -> None:
        """Reports the image files that are missing, all in one mistake."""
        if data_set.missing.any():
            self.mistake(missing_files(data_set))

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

    def missing(self, data_set: ImageDataset) -> None:
        """Keeps a mistake for each missing file."""
        if data_set.missing.any():
            root = self._parent or self
            root._first = root._first or missing_files(data_set)
        for i in data_set.missing.nonzero()[0].tolist():
            given = data_set.given_id(i)
            text = f"{data_set.source}: image id {given}: {data_set.file_name(i)} is missing"
            self.keep(Problem(MISTAKE, MISSING, text, self.split, given))

    def of(self, split: str) -> Collect:
        """Returns a sink for the split that hands on to the same `keep`."""
        return Collect(self.keep, split, self._parent or self)


STOP = StopAtFirst()


def missing_files(data_set: ImageDataset) -> str:
    """Returns the line that says how many image files are missing, and which is the first."""
    first = int(data_set.missing.argmax())
    return (
        f"{data_set.source}: {int(data_set.missing.sum())} of its {len(data_set)} image files are missing, the first "
        f"is {data_set.file_name(first)} (image id {data_set.given_id(first)}); put them there, or take them out of "
        "the list"
    )


def describe_skips(skipped: dict[str, int], first: dict[str, str]) -> str:
    """Returns "3 annotations without segmentation (first: id 17), ..."; empty where nothing was skipped."""
    return ", ".join(f"{count} {reason} (first: {first[reason]})" for reason, count in skipped.items() if count)


def refuse_skips(data_set: ImageDataset) -> None:
    """Raises InputError if the data set skipped annotations: what --strict asks for."""
    skips = describe_skips(data_set.skipped, data_set.first_skipped)
    if skips:
        raise InputError(f"{data_set.source}: --strict: {skips}; correct them, or leave --strict out to skip them")
