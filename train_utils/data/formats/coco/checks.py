"""Categories, images and annotations of a COCO json, one by one -> checked values.

InputError says what is wrong with one, `Skip` that an annotation is to be left out and counted.

Ids are 64-bit integers inside the program, as pycocotools and tensors need them. A json may have others: see
`as_id`; what it has is kept beside the number (`given_id`) and written back into results.
"""

import hashlib
import json
import math
import re
from collections.abc import Callable, Container
from pathlib import Path
from typing import Any

from backbone.errors import InputError
from train_utils.data.formats.coco.other_data import other_json
from train_utils.data.formats.coco.segmentation import Skip, box_of, finite, overlaps, read_segmentation
from train_utils.data.labels import trimmed
from train_utils.data.masks import NO_ID
from train_utils.data.problems import Id, StopAtFirst
from train_utils.io.plain_text import brief, counted, shown, visible

INTEGER = re.compile(r"0|-?[1-9][0-9]{0,17}")  # text that is an integer of 64 bits, in its one spelling
MOST_PIXELS = 2**31  # pycocotools counts in 32 bits; images of a twelfth of it are refused as bombs


LISTS = ("images", "annotations", "categories")


def coco_lists(raw: object, path: str | Path) -> tuple[dict, tuple[str, ...]]:
    """Returns (a json's content whose LISTS are lists, notes about it).

    An object by id in a list's place becomes the list of its values, in its order. Raises InputError for a json without
    these lists, and for an entry whose own id is not its key.
    """
    by_id = [key for key in LISTS if isinstance(raw, dict) and isinstance(raw.get(key), dict)]
    by_id = [key for key in by_id if all(isinstance(entry, dict) for entry in raw[key].values())]
    lists = [key for key in LISTS if isinstance(raw, dict) and isinstance(raw.get(key), list)]
    if missing := [key for key in LISTS if key not in {*lists, *by_id}]:
        raise InputError(f"{path}: not a COCO instances json: it has no list of {', '.join(missing)}{other_json(raw)}")
    notes = tuple(f"{key} are an object by id, read in its order" for key in by_id)
    return ({**raw, **{key: _entries(raw[key], path, key) for key in by_id}} if by_id else raw), notes


def _entries(by_id: dict[str, dict], path: str | Path, what: str) -> list[dict]:
    """Returns the values of an object by id, each with its id."""
    for key, entry in by_id.items():
        if "id" in entry and str(entry["id"]) != key:
            raise InputError(f"{path}: {what}: the entry of key {brief(key)} has id {brief(entry['id'])}; correct one")
    return [{"id": int(key) if INTEGER.fullmatch(key) else key, **entry} for key, entry in by_id.items()]


def as_integer(value: object, what: str) -> int:
    """Returns an integer of 64 bits; 7.0 counts as 7, as tables exported to json have it."""
    if _is_integer(value) and abs(value) < 2**63:
        return int(value)
    raise InputError(f"{what} {brief(value)} is not an integer")


def as_id(value: object, what: str) -> int:
    """Returns the number that stands for an id: 7 for 7, 7.0 and "7"; a hash of any other text or longer integer.

    The hash is the same in every json, so that train and val agree about it.
    """
    if type(value) is int and abs(value) < 2**63:
        return value
    if _is_integer(value):
        return int(value) if abs(value) < 2**63 else _hashed(str(int(value)))
    if isinstance(value, str) and value:
        return int(value) if INTEGER.fullmatch(value) else _hashed(value)
    raise InputError(f"{what} {brief(value)} is neither an integer nor text")


def given_id(value: str | int | float) -> str:
    """Returns an id as json text where `as_id` gives another value, else ""."""
    return "" if not isinstance(value, str) and abs(value) < 2**63 else json.dumps(value)


def _is_integer(value: object) -> bool:
    return type(value) is int or isinstance(value, float) and value.is_integer()


