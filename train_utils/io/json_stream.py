"""A large json file -> the elements of its long lists, in batches.

As Python objects a file takes six times its size in memory; read in batches it takes a few megabytes.
"""

import codecs
import gc
import re
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from json import JSONDecoder
from typing import Any, BinaryIO

CHUNK = 2**22  # bytes read at once
PORTION = 2**20  # characters whose objects are parsed at once, and handed over
BATCH = 2048  # objects handed over at once where they are parsed one by one
BLANK = re.compile(r"[ \t\n\r]*")
FOLLOWS = re.compile(r"[ \t\n\r]*,[ \t\n\r]*\{")
Scan = Callable[[str, int], tuple[Any, int]]  # text and where a value begins -> the value and where it ends
PLAIN: Scan = JSONDecoder().scan_once
(NAN,), _ = PLAIN("[NaN]", 0)  # the object that it reads each NaN as


class Unusual(Exception):
    """Not an object of lists of objects, or not json: to be read as a whole, which names the mistake."""


class RepeatedKey(Unusual):
    """A key of a json object is duplicated: which value is meant is unknown."""


def object_of(pairs: list[tuple]) -> dict:
    """Returns the dict of json's pairs; refuses a duplicated key, of which json.load would take the last value."""
    found = dict(pairs)
    if len(found) < len(pairs):
        key = next(key for key, times in Counter(key for key, _ in pairs).items() if times > 1)
        which = f"with id {found['id']}" if "id" in found else f"of {', '.join(found)}"
        raise RepeatedKey(f"key {key!r} is duplicated in the object {which[:200]}")
    return found


def plain_objects(text: str, scan: Scan = PLAIN) -> tuple[list[dict], int] | None:
    """Parses the objects, parted by commas, at the head of `text`, to its end or that of the list that they are in.

    Returns them as `object_of` makes them, without a call for each, and how many characters they are. None where that
    is not certain: json has a colon for each key, and dicts have fewer keys than that where one is duplicated.
    """
    try:
        found, end = scan(f"[{text}]", 0)
    except (StopIteration, ValueError, RecursionError):
        return None
    end -= 2  # both brackets
    return (found, end) if {*map(type, found)} == {dict} and _has_all_keys(found, text, end) else None


def objects_without(text: str, pattern: re.Pattern, key: str) -> tuple[list[dict], list[str]] | None:
    """Parses the objects that a text lists, NAN in place of each value of a key that a pattern finds.

    Returns them, and the text of the pattern's group each time. None where it finds nothing, or where it is not certain
    that these are all of the text (`plain_objects`), and that no other NaN is there, which would count as one of them.
    """
    pieces = pattern.split(text)
    rest, spelt = f'"{key}":NaN'.join(pieces[::2]), pieces[1::2]
    found = plain_objects(rest) if spelt and rest.count("NaN") == len(spelt) else None
    return None if found is None or found[1] < len(rest) else (found[0], spelt)


def _has_all_keys(found: list[dict], text: str, end: int) -> bool:
    """Returns whether the objects, and those right in them, certainly have as many keys as text[:end]."""
    keys, colons = sum(map(len, found)), text.count(":", 0, end)
    if keys < colons:
        keys += sum(len(value) for entry in found for value in entry.values() if type(value) is dict)
    if keys < colons:  # of which some stand in strings, as a URL's: that of a key follows a quotation mark or a blank
        colons = sum(text.count(before + ":", 0, end) for before in '" \t\n\r')
    return keys == colons


def read_lists(
    file: BinaryIO,
    lists: dict[str, Callable[[list], None]],
    seen: Callable[[bytes], object],
    texts: dict[str, Callable[[str], bool]] | None = None,
) -> list[str]:
    """Reads a json object from a binary file; returns its keys in the file's order.

    lists: key -> function that is called with each batch of the list's elements, all objects; seen: called with all
    bytes of the file, piece by piece. texts: key -> function that is offered the text of elements before they are
    parsed, and returns whether it takes them: it has to make sure, as `plain_objects` does, that they are whole.
    Raises Unusual unless the file is a json object that has each of these keys, and each key once; OSError as reading
    does.
    """
    text = _Text(file, seen)
    keys: dict[str, None] = {}
    text.expect("{")
    while True:
        key = text.value()
        if not isinstance(key, str) or key in keys:
            raise Unusual(f"key {key!r}")
        keys[key] = None
        text.expect(":")
        if key in lists:
            for batch in text.elements((texts or {}).get(key)):
                lists[key](batch)
        else:
            text.value()
        if text.separator() == "}":
            break
    if text.rest().strip(" \t\n\r") or not lists.keys() <= keys.keys():
        raise Unusual("text after the object, or a list is missing")
    return list(keys)


