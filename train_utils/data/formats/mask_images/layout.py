"""A folder of images and masks, however it is laid out -> which masks belong to which image.

    images/7.png       masks/7.png                        by stem; 7_mask.png and 7_masks.png too; labels/ for masks/
    images/7.png       masks/cell/7.png                   a folder for each class
    images/7.png       masks/7/1.png  2.png ...           a folder for each image, a file for each object
    images/7.png       masks/7_1.png  7_2.png ...         a file for each object, 7_mask_1.png too
    7.png              7_masks.png                        beside one another
    7/images/7.png     7/masks/1.png  2.png ...           a folder for each image, a file for each object
    images/a/7.png     masks/a/7.png                      in folders of the same names

Each lies in the data's folder, or once for each split: in train/ and val/, as images/train/ and masks/train/, or as
images_train/ and masks_train/.
"""

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from backbone.errors import InputError
from train_utils.data.formats.coco.layout import ROLE, role_of
from train_utils.data.formats.found import folders_in, images_below, images_in, note_unread, one_of_each
from train_utils.data.formats.npy_folder import few
from train_utils.data.images.file_formats import image_suffixes
from train_utils.data.labels import note_on_blanks, trimmed
from train_utils.io.plain_text import counted, visible

IMAGES = ("images", "image", "imgs", "img", "PNGImages", "JPEGImages")
MASKS = ("masks", "mask", "labels", "label", "instances", "PedMasks", "annotations")
CLASS_MAPS = "classes"  # the folder of images of class numbers, in any capitals
CLASS_MAP = re.compile(r"[_-]classes$", re.IGNORECASE)  # the ending of their stems, beside their images
# of a mask's stem, in any capitals, after _ or -; _cp_masks: cellpose's, -labelled: QuPath's
ENDING = re.compile(r"[_-](?:cp_masks|masks?|labels?|labell?ed|instances)$", re.IGNORECASE)
MASK_NAME = re.compile(rf"{ENDING.pattern[:-1]}\.\w+$", re.IGNORECASE | re.MULTILINE)
NUMBER = re.compile(r"[_-]\d+$")  # of an object whose mask is a file of its own
OF_IMAGE = ("", "_img", "_image")  # what an image's stem may have in its place
NO_MASK_FILE, NO_IMAGE = "images without a mask file", "mask files without an image"
FOLDERS, BESIDE, EACH = "folders", "beside", "each"  # how a place is laid out
LOOKED_FOR = (
    "looked for images/ with masks/ or labels/ (7.png or 7_mask.png for 7.jpg), 7_masks.png beside 7.png, and "
    "7/images/ with 7/masks/, also in train/ and val/"
)


class Place(NamedTuple):
    """Where a split lies: root, of the data; kind: FOLDERS (of images and of masks), BESIDE or EACH (both the same).

    classes: the folders of classes that any split has, sorted; mapped: whether any has class maps; others: the other
    splits; note: what is not read of the data, "" where all is.
    """

    root: Path
    kind: str
    images: Path
    masks: Path
    classes: tuple[str, ...] = ()
    note: str = ""
    mapped: bool = False
    others: tuple["Place", ...] = ()


class MaskFile(NamedTuple):
    """A mask file below the data's folder; class_name: of the folder that it lies in, "" without one."""

    name: str
    class_name: str = ""


class Sample(NamedTuple):
    """An image below the data's folder, its masks, its class map ("" without one), and whether a mask is an object."""

    image: str
    masks: list[MaskFile]
    class_map: str
    separate: bool


def find_places(root: Path) -> dict[str, Place]:
    """Returns {"train" | "val" | "all": place}; empty where there is nothing of the kind."""
    places = _by_role(root)
    if not places:
        whole = _place_in(root, root)
        places = {"all": whole} if whole else {}
    folders = sorted({name for place in places.values() for name in _class_folders(place)})
    named = sorted(set(map(trimmed, folders)))
    if notes := note_on_blanks(folders):
        first = next(iter(places))
        places[first] = places[first]._replace(note="; ".join(filter(None, [places[first].note, *notes])))
    mapped = any(map(_is_mapped, places.values()))
    places = {role: place._replace(classes=tuple(named), mapped=mapped) for role, place in places.items()}
    return {
        role: place._replace(others=tuple(each for each in places.values() if each is not place))
        for role, place in places.items()
    }


