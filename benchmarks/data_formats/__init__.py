"""A COCO data set in every other format: what becomes of its masks, and what reading each format takes."""
