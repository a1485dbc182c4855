"""What a run tells: the console line, the det_results / seg_results files, steps.jsonl."""

from __future__ import annotations

import datetime
import itertools
import json
import math
import re
import statistics
import sys
import time
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TextIO

import torch
from tqdm import tqdm

from backbone.errors import InputError
from train_utils.io.files import make_folder, write_text, writing

WINDOW = 20  # steps that the medians on the console look back
# the 12 COCO numbers, in pycocotools' order
COCO_NUMBERS = (
    "AP",
    "AP50",
    "AP75",
    "AP_small",
    "AP_medium",
    "AP_large",
    "AR_1",
    "AR_10",
    "AR_100",
    "AR_small",
    "AR_medium",
    "AR_large",
)
RESULT_FILES = {"bbox": "det_results", "segm": "seg_results"}  # IoU type -> name of its files


class SmoothedValue:
    """A series of numbers: the latest, the median of the last `WINDOW`, the average of all."""

    def __init__(self) -> None:
        self.recent: deque[float] = deque(maxlen=WINDOW)
        self.total, self.count = 0.0, 0

    def update(self, value: float) -> None:
        self.recent.append(value)
        self.total += value
        self.count += 1

    @property
    def value(self) -> float:
        return self.recent[-1] if self.recent else math.nan

    @property
    def median(self) -> float:
        """For an even number of values the lower of the middle two, as torch.median has it."""
        return statistics.median_low(self.recent) if self.recent else math.nan

    @property
    def average(self) -> float:
        """Over the window."""
        return statistics.fmean(self.recent) if self.recent else math.nan

    @property
    def global_average(self) -> float:
        return self.total / self.count if self.count else math.nan

    def state_dict(self) -> dict:
        return {"recent": list(self.recent), "total": self.total, "count": self.count}

    def load_state_dict(self, state: Mapping) -> None:
        self.recent = deque(state["recent"], maxlen=WINDOW)
        self.total, self.count = state["total"], state["count"]


class MetricLogger:
    """Shows how an epoch of training, or an evaluation, gets on.

    A line every `print_freq` steps and after the last one; on a terminal a tqdm bar shows the same at each
    step, and the last line stays. What it averages is in `state_dict`, so that a run resumed within an epoch
    ends that epoch with the same line (the times apart).

    Args:
        header: begins each line, "Epoch: [3]" or "Test:".
        total: number of steps.
        first: steps done before (in a resumed epoch).
        device: where the memory is counted; on the CPU "max mem" is left out.
        enabled: False on all ranks but the main one: it averages, and shows nothing.
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
        self.header, self.total, self.done, self.print_freq = header, total, first, max(1, print_freq)
        self.device, self.stream, self.enabled = torch.device(device), stream or sys.stdout, enabled
        self.meters: dict[str, SmoothedValue] = {}
        self.lr, self.clock = math.nan, time.perf_counter()
        self.time, self.data_time = SmoothedValue(), SmoothedValue()
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

    def step(
        self,
        seconds: float | None = None,
        data_seconds: float = 0.0,
        losses: Mapping[str, float] | None = None,
        lr: float | None = None,
    ) -> None:
        """Take in one finished step; `losses` is None for a step without any (then none is averaged).

        `seconds` of the whole step, `data_seconds` of it spent waiting for data; None: the time since the
        last step.
        """
        now = time.perf_counter()
        self.time.update(now - self.clock if seconds is None else seconds)
        self.clock = now
        self.data_time.update(data_seconds)
        if lr is not None:
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
        elif index % self.print_freq == 0 or self.done == self.total:
            print(self.line(index), file=self.stream, flush=True)

    def line(self, index: int) -> str:
        """The console line of step `index`; losses as `median (global average)`."""
        eta = round(self.time.global_average * max(0, self.total - index - 1))
        fields = [
            f"{self.header}  [{index:{len(str(self.total))}d}/{self.total}]",
            f"eta: {datetime.timedelta(seconds=eta)}",
        ]
        if not math.isnan(self.lr):
            fields.append(f"lr: {self.lr:.6f}")
        fields += [f"{name}: {m.median:.4f} ({m.global_average:.4f})" for name, m in self.meters.items()]
        fields += [f"time: {self.time.average:.4f}", f"data: {self.data_time.average:.4f}"]
        if self.device.type == "cuda":
            fields.append(f"max mem: {torch.cuda.max_memory_allocated(self.device) // 2**20}")  # MiB
        return "  ".join(fields)

    def close(self) -> None:
        """End the display: the bar makes room for its last line, and the time of all steps is told."""
        if self.bar is not None:
            self.bar.close()
            if self.time.count:
                print(self.line(self.done - 1), file=self.stream, flush=True)
        if self.enabled and self.time.count:
            total = datetime.timedelta(seconds=round(self.time.total))
            print(
                f"{self.header}  total time: {total} ({self.time.global_average:.4f} s / it)",
                file=self.stream,
                flush=True,
            )
        self.bar, self.enabled = None, False

    def averages(self) -> dict[str, float]:
        """Global average per loss, "loss" (their sum) first; empty before the first step with losses."""
        return {name: meter.global_average for name, meter in self.meters.items()}

    def state_dict(self) -> dict:
        """Plain values for a checkpoint's `progress`."""
        meters = {name: meter.state_dict() for name, meter in self.meters.items()}
        return {"done": self.done, "lr": self.lr, "meters": meters}

    def load_state_dict(self, state: Mapping) -> None:
        self.done, self.lr = state["done"], state["lr"]
        for name, values in state["meters"].items():
            self.meters.setdefault(name, SmoothedValue()).load_state_dict(values)
        if self.bar is not None:
            self.bar.n = self.bar.initial = self.done