def _by_role(root: Path) -> dict[str, Place]:
    """Returns the place of each role, {"train" | "val": place}; the first notes what lies beside them."""
    found: list[tuple[str, Place | None]] = []
    others: list[Path] = []  # folders of no role that may hold masks
    parts: dict[tuple[str, str], dict[bool, list[Path]]] = {}  # {(role, its word): {whether of masks: folders}}
    for folder in sorted(folders_in(root), key=_rank):
        role, rest = _role_and_rest(folder.name)
        if role == "all":
            of_masks = _is_one(folder.name, MASKS)
            if of_masks or _is_one(folder.name, IMAGES):
                for inner in folders_in(folder):
                    role, rest = _role_and_rest(inner.name)
                    if role != "all" and not rest:
                        parts.setdefault((role, inner.name), {}).setdefault(of_masks, []).append(inner)
                    elif of_masks:
                        others.append(inner)
            else:
                others.append(folder)
        elif not rest:
            found.append((role, _place_in(folder, root)))
        elif _is_one(rest, (*IMAGES, *MASKS)):
            pair = parts.setdefault((role, folder.name.replace(rest, "")), {})
            pair.setdefault(_is_one(rest, MASKS), []).append(folder)
        else:
            others.append(folder)
    for (role, _), pair in sorted(parts.items()):
        masks = list(filter(_has_images, pair.get(True, ())))
        if masks and False in pair:
            found.append((role, _place_of(root, pair[False], masks)))
    places = one_of_each(((role, place.images, place) for role, place in found if place), root)
    if places:
        first = next(iter(places))
        inside = [place.masks for folder in others if folder.parent == root and (place := _place_in(folder, root))]
        unread = [*(folder for folder in others if folder.parent != root), *inside]
        counts = {str(folder.relative_to(root)): sum(1 for _ in images_below(folder)) for folder in unread}
        notes = filter(None, [note_unread(counts, "mask file"), places[first].note])
        places[first] = places[first]._replace(note="; ".join(notes))
    return places


def _role_and_rest(name: str) -> tuple[str, str]:
    """Returns the role that a folder's name says, and the name without it: "train2017" -> "train", ""."""
    role = role_of(Path(name), Path(name).parent)
    if role == "all":
        return role, name
    rest = re.sub(ROLE.pattern, "", name, count=1, flags=re.IGNORECASE)
    return role, re.sub(r"^[\W_\d]+|[\W_\d]+$", "", rest)


def _place_in(folder: Path, root: Path) -> Place | None:
    """Returns how a folder holds images and masks, None where it does not."""
    folders = {path.name: path for path in folders_in(folder)}
    images = list(_named(folders, IMAGES))
    masks = list(filter(_has_images, _named(folders, MASKS)))
    if images and masks:
        return _place_of(root, images, masks)
    if any(_pairs_beside(folder)):
        return Place(root, BESIDE, folder, folder)
    each = any(_pair_of_folders(inner) for inner in folders.values())
    return Place(root, EACH, folder, folder) if each else None


def _place_of(root: Path, images: list[Path], masks: list[Path]) -> Place:
    """Returns the place of the first folder of images and the first of masks; the note says what the others hold."""
    passed = {str(path.relative_to(root)): sum(1 for _ in images_below(path)) for path in (*images[1:], *masks[1:])}
    names = [name for name, count in passed.items() if count]
    read = [path.relative_to(root) for path in (images[0], masks[0])]
    note = f"not read: {counted(sum(passed.values()), 'file')} in {few(names)}, beside {read[0]} and {read[1]}"
    return Place(root, FOLDERS, images[0], masks[0], note=note if names else "")


def _rank(folder: Path) -> int:
    """Returns a key that sorts folders of images and of masks by the words of their names, as `_named` does."""
    rest, words = _role_and_rest(folder.name)[1].casefold(), [word.casefold() for word in (*IMAGES, *MASKS)]
    return words.index(rest) if rest in words else len(words)


def _is_one(name: str, words: tuple[str, ...]) -> bool:
    """Returns whether a name is one of some words, in any capitals."""
    return name.casefold() in map(str.casefold, words)


def _named(folders: dict[str, Path], words: tuple[str, ...]) -> Iterator[Path]:
    """Yields the folders that have these names, in the words' order; in other capitals where none has the word's."""
    others = {name.casefold(): path for name, path in folders.items()}
    for word in words:
        if path := folders.get(word) or others.get(word.casefold()):
            yield path


def _pair_of_folders(folder: Path) -> tuple[Path, Path] | None:
    """Returns images/ and masks/ in a folder, where both are there."""
    pair = folder / "images", folder / "masks"
    return pair if all(path.is_dir() for path in pair) else None


def _has_images(folder: Path) -> bool:
    """Returns whether a folder, or one in it, holds an image."""
    return _holds_image(folder) or any(map(_holds_image, folders_in(folder)))


def _holds_image(folder: Path) -> bool:
    suffixes = image_suffixes()
    with os.scandir(folder) as entries:
        return any(os.path.splitext(entry.name)[1].lower() in suffixes for entry in entries)


