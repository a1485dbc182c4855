"""Pascal VOC's segmentation data -> a table.

    FOLDER/VOC2012/ImageSets/Segmentation/train.txt   names of the images, one per line; default.txt: all, to be split
    FOLDER/VOC2012/JPEGImages/NAME.jpg
    FOLDER/VOC2012/SegmentationObject/NAME.png        instance numbers; 0 is background, 255 void
    FOLDER/VOC2012/SegmentationClass/NAME.png         class numbers; may be missing
    FOLDER/VOC2012/Annotations/NAME.xml               objects with name, box, difficult; may be missing
    FOLDER/VOC2012/labelmap.txt                       names and colours of classes, where they are not VOC's

The instances are those of SegmentationObject, and boxes are the masks' own. The XML's objects are neither in the masks'
order nor always the same ones: each goes to the instance that it overlaps best, and an instance that none is left for
takes its class from SegmentationClass. Difficult objects train like any other; evaluation ignores them. What cannot be
used is skipped and counted, what was decided is noted. Everything but the images is read once, when the data is opened.

N instances of one image of H x W pixels, A instances in all.
"""

from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from backbone.errors import InputError
from train_utils.data.annotations import Annotations, ImageFiles
from train_utils.data.formats import voc_files
from train_utils.data.labels import LabelMap
from train_utils.data.links import links_out, links_out_of
from train_utils.data.masks import NO_ID, IndexImages, Ragged
from train_utils.data.options import DataOptions
from train_utils.data.problems import NO_MASK, STOP, StopAtFirst
from train_utils.io.plain_text import of_several
from train_utils.processes.cores import usable_cores

UNUSED = {
    "label_json_path": "whose classes have names",
    "image_dir": "whose images are in JPEGImages",
    "split_components": "whose masks number the objects",
}
FOLDERS = ("JPEGImages", "SegmentationObject", "SegmentationClass", "Annotations")
CLASS_FILES = (voc_files.CLASS_FILE, voc_files.LABEL_MAP)
# skipped
NO_CLASS = "instances without a class (neither XML object nor SegmentationClass)"
LISTED_TWICE = "images listed twice"
VOID_ALONE = "instances that have the number 255, which is void in VOC's masks (number them from 1)"
# notes
FROM_CLASS_MASK = "instances without an XML object (class from SegmentationClass)"
CLASS_DIFFERS = "instances with another class in SegmentationClass than in the XML (XML's used)"
NO_XML = "images without an XML file"
XML_SIZE = "XML files with another image size than the mask (mask's used)"
FRACTIONS = "XML files whose boxes have fractions"


def recognises(path: Path) -> bool:
    """Returns whether a folder is a VOCdevkit, holds one, or is a year's folder of one."""
    folder = "ImageSets/Segmentation"
    places = (folder, f"VOC*/{folder}", f"VOCdevkit/VOC*/{folder}")
    return any(match.is_dir() for place in places for match in path.glob(place))


def find_splits(path: Path, options: DataOptions, split: str | None) -> dict[str, tuple[Path, str]]:
    """Returns {"train" | "val" | "all": (folder of the year, name of the list)}."""
    folder = voc_files.find_voc_folder(path, options.year)
    return {role: (folder, name) for role, name in voc_files.find_lists(folder).items()}


def read(place: tuple[Path, str], options: DataOptions, problems: StopAtFirst) -> Annotations | None:
    """Reads one list; None where nothing of it is sound (and `problems` collects)."""
    folder, list_name = place
    if not options.follow_links:
        linked = list(links_out_of([folder / part for part in FOLDERS], folder))
        linked += [error for _, error in links_out(folder, folder, folder, CLASS_FILES)]
        for error in linked:
            problems.mistake(error)
        if linked:
            return None
    return read_list_table(folder, list_name, problems)


def read_list_table(folder: Path, list_name: str, problems: StopAtFirst = STOP) -> Annotations | None:
    """Reads the images of one list of a year's folder; None where none is sound (and `problems` collects)."""
    classes = voc_files.read_classes(folder)
    path = voc_files.list_path(folder, list_name)
    given = voc_files.read_list(folder, list_name)
    settled = voc_files.settle_names(folder, path, given)
    for mistake in settled.mistakes(path, "name"):
        problems.mistake(mistake)
    source, listed = str(path), [settled.renamed.get(name, name) for name in given]
    names = list(dict.fromkeys(listed))
    files, missing, of_images = voc_files.find_images(folder, names)
    for mistake in of_images.mistakes(path, "name"):
        problems.mistake(mistake)
    with ThreadPoolExecutor(min(8, usable_cores())) as pool:
        scans = list(pool.map(lambda name: _scan_or_error(folder, name, classes), names))
    said = _report(source, folder, listed, dict(zip(names, scans, strict=True)), problems)
    sound = [i for i, scan in enumerate(scans) if isinstance(scan, Scan)]
    if not sound:
        return None
    said["notes"] += settled._replace(renamed={**settled.renamed, **of_images.renamed}).notes()
    columns = {field: np.concatenate([getattr(scans[i], field) for i in sound]) for field in COLUMNS}
    corners = columns["boxes"].astype(np.float64)
    categories = {number: name for name, number in classes.ids.items()}
    return Annotations(
        source=source,
        image_ids=np.array(sound, dtype=np.int64) + 1,
        sizes=np.array([scans[i].size for i in sound], dtype=np.int64).reshape(-1, 2),
        names=Ragged.of(files[i] for i in sound),
        first=np.cumsum([0, *(len(scans[i].numbers) for i in sound)], dtype=np.int64),
        annotation_ids=np.full(len(corners), NO_ID),
        category_ids=columns["classes"],
        boxes=np.concatenate([corners[:, :2], corners[:, 2:] - corners[:, :2]], axis=1),
        areas=columns["areas"].astype(np.float64),
        iscrowd=np.zeros(len(corners), dtype=np.uint8),
        ignored=columns["difficult"].astype(np.uint8),
        masks=IndexImages(
            folder / "SegmentationObject",
            Ragged.of(f"{names[i]}.png" for i in sound),
            columns["numbers"],
            columns["boxes"],
            voc_files.read_index_image,
        ),
        images=VocImages(folder / "JPEGImages", source),
        label_map=LabelMap.from_categories(categories),
        categories=categories,
        missing=np.array(missing, dtype=bool)[sound],
        fixed_labels=True,
        **said,
    )


