"""Values from files and of runs -> text that is safe to show and to store: no control characters, one line."""

import json
import math
import os
import re
import reprlib
import shlex
from collections.abc import Mapping
from typing import Any

# of a terminal (C0, C1), line and paragraph separators, and those that turn the direction of text
CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")
IN_QUOTES = re.compile(CONTROL.pattern[:-1] + "\ud800-\udfff\\\\']")  # what needs an escape there
LONGEST = 1500  # characters of a line
OF_ONE = {"are": "is", "have": "has", "cannot": "cannot"}  # verbs that do not add an s
NOUNS = ("annotation", "file", "id", "image", "instance", "line", "object", "polygon", "shape", "split")
SINGULAR = {f"{noun}s": noun for noun in NOUNS} | {"classes": "class"}
_brief = reprlib.Repr()
_brief.maxlevel, _brief.maxstring, _brief.maxother, _brief.maxlist, _brief.maxdict = 3, 80, 80, 6, 6


def visible(text: str) -> str:
    """Returns `text` with control characters as escapes: it neither steers a terminal nor breaks a line."""
    return CONTROL.sub(lambda found: repr(found[0])[1:-1], text)


def pasted(*words: object) -> str:
    """Returns words of a command as a shell takes them: quoted where need be, control characters as escapes."""
    return " ".join(map(_quoted, map(str, words)))


def _quoted(word: str) -> str:
    if encodable(word) == word:
        return shlex.quote(word)
    # $'...', as bash, zsh and ksh read it
    escaped = IN_QUOTES.sub(lambda found: "".join(f"\\x{byte:02x}" for byte in os.fsencode(found[0])), word)
    return f"$'{escaped}'"


def encodable(text: str) -> str:
    """Returns `visible` text that UTF-8 can encode: file names may hold bytes that are no text."""
    return visible(text).encode(errors="backslashreplace").decode()


def brief(value: Any) -> str:
    """Returns the repr of a value from a file, cut where it is long or deep."""
    return _brief.repr(value)


def shown(value: Any) -> str:
    """Returns `brief` of a value, without quotes where it is a text."""
    return visible(value)[:80] if isinstance(value, str) else brief(value)


def one_line(text: str) -> str:
    """Returns `text` as one line: blanks joined, visible, and its middle left out where it is very long."""
    line = visible(" ".join(text.split()))
    return line if len(line) <= LONGEST else f"{line[: LONGEST // 2]} ... {line[-LONGEST // 2 :]}"


def counted(count: int, what: str, verb: str = "") -> str:
    """Returns "1 object", "1,000 objects", "2 classes"; with the verb "are" "1 object is", "2 objects are"."""
    if count == 1:
        return f"1 {what} {OF_ONE.get(verb, f'{verb}s')}" if verb else f"1 {what}"
    plural = f"{what[:-1]}ies" if what.endswith("ry") else f"{what}{'es' if what.endswith(('s', 'x')) else 's'}"
    return f"{count:,} {plural}{f' {verb}' if verb else ''}"


def of_several(count: int, what: str) -> str:
    """Returns a plural that goes on, for so many: (1, "files that are not listed") -> "file that is not listed"."""
    words = what.split(" ")
    at = next((k for k, word in enumerate(words[:2]) if word in SINGULAR), None)
    if count != 1 or at is None:
        return what
    words[at] = SINGULAR[words[at]]
    that, verb = words[at + 1 : at + 2] == ["that"], at + 1
    if that or words[verb : verb + 1] == ["are"]:
        verb += that
        words[verb] = OF_ONE.get(words[verb], f"{words[verb]}s")
    return " ".join(words)


def json_text(value: Any) -> str:
    """Returns a plain value as one line of json; null stands for NaN and infinity, which json does not have."""
    return json.dumps(_finite(value), allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _finite(v) for name, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
