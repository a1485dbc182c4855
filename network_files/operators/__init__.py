"""Boxes, rois and masks -> boxes, rows and masks: the operators of the network, in plain PyTorch."""
