"""Where the images of a json lie; file names that are no files as given -> the files that are meant, one to one.

Jsons come from Windows, with backslashes, from other machines, with their whole paths, and from file systems that take
A.PNG for a.png or write an accented letter as two characters.
"""

import difflib
import os
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from itertools import dropwhile, islice
from pathlib import Path
from typing import NamedTuple

from backbone.errors import InputError
from train_utils.data.formats.coco.layout import FEW, ROLE, ROLES, data_root, files_in, image_path, is_inside
from train_utils.data.images.file_formats import image_suffixes
from train_utils.data.images.pages import file_of
from train_utils.io.files import user_path
from train_utils.io.plain_text import counted

MOST_FILES = 1_000_000  # that are looked through
MOST_COMPARED = 20_000  # file names that a missing one is compared with
PROBES = 32  # file names looked up in each candidate folder of images
Parts = tuple[str, ...]  # of a path, each as `folded`


class FileNames(NamedTuple):
    """What became of file names.

    renamed: {name as given: that of its file}; ambiguous: {name: files that it could be}; absent: all names that are no
    files as given.
    """

    renamed: dict[str, str]
    ambiguous: dict[str, list[str]]
    absent: frozenset[str]

    def mistakes(self, source: str | Path, what: str) -> Iterator[str]:
        """Yields what is wrong with each ambiguous name; source lists them, as `what`."""
        for name, several in self.ambiguous.items():
            could = (
                f"{name!r} could be {' or '.join(map(repr, several[:3]))}"
                if len(several) > 1
                else f"{name!r} and another could both be {several[0]!r}"
            )
            yield f"{source}: {what} {could}; name each file as it is"

    def notes(self) -> tuple[str, ...]:
        """Returns what is to be said about it."""
        if not self.renamed:
            return ()
        given, found = next(iter(self.renamed.items()))
        return (f"{counted(len(self.renamed), 'file name', 'differ')} from the files', as {given!r} from {found!r}",)


def image_folder(root: Path, json_path: Path, image_dir: str | Path | None, names: list[str]) -> tuple[Path, Path]:
    """Returns (folder where the images `names` of a json begin, folder that none may leave).

    They are around the json, or `image_dir`, the --image-dir of a command, where it is given. Raises InputError where
    there is none.
    """
    if not names:
        raise InputError(f"{json_path}: its list of images holds no file_name")
    if image_dir is None:
        return find_image_dir(root, json_path, names), root
    folder = user_path(image_dir)
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; check --image-dir")
    return folder, folder


