"""COCO numbers of each epoch -> `det_results*.txt` and `seg_results*.txt` (a line per epoch), and `.json`."""

import datetime
import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from backbone.errors import InputError
from train_utils.evaluation.numbers import STAT_NAMES
from train_utils.io.files import make_folder, read_text, write_text
from train_utils.io.plain_text import json_text

RESULT_FILES = {"bbox": "det_results", "segm": "seg_results"}  # IoU type -> name of its files
# the names that the 12 numbers had in the json of earlier versions
EARLIER_NAMES = ("AP", "AP50", "AP75", "AP_small", "AP_medium", "AP_large")
EARLIER_NAMES += ("AR_1", "AR_10", "AR_100", "AR_small", "AR_medium", "AR_large")
RENAMED = dict(zip(EARLIER_NAMES, STAT_NAMES, strict=True))


class ResultsWriter:
    """Writes the results files of a run; a resumed run continues those that its folder holds.

    The lines of epochs from `first_epoch` on are removed; each epoch before it keeps exactly one line. Files are
    replaced whole, so that a kill never leaves half a line. Write an epoch's lines before the checkpoint that ends it:
    if the run is killed between the two, the epoch runs again and its lines are replaced. In the other order they
    would be lost.

    Raises InputError where the files cannot be read or written, or the json is not one that this class wrote.
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
        self, epoch: int, stats: Mapping[str, Sequence[float]], loss: float | None, lr: float, **more: Any
    ) -> None:
        """Adds (or replaces) the lines of an epoch.

        stats: IoU type ("bbox", "segm") -> its 12 COCO numbers, -1 where absent; loss: mean training loss, None where
        no step had one; more: further plain values for the json alone (validation losses, seconds, ...).
        """
        for iou_type, numbers in stats.items():
            loss_value = math.nan if loss is None else float(loss)
            fields = [f"{float(v):.4f}" for v in (*numbers, loss_value)] + [f"{lr:.6f}"]
            self.lines[iou_type][epoch] = f"epoch:{epoch} {'  '.join(fields)}"
            named = {name: float(v) for name, v in zip(STAT_NAMES, numbers, strict=True)}
            self.records[iou_type][epoch] = {"epoch": epoch, **named, "loss": loss, "lr": lr, **more}
            self._write_files(iou_type)

    def history(self, iou_type: str = "segm") -> list[dict]:
        """Returns the epochs so far, in order: {"epoch", STAT_NAMES' 12 numbers, "loss", "lr", ...}."""
        return [record for _, record in sorted(self.records[iou_type].items())]

    def rows(self) -> list[dict]:
        """Returns a flat row of each epoch so far: see `history`."""
        return _rows(*(self.history(iou_type) for iou_type in RESULT_FILES))

    def path(self, iou_type: str, suffix: str = ".txt") -> Path:
        """Returns the path of the text file (with the run's date) or of the json (without)."""
        stamp = self.stamp if suffix == ".txt" else ""
        return self.folder / f"{RESULT_FILES[iou_type]}{stamp}{suffix}"

    def _find_stamp(self) -> str | None:
        """Returns the date in the name of the latest text file in the folder."""
        name = re.compile(r"(?:det|seg)_results(\d{8}-\d{6})\.txt")
        found = (name.fullmatch(path.name) for path in self.folder.iterdir())
        return max((m[1] for m in found if m), default=None)

    def _read_lines(self, iou_type: str) -> dict[int, str]:
        path = self.path(iou_type)
        text = read_text(path) if path.exists() else ""
        found = (re.match(r"epoch:(\d+) .*\n", line) for line in text.splitlines(keepends=True))
        return {int(m[1]): m[0].rstrip("\n") for m in found if m}

    def _read_records(self, iou_type: str) -> dict[int, dict]:
        return _read_records(self.path(iou_type, ".json"))

    def _write_files(self, iou_type: str) -> None:
        lines, records = self.lines[iou_type], self.history(iou_type)
        write_text(self.path(iou_type), "".join(lines[e] + "\n" for e in sorted(lines)))
        body = ",\n".join(map(json_text, records))
        write_text(self.path(iou_type, ".json"), f"[\n{body}\n]\n" if records else "[]\n")


def history(folder: str | Path) -> list[dict]:
    """Returns a row of each epoch that a run folder holds results of: flat, so that pandas takes the list as it is.

    epoch, loss and lr; loss_mask, ... of training; val_loss, val_loss_mask, ...; bbox_AP, bbox_AP50, ..., segm_ARl;
    seconds of the evaluation.
    """
    return _rows(*(list(_read_records(Path(folder) / f"{name}.json").values()) for name in RESULT_FILES.values()))


def _read_records(path: Path) -> dict[int, dict]:
    """Returns {epoch: its record} of a json of results; empty where there is none."""
    if not path.exists():
        return {}
    try:
        records = [{RENAMED.get(k, k): v for k, v in record.items()} for record in json.loads(read_text(path))]
        return {int(record["epoch"]): record for record in records}
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise InputError(f"{path}: not a results file of a run; move it away, or give another --output-dir") from error


def _rows(boxes: Sequence[Mapping], masks: Sequence[Mapping]) -> list[dict]:
    """Returns flat rows of the records of boxes and masks of the same epochs."""
    rows = []
    for box, mask in zip(boxes, masks, strict=False):
        val = box.get("val_losses") or {}
        row = {"epoch": box["epoch"], "lr": box["lr"], "loss": box["loss"], **(box.get("train_losses") or {})}
        row |= {"val_loss": sum(val.values())} if val else {}
        row |= {f"val_{name}": value for name, value in val.items()}
        for iou_type, record in zip(RESULT_FILES, (box, mask), strict=True):
            row |= {f"{iou_type}_{name}": record[name] for name in STAT_NAMES}
        rows.append(row | {"seconds": box.get("seconds")})
    return rows
