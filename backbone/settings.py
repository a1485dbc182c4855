"""A dataclass field that knows its explanation and its bounds: flags, --help and checks follow from it."""

import math
from collections.abc import Sized
from dataclasses import field, fields
from numbers import Real
from typing import Any, TypedDict

from backbone.errors import InputError


class Rules(TypedDict, total=False):
    """What a setting may say beside its default and its explanation."""

    least: float  # the lowest value
    most: float  # the highest value
    above: float  # what the value exceeds
    below: float  # what the value stays under
    length: int  # how many values
    choices: tuple  # the values that there are
    positional: bool  # the flag is a place in the command, without a name
    required: bool  # a command without the flag is wrong
    short: str  # another spelling of the flag, such as -b
    word: str  # a word that stands beside numbers, such as auto
    bare: Any  # what the flag means without a value
    usual: str  # what --help calls the default, where a command chooses it
    metavar: str | tuple[str, ...]  # how --help names the flag's value
    resume: str  # what a resumed run may change; see train_utils/run/resume.py
    training: bool  # a trained model has no use for it: it acts in training, and on the losses of an evaluation
    stands_for: str  # the setting that this one is another spelling of


def setting(default: Any, text: str, **rules: Any) -> Any:
    """Returns a dataclass field with its explanation and its Rules. TypeError for a rule that there is not."""
    unknown = rules.keys() - Rules.__annotations__.keys()
    if unknown:
        raise TypeError(f"{', '.join(sorted(unknown))}: no rule of a setting")
    return field(default=default, metadata={"help": text, **rules})


def lists_to_tuples(settings: Any) -> None:
    """Turns lists (of JSON, of a caller) into tuples, and one number into a tuple of one where the default is a tuple.

    For the __post_init__ of a frozen dataclass.
    """
    for f in fields(settings):
        value = getattr(settings, f.name)
        if isinstance(value, list):
            object.__setattr__(settings, f.name, tuple(value))
        elif isinstance(f.default, tuple) and not isinstance(value, tuple):
            object.__setattr__(settings, f.name, (value,))


def of_numbers(values: Sized) -> str:
    """Returns how many values there are: "1 number", "2 numbers"."""
    return f"{len(values)} number{'s' * (len(values) != 1)}"


def check(settings: Any) -> None:
    """Raises InputError for the first field of a dataclass instance that breaks its own rules; None breaks none."""
    for f in fields(settings):
        name, value, rules = f.name, getattr(settings, f.name), f.metadata
        if value is None or value == rules.get("word"):
            continue
        if isinstance(value, str) and "bool" in str(f.type):  # else "False" would be true
            raise InputError(f"{name} {value!r} is neither True nor False")
        values = value if isinstance(value, tuple) else (value,)
        if "length" in rules and len(values) != rules["length"]:
            raise InputError(f"{name} has {of_numbers(values)}: give {rules['length']}")
        if "choices" in rules and value not in rules["choices"]:
            raise InputError(f"{name} {value!r} is not known: {' or '.join(map(str, rules['choices']))}")
        if not values:
            raise InputError(f"{name} has no number: give at least one")
        whole = "float" not in str(f.type)
        for each in values if bounds(rules) else ():
            if not (isinstance(each, Real) and within(each, rules) and (not whole or each == int(each))):
                raise InputError(f"{name}: {each!r} is not {described(rules, whole)}")


class Settings:
    """The base of frozen dataclasses of settings: their values are tuples in place of lists, and keep their rules."""

    def __post_init__(self) -> None:
        lists_to_tuples(self)
        check(self)


def bounds(rules: Rules) -> Rules:
    """Returns those of the rules that bound a number."""
    return {name: rules[name] for name in ("least", "most", "above", "below") if name in rules}


def within(value: float, rules: Rules) -> bool:
    """Returns whether a number is finite and keeps the rules' bounds."""
    infinity = float("inf")
    return (
        -infinity < value < infinity
        and rules.get("least", -infinity) <= value <= rules.get("most", infinity)
        and ("above" not in rules or value > rules["above"])
        and ("below" not in rules or value < rules["below"])
    )


def described(rules: Rules, whole: bool) -> str:
    """Returns how a number within the bounds is called: `a whole number of at least 0, below 2^63`."""
    what = "a whole number" if whole else "a number"
    if "least" in rules and "most" in rules:
        return f"{what} between {rules['least']} and {rules['most']}"
    low = f" above {rules['above']}" if "above" in rules else f" of at least {rules['least']}"
    high = f", at most {rules['most']}" if "most" in rules else ""
    return what + low + high + (f", below {_power(rules['below'])}" if "below" in rules else "")


def _power(value: float) -> str:
    """Returns a large power of 2 as such, `2^63`, and any other number as it is."""
    exponent = math.frexp(value)[1] - 1
    return f"2^{exponent}" if exponent > 20 and value == 2**exponent else f"{value:g}"
