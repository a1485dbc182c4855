"""What predict.py is asked to do: images and videos to draw, a camera, the images of a COCO json."""
