"""What each part of a training recipe is worth: `python -m benchmarks.recipes`."""
