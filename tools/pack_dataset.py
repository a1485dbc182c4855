"""Pack a data set into one file for each split, mapped into memory when it is read: fast to load, easy to move.

    python -m tools.pack_dataset DATA OUT                    any data that train.py reads; --val-fraction as there
    python train.py --data-path OUT                          the same samples as from DATA

Writes OUT/train.pack and OUT/val.pack: pixels and masks as they come out of the images' files and annotations.
Images that are not RGB of 8 bits in one page (16 bits, many channels) are stored as their files are.
Pixels take about ten times the space of JPEG files; --keep-encoded stores the files as they are, which
saves less of the loading time. `python -m benchmarks loading loading_packed loading_encoded` measures both.
Exit status 1: finished, but some images could not be read: they are named and left out.
"""

from __future__ import annotations

import hashlib
import io
import shutil
import sys
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
import torch
from tqdm import tqdm

from backbone.errors import InputError
from backbone.settings import setting
from network_files import CroppedMasks
from tools.conversion import content_in_annotations
from train_utils.cli.command import EXIT_OK, EXIT_SOME_UNUSABLE, run_command
from train_utils.cli.flags import add_flags
from train_utils.cli.parser import Parser
from train_utils.data.dataset import ImageDataset
from train_utils.data.formats.packed import AS_STORED, INDEX, MAGIC, PIXELS, TAIL, UPRIGHT, PackedRecords
from train_utils.data.images import CHANNELS, PAGES, ImageError, raw_values, read_image, take_dropped
from train_utils.data.images.pages import file_of, page_of
from train_utils.data.images.reading import AS_STORED as OF_ANY_FILE
from train_utils.data.opening import open_data
from train_utils.data.options import DataOptions
from train_utils.io.array_block import block_pieces, padded
from train_utils.io.files import atomic_file, new_folder
from train_utils.io.plain_text import counted, pasted, visible


@dataclass(frozen=True)
class Options(DataOptions):
    """Packing: from where, to where."""

    data_path: str | None = setting(None, "the data set's folder, or its json", positional=True, metavar="DATA")
    out: str | None = setting(None, "folder to be made", positional=True, metavar="OUT")
    keep_encoded: bool = setting(False, "store the images' files, not their pixels")


def parse() -> Options:
    """Returns the options that the command names."""
    parser = Parser(description=__doc__)
    add_flags(parser, Options, leave_out=("drop_empty",))
    return Options(**parser.given())


class Row(NamedTuple):
    """An image in the index: one row of each of INDEX's arrays that count images, and its objects."""

    position: int
    record: tuple[int, int, int]
    checksums: list[int]
    kind: int
    target: dict


def encoded(data_set: ImageDataset, i: int) -> tuple[bytes, int]:
    """Returns (bytes of image i's file, how they are turned to become the image); of a page an .npy file's."""
    path, image = data_set.file_name(i), data_set.read_as(OF_ANY_FILE).image(i)
    file, page = page_of(path)
    content = content_in_annotations(data_set, i)
    if content is None:
        content = Path(file).read_bytes() if page is None else as_array(path)
    for kind in (UPRIGHT, AS_STORED):
        if torch.equal(read_image(file, kind == UPRIGHT, content, OF_ANY_FILE), image):
            return content, kind
    raise InputError(f"{path}: changed while it was packed; pack the data set again")


def size_of_file(data_set: ImageDataset, i: int) -> int:
    """Returns the bytes of image i's file, or of what the annotations hold in its place."""
    content = content_in_annotations(data_set, i)
    return Path(file_of(data_set.file_name(i))).stat().st_size if content is None else len(content)


def as_array(path: str) -> bytes:
    """Returns the values of an image, in its file's units, as an .npy file."""
    file = io.BytesIO()
    np.save(file, raw_values(path))
    return file.getvalue()


def pixels_of(data_set: ImageDataset, i: int) -> torch.Tensor | None:
    """Returns image i as uint8 RGB; None where that is less than its file holds, which a model's flags may ask for."""
    take_dropped()
    try:
        image = data_set.image(i)
    except ImageError:
        raise
    except InputError:  # of other channels, which the file itself keeps; else it is raised again
        data_set.read_as(OF_ANY_FILE).image(i)
        return None
    whole = image.dtype == torch.uint8 and take_dropped().keys().isdisjoint({PAGES, CHANNELS})
    return image if whole else None


def mask_bits(masks: CroppedMasks) -> bytes:
    """Returns the crops' bits, each crop filled up to whole bytes."""
    return b"".join(np.packbits(crop.reshape(-1).numpy()).tobytes() for crop in masks.crops())


