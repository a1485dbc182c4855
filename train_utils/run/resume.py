"""What a resumed run takes over from its checkpoint, and what may not differ between the two.

An option that is not given keeps the checkpoint's value. One that is given with another value is refused, because the
run would no longer be the one that was cut, unless --allow-changed names it. Which options are exempt stands beside
each in run/config.py.
"""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from backbone.errors import InputError
from network_files import MaskRCNNConfig
from train_utils.checkpoints import data_state
from train_utils.checkpoints.data_state import State
from train_utils.cli.flags import given_model, settings_of
from train_utils.data.augmentations.options import FUNCTION, Augmentation
from train_utils.data.augmentations.own import OwnAugmentation, name_of_function
from train_utils.data.objects.fitting import AUTO, asks_for_fit
from train_utils.data.opening import DataSplits
from train_utils.io.files import user_path
from train_utils.io.plain_text import counted
from train_utils.processes.agreement import Fact, versions
from train_utils.processes.distributed import World
from train_utils.run.config import RunConfig
from train_utils.run.defaults import is_auto, resolve_aliases
from train_utils.run.schedule import reference_warmup
from train_utils.run.state import reading_training_state

DATA = "data"  # what --allow-changed calls the images
OF_OPTIMIZER = {"lr", "weight_decay"}  # whose usual values are each optimiser's own
Checkpoint = dict[str, Any]


@reading_training_state()
def take_over(
    given: Iterable[str], config: RunConfig, checkpoint: Checkpoint, world: World
) -> tuple[RunConfig, list[str]]:
    """Returns the config completed by the checkpoint's, and lines that say what is new.

    given: the names of the options that were given; config: of these. Raises InputError for an option that
    differs without leave.
    """
    if is_auto(config.value("value_range")):  # measured then, and kept
        given, config = {*given} - {"value_range"}, config.without("value_range")
    checkpoint = with_warmup(checkpoint)
    fit = asks_for_fit(config.model)  # is done: the checkpoint has the numbers
    found = [name for name in ("lr", "batch_size") if getattr(config, name) == AUTO]
    config = replace(
        config, model={name: value for name, value in config.model.items() if name not in fit}, **dict.fromkeys(found)
    )
    given = [name for name in given if name not in (*fit, *found)]
    config = resolve_aliases(config, checkpoint["args"]["epochs"])
    aliases = _aliases(config)
    names = {*given, *(aliases[name] for name in given if name in aliases)}
    allowed = allowed_names(config)
    before, here = checkpoint["args"], config.to_args()
    changed = {} if config.test_only else _changes(config, names, checkpoint)
    for name, (old, new) in changed.items():
        if name == "recipe":
            raise InputError(
                f"--resume: --recipe {new} was {old} before; it stands for other flags, which the run keeps: "
                "leave it out, and change those"
            )
        if name not in allowed:
            flag = name.replace("_", "-")
            raise InputError(
                f"--resume: --{flag} {_text(new)} was {_text(old)} before; leave the flag out, or give "
                f"--allow-changed {flag} as well"
            )
    places = [user_path(values.get("data_path") or "").resolve() for values in (before, here)]
    own = _named(config, "own")
    if "data_path" in names and places[0] != places[1]:
        own |= _named(config, "place")
    if "augment" in changed:  # with all that it stands for
        names |= settings_of(Augmentation).keys()
    lines = [f"changed: --{n.replace('_', '-')} {_text(old)} -> {_text(new)}" for n, (old, new) in changed.items()]
    if "optimizer" in changed and (others := OF_OPTIMIZER - names):
        names |= others
        what = " and ".join(f"--{name.replace('_', '-')}" for name in sorted(others))
        lines.append(f"changed: {what}: the usual of {config.optimizer}, as no other was given")
    config = config.with_args(before, before.keys() - names - own)
    if config.test_only:
        return config, []
    config, shared = _share_batch(config, checkpoint, names, allowed, world)
    return config, lines + shared


