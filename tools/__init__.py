"""Commands beside training: `python -m tools.coco_to_npy --help`, `python -m tools.npy_to_coco --help`."""
