"""Files of Pascal VOC's segmentation data -> names, masks, objects; matching the latter two.

Shapes: N instances of a mask, M objects of an XML file. Boxes are x1 y1 x2 y2 in pixels from 0, ends
exclusive.
Everything raises InputError that names the file for what cannot be used.
"""

import difflib
import functools
import math
from pathlib import Path
from typing import NamedTuple

import numpy as np
from lxml import etree
from PIL import Image

from backbone.errors import InputError
from train_utils.data.formats.coco.file_names import FileNames, nearest, settle_stems
from train_utils.data.formats.coco.layout import files_in, role_of
from train_utils.data.images import ARRAY_SUFFIX, formats
from train_utils.data.images.file_formats import image_suffixes
from train_utils.data.labels import read_json, trimmed
from train_utils.io.plain_text import brief, counted, shown

CLASS_FILE, LABEL_MAP = "pascal_voc_indices.json", "labelmap.txt"
VOID = 255
NO_CLASSES = {"background": 0, "ignored": VOID}  # names in a label map that are numbers of no class
Colours = dict[tuple[int, ...], int]  # {(red, green, blue): number}
MAX_XML = 2**21  # bytes: some 7,000 objects, and an image's mask has room for 254
# An XML object goes to an instance whose box it overlaps with at least this IoU. Masks end some pixels inside
# the XML's boxes (the void border), which is much for a small object: agreeing on the class asks for less.
MIN_IOU_SAME_CLASS, MIN_IOU = 0.1, 0.5


def find_voc_folder(root: str | Path, year: str | int | None = None) -> Path:
    """Returns the folder of one VOC year, from a VOCdevkit, a folder that holds one, or that folder itself."""
    root = Path(root)
    if not root.is_dir():
        raise InputError(f"{root}: no such folder")
    if _is_voc_folder(root):
        if year is not None and root.name.startswith("VOC") and root.name[3:] != str(year):
            raise InputError(f"{root}: this is not the folder of year {year}")
        return root
    for parent in (root, root / "VOCdevkit"):
        found = sorted(path for path in parent.glob("VOC*") if _is_voc_folder(path))
        chosen = [path for path in found if year is None or path.name == f"VOC{year}"]
        if chosen:
            return chosen[-1]
        if found:
            raise InputError(f"{parent}: has no VOC{year}, only {', '.join(path.name for path in found)}")
    raise InputError(
        f"{root}: not VOC data: looked for ImageSets/Segmentation in it and in its VOC2012, "
        "VOC2007 and VOCdevkit folders"
    )


def _is_voc_folder(path: Path) -> bool:
    return (path / "ImageSets" / "Segmentation").is_dir()


class Classes(NamedTuple):
    """The classes of a VOC folder: numbers by name, colours in masks that are in RGB, and the file that has them."""

    ids: dict[str, int]
    colours: Colours
    source: str


def read_classes(folder: Path) -> Classes:
    """Reads the classes of the folder's CLASS_FILE, else of its LABEL_MAP, else of the file that this project has."""
    if (folder / LABEL_MAP).exists() and not (folder / CLASS_FILE).exists():
        ids, colours = read_label_map(folder / LABEL_MAP)
        return Classes(ids, colours, LABEL_MAP)
    return Classes(read_class_ids(folder), voc_colours(), CLASS_FILE)


def read_label_map(path: Path) -> tuple[dict[str, int], Colours]:
    """Reads a label map, as CVAT and Datumaro write it: lines of `name:red,green,blue:parts:actions`.

    Classes are numbered from 1 in the lines' order, "background" and "ignored" apart. A class without a colour has that
    of VOC's colour map for its number.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read as text: {getattr(error, 'strerror', None) or error}") from error
    ids: dict[str, int] = {}
    colours = {colour: number for colour, number in voc_colours().items() if number in NO_CLASSES.values()}
    usual = {number: colour for colour, number in voc_colours().items()}
    for place, line in enumerate(lines, 1):
        if not line.strip() or line.startswith("#"):
            continue
        name, _, rest = line.partition(":")
        name, colour = name.strip(), rest.partition(":")[0].strip()
        is_class = name.lower() not in NO_CLASSES
        number = len(ids) + 1 if is_class else NO_CLASSES[name.lower()]
        values = tuple(int(part) for part in colour.split(",") if part.strip().isdecimal() and len(part) < 5)
        if not name or name in ids or (is_class and number >= VOID):
            raise InputError(f"{path}: line {place}: {brief(name)} is no class of its own; 1 to 254 names are needed")
        if colour and (len(values) != 3 or max(values) > 255):
            raise InputError(f"{path}: line {place}: {brief(colour)} is not a colour such as 128,0,0")
        if colours.setdefault(values if colour else usual[number], number) != number:
            raise InputError(f"{path}: line {place}: the colour of {brief(name)} is another class's; give each its own")
        if is_class:
            ids[name] = number
    if not ids:
        raise InputError(f"{path}: names no class")
    return ids, colours


@functools.cache
def voc_colours() -> Colours:
    """Returns VOC's colour map, {(red, green, blue): index}: bits 0 to 2 of the index are the highest of the three."""
    colours: Colours = {}
    for index in range(256):
        channels = [sum((index >> 3 * i + c & 1) << 7 - i for i in range(8)) for c in range(3)]
        colours[tuple(channels)] = index
    return colours


