"""Data sets and images -> checks, conversions and pages: commands beside training, each as `python -m tools.NAME`."""

import backbone  # noqa: F401  before torch, for how its threads wait