def write_records(
    file: BinaryIO, data_set: ImageDataset, keep_encoded: bool, strict: bool, bar: tqdm
) -> tuple[list[Row], list[str]]:
    """Writes the record of each image; returns their rows, and the unreadable images."""
    rows, unreadable = [], []
    for i in range(len(data_set)):
        bar.update()
        try:
            image = None if keep_encoded else pixels_of(data_set, i)
            content, kind = encoded(data_set, i) if image is None else (image.numpy().tobytes(), PIXELS)
        except ImageError as error:
            if strict:
                raise
            unreadable.append(str(error))
            continue
        target = data_set.target(i)
        parts = [content, mask_bits(target["masks"])]
        rows.append(Row(i, (file.tell(), *map(len, parts)), [zlib.crc32(part) for part in parts], kind, target))
        file.writelines(parts)
        target["masks"] = target["masks"].boxes  # the pixels are written
    return rows, unreadable


def index_of(data_set: ImageDataset, rows: list[Row], unreadable: int) -> tuple[dict, dict[str, np.ndarray]]:
    """Returns (plain values, INDEX's arrays) of the images that were written."""
    positions = [row.position for row in rows]
    written = {data_set.image_id(i) for i in positions}
    truth = [a for a in data_set.ground_truth()["annotations"] if a["image_id"] in written]
    keys = ("boxes", "labels", "area", "iscrowd", "masks")
    target = {key: np.concatenate([row.target[key].numpy() for row in rows]) for key in keys}
    arrays = {
        "sizes": data_set.sizes.numpy()[positions],
        "image_ids": [data_set.image_id(i) for i in positions],
        "records": [row.record for row in rows],
        "checksums": [row.checksums for row in rows],
        "kinds": [row.kind for row in rows],
        "first": np.cumsum([0, *(len(row.target["labels"]) for row in rows)]),
        "boxes": target["boxes"],
        "labels": target["labels"],
        "areas": target["area"],
        "iscrowd": target["iscrowd"],
        "crops": target["masks"],
        "annotation_ids": [annotation["id"] for annotation in truth],
        "given_boxes": np.reshape([annotation["bbox"] for annotation in truth], (-1, 4)),
        "given_areas": [annotation["area"] for annotation in truth],
        "ignored": [annotation["iscrowd"] for annotation in truth],
    }
    skipped, first = dict(data_set.skipped), dict(data_set.first_skipped)
    if unreadable:
        skipped["unreadable images"], first["unreadable images"] = unreadable, "named when they were packed"
    given = {data_set.image_id(i): data_set.given_id(i) for i in positions}
    values = {
        "label_map": data_set.label_map.to_dict(), "names": [data_set.file_name(i) for i in positions],
        "given_ids": [pair for pair in given.items() if pair[0] != pair[1]],
        "skipped": skipped, "first_skipped": first, "skipped_of": list(data_set.annotations.skipped_of.items()),
        "unmasked": list(data_set.annotations.unmasked),
    }  # fmt: skip
    return values, {name: np.asarray(arrays[name], dtype=INDEX[name]) for name in INDEX}


def pack(data_set: ImageDataset, path: Path, keep_encoded: bool = False, strict: bool = False) -> list[str]:
    """Writes a data set into one file; returns the unreadable images, which are left out.

    Raises InputError where there is no room, and for images and annotations that can't be used.
    """
    if keep_encoded and isinstance(data_set.annotations.images, PackedRecords):
        raise InputError(f"--keep-encoded: {data_set.source} is packed already; give the data that it was packed from")
    need = (
        sum(size_of_file(data_set, i) for i in range(len(data_set)))
        if keep_encoded
        else (3 * int(data_set.sizes.prod(dim=1).sum()))
    )
    free = shutil.disk_usage(path.parent).free
    if need > free:
        raise InputError(
            f"{path}: {need:,} bytes are needed, {free:,} are free; give another folder"
            + ("" if keep_encoded else ", or --keep-encoded")
        )
    with atomic_file(path, need) as file, tqdm(total=len(data_set), desc=path.name, disable=None) as bar:
        file.write(MAGIC)
        rows, unreadable = write_records(file, data_set, keep_encoded, strict, bar)
        if not rows:
            raise InputError(f"{data_set.source}: none of its images could be read; the first: {unreadable[0]}")
        end = file.tell()
        file.write(b"\0" * (padded(end) - end))
        index = b"".join(block_pieces(*index_of(data_set, rows, len(unreadable))))
        file.write(index + TAIL.pack(padded(end), len(index), hashlib.sha256(index).digest()))
    return unreadable


def main() -> int:
    """Runs the command; returns its exit status."""
    options = parse()
    splits = open_data(options)
    unreadable = []
    with new_folder(options.out) as out:
        for name, part in (("train", splits.train), ("val", splits.val)):
            print(f"{name}: {part.describe()}")
            unreadable += pack(part, out / f"{name}.pack", options.keep_encoded, options.strict)
    for image in unreadable:
        print(f"left out: {visible(image)}", file=sys.stderr)
    if unreadable:
        print(f"{counted(len(unreadable), 'image')} could not be read: left out", file=sys.stderr)
    out = visible(options.out)
    print(f"written: {out}/train.pack, {out}/val.pack (python train.py --data-path {pasted(options.out)})")
    return EXIT_SOME_UNUSABLE if unreadable else EXIT_OK


if __name__ == "__main__":
    sys.exit(run_command(main))
