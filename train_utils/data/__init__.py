"""Folder -> ImageDataset -> batches."""
