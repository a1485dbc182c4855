"""The parts of `roi_heads`: the layers of both branches, which proposals train them, and which detections are kept."""
