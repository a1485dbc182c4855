"""Checkpoint and images -> detections, results files and drawn images."""