def _hashed(text: str) -> int:
    """Returns a number in 0..2^62 - 1."""
    digest = hashlib.blake2b(text.encode(errors="surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 2


def is_text(text: str) -> bool:
    """Returns whether a string can be written as UTF-8: json may hold halves of surrogate pairs."""
    return text.isascii() or not any("\ud800" <= character <= "\udfff" for character in text)


def check_categories(
    categories: list, path: str | Path, problems: StopAtFirst
) -> tuple[dict[int, str], dict[int, str | int]]:
    """Returns ({id: name} in id order, {id: what the json has} of those whose ids are something else there)."""
    names: dict[int, str] = {}
    given: dict[int, str | int] = {}
    for category in categories:
        try:
            number, name = _check_category(category, names)
        except InputError as error:
            problems.mistake(f"{path}: {error}", cause=error)
            continue
        names[number] = name
        if given_id(category["id"]):
            given[number] = category["id"]
    if not categories:
        problems.mistake(f"{path}: its list of categories is empty")
    return dict(sorted(names.items())), given


def _check_category(category: Any, known: Container[int]) -> tuple[int, str]:
    if not isinstance(category, dict) or "id" not in category:
        raise InputError(f"category {brief(category)} has no id")
    try:
        number = as_id(category["id"], "id")
    except InputError as error:
        raise InputError(f"category {brief(category.get('name'))}: {error}") from error
    if number in known:
        raise InputError(f"category id {brief(category['id'])} is duplicated")
    name = visible(trimmed(str(category.get("name", number))))
    if not is_text(name):
        raise InputError(f"category id {number}: name {name[:80]!a} is not text")
    return number, name


def check_images(
    listed: list,
    path: str | Path,
    problems: StopAtFirst,
    size_of: Callable[[str], tuple[int, int]] | None = None,
    refused: dict[str, InputError] | None = None,
) -> tuple[list[tuple], set[int]]:
    """Returns (what `check_image` gives of the sound images, ids of the others); refused: {file name: why}."""
    images: dict[int, tuple] = {}
    bad: set[int] = set()
    for image in listed:
        try:
            if refused and isinstance(image, dict) and str(image.get("file_name")) in refused:
                raise refused[image["file_name"]]
            checked = check_image(image, path, size_of)
            if checked[0] in images:
                raise InputError(duplicated(path, images[checked[0]], checked))
        except InputError as error:
            problems.mistake(error, image=id_of(image, "id"), cause=error.__cause__)
            number = number_of(image, "id")
            if number is not None and number not in images:
                bad.add(number)
            continue
        images[checked[0]] = checked
    return list(images.values()), bad - images.keys()


def duplicated(path: str | Path, first: tuple, second: tuple) -> str:
    """Returns what to say of two images (`check_image`) of one id."""
    return (
        f"{path}: image id {second[3] or second[0]} is duplicated ({first[1]} and {second[1]}); "
        "give each image an id of its own"
    )


def id_of(entry: Any, key: str) -> Id:
    """Returns an id as the json has it, None where it can be none."""
    return None if number_of(entry, key) is None else entry[key]


def number_of(entry: Any, key: str) -> int | None:
    """Returns the number that stands for an id, None where it can be none."""
    try:
        return as_id(entry.get(key), key) if isinstance(entry, dict) else None
    except InputError:
        return None


def named(image: Any) -> Any:
    """Returns an image with its file_name; where LVIS has none, it is the last two parts of coco_url."""
    url = image.get("coco_url") if isinstance(image, dict) and "file_name" not in image else None
    return {**image, "file_name": "/".join(url.split("/")[-2:])} if isinstance(url, str) and "/" in url else image


def check_image(
    image: Any, path: str | Path, size_of: Callable[[str], tuple[int, int]] | None
) -> tuple[int, str, tuple[int, int], str]:
    """Returns (id, file name, (H, W), `given_id`) of an image; size_of: reads a size that the json lacks."""
    if not isinstance(image, dict) or "id" not in image:
        raise InputError(f"{path}: image {brief(image)} has no id")
    try:
        image_id = as_id(image["id"], "id")
        name = image.get("file_name")
        if not isinstance(name, str) or not name or "\0" in name or not is_text(name):
            raise InputError(f"file_name {brief(name)} is not a file name")
        size = image.get("height"), image.get("width")
        if None in size and size_of is not None:
            size = size_of(name)
        size = as_integer(size[0], "height"), as_integer(size[1], "width")
        if min(size) < 1 or size[0] * size[1] >= MOST_PIXELS:
            raise InputError(f"a size of {size[1]}x{size[0]}")
    except InputError as error:
        raise InputError(f"{path}: image id {shown(image['id'])}: {error}") from error
    return image_id, name, size, given_id(image["id"])


def check_annotation(annotation: dict, categories: Container[int] | None, size: tuple[int, int]) -> tuple:
    """Returns (id or NO_ID, category id, iscrowd, xywh, area, kind, parts) of an annotation in an image of `size`.

    categories: the ids there are; None: any. Raises Skip, and InputError, KeyError, TypeError, AttributeError
    or OverflowError for what is wrong.
    """
    category = as_id(annotation["category_id"], "category_id")
    if categories is not None and category not in categories:
        raise InputError(f"category_id {brief(annotation['category_id'])} is not in the json's list of categories")
    if not annotation.get("segmentation") and not annotation.get("bbox"):
        raise InputError("has neither segmentation nor bbox")
    kind, parts = read_segmentation(annotation.get("segmentation"), size)
    box = annotation.get("bbox")
    box = finite(box, "bbox") if box else box_of(kind, parts, size)
    if len(box) != 4:
        raise InputError(f"bbox has {counted(len(box), 'number')}, x y width height are 4")
    if not (overlaps(box[0], box[2], size[1]) and overlaps(box[1], box[3], size[0])):
        raise Skip("annotations whose box has no area in the image")
    area = annotation.get("area")
    area = math.nan if area is None else finite([area], "area")[0]
    crowd = annotation.get("iscrowd")
    if crowd not in (None, 0, 1):  # "0" as text would count as true
        raise InputError(f"iscrowd {brief(crowd)} is neither 0 nor 1")
    return annotation_id(annotation), category, int(bool(crowd)), box, area, kind, parts


def box_alone(annotation: dict, size: tuple[int, int]) -> list[list]:
    """Returns `Annotations.unmasked` of an annotation whose mask can't be used, empty where its box can't be either."""
    try:
        ids = [as_id(annotation[key], key) for key in ("image_id", "category_id")]
        x, y, w, h = finite(annotation.get("bbox"), "bbox")
        (area,) = finite([annotation.get("area", w * h)], "area")
    except (InputError, ValueError):
        return []
    inside = overlaps(x, w, size[1]) and overlaps(y, h, size[0])
    return [[*ids, x, y, w, h, area, int(bool(annotation.get("iscrowd")))]] if inside else []


def annotation_id(annotation: dict) -> int:
    """Returns its id, NO_ID where it has none."""
    number = annotation.get("id")
    return NO_ID if number is None else as_id(number, "id")
