"""Turns --img-path into the images of a prediction, and these into the names of their drawn copies."""

import glob
import os
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from backbone.errors import InputError
from train_utils.data.images import ARRAY_SUFFIX, page_count
from train_utils.data.images.file_formats import image_suffixes
from train_utils.data.images.pages import file_of, page_name, page_of, stem_of
from train_utils.data.links import refuse_links_of
from train_utils.io.files import user_path
from train_utils.io.plain_text import counted, visible
from train_utils.show.video import SUFFIXES, is_video

LONGEST = 240  # bytes of a drawn image's stem: disks take names of 255, with a suffix and a temporary file's own


def find_images(img_paths: Iterable[str], follow_links: bool = False, flag: str = "--img-path") -> list[Path]:
    """Finds the files that `flag` names: a file itself, a folder's images and videos, a glob's matches; each once.

    A page may be named (stack.tif#3). A folder's files without an image's or video's suffix are left out and named.
    Raises InputError where nothing is found, and, unless follow_links, where a folder or a glob leads out of itself by
    a link.
    """
    found = []
    for name in img_paths:
        path = user_path(name)
        if path.is_dir():
            in_folder = _images_in(path, flag)
            if not follow_links:
                refuse_links_of(path, in_folder, flag)
            found += in_folder
        elif os.path.exists(file_of(path)):
            found.append(path)
        else:
            matches = [Path(match) for match in sorted(glob.glob(str(path), recursive=True))]
            matches = [match for match in matches if match.is_file()]
            if not matches:
                raise InputError(f"{flag} {name}: no such file or folder; as a glob it matches no file")
            if not follow_links:
                refuse_links_of(path, matches, flag)
            found += matches
    return list(dict.fromkeys(found))


def pages_of(path: Path) -> list[Path]:
    """Returns the names of the pages of a file; of a file of one page, a page and a video its own."""
    count = 1 if is_video(path) or page_of(path)[1] is not None else page_count(path)
    return [Path(page_name(str(path), page)) for page in range(count)] if count > 1 else [path]


def _images_in(folder: Path, flag: str) -> list[Path]:
    known = image_suffixes() | SUFFIXES
    files = [path for path in sorted(folder.iterdir()) if path.is_file() and not path.name.startswith(".")]
    images = [path for path in files if path.suffix.lower() in known]
    images = images or [path for path in files if path.suffix.lower() == ARRAY_SUFFIX]
    taken = set(images)
    others = [path.name for path in files if path not in taken]
    if not images:
        raise InputError(
            f"{flag} {folder}: no images in this folder (sub-folders are not searched; "
            f"'{folder}/**/*.jpg' in quotes finds theirs)"
        )
    folders = sum(path.is_dir() and not path.name.startswith(".") for path in folder.iterdir())
    if folders:
        inner = counted(folders, "sub-folder", "are")
        print(f"{folder}: {inner} not searched; '{folder}/**/*.jpg' in quotes finds what is there")
    if others:
        shown = visible(", ".join(others[:5]) + (", ..." if len(others) > 5 else ""))
        left_out = f"left out {counted(len(others), 'file')} without an image's or video's suffix"
        print(f"{visible(str(folder))}: {left_out}: {shown}")
    return images


def output_names(images: list[Path]) -> list[str]:
    """Returns a .jpg file name for each image, .mp4 for a video, all different, also on disks that ignore case.

    A name is the stem (stack#3 of a page) where no other image has it, else the whole name, cut to LONGEST bytes; a
    number is added where that is taken too.
    """
    stems = [stem_of(path).lower() for path in images]
    counts, taken, names = Counter(stems), set(), []
    for path, stem in zip(images, stems, strict=True):
        base = _cut(stem_of(path) if counts[stem] == 1 else path.name.replace(".", "_"))
        name, number = base, 1
        while name.lower() in taken:
            number += 1
            name = f"{base}_{number}"
        taken.add(name.lower())
        names.append(name + drawn_suffix(path))
    return names


def drawn_suffix(path: Path) -> str:
    """Returns the suffix of the drawn copy."""
    return ".mp4" if is_video(path) else ".jpg"


def _cut(name: str) -> str:
    content = os.fsencode(name)
    return name if len(content) <= LONGEST else content[:LONGEST].decode(errors="ignore")
