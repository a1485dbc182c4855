"""Makes the full pass: opens every image as training does, and keeps a few bytes of it, by which doubles are found.

An image that training skips is a warning, one that it stops at an error, both in the loader's words.
"""

import hashlib
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader
from tqdm import tqdm

from backbone.errors import InputError
from network_files.config import MaskRCNNConfig
from tools.doctor.finds import NOTE, WARNING, Finds, Kind
from train_utils.data.dataset import ImageDataset
from train_utils.data.images import ImageError, read_image
from train_utils.data.images.depth import is_deep
from train_utils.data.images.file_formats import formats, image_suffixes
from train_utils.data.images.orientation import EXIF_ORIENTATION
from train_utils.data.images.pages import page_of
from train_utils.data.images.reading import AS_STORED, Reading
from train_utils.data.images.shown import shown
from train_utils.data.images.survey import FEW, MEASURED, advise, measure, spread
from train_utils.data.images.windows import Windows
from train_utils.io.plain_text import counted
from train_utils.io.silence import without_warnings

THUMB = 32  # pixels a side of the copies that doubles are compared by
HASH = 8  # rows, and differences in each, of the difference hash
BLANK = 2  # largest difference of pixels of an image that shows nothing
UNREADABLE = Kind(
    WARNING,
    "skipped: images that cannot be read",
    "Training leaves them out and counts them; under --strict they are an error. Save them anew.",
)
BLANKS = Kind(WARNING, "images of one colour", "Were they exported right?")
ODD = "Read as training reads them; no need to act where they look right on the contact sheet."
TURNED = Kind(NOTE, "images turned by their EXIF orientation", ODD)
DEEP = Kind(
    NOTE, "images of more than 8 bits", "Training measures which values become 0 and 1, or takes --value-range."
)
COLOURS = Kind(NOTE, "images in other colours than RGB or grey", ODD)
FRAMES = Kind(NOTE, "animations, of which the first frame is read", ODD)
FEW_LEVELS = Kind(
    WARNING, "images of few values", "Were they made of images of more bits by a scale that is too large?"
)
NARROW = Kind(WARNING, "images that use little of their range", "--value-range auto measures the range.")
BINS = 24  # of a histogram of values
LEAST_SHARE = 0.1  # of the range, that values should lie in


class Seen(NamedTuple):
    """What one image is like.

    error: (the loader's words, whether it is only skipped), or None; blank: of one colour; notes: (Kind, text);
    digest: of its pixels; hash: HASH x HASH bits; thumb: uint8 THUMB x THUMB grey, as bytes.
    """

    i: int
    error: tuple[str, bool] | None
    blank: bool
    notes: tuple
    digest: bytes
    hash: int
    thumb: bytes
    seconds: float


class Reader:
    """A sequence of `Seen`, for a DataLoader. data: a data set, or paths of images."""

    def __init__(self, data: ImageDataset | list[Path]) -> None:
        self.data, self.paths = data, isinstance(data, list)

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, i: int) -> Seen:
        start = time.perf_counter()
        path = self.data[i] if self.paths else self.data.file_name(i)
        notes = tuple(header_notes(path))
        try:
            image = read_image(path, reading=AS_STORED) if self.paths else self.data[i][0]
            image = image.window(0, 0, *image.shape[1:]) if isinstance(image, Windows) else image
        except InputError as error:
            return Seen(i, (str(error), isinstance(error, ImageError)), False, notes, b"", 0, b"", 0.0)
        digest = hashlib.blake2b(image.numpy().tobytes(), digest_size=16, key=str(tuple(image.shape)).encode()).digest()
        thumb = thumbnail(image)
        unit = 1 if image.dtype == torch.uint8 else 1 / 255
        blank = float(image.max()) - float(image.min()) <= BLANK * unit
        return Seen(i, None, blank, notes, digest, difference_hash(thumb), thumb.tobytes(), time.perf_counter() - start)


def header_notes(path: str | Path) -> Iterator[tuple[Kind, str]]:
    """Yields (Kind, text) of what is unusual about an image file, from its header; nothing where it can't be opened."""
    file, page = page_of(path)
    try:
        with without_warnings, Image.open(file, formats=formats()) as image:
            image.seek(page or 0)
            mode, deep, frames = image.mode, is_deep(image), getattr(image, "n_frames", 1) if page is None else 1
            try:
                turn = image.getexif().get(EXIF_ORIENTATION, 1)
            except Exception:  # as in train_utils/data/images.py: damaged tags say nothing about the pixels
                turn = 1
    except Exception:  # the reader of the pixels says what is wrong
        return
    if turn in range(2, 9):
        yield TURNED, f"{path}: EXIF orientation {turn}"
    if deep:
        yield DEEP, f"{path}: mode {mode}"
    elif mode not in ("RGB", "L", "1"):
        yield COLOURS, f"{path}: mode {mode}"
    if frames > 1:
        yield FRAMES, f"{path}: {frames} frames"


