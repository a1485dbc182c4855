"""The environment -> how long torch's threads spin while they wait for each other, set before torch is loaded.

By default OpenMP's threads spin for some 300,000 turns. Beside other programs that takes the cores from the threads
that are waited for. 10,000 turns cost nothing on a quiet machine: `python -m benchmarks.machine.busy` measures both.
"""

from collections.abc import Mapping

# of OpenMP's runtimes: how long a thread that waits keeps its core
WAIT_VARIABLES = frozenset({"OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME"})
WAIT = {"GOMP_SPINCOUNT": "10000"}


def usual_wait(environment: Mapping[str, str]) -> dict[str, str]:
    """Returns the variables to set before torch is loaded: none where one of them is set already."""
    return {} if WAIT_VARIABLES & environment.keys() else WAIT


def chosen_by_user(environment: Mapping[str, str]) -> bool:
    """Returns whether the environment says something else than `usual_wait` does."""
    return any(environment[name] != WAIT.get(name) for name in WAIT_VARIABLES & environment.keys())


def without_wait(environment: Mapping[str, str]) -> dict[str, str]:
    """Returns the environment as it was before `usual_wait`: for programs that are to run as torch has them."""
    return {name: value for name, value in environment.items() if WAIT.get(name) != value}
