"""Finished steps -> the console line of an epoch, or on a terminal a tqdm bar."""

import datetime
import math
import statistics
import sys
import time
from collections import deque
from collections.abc import Mapping
from typing import NamedTuple, TextIO

import torch
from tqdm import tqdm

WINDOW = 20  # steps that the medians on the console look back
QUIET = 30.0  # seconds after which a line comes, however few steps or images are done


class Left(NamedTuple):
    """What a run has to do after an epoch: steps, and evaluations as far as it is known how long one takes."""

    steps: int = 0
    seconds: float = 0.0


NOTHING_LEFT = Left()


class SmoothedValue:
    """A series of numbers: median and average of the last WINDOW, average of all."""

    def __init__(self) -> None:
        self.recent: deque[float] = deque(maxlen=WINDOW)
        self.total, self.count = 0.0, 0

    def update(self, value: float) -> None:
        """Appends a number."""
        self.recent.append(value)
        self.total += value
        self.count += 1

    @property
    def median(self) -> float:
        """The median of the window; for an even number of values the lower of the middle two, as torch.median."""
        return statistics.median_low(self.recent) if self.recent else math.nan

    @property
    def average(self) -> float:
        """The average of the window."""
        return statistics.fmean(self.recent) if self.recent else math.nan

    @property
    def global_average(self) -> float:
        """The average of all."""
        return self.total / self.count if self.count else math.nan

    def state_dict(self) -> dict:
        """Returns plain values for a checkpoint."""
        return {"recent": list(self.recent), "total": self.total, "count": self.count}

    def load_state_dict(self, state: Mapping) -> None:
        """Restores what `state_dict` returned."""
        self.recent = deque(state["recent"], maxlen=WINDOW)
        self.total, self.count = state["total"], state["count"]


