"""The words of a command line -> the settings that were given."""

from __future__ import annotations

import argparse
import os
import sys
import typing
from collections.abc import Sequence

from train_utils.cli.command import EXIT_WRONG_INPUT
from train_utils.io.version import __version__

OFF = object()  # the value of a flag whose word was "none": None, where an absent flag gives nothing


class Parser(argparse.ArgumentParser):
    """ArgumentParser in which `--batch_size` is `--batch-size`, and an error is one line, exit status 2.

    Flags are added with `-`. Abbreviated flags are refused: `--min` must not become `--min-size`.
    """

    def __init__(self, *args: typing.Any, **kwargs: typing.Any) -> None:
        kwargs.setdefault("prog", _program())
        kwargs.setdefault("allow_abbrev", False)
        kwargs.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        super().__init__(*args, **kwargs)
        self.add_argument("--version", action="version", version=f"maskrcnn {__version__}")

    def parse_known_args(
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> tuple[argparse.Namespace, list[str]]:
        """Parses words whose flags may be spelled with `_`."""
        words = [_dashed(word) for word in (sys.argv[1:] if args is None else args)]
        return super().parse_known_args(words, namespace)

    def given(self, words: Sequence[str] | None = None) -> dict[str, typing.Any]:
        """Returns the settings that a command names (None: this one): {name: value}, the values in tuples.

        Holds for flags of `add_flags`, which give nothing where they are absent.
        """
        return {name: _plain(value) for name, value in vars(self.parse_args(words)).items()}

    def error(self, message: str) -> typing.NoReturn:
        """Prints one line and exits with status 2."""
        self.exit(EXIT_WRONG_INPUT, f"error: {message} ({self.prog} --help lists the flags)\n")


def _program() -> str:
    """Returns how this program was started: `python train.py`, `python -m tools.check_data`, `maskrcnn train`."""
    if sys.argv[0].startswith("maskrcnn "):
        return sys.argv[0]
    spec = getattr(sys.modules["__main__"], "__spec__", None)  # None of a script
    module = spec and spec.name.removesuffix(".__main__")
    return f"python -m {module}" if module else f"python {os.path.basename(sys.argv[0])}"


def _dashed(word: str) -> str:
    """Turns `--min_size=1_0` into `--min-size=1_0`; what is not a flag stays as it is."""
    if not word.startswith("--"):
        return word
    name, equals, value = word.partition("=")
    return name.replace("_", "-") + equals + value


def _plain(value: typing.Any) -> typing.Any:
    if value is OFF or value == [OFF]:
        return None
    return tuple(value) if isinstance(value, list) else value
