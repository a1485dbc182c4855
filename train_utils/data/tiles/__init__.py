"""Large images -> tiles: where they lie (tiling.py), and the images and objects of a data set in them (cutting.py)."""
