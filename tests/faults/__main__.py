"""`python -m tests.faults [NAME ...] [--full] [--list]`: see the package's docstring. Exit status 1: some failed."""

import argparse
import ast
import importlib
import sys
import tempfile
import time
from pathlib import Path

CASES = ["kills", "signals", "restarts", "losses", "hostile", "bit_flips", "save_speed", "fuzz", "catalogue", "growth"]
HOURS = "soak"  # runs when it is named alone, as long as one likes


def what(name: str) -> str:
    """A case's WHAT, read from its text: its imports may need packages that are not there."""
    tree = ast.parse((Path(__file__).parent / f"{name}.py").read_text(encoding="utf-8"))
    assigned = [node for node in tree.body if isinstance(node, ast.Assign)]
    (value,) = (node.value for node in assigned if ast.unparse(node.targets[0]) == "WHAT")
    return ast.literal_eval(value)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(CASES)} (default: these), {HOURS}")
    parser.add_argument("--full", action="store_true", help="the long version, whose figures are reported")
    parser.add_argument("--list", action="store_true", help="say what the cases are, and stop")
    parser.add_argument("--hours", type=float, default=2.0, help=f"how long {HOURS} lasts (default: 2)")
    args = parser.parse_args()
    unknown = set(args.names) - {*CASES, HOURS}
    if unknown:
        parser.error(f"no case {', '.join(sorted(unknown))}; there are {', '.join(CASES)} and {HOURS}")
    failed = False
    for name in args.names or (CASES + [HOURS] * args.list):
        print(f"{name}: {what(name)}", flush=True)
        if args.list:
            continue
        case = importlib.import_module(f"tests.faults.{name}")
        start = time.perf_counter()
        with tempfile.TemporaryDirectory(prefix="faults-") as folder:
            hours = (args.hours,) if name == HOURS else ()
            outcome = case.run(args.full, Path(folder), *hours)
        for line in outcome.failures:
            print(f"  FAILED {line}")
        note = f"; {outcome.note}" if outcome.note else ""
        print(f"  {outcome.good} of {outcome.total}{note} ({time.perf_counter() - start:.0f} s)", flush=True)
        failed = failed or bool(outcome.failures) or outcome.good < outcome.total
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
