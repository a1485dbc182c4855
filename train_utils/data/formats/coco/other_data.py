"""Files that are no COCO data -> what they are and what to do, for the message that nothing could be opened.

What another format recognises never comes here.
"""

from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path

from backbone.errors import InputError
from train_utils.data.images.file_formats import image_suffixes
from train_utils.data.labels import read_json
from train_utils.io.plain_text import counted

AS_COCO = "export it there as COCO (instances, with masks)"
CONVERT = "convert it to COCO"
DEPTH, MOST_FOLDERS, MOST_FILES = 3, 200, 2000  # that are looked through
LARGEST = 2**24  # bytes of a json that is read to name it
BEGINNING = 4096  # bytes of a file that are looked at
# A json's content is ...: what it is, what to do
JSONS: tuple[tuple[Callable[[object], bool], str], ...] = (
    (lambda raw: "_via_img_metadata" in raw, f"a project of VIA (VGG Image Annotator): {AS_COCO}"),
    (lambda raw: _entries_have(raw, "filename", "regions"), f"VIA's own json (VGG Image Annotator): {AS_COCO}"),
    (lambda raw: {"shapes", "imagePath"} <= raw.keys(), "LabelMe's json of one image: give the folder of the jsons"),
    (lambda raw: {"items", "categories"} <= raw.keys(), f"Datumaro's json: {AS_COCO}"),
    (lambda raw: {"item", "annotations"} <= raw.keys(), f"Darwin's json of one image (V7): {AS_COCO}"),
    (lambda raw: {"objects", "imgHeight"} <= raw.keys(), f"Cityscapes' polygons of one image: {CONVERT}"),
    (lambda raw: {"objects", "size"} <= raw.keys(), f"Supervisely's json of one image: {AS_COCO}"),
    (lambda raw: raw.get("type") == "FeatureCollection", f"GeoJSON, on a map instead of an image: {CONVERT}"),
    (lambda raw: _entries_have(raw, "image_id", "score"), "a file of results, for validation.py --detections"),
    (lambda raw: _entries_have(raw, "data", "annotations"), f"Label Studio's own json: {AS_COCO}"),
    (lambda raw: _entries_have(raw, "image", "annotations"), "CreateML's json, of boxes alone: masks are needed"),
)
# A file's suffix, what its beginning holds, what it is and what to do
FILES: tuple[tuple[str, bytes, str], ...] = (
    (".yaml .yml", b"names", "a YAML file that names classes, as YOLO's data has one: name train in it, too"),
    (".yaml .yml", b"", "a YAML file: give the folder of the data, or a COCO json"),
    (".xml", b"<annotations", f"CVAT's XML: {AS_COCO}"),
    (".xml", b"<polygon", f"LabelMe's older XML, as CVAT writes it: {AS_COCO}"),
    (".xml", b"<annotation", "VOC's XML, which has boxes alone: masks are needed, as in SegmentationObject/"),
    (".xml", b"", f"an XML file: {CONVERT}"),
    (".csv .tsv .xlsx .parquet", b"", f"a table: {CONVERT}"),
    (".ndjson .jsonl", b"", f"a json a line, as Labelbox exports it: {CONVERT}"),
    (".tfrecord .tfrecords .record", b"", f"TensorFlow's records: {CONVERT}"),
    (".zip .tar .gz .tgz .7z .rar .bz2 .xz", b"", "an archive: unpack it, and give the folder"),
    (".pth .pt .safetensors .onnx", b"", "a file of weights, for --weights"),
    (".npy .npz", b"", "an array: .npy data is a folder of images/ and annotations/"),
)
# What lies beside many a data set, or has nothing to do with it: named only where it is given itself
BESIDE = ".csv .tsv .xlsx .parquet .pth .pt .safetensors .onnx .npy .npz".split()
MASKS = ("masks", "mask", "labels", "label", "labelsTr", "gt", "annotations", "annotation", "segmentation")


def other_json(raw: object) -> str:
    """Returns "; it is ..." of a json that is not COCO's, as far as it is known."""
    said = next((said for test, said in JSONS if isinstance(raw, (dict, list)) and _holds(test, raw)), "")
    return f"; it is {said}" if said else ""


def other_file(path: Path) -> str:
    """Returns what a file is that is no json, and what to do; empty where that is not known."""
    suffix = path.suffix.lower()
    if suffix in image_suffixes():
        return "an image: give a folder that has annotations, too"
    rows = [row for row in FILES if suffix in row[0].split()]
    if not rows:
        return ""
    with open(path, "rb") as file:
        content = file.read(BEGINNING)
    return next((said for _, holds, said in rows if holds in content), "")


def nothing_found(root: Path, is_data: Callable[[Path], bool]) -> str:
    """Returns what to say of a folder that no format recognises: where data lies below it, or what is there instead.

    is_data: whether a format would open a folder.
    """
    folders = list(islice(_folders_below(root), MOST_FOLDERS))
    for folder in folders[1:]:
        if is_data(folder):
            return f"a data set lies deeper: give {folder}"
    files = [file for folder in folders for file in sorted(folder.iterdir()) if file.is_file()][:MOST_FILES]
    images = [file for file in files if file.suffix.lower() in image_suffixes()]
    others = (file for file in files if file.suffix.lower() not in {*BESIDE, *image_suffixes()})
    for file in sorted(others, key=lambda file: (len(file.parts), file)):
        if said := _json_file(file) if file.suffix.lower() == ".json" else other_file(file):
            return f"{file.relative_to(root)} is {said}"
    masks = next((image.parent for image in images if image.parent.name in MASKS), None)
    if masks and any(image.parent != masks for image in images):
        return f"{masks.relative_to(root)}/ holds images, perhaps masks: call it masks/, beside images/"
    labels = next((file.parent for file in files if file.suffix == ".txt" and file.parent.name == "labels"), None)
    if labels:
        return f"{labels.relative_to(root)}/ holds .txt files, as YOLO's data has them: put images/ beside it"
    there = f"{counted(len(images), 'image', 'are')} there without annotations: give the folder that holds both"
    return f"{there} (docs/data.md has the layouts)" if images else ""


def _json_file(path: Path) -> str:
    """Returns what a json is, where it is known, is no COCO json and is not very large."""
    try:
        raw = read_json(path) if path.stat().st_size <= LARGEST else None
    except InputError:
        return "no valid json: download or export it again"
    return other_json(raw).removeprefix("; it is ")


def _folders_below(root: Path) -> Iterator[Path]:
    """Yields a folder and those in it, the upper ones first, as far as DEPTH."""
    level = [root]
    for _ in range(DEPTH + 1):
        yield from level
        below = (entry for folder in level for entry in sorted(folder.iterdir()))
        level = [e for e in below if e.is_dir() and not e.is_symlink() and not e.name.startswith(".")][:MOST_FOLDERS]


def _holds(test: Callable[[object], bool], raw: dict | list) -> bool:
    try:
        return test(raw)
    except (AttributeError, TypeError):  # a list where an object is looked for, or the other way round
        return False


def _entries_have(raw: dict | list, *keys: str) -> bool:
    """Returns whether there are entries, and the first few have these keys."""
    entries: Iterable = raw.values() if isinstance(raw, dict) else raw
    first = list(islice(entries, 3))
    return bool(first) and all(set(keys) <= entry.keys() for entry in first)
