"""All objects of a data set in flat arrays, whatever its layout. I images, A objects, crowd regions among them."""

from typing import NamedTuple

import numpy as np
from pycocotools import mask as coco_mask

from train_utils.data.dataset import ImageDataset
from train_utils.data.masks import HUNDREDTHS, NO_ID, POLYGON, RLE, PolygonsAndRle
from train_utils.data.tiles.cutting import Tiles
from train_utils.data.tiles.tiling import TrainingTiles

CHUNK = 2**15  # annotations whose polygons are measured together


class Table(NamedTuple):
    """The objects of a data set.

    sizes int64 [I, 2] (height, width); image int64 [A], the position in the data set; boxes float64 [A, 4]
    x1 y1 x2 y2 as annotated, and clipped ones within the image; labels int64 [A]; crowd bool [A]; areas float64 [A]
    as annotated, NaN where they are not; ids int64 [A], NO_ID where there is none; rows int64 [A]: in the data set's
    `annotations`.
    """

    data_set: ImageDataset
    sizes: np.ndarray
    image: np.ndarray
    boxes: np.ndarray
    labels: np.ndarray
    crowd: np.ndarray
    areas: np.ndarray
    ids: np.ndarray
    rows: np.ndarray

    @property
    def clipped(self) -> np.ndarray:
        """Boxes within their images, float64 [A, 4]."""
        return np.clip(self.boxes, 0, self.sizes[self.image][:, [1, 0, 1, 0]])

    def counts(self) -> np.ndarray:
        """Counts the objects of each image, crowds apart: int64 [I]."""
        return np.bincount(self.image[~self.crowd], minlength=len(self.sizes))

    def file(self, k: int) -> str:
        """Returns the path of object k's image."""
        return self.data_set.file_name(int(self.image[k]))

    def where(self, k: int) -> dict:
        """Returns object k's ids as `Finds.add` takes them."""
        return {
            "image": self.data_set.given_id(int(self.image[k])),
            "annotation": None if self.ids[k] == NO_ID else int(self.ids[k]),
        }

    def name(self, k: int) -> str:
        """Returns what a message calls object k."""
        where = self.where(k)
        place = k - int(np.searchsorted(self.image, self.image[k])) + 1  # in its image, from 1
        number = f"object {place}" if where["annotation"] is None else f"annotation {where['annotation']}"
        name = self.data_set.label_map.name(int(self.labels[k]))
        return f"{self.data_set.source}: {number} of image {where['image']} ({name})"


def table_of(data_set: ImageDataset) -> Table:
    """Returns the objects of a data set's images."""
    packed = data_set.annotations
    rows, image = data_set.object_rows()
    boxes = packed.boxes[rows]
    boxes[:, 2:] += boxes[:, :2]
    used, inverse = np.unique(packed.category_ids[rows], return_inverse=True)
    labels = np.array([data_set.label_map.to_label(i) for i in used.tolist()], dtype=np.int64)[inverse]
    return Table(
        data_set,
        packed.sizes[data_set.rows],
        image,
        boxes,
        labels,
        packed.iscrowd[rows].astype(bool),
        packed.areas[rows],
        packed.annotation_ids[rows],
        rows,
    )


def in_tiles(splits: dict[str, ImageDataset], tiles: TrainingTiles) -> dict[str, ImageDataset]:
    """Returns the splits as a model sees them: tiles, where --tile cuts the images."""
    if tiles.tiling is None:
        return splits
    return {split: Tiles(part, tiles.tiling, tiles.tile_negatives) for split, part in splits.items()}


class Outlines(NamedTuple):
    """What the masks of a COCO data set measure.

    tight float64 [A, 4]: x1 y1 x2 y2 around polygons' points or RLEs' pixels; areas float64 [A] in pixels (polygons':
    each by the shoelace formula, added up).
    """

    tight: np.ndarray
    areas: np.ndarray


def outlines(table: Table) -> Outlines | None:
    """Measures the masks without rasterising any; None where boxes are the masks' own: there is nothing to compare."""
    packed, rows = table.data_set.annotations.masks, table.rows
    if not isinstance(packed, PolygonsAndRle):
        return None
    tight, areas = np.zeros((len(rows), 4)), np.zeros(len(rows))
    kinds = packed.kinds[rows]
    for kind, dtype in ((HUNDREDTHS, np.uint16), (POLYGON, np.float64)):
        chosen = np.flatnonzero(kinds == kind)
        for start in range(0, len(chosen), CHUNK):
            some = chosen[start : start + CHUNK]
            tight[some], areas[some] = _of_polygons(packed, rows[some], dtype)
    for k in np.flatnonzero(kinds == RLE).tolist():
        rle = packed.rle(int(rows[k]), tuple(table.sizes[table.image[k]].tolist()))
        x, y, w, h = coco_mask.toBbox(rle).tolist()
        tight[k], areas[k] = (x, y, x + w, y + h), coco_mask.area(rle)
    return Outlines(tight, areas)


def polygons_of(table: Table, k: int) -> list[np.ndarray]:
    """Returns the polygons of object k, [n, 2] x y each; none where it has none."""
    packed, row = table.data_set.annotations.masks, int(table.rows[k])
    dtype = {HUNDREDTHS: np.uint16, POLYGON: np.float64}.get(int(packed.kinds[row]))
    if dtype is None:
        return []
    parts = (packed.parts[i] for i in range(int(packed.first_part[row]), int(packed.first_part[row + 1])))
    scale = 100 if dtype == np.uint16 else 1
    return [np.frombuffer(part, dtype).reshape(-1, 2) / scale for part in parts]


def _of_polygons(packed: PolygonsAndRle, rows: np.ndarray, dtype: type) -> tuple[np.ndarray, np.ndarray]:
    """Returns (x1 y1 x2 y2 [K, 4], areas [K]) of annotations whose numbers are all of one type."""
    counts = packed.first_part[rows + 1] - packed.first_part[rows]  # parts of each
    ends = np.cumsum(counts)
    parts = np.arange(ends[-1]) + np.repeat(packed.first_part[rows] - (ends - counts), counts)  # [R]
    starts, stops = packed.parts.first[parts], packed.parts.first[parts + 1]
    bounds = zip(starts.tolist(), stops.tolist(), strict=True)
    content = b"".join([packed.parts.values[a:b].tobytes() for a, b in bounds])
    numbers = np.frombuffer(content, dtype)
    numbers = numbers / 100 if dtype == np.uint16 else numbers
    x, y = numbers[::2], numbers[1::2]  # [T]
    points = (stops - starts) // (2 * np.dtype(dtype).itemsize)  # of each part
    first_point = np.cumsum(points) - points
    following = np.arange(1, len(x) + 1)
    following[first_point + points - 1] = first_point  # polygons are closed
    shoelace = np.abs(np.add.reduceat(x * y[following] - x[following] * y, first_point)) / 2  # [R]
    first_part = ends - counts
    first = first_point[first_part]
    tight = np.stack(
        [
            np.minimum.reduceat(x, first),
            np.minimum.reduceat(y, first),
            np.maximum.reduceat(x, first),
            np.maximum.reduceat(y, first),
        ],
        axis=1,
    )
    return tight, np.add.reduceat(shoelace, first_part)
