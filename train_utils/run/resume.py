"""What a resumed run takes over from its checkpoint, and what may not differ between the two.

A flag that is not given keeps the checkpoint's value, but for PLACES, where the data lie elsewhere now. One that is
given with another value is refused, because the run would no longer be the one that was cut, unless --allow-changed
names it.
"""

import hashlib
from pathlib import Path

import numpy as np
import torch

from backbone.errors import InputError
from network_files import MaskRCNNConfig
from train_utils.cli.command import config_from_args, plain_args
from train_utils.cli.reference_flags import OF_THE_LAUNCHER
from train_utils.cli.run_flags import ALIASES, resolve_aliases
from train_utils.io.files import user_path
from train_utils.run.state import reading_training_state

# of this process and machine: never taken over
OWN = {
    "allow_changed", "device", "dist_timeout", "follow_links", "output_dir", "resume", "start_epoch", "test_only",
    "workers", *OF_THE_LAUNCHER, *ALIASES,
}  # fmt: skip
# what may differ, as it does not change what is computed (that the data is the same is seen from the data)
FREE = OWN | {
    "data_path", "dataset", "early_stop", "image_dir", "keep", "label_json_path", "log_steps", "num_classes",
    "print_freq", "recompute", "save_every_epochs", "save_every_steps", "skip_bad_batches", "strict", "year",
}  # fmt: skip
PLACES = {"dataset", "image_dir", "label_json_path", "year"}  # which belong to a --data-path
BATCH = {"batch_size", "accumulate_steps"}
DATA = "data"  # what --allow-changed calls the images


@reading_training_state()
def take_over(args, checkpoint, world):
    """Complete args, in place, by the checkpoint's; returns lines that tell what is new.

    Raises InputError for a flag that differs without leave.
    """
    resolve_aliases(args, checkpoint["args"]["epochs"])
    given = set(args.given) | {ALIASES[name] for name in args.given if name in ALIASES}
    allowed = allowed_names(args)
    before, here = checkpoint["args"], plain_args(args)
    changed = {} if args.test_only else _changed_config(args, checkpoint, given)
    for name in () if args.test_only else given - FREE - BATCH - changed.keys() - checkpoint["config"].keys():
        if here[name] != before.get(name):  # None: of a version that had no such flag
            changed[name] = (before.get(name), here[name])
    for name, (old, new) in changed.items():
        if name not in allowed:
            flag = name.replace("_", "-")
            raise InputError(
                f"--resume: --{flag} {_text(new)} was {_text(old)} before; leave the flag out, or give "
                f"--allow-changed {flag} as well"
            )
    places = [user_path(values.get("data_path") or "").resolve() for values in (before, here)]
    own = OWN | PLACES if "data_path" in given and places[0] != places[1] else OWN
    for name, value in before.items():
        if name not in given and name not in own and hasattr(args, name):
            setattr(args, name, value)
    if args.test_only:
        return []
    lines = [f"changed: --{n.replace('_', '-')} {_text(old)} -> {_text(new)}" for n, (old, new) in changed.items()]
    return lines + _share_batch(args, checkpoint, given, allowed, world)


def allowed_names(args):
    """The names of --allow-changed as args has them, checked."""
    names = {name.removeprefix("--").replace("-", "_") for name in args.allow_changed or ()}
    names = {ALIASES.get(name, name) for name in names}
    unknown = names - vars(args).keys() - {DATA}
    if unknown:
        raise InputError(f"--allow-changed {', '.join(sorted(unknown))}: give flags' names, or {DATA}")
    return names


def _changed_config(args, checkpoint, given):
    """{field: (before, now)} of the model's flags; a checkpoint knows the value of every field."""
    own = MaskRCNNConfig.from_dict(checkpoint["config"])
    changed = {}
    for name, value in config_from_args(args).items():
        if name in given:
            new = MaskRCNNConfig.from_dict({**checkpoint["config"], name: value})
            if new != own:
                changed[name] = (getattr(own, name), value)
    return changed


def _text(value):
    return " ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)


def _share_batch(args, checkpoint, given, allowed, world):
    """Share the global batch among the processes there are now: by more or fewer micro-batches, if possible."""
    progress, micro, norm = checkpoint["progress"], checkpoint["args"]["batch_size"], checkpoint["config"]["norm"]
    total, processes = progress["global_batch"], progress["world_size"]
    over = world.size if norm == "sync" else 1  # processes whose images a norm sees together
    together = micro * (processes if norm == "sync" else 1)
    if processes != world.size and total % world.size == 0:
        share = total // world.size
        if not BATCH & given:
            args.batch_size = next(batch for batch in (together // over, share) if batch and share % batch == 0)
        if "accumulate_steps" not in given and share % args.batch_size == 0:
            args.accumulate_steps = share // args.batch_size
        elif "batch_size" not in given and share % args.accumulate_steps == 0:
            args.batch_size = share // args.accumulate_steps
    now = args.batch_size * args.accumulate_steps * world.size
    how = f"--batch-size {args.batch_size} x --accumulate-steps {args.accumulate_steps} x {world.size} process(es)"
    if now != total and "batch_size" not in allowed:
        raise InputError(
            f"--resume: the global batch is {how} = {now}, it was {total} before; give --batch-size and "
            f"--accumulate-steps that make {total}, or --allow-changed batch-size"
        )
    if args.batch_size * over != together and norm in ("batch", "sync") and "batch_size" not in allowed:
        sizes = (f" x {world.size} processes", f" x {processes}") if norm == "sync" else ("", "")
        same = "" if together % over else f"give --batch-size {together // over}, or "
        raise InputError(
            f"--resume: --batch-size {args.batch_size}{sizes[0]} was {micro}{sizes[1]} before, and --norm {norm} "
            f"depends on it; {same}give --allow-changed batch-size"
        )
    same = (processes, micro) == (world.size, args.batch_size)
    return [] if same else [f"resumed with {how}: global batch {now}, before {total}"]


@reading_training_state()
def check_data(args, checkpoint, data):
    """Raise InputError where the training images, of fingerprint `data`, are not those of before, without leave."""
    if checkpoint["progress"]["data"] != data and DATA not in allowed_names(args):
        raise InputError(
            "--resume: the training images are not those of before (names, sizes or numbers of objects); "
            f"put the data back, or give --allow-changed {DATA}"
        )


def fingerprint(data_set):
    """A hash of the training images' names, sizes and numbers of objects, in their order; str."""
    state = hashlib.sha256()
    for i in range(len(data_set)):
        state.update(Path(data_set.file_name(i)).name.encode(errors="surrogateescape") + b"\0")
    state.update(np.asarray(data_set.sizes, dtype=np.int64).tobytes())
    state.update(np.asarray(data_set.object_counts(), dtype=np.int64).tobytes())
    return state.hexdigest()


def environment(world):
    """What a run depends on bit for bit, beside its flags: plain values for a checkpoint."""
    return {
        "torch": str(torch.__version__), "device": world.device.type, "processes": world.size,
        "threads": torch.get_num_threads(),
    }  # fmt: skip


@reading_training_state()
def other_environment(checkpoint, world):
    """Lines that say what is other than when the checkpoint was saved."""
    now = environment(world)
    other = [f"{k} {v} -> {now[k]}" for k, v in checkpoint.get("environment", {}).items() if now.get(k) != v]
    return [f"last bits may differ from an uncut run: {', '.join(other)}"] if other else []
