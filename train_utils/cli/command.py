"""What every command shares: how flags are spelled, the model's flags, the device, the exit status."""

from __future__ import annotations

import argparse
import dataclasses
import os
import sys
import types
import typing
from collections.abc import Callable, Sequence

import torch

from backbone.errors import InputError
from network_files import MaskRCNNConfig
from train_utils.io.memory import LESS_MEMORY, first_line, is_lack_of_memory
from train_utils.io.plain_text import one_line

EXIT_OK, EXIT_SOME_UNUSABLE, EXIT_WRONG_INPUT, EXIT_INTERRUPTED = 0, 1, 2, 130
FEWER_WORKERS = (
    "killed: most likely the machine has too little memory, give fewer --workers (0: none); bus error: /dev/shm is "
    "full; then --resume auto"
)
NONE = "none"  # how a flag says "off" for a field that may be None; an absent flag is Python's None


class Parser(argparse.ArgumentParser):
    """ArgumentParser in which `--batch_size` is `--batch-size`, and an error is one line, exit status 2.

    Flags are added with `-`. Abbreviated flags are refused: `--min` must not become `--min-size`. What it
    returns also has `given`, the names of the flags that were given.
    """

    def __init__(self, *args, **kwargs) -> None:
        kwargs.setdefault("prog", _program())
        kwargs.setdefault("allow_abbrev", False)
        kwargs.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        super().__init__(*args, **kwargs)

    def parse_known_args(self, args: Sequence[str] | None = None, namespace=None):
        words = [_dashed(word) for word in (sys.argv[1:] if args is None else args)]
        parsed, left = super().parse_known_args(words, namespace)
        parsed.given = self._given(words)
        return parsed, left

    def _given(self, words: list[str]) -> frozenset[str]:
        """The names of the flags among the words, whatever their values."""
        defaults = [(action, action.default) for action in self._actions]
        for action, _ in defaults:
            action.default = argparse.SUPPRESS
        try:
            return frozenset(vars(super().parse_known_args(words)[0]))
        finally:
            for action, default in defaults:
                action.default = default

    def error(self, message: str) -> typing.NoReturn:
        self.exit(EXIT_WRONG_INPUT, f"error: {message} ({self.prog} --help lists the flags)\n")


def _program() -> str:
    """How this program was started: `python train.py`, `python -m tools.check_data`."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)  # None of a script
    module = spec and spec.name.removesuffix(".__main__")
    return f"python -m {module}" if module else f"python {os.path.basename(sys.argv[0])}"


def _dashed(word: str) -> str:
    """`--min_size=1_0` -> `--min-size=1_0`; what is not a flag stays as it is."""
    if not word.startswith("--"):
        return word
    name, equals, value = word.partition("=")
    return name.replace("_", "-") + equals + value


def parse_bool(text: str) -> bool:
    """`True` / `False` in any case, and yes/no, on/off, 1/0; raises argparse.ArgumentTypeError otherwise."""
    word = text.lower()
    if word in ("true", "yes", "on", "1"):
        return True
    if word in ("false", "no", "off", "0"):
        return False
    raise argparse.ArgumentTypeError(f"{text!r} is neither True nor False")


def add_flag(parser, name: str, default: bool | None = False, help: str = "") -> None:
    """Add a boolean flag: `--amp`, `--amp True` and `--amp False` all mean what they say."""
    parser.add_argument(name, nargs="?", const=True, default=default, type=parse_bool, metavar="True|False", help=help)


def positive_int(text: str) -> int:
    """A whole number of at least 1; the type of `--batch-size` and its like."""
    return _bounded(text, int, lambda v: v >= 1, "a whole number of at least 1")


def non_negative_int(text: str) -> int:
    """A whole number of at least 0; the type of `--workers` and its like."""
    return _bounded(text, int, lambda v: v >= 0, "a whole number of at least 0")


def seed(text: str) -> int:
    """A whole number that torch's generators take; the type of `--seed`."""
    return _bounded(text, int, lambda v: 0 <= v < 2**63, "a whole number of at least 0, below 2^63")


def positive_float(text: str) -> float:
    """A finite number above 0; the type of `--lr` and its like."""
    return _bounded(text, float, lambda v: 0 < v < float("inf"), "a number above 0")


def times(text: str) -> float:
    """A finite number of at least 1; the type of `--expand`."""
    return _bounded(text, float, lambda v: 1 <= v < float("inf"), "a number of at least 1")


def fraction(text: str) -> float:
    """A number in 0..1; the type of thresholds."""
    return _bounded(text, float, lambda v: 0 <= v <= 1, "a number between 0 and 1")


def _bounded(text: str, kind: type, accepts: Callable[[float], bool], wanted: str):
    try:
        value = kind(text)
    except ValueError:
        value = None
    if value is None or not accepts(value):
        raise argparse.ArgumentTypeError(f"{text!r} is not {wanted}")
    return value


# --- the model's flags -------------------------------------------------------------------------------------


