"""Freed memory goes back to the system at once while that is asked for, or when it is."""

import subprocess
import sys

import pytest

from tests.small_runs import ROOT

SCRIPT = """
import os, sys, torch
from contextlib import nullcontext
from pathlib import Path
from train_utils.io.memory import give_back_freed_memory, returning_freed_memory

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

def is_kept(where):
    torch.ones(2**23 - 2**10)  # freed: from now on glibc keeps smaller blocks
    with returning_freed_memory() if where == "inside" else nullcontext():
        if where == "after":
            with returning_freed_memory():
                pass
        before = resident()
        blocks = [torch.ones(2**19) for _ in range(100)]  # 2 MiB each
        last = blocks.pop()
        blocks.clear()
        if where == "given back":
            give_back_freed_memory()
        return resident() - before > 2**26

for where in ("outside", "inside", "after", "given back"):
    child = os.fork()  # a process of its own for each, which imports nothing again
    if child == 0:
        print(where, is_kept(where), flush=True)
        os._exit(0)
    os.waitpid(child, 0)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc")
def test_freed_memory_is_returned():
    done = subprocess.run([sys.executable, "-c", SCRIPT], cwd=ROOT, text=True, capture_output=True)
    expected = ["outside True", "inside False", "after True", "given back False"]
    assert done.stdout.splitlines() == expected, done.stderr