def _pairs_beside(folder: Path) -> Iterator[tuple[str, str]]:
    """Yields the names of an image and of the mask beside it."""
    suffixes, listed = image_suffixes(), sorted(os.listdir(folder))
    if not MASK_NAME.search("\n".join(listed)):  # at once, as a folder may hold 100,000 images
        return
    names = [os.path.splitext(name) for name in listed if not name.startswith(".")]
    by_stem = {stem: stem + suffix for stem, suffix in names if suffix.lower() in suffixes}
    for stem, mask in by_stem.items():
        image = next((each for each in _stems_of(stem) if each in by_stem and each != stem), None)
        if image is not None:
            yield by_stem[image], mask


def _stems_of(mask_stem: str) -> Iterator[str]:
    """Yields the stems that the image of a mask may have, the likeliest first."""
    yield mask_stem
    for found in reversed(list(re.finditer("[_-]", mask_stem))):
        if ENDING.fullmatch(mask_stem, found.start()):
            yield from (mask_stem[: found.start()] + other for other in OF_IMAGE)


def _class_folders(place: Place) -> set[str]:
    """Returns the names of the folders of classes."""
    if place.kind == FOLDERS:
        return _classes_in(place.images, place.masks)
    if place.kind == BESIDE:
        return set()
    pairs = filter(None, map(_pair_of_folders, folders_in(place.images)))
    return {path.name for _, masks in pairs for path in folders_in(masks)}


def _classes_in(images: Path, masks: Path) -> set[str]:
    """Returns the names of the folders of classes in a folder of masks, and in those that are as the images' are."""
    same, stems = _same_folders(images, masks), images_in(images, arrays=True)
    inner = {path.name for path in folders_in(masks)}.difference(same)
    below = (_classes_in(images / name, masks / name) for name in same)
    return (inner if inner.isdisjoint(stems) else set()).union(*below)


def _is_mapped(place: Place) -> bool:
    """Returns whether class maps lie beside the masks of a place."""
    if place.kind == BESIDE:
        return any(map(CLASS_MAP.search, images_in(place.images)))
    masks = [place.masks] if place.kind == FOLDERS else [path / "masks" for path in folders_in(place.images)]
    maps = (_class_maps_of(place.root, folder) for folder in masks if folder.is_dir())
    return any(folder is not None and _has_images(folder) for folder in maps)


def _same_folders(images: Path, masks: Path) -> list[str]:
    """Returns the names of folders of images that have masks in a folder of the same name."""
    both = {path.name for path in folders_in(images)} & {path.name for path in folders_in(masks)}
    return sorted(name for name in both if _has_images(images / name))


def samples_of(place: Place) -> tuple[list[Sample], dict[str, list[str]]]:
    """Returns (the images of a place with their masks, {why: names of files that are left out}).

    InputError where none has a mask, or a mask could be two images'.
    """
    left: dict[str, list[str]] = {NO_MASK_FILE: [], NO_IMAGE: []}
    if place.kind == EACH:
        samples = []
        for folder in folders_in(place.images):
            if pair := _pair_of_folders(folder):
                samples += _of_one_folder(place, *pair, left)
            elif any(images_in(inner) for inner in [folder / "images"] if inner.is_dir()):
                left[NO_MASK_FILE].append(folder.name)
    elif place.kind == BESIDE:
        samples = _beside(place, left)
    else:
        samples = _in_folders(place, place.images, place.masks, _class_maps_of(place.root, place.masks), left)
    if not samples:
        raise InputError(
            f"{place.masks}: none of its masks has the name of an image in {place.images}; 7.png or 7_mask.png belongs "
            f"to 7.jpg ({_examples(left)})"
        )
    return samples, {why: names for why, names in left.items() if names}


def _examples(left: dict[str, list[str]]) -> str:
    """Returns the first name of each kind that has no partner."""
    return visible(", ".join(f"{why} such as {names[0]}" for why, names in left.items() if names) or "both are empty")


def _beside(place: Place, left: dict[str, list[str]]) -> list[Sample]:
    folder, pairs = place.images, {}
    for image, mask in _pairs_beside(folder):
        if image in pairs:
            raise InputError(f"{folder}: {pairs[image]} and {mask} are both masks of {image}; take one of them out")
        pairs[image] = mask
    below = folder.relative_to(place.root)
    images = images_in(folder)
    maps = {CLASS_MAP.sub("", stem): name for stem, name in images.items() if CLASS_MAP.search(stem)}
    taken, samples = {*pairs.values(), *(name for stem, name in maps.items() if stem in images)}, []
    for stem, image in images.items():
        class_map = maps.get(stem, "")
        if image in pairs:
            masks = [MaskFile(str(below / pairs[image]))]
            samples.append(Sample(str(below / image), masks, str(below / class_map) if class_map else "", False))
        elif image not in taken:
            left[NO_IMAGE if ENDING.search(stem) else NO_MASK_FILE].append(image)
    return samples