def read_class_ids(folder: Path) -> dict[str, int]:
    """Reads {class name: number from 1} of the file in the VOC folder, else of the one this project has."""
    path = folder / CLASS_FILE
    if not path.exists():
        path = Path(__file__).parents[1] / CLASS_FILE
    class_ids = read_json(path)
    if not isinstance(class_ids, dict):
        raise InputError(f"{path}: not a json object of class names and numbers")
    valid = all(type(number) is int and 0 < number < VOID for number in class_ids.values())
    if not class_ids or not valid or len(set(class_ids.values())) < len(class_ids):
        raise InputError(f"{path}: class numbers must be different whole numbers from 1 to 254")
    return {trimmed(name): number for name, number in class_ids.items()}


def find_lists(folder: Path) -> dict[str, str]:
    """Returns {"train" | "val": name of the list}; "all": the only list of a folder that has none of these, as CVAT's.

    A list is known by the word in its name, as Train.txt; test stands for a val that there is not. InputError where
    several could be meant.
    """
    names = sorted(path.stem for path in list_path(folder, "*").parent.glob("*.txt"))
    roles: dict[str, list[str]] = {}
    for name in names:
        roles.setdefault(role_of(Path(name)), []).append(name)
    whole, test = roles.pop("all", []), roles.pop("test", [])
    roles.setdefault("val", test)
    found = {role: [name for name in several if name == role] or several for role, several in roles.items() if several}
    found = found or {"all": whole}
    for role, several in found.items():
        if len(several) != 1:
            listed = ", ".join(f"{name}.txt" for name in several) or "no list of images"
            role = "train" if role == "all" else role
            raise InputError(f"{list_path(folder, '*').parent}: holds {listed}; call the one that is meant {role}.txt")
    return {role: several[0] for role, several in found.items()}


def list_path(folder: Path, list_name: str) -> Path:
    """Returns the file of one list."""
    return folder / "ImageSets" / "Segmentation" / f"{list_name}.txt"


def mask_path(folder: Path, kind: str, name: str) -> Path:
    """Returns the file of an image's mask; kind: "Object" or "Class"."""
    return folder / f"Segmentation{kind}" / f"{name}.png"


def xml_path(folder: Path, name: str) -> Path:
    """Returns the file of an image's objects."""
    return folder / "Annotations" / f"{name}.xml"


def read_list(folder: Path, list_name: str) -> list[str]:
    """Reads the names in one list of ImageSets/Segmentation, as they stand there."""
    path = list_path(folder, list_name)
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    except OSError as error:
        found = ", ".join(sorted(p.stem for p in path.parent.glob("*.txt"))) or "none"
        raise InputError(
            f"{path}: cannot read this list of images ({error.strerror}); lists there: {found}; "
            "write one, a name of an image each line"
        ) from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not a UTF-8 text file") from error
    names = [line for line in lines if line]
    if not names:
        raise InputError(f"{path}: lists no image")
    return names


def settle_names(folder: Path, path: Path, names: list[str]) -> FileNames:
    """Finds the masks that the names of a list mean. InputError for one that is neither a mask's nor a plain name."""
    files = settle_stems(names, (Path(file).stem for file in files_in(folder / "SegmentationObject")))
    for name in files.absent:
        if name not in files.renamed and (Path(name).name != name or name in (".", "..")):
            raise InputError(f"{path}: {name!r} is not the plain name of an image")
    return files


def find_images(folder: Path, names: list[str]) -> tuple[list[str], list[bool], FileNames]:
    """Returns the file name of each named image in JPEGImages, whatever its extension; whether it is missing; names.

    Of files of one stem the first image by its name counts, else a .npy file, else another. A missing one is given as
    NAME.jpg: reading it fails, as reading a damaged image does.
    """
    folder = folder / "JPEGImages"
    try:
        listed = sorted(sorted(folder.iterdir(), reverse=True), key=_likeness)
        by_name = {file.stem: file.name for file in listed}  # of several the last
    except OSError as error:
        raise InputError(f"{folder}: cannot list the images ({error.strerror}); put them there") from error
    files = settle_stems(names, by_name)
    found = [by_name.get(files.renamed.get(name, name)) for name in names]
    missing = [name is None for name in found]
    if all(missing) and not files.ambiguous:
        like = nearest(names[0], [folder])
        listed = counted(len(names), "image")
        raise InputError(f"{folder}: holds none of the {listed} of the list (as {names[0]}{like})")
    return [file or f"{name}.jpg" for file, name in zip(found, names, strict=True)], missing, files


