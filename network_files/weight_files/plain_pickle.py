"""A pickle -> plain data, by an interpreter that imports nothing and calls nothing.

A pickle is a program that may name any function and call it. Here a global stays a name, and a call is
handed to the reader that asked (`call`), which knows the few that its files need. Of protocols 2 to 5 it understands
numbers, texts, bytes, tuples, lists, dicts and what the reader builds; it refuses all else.
"""

import mmap
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

Data = bytes | mmap.mmap

MAX_STEPS = 250_000  # opcodes; a checkpoint of ResNet-152 with momentum and average has 62,000
MAX_NODES = 250_000  # values, counted once for each place that shows them: lists may be shared, and nested by that
MAX_DEPTH = 50
NUMBERS = {  # opcode -> how its number is packed, and how many bytes that takes
    ord(code): (struct.Struct(form).unpack_from, struct.calcsize(form))
    for code, form in {"K": "<B", "M": "<H", "J": "<i", "G": ">d"}.items()
}
COUNTED = {  # opcode -> bytes of the length of what follows
    **dict.fromkeys(b"U\x8cC\x8a", 1),
    **dict.fromkeys(b"XB", 4),
    **dict.fromkeys(b"\x8d\x8e\x96", 8),
}
TEXTS = frozenset(b"UX\x8c\x8d")
GET, PUT = {ord("h"): 1, ord("j"): 4}, {ord("q"): 1, ord("r"): 4}
CONSTANTS = {ord("N"): None, 0x88: True, 0x89: False, ord(")"): ()}
KEYS = (str, bytes, int, float, type(None))  # whose hashes take no longer than their bytes


class PickleRefused(ValueError):
    """What is wrong with a pickle, or what it asks for that no data needs."""


