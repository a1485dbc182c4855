"""What the objects of training data say about a run: how often images come, anchors, the size of images."""