def with_warmup(checkpoint: Checkpoint) -> Checkpoint:
    """Returns the checkpoint with its run's steps of warm-up, which earlier versions computed anew each time."""
    args = checkpoint["args"]
    if args["warmup_iters"] is not None:
        return checkpoint
    return {**checkpoint, "args": {**args, "warmup_iters": reference_warmup(checkpoint["progress"]["steps_per_epoch"])}}


def allowed_names(config: RunConfig) -> set[str]:
    """Returns the names of --allow-changed. InputError for one that no option has."""
    aliases = _aliases(config)
    names = {name.removeprefix("--").replace("-", "_") for name in config.allow_changed or ()}
    names = {aliases.get(name, name) for name in names}
    unknown = names - config.to_args().keys() - {DATA}
    if unknown:
        raise InputError(f"--allow-changed {', '.join(sorted(unknown))}: give flags' names, or {DATA}")
    return names


def _named(config: RunConfig, *rules: str) -> set[str]:
    """Returns the names of the options with one of these resume rules."""
    return {name for name, f in settings_of(type(config)).items() if f.metadata.get("resume", "same") in rules}


def common_options(config: RunConfig) -> list[Fact]:
    """Returns the options that all processes must have alike; data may lie elsewhere on another machine."""
    own = _named(config, "own", "place") - {"test_only"} | {"data_path"}
    values = {**config.to_args(), "weights": Path(str(config.weights)).name}
    return [Fact(f"--{name.replace('_', '-')}", value) for name, value in values.items() if name not in own]


def _aliases(config: RunConfig) -> dict[str, str]:
    """Returns {option: the option that it stands for}."""
    fields = settings_of(type(config))
    return {name: f.metadata["stands_for"] for name, f in fields.items() if "stands_for" in f.metadata}


def _changes(config: RunConfig, names: set[str], checkpoint: Checkpoint) -> dict[str, tuple[Any, Any]]:
    """Returns {option: (before, now)} of the options given that differ and may not."""
    model = MaskRCNNConfig.from_dict(checkpoint["config"])  # it knows the value of every field
    changed = {}
    for name, value in given_model(config.model).items():
        if name in names and MaskRCNNConfig.from_dict({**checkpoint["config"], name: value}) != model:
            changed[name] = (getattr(model, name), value)
    before, here = checkpoint["args"], config.to_args()
    for name in sorted(names & _named(config, "same")):
        if here[name] != before.get(name):  # None: of a version that had no such flag
            changed[name] = (before.get(name), here[name])
    return changed


def _text(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)


