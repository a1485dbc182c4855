"""The settings of a dataclass -> flags: name, type, bounds, choices and --help follow from each field."""

from __future__ import annotations

import argparse
import dataclasses
import inspect
import math
import types
import typing
from collections.abc import Callable, Collection
from pathlib import Path

from backbone.settings import Rules, bounds, described, within
from network_files import MaskRCNNConfig
from train_utils.cli.parser import OFF, Parser

KINDS = {int: "a whole number", float: "a number"}
FlagType = Callable[[str], typing.Any]


def settings_of(config: type) -> dict[str, dataclasses.Field]:
    """Returns the fields of a dataclass that are settings, by name."""
    return {f.name: f for f in dataclasses.fields(config) if f.init and "help" in f.metadata}


def given_settings(config: type, given: dict[str, typing.Any]) -> dict[str, typing.Any]:
    """Returns those of the settings given that the dataclass has."""
    return {name: value for name, value in given.items() if name in settings_of(config)}


def add_flags(
    parser: Parser,
    config: type,
    only: Collection[str] | None = None,
    leave_out: Collection[str] = (),
    defaults: bool = True,
) -> None:
    """Adds a flag for each setting of a dataclass, in a group for each class that it has settings from.

    Absent flags give nothing: see Parser.given. A group's title is the first line of its class's docstring.
    only, leave_out: names of settings. defaults: whether --help shows the fields' defaults.
    """
    owners = {name: owner for owner in config.__mro__ for name in inspect.get_annotations(owner)}
    hints = typing.get_type_hints(config)
    for name, field in settings_of(config).items():
        if (only is not None and name not in only) or name in leave_out:
            continue
        title = owners[name].__doc__.splitlines()[0].rstrip(".")
        _add_flag(parser.group_of(name, title), field, hints[name], defaults)


def add_model_flags(parser: Parser, training: bool = True, may_be_auto: Collection[str] = ()) -> None:
    """Adds a flag for each field of MaskRCNNConfig but `num_classes`; `none` gives None where a field may be None.

    training: whether those are among them that act in training alone; may_be_auto: names of the fields that may also
    be the word `auto`.
    """
    hints = typing.get_type_hints(MaskRCNNConfig)
    for name, field in settings_of(MaskRCNNConfig).items():
        if field.metadata.get("training") and not training:
            parser.training.add("--" + name.replace("_", "-"))
        elif name != "num_classes":
            of_weights = "" if training else "; a checkpoint's own precede these defaults"
            group = parser.group_of(name, f"Model: fields of MaskRCNNConfig{of_weights}")
            _add_flag(group, field, hints[name], word_for_none=True)
            if name in may_be_auto:
                action = group._group_actions[-1]
                action.type = _or_word(action.type, "auto")
                action.help += "; auto: as fits the training objects"


def _or_word(convert: FlagType, word: str) -> FlagType:
    def or_word(text: str) -> typing.Any:
        return word if text.lower() == word else convert(text)

    or_word.__name__ = convert.__name__  # argparse names it in "invalid float value"
    return or_word


def given_model(given: dict[str, typing.Any]) -> dict[str, typing.Any]:
    """Returns those of the settings given that are fields of MaskRCNNConfig, as keywords for `create_model`."""
    return {name: value for name, value in given_settings(MaskRCNNConfig, given).items() if name != "num_classes"}


def number(kind: type, **rules: typing.Any) -> FlagType:
    """Returns a flag's type: text -> a finite number, int or float, within bounds of Rules such as least=1."""

    def convert(text: str) -> float:
        try:
            value = kind(text)
        except ValueError:
            value = math.nan
        if not within(value, rules):
            raise argparse.ArgumentTypeError(f"{text!r} is not {described(rules, whole=kind is int)}")
        return value

    return convert


def parse_bool(text: str) -> bool:
    """Parses `True` / `False` in any case, and yes/no, on/off, 1/0; raises argparse.ArgumentTypeError otherwise."""
    word = text.lower()
    if word in ("true", "yes", "on", "1"):
        return True
    if word in ("false", "no", "off", "0"):
        return False
    raise argparse.ArgumentTypeError(f"{text!r} is neither True nor False")


def _add_flag(
    group: typing.Any, field: dataclasses.Field, hint: typing.Any, defaults: bool = True, word_for_none: bool = False
) -> None:
    rules, options = field.metadata, {"default": argparse.SUPPRESS}
    kind, count, optional = _value_type(hint)
    options["nargs"] = "+" if count and optional and word_for_none else count  # "none" is one word
    names = ["--" + field.name.replace("_", "-"), *([rules["short"]] if "short" in rules else [])]
    options["type"] = _flag_type(kind, rules, optional and word_for_none)
    if "word" in rules:
        options["type"] = _or_word(options["type"], rules["word"])
    options["metavar"] = rules.get("metavar", kind.__name__.upper() if kind in KINDS else None)
    options["choices"] = rules.get("choices")
    options["help"] = _help_text(field, defaults, optional and word_for_none)
    if kind is bool:
        options |= {"nargs": "?", "const": True, "metavar": "True|False"}
    if options["choices"] and "metavar" not in rules:
        del options["metavar"]  # argparse lists the choices
    if "bare" in rules:
        options |= {"nargs": "?", "const": rules["bare"]}
    if rules.get("required"):
        options["required"] = True
    if rules.get("positional"):
        names, options["default"] = [field.name], None
    group.add_argument(*names, **options)


def _value_type(hint: typing.Any) -> tuple[type, int | str | None, bool]:
    """Returns of an annotation (type of one value, argparse's nargs, whether None is allowed)."""
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        members = [m for m in typing.get_args(hint) if m not in (type(None), Path)]
        optional = type(None) in typing.get_args(hint)
        # `int | tuple[int, ...]`: the tuple holds both
        widest = next((m for m in members if typing.get_origin(m) is tuple), members[0])
        kind, count, _ = _value_type(widest)
        return kind, count, optional
    if typing.get_origin(hint) is tuple:
        members = typing.get_args(hint)
        return _value_type(members[0])[0], "+" if members[-1] is Ellipsis else len(members), False
    return hint, None, False


def _flag_type(kind: type, rules: Rules, word_for_none: bool) -> FlagType:
    if kind is bool:
        return parse_bool
    convert = number(kind, **bounds(rules)) if bounds(rules) else kind
    if not word_for_none:
        return convert

    def or_none(text: str) -> typing.Any:
        return OFF if text.lower() == "none" else convert(text)

    or_none.__name__ = kind.__name__  # argparse names it in "invalid float value"
    return or_none


def _help_text(field: dataclasses.Field, defaults: bool, word_for_none: bool) -> str:
    default, bare = field.default, field.metadata.get("bare")
    off = " ('none' switches it off)" if word_for_none and default is not None else ""
    usual = field.metadata.get("usual", _shown(default))
    notes = [] if default is None or isinstance(default, bool) or not defaults else [f"default: {usual}"]
    notes += [] if bare is None else [f"bare flag: {_shown(bare)}"]
    return (field.metadata["help"] + off + (f" ({'; '.join(notes)})" if notes else "")).replace("%", "%%")


def _shown(value: typing.Any) -> str:
    if isinstance(value, tuple):
        return " ".join(map(_shown, value))
    return f"{value:g}" if isinstance(value, float) else str(value)
