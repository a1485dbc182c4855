"""Commands beside training, each as `python -m tools.NAME`: check_data, coco_to_npy, npy_to_coco, pack_dataset,
visualise_stages."""