@contextmanager
def no_collection() -> Iterator[None]:
    """Suspends the search for cycles: parsed json has none, and the search would take half the time."""
    running = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if running:
            gc.enable()


class _Text:
    """The part of the file that is being read, from `at` on."""

    def __init__(self, file: BinaryIO, seen: Callable[[bytes], object]) -> None:
        self.file, self.seen = file, seen
        self.decoder = codecs.getincrementaldecoder("utf-8-sig")()
        self.text, self.at, self.ended = "", 0, False
        self.scan = JSONDecoder(object_pairs_hook=object_of).scan_once

    def more(self) -> None:
        """Reads another piece, at least as long as the rest of the text, so that a long value takes few pieces."""
        if self.ended:
            raise Unusual("it ends early")
        data = self.file.read(max(CHUNK, len(self.text) - self.at))
        self.seen(data)
        self.ended = not data
        try:
            new = self.decoder.decode(data, final=self.ended)
        except UnicodeDecodeError as error:
            raise Unusual("not UTF-8") from error
        self.text, self.at = self.text[self.at :] + new, 0

    def rest(self) -> str:
        """Returns the text up to the end of the file."""
        while not self.ended:
            self.more()
        return self.text[self.at :]

    def skip_blank(self) -> None:
        """Goes to the next character that is not blank."""
        while True:
            self.at = BLANK.match(self.text, self.at).end()
            if self.at < len(self.text):
                return
            self.more()

    def expect(self, character: str) -> None:
        """Goes past a character; raises Unusual for another."""
        self.skip_blank()
        if self.text[self.at] != character:
            raise Unusual(f"{character} is missing")
        self.at += 1

    def separator(self) -> str:
        """Returns the comma or bracket that follows."""
        self.skip_blank()
        self.at += 1
        if self.text[self.at - 1] not in ",]}":
            raise Unusual("no comma")
        return self.text[self.at - 1]

    def value(self) -> Any:
        """Returns the value that follows, of any type."""
        self.skip_blank()
        while True:
            try:
                value, end = self.scan(self.text, self.at)
            except (StopIteration, ValueError, RecursionError):
                end = len(self.text)  # cut off, or wrong
            if end < len(self.text):  # else a number may continue in the next piece
                self.at = end
                return value
            self.more()

    def elements(self, take: Callable[[str], bool] | None) -> Iterator[list]:
        """Yields the objects of a list, in batches; take: None, or a function of `texts`."""
        self.expect("[")
        self.skip_blank()
        separator = ","
        if self.text[self.at] == "]":
            separator = self.separator()
        plain = True  # until some can't be parsed at once: others of the list would be like them
        while separator == ",":
            self.skip_blank()
            portion = self._portion() if plain else ""
            if portion and take and take(portion):
                self.at += len(portion)
            elif portion and (found := plain_objects(portion)):
                self.at += found[1]
                yield found[0]
            else:
                plain = not portion and plain
                yield self._one_by_one()
            separator = self.separator()
        if separator != "]":
            raise Unusual("no bracket")

    def _portion(self) -> str:
        """Returns the text of the objects that follow, up to what seems to be a border of two; else nothing."""
        if len(self.text) - self.at < PORTION and not self.ended:
            self.more()
        end = self.at + PORTION
        while (end := self.text.rfind("}", self.at, end)) >= 0:
            if FOLLOWS.match(self.text, end + 1):
                return self.text[self.at : end + 1]
        return ""

    def _one_by_one(self) -> list:
        """Returns the objects that follow: at least one, more as far as the text goes."""
        if self.text[self.at] != "{":  # objects alone show where they end
            raise Unusual("not an object")
        batch = [self.value()]
        text, scan, follows = self.text, self.scan, FOLLOWS.match
        try:
            while len(batch) < BATCH and (found := follows(text, self.at)):
                value, self.at = scan(text, found.end() - 1)
                batch.append(value)
        except (StopIteration, ValueError, RecursionError):
            pass  # cut off, or wrong: `value` finds out
        return batch
