"""A report -> the lines that the console and the page begin with."""

from __future__ import annotations

import numpy as np

from network_files import MaskRCNNConfig
from tools.doctor import page
from tools.doctor.finds import ERROR, NOTE
from tools.doctor.report.found import Report
from train_utils.data.tiles.cutting import Tiles
from train_utils.io.plain_text import counted, one_line, visible
from train_utils.logs.console import duration

SHOWN = 6  # finds of a kind on the console


def data_lines(report: Report) -> list[str]:
    """Returns what the data is, a line a split."""
    lines = []
    for split, table in report.tables.items():
        counts, data_set = table.counts(), table.data_set
        known, used = len(data_set.label_map), len(np.unique(table.labels[~table.crowd]))
        of_classes = counted(known, "class") + (f" ({used} of them with objects)" if used < known else "")
        lines.append(
            f"{split}: {counted(len(counts), 'image')} ({int((counts == 0).sum()):,} without objects), "
            f"{counted(int(counts.sum()), 'object')} of {of_classes}, "
            f"{counted(int(table.crowd.sum()), 'crowd region')}"
        )
        lines += [f"{split}: {note}" for note in data_set.annotations.notes]
        if isinstance(report.shown[split], Tiles):
            lines.append(f"{split}: {report.shown[split].describe_cut()}")
    return [*lines, *report.fitted] or [f"{counted(len(report.opened.images), 'image')} without annotations"] * bool(
        report.opened.images
    )


def sizing_flags(config: MaskRCNNConfig) -> str:
    """Returns the flags that resize images."""
    if config.fixed_size:
        return "--fixed-size {} {}".format(*config.fixed_size)
    return f"--min-size {config.min_size[-1]} --max-size {config.max_size}"


def anchor_lines(report: Report) -> list[str]:
    """Returns what share of the objects anchors reach, a line a set of anchors."""
    lines = []
    for i, reach in enumerate(report.reach):
        of = f"anchors of {report.assumed} ({sizing_flags(report.config)} {reach.flags()})" if i == 0 else reach.flags()
        lines.append(f"{of}: {reach.share(0.5):.1%} of the objects at IoU 0.5, {reach.share(0.7):.1%} at 0.7")
    return lines


def mask_lines(report: Report) -> list[str]:
    """Returns what a perfect mask head reaches, a line a kind of mask; of the finest, where it gains."""
    lines = []
    for i, reach in enumerate(report.masks):
        if i == 0:
            left_out = f"; {counted(reach.unreadable, 'image')} left out, whose masks cannot be read"
            of_objects = f"on {counted(len(reach.ious), 'object')}" + left_out * bool(reach.unreadable)
            of = f"masks of {report.assumed} ({reach.flags()}: {reach.cells()}): a perfect mask head reaches"
            lines.append(f"{of} {reach.numbers()} {of_objects}")
        elif i + 1 < len(report.masks) or reach.gains(report.masks[i - 1]):
            lines.append(f"{reach.flags()}: {reach.numbers()}")
    return lines


def what_is_left(report: Report, seconds: list[float]) -> str:
    """Returns what the full pass adds, and how long it would take, as far as the contact sheet shows."""
    count = sum(map(len, report.splits.values()))
    if report.full:
        return "Every image was opened." * bool(count)
    left = (
        "Only the contact sheet's images were opened. --full opens all: unreadable ones, sizes that the "
        "annotations contradict, EXIF orientations, blank ones, and doubles within and across the splits"
    )
    if seconds and count:
        total = sum(seconds) / len(seconds) * count / max(report.options.workers, 1)
        left += f"; about {duration(total)} with --workers {report.options.workers}, as the contact sheet's took"
    return left + "."


def show(report: Report) -> None:
    """Prints the summary: errors first."""
    print(one_line(f"{report.opened.path} ({report.opened.layout})"))
    for line in (
        *data_lines(report),
        *(report.values.lines if report.values else ()),
        *anchor_lines(report),
        *mask_lines(report),
    ):
        print(f"  {visible(line)}")
    verdict = page.brief_verdict(report.verdict, report.finds)
    print(one_line(f"train.py would stop: {verdict}") if verdict else "train.py would open this data")
    for kind, count in report.finds.counts():
        print(one_line(f"{kind.severity}: {kind.title}: {count:,}"))
        listed = report.finds[kind]
        few = listed[: 0 if kind.severity == NOTE else SHOWN if kind.severity == ERROR else 2]
        for find in few:
            print(f"    {visible(find.text)}")
        if few and len(listed) > len(few):
            print(f"    and {count - len(few):,} more")
