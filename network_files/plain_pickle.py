"""A pickle, read as data: an interpreter that imports nothing and calls nothing.

pickle itself is a program that may name any function and call it. Here a global stays a name, and a call is
handed to the reader that asked (`call`), which knows the few that its files need. Protocols 2 to 5, of which
numbers, texts, bytes, tuples, lists, dicts and what the reader builds are understood; all else is refused.
"""

import struct
from collections.abc import Callable
from typing import Any, NamedTuple

MAX_STEPS = 1_000_000  # opcodes; a checkpoint of the largest ResNet with momentum and average has 200,000
MAX_NODES = 2_000_000  # values, counted once for each place that shows them: lists may be shared, and nested so
MAX_DEPTH = 50
FIXED = {  # opcode -> struct format of its number
    b"K": "<B", b"M": "<H", b"J": "<i", b"G": ">d", b"h": "<B", b"j": "<I", b"q": "<B", b"r": "<I",
    b"\x80": "<B", b"\x95": "<Q",
}
COUNTED = {  # opcode -> struct format of the length of what follows
    b"U": "<B", b"X": "<I", b"\x8c": "<B", b"\x8d": "<Q", b"C": "<B", b"B": "<I", b"\x8e": "<Q", b"\x96": "<Q",
    b"\x8a": "<B",
}
CONSTANTS = {b"N": None, b"\x88": True, b"\x89": False, b")": ()}
KEYS = (str, bytes, int, float, type(None))  # whose hashes take no longer than their bytes


class PickleRefused(ValueError):
    """What is wrong with a pickle, or what it asks for that no data needs."""


class Name(NamedTuple):
    """A global that a pickle names; nothing was imported."""

    module: str
    name: str

    def __str__(self):
        return f"{self.module}.{self.name}"


class Built:
    """What a call made; `update` takes in the state that a pickle gives it afterwards (`BUILD`)."""

    def update(self, state) -> None:
        raise PickleRefused(f"sets the state of a {type(self).__name__.lower()}")


def interpret(data, known: Callable[[Name], bool], call: Callable[[Name, tuple], Any], at: int = 0,
              persistent: Callable[[Any], Any] | None = None) -> tuple[Any, int]:
    """(value, where it ended) of the pickle that begins at `at` in `data` (bytes, or a map of a file).

    known: which globals may be named; call: (such a name, arguments) -> value; persistent: the same for a
    persistent id. Both may raise PickleRefused, as this does for anything but plain data, and for what would take
    more than MAX_STEPS.
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


class _Machine:
    def __init__(self, data, at, known, call, persistent):
        self.data, self.at, self.known, self.call, self.persistent = data, at, known, call, persistent
        self.stack: list = []
        self.marks: list[int] = []  # where on the stack
        self.memo: dict[int, Any] = {}

    def run(self):
        stack = self.stack
        for _ in range(MAX_STEPS):
            code = self.data[self.at : self.at + 1]
            self.at += 1
            if code in FIXED:
                self._number(code)
            elif code in COUNTED:
                stack.append(self._counted(code))
            elif code in CONSTANTS:
                stack.append(CONSTANTS[code])
            elif code == b".":
                (value,) = stack
                return value
            else:
                self._step(code)
        raise PickleRefused(f"has more than {MAX_STEPS} steps")

    def _take(self, count: int):
        if count > len(self.data) - self.at:
            raise PickleRefused("ends early")
        self.at += count
        return self.data[self.at - count : self.at]

    def _number(self, code):
        (number,) = struct.unpack(FIXED[code], self._take(struct.calcsize(FIXED[code])))
        if code in b"hj":
            self.stack.append(self.memo[number])
        elif code in b"qr":
            self.memo[number] = self.stack[-1]
        elif code in b"KMJG":
            self.stack.append(number)
        elif code == b"\x80" and number > 5:
            raise PickleRefused(f"has protocol {number}, known are 2 to 5")

    def _counted(self, code):
        (length,) = struct.unpack(COUNTED[code], self._take(struct.calcsize(COUNTED[code])))
        content = self._take(length)
        if code in b"UX\x8c\x8d":
            return content.decode("utf-8", "surrogatepass")
        return int.from_bytes(content, "little", signed=True) if code == b"\x8a" else content

    def _step(self, code):
        stack = self.stack
        if code == b"(":
            self.marks.append(len(stack))
        elif code == b"]":
            stack.append([])
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
        elif code == b"Q" and self.persistent is not None:
            stack.append(self.persistent(stack.pop()))
        else:
            raise PickleRefused(f"uses opcode {bytes(code)!r} at byte {self.at - 1}, which no data needs")

    def _marked(self) -> list:
        at = self.marks.pop()
        values = self.stack[at:]
        del self.stack[at:]
        return values

    def _top(self, kind):
        """The container to fill: a dict, a list, or one that a reader built as such."""
        if not isinstance(self.stack[-1], kind):
            raise PickleRefused(f"fills a {type(self.stack[-1]).__name__} as if it were a {kind.__name__}")
        return self.stack[-1]

    def _set(self, target, values):
        for key, value in zip(values[::2], values[1::2], strict=True):
            if not isinstance(key, KEYS):
                raise PickleRefused(f"has a {type(key).__name__} as the key of a dict")
            target[key] = value

    def _update(self, target, state):
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

    def _name(self, module, name) -> Name:
        if not isinstance(module, str) or not isinstance(name, str):
            raise PickleRefused("names a global by something else than text")
        name = Name(module, name)
        if not self.known(name):
            raise PickleRefused(f"names {ascii(str(name))[1:81]}, which such a file has no use for; nothing was run")
        return name


def check_tree(value) -> None:
    """PickleRefused where lists within lists, shared or in a circle, unfold to more than anyone can look at."""
    waiting, count = [(value, 0)], 0
    while waiting:
        value, depth = waiting.pop()
        if isinstance(value, dict | list | tuple):
            count += len(value)
            if depth > MAX_DEPTH or count > MAX_NODES:
                raise PickleRefused(f"is nested more than {MAX_DEPTH} deep, or unfolds to more than {MAX_NODES} values")
            waiting += [(part, depth + 1) for part in (value.values() if isinstance(value, dict) else value)]
