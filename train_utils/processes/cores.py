"""The machine -> how many of its cores this process may use."""

import os


def usable_cores() -> int:
    """Returns the number of cores that this process may run on; at least 1.

    A shared machine gives a job a part of them (Slurm, taskset, `docker --cpuset-cpus`). Where the system does not say
    which, they are all of the machine's.
    """
    if hasattr(os, "sched_getaffinity"):  # Linux
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