def _of_one_folder(place: Place, image_dir: Path, mask_dir: Path, left: dict[str, list[str]]) -> list[Sample]:
    """Returns the sample of a folder of one image and its masks; of several images, those that go by stem."""
    images, masks = images_in(image_dir, arrays=True), images_in(mask_dir)
    (stem, name), *more = [*images.items()] or [("", "")]
    if more or stem in masks:
        return _in_folders(place, image_dir, mask_dir, _class_maps_of(place.root, mask_dir), left)
    if not name:
        left[NO_IMAGE].append(str(mask_dir.relative_to(place.root)))
        return []
    below = mask_dir.relative_to(place.root)
    files = [MaskFile(str(below / mask)) for mask in masks.values()]
    for folder in folders_in(mask_dir):
        class_name = trimmed(folder.name)
        files += [MaskFile(str(below / folder.name / mask), class_name) for mask in images_in(folder).values()]
    maps_dir = _class_maps_of(place.root, mask_dir)
    class_map = images_in(maps_dir).get(stem, "") if maps_dir else ""
    class_map = str((maps_dir / class_map).relative_to(place.root)) if class_map else ""
    return [Sample(str((image_dir / name).relative_to(place.root)), files, class_map, True)]


def _class_maps_of(root: Path, mask_dir: Path) -> Path | None:
    """Returns the folder of class maps for a folder of masks: classes/, classes/train/ or classes_train/ near it."""
    near = {path.name: path for path in folders_in(mask_dir.parent)}
    words = [CLASS_MAPS]
    if _is_one(rest := _role_and_rest(mask_dir.name)[1], MASKS):
        words.append(mask_dir.name.replace(rest, CLASS_MAPS))
    if beside := next(_named(near, tuple(words)), None):
        return beside
    if mask_dir.parent == root:
        return None
    above = next(_named({path.name: path for path in folders_in(mask_dir.parent.parent)}, (CLASS_MAPS,)), None)
    return above / mask_dir.name if above and (above / mask_dir.name).is_dir() else None


def _in_folders(
    place: Place, image_dir: Path, mask_dir: Path, maps_dir: Path | None, left: dict[str, list[str]]
) -> list[Sample]:
    """Returns the samples of a folder of images and one of masks, and of the folders in both."""
    same = _same_folders(image_dir, mask_dir)
    samples = _by_stem(place, image_dir, mask_dir, maps_dir, left)
    for folder in folders_in(image_dir):
        if folder.name in same:
            samples += _in_folders(place, folder, mask_dir / folder.name, maps_dir and maps_dir / folder.name, left)
        else:
            left[NO_MASK_FILE] += [str(path.relative_to(image_dir)) for path in images_below(folder, arrays=True)]
    return samples


def _by_stem(
    place: Place, image_dir: Path, mask_dir: Path, maps_dir: Path | None, left: dict[str, list[str]]
) -> list[Sample]:
    """Returns the samples of the images directly in a folder; maps_dir: of the class maps, if there are any."""
    images, below = images_in(image_dir, arrays=True), mask_dir.relative_to(place.root)
    masks: dict[str, list[MaskFile]] = {stem: [] for stem in images}
    separate, same = set(), _same_folders(image_dir, mask_dir)
    for class_name in ["", *(path.name for path in folders_in(mask_dir) if path.name not in same)]:
        if class_name in images:  # a file for each object
            files = images_in(mask_dir / class_name).values()
            masks[class_name] += [MaskFile(str(below / class_name / name)) for name in files]
            separate.add(class_name)
            continue
        for stem, name in images_in(mask_dir / class_name).items():
            image = next((each for each in _stems_of(stem) if each in images), None)
            numbered = image is None
            if numbered:
                image = next((each for each in _stems_of(NUMBER.sub("", stem)) if each in images), None)
            if image is None:
                left[NO_IMAGE].append(os.path.join(class_name, name))
                continue
            known = any(mask.class_name == trimmed(class_name) for mask in masks[image])
            if numbered and (image in separate or not known):
                separate.add(image)
            elif known or numbered:
                others = " and ".join([os.path.basename(mask.name) for mask in masks[image]] + [name])
                raise InputError(f"{mask_dir}: {others} are both masks of {images[image]}; take one of them out")
            masks[image].append(MaskFile(str(below / class_name / name), trimmed(class_name)))
    maps = images_in(maps_dir) if maps_dir and maps_dir.is_dir() else {}
    left[NO_MASK_FILE] += [images[stem] for stem, files in masks.items() if not files and stem not in separate]
    return [
        Sample(
            str((image_dir / images[stem]).relative_to(place.root)),
            files,
            str((maps_dir / maps[stem]).relative_to(place.root)) if stem in maps else "",
            stem in separate,
        )
        for stem, files in masks.items()
        if files or stem in separate
    ]
