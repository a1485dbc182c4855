"""Images whose masks are images (layouts: `layout`; mask files: `label_files`) -> a table.

Each mask file is read once, when the data is opened: its objects are kept as run-length codes in the flat arrays that a
COCO json gives, so that an epoch reads no mask file. What files of 8 MiB or more together gave is kept for the next
time, as long as no file has changed.

A mask of several pages belongs to an image of as many; each page is then an image of its own (stack.tif#3).

A value beside 0 is an object, all its parts together. Masks that say where objects are, but not which (one value in
nearly every file, or values in many regions), are refused until --split-components says what is meant.
"""

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from backbone.errors import InputError
from train_utils.data.annotations import Annotations, ImageFiles
from train_utils.data.formats import npy_folder
from train_utils.data.formats.found import (
    NOT_IMAGE,
    Found,
    FoundObject,
    holds_coco,
    kept,
    refuse_links,
    size_of,
    table_of,
)
from train_utils.data.formats.mask_images.label_files import read_labels
from train_utils.data.formats.mask_images.layout import LOOKED_FOR, MaskFile, Place, Sample, find_places, samples_of
from train_utils.data.formats.mask_images.regions import (
    Objects,
    find_runs,
    objects_of,
    regions_of,
    single_object,
    split_regions,
)
from train_utils.data.images import ImageError, image_size, page_count
from train_utils.data.images.pages import file_of, page_name, page_of, stem_of
from train_utils.data.masks import RLE
from train_utils.data.options import DataOptions
from train_utils.data.problems import StopAtFirst
from train_utils.io.plain_text import counted, visible
from train_utils.processes.cores import usable_cores

UNUSED = dict.fromkeys(("image_dir", "year"), "which is found by the names of its folders")
CACHED = "masks 5"  # to be raised when arrays, or what is checked or skipped, change
ONE_CLASS = "object"
EMPTY, NO_CLASS = "objects whose mask is empty", "objects without a class in the class map"
PAGED = (".tif", ".tiff")  # files of masks that may have several pages
LAST, FULL = 255, 200  # the highest number of 8 bits; of a file with as many numbers it may be several objects
NEARLY = 0.9  # of the files with several regions: as many have one value where masks are binary
MANY_REGIONS = 3  # for each value: objects have one or two, classes and blurred masks have many
SPLIT = "give --split-components to read each connected region (8 neighbours) as an object"
BY_VALUE = "--split-components False to read each value as one object"


def recognises(path: Path) -> bool:
    """Returns whether a folder holds images with mask images."""
    try:
        return path.is_dir() and bool(find_places(path)) and not holds_coco(path)
    except InputError:  # which opening it then says
        return not holds_coco(path)


def find_splits(path: Path, options: DataOptions, split: str | None) -> dict[str, Place]:
    """Returns {"train" | "val" | "all": where it lies}."""
    places = find_places(path) if path.is_dir() else {}
    if not places:
        raise InputError(f"{path}: no mask images found; {LOOKED_FOR}")
    return places


def read(place: Place, options: DataOptions, problems: StopAtFirst) -> Annotations | None:
    """Reads one split; None where nothing of it is sound (and `problems` collects).

    The classes are the folders that masks lie in, or the values of class maps, or one. classes.txt names them.
    """
    samples, left = samples_of(place)
    files = [place.root / name for sample in samples for name in (sample.image, *_mask_names(sample))]
    if refuse_links(sorted({path.parent for path in files}), place.root, options, problems):
        return None
    loose = next(
        (mask.name for each in samples if not each.class_map for mask in each.masks if not mask.class_name), ""
    )
    if place.classes and loose:
        raise InputError(
            f"{place.root / loose}: lies in no folder of a class, but the data has folders of classes "
            f"({npy_folder.few(list(place.classes))}); put it into one of them, or take the folders out"
        )
    told_elsewhere = place.mapped or options.split_components
    others = [path for other in place.others for path in _files_of(other)] if told_elsewhere else []
    names = npy_folder.read_class_names(place.root, options.label_json_path)
    source = str(place.masks)
    content = kept(
        (CACHED, samples, left, names, place.classes, place.mapped, options.split_components),
        [*files, *others],
        problems,
        lambda: _read_files(place, (samples, left), names, options.split_components, problems),
    )
    used = set(content[1]["category_ids"].tolist())
    categories = names or _own_names(place, used, content[0]["several"])
    if unknown := used - categories.keys():
        problems.mistake(
            f"{source}: class {min(unknown)} of its objects is none of the {counted(len(categories), 'class')} "
            f"{npy_folder.few(list(categories.values()))}; complete the list of names, or correct the masks"
        )
        return None
    named = names is not None or (used <= {1} and not content[0]["several"]) or bool(place.classes)
    table = table_of(source, content, categories, MaskedImages(place.root, source), named=named)
    return table and replace(table, notes=(*filter(None, [place.note]), *table.notes))


