"""Detections and ground truth -> COCO's numbers, records and mistakes."""
