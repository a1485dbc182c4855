"""What a reader found, image by image and object by object -> a table of polygons and RLEs.

For formats that have a file for each image: ids come from the files' names, and what large data gave is kept for the
next time (`array_cache`), as long as no file has changed.
"""

import math
import os
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from backbone.errors import InputError
from train_utils.data.annotations import DTYPES, Annotations, ImageSource, image_arrays, polygon_table
from train_utils.data.formats.coco.checks import MOST_PIXELS, as_id, given_id, is_text
from train_utils.data.formats.coco.layout import find_jsons
from train_utils.data.formats.npy_folder import few, is_number
from train_utils.data.images import ImageError, image_size
from train_utils.data.images.file_formats import image_suffixes
from train_utils.data.images.pages import stem_of, without_suffix
from train_utils.data.links import links_out_of
from train_utils.data.masks import NO_ID
from train_utils.data.options import DataOptions
from train_utils.data.problems import StopAtFirst
from train_utils.io import array_cache
from train_utils.io.checksums import file_checksums
from train_utils.io.plain_text import counted, visible

SETTLED = 2 * 10**9  # nanoseconds after which another change of a file gets another time
READ = 2**26  # bytes of files that are compared before what they gave is taken from the cache
BLOCK = 4096  # bytes that the smallest file takes, also of the time to read it
NOT_IMAGE = (1, 1)  # the size of an image that cannot be read: it is counted when it is


class FoundObject(NamedTuple):
    """An object of an image: kind and parts as `PolygonsAndRle` has them, box x y w h, area NaN where it is unknown."""

    category: int
    kind: int
    parts: list[bytes]
    box: Sequence[float]
    area: float = math.nan


class Found:
    """Collects what a reader of `source` found; `values` and `arrays` are then what a table is made of.

    A skip is counted, and reported to `problems`.
    """

    def __init__(self, source: str | Path, problems: StopAtFirst) -> None:
        self.source, self.problems = str(source), problems
        self.images: list[tuple[str, tuple[int, int]]] = []
        self.objects: list[list[FoundObject]] = []
        self.unmasked: list[tuple[int, int, list[float]]] = []  # position of the image, category, x y w h
        self.skipped: Counter[str] = Counter()
        self.first_skipped: dict[str, str] = {}
        self.skipped_of: Counter[int] = Counter()

    def add(self, name: str, size: tuple[int, int], objects: list[FoundObject]) -> None:
        """Adds an image of this file name and its objects."""
        self.images.append((name, size))
        self.objects.append(objects)

    def skip(self, title: str, where: str, image: str | None = None, category: int | None = None) -> None:
        """Leaves out what `where` names, an object of a category where that is known."""
        self.skipped[title] += 1
        self.first_skipped.setdefault(title, where)
        if category is not None:
            self.skipped_of[category] += 1
        self.problems.skip(title, f"{where}: skipped: {title}", image)

    def leave_out(self, title: str, names: list[str]) -> None:
        """Leaves out whole files of the source."""
        if names:
            self.skipped[title] += len(names)
            self.first_skipped.setdefault(title, few(names[:1]))
        for name in names:
            self.problems.skip(title, f"{self.source}: {name}: skipped: {title}")

    def values(self, **more: Any) -> dict:
        """Returns the plain values of `polygon_table`, whose categories are still to be set, and more."""
        ids = image_ids([name for name, _ in self.images])
        boxes = [[ids[i][0], category, *box, box[2] * box[3], 0] for i, category, box in self.unmasked]
        counts = {"skipped": dict(self.skipped), "first_skipped": self.first_skipped, "unmasked": boxes}
        return {"categories": [], "given": [], **counts, "skipped_of": list(self.skipped_of.items()), **more}

    def arrays(self) -> dict[str, np.ndarray]:
        """Returns DTYPES' arrays."""
        objects = [found for of_image in self.objects for found in of_image]
        ids = image_ids([name for name, _ in self.images])
        images = [(number, name, size, given) for (number, given), (name, size) in zip(ids, self.images, strict=True)]
        parts = [part for found in objects for part in found.parts]
        arrays = {
            "first": np.cumsum([0, *map(len, self.objects)]),
            "annotation_ids": np.full(len(objects), NO_ID),
            "category_ids": np.array([found.category for found in objects]),
            "iscrowd": np.zeros(len(objects)),
            "areas": np.array([found.area for found in objects]),
            "boxes": np.array([tuple(found.box) for found in objects]).reshape(-1, 4),
            "kinds": np.array([found.kind for found in objects]),
            "first_part": np.cumsum([0, *(len(found.parts) for found in objects)]),
            "part_bytes": np.frombuffer(b"".join(parts), dtype=np.uint8),
            "part_first": np.cumsum([0, *map(len, parts)]),
        }
        return image_arrays(images) | {name: values.astype(DTYPES[name], copy=False) for name, values in arrays.items()}


