"""Families of augmentations, which transforms.py puts together."""
