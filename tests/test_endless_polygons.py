"""Polygons whose rasterisation would take all memory are named, long outlines of real objects are not."""

import numpy as np
import pytest

from backbone.errors import InputError
from my_dataset_coco import CocoDataset
from tests import coco_folders
from train_utils.data.formats.coco.reading import read_annotations
from train_utils.data.masks import LONGEST_OUTLINE, outline


def zigzag(count, width):
    return [value for i in range(count) for value in (width * (i % 2), i % 20)]


def test_a_polygon_that_goes_to_and_fro_is_named(tmp_path):
    content = coco_folders.coco(
        annotations=[coco_folders.annotation(), coco_folders.annotation(7, segmentation=[zigzag(20_000, 290)])]
    )
    data = CocoDataset(coco_folders.write(tmp_path, content), tmp_path / "images")
    with pytest.raises(InputError, match=r"instances\.json: annotation 7: its polygons go to and fro"):
        data.target(0)


def test_a_long_outline_within_the_limit_is_rasterised(tmp_path):
    content = coco_folders.coco(annotations=[coco_folders.annotation(7, segmentation=[zigzag(20_000, 29)])])
    data = CocoDataset(coco_folders.write(tmp_path, content), tmp_path / "images")
    assert len(data.target(0)["labels"]) == 1


def test_outlines_are_measured_where_they_may_be_too_long():
    square = np.array([0.0, 0, 0, 10, 10, 10, 10, 0])
    assert outline([square, square], (20, 30)) <= 2 * 10 * 30 * 8
    assert outline([np.tile(square, 20_000)], (20, 30)) == pytest.approx(40 * 20_000)
    assert outline([square * 1e5], (10**6, 10**6)) == 4_000_000 > LONGEST_OUTLINE


def test_a_size_that_no_image_has_is_refused(tmp_path):
    images = [{"id": 1, "file_name": "a.png", "height": 2**16, "width": 2**15}]
    path = coco_folders.write(tmp_path, coco_folders.coco(images=[{**images[0], "height": 20, "width": 30}]))
    path.write_text(path.read_text().replace('"height": 20, "width": 30', '"height": 65536, "width": 32768'))
    with pytest.raises(InputError, match="a size of 32768x65536"):
        read_annotations(path)