def _likeness(file: Path) -> tuple[bool, bool]:
    """Returns a key that sorts images last, by their extension, and .npy files before them."""
    suffix = file.suffix.lower()
    return suffix in image_suffixes(), suffix == ARRAY_SUFFIX


def read_index_image(path: Path, colours: Colours | None = None) -> np.ndarray:
    """Reads the indices (not the colours) of a palette or grey PNG, uint8 [H, W].

    colours: the index of each colour of one in RGB; None: VOC's colour map.
    """
    try:
        with Image.open(path, formats=formats()) as image:
            mode, indices = image.mode, np.array(image)
    except FileNotFoundError as error:
        if not path.parent.is_dir():
            needed = "masks that number the objects are needed there, SegmentationClass alone does not tell them apart"
            raise InputError(f"{path.parent}: no such folder; {needed}") from error
        raise InputError(f"{path}: no such mask, though its image is in the list") from error
    except Exception as error:  # decoders raise nearly anything on hostile bytes
        raise InputError(f"{path}: cannot read this mask ({error})") from error
    if mode == "RGB":
        return _indices_of(path, indices, voc_colours() if colours is None else colours)
    if mode not in ("P", "L", "1"):
        raise InputError(f"{path}: a mask must be a palette, 8-bit grey or RGB image, this one is {mode}")
    return indices.astype(np.uint8, copy=False)


def _indices_of(path: Path, pixels: np.ndarray, colours: Colours) -> np.ndarray:
    """Returns the indices, uint8 [H, W], of pixels [H, W, 3] in colours that all must have one."""
    packed = pixels.astype(np.int64) @ (65536, 256, 1)  # [H, W]
    found, places = np.unique(packed, return_inverse=True)
    known = {red * 65536 + green * 256 + blue: index for (red, green, blue), index in colours.items()}
    for value in found.tolist():
        if value not in known:
            colour = f"{value >> 16},{value >> 8 & 255},{value & 255}"
            raise InputError(f"{path}: the colour {colour} is no class's or object's; save the mask without smoothing")
    return np.array([known[value] for value in found.tolist()], dtype=np.uint8)[places].reshape(packed.shape)


