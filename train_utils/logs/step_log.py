"""Finished steps -> `steps.jsonl`: one json object per optimiser step, in order, each step once."""

import itertools
import json
import math
from pathlib import Path
from typing import Any

from train_utils.io.files import open_to_append, read_text, write_text, writing
from train_utils.io.plain_text import json_text


class StepLog:
    """Writes `folder`/steps.jsonl; a resumed run first removes the lines from `first_step` on, and a torn last line."""

    def __init__(self, folder: str | Path, first_step: int = 0) -> None:
        self.path = Path(folder) / "steps.jsonl"
        open_to_append(self.path).close()  # refuses a link
        if lines := read_text(self.path).splitlines(keepends=True):
            write_text(self.path, "".join(itertools.takewhile(lambda line: self._step(line) < first_step, lines)))
        self.file = open_to_append(self.path)

    @staticmethod
    def _step(line: str) -> float:
        """Returns the step of a line, infinity where it has none."""
        try:
            return json.loads(line)["step"] if line.endswith("\n") else math.inf
        except (ValueError, TypeError, KeyError):
            return math.inf

    def write(self, step: int, **values: Any) -> None:
        """Appends a line of plain values."""
        with writing(self.path):
            self.file.write((json_text({"step": step, **values}) + "\n").encode())

    def close(self) -> None:
        """Closes the file."""
        self.file.close()
