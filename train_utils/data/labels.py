"""Category ids and names of the data <-> label indices of the network."""

import json
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from backbone.errors import InputError
from train_utils.io.json_stream import RepeatedKey, no_collection, object_of
from train_utils.io.plain_text import brief, counted, visible

COCO_NAMES_FILE = Path(__file__).with_name("coco91_indices.json")


class LabelMap:
    """Label indices (1..num_labels - 1, 0 is background) beside category ids and names, row by row.

    labels, category_ids, names: sequences of equal length. Labels may have gaps, as COCO's 1..90 have.
    given: {category id: what the json has in its place}, where that is text or a longer integer.
    Law: `to_category(to_label(c)) == c` for every category id c.
    """

    def __init__(
        self,
        labels: Iterable[int],
        category_ids: Iterable[int],
        names: Iterable[str],
        given: dict[int, str | int] | None = None,
    ) -> None:
        self._labels = tuple(int(label) for label in labels)
        self.category_ids = tuple(int(i) for i in category_ids)
        self.names = tuple(visible(trimmed(str(name))) for name in names)
        self.given = dict(given or {})
        if not len(self._labels) == len(self.category_ids) == len(self.names):
            raise InputError("label map: labels, category ids and names differ in number")
        if not self._labels or min(self._labels) < 1:
            raise InputError("label map: at least one label is needed, and the lowest is 1 (0 is background)")
        for what, values in (("label", self._labels), ("category id", self.category_ids)):
            if len(set(values)) != len(values):
                raise InputError(f"label map: a {what} is duplicated")
        self.num_labels = max(self._labels) + 1
        self._label_of = dict(zip(self.category_ids, self._labels, strict=True))
        self._row_of = {label: row for row, label in enumerate(self._labels)}

    @classmethod
    def from_categories(cls, categories: dict[int, str], given: dict[int, str | int] | None = None) -> "LabelMap":
        """Makes a map from {category id: name}: COCO's 80 keep their ids as labels, others become 1..C in id order."""
        ids = sorted(categories)
        labels = ids if categories == coco_names() else range(1, len(ids) + 1)
        return cls(labels, ids, [categories[i] for i in ids], given)

    @classmethod
    def from_names(cls, names: dict[str | int, str | int]) -> "LabelMap":
        """Makes a map from {label: name}, or {name: label}: both are forms of `*_indices.json`.

        Labels are int or str; category ids are the labels.
        """
        try:
            turned = all(type(label) is int for label in names.values())
            pairs = sorted((label, name) if turned else (int(name), label) for name, label in names.items())
            if not all(isinstance(name, str) for _, name in pairs):
                raise TypeError("a name is not text")
        except (AttributeError, TypeError, ValueError) as error:
            raise InputError('label names must be a json object such as {"1": "person"}') from error
        labels = [label for label, _ in pairs]
        return cls(labels, labels, [name for _, name in pairs])

    @classmethod
    def from_json(cls, path: str | Path) -> "LabelMap":
        """Reads a `{"1": "person", ...}` file; InputError names it."""
        names = read_json(path)
        try:
            return cls.from_names(names)
        except InputError as error:
            raise InputError(f"{path}: {error}") from error

    def to_label(self, category_id: int) -> int:
        """Returns the label of a category id; KeyError if the map has no such category."""
        return self._label_of[category_id]

    def to_category(self, label: int) -> int:
        """Returns the category id of a label; KeyError for background and gaps."""
        return self.category_ids[self._row_of[label]]

    def has_category(self, category_id: int) -> bool:
        """Returns whether the map has the category."""
        return category_id in self._label_of

    def has_label(self, label: int) -> bool:
        """Returns whether the map has the label."""
        return label in self._row_of

    def name(self, label: int) -> str:
        """Returns the name of a label, "N/A" for background and gaps."""
        row = self._row_of.get(label)
        return "N/A" if row is None else self.names[row]

    def distinct_name(self, label: int) -> str:
        """Returns the name of a label, with its category where another class has the same name."""
        name = self.name(label)
        return name if self.names.count(name) < 2 else f"{name} (category {self.to_category(label)})"

    def labels(self) -> list[int]:
        """Returns the labels in use, without background and gaps."""
        return list(self._labels)

    def rows(self) -> set[tuple[int, str]]:
        """Returns (category id, name) of each class."""
        return set(zip(self.category_ids, self.names, strict=True))

    def to_dict(self) -> dict:
        """Returns plain values, for a checkpoint."""
        rows = {"labels": self._labels, "category_ids": self.category_ids, "names": self.names}
        given = {"given": [list(pair) for pair in sorted(self.given.items())]} if self.given else {}
        return {**{key: list(values) for key, values in rows.items()}, **given}

    @classmethod
    def from_dict(cls, values: dict) -> "LabelMap":
        """Makes the map that `to_dict` was called on. Raises InputError for other values."""
        try:
            return cls(values["labels"], values["category_ids"], values["names"], dict(values.get("given", ())))
        except (KeyError, TypeError, ValueError) as error:
            raise InputError("label map: labels, category_ids and names are needed, each a list") from error

    def __eq__(self, other: object) -> bool:
        return isinstance(other, LabelMap) and self.to_dict() == other.to_dict()

    def __hash__(self) -> int:
        return hash((self._labels, self.category_ids, self.names))

    def __len__(self) -> int:
        return len(self._labels)

    def __repr__(self) -> str:
        return f"LabelMap({len(self)} categories, num_labels={self.num_labels})"