def image_ids(names: list[str]) -> list[tuple[int, str]]:
    """Returns (id, `given_id`) for each file name: its stem's number, or a hash of another stem.

    007 is 7 unless there is a 7; a stem that several names have is told apart by their folders. A page is stack#3.
    """
    stems = [stem_of(name) for name in names]
    counts = Counter(int(stem) if is_number(stem) else stem for stem in stems)
    ids = []
    for name, stem in zip(names, stems, strict=True):
        if is_number(stem) and counts[int(stem)] == 1:
            ids.append((int(stem), ""))
            continue
        text = stem if counts[int(stem) if is_number(stem) else stem] == 1 else without_suffix(name)
        number = as_id(text, "id")
        ids.append((number, "" if str(number) == text else given_id(text)))
    return ids


def images_in(folder: Path) -> dict[str, str]:
    """Returns {stem: file name} of the images directly in a folder, in the order of their numbers.

    InputError where two have one stem, or a name is no text.
    """
    suffixes, found = image_suffixes(), {}
    for name in sorted(os.listdir(folder)):
        stem, suffix = os.path.splitext(name)
        if name.startswith(".") or suffix.lower() not in suffixes or not (folder / name).is_file():
            continue
        if not is_text(name):
            raise InputError(f"{folder}: file name {name!a} is not text; rename it")
        if stem in found:
            raise InputError(f"{folder}: {found[stem]} and {name} have one name but for the ending; rename one of them")
        found[stem] = name
    return {stem: found[stem] for stem in sorted(found, key=_by_number)}


def images_below(folder: Path) -> Iterator[Path]:
    """Yields the images in a folder and in those below it that are not hidden."""
    suffixes = image_suffixes()
    for parent, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in names:
            if os.path.splitext(name)[1].lower() in suffixes and not name.startswith("."):
                yield Path(parent, name)


def _by_number(stem: str) -> tuple[int, int, str]:
    return (0, int(stem), stem) if is_number(stem) else (1, 0, stem)


def holds_coco(root: Path) -> bool:
    """Returns whether a folder holds COCO jsons, which count before masks and text files beside them."""
    try:
        return bool(find_jsons(root))
    except InputError:
        return False


def folders_in(folder: Path) -> list[Path]:
    """Returns the folders directly in a folder that are not hidden, by name."""
    with os.scandir(folder) as entries:  # which tells folders from files without asking for each
        return sorted(Path(entry.path) for entry in entries if entry.is_dir() and not entry.name.startswith("."))


def size_of(path: Path) -> tuple[int, int]:
    """Returns (H, W) of an image upright, NOT_IMAGE where it is broken, which is counted when it is read.

    Raises InputError for one that is refused.
    """
    try:
        height, width = image_size(path)
    except ImageError:
        return NOT_IMAGE
    if height * width >= MOST_PIXELS:
        raise InputError(f"{path}: {width}x{height} is more than masks can have; cut it into parts")
    return height, width


