"""Damage to saved checkpoints: each damaged file is refused, and none loads with other content.

A flipped bit, a changed byte, a cut, appended bytes, a zeroed block of 4 KiB; each anywhere in the file, and each
again within its last 400 bytes, where the checksum and the zip's end stand.
"""

import random
from pathlib import Path

import torch

from backbone.errors import InputError
from network_files.weight_files.file_stamp import find_damage
from tests.faults import Outcome
from tests.small_runs import same
from train_utils.checkpoints.checkpoint import load_file, save_checkpoint

WHAT = "damage to checkpoints: noticed, and never loaded"
SEED, BLOCK, END = 20, 4096, 400


def flip_bit(data: bytearray, at: int, rng) -> None:
    data[at] ^= 1 << rng.randrange(8)


def change_byte(data: bytearray, at: int, rng) -> None:
    data[at] = (data[at] + rng.randrange(1, 256)) % 256


def cut(data: bytearray, at: int, rng) -> None:
    del data[at:]


def append(data: bytearray, at: int, rng) -> None:
    data += rng.randbytes(rng.choice([1, 2, 100, 300, 5000]))


def zero_block(data: bytearray, at: int, rng) -> None:
    data[at : at + BLOCK] = bytes(len(data[at : at + BLOCK]))


def drop_byte(data: bytearray, at: int, rng) -> None:
    del data[at]


DAMAGES = (flip_bit, change_byte, cut, append, zero_block, drop_byte)


def sample() -> dict:
    """A checkpoint of some hundred kB."""
    rng = torch.Generator().manual_seed(SEED)
    weights = {f"layer{i}.weight": torch.randn(40, 50, generator=rng) for i in range(20)}
    momentum = {i: {"momentum_buffer": torch.randn(40, 50, generator=rng)} for i in range(20)}
    return {
        "format_version": 1,
        "model": weights,
        "optimizer": {"state": momentum},
        "config": {"norm": "batch"},
        "label_map": {"names": ["a"]},
        "epoch": 3,
        "step": 40,
        "args": {"lr": 0.01},
    }


def run(full: bool, folder: Path) -> Outcome:
    rng, path, content = random.Random(SEED), folder / "model_0.pth", sample()
    save_checkpoint(path, content)
    whole = path.read_bytes()
    failures, good, total, unseen = [], 0, 0, 0
    for number in range(2000 if full else 240):
        damage = DAMAGES[number % len(DAMAGES)]
        low = len(whole) - END if number // len(DAMAGES) % 2 else 0
        at, data = rng.randrange(low, len(whole)), bytearray(whole)
        damage(data, at, rng)
        if data == whole:
            continue  # a block that was zero before
        path.write_bytes(data)
        total += 1
        unseen += find_damage(path) is None  # --resume auto would take it, and then be refused
        try:
            loaded = load_file(path)
        except InputError:
            good += 1
            continue
        what = "same content" if same(loaded, content) else "OTHER CONTENT"
        failures.append(f"{damage.__name__} at {at} of {len(whole)} loads, {what} (trial {number})")
    return Outcome(good, total, failures, f"seed {SEED}; {unseen} pass as a file without a checksum until loaded")
