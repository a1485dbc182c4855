"""Measurements beside torchvision. Nothing imports them."""
