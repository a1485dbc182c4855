"""Shows what each stage of Mask R-CNN sees, as images: the parts of tools.visualise_stages and docs/tour.ipynb."""