def _share_batch(
    config: RunConfig, checkpoint: Checkpoint, given: set[str], allowed: set[str], world: World
) -> tuple[RunConfig, list[str]]:
    """Shares the global batch among the processes there are now: by more or fewer micro-batches, if possible."""
    progress, micro, norm = checkpoint["progress"], checkpoint["args"]["batch_size"], checkpoint["config"]["norm"]
    total, processes = progress["global_batch"], progress["world_size"]
    batch, accumulate = config.batch_size, config.accumulate_steps
    over = world.size if norm == "sync" else 1  # processes whose images a norm sees together
    together = micro * (processes if norm == "sync" else 1)
    if processes != world.size and total % world.size == 0:
        share = total // world.size
        if not {"batch_size", "accumulate_steps"} & given:
            batch = next(size for size in (together // over, share) if size and share % size == 0)
        if "accumulate_steps" not in given and share % batch == 0:
            accumulate = share // batch
        elif "batch_size" not in given and share % accumulate == 0:
            batch = share // accumulate
    now = batch * accumulate * world.size
    how = f"--batch-size {batch} x --accumulate-steps {accumulate} x {counted(world.size, 'process')}"
    if now != total and "batch_size" not in allowed:
        raise InputError(
            f"--resume: the global batch is {how} = {now}, it was {total} before; give --batch-size and "
            f"--accumulate-steps that make {total}, or --allow-changed batch-size"
        )
    if batch * over != together and norm in ("batch", "sync") and "batch_size" not in allowed:
        sizes = (f" x {world.size} processes", f" x {processes}") if norm == "sync" else ("", "")
        same = "" if together % over else f"give --batch-size {together // over}, or "
        raise InputError(
            f"--resume: --batch-size {batch}{sizes[0]} was {micro}{sizes[1]} before, and --norm {norm} "
            f"depends on it; {same}give --allow-changed batch-size"
        )
    config = config.replaced({"batch_size": batch, "accumulate_steps": accumulate})
    same = (processes, micro) == (world.size, batch)
    return config, [] if same else [f"resumed with {how}: global batch {now}, before {total}"]


def check_function(config: RunConfig, checkpoint: Checkpoint, augment: OwnAugmentation | None) -> list[str]:
    """Returns a line where the function that augments is other than before. InputError where that is not allowed.

    augment: the one given in Python, None: the options say how. Older checkpoints don't know theirs.
    """
    now = name_of_function(augment)
    before = checkpoint.get(FUNCTION, now)
    if config.test_only or before == now:
        return []
    said = [f"the Python function {name}" if name else "the options" for name in (before, now)]
    if "augment" not in allowed_names(config):
        raise InputError(
            f"--resume: images were augmented by {said[0]} before, and would be by {said[1]} now; give the same "
            '(maskrcnn.train(..., augment=function, resume="auto")), or --allow-changed augment as well'
        )
    return [f"changed: images are augmented by {said[1]}, before by {said[0]}"]


@reading_training_state()
def check_data(
    config: RunConfig, checkpoint: Checkpoint, splits: DataSplits, data: str, states: dict[str, State]
) -> list[str]:
    """Returns lines that say what of the data is other than before. InputError where that changes the run, unallowed.

    data: the training images' fingerprint, which is all that an older checkpoint has; states: of both splits.
    """
    same, allowed = checkpoint["progress"]["data"] == data, DATA in allowed_names(config)
    if "data" in checkpoint:
        parts = {role: getattr(splits, role).whole for role in states}
        found = {role: data_state.compare(checkpoint["data"][role], states[role], parts[role]) for role in parts}
        changed = [f"{role}: {', '.join(what)}" for role, (what, _) in found.items() if what]
        said = [f"{role}: {line}" for role, (_, lines) in found.items() for line in lines]
    else:
        changed, said = [], []
    if not (same or changed):
        changed = ["train: other images (names, sizes or numbers of objects)"]
    if changed and not allowed:
        raise InputError(
            f"--resume: the data is not that of before: {'; '.join(changed)}. Put the data back, or give "
            f"--allow-changed {DATA}"
        )
    return [*(f"changed: {line}" for line in changed), *said]


def environment(world: World, config: RunConfig) -> dict[str, Any]:
    """Returns what a run depends on bit for bit, beside its flags: plain values for a checkpoint."""
    file = user_path(config.augment.rpartition(":")[0]) if config.own else None
    own = {"file of --augment": hashlib.sha256(file.read_bytes()).hexdigest()[:12]} if file and file.is_file() else {}
    return {
        **own, **versions(), "device": world.device.type, "processes": world.size, "threads": torch.get_num_threads(),
        "processor": processor(world.device),
    }  # fmt: skip


def processor(device: torch.device) -> str:
    """Returns what computes: a GPU's name, or a CPU's and the vector instructions that torch uses of it."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    name = platform.processor() or platform.machine()
    with suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
        name = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), name)
    return f"{name} with {torch.backends.cpu.get_cpu_capability()}"


@reading_training_state()
def other_environment(checkpoint: Checkpoint, world: World, config: RunConfig) -> list[str]:
    """Returns lines that say what is other than when the checkpoint was saved."""
    now = environment(world, config)
    other = [f"{k} {v} -> {now[k]}" for k, v in checkpoint.get("environment", {}).items() if now.get(k) != v]
    return [f"last bits may differ from an uncut run: {', '.join(other)}"] if other else []
