"""A data.yaml -> its entries, as text, lists and dicts of text; the part of YAML that such files use.

An own reader, as no package that the project needs brings one, and as YAML's own rules would make True of a class
called yes and 1.0 of one called 1.0. Entries that are not asked for are passed over, whatever they hold.
"""

import re
from pathlib import Path
from typing import NamedTuple

from backbone.errors import InputError
from train_utils.io.files import read_text
from train_utils.io.plain_text import brief, visible

Value = str | list[str] | dict[str, str] | None
KEY = re.compile(r"""("(?:[^"\\]|\\.)*"|'(?:[^']|'')*'|[^\s#'"\[\]{},][^#]*?)\s*:(?:\s+(.*)|$)""")
# of an inline list or dict, or a whole value: what is quoted, or runs up to the next mark
QUOTED = r'"(?:[^"\\]|\\.)*"' + r"|'(?:[^']|'')*'"
TOKEN = re.compile(rf"\s*((?:[^\s\[\]{{}},'\":]+:\s+)?(?:{QUOTED})|[\[\]{{}},]|[^\s\[\]{{}},'\"][^\[\]{{}},]*)")
UNREAD = ("&", "*", "!", "|", ">", "%", "@", "`")  # marks of anchors, tags, texts of several lines
ESCAPE = re.compile(r"\\(?:x([\da-fA-F]{2})|u([\da-fA-F]{4})|U(000[\da-fA-F]{5}|0010[\da-fA-F]{4})|(.))")
ESCAPES = {"n": "\n", "t": "\t", '"': '"', "\\": "\\", "/": "/"}


class Line(NamedTuple):
    """A line that is neither empty nor a comment: its number from 1, blanks before it, its text without comment."""

    number: int
    indent: int
    text: str


def read_yaml(path: Path, wanted: tuple[str, ...]) -> dict[str, Value]:
    """Reads the wanted entries of the top level; None for an empty one. InputError names file and line."""
    lines, entries = _lines(path), {}
    while lines:
        line = lines.pop(0)
        found = KEY.fullmatch(line.text)
        if line.indent or not found:
            raise _error(path, line, 'is no entry "name: value" of the top level')
        key, rest = _scalar(path, line, found[1]), found[2] or ""
        below = []
        while lines and (lines[0].indent or lines[0].text.startswith(("- ", "]", "}")) or lines[0].text == "-"):
            below.append(lines.pop(0))
        if key not in wanted:
            continue
        if key in entries:
            raise _error(path, line, f"{key} is there twice; keep one of them")
        entries[key] = _value(path, line._replace(text=rest), below)
    return entries


def _lines(path: Path) -> list[Line]:
    lines = []
    for number, raw in enumerate(read_text(path).removeprefix("\ufeff").splitlines(), 1):
        text = _without_comment(raw).rstrip()
        if not text.strip() or text in ("---", "..."):
            continue
        indent = len(text) - len(text.lstrip(" "))
        lines.append(Line(number, indent, text.strip()))
        if text[indent] == "\t":
            raise _error(path, lines[-1], "begins with a tab; YAML wants blanks")
    return lines


def _without_comment(text: str) -> str:
    """Returns a line without its comment: a # at the start, or after a blank and outside quotes."""
    quote = ""
    for i, character in enumerate(text):
        if quote:
            quote = "" if character == quote and not (quote == '"' and text[i - 1] == "\\") else quote
        elif character in "'\"" and (i == 0 or text[i - 1] in " [{,:-" or character == text[i - 1] == "'"):
            quote = character  # two in single quotes are one that is meant
        elif character == "#" and (i == 0 or text[i - 1] in " \t"):
            return text[:i]
    return text


def _value(path: Path, line: Line, below: list[Line]) -> Value:
    """Returns the value of an entry: what stands behind its colon, and the lines below it."""
    if line.text[:1] in ("[", "{"):
        text = " ".join([line.text, *(each.text for each in below)])
        return _inline(path, line, text)
    if line.text and below:
        raise _error(path, below[0], "is not read as part of the value above; write it in one line, or as a list")
    if not below:
        return _scalar(path, line, line.text) if line.text else None
    if below[0].text.startswith("-"):
        return [_item(path, each) for each in below]
    return dict(_pairs(path, [_pair(path, each, below[0].indent) for each in below], below))


def _item(path: Path, line: Line) -> str:
    if not line.text.startswith("-") or (len(line.text) > 1 and line.text[1] != " "):
        raise _error(path, line, 'is no item "- value" of a list')
    return _scalar(path, line, line.text[1:].strip())


def _pair(path: Path, line: Line, indent: int) -> tuple[str, str]:
    found = KEY.fullmatch(line.text)
    if not found or line.indent != indent or not found[2]:
        raise _error(path, line, 'is no entry "name: value"')
    return _scalar(path, line, found[1]), _scalar(path, line, found[2])


def _pairs(path: Path, pairs: list[tuple[str, str]], lines: list[Line]) -> list[tuple[str, str]]:
    seen: set[str] = set()
    for (key, _), line in zip(pairs, lines, strict=True):
        if key in seen:
            raise _error(path, line, f"{key} is there twice; keep one of them")
        seen.add(key)
    return pairs


def _inline(path: Path, line: Line, text: str) -> list[str] | dict[str, str]:
    """Reads [a, b] or {0: a, 1: b}."""
    tokens, at = [], 0
    while at < len(text) and (found := TOKEN.match(text, at)):
        tokens.append(found[1].strip())
        at = found.end()
    close = {"[": "]", "{": "}"}[tokens[0]]
    inner = tokens[1:-1]
    nested = any(token in "[]{}" for token in inner)
    if text[at:].strip() or len(tokens) < 2 or tokens[-1] != close or nested:
        raise _error(path, line, f"is no list or dict that ends with {close}")
    items, between = [], True  # a comma, or the start, comes before each item but for a dict's quoted names
    for token in inner:
        if token == ",":
            between = True
        elif between:
            items.append(token)
            between = False
        else:
            items[-1] += token
    if close == "]":
        return [_scalar(path, line, item) for item in items]
    pairs = [
        _pair(path, line._replace(text=item.replace(":", ": ", 1) if ": " not in item else item), line.indent)
        for item in items
    ]
    return dict(_pairs(path, pairs, [line] * len(pairs)))


def _scalar(path: Path, line: Line, text: str) -> str:
    """Returns a text as it is meant: without quotes."""
    if re.fullmatch(r'"(?:[^"\\]|\\.)*"', text):
        text = ESCAPE.sub(_unescaped, text[1:-1])
        # json escapes a character beyond 16 bits as two surrogates
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    if re.fullmatch(r"'(?:[^']|'')*'", text):
        return text[1:-1].replace("''", "'")
    if text.startswith(UNREAD) or text.startswith(("'", '"')):
        raise _error(path, line, f"{brief(text)} is YAML that is not read here; write the value itself, quotes closed")
    return text


def _unescaped(found: re.Match) -> str:
    """Returns what an escape in double quotes stands for."""
    code = found[1] or found[2] or found[3]
    return chr(int(code, 16)) if code else ESCAPES.get(found[4], found[0])


def _error(path: Path, line: Line, what: str) -> InputError:
    return InputError(visible(f"{path}: line {line.number}: {what}"))
