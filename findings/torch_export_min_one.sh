#!/usr/bin/env bash
# torch 2.14.1: torch.export with a side that is a multiple of a Dim whose min is 1.
#
# One would guess: 32 * Dim("cells", min=1) allows a side of 32, as the program's range_constraints say (32 to 256); or
#                  the export says that it does not, as it says of other ranges that a trace narrows.
# It does:         the export passes. The Dim itself becomes 2 to 8 without a word, and the program refuses a side of 32:
#                  "Guard failed: x.size()[2] // 32 != 1". Unguarded (check_guards=False) it computes the right result. A
#                  side that is the Dim itself may be 1. With backed_size_oblivious in torch.fx.experimental._config
#                  this pooling takes 32.
# Seen:            32 refused, right where unguarded; 64 taken; a plain Dim takes 1
set -euo pipefail
room=$(mktemp -d)
trap 'rm -rf "$room"' EXIT
python3 -m venv "$room/venv"
"$room/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.14.1 numpy==2.4.6
"$room/venv/bin/python" - << 'PY'
import torch


class Pool(torch.nn.Module):
    def forward(self, x):
        return torch.nn.functional.avg_pool2d(x, 32)


class Twice(torch.nn.Module):
    def forward(self, x):
        return x * 2


def outcome(program, image, **options):
    try:
        return tuple(program.module(**options)(image).shape)
    except AssertionError as error:
        return str(error)


cells = torch.export.Dim("cells", min=1, max=8)
pool = torch.export.export(Pool(), (torch.ones(1, 3, 64, 64),), dynamic_shapes=({2: 32 * cells},))
twice = torch.export.export(Twice(), (torch.ones(1, 3, 2, 64),), dynamic_shapes=({2: cells},))
small, large = torch.ones(1, 3, 32, 64), torch.ones(1, 3, 64, 64)
print("torch", torch.__version__, "ranges:", pool.range_constraints)
found = [
    outcome(pool, small),
    outcome(pool, small, check_guards=False),
    outcome(pool, large),
    outcome(twice, torch.ones(1, 3, 1, 64)),
]
print(*found, sep="\n")
assert found[0].startswith("Guard failed: x.size()[2] // 32 != 1"), found
assert found[1:] == [(1, 3, 1, 2), (1, 3, 2, 2), (1, 3, 1, 64)], found
assert "VR[32, 256]" in map(str, pool.range_constraints.values()), pool.range_constraints
PY
