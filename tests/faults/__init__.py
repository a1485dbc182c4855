"""Faults injected into real runs and real files, and counts of how many were survived.

    python -m tests.faults --list          the cases
    python -m tests.faults                 a short version of each, minutes
    python -m tests.faults kills --full    the long version of one, as its figures are reported
    python -m tests.faults soak --hours 2  runs that are cut by all of these, as long as one likes

A case is a module of this folder with WHAT (one line) and `run(full, folder) -> Outcome`; the tests of the same
names run the short version (`full=False`) and require that nothing failed.
"""

import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

KEPT_LOGS = Path(tempfile.gettempdir())  # of what failed


def progress(line):
    """Tell on stderr how far a case is."""
    print(f"  {line}", file=sys.stderr, flush=True)


class Outcome(NamedTuple):
    """good of total trials ended as they should; failures: one line each; note: other figures, for the report."""

    good: int
    total: int
    failures: list[str]
    note: str = ""