class MetricLogger:
    """Shows the progress of an epoch of training.

    It prints a line every `print_freq` steps, after the last one, and when QUIET seconds have passed without one; on a
    terminal a tqdm bar shows the same at each step, and the last line stays. "eta" is the whole run's. `state_dict`
    holds what it averages, so that a run resumed within an epoch ends that epoch with the same line (except the times).

    header begins each line, as in "Epoch: [3]"; total: number of steps; first: steps done before, in a resumed epoch;
    device: whose memory is shown ("max mem" is left out on a CPU); enabled: False on all ranks but the main one, which
    average and print nothing; stream: where to print, default stdout. Set `left` to what the run does after the epoch.
    """

    def __init__(
        self,
        header: str,
        total: int,
        first: int = 0,
        print_freq: int = 50,
        device: torch.device | str = "cpu",
        enabled: bool = True,
        stream: TextIO | None = None,
    ) -> None:
        self.left, self.printed = NOTHING_LEFT, time.monotonic()
        self.header, self.total, self.done, self.print_freq = header, total, first, max(1, print_freq)
        self.device, self.stream, self.enabled = torch.device(device), stream or sys.stdout, enabled
        self.meters: dict[str, SmoothedValue] = {}
        self.lr, self.time, self.data_time = math.nan, SmoothedValue(), SmoothedValue()
        self.bar = None
        if enabled and self.stream.isatty():
            self.bar = tqdm(
                total=total,
                initial=first,
                desc=header,
                file=self.stream,
                dynamic_ncols=True,
                leave=False,
                bar_format="{desc} {percentage:3.0f}%|{bar:10}| {postfix}",
            )

    def step(self, seconds: float, data_seconds: float, losses: Mapping[str, float] | None, lr: float) -> None:
        """Adds a finished step; losses: None for a step without any, which is not averaged.

        seconds: of the whole step; data_seconds: of these, spent waiting for data.
        """
        self.time.update(seconds)
        self.data_time.update(data_seconds)
        self.lr = float(lr)
        if losses is not None:
            for name, value in {"loss": sum(losses.values()), **losses}.items():
                self.meters.setdefault(name, SmoothedValue()).update(float(value))
        index, self.done = self.done, self.done + 1
        if not self.enabled:
            return
        if self.bar is not None:
            self.bar.set_postfix_str(self.line(index), refresh=False)
            self.bar.update()
        elif index % self.print_freq == 0 or self.done == self.total or time.monotonic() - self.printed >= QUIET:
            print(self.line(index), file=self.stream, flush=True)
            self.printed = time.monotonic()

    def say(self, line: str) -> None:
        """Prints a line; on a terminal above the bar."""
        if self.enabled:
            tqdm.write(line, file=self.stream) if self.bar is not None else print(line, file=self.stream, flush=True)

    def line(self, index: int) -> str:
        """Returns the console line of step `index`; losses as `median (global average)`."""
        steps = max(0, self.total - index - 1) + self.left.steps
        eta = round(self.time.global_average * steps + self.left.seconds)
        fields = [
            f"{self.header}  [{index:{len(str(self.total))}d}/{self.total}]",
            f"eta: {datetime.timedelta(seconds=eta)}",
            f"lr: {self.lr:.6f}",
        ]
        fields += [f"{name}: {m.median:.4f} ({m.global_average:.4f})" for name, m in self.meters.items()]
        fields += [f"time: {self.time.average:.4f}", f"data: {self.data_time.average:.4f}"]
        if self.device.type == "cuda":
            fields.append(f"max mem: {torch.cuda.max_memory_allocated(self.device) // 2**20}")  # MiB
        return "  ".join(fields)

    def close(self) -> None:
        """Ends the display: the last line takes the place of the bar, and the time of all steps is printed."""
        if self.bar is not None:
            self.bar.close()
            if self.time.count:
                print(self.line(self.done - 1), file=self.stream, flush=True)
        if self.enabled and self.time.count:
            total = datetime.timedelta(seconds=round(self.time.total))
            per_step = f"{self.time.global_average:.4f} s / it"
            print(f"{self.header}  total time: {total} ({per_step})", file=self.stream, flush=True)
        self.bar, self.enabled = None, False

    def averages(self) -> dict[str, float]:
        """Returns the global average of each loss, "loss" (their sum) first; empty before any step with losses."""
        return {name: meter.global_average for name, meter in self.meters.items()}

    def state_dict(self) -> dict:
        """Returns plain values for a checkpoint's `progress`."""
        meters = {name: meter.state_dict() for name, meter in self.meters.items()}
        return {"done": self.done, "lr": self.lr, "meters": meters}

    def load_state_dict(self, state: Mapping) -> None:
        """Restores what `state_dict` returned."""
        self.done, self.lr = state["done"], state["lr"]
        for name, values in state["meters"].items():
            self.meters.setdefault(name, SmoothedValue()).load_state_dict(values)
        if self.bar is not None:
            self.bar.n = self.bar.initial = self.done


class ImageProgress:
    """Shows how many images of an evaluation are done: a bar on a terminal, else a line when QUIET seconds have passed.

    Its arguments are as MetricLogger's; total: number of images.
    """

    def __init__(self, header: str, total: int, enabled: bool = True, stream: TextIO | None = None) -> None:
        self.header, self.total, self.enabled, self.stream = header, total, enabled, stream or sys.stdout
        self.done, self.start = 0, time.monotonic()
        self.printed = self.start
        self.bar = None
        if enabled and self.stream.isatty():
            self.bar = tqdm(total=total, desc=header, unit="image", file=self.stream, dynamic_ncols=True, leave=False)

    def add(self, images: int) -> None:
        """Counts images that are done."""
        self.done += images
        if self.bar is not None:
            self.bar.update(images)
        elif self.enabled and time.monotonic() - self.printed >= QUIET:
            self.printed = time.monotonic()
            eta = (self.printed - self.start) / max(self.done, 1) * (self.total - self.done)
            count = f"[{self.done:{len(str(self.total))}d}/{self.total}]"
            line = f"{self.header}  {count} images  eta: {datetime.timedelta(seconds=round(eta))}"
            print(line, file=self.stream, flush=True)

    def close(self) -> None:
        """Takes the bar away."""
        if self.bar is not None:
            self.bar.close()


def duration(seconds: float) -> str:
    """Returns about how long that is, in words: "45 s", "12 minutes", "1.5 hours", "4 days"."""
    for unit, name, upto in ((1, "s", 90), (60, "minutes", 90 * 60), (3600, "hours", 48 * 3600)):
        if seconds < upto:
            return f"{max(1, seconds / unit):.2g} {name}"
    return f"{seconds / 86400:.0f} days"
