"""Commands beside training: coco_to_npy, npy_to_coco, pack_dataset, visualise_stages; each as `python -m tools.NAME`."""