class MaskedImages(ImageFiles):
    """Images whose masks are files of their own."""

    def claim(self, name: str, size: tuple[int, int], image_id: int | str) -> str:
        """Returns the size that the image's masks have."""
        return f"its masks in {self.source} are {size[1]}x{size[0]}; they must fit"


def _mask_names(sample: Sample) -> Iterator[str]:
    yield from (mask.name for mask in sample.masks)
    yield from filter(None, [sample.class_map])


def _own_names(place: Place, used: set[int], several: bool) -> dict[int, str]:
    """Returns {class number: name} of data that has no list of names; several: a value of any split is a class."""
    if place.classes:
        return dict(enumerate(place.classes, 1))
    one = used <= {1} and not several
    return {1: ONE_CLASS} if one else {number: f"class_{number}" for number in sorted(used or {1})}


class Scan(NamedTuple):
    """What the masks of one image hold, and what may be amiss.

    objects: of each mask, with the class of each object (0: none). values, regions: of its label images, beside 0;
    colours: how many of them have colours; shared: the regions of 255, less one, where 8 bits are used up. empty: files
    of single objects without one. kinds: the values of the label images whose regions are objects.
    """

    size: tuple[int, int]
    objects: list[tuple[MaskFile, Objects, list[int]]]
    values: int
    regions: int
    colours: int
    empty: list[MaskFile]
    kinds: frozenset[int] = frozenset()
    shared: int = 0


def _read_files(
    place: Place,
    content: tuple[list[Sample], dict],
    names: dict[int, str] | None,
    split: bool | None,
    sink: StopAtFirst,
) -> tuple[dict, dict[str, np.ndarray]]:
    """Reads all mask files; returns plain values and arrays. content: what `samples_of` returns."""
    samples, left = content
    found = Found(place.masks, sink)
    for why, files in left.items():
        found.leave_out(why, files)
    numbers = _class_numbers(place, names)
    scans: list[tuple[Sample, Scan]] = []
    with ThreadPoolExecutor(min(8, usable_cores())) as pool:
        outcomes = pool.map(lambda sample: _scan_or_error(place.root, sample, numbers, split), samples)
        bar = tqdm(outcomes, total=len(samples), desc=place.masks.name, unit="image", disable=None, leave=False)
        for sample, outcome in zip(samples, bar, strict=True):
            if isinstance(outcome, InputError):
                sink.mistake(outcome, image=Path(sample.image).stem)
            else:
                scans += outcome
    if why := _ambiguous([scan for _, scan in scans]) if split is None else "":
        sink.mistake(f"{place.masks}: {why}")
        scans = []
    told_by_files = bool(place.classes) or place.mapped
    told_apart = told_by_files or split
    if names and len(names) > 1 and not told_apart:
        sink.mistake(
            f"{place.root}: {len(names)} classes have names ({npy_folder.few(list(names.values()))}), but nothing says "
            "which object is of which; put the masks into a folder for each class, as masks/CLASS/7.png, or images of "
            "class numbers beside them, as classes/7.png"
        )
    if place.mapped and (lacking := [sample for sample, scan in scans if _lacks_map(sample, scan)]):
        sink.mistake(
            f"{place.root / lacking[0].masks[0].name}: {counted(len(lacking), 'image', 'have')} objects, but no class "
            "map, as others have, this one first; put it into the folder of class maps, or take that out"
        )
    several = _several_classes(place, [scan for _, scan in scans], bool(split))
    one = split and not told_by_files and not (names and len(names) > 1) and not several
    for sample, scan in scans:
        _add(found, sample, scan, bool(one))
    notes = [*_notes([scan for _, scan in scans], split), *_notes_on_pages([sample.image for sample, _ in scans])]
    return found.values(notes=notes, several=several), found.arrays()


