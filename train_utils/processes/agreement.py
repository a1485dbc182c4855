"""What each process is about to do -> nothing where all agree, else one line that names the processes that differ."""

import hashlib
import socket
from collections.abc import Mapping
from itertools import zip_longest
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import PIL
import torch

from backbone.errors import InputError
from train_utils.processes.distributed import World

ROOT = Path(__file__).resolve().parents[2]
RUN_TIME = ("maskrcnn.py", "transforms.py", "backbone/**/*.py", "network_files/**/*.py", "train_utils/**/*.py")


class Digest(str):
    """A value that says nothing to a reader: of two that differ, the name alone is told."""


class Fact(NamedTuple):
    """Something that all processes must have alike.

    decides: where it differs, the later ones of its group differ for that reason and are not told.
    """

    name: str
    value: Any
    decides: bool = False


def refuse_differences(world: World, groups: list[list[Fact]]) -> None:
    """Compares these facts with those of process 0, group by group.

    Where some differ, process 0 raises InputError that names them with process and host; the others exit silently.
    """
    stated = world.gather((socket.gethostname(), groups))
    (host, first), told = stated[0], {}
    for rank, (other, theirs) in enumerate(stated[1:], 1):
        found = [line for one, two in zip_longest(first, theirs, fillvalue=[]) for line in _differences(one, two)]
        if found:
            told.setdefault((other, "; ".join(found)), []).append(str(rank))
    if not told:
        return
    if not world.is_main:
        raise SystemExit(2)
    lines = [f"process {', '.join(ranks)} on {other}: {found}" for (other, found), ranks in told.items()]
    raise InputError(
        f"the processes would not take the same model to the same data. Unlike process 0 on {host}, "
        f"{'. '.join(lines)}. Give all of them the same flags, data and version"
    )


def _differences(one: list[Fact], two: list[Fact]) -> list[str]:
    """Returns what a group of another process has unlike that of process 0, in words."""
    mine, theirs = ({fact.name: fact for fact in group} for group in (one, two))
    lines = []
    for name, fact in {**theirs, **mine}.items():
        here, there = (facts[name].value if name in facts else None for facts in (mine, theirs))
        if here == there:
            continue
        lines.append(f"other {name}" if isinstance(fact.value, Digest) else f"{name} {_text(there)}, not {_text(here)}")
        if fact.decides:
            break
    return lines


def _text(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)


def versions() -> dict[str, str]:
    """Returns the versions that a run's numbers depend on."""
    return {"torch": str(torch.__version__), "numpy": np.__version__, "Pillow": PIL.__version__}


def code_digest() -> Digest:
    """Returns a digest of the modules that a run consists of."""
    state = hashlib.sha256()
    for path in sorted({path for pattern in RUN_TIME for path in ROOT.glob(pattern)}):
        content = path.read_bytes()
        state.update(f"{path.relative_to(ROOT).as_posix()} {len(content)}\n".encode() + content)
    return Digest(state.hexdigest())


def version_facts() -> list[Fact]:
    """Returns the versions of packages and of this program."""
    facts = [Fact(name, version) for name, version in versions().items()]
    return [*facts, Fact("version of this program (its files differ)", code_digest())]


def digest(values: Mapping[str, Any]) -> Digest:
    """Returns a digest of plain values."""
    return Digest(hashlib.sha256(repr(sorted(values.items())).encode()).hexdigest())
