"""Times two implementations of one thing by turns in one process, and takes their memory each in a process of its own.

A machine's speed drifts, so seconds of different runs say little: the ratio of medians taken by turns does.
"""

import gc
import json
import math
import multiprocessing
import os
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

from backbone.errors import InputError
from train_utils.io.memory import give_back_freed_memory

SIDES = ("ours", "theirs")
HEADER = (
    "| what | ours | theirs | ratio | ours, memory | theirs, memory | ratio | difference |\n"
    "|---|---|---|---|---|---|---|---|"
)
PEAK, KEPT = "peak", "kept"
Sides = tuple[Callable[[], Any], Callable[[], Any]]  # ours and theirs


@dataclass(frozen=True)
class Settings:
    """What every benchmark is given; data: a folder with coco_mini/ in it, or None for drawn images.

    seconds: after which no further turn begins, once each side has had one.
    """

    device: torch.device
    data: Path | None
    repeats: int
    seconds: float = math.inf


@dataclass(frozen=True)
class Benchmark:
    """One measurement of two sides.

    prepare: settings -> both sides, functions without arguments whose results can be compared; it raises `LeftOut`
    where this machine can't run it. difference: (our, their result) -> the largest difference, None where chance is at
    work. against: whose the other side is. memory: PEAK while it runs, KEPT by its result, or None, not measured.
    takes_minutes: runs only where it is named.
    """

    name: str
    what: str
    prepare: Callable[[Settings], "Sides"]
    difference: Callable[[Any, Any], float] | None = None
    against: str = "torchvision"
    memory: str | None = PEAK
    takes_minutes: bool = False


class LeftOut(InputError):
    """Why this machine can't run a benchmark."""


@dataclass(frozen=True)
class Row:
    """One line of the table: medians in seconds, memory above what the inputs took in MiB."""

    name: str
    what: str
    against: str
    ours: float
    theirs: float
    ratio: float
    ours_mib: float | None
    theirs_mib: float | None
    difference: float | None
    repeats: int

    def markdown(self) -> str:
        """Returns a row of the table."""
        what = self.what if self.against == "torchvision" else f"{self.what} (beside {self.against})"
        memory = ["" if m is None else f"{m:.0f} MiB" for m in (self.ours_mib, self.theirs_mib)]
        memory.append(f"{self.ours_mib / self.theirs_mib:.2f}" if self.ours_mib and self.theirs_mib else "")
        difference = "" if self.difference is None else f"{self.difference:.1e}"
        cells = [what, _duration(self.ours), _duration(self.theirs), f"{self.ratio:.2f}", *memory, difference]
        return f"| {' | '.join(cells)} |"

    def json(self) -> str:
        """Returns a line of JSON."""
        return json.dumps(asdict(self))


def _duration(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds >= 1 else f"{seconds * 1e3:.1f} ms"


def measure(benchmark: Benchmark, settings: Settings, memory: bool = True) -> Row:
    """Measures both sides by turns, once to warm up and then `settings.repeats` times, or until time is up."""
    end = time.perf_counter() + settings.seconds
    sides = dict(zip(SIDES, benchmark.prepare(settings), strict=True))
    results = {side: run() for side, run in sides.items()}
    difference = benchmark.difference(*results.values()) if benchmark.difference else None
    del results
    seconds: dict[str, list[float]] = {side: [] for side in SIDES}
    for turn in range(settings.repeats):
        if turn and time.perf_counter() > end:
            break
        for side, run in sides.items():
            seconds[side].append(_timed(run, settings.device))
    ours, theirs = (statistics.median(seconds[side]) for side in SIDES)
    peaks = [memory_of(benchmark, settings, side) if memory else None for side in SIDES]
    which = benchmark.name, benchmark.what, benchmark.against
    return Row(*which, ours, theirs, ours / theirs, *peaks, difference, len(seconds["ours"]))


def _timed(run: Callable[[], Any], device: torch.device) -> float:
    _wait(device)
    start = time.perf_counter()
    run()
    _wait(device)
    return time.perf_counter() - start


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def memory_of(benchmark: Benchmark, settings: Settings, side: str) -> float | None:
    """Returns the MiB that one side needs beyond what was there before it ran; None where they are not known.

    Measured in a fresh process on the first run, so that neither side reuses what the other or itself left.
    """
    if benchmark.memory is None:
        return None
    try:
        return in_fresh_process(_measure_memory, benchmark, settings, side, torch.get_num_threads())
    except EOFError:
        raise RuntimeError(f"{benchmark.name}: the process that measures the memory of {side} died") from None


def in_fresh_process(function: Callable, *args: Any) -> Any:
    """Returns what `function(*args, sender)` sends, from a process of its own; raises EOFError where it dies before."""
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    child = context.Process(target=function, args=(*args, sender))
    child.start()
    sender.close()
    try:
        return receiver.recv()
    finally:
        child.join()


def _measure_memory(benchmark: Benchmark, settings: Settings, side: str, threads: int, sender: Connection) -> None:
    torch.set_num_threads(threads)
    run = benchmark.prepare(settings)[SIDES.index(side)]
    if settings.device.type == "cuda":
        run()  # libraries set aside their workspaces at the first call
        _wait(settings.device)
        before = torch.cuda.memory_allocated(settings.device)
        torch.cuda.reset_peak_memory_stats(settings.device)
        run()
        _wait(settings.device)
        sender.send((torch.cuda.max_memory_allocated(settings.device) - before) / 2**20)
        return
    release_freed_memory()
    try:
        Path("/proc/self/clear_refs").write_text("5")  # Linux: the peak starts again from what is resident now
        before = resident_mib("VmRSS")
    except OSError:
        sender.send(None)
        return
    result = run()
    gc.collect()
    sender.send(resident_mib("VmRSS" if benchmark.memory == KEPT else "VmHWM") - before)
    del result  # alive until here


def release_freed_memory() -> None:
    """Hands back what glibc keeps of freed memory: a measurement would take it for unused."""
    gc.collect()
    give_back_freed_memory()


def resident_mib(field: str) -> float:
    """Returns MiB from /proc/self/status: "VmRSS" resident now, "VmHWM" at its peak."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) / 1024


def describe_machine(device: torch.device) -> str:
    """Returns one line: versions, threads, processor."""
    import torchvision

    processor = torch.cuda.get_device_name(device) if device.type == "cuda" else _cpu_name()
    return (
        f"torch {torch.__version__}, torchvision {torchvision.__version__}, {torch.get_num_threads()} threads "
        f"of {os.cpu_count()} cores, {processor}"
    )


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def largest_difference(ours: Any, theirs: Any) -> float:
    """Returns the largest absolute difference between tensors, or lists of tensors, of equal shapes (else infinite)."""
    if isinstance(ours, torch.Tensor):
        if ours.shape != theirs.shape:
            return float("inf")
        return float((ours.double() - theirs.double()).abs().max()) if ours.numel() else 0.0
    if len(ours) != len(theirs):
        return float("inf")
    return max((largest_difference(a, b) for a, b in zip(ours, theirs, strict=True)), default=0.0)
