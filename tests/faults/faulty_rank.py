"""python faulty_rank.py pause PHASE COUNT MARKER [flags]: train_multi_GPU.py with a fault, for torchrun to start.

The fault is in the first rank, which does what the others do and more.
"""

import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import train_multi_GPU  # noqa: E402
from tests.faults.processes import install  # noqa: E402
from train_utils.cli.command import run_command  # noqa: E402

if __name__ == "__main__":
    kind, phase, count, marker = sys.argv[1:5]
    del sys.argv[1:5]
    if os.environ["RANK"] == "0":
        install(kind, phase, int(count), marker)
    sys.exit(run_command(train_multi_GPU.main))
