"""Files, plain text and memory: what knows nothing of images."""