def thumbnail(image: torch.Tensor) -> np.ndarray:
    """Turns an image [C, H, W] into a grey uint8 [THUMB, THUMB], each pixel the mean of its part."""
    grey = Image.fromarray(shown(image).permute(1, 2, 0).numpy()).convert("L")
    return np.asarray(grey.resize((THUMB, THUMB), Image.Resampling.BOX, reducing_gap=2))


def difference_hash(thumb: np.ndarray) -> int:
    """Returns 64 bits: whether each of HASH x HASH places is darker than its right neighbour (dHash, Krawetz 2013)."""
    small = np.asarray(Image.fromarray(thumb).resize((HASH + 1, HASH), Image.Resampling.BOX), dtype=np.int16)
    return int.from_bytes(np.packbits(small[:, 1:] > small[:, :-1]).tobytes(), "big")


def full_pass(data: ImageDataset | list[Path], workers: int, finds: Finds, split: str = "") -> list[Seen]:
    """Opens every image there is of a data set, or of a list of paths; returns those that can be read."""
    present = range(len(data)) if isinstance(data, list) else np.flatnonzero(~data.missing).tolist()
    loader = DataLoader(
        Reader(data),
        batch_size=16 if len(data) > 64 else 1,
        sampler=present,
        num_workers=min(workers, len(data)),
        collate_fn=list,
    )
    found = []
    for batch in tqdm(loader, desc=f"images {split}".strip(), unit="batch", disable=None, leave=False):
        found += batch
    for seen in found:
        report(seen, data, split, finds)
    return [seen for seen in found if seen.error is None]


def report(seen: Seen, data: ImageDataset | list[Path], split: str, finds: Finds) -> None:
    """Adds what is wrong with an image, and what is unusual about it, to the finds."""
    path, image = (data[seen.i], None) if isinstance(data, list) else (data.file_name(seen.i), data.given_id(seen.i))
    for kind, text in seen.notes:
        finds.add(kind, text, split, image)
    if seen.error is not None:
        message, skipped = seen.error
        if skipped:
            finds.add(UNREADABLE, message, split, image)
        else:
            finds.mistake(message, split=split, image=image)
    elif seen.blank:
        finds.add(BLANKS, f"{path}: all its pixels are alike", split, image)


class PixelValues(NamedTuple):
    """Values of the training images: histograms of each channel, how many different ones, and lines that say so."""

    histograms: list[dict[str, int]]
    levels: int
    images: int
    lines: list[str]


def pixel_values(
    splits: dict[str, ImageDataset], config: MaskRCNNConfig, finds: Finds
) -> tuple[dict[str, ImageDataset], PixelValues | None]:
    """Returns the splits as training reads their images, and the values of a sample; None where none can be read."""
    split, part = next(iter({role: splits[role] for role in ("train", "all", "val") if role in splits}.items()))
    reading = Reading.of(config)
    try:
        advice = advise(part, reading, False, False)
        reading = replace(reading, **advice.fields)
        values = advice.values or measure(part, reading, spread(len(part), MEASURED))
    except InputError:  # the full pass, which opens each image, says why
        values = None
    if values is None:
        return {role: each.read_as(reading) for role, each in splits.items()}, None
    usual = (0.0, 255.0) if values.in_bytes else (0.0, float(max(1.0, min(65535.0, values.sample.max()))))
    pair = reading.value_range if reading.value_range and len(reading.value_range) == 2 else None
    low, high = usual if values.in_bytes or pair is None else pair
    levels, (least, most) = values.levels(low, high), values.value_range()
    lines, where = list(advice.lines), f"{part.source}: {levels} different values from {low:g} to {high:g}"
    if levels < FEW:
        finds.add(FEW_LEVELS, f"{where} in {counted(values.of, 'image')}", split)
        lines.append(f"{levels} different values in {counted(values.of, 'image')}, which is few")
    elif not values.in_bytes and (most - least) < LEAST_SHARE * (high - low):
        finds.add(NARROW, f"{where}, nearly all of them within {least:g} to {most:g}", split)
    histograms = values.histogram(low, high, BINS)
    histograms = histograms[:1] if all(each == histograms[0] for each in histograms) else histograms  # of grey
    found = PixelValues(histograms, levels, values.of, lines)
    return {role: each.read_as(reading) for role, each in splits.items()}, found


def images_below(folder: Path) -> list[Path]:
    """Returns the image files of a folder and of those in it, by their suffixes."""
    suffixes = image_suffixes()
    return sorted(path for path in folder.rglob("*") if path.suffix.lower() in suffixes and path.is_file())
