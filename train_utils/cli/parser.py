"""The words of a command line -> the settings that were given."""

from __future__ import annotations

import argparse
import itertools
import os
import sys
import typing
from collections.abc import Sequence

from train_utils.cli.command import EXIT_WRONG_INPUT
from train_utils.cli.suggestions import suggestions
from train_utils.io import files
from train_utils.io.plain_text import pasted
from train_utils.io.version import __version__

FIRST = "Used most"  # the title of the flags that --help begins with
OFF = object()  # the value of a flag whose word was "none": None, where an absent flag gives nothing


class Parser(argparse.ArgumentParser):
    """ArgumentParser in which `--batch_size` is `--batch-size`, and an error is one line, exit status 2.

    Flags are added with `-`. Abbreviated flags are refused: `--min` must not become `--min-size`. --help begins with
    one line of usage and the flags that are used most.
    first: names of the settings that are used most, in their order.
    """

    def __init__(self, *args: typing.Any, first: Sequence[str] = (), **kwargs: typing.Any) -> None:
        kwargs.setdefault("prog", _program())
        kwargs.setdefault("allow_abbrev", False)
        kwargs.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        super().__init__(*args, **kwargs)
        self.first, self.training = [*first], set()  # training: flags that the command lacks, as they act there alone
        self.groups = {FIRST: self.add_argument_group(FIRST)} if first else {}
        self._action_groups.sort(key=lambda group: group.title != FIRST)
        self.add_argument("--version", action="version", version=f"maskrcnn {__version__}")

    def group_of(self, setting: str, title: str) -> argparse._ArgumentGroup:
        """Returns the group that --help shows a setting's flag in: that of its title, or of those used most."""
        title = FIRST if setting in self.first else title
        if title not in self.groups:
            self.groups[title] = self.add_argument_group(title)
        return self.groups[title]

    def format_usage(self) -> str:
        """Returns one line: what a command must have."""
        self._shorten()
        return super().format_usage()

    def format_help(self) -> str:
        """Returns the help: usage, description, the flags used most, and the others in groups."""
        self._shorten()
        return super().format_help()

    def _shorten(self) -> None:
        needed = [action for action in self._actions if action.required or not action.option_strings]
        words = [" ".join([*action.option_strings[-1:], action.metavar or action.dest]) for action in needed]
        self.usage = " ".join(["%(prog)s", *words, "[flags]"])
        if FIRST in self.groups:
            self.groups[FIRST]._group_actions.sort(key=lambda action: self.first.index(action.dest))

    def parse_known_args(
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> tuple[argparse.Namespace, list[str]]:
        """Parses words whose flags may be spelled with `_`."""
        words = [_dashed(word) for word in (sys.argv[1:] if args is None else args)]
        self._refuse_unknown(words)
        return super().parse_known_args(words, namespace)

    def _refuse_unknown(self, words: Sequence[str]) -> None:
        """Ends the command for words that it has no use for, before it complains of a flag that is missing."""
        known = self._option_string_actions
        words = words[: words.index("--")] if "--" in words else words
        names = [word.partition("=")[0] for word in words if word.startswith("--") and " " not in word]
        unknown = [name for name in names if name not in known]
        if unknown:
            self.error(f"unrecognized arguments: {' '.join(unknown)}{self._advice(unknown)}")
        places = [action for action in self._actions if not action.option_strings]
        stray = [] if places else list(itertools.takewhile(lambda word: not word.startswith("-"), words))
        if stray:
            flag = next(name for name in ("--img-path", "--data-path", *known) if name in known)
            also = self._advice(stray) or f"; values follow a flag: {pasted(flag, stray[0])}"
            self.error(f"unrecognized arguments: {' '.join(stray)}{also}")

    def _advice(self, unknown: Sequence[str]) -> str:
        several, said = len(unknown) > 1, []
        for word in unknown:
            if advice := suggestions(word, self._option_string_actions, self.training):
                said.append(f"{word}: {advice}" if several else advice)
        return "".join(f"; {advice}" for advice in said)

    def given(self, words: Sequence[str] | None = None) -> dict[str, typing.Any]:
        """Returns the settings that a command names (None: this one): {name: value}, the values in tuples.

        Holds for flags of `add_flags`, which give nothing where they are absent.
        """
        files.name_flags({name for action in self._actions for name in (*action.option_strings, action.metavar)})
        namespace, unknown = self.parse_known_args(words)
        if unknown:
            self.error(f"unrecognized arguments: {' '.join(unknown)}{self._advice(unknown)}")
        return {name: _plain(value) for name, value in vars(namespace).items()}

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
