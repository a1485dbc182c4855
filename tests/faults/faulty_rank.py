"""train_multi_GPU.py with a fault, for torchrun: -m tests.faults.faulty_rank pause PHASE COUNT MARKER [flags].

The fault is in the first rank, which does what the others do and more.
"""

import os
import sys

import train_multi_GPU
from tests.faults.processes import install
from train_utils.cli.command import run_command

if __name__ == "__main__":
    kind, phase, count, marker = sys.argv[1:5]
    del sys.argv[1:5]
    if os.environ["RANK"] == "0":
        install(kind, phase, int(count), marker)
    sys.exit(run_command(train_multi_GPU.main))
