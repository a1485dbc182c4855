"""Measures this project beside torchvision. Nothing imports it."""
