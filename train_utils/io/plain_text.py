"""Text from files, as it may be shown: no control characters, no endless values."""

import re
import reprlib

# of a terminal (C0, C1), line and paragraph separators, and those that turn the direction of text
CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")
LONGEST = 1500  # characters of a line
_brief = reprlib.Repr()
_brief.maxlevel, _brief.maxstring, _brief.maxother, _brief.maxlist, _brief.maxdict = 3, 80, 80, 6, 6


def visible(text: str) -> str:
    """`text` with control characters as escapes (`\\x1b`), so that it neither steers a terminal nor breaks a line."""
    return CONTROL.sub(lambda found: repr(found[0])[1:-1], text)


def encodable(text: str) -> str:
    """`visible`, and as UTF-8 can have it: file names may hold bytes that are no text."""
    return visible(text).encode(errors="backslashreplace").decode()


def brief(value) -> str:
    """repr of a value from a file, cut where it is long or deep."""
    return _brief.repr(value)


def shown(value) -> str:
    """`brief`, of a text without its quotes."""
    return visible(value)[:80] if isinstance(value, str) else brief(value)


def one_line(text: str) -> str:
    """`text` for a line of its own: blanks joined, visible, and its middle left out where it is very long."""
    line = visible(" ".join(text.split()))
    return line if len(line) <= LONGEST else f"{line[: LONGEST // 2]} ... {line[-LONGEST // 2 :]}"
