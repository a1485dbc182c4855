"""What must hold of a COCO json's categories, images and annotations, one by one.

InputError says what is wrong with one, `Skip` that an annotation is to be left out and counted.
"""

import math

from backbone.errors import InputError
from train_utils.coco_segmentation import Skip, box_of, finite, read_segmentation


def check_is_coco(raw, path):
    """InputError unless `raw` is a dict with lists of images, annotations and categories."""
    missing = [key for key in ("images", "annotations", "categories")
               if not isinstance(raw, dict) or not isinstance(raw.get(key), list)]
    if missing:
        raise InputError(f"{path}: not a COCO instances json: it has no list of {', '.join(missing)}")


def as_id(value, what: str) -> int:
    """An integer id; 7.0 counts as 7, as tables exported to json have it."""
    if isinstance(value, (int, float)) and abs(value) < 2**63 and value == int(value):
        return int(value)
    raise InputError(f"{what} {value!r} is not an integer")


def is_text(text: str) -> bool:
    """Whether a string can be written as UTF-8: json may hold halves of surrogate pairs."""
    return not any("\ud800" <= character <= "\udfff" for character in text)


def check_categories(categories: list, path) -> dict[int, str]:
    """{id: name}, in id order."""
    names: dict[int, str] = {}
    for category in categories:
        if not isinstance(category, dict) or "id" not in category:
            raise InputError(f"{path}: category {category!r} has no id")
        try:
            i = as_id(category["id"], "id")
        except InputError as error:
            raise InputError(f"{path}: category {category.get('name')!r}: {error}") from error
        if i in names:
            raise InputError(f"{path}: category id {i} stands twice")
        names[i] = str(category.get("name", i))
        if not is_text(names[i]):
            raise InputError(f"{path}: category id {i}: name {names[i]!a} is not text")
    if not names:
        raise InputError(f"{path}: its list of categories is empty")
    return dict(sorted(names.items()))


def check_image(image, path, size_of) -> tuple[int, str, tuple[int, int]]:
    """(id, file name, (H, W))."""
    if not isinstance(image, dict) or "id" not in image:
        raise InputError(f"{path}: image {image!r} has no id")
    try:
        image_id = as_id(image["id"], "id")
        name = image.get("file_name")
        if not isinstance(name, str) or not name or "\0" in name or not is_text(name):
            raise InputError(f"file_name {name!r} is not a file name")
        size = image.get("height"), image.get("width")
        if None in size and size_of is not None:
            size = size_of(name)
        size = as_id(size[0], "height"), as_id(size[1], "width")
        if min(size) < 1:
            raise InputError(f"a size of {size[1]}x{size[0]}")
    except InputError as error:
        raise InputError(f"{path}: image id {image['id']}: {error}") from error
    return image_id, name, size


def check_annotation(annotation: dict, categories, size) -> tuple:
    """(annotation id, category id, iscrowd, xywh, area, kind, parts) of an annotation in a picture of `size`.

    categories: the ids there are; None: any. Raises Skip, and InputError, KeyError, TypeError, AttributeError
    or OverflowError for what is wrong.
    """
    category = as_id(annotation["category_id"], "category_id")
    if categories is not None and category not in categories:
        raise InputError(f"category_id {category} is not in the json's list of categories")
    kind, parts = read_segmentation(annotation.get("segmentation"), size)
    box = annotation.get("bbox")
    box = finite(box, "bbox") if box else box_of(kind, parts, size)
    if len(box) != 4:
        raise InputError(f"bbox has {len(box)} numbers, x y width height are 4")
    if not (overlaps(box[0], box[2], size[1]) and overlaps(box[1], box[3], size[0])):
        raise Skip("annotations whose box has no area in the picture")
    area = annotation.get("area")
    area = math.nan if area is None else finite([area], "area")[0]
    crowd = annotation.get("iscrowd")
    if crowd not in (None, 0, 1):  # "0" as text would count as true
        raise InputError(f"iscrowd {crowd!r} is neither 0 nor 1")
    number = annotation.get("id")
    number = int(number) if isinstance(number, (int, float)) and 0 < number < 2**63 else 0
    return number, category, int(bool(crowd)), box, area, kind, parts


def overlaps(start: float, extent: float, side: int) -> bool:
    """Whether [start, start + extent] cut to [0, side] keeps a length, also in float32."""
    end = min(start + extent, side)
    return end - max(start, 0) > 1e-6 * side