def _lacks_map(sample: Sample, scan: Scan) -> bool:
    """Returns whether neither a class map nor a folder says the class of an image's objects."""
    return not sample.class_map and any(classes and not mask.class_name for mask, _, classes in scan.objects)


def _several_classes(place: Place, scans: list[Scan], split: bool) -> bool:
    """Returns whether a value of any split is a class: one of a class map beside 1, or one of several of regions.

    Of regions the class is the value; where all images of all splits have but one, as 255, it says nothing.
    """
    if place.mapped:
        used = {category for scan in scans for _, _, classes in scan.objects for category in classes}
        return not used <= {0, 1} or _has_others(place, frozenset({1}))
    kinds = frozenset().union(*(scan.kinds for scan in scans))
    return split and not place.classes and (len(kinds) > 1 or _has_others(place, kinds))


def _files_of(place: Place) -> list[Path]:
    """Returns the files of another split whose values may be classes; what is wrong with them is said where it is read.

    They are its class maps, where there are any, else its label images.
    """
    try:
        samples = samples_of(place)[0]
    except InputError:
        return []
    if place.mapped:
        return [place.root / sample.class_map for sample in samples if sample.class_map]
    return [place.root / mask.name for sample in samples for mask in sample.masks]


def _has_others(place: Place, kinds: frozenset[int]) -> bool:
    """Returns whether the other splits' files have other values beside 0 than these."""
    for path in (path for other in place.others for path in _files_of(other)):
        try:
            labels, _ = read_labels(path)
        except InputError:  # which reading that split says; of pages too
            continue
        if not kinds.issuperset(np.unique(labels[labels != 0]).tolist()):
            return True
    return False


def _class_numbers(place: Place, names: dict[int, str] | None) -> dict[str, int]:
    """Returns {folder of a class: its number}. InputError where the list of names lacks one."""
    if names is None:
        return {name: number for number, name in enumerate(place.classes, 1)}
    numbers = {name: number for number, name in names.items()}
    foreign = [name for name in place.classes if name not in numbers]
    if foreign:
        raise InputError(
            f"{place.masks}: its folder {visible(foreign[0])} is none of the {counted(len(names), 'class')} "
            f"{npy_folder.few(list(names.values()))}; rename it, or complete the list of names"
        )
    return numbers


def _add(found: Found, sample: Sample, scan: Scan, one_class: bool) -> None:
    """Adds the image of a scan and its objects."""
    rows, stem = [], stem_of(sample.image)
    for mask in scan.empty:
        found.skip(EMPTY, mask.name, stem)
    for mask, objects, classes in scan.objects:
        for value, box, area, counts, category in zip(*objects, classes, strict=True):
            if category:
                rows.append(FoundObject(1 if one_class else category, RLE, [counts], box.tolist(), float(area)))
            else:
                found.skip(NO_CLASS, f"{mask.name}: value {value}", stem)
    found.add(sample.image, scan.size, rows)


