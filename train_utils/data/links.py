"""Names of data files -> an error for each that is a symbolic link out of the data.

Such links are followed only where the user says so.

The data folder and the folder of its images may be links themselves, and lie apart; what counts is a link below.
"""

import glob
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from backbone.errors import InputError
from train_utils.data.images.pages import file_of

ADVICE = "give --follow-links if that is meant, or put the file itself there"


def links_out(
    source: str | Path, image_dir: str | Path, root: str | Path, names: Iterable[str]
) -> Iterator[tuple[str, InputError]]:
    """Yields (name, error) of each image in `image_dir` that is a link out of `image_dir` and `root`, or beyond one.

    source: what lists the names. Each folder is looked at once, an image only if it is a link. Names that leave
    `root` as text are skipped: they are refused where they are read.
    """
    inside = _inside(image_dir, root)
    links: dict[str, frozenset[str] | InputError] = {}  # in a folder; or what is wrong with the folder itself
    for name in names:
        folder = os.path.dirname(name)
        if folder not in links:
            links[folder] = _links_below(image_dir, folder, root, inside, source)
        found = links[folder]
        if isinstance(found, InputError):
            yield name, found
            continue
        if not found:
            continue
        path = file_of(os.path.join(image_dir, name))
        if os.path.basename(path) in found and (error := _leads_out(source, path, inside)):
            yield name, error


def links_out_of(folders: Iterable[Path], root: Path) -> Iterator[InputError]:
    """Yields an error for each file of folders below `root` that is a link out of both."""
    for folder in folders:
        for name in sorted(_links_in(folder)):
            if error := _leads_out(folder, os.path.join(folder, name), _inside(folder, root)):
                yield error


def refuse_links_of(pattern: str | Path, paths: Iterable[Path], flag: str) -> None:
    """Raises InputError if a file of the folder or glob that `flag` names is a link out of it, or lies beyond one."""
    fixed = str(pattern)
    while glob.has_magic(fixed):
        fixed = os.path.dirname(fixed)
    inside = _inside(fixed or ".", fixed or ".")
    for path in paths:
        if error := _leads_out(f"{flag} {pattern}", path, inside):
            raise error


def _links_below(
    image_dir: str | Path, folder: str, root: str | Path, inside: tuple[str, ...], source: str | Path
) -> frozenset[str] | InputError:
    path = os.path.join(image_dir, folder)
    if not _is_in(os.path.abspath(path), (os.path.abspath(root), os.path.abspath(image_dir))):
        return frozenset()  # the name itself leaves it
    return _leads_out(source, path, inside) or _links_in(path)


def _links_in(folder: str | Path) -> frozenset[str]:
    try:
        with os.scandir(folder) as entries:
            return frozenset(entry.name for entry in entries if entry.is_symlink())
    except (OSError, ValueError):  # no such folder, or no name of one: then its images are missing
        return frozenset()


def _inside(*folders: str | Path) -> tuple[str, ...]:
    return tuple({os.path.realpath(folder) for folder in folders})


def _leads_out(source: str | Path, path: str | Path, inside: tuple[str, ...]) -> InputError | None:
    target = os.path.realpath(path)
    if _is_in(target, inside):
        return None
    return InputError(f"{source}: {path} leads out of the data by a link, to {target}; {ADVICE}")


def _is_in(path: str, folders: tuple[str, ...]) -> bool:
    return any(path == folder or path.startswith(folder.rstrip(os.sep) + os.sep) for folder in folders)