def trimmed(name: str) -> str:
    """Returns a class name without blanks at its ends, which nobody sees; one of blanks alone stays."""
    return name.strip() or name


def note_on_blanks(names: Iterable[str]) -> tuple[str, ...]:
    """Returns a note on the names, as the data has them, that `trimmed` changes; empty where there are none."""
    changed = [name for name in dict.fromkeys(names) if trimmed(name) != name]
    names_are = counted(len(changed), "class name", "are")
    return (f"{names_are} read without blanks at the ends, as {brief(changed[0])}",) if changed else ()


def match_names(categories: dict[int, str], known: dict[int, str], source: str, of_known: str) -> dict[int, int]:
    """Returns {category id: id that `known` has for its name}, of categories that differ in id, or in capitals.

    It is empty where ids and names agree, or no name is known. Raises InputError where a name has several ids, or an
    id another name: then neither can be gone by.
    """
    ids: dict[str, list[int]] = {}
    for number, name in known.items():
        ids.setdefault(_folded(name), []).append(number)
    other = {number: name for number, name in categories.items() if known.get(number) != name}
    if not any(_folded(name) in ids for name in other.values()):
        return {}
    counts, matched = Counter(map(_folded, categories.values())), {}
    for number, name in other.items():
        here = ids.get(_folded(name), [])
        if here and len(here) == counts[_folded(name)] == 1:
            matched[number] = here[0]
        elif here or number in known:
            why = f"{name!r} has several ids" if here else f"category {number} is {known[number]!r} in {of_known}"
            raise InputError(f"{source}: category {number} is not to be matched by its name: {why}; make them agree")
    return matched


def _folded(name: str) -> str:
    """Returns a name without what tools write differently: capitals, blanks at the ends."""
    return unicodedata.normalize("NFC", name.strip().casefold())


def coco_names() -> dict[int, str]:
    """Returns COCO's 80 category names by id (1..90 with gaps)."""
    return {int(i): name for i, name in read_json(COCO_NAMES_FILE).items()}


def check_num_classes(
    given: int | None,
    label_map: LabelMap,
    said: str = "the data has",
    advice: str = "leave the flag out, it is read from the data",
) -> None:
    """Raises InputError unless --num-classes is the label map's count of classes, or its highest label.

    COCO's 80 reach up to 90. said, advice: of the message.
    """
    possible = sorted({len(label_map), label_map.num_labels - 1})
    if given is not None and given not in possible:
        raise InputError(
            f"--num-classes {given}: {said} {' or '.join(map(str, possible))} (without background); {advice}"
        )


def read_json(path: str | Path, object_hook: Callable[[list[tuple[str, Any]]], Any] = object_of) -> Any:
    """Parses a json file; InputError names the file and the place when it is missing or broken.

    object_hook: makes an object of its (key, value) pairs; the default refuses a key that is duplicated.
    """
    try:
        with open(path, encoding="utf-8-sig") as file, no_collection():  # Windows tools write a byte-order mark
            return json.load(file, object_pairs_hook=object_hook)
    except RepeatedKey as error:
        raise InputError(f"{path}: {error}; keep one of them") from error
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}") from error
    except (ValueError, RecursionError) as error:  # ValueError: also of integers with thousands of digits
        raise InputError(f"{path}: not valid json ({error}); download or export it again") from error
