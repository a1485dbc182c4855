"""Freed memory goes back to the system at once while that is asked for."""

import subprocess
import sys

import pytest

from tests.small_runs import ROOT

SCRIPT = """
import sys, torch
from contextlib import nullcontext
from pathlib import Path
from train_utils.io.memory import returning_freed_memory

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

torch.ones(2**23 - 2**10)  # freed: from now on glibc keeps smaller blocks
with returning_freed_memory() if sys.argv[1] == "inside" else nullcontext():
    if sys.argv[1] == "after":
        with returning_freed_memory():
            pass
    before = resident()
    blocks = [torch.ones(2**19) for _ in range(100)]  # 2 MiB each
    last = blocks.pop()
    blocks.clear()
    print(resident() - before > 2**26)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc")
@pytest.mark.parametrize("where, kept", [("outside", "True"), ("inside", "False"), ("after", "True")])
def test_freed_memory_is_returned(where, kept):
    done = subprocess.run([sys.executable, "-c", SCRIPT, where], cwd=ROOT, text=True, capture_output=True)
    assert done.stdout.split() == [kept], done.stderr