def _ambiguous(scans: list[Scan]) -> str:
    """Returns why the label images do not say which pixels are an object; empty where they do."""
    several = [scan for scan in scans if scan.regions > scan.values]
    binary = [scan for scan in several if scan.values == 1]
    if several and len(binary) >= NEARLY * len(several):
        most = max(scan.regions for scan in binary)
        return (
            f"{len(binary)} of {counted(len(scans), 'image', 'have')} masks of one value beside 0, in up to {most} "
            f"separate regions: they say where objects are, not which; {SPLIT}, or {BY_VALUE}"
        )
    values, regions = sum(scan.values for scan in scans), sum(scan.regions for scan in scans)
    if several and regions >= MANY_REGIONS * values:
        return (
            f"{regions} separate regions have the {counted(values, 'value')} of {counted(len(scans), 'image')}, which "
            f"do not number objects (are they classes, or were they blurred when they were scaled? then "
            f"scale them anew, by nearest neighbour); {SPLIT} of the "
            f"class that its value is, or {BY_VALUE}"
        )
    return ""


def _notes(scans: list[Scan], split: bool | None) -> list[str]:
    """Returns what was decided."""
    colours, notes = sum(scan.colours for scan in scans), []
    if split:
        count = sum(len(classes) for scan in scans for _, _, classes in scan.objects)
        notes = [
            f"{counted(count, 'object', 'are')} connected regions (8 neighbours) of masks: those that touch are one"
        ]
    elif colours:
        notes = [f"{counted(colours, 'mask', 'are')} coloured: each colour but black is an object"]
    if full := [scan for scan in scans if scan.shared]:
        regions, masks = max(scan.shared for scan in full) + 1, counted(len(full), "mask")
        notes.append(
            f"{masks} of 8 bits, such as {full[0].objects[0][0].name}, with {LAST} in up to {regions} regions: were "
            f"more than {LAST} objects saved in 8 bits, as OpenCV does with numbers of 32? Then save them with 16"
        )
    return notes


def _notes_on_pages(names: list[str]) -> list[str]:
    """Returns how many of the images are pages, and of how many files."""
    paged = [name for name in names if page_of(name)[1] is not None]
    if not paged:
        return []
    images, files = counted(len(paged), "image", "are"), counted(len(set(map(file_of, paged))), "file")
    return [f"{images} pages of {files}, such as {paged[0]}; so are the masks"]


def _scan_or_error(
    root: Path, sample: Sample, numbers: dict[str, int], split: bool | None
) -> list[tuple[Sample, Scan]] | InputError:
    """Reads the masks of one image, or of the pages of one file."""
    try:
        return [(each, _scan(root, each, numbers, split)) for each in _pages_of(root, sample)]
    except InputError as error:
        return error


def _pages_of(root: Path, sample: Sample) -> list[Sample]:
    """Returns a sample for each page where an image and its masks have equally many of them, else the sample."""
    names = [mask.name for mask in sample.masks]
    if sample.separate or not any(os.path.splitext(name)[1].lower() in PAGED for name in names):
        return [sample]
    counts = {name: page_count(root / name) for name in [sample.image, *names, *filter(None, [sample.class_map])]}
    pages = counts[names[0]]
    if pages == 1:  # of an image whose pages are its channels, too
        return [sample]
    for name, count in counts.items():
        if count != pages:
            what = f"holds {pages} pages, but {name} has {count}; a mask has one page, with a number for each object,"
            raise InputError(f"{root / names[0]}: {what} or as many as its image")
    return [
        Sample(
            page_name(sample.image, page),
            [mask._replace(name=page_name(mask.name, page)) for mask in sample.masks],
            sample.class_map and page_name(sample.class_map, page),
            sample.separate,
        )
        for page in range(pages)
    ]


