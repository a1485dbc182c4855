"""What a resumed run takes over from its checkpoint, and what may not differ between the two.

An option that is not given keeps the checkpoint's value. One that is given with another value is refused, because the
run would no longer be the one that was cut, unless --allow-changed names it. Which options are exempt stands beside
each in run/config.py.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

from backbone.errors import InputError
from network_files import MaskRCNNConfig
from train_utils.cli.flags import given_model, settings_of
from train_utils.io.files import user_path
from train_utils.processes.distributed import World
from train_utils.run.config import RunConfig
from train_utils.run.defaults import resolve_aliases
from train_utils.run.state import reading_training_state

DATA = "data"  # what --allow-changed calls the images
Checkpoint = dict[str, Any]


@reading_training_state()
def take_over(
    given: Iterable[str], config: RunConfig, checkpoint: Checkpoint, world: World
) -> tuple[RunConfig, list[str]]:
    """Returns the config completed by the checkpoint's, and lines that say what is new.

    given: the names of the options that were given; config: of these. Raises InputError for an option that
    differs without leave.
    """
    config = resolve_aliases(config, checkpoint["args"]["epochs"])
    aliases = _aliases(config)
    names = {*given, *(aliases[name] for name in given if name in aliases)}
    allowed = allowed_names(config)
    before, here = checkpoint["args"], config.to_args()
    changed = {} if config.test_only else _changes(config, names, checkpoint)
    for name, (old, new) in changed.items():
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
    config = config.with_args(before, before.keys() - names - own)
    if config.test_only:
        return config, []
    lines = [f"changed: --{n.replace('_', '-')} {_text(old)} -> {_text(new)}" for n, (old, new) in changed.items()]
    config, shared = _share_batch(config, checkpoint, names, allowed, world)
    return config, lines + shared


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
    how = f"--batch-size {batch} x --accumulate-steps {accumulate} x {world.size} process(es)"
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


@reading_training_state()
def check_data(config: RunConfig, checkpoint: Checkpoint, data: str) -> None:
    """Raises InputError where the training images, of fingerprint `data`, are not those of before, without leave."""
    if checkpoint["progress"]["data"] != data and DATA not in allowed_names(config):
        raise InputError(
            "--resume: the training images are not those of before (names, sizes or numbers of objects); "
            f"put the data back, or give --allow-changed {DATA}"
        )


def environment(world: World) -> dict[str, Any]:
    """Returns what a run depends on bit for bit, beside its flags: plain values for a checkpoint."""
    return {
        "torch": str(torch.__version__), "device": world.device.type, "processes": world.size,
        "threads": torch.get_num_threads(),
    }  # fmt: skip


@reading_training_state()
def other_environment(checkpoint: Checkpoint, world: World) -> list[str]:
    """Returns lines that say what is other than when the checkpoint was saved."""
    now = environment(world)
    other = [f"{k} {v} -> {now[k]}" for k, v in checkpoint.get("environment", {}).items() if now.get(k) != v]
    return [f"last bits may differ from an uncut run: {', '.join(other)}"] if other else []