def add_config_arguments(parser: argparse.ArgumentParser) -> None:
    """Add one flag per field of MaskRCNNConfig (`num_classes` apart), all with None as default.

    Type and number of values follow from the field's annotation, the help text from its metadata
    ("help", and "choices" where the field has them).
    """
    group = parser.add_argument_group("model (fields of MaskRCNNConfig)")
    hints = typing.get_type_hints(MaskRCNNConfig)
    for field in _config_fields():
        kind, count, optional = _value_type(hints[field.name])
        help_text = _help_text(field, optional)
        name = "--" + field.name.replace("_", "-")
        if kind is bool:
            add_flag(group, name, default=None, help=help_text)
            continue
        group.add_argument(
            name,
            nargs=count,
            type=_none_or(kind) if optional else kind,
            default=None,
            choices=_choices(field, optional),
            metavar=None if "choices" in field.metadata else kind.__name__.upper(),
            help=help_text,
        )


def config_from_args(args: argparse.Namespace) -> dict:
    """The config fields whose flags were given, as keyword arguments for `create_model`."""
    given = {f.name: getattr(args, f.name, None) for f in _config_fields()}
    return {name: _field_value(value) for name, value in given.items() if value is not None}


def _config_fields() -> list[dataclasses.Field]:
    return [f for f in dataclasses.fields(MaskRCNNConfig) if f.init and f.name != "num_classes"]


def _field_value(value):
    if value in (NONE, [NONE]):
        return None
    return tuple(value) if isinstance(value, list) else value


def _value_type(hint) -> tuple[type, int | str | None, bool]:
    """An annotation -> (type of one value, argparse's nargs, whether None is allowed)."""
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        members = [m for m in typing.get_args(hint) if m is not type(None)]
        optional = len(members) < len(typing.get_args(hint))
        # `int | tuple[int, ...]`: the tuple holds both
        widest = next((m for m in members if typing.get_origin(m) is tuple), members[0])
        kind, count, _ = _value_type(widest)
        return kind, "+" if count and optional else count, optional  # "none" is one word; the config counts
    if typing.get_origin(hint) is tuple:
        members = typing.get_args(hint)
        count = "+" if members[-1] is Ellipsis else len(members)
        return _value_type(members[0])[0], count, False
    return hint, None, False


def _none_or(kind: type) -> Callable[[str], object]:
    def convert(text: str):
        return NONE if text.lower() == NONE else kind(text)

    convert.__name__ = kind.__name__  # argparse names it in "invalid float value"
    return convert


def _choices(field: dataclasses.Field, optional: bool) -> list | None:
    choices = field.metadata.get("choices")
    if choices is None:
        return None
    return [c for c in choices if c is not None] + [NONE] * optional


def _help_text(field: dataclasses.Field, optional: bool) -> str:
    text = field.metadata.get("help", "")
    default = field.default
    if default is None or default is dataclasses.MISSING:
        shown = ""
    else:
        shown = " ".join(map(str, default)) if isinstance(default, tuple) else str(default)
        shown = f" (default: {shown})"
    off = " ('none' switches it off)" if optional and default is not None else ""
    return (text + off + shown).replace("%", "%%")


# --- running a command -------------------------------------------------------------------------------------


def pick_device(name: str = "auto") -> torch.device:
    """`auto` (a GPU where there is one), `cpu`, `cuda` or `cuda:i` -> the device; InputError otherwise."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    kind, _, index = name.partition(":")
    if kind not in ("cpu", "cuda") or (":" in name and not (kind == "cuda" and index.isdecimal())):
        raise InputError(f"--device {name}: give auto, cpu, cuda or cuda:0, cuda:1, ...")
    if kind == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if count == 0:
            raise InputError(f"--device {name}: torch sees no CUDA GPU here; give --device cpu")
        if index and int(index) >= count:
            raise InputError(f"--device {name}: torch sees {count} GPU(s), cuda:0 to cuda:{count - 1}")
    return torch.device(name)


def plain_args(args: argparse.Namespace) -> dict:
    """The arguments as a dict of plain values (str, int, float, bool, None, lists), for files."""
    return {name: _plain(value) for name, value in sorted(vars(args).items()) if name != "given"}


def _plain(value):
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    return value if value is None or isinstance(value, (bool, int, float, str)) else str(value)


def run_command(main: Callable[[], int | None]) -> int:
    """Run a script's `main` and return its exit status; scripts end with `sys.exit(run_command(main))`.

    0 when `main` returns None, what it returns otherwise; an InputError, or an OSError that names a file,
    becomes one `error: ...` line on stderr and 2; Ctrl-C 130. Any other exception is a fault of the program
    and keeps its traceback.
    """
    try:
        return main() or EXIT_OK
    except InputError as error:
        print(f"error: {one_line(str(error))}", file=sys.stderr, flush=True)
        return EXIT_WRONG_INPUT
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr, flush=True)
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # the reader of a pipe (`| head`) has gone; what is still buffered has nowhere to go
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_SOME_UNUSABLE
    except OSError as error:  # of a file that the user named: no permission, too long a name
        if error.filename is None:
            raise
        print(f"error: {error.filename}: {error.strerror}", file=sys.stderr, flush=True)
        return EXIT_WRONG_INPUT
    except (RuntimeError, MemoryError) as error:
        if is_lack_of_memory(error):
            told = f"out of memory ({first_line(error)}); {LESS_MEMORY}"
        elif "DataLoader worker" in str(error):  # raised wherever the main process is when its child dies
            told = f"{first_line(error).rstrip('. ')}: a process that reads images has died; {FEWER_WORKERS}"
        else:
            raise
        print(f"error: {told}", file=sys.stderr, flush=True)
        return EXIT_WRONG_INPUT
