"""What the data is, and the model that was looked at -> how train.py fits the data best: a table of sizes, a command.

Sizes and anchors that could be chosen stand beside each other, with what they reach and cost; the command takes those
that suit the objects: docs/fine_tuning.md has what that gained.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from network_files import MaskRCNNConfig
from network_files.transform import resized_size
from tools.doctor.table import Table
from train_utils.data.loaders import steps_per_epoch
from train_utils.data.objects import anchors
from train_utils.data.objects.anchors import Reach
from train_utils.data.objects.fitting import SMALLEST, fitted_size, size_for
from train_utils.evaluation.advice import Sizing, step_memory
from train_utils.io.plain_text import counted
from train_utils.run.defaults import USUAL
from train_utils.run.schedule import default_epochs

LARGER = 1.2  # times the images' size, from which on what suits the objects is a choice of its own
ROOM = 1.5  # detections that an image may have, of its objects: some are wrong


class Choice(NamedTuple):
    """A size of images, and the anchors that go with it; name: where it is from."""

    name: str
    config: MaskRCNNConfig
    reach: Reach | None
    pixels: float  # of the typical image after resizing

    def sizes(self) -> str:
        """Returns its flags of sizes."""
        config = self.config
        shown = f"--min-size {config.min_size[-1]} --max-size {config.max_size}"
        shown = "--fixed-size {} {}".format(*config.fixed_size) if config.fixed_size else shown
        used = self.reach.sizes if self.reach else config.anchor_sizes
        return f"{shown} --anchor-sizes {' '.join(f'{size:g}' for size in used)}"

    def row(self, others: float) -> str:
        """Returns its row of the table; others: the pixels that an image has without being resized."""
        reached = f"{self.reach.share(0.5):.1%} at IoU 0.5, {self.reach.share(0.7):.1%} at 0.7" if self.reach else ""
        times = f"{self.pixels / others:.2g} x the images' pixels"
        return f"  {self.name}: {self.sizes()}: {', '.join(filter(None, [reached, times]))}"


def choices(
    tables: Sequence[Table], trained: Table, config: MaskRCNNConfig, size: Sizing, usual: Sequence[Reach]
) -> list[Choice]:
    """Returns the sizes that could be chosen: train.py's, the images' own, and what suits the objects.

    size: of the typical training image; usual: how far the configured anchors reach, and better ones at the configured
    size.
    """
    median = size.size

    def choice(name: str, config: MaskRCNNConfig, reach: Sequence[Reach]) -> Choice:
        plain = [each for each in reach if each.ratios == config.aspect_ratios]  # other counts do not fit weights
        h, w = resized_size(*median, config.min_size[-1], config.max_size, config.fixed_size)
        return Choice(name, config, plain[-1] if plain else None, float(h * w))

    found = [choice("as configured", config, usual[:1])]
    other = choice("with other anchors", config, usual)
    if other.reach and other.reach.sizes != config.anchor_sizes and not size.flags:
        found.append(other)
    if size.flags:
        words = size.flags.split()
        own = replace(config, min_size=int(words[1]), max_size=int(words[3]))
        fields = fitted_size({}, trained)[0]
        by_objects = replace(config, min_size=fields["min_size"], max_size=fields["max_size"])
        found.append(choice("as large as the images", own, anchors.reach(tables, own)))
        if by_objects.min_size[-1] > LARGER * own.min_size[-1] and by_objects.min_size != config.min_size:
            found.append(choice("as auto chooses, by the objects", by_objects, anchors.reach(tables, by_objects)))
    return found


def on_size(
    found: Sequence[Choice], trained: Table, config: MaskRCNNConfig, size: Sizing
) -> tuple[list[str], list[str]]:
    """Returns lines that compare the choices, and the flags of the chosen one that differ from the configured."""
    lines = [size.line()]
    if len(found) == 1:
        return lines, []
    h, w = size.size
    lines.append("sizes and anchors that could be chosen, the share of objects that an anchor overlaps, and the cost:")
    lines += [each.row(h * w) for each in found]
    chosen, flags = found[-1], []
    if size.flags:
        flags = ["--min-size", str(chosen.config.min_size[-1]), "--max-size", str(chosen.config.max_size)]
    if chosen.reach and chosen.reach.sizes != config.anchor_sizes:
        flags += ["--anchor-sizes", *map(str, chosen.reach.sizes)]
    if len(found) > 2:
        share, fit = found[1].pixels / chosen.pixels, size_for(trained)
        reason = f"one in ten objects is smaller than {fit.small:.3g} pixels"
        reason = f"auto takes no side below {SMALLEST} pixels" if fit.bounded else reason
        lines.append(f"the command takes the last row, as {reason}; the one above has {share:.2g} of its pixels")
    return lines, flags


def on_limit(counts: np.ndarray, config: MaskRCNNConfig) -> tuple[list[str], list[str]]:
    """Returns a line and flags where images hold more objects than detections are kept; counts [I]: their objects."""
    most, limit = int(counts.max(initial=0)), config.box_detections_per_img
    if most <= limit:
        return [], []
    room = -(-int(ROOM * most) // 100) * 100
    over = counted(int((counts > limit).sum()), "image")
    line = f"{over} with more objects than {limit} detections (most: {most}): the command keeps, and counts, {room}"
    return [line], ["--box-detections-per-img", str(room), "--max-dets", str(room)]


def on_length(images: int, resized: tuple[int, int], backbone: str) -> list[str]:
    """Returns lines on the steps of a run without --epochs, their memory, and what is less on a CPU."""
    batch, epochs = USUAL["batch_size"], default_epochs(images)
    steps = epochs * steps_per_epoch(images, batch)
    shown = f"{counted(steps, 'step')} of {counted(batch, 'image')}"
    there = f"{'is' if images == 1 else 'are'} {counted(images, 'image')}"
    lines = [
        f"train.py makes {counted(epochs, 'epoch')}, as there {there} to train on: {shown} (--epochs, --batch-size)"
    ]
    needed, each = (step_memory(count, resized) / 2**30 for count in (batch, batch + 1))
    of = "ResNet-50" if backbone == "resnet50" else f"ResNet-50, {backbone} differs"
    lines.append(
        f"memory of a step, beside weights and program: about {needed:.2g} GiB for --batch-size {batch}, "
        f"{each - needed:.2g} GiB for each further image ({of}, float32, as measured on a CPU)"
    )
    lines.append(
        "train.py says after ten steps how long it takes. On a CPU, --epochs 3 is a beginning, and --recipe small, "
        "with a small network, takes a fraction"
    )
    return lines