class ResultsWriter:
    """`det_results*.txt` and `seg_results*.txt` (a line per epoch), and the same as `.json` for programs.

    A resumed run goes on in the files that its folder holds: lines of the epochs to come are taken out, each
    remaining epoch has exactly one line. Files are replaced whole, so that a kill never leaves half a line.
    Write an epoch's lines before the checkpoint that ends it: killed between the two, the epoch is run again
    and its lines are replaced; the other way round they would be lost.

    Args:
        folder: the run folder.
        first_epoch: the epoch that the run (re)starts with.

    Raises:
        InputError: the files cannot be read or written, or the json is not one that this class wrote.
    """

    def __init__(self, folder: str | Path, first_epoch: int = 0) -> None:
        self.folder = make_folder(folder)
        self.stamp = self._find_stamp() or datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
        self.lines: dict[str, dict[int, str]] = {}
        self.records: dict[str, dict[int, dict]] = {}
        for iou_type in RESULT_FILES:
            lines, records = self._read_lines(iou_type), self._read_records(iou_type)
            self.lines[iou_type] = {e: line for e, line in lines.items() if e < first_epoch}
            self.records[iou_type] = {e: record for e, record in records.items() if e < first_epoch}
            if lines or records:
                self._write_files(iou_type)

    def write(
        self, epoch: int, stats: Mapping[str, Sequence[float]], loss: float | None, lr: float, **more: object
    ) -> None:
        """Add (or replace) the lines of an epoch.

        Args:
            stats: IoU type ("bbox", "segm") -> its 12 COCO numbers, -1 where absent.
            loss: mean training loss; None where no step had one.
            more: further plain values for the json alone (validation losses, seconds, ...).
        """
        for iou_type, numbers in stats.items():
            loss_value = math.nan if loss is None else float(loss)
            fields = [f"{float(v):.4f}" for v in (*numbers, loss_value)] + [f"{lr:.6f}"]
            self.lines[iou_type][epoch] = f"epoch:{epoch} {'  '.join(fields)}"
            named = {name: float(v) for name, v in zip(COCO_NUMBERS, numbers, strict=True)}
            record = {"epoch": epoch, **named, "loss": loss, "lr": lr, **more}
            self.records[iou_type][epoch] = record
            self._write_files(iou_type)

    def history(self, iou_type: str = "segm") -> list[dict]:
        """The epochs so far, in order: {"epoch", the 12 COCO numbers by name, "loss", "lr", ...}."""
        return [record for _, record in sorted(self.records[iou_type].items())]

    def path(self, iou_type: str, suffix: str = ".txt") -> Path:
        """Path of the text file (with the run's date) or of the json (without)."""
        stamp = self.stamp if suffix == ".txt" else ""
        return self.folder / f"{RESULT_FILES[iou_type]}{stamp}{suffix}"

    def _find_stamp(self) -> str | None:
        """The date in the name of the latest text file that the folder holds."""
        name = re.compile(r"(?:det|seg)_results(\d{8}-\d{6})\.txt")
        found = (name.fullmatch(path.name) for path in self.folder.iterdir())
        return max((m[1] for m in found if m), default=None)

    def _read_lines(self, iou_type: str) -> dict[int, str]:
        path = self.path(iou_type)
        text = _read_text(path) if path.exists() else ""
        found = (re.match(r"epoch:(\d+) .*\n", line) for line in text.splitlines(keepends=True))
        return {int(m[1]): m[0].rstrip("\n") for m in found if m}

    def _read_records(self, iou_type: str) -> dict[int, dict]:
        path = self.path(iou_type, ".json")
        if not path.exists():
            return {}
        try:
            return {int(record["epoch"]): record for record in json.loads(_read_text(path))}
        except (ValueError, TypeError, KeyError) as error:
            raise InputError(
                f"{path}: not a results file of a run; move it away, or give another --output-dir"
            ) from error

    def _write_files(self, iou_type: str) -> None:
        lines, records = self.lines[iou_type], self.history(iou_type)
        write_text(self.path(iou_type), "".join(lines[e] + "\n" for e in sorted(lines)))
        body = ",\n".join(json.dumps(_finite(record), allow_nan=False) for record in records)
        write_text(self.path(iou_type, ".json"), f"[\n{body}\n]\n" if records else "[]\n")


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read ({error})") from error


def _finite(value):
    """json has neither NaN nor infinity: null stands for them."""
    if isinstance(value, Mapping):
        return {name: _finite(v) for name, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


class StepLog:
    """`folder`/steps.jsonl: one json object per optimiser step, in order, each step once.

    A resumed run takes out the lines from `first_step` on, and half a line that a kill has left.
    """

    def __init__(self, folder: str | Path, first_step: int = 0) -> None:
        self.path = Path(folder) / "steps.jsonl"
        if self.path.exists():
            lines = _read_text(self.path).splitlines(keepends=True)
            write_text(self.path, "".join(itertools.takewhile(lambda line: self._step(line) < first_step, lines)))
        with writing(self.path):
            self.file = open(self.path, "a", encoding="utf-8")

    @staticmethod
    def _step(line: str) -> float:
        try:
            return json.loads(line)["step"] if line.endswith("\n") else math.inf
        except (ValueError, TypeError, KeyError):
            return math.inf

    def write(self, step: int, **values: object) -> None:
        with writing(self.path):
            self.file.write(json.dumps(_finite({"step": step, **values}), allow_nan=False) + "\n")
            self.file.flush()

    def close(self) -> None:
        self.file.close()
