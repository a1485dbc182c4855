"""Data sets and images -> checks, conversions and pages: commands beside training, each as `python -m tools.NAME`."""