class Name(NamedTuple):
    """A global that a pickle names; nothing was imported."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


class Built:
    """What a call made."""

    def update(self, state: Any) -> None:
        """Takes the state that a pickle gives it afterwards (`BUILD`). Raises PickleRefused: most have none."""
        raise PickleRefused(f"sets the state of a {type(self).__name__.lower()}")


def interpret(
    data: Data,
    known: Callable[[Name], bool],
    call: Callable[[Name, tuple], Any],
    at: int = 0,
    persistent: Callable[[Any], Any] | None = None,
) -> tuple[Any, int]:
    """Returns the value of the pickle that begins at `at` in `data`, and where it ends.

    known: which globals may be named; call: (such a name, arguments) -> value; persistent: the same for a persistent
    id. Raises PickleRefused, as these may, for anything but plain data, and for what would take more than MAX_STEPS.
    """
    machine = _Machine(data, at, known, call, persistent)
    try:
        value = machine.run()
    except PickleRefused:
        raise
    except (IndexError, KeyError, TypeError, ValueError, struct.error) as error:
        raise PickleRefused(f"not a sound pickle ({type(error).__name__} at byte {machine.at})") from error
    check_tree(value)
    return value, machine.at


@dataclass
class _Machine:
    """The stack, marks and memo of one pickle."""

    data: Data
    at: int
    known: Callable[[Name], bool]
    call: Callable[[Name, tuple], Any]
    persistent: Callable[[Any], Any] | None
    stack: list = field(default_factory=list)
    marks: list[int] = field(default_factory=list)  # where on the stack
    memo: dict[int, Any] = field(default_factory=dict)

    def run(self) -> Any:
        """Runs the pickle to its end; returns its value."""
        stack, memo, data = self.stack, self.memo, self.data
        for _ in range(MAX_STEPS):
            code = data[self.at]
            self.at += 1
            if code in PUT:
                memo[int.from_bytes(self._take(PUT[code]), "little")] = stack[-1]
            elif code in NUMBERS:
                unpack, size = NUMBERS[code]
                stack.append(unpack(self._take(size))[0])
            elif code in COUNTED:
                stack.append(self._counted(code))
            elif code in GET:
                stack.append(memo[int.from_bytes(self._take(GET[code]), "little")])
            elif code in CONSTANTS:
                stack.append(CONSTANTS[code])
            elif code == 0x5D:
                stack.append([])
            elif code == 0x2E:
                (value,) = stack
                return value
            else:
                self._step(bytes([code]))
        raise PickleRefused(f"has more than {MAX_STEPS} steps")

    def _take(self, count: int) -> bytes:
        if count > len(self.data) - self.at:
            raise PickleRefused("ends early")
        self.at += count
        return self.data[self.at - count : self.at]

    def _counted(self, code: int) -> str | bytes | int:
        content = self._take(int.from_bytes(self._take(COUNTED[code]), "little"))
        if code in TEXTS:
            return content.decode("utf-8", "surrogatepass")
        return int.from_bytes(content, "little", signed=True) if code == 0x8A else content

    def _step(self, code: bytes) -> None:
        stack = self.stack
        if code == b"(":
            self.marks.append(len(stack))
        elif code == b"}":
            stack.append({})
        elif code == b"\x94":
            self.memo[len(self.memo)] = stack[-1]
        elif code == b"t":
            stack.append(tuple(self._marked()))
        elif code in (b"\x85", b"\x86", b"\x87"):
            count = code[0] - 0x84
            stack[-count:] = [tuple(stack[-count:])]
        elif code in (b"a", b"e"):
            values = [stack.pop()] if code == b"a" else self._marked()
            self._top(list).extend(values)
        elif code in (b"s", b"u"):
            values = [stack.pop(), stack.pop()][::-1] if code == b"s" else self._marked()
            self._set(self._top(dict), values)
        elif code in (b"c", b"\x93"):
            module, name = self._lines() if code == b"c" else [stack.pop(), stack.pop()][::-1]
            stack.append(self._name(module, name))
        elif code in (b"R", b"\x81"):
            arguments, name = stack.pop(), stack.pop()
            if not isinstance(name, Name) or not isinstance(arguments, tuple):
                raise PickleRefused("calls what is no function")
            stack.append(self.call(name, arguments))
        elif code == b"b":
            state = stack.pop()
            self._update(stack[-1], state)
        elif code == b"\x80":
            if self._take(1) > b"\x05":
                raise PickleRefused("has a protocol above 5")
        elif code == b"\x95":  # a frame: how long the next part is, which only readers of streams need
            self._take(8)
        elif code == b"Q" and self.persistent is not None:
            stack.append(self.persistent(stack.pop()))
        else:
            raise PickleRefused(f"uses opcode {code!r} at byte {self.at - 1}, which no data needs")

    def _marked(self) -> list:
        at = self.marks.pop()
        values = self.stack[at:]
        del self.stack[at:]
        return values

    def _top(self, kind: type) -> Any:
        """Returns the container to fill: a dict, a list, or one that a reader built as such."""
        if not isinstance(self.stack[-1], kind):
            raise PickleRefused(f"fills a {type(self.stack[-1]).__name__} as if it were a {kind.__name__}")
        return self.stack[-1]

    def _set(self, target: dict, values: list) -> None:
        for key, value in zip(values[::2], values[1::2], strict=True):
            if not isinstance(key, KEYS):
                raise PickleRefused(f"has a {type(key).__name__} as the key of a dict")
            target[key] = value

    def _update(self, target: Any, state: Any) -> None:
        if isinstance(target, Built):
            target.update(state)
        elif not isinstance(target, dict):  # an OrderedDict's attributes, such as a state dict's _metadata
            raise PickleRefused(f"sets the state of a {type(target).__name__}")

    def _lines(self) -> tuple[str, str]:
        end = self.data.find(b"\n", self.at, self.at + 200)
        stop = self.data.find(b"\n", end + 1, end + 201)
        if end < 0 or stop < 0:
            raise PickleRefused("ends early")
        words = self.data[self.at : end].decode(), self.data[end + 1 : stop].decode()
        self.at = stop + 1
        return words

    def _name(self, module: Any, name: Any) -> Name:
        if not isinstance(module, str) or not isinstance(name, str):
            raise PickleRefused("names a global by something else than text")
        name = Name(module, name)
        if not self.known(name):
            shown = ascii(str(name))[1:-1][:80]
            raise PickleRefused(f"names {shown}, which such a file has no use for; nothing was run")
        return name


def check_tree(value: Any) -> None:
    """Raises PickleRefused where lists within lists, shared or in a circle, unfold to more than anyone can look at."""
    waiting, count = [(value, 0)], 0
    while waiting:
        value, depth = waiting.pop()
        if isinstance(value, dict | list | tuple):
            parts = value.values() if isinstance(value, dict) else value
            count += len(value)
            if depth > MAX_DEPTH or count > MAX_NODES:
                raise PickleRefused(f"is nested more than {MAX_DEPTH} deep, or unfolds to more than {MAX_NODES} values")
            waiting += [(part, depth + 1) for part in parts if isinstance(part, dict | list | tuple)]