def find_image_dir(root: Path, json_path: Path, names: list[str]) -> Path:
    """Returns the folder near `json_path` in which most of the images `names` lie. InputError if none holds any."""
    suffix = re.sub(r"^instances_?", "", json_path.stem)
    candidates: list[Path] = []
    for place in (data_root(json_path), root):  # of an export for one split, of the whole; mostly the same
        images = place / "images"
        candidates += [place / suffix, images / suffix, json_path.parent, images, place]
        candidates += [*_subfolders(place), *_subfolders(images), *_subfolders(json_path.parent)]
    candidates = [path for path in dict.fromkeys(candidates) if path.is_dir()]
    probes = names[:: max(1, len(names) // PROBES)]
    found = {path: sum(is_file(path, name, root) for name in probes) for path in candidates}
    best = max(candidates, key=found.__getitem__)
    if not found[best]:
        files = settle(probes, root, root)
        if files.renamed or files.ambiguous:
            return root
        looked = ", ".join(str(path) for path in candidates[:8])
        like = nearest(probes[0], candidates)
        raise InputError(f"{json_path}: its images (as {probes[0]}{like}) are not in {looked}; give --image-dir")
    return best


def _subfolders(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []


def settle(names: list[str], folder: str | Path, root: str | Path) -> FileNames:
    """Finds the files of names in `folder` that are none as given; no file outside `folder` is taken.

    A backslash may stand for a slash. Else capitals and the spelling of accented letters may differ; and where not one
    name is a file as given, all may begin with folders that are not there. Two names never become one file, and a
    file of another split (by a folder named train, val or test) is none.
    """
    at_once = len(names) > FEW and is_inside(os.path.abspath(folder), os.path.abspath(root))
    present = files_in(folder) if at_once else frozenset()
    absent = [name for name in dict.fromkeys(names) if name not in present and not is_file(folder, name, root)]
    if not absent:
        return FileNames({}, {}, frozenset())
    slashed = {name: name.replace("\\", "/") for name in absent if "\\" in name}
    renamed = {name: other for name, other in slashed.items() if is_file(folder, other, root)}
    taken = {os.path.normpath(name) for name in {*names, *renamed.values()} - set(absent)}
    may_be_cut = len(absent) == len(set(names)) and not renamed
    others = {name: parts for name in absent if name not in renamed and (parts := _parts(name, may_be_cut))}
    found = _look_for(others, folder, taken, may_be_cut)
    clear, ambiguous = _one_to_one(found)
    return FileNames({**renamed, **clear}, ambiguous, frozenset(absent))


def settle_stems(names: Iterable[str], present: Iterable[str]) -> FileNames:
    """Finds which of the stems `present` are meant by names that are none of them; as `settle`, with their words.

    Folders before a name and an image's suffix behind it are left aside: all stems are of one folder.
    """
    listed, stems = list(dict.fromkeys(names)), set(present)
    absent = [name for name in listed if name not in stems]
    free: defaultdict[str, list[str]] = defaultdict(list)
    for stem in sorted(stems - set(listed)) if absent else ():
        free[folded(stem)].append(stem)
    found = {}
    for name in absent:
        last = next(reversed(_parts(name)), "")
        without, suffix = os.path.splitext(last)
        if stems_of := free.get(last) or (free.get(without) if suffix in image_suffixes() else None):
            found[name] = stems_of
    return FileNames(*_one_to_one(found), frozenset(absent))


def _one_to_one(found: dict[str, list[str]]) -> tuple[dict[str, str], dict[str, list[str]]]:
    """Parts {name: what it could be} into those that have one that is no other's, and the ambiguous ones."""
    uses = Counter(files[0] for files in found.values() if len(files) == 1)
    clear = {name: files[0] for name, files in found.items() if len(files) == 1 and uses[files[0]] == 1}
    return clear, {name: files for name, files in found.items() if name not in clear}


def nearest(name: str, folders: Iterable[str | Path]) -> str:
    """Returns "; the nearest name there is ..." of the files directly in folders; empty where none is like it."""
    files = islice((file for folder in folders for file in sorted(files_in(folder))), MOST_COMPARED)
    of_stem = {os.path.splitext(file)[0]: file for file in files}  # a suffix alone makes no name alike
    like = difflib.get_close_matches(os.path.splitext(re.split(r"[\\/]", name)[-1])[0], of_stem, n=1)
    return f"; the nearest name there is {of_stem[like[0]]}" if like else ""


def is_file(folder: str | Path, name: str, root: str | Path) -> bool:
    """Returns whether a name in a folder is a file, and does not leave the root."""
    try:
        return os.path.isfile(file_of(image_path(folder, name, root)))
    except InputError:
        return False


def folded(text: str) -> str:
    """Returns text without what file systems and people write in two ways: capitals, and accents apart."""
    return unicodedata.normalize("NFC", text.casefold())


def _parts(name: str, may_be_cut: bool = False) -> Parts:
    """Returns the folded parts of a path of any system, without its drive; none where it goes upwards.

    may_be_cut: leave out .. at its beginning, as in paths from the place of a program, which Label Studio writes.
    """
    parts = [part for part in re.split(r"[\\/]+", re.sub(r"^[A-Za-z]:", "", name)) if part not in ("", ".")]
    parts = list(dropwhile(lambda part: part == "..", parts)) if may_be_cut else parts
    return () if ".." in parts else tuple(map(folded, parts))


def _look_for(
    names: dict[str, Parts], folder: str | Path, taken: Iterable[str], may_be_cut: bool
) -> dict[str, list[str]]:
    """Returns {name: the files that end with its parts}; may_be_cut: leave out as many first folders as finds most."""
    wanted = {parts[-1] for parts in names.values()}
    files: defaultdict[str, list[tuple[Parts, str]]] = defaultdict(list)  # by their last part
    for path in islice(_files_below(folder), MOST_FILES) if wanted else ():
        parts = _parts(path)
        if parts and parts[-1] in wanted and path not in taken:
            files[parts[-1]].append((parts, path))
    best: dict[str, list[str]] = {}
    for cut in range(max(map(len, names.values()), default=0) if may_be_cut else 1):
        found = {}
        for name, parts in names.items():
            tail = parts[min(cut, len(parts) - 1) :]
            ends = [p for own, p in files[parts[-1]] if own[-len(tail) :] == tail and _same_split(own, parts)]
            if ends:
                found[name] = ends
        if sum(len(f) == 1 for f in found.values()) > sum(len(f) == 1 for f in best.values()) or not best:
            best = found
    return best


def _files_below(folder: str | Path) -> Iterable[str]:
    """Yields the files below a folder, from there."""
    for place, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            yield os.path.normpath(os.path.relpath(os.path.join(place, name), folder))


def _same_split(one: Parts, other: Parts) -> bool:
    splits = [
        {ROLES.get(match[1], match[1]) for part in parts[:-1] if (match := ROLE.search(part))} for parts in (one, other)
    ]
    return not all(splits) or splits[0] == splits[1]