def _report(
    source: str, folder: Path, listed: list[str], scans: dict[str, "Scan | InputError"], problems: StopAtFirst
) -> dict[str, Any]:
    """Reports what the scans of a list found; returns the table's fields that say the same, by counts."""
    skipped, first_skipped, notes, skipped_of = Counter(), {}, Counter(), Counter()
    if repeated := len(listed) - len(scans):
        first_skipped[LISTED_TWICE] = Counter(listed).most_common(1)[0][0]
        skipped[LISTED_TWICE] += repeated
        problems.skip(LISTED_TWICE, f"{source}: {LISTED_TWICE}: {repeated}", count=repeated)
    for name, scan in scans.items():
        if isinstance(scan, InputError):
            problems.mistake(scan, image=name)
            continue
        xml = voc_files.xml_path(folder, name)
        skipped_of.update(scan.skipped_classes)
        for reason, count in scan.skipped.items():
            if count:
                first_skipped.setdefault(reason, name)
                skipped[reason] += count
                problems.skip(reason, f"{xml}: {reason}: {count}", name, count=count)
        for title, count in scan.notes.items():
            if count:
                notes[title] += count
                problems.note(title, f"{xml}: {title}: {count}", name, count=count)
        if scan.fraction is not None:
            problems.note(FRACTIONS, f"{xml}: boxes with fractions, such as {scan.fraction}", name)
    noted = ", ".join(f"{count} {of_several(count, title)}" for title, count in notes.items())
    return {
        "skipped": dict(skipped),
        "first_skipped": first_skipped,
        "skipped_of": dict(skipped_of),
        "notes": (f"notes: {noted}",) if noted else (),
    }


class VocImages(ImageFiles):
    """Images whose masks are files of their own."""

    def claim(self, name: str, size: tuple[int, int], image_id: int | str) -> str:
        """Returns the size that the image's mask has."""
        mask = voc_files.mask_path(self.image_dir.parent, "Object", Path(name).stem)
        return f"its mask {mask} is {size[1]}x{size[0]}; they must fit"


COLUMNS = ("numbers", "boxes", "areas", "classes", "difficult")


class Scan(NamedTuple):
    """The instances of one image: COLUMNS with N rows each (boxes [N, 4]), and counts by reason.

    fraction: a box of the XML that has one; skipped_classes: of the XML's objects without a mask.
    """

    size: tuple[int, int]
    numbers: np.ndarray
    boxes: np.ndarray
    areas: np.ndarray
    classes: np.ndarray
    difficult: np.ndarray
    skipped: dict[str, int]
    notes: dict[str, int]
    fraction: list[float] | None
    skipped_classes: list[int]


def _scan_or_error(folder: Path, name: str, known: voc_files.Classes) -> Scan | InputError:
    try:
        return _scan(folder, name, known)
    except InputError as error:
        return error


def _scan(folder: Path, name: str, known: voc_files.Classes) -> Scan:
    """Reads everything about one image but its pixels."""
    objects = voc_files.read_index_image(voc_files.mask_path(folder, "Object", name))
    numbers, boxes, areas = voc_files.find_instances(objects)
    class_mask = voc_files.mask_path(folder, "Class", name)
    by_mask = voc_files.classes_of_instances(class_mask, objects, numbers, known)
    xml = voc_files.read_xml(voc_files.xml_path(folder, name), known)
    partner = voc_files.match_objects(boxes, by_mask, xml.boxes, xml.classes)  # [N], -1 where there is none

    matched = partner >= 0
    classes, difficult = by_mask.copy(), np.zeros_like(by_mask)
    classes[matched], difficult[matched] = xml.classes[partner[matched]], xml.difficult[partner[matched]]
    known = classes > 0
    skipped = {NO_MASK: int(len(xml.classes) - matched.sum()), NO_CLASS: int((~known).sum())}
    skipped[VOID_ALONE] = int(not len(numbers) and bool((objects == voc_files.VOID).any()))
    notes = {
        FROM_CLASS_MASK: int((known & ~matched).sum()),
        CLASS_DIFFERS: int((matched & (by_mask > 0) & (by_mask != classes)).sum()),
        NO_XML: int(not xml.exists),
        XML_SIZE: int(xml.size not in (None, objects.shape)),
    }
    columns = [column[known] for column in (numbers, boxes, areas, classes, difficult)]
    broken = (xml.boxes % 1).any(axis=1)  # [M]
    fraction = xml.boxes[broken][0].tolist() if broken.any() else None
    without = np.delete(xml.classes, partner[matched]).tolist()
    return Scan(objects.shape, *columns, skipped, notes, fraction, without)