def one_of_each(found: Iterable[tuple[str, Path, Any]], root: Path) -> dict[str, Any]:
    """Returns {"train" | "val": what is there} of (role, its folder, what is there); test stands for an absent val.

    InputError where two folders have one role.
    """
    by_role: dict[str, list[tuple[Path, Any]]] = {}
    for role, folder, what in found:
        by_role.setdefault(role, []).append((folder, what))
    by_role["val"] = by_role.get("val") or by_role.get("test", [])
    chosen = {role: by_role[role] for role in ("train", "val") if by_role.get(role)}
    for role, places in chosen.items():
        if len(places) > 1:
            folders = visible(", ".join(str(folder.relative_to(root)) for folder, _ in places))
            raise InputError(
                f"{root}: several folders for {role}: {folders}; give one as --data-path, take one out, or put what "
                "they hold into one"
            )
    return {role: places[0][1] for role, places in chosen.items()}


def note_unread(counts: Mapping[str, int], what: str) -> str:
    """Returns a note on what lies beside the splits, {folder: files}; empty where there is nothing."""
    total, folders = sum(counts.values()), sorted(name for name, count in counts.items() if count)
    return f"not read: {counted(total, what)} outside the splits' folders, in {few(folders)}" if total else ""


def refuse_links(folders: Iterable[Path], root: Path, options: DataOptions, problems: StopAtFirst) -> bool:
    """Reports the files in these folders that are links out of the data; returns whether there are any."""
    linked = [] if options.follow_links else list(links_out_of(folders, root))
    for error in linked:
        problems.mistake(error)
    return bool(linked)


def kept(
    said: object, files: Iterable[Path], problems: StopAtFirst, read: Callable[[], tuple[dict, dict[str, np.ndarray]]]
) -> tuple[dict, dict[str, np.ndarray], tuple[str, ...]]:
    """Returns the plain values and arrays that `read` makes of these files, and notes; what large data gave is kept.

    said: all else that the outcome depends on. What a doctor reads is not taken from what is kept: it asks for each
    skip.
    """
    files = list(files)
    key, worthwhile = _stamp(said, files)
    if not worthwhile or problems.collects:
        return *read(), ()
    found = array_cache.load(key, DTYPES)
    if found is not None:
        return *found, ()
    values, arrays = read()
    note = array_cache.store(key, values, arrays) if key == _stamp(said, files)[0] else None
    return values, arrays, (note,) if note else ()


def _stamp(said: object, files: list[Path]) -> tuple[str, bool]:
    """Returns (a hash of what the disk says of the files, whether to keep what they give).

    It is kept where it is much, and not quite new. Contents of READ bytes tell a changed file whose size and times are
    as they were, as on disks that keep no time of a change: surely where the data is small, else mostly.
    """
    state = array_cache.new_hash()
    state.update(repr(said).encode(errors="surrogateescape"))
    total = newest = 0
    sizes = np.full(len(files), -1)
    for i, path in enumerate(files):
        try:
            found = os.stat(path)
        except OSError:  # named where it is read
            continue
        sizes[i] = found.st_size
        state.update(
            f"{path} {found.st_size} {found.st_mtime_ns} {found.st_ctime_ns}\n".encode(errors="surrogateescape")
        )
        total, newest = total + max(found.st_size, BLOCK), max(newest, found.st_mtime_ns, found.st_ctime_ns)
    worthwhile = total >= array_cache.WORTHWHILE and newest < time.time_ns() - SETTLED
    if worthwhile:
        state.update(file_checksums(files, sizes, READ))
    return state.hexdigest(), worthwhile


def table_of(
    source: str | Path,
    content: tuple[dict, dict[str, np.ndarray], tuple[str, ...]],
    categories: dict[int, str],
    images: ImageSource,
    **more: Any,
) -> Annotations | None:
    """Makes the table of what `kept` returns; None where there is no image."""
    values, arrays, notes = content
    if not len(arrays["image_ids"]):
        return None
    values["categories"] = list(categories.items())
    return polygon_table(source, values, arrays, images, notes=(*values.get("notes", ()), *notes), **more)
