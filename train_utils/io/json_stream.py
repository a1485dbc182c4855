"""Large json files, read piece by piece: the elements of their long lists, never the whole.

A file of half a gigabyte takes six times as much memory as Python objects; read this way it takes a few
megabytes at a time.
"""

import codecs
import gc
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from json import JSONDecoder

CHUNK = 2**22  # bytes read at once
BATCH = 2048  # elements handed over at once
BLANK = re.compile(r"[ \t\n\r]*")
FOLLOWS = re.compile(r"[ \t\n\r]*,[ \t\n\r]*\{")


class Unusual(Exception):
    """Not an object of lists of objects, or not json at all: to be read as a whole, which names a mistake."""


class RepeatedKey(Unusual):
    """A json object has a key twice; which of the values is meant cannot be known."""


def object_of(pairs: list[tuple]) -> dict:
    """json's object_pairs_hook that refuses a key that stands twice, of which json.load takes the last."""
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        key = next(key for key in keys if keys.count(key) > 1)
        which = f"with id {found['id']}" if "id" in found else f"of {', '.join(found)}"
        raise RepeatedKey(f"key {key!r} stands twice in the object {which[:200]}")
    return found


def read_lists(file, lists: dict[str, Callable[[list], None]], seen: Callable[[bytes], None]) -> list[str]:
    """Read a json object from a binary file, and hand the lists under some of its keys over in batches.

    lists: key -> function that gets one batch of the list's elements, objects all, after the other; seen: gets
    all bytes of the file. Returns the object's keys in the file's order. Raises Unusual where the file is
    anything else than an object with these keys, each once, or is not json; OSError as reading does.
    """
    text = _Text(file, seen)
    keys: list[str] = []
    text.expect("{")
    while True:
        key = text.value()
        if not isinstance(key, str) or key in keys:
            raise Unusual(f"key {key!r}")
        keys.append(key)
        text.expect(":")
        if key in lists:
            for batch in text.elements():
                lists[key](batch)
        else:
            text.value()
        if text.separator() == "}":
            break
    if text.rest().strip(" \t\n\r") or not lists.keys() <= set(keys):
        raise Unusual("it goes on, or lacks a list")
    return keys


@contextmanager
def no_collection() -> Iterator[None]:
    """Leave the search for cycles out: parsed json has none, and searching a million lists takes half the time."""
    running = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if running:
            gc.enable()


class _Text:
    """The part of the file that is being read, from `at` on."""

    def __init__(self, file, seen):
        self.file, self.seen = file, seen
        self.decoder = codecs.getincrementaldecoder("utf-8-sig")()
        self.text, self.at, self.ended = "", 0, False
        self.scan = JSONDecoder(object_pairs_hook=object_of).scan_once

    def more(self) -> None:
        """Read on; a value that needs a second piece gets one as long as what there is."""
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
        while not self.ended:
            self.more()
        return self.text[self.at :]

    def skip_blank(self) -> None:
        while True:
            self.at = BLANK.match(self.text, self.at).end()
            if self.at < len(self.text):
                return
            self.more()

    def expect(self, character: str) -> None:
        self.skip_blank()
        if self.text[self.at] != character:
            raise Unusual(f"{character} is missing")
        self.at += 1

    def separator(self) -> str:
        """The comma or bracket that follows."""
        self.skip_blank()
        self.at += 1
        if self.text[self.at - 1] not in ",]}":
            raise Unusual("no comma")
        return self.text[self.at - 1]

    def value(self):
        """The value that follows, whatever it is."""
        self.skip_blank()
        while True:
            try:
                value, end = self.scan(self.text, self.at)
            except (StopIteration, ValueError, RecursionError):
                end = len(self.text)  # cut off, or wrong
            if end < len(self.text):  # else a number may go on in the next piece
                self.at = end
                return value
            self.more()

    def elements(self) -> Iterator[list]:
        """The objects of a list, in batches."""
        self.expect("[")
        self.skip_blank()
        separator = ","
        if self.text[self.at] == "]":
            separator = self.separator()
        while separator == ",":
            batch: list = []
            while separator == "," and len(batch) < BATCH:
                self.skip_blank()
                if self.text[self.at] != "{":  # objects alone show where they end
                    raise Unusual("not an object")
                batch.append(self.value())
                self._scan_on(batch)
                separator = self.separator()
            yield batch
        if separator != "]":
            raise Unusual("no bracket")

    def _scan_on(self, batch: list) -> None:
        """The objects that follow as far as they are in the text: the quick way through nearly all of them."""
        text, scan, follows = self.text, self.scan, FOLLOWS.match
        try:
            while len(batch) < BATCH and (found := follows(text, self.at)):
                value, self.at = scan(text, found.end() - 1)
                batch.append(value)
        except (StopIteration, ValueError, RecursionError):
            return  # cut off, or wrong: `value` finds out