def find_instances(objects: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns instance numbers int64 [N], tight boxes int64 [N, 4] and pixel counts int64 [N] of an instance mask."""
    counts = np.bincount(objects.ravel(), minlength=256)
    numbers = np.array([n for n in np.flatnonzero(counts) if n not in (0, VOID)], dtype=np.int64)
    boxes = np.zeros((len(numbers), 4), dtype=np.int64)
    for row, number in enumerate(numbers):
        inside = objects == number
        ys, xs = np.flatnonzero(inside.any(axis=1)), np.flatnonzero(inside.any(axis=0))
        boxes[row] = xs[0], ys[0], xs[-1] + 1, ys[-1] + 1
    return numbers, boxes, counts[numbers]


def classes_of_instances(path: Path, objects: np.ndarray, numbers: np.ndarray, known: Classes) -> np.ndarray:
    """Returns the class that most pixels of each instance have in SegmentationClass, int64 [N]; 0 if none has any.

    path: the class mask, which may be missing; objects uint8 [H, W]: the instance mask; numbers int64 [N]:
    the instances in it.
    """
    if not path.exists():
        return np.zeros(len(numbers), dtype=np.int64)
    classes = read_index_image(path, known.colours)
    if classes.shape != objects.shape:
        raise InputError(f"{path}: its size differs from that of the mask in SegmentationObject")
    pairs = objects.ravel().astype(np.int64) * 256 + classes.ravel()
    votes = np.bincount(pairs, minlength=256 * 256).reshape(256, 256)[numbers]  # [N, 256]
    votes[:, [0, VOID]] = 0
    winners = votes.argmax(axis=1)  # [N]
    unknown = set(winners.tolist()) - {0, *known.ids.values()}
    if unknown:
        raise InputError(f"{path}: class number {min(unknown)} is not one of {known.source}")
    return winners


def match_objects(boxes: np.ndarray, classes: np.ndarray, xml_boxes: np.ndarray, xml_classes: np.ndarray) -> np.ndarray:
    """Returns for each instance the XML object that is the same thing, or -1: int64 [N]; none is given twice.

    Pairs are taken greedily: those that agree on the class first, then by the IoU of their boxes.
    """
    partner = np.full(len(boxes), -1, dtype=np.int64)
    if len(boxes) == 0 or len(xml_boxes) == 0:
        return partner
    a, b = boxes[:, None].astype(np.float64), xml_boxes[None]
    sides = np.minimum(a[..., 2:], b[..., 2:]) - np.maximum(a[..., :2], b[..., :2])  # [N, M, 2]
    inter = sides.clip(min=0).prod(axis=2)  # [N, M]
    areas = [(box[..., 2:] - box[..., :2]).clip(min=0).prod(axis=2) for box in (a, b)]  # [N, 1], [1, M]
    iou = inter / (areas[0] + areas[1] - inter)
    agree = classes[:, None] == xml_classes[None]  # [N, M]
    rank = np.where(iou >= np.where(agree, MIN_IOU_SAME_CLASS, MIN_IOU), iou + agree, -1)
    while rank.max() > 0:
        row, column = np.unravel_index(rank.argmax(), rank.shape)
        partner[row] = column
        rank[row], rank[:, column] = -1, -1
    return partner


class XmlObjects(NamedTuple):
    """The M objects of one XML file, and the image's (height, width) where the file says it.

    Class numbers int64 [M], boxes float64 [M, 4], difficult int64 [M] (0 or 1).
    """

    classes: np.ndarray
    boxes: np.ndarray
    difficult: np.ndarray
    size: tuple[int, int] | None
    exists: bool = True


def read_xml(path: Path, known: Classes) -> XmlObjects:
    """Reads the objects of a VOC annotation file, none if it is missing; no entity expanded, nothing fetched."""
    if not path.exists():
        return XmlObjects(np.zeros(0, np.int64), np.zeros((0, 4)), np.zeros(0, np.int64), None, exists=False)
    parser = etree.XMLParser(resolve_entities=False, no_network=True, load_dtd=False)
    try:
        with open(path, "rb") as file:
            content = file.read(MAX_XML + 1)
        if len(content) > MAX_XML:
            raise InputError(f"{path}: larger than {MAX_XML >> 20} MiB: not an annotation file of one image")
        root = etree.fromstring(content, parser)  # bytes, so that an encoding declaration counts
    except (OSError, etree.XMLSyntaxError) as error:
        raise InputError(f"{path}: not an XML file that can be read ({' '.join(str(error).split())})") from error
    if root.getroottree().docinfo.internalDTD is not None:
        raise InputError(f"{path}: has a document type (<!DOCTYPE ...>), as annotation files have not; take it out")
    classes, boxes, difficult = [], [], []
    for number, item in enumerate(root.findall("object"), 1):
        where = f"{path}: object {number}"
        name = (item.findtext("name") or "").strip()
        if name not in known.ids:
            close = difflib.get_close_matches(name[:80], known.ids, n=3)
            meant = f" (is {' or '.join(map(repr, close))} meant?)" if close else ""
            raise InputError(
                f"{where}: class {brief(name)} is not in {known.source}{meant}; for classes of your own "
                f'put {CLASS_FILE}, {{"name": 1, ...}}, into {path.parent.parent}'
            )
        x1, y1, x2, y2 = (_number(item, f"bndbox/{key}", where) for key in ("xmin", "ymin", "xmax", "ymax"))
        classes.append(known.ids[name])
        boxes.append((x1 - 1, y1 - 1, x2, y2))  # VOC counts pixels from 1 and includes the last
        difficult.append((item.findtext("difficult") or "").strip() == "1")
    return XmlObjects(
        np.array(classes, dtype=np.int64),
        np.array(boxes, dtype=np.float64).reshape(-1, 4),
        np.array(difficult, dtype=np.int64),
        _xml_size(root),
    )


def _number(item: etree._Element, tag: str, where: str) -> float:
    text = item.findtext(tag)
    try:
        value = float(text)
    except (TypeError, ValueError) as error:
        raise InputError(f"{where}: {tag} is {brief(text)}, not a number") from error
    if not math.isfinite(value):
        raise InputError(f"{where}: {tag} is {shown(text.strip())}, not a finite number")
    return value


def _xml_size(root: etree._Element) -> tuple[int, int] | None:
    """Returns (height, width), or None where the file does not say it (or says 0, as some tools do)."""
    texts = [(root.findtext(f"size/{key}") or "").strip() for key in ("height", "width")]
    whole = all(text.isdecimal() and len(text) < 10 and int(text) > 0 for text in texts)
    return tuple(map(int, texts)) if whole else None
