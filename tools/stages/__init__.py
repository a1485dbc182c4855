"""The parts of tools.visualise_stages and docs/tour.ipynb: what each stage of Mask R-CNN sees, as images."""