def _scan(root: Path, sample: Sample, numbers: dict[str, int], split: bool | None) -> Scan:
    """Reads the masks of one image. numbers: of the classes by folder; split: whether regions are objects."""
    scan = Scan(NOT_IMAGE, [], 0, 0, 0, [])
    for mask in sample.masks:
        path = root / mask.name
        labels, coloured = read_labels(path)
        if sample.masks[0] is not mask and scan.size != labels.shape:
            raise InputError(f"{path}: is {_sides(labels.shape)}, but {sample.masks[0].name} is {_sides(scan.size)}")
        scan = scan._replace(size=labels.shape)
        alone = single_object(labels) if sample.separate else None
        if alone is None and len(sample.masks) > 1 and sample.separate:
            raise InputError(
                f"{path}: holds {len(np.unique(labels)) - 1} values beside 0, where a file for each object has one; "
                "save it so, or save one label image for each image"
            )
        if alone is not None:
            objects, kinds = alone, None
            scan.empty.extend([mask][len(objects.values) :])
        else:
            objects, kinds, labels, counts = _objects_in(path, labels, coloured, split)
            scan = scan._replace(**{name: getattr(scan, name) + count for name, count in counts.items()})
            if kinds is not None:
                scan = scan._replace(kinds=scan.kinds.union(kinds.tolist()))
        if sample.class_map:
            kinds = _classes_in(root / sample.class_map, labels, objects.values)
        elif mask.class_name or kinds is None:
            kinds = np.full(len(objects.values), numbers.get(mask.class_name, 1))
        scan.objects.append((mask, objects, kinds.tolist()))
    return scan._replace(size=_fitting(root, sample, scan.size))


def _objects_in(
    path: Path, labels: np.ndarray, coloured: bool, split: bool | None
) -> tuple[Objects, np.ndarray | None, np.ndarray, dict[str, int]]:
    """Returns the objects of a label image, the value of each where regions are objects, the label image, counts.

    The label image numbers the objects; the counts are those of a scan.
    """
    runs = find_runs(labels)
    values = len(np.unique(runs.values))
    if not split:
        regions = np.unique(regions_of(runs, len(labels)))
        last = int((runs.values[regions] == LAST).sum()) if values >= FULL and labels.dtype == np.uint8 else 0
        counts = {"values": values, "regions": len(regions), "colours": int(coloured), "shared": max(last - 1, 0)}
        return objects_of(runs, labels.shape), None, labels, counts
    if coloured and values > 1:
        raise InputError(f"{path}: has {values} colours, where --split-components needs numbers of classes; save it so")
    labels, kinds = split_regions(labels)
    return objects_of(find_runs(labels), labels.shape), kinds, labels, {"values": values}


def _classes_in(path: Path, labels: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Returns the class that most pixels of each object have in a class map, int64 [N]; 0 where none has one.

    values [N]: of the objects in the label image, sorted.
    """
    classes, coloured = read_labels(path)
    if classes.shape != labels.shape or coloured:
        what = "has colours" if coloured else f"is {_sides(classes.shape)}"
        raise InputError(
            f"{path}: {what}; a class map has a class number for each pixel of the mask, which is "
            f"{_sides(labels.shape)}"
        )
    inside = (labels != 0) & (classes != 0)
    pairs = np.stack([np.searchsorted(values, labels[inside]), classes[inside].astype(np.int64)])
    (places, kinds), counts = np.unique(pairs, axis=1, return_counts=True)
    if kinds.max(initial=0) > npy_folder.MOST_CLASSES:
        raise InputError(f"{path}: class {kinds.max()}: there are at most {npy_folder.MOST_CLASSES}")
    order, found = np.argsort(counts, kind="stable"), np.zeros(len(values), dtype=np.int64)
    found[places[order]] = kinds[order]  # the last of an object stays: that with most pixels
    return found


def _fitting(root: Path, sample: Sample, size: tuple[int, int]) -> tuple[int, int]:
    """Returns the size of an image's masks, or its own where it has none. InputError where the two differ."""
    path = root / sample.image
    if not sample.masks:
        return size_of(path)
    try:
        sizes = image_size(path), image_size(path, rotate=False)  # upright and as stored
    except ImageError:  # counted when it is read; until then it has its masks' size
        return size
    if size not in sizes:
        raise InputError(
            f"{root / sample.masks[0].name}: is {_sides(size)}, but {path} is {_sides(sizes[0])}; a mask has the size "
            "of its image"
        )
    return size


def _sides(size: tuple[int, int]) -> str:
    return f"{size[1]}x{size[0]}"
