"""What people hold in Python (paths, bytes, PIL images, arrays, tensors, torch Datasets) -> images and data sets."""
