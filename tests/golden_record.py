"""What the data sets give and say today, as plain values: `tests/golden.json` keeps them, `test_golden.py` compares.

    python -m tests.golden_record               compute all anew, and print what is other than in the record
    python -m tests.golden_record voc_mini      of some parts alone
    python -m tests.golden_record --write       write the record

Texts, counts and labels are kept in clear, samples and ground truths as the first half of a SHA-256. Folders are named
<DATA> (of the real data) and <TMP> in it. What stands under "pixels" depends on the decoders of Pillow, and is compared
only where that is of the record's version.
"""

import argparse
import hashlib
import json
import os
import re
import shutil
import struct
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import numpy as np
import PIL
import torch

from backbone.errors import InputError
from tests.coco_folders import annotation as a_square
from tests.coco_folders import coco, many, write
from tests.faults import catalogue, odd_annotations, odd_data, odd_images
from tests.npy_folders import many as many_npy
from tools import check_data, coco_to_npy, pack_dataset
from tools.doctor import page
from train_utils.checkpoints import held_out
from train_utils.cli.command import run_command
from train_utils.data import opening as data_opening
from train_utils.data.formats import found
from train_utils.data.formats.shapes import make_shapes
from train_utils.data.images import read_image
from train_utils.data.labels import LabelMap
from train_utils.data.options import DataOptions
from train_utils.io import array_cache

ROOT = Path(__file__).resolve().parent.parent
RECORD = ROOT / "tests" / "golden.json"
DENSE = 3  # one sample in so many is hashed with its image and its masks in full size
PIXELS = "pixels"
FLAGS = ("--image-dir", "--year", "--label-json-path")


# --- the product: nothing below this section imports or names any of it ---------------------------------------


def open_splits(path: Path | None, **options: Any) -> Any:
    """What every command opens data by: an object with train, val and label_map."""
    return data_opening.open_data(path, **options)


def layouts() -> tuple[str, ...]:
    """The formats, values of --dataset."""
    return tuple(data_opening.FORMATS)


def flag_message(layout: str, flag: str) -> str:
    """What is said of a flag for data of this layout."""
    options = DataOptions(**{flag.removeprefix("--").replace("-", "_"): "x"})
    return said(lambda: data_opening.refuse_unused(Path("D"), layout, options))


def sample(data_set: Any, i: int) -> tuple[torch.Tensor, dict]:
    """(image, target) of image i."""
    return data_set[i]


def target_of(data_set: Any, i: int) -> dict:
    """Its target alone."""
    return data_set.target(i)


def truth(data_set: Any) -> dict:
    """The COCO dict that evaluation compares with; boxes and areas as floats, whatever their type is."""
    found = data_set.ground_truth()
    for annotation in found["annotations"]:
        annotation |= {"bbox": [float(value) for value in annotation["bbox"]], "area": float(annotation["area"])}
    return found


def described(data_set: Any) -> str:
    """The line that a command prints."""
    return data_set.describe()


def object_counts(data_set: Any) -> np.ndarray:
    """Objects per image that are not crowds, [len]."""
    return data_set.object_counts()


def crowd_counts(data_set: Any) -> np.ndarray:
    """Crowd regions per image, [len]."""
    return data_set.object_counts(crowd=True)


def facts(data_set: Any) -> dict[str, Any]:
    """What else a data set tells of itself; lists have a value for each image."""
    places = range(len(data_set))
    return {
        "source": data_set.source,
        "skipped": {reason: int(count) for reason, count in data_set.skipped.items() if count},
        "first_skipped": dict(data_set.first_skipped),
        "missing": np.asarray(data_set.missing).astype(bool).tolist(),
        "sizes": np.asarray(data_set.sizes).tolist(),
        "image_ids": [data_set.image_id(i) for i in places],
        "given_ids": [data_set.given_id(i) for i in places],
        "file_names": [data_set.file_name(i) for i in places],
        "label_map": data_set.label_map.to_dict(),
    }


def subset(data_set: Any, positions: list[int]) -> Any:
    """Some of its images."""
    return data_set.subset(positions)


def with_given_ids(data_set: Any, results: list[dict]) -> list[dict]:
    """Results with the data's own ids."""
    return data_set.with_given_ids(results)


def fingerprint(data_set: Any) -> str:
    """What --resume recognises the training images by."""
    return held_out.fingerprint(data_set)


def other_labels() -> Any:
    """A label map that no data here has."""
    return LabelMap([1, 2], [5, 6], ["a thing", "another thing"])


def draw_shapes(folder: Path) -> Path:
    """The built-in data set, all of it."""
    return make_shapes(folder)


def decoded(path: Path) -> torch.Tensor:
    """An image file, uint8 [3, H, W]."""
    return read_image(path)


@contextmanager
def caching(folder: Path | None) -> Iterator[None]:
    """Indexes are kept in the folder, of files of any size and age; None: none is kept."""
    with ExitStack() as stack:
        value = "off" if folder is None else str(folder)
        stack.enter_context(patch.dict(os.environ, {"MASKRCNN_CACHE": value}))
        if folder is not None:
            stack.enter_context(patch.object(array_cache, "WORTHWHILE", 1))
            stack.enter_context(patch.object(found, "SETTLED", 0))
        yield


class Ended(NamedTuple):
    """How a command ended."""

    status: int
    out: str
    err: str


def run_tool(name: str, *words: Any) -> Ended:
    """`python -m tools.NAME WORDS` in this process, with an empty page: drawing it takes longest."""
    main = {"check_data": check_data, "coco_to_npy": coco_to_npy, "pack_dataset": pack_dataset}[name].main
    out, err = StringIO(), StringIO()
    with (
        redirect_stdout(out), redirect_stderr(err), patch.object(sys, "argv", [name, *map(str, words)]),
        patch.object(page, "doubles_section"), patch.object(page, "whole_page", return_value=""),
    ):  # fmt: skip
        try:
            status = run_command(main)
        except SystemExit as stop:
            status = stop.code
    return Ended(status, out.getvalue(), err.getvalue())


# --- values ---------------------------------------------------------------------------------------------------


class Work(NamedTuple):
    """data: the folder of real data, or None; room: an empty folder to work in."""

    data: Path | None
    room: Path

    def plain(self, value: Any) -> Any:
        """Plain values without what is of this machine, this moment or this Python."""
        if isinstance(value, dict):
            return {self.plain(str(key)): self.plain(part) for key, part in value.items()}
        if isinstance(value, list | tuple):
            return [self.plain(part) for part in value]
        if not isinstance(value, str):
            return value
        value = re.sub(r"\(\d+\.\d s\)", "(<TIME>)", self.placed(value))
        return re.sub(r"not valid json \(.*\);", "not valid json (<PARSER>);", value)

    def placed(self, text: str) -> str:
        """A text with the folders' names."""
        for folder, name in ((self.data, "<DATA>"), (self.room, "<TMP>")):
            text = text.replace(str(folder), name) if folder else text
        return text

    def digest(self, value: Any) -> str:
        """Of a value's canonical json."""
        text = self.placed(json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False))
        return hexadecimal(hashlib.sha256(text.encode(errors="surrogateescape")))

    def new(self, name: str) -> Path:
        """The path of a folder that is not there."""
        path = self.room / name
        shutil.rmtree(path, ignore_errors=True)
        return path


def hexadecimal(state: Any) -> str:
    """The first half of a hash."""
    return state.hexdigest()[:32]


def rounded(value: Any) -> Any:
    """Floats to ten digits: the last bits of sums are the machine's."""
    if isinstance(value, dict):
        return {key: rounded(part) for key, part in value.items()}
    if isinstance(value, list):
        return [rounded(part) for part in value]
    return float(f"{value:.10g}") if isinstance(value, float) else value


def put_tensor(state: Any, name: str, tensor: torch.Tensor) -> None:
    """Add type, shape and content to a hash."""
    state.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
    state.update(np.ascontiguousarray(tensor.numpy()).tobytes())


def put_target(state: Any, target: dict, dense: bool) -> None:
    """Add a target to a hash, with its keys in their order; dense: with masks in full size."""
    for key, value in target.items():
        if key == "masks":
            state.update(f"masks {len(value)} {value.size} {value.limit}\n".encode())
            put_tensor(state, "crops", value.boxes)
            put_tensor(state, "crop pixels", value.pixels)
            if dense:
                put_tensor(state, "dense", value.to_masks())
        elif isinstance(value, torch.Tensor):
            put_tensor(state, key, value)
        else:
            state.update(f"{key} {type(value).__name__} {value!r}\n".encode())


def said(call: Callable[[], Any]) -> str:
    """ "error: ..." of a call that raises, else "accepted"."""
    try:
        call()
    except InputError as error:
        return f"{type(error).__name__}: {error}"
    except Exception as error:  # a fault that the record would show
        return f"FAULT {type(error).__name__}: {error}"
    return "accepted"


# --- one data set ---------------------------------------------------------------------------------------------


def targets_digest(data_set: Any) -> str:
    """Of all targets, masks as crops."""
    state = hashlib.sha256()
    for i in range(len(data_set)):
        put_target(state, target_of(data_set, i), dense=False)
    return hexadecimal(state)


def samples_digest(data_set: Any) -> tuple[str, str]:
    """(of the targets with dense masks, of the images), of one sample in DENSE."""
    targets, images = hashlib.sha256(), hashlib.sha256()
    for i in range(0, len(data_set), DENSE):
        image, target = sample(data_set, i)
        put_target(targets, target, dense=True)
        put_tensor(images, "image", image)
    return hexadecimal(targets), hexadecimal(images)


def label_text(label_map: dict) -> str:
    """ "1 person, 2 bicycle (category 7), ..." of a label map as plain values."""
    rows = zip(label_map["labels"], label_map["category_ids"], label_map["names"], strict=True)
    told = [f"{label} {name}" + (f" (category {i})" if i != label else "") for label, i, name in rows]
    given = [f"{i} is given as {value!r}" for i, value in label_map.get("given", ())]
    return ", ".join(told + given)


def split_record(work: Work, data_set: Any) -> dict[str, Any]:
    """All that one split gives and tells."""
    told = work.plain(facts(data_set))
    counts, crowds = object_counts(data_set), crowd_counts(data_set)
    dense, images = samples_digest(data_set)
    found = truth(data_set)
    ids = {"image_id": told["image_ids"][0], "category_id": told["label_map"]["category_ids"][-1]}
    results = [{**ids, "score": 0.5}, {"image_id": -5, "category_id": 99_999, "bbox": [1, 2, 3, 4]}]
    few = subset(data_set, [len(data_set) - 1, 0])
    return {
        "describe": described(data_set), "source": told["source"], "images": len(data_set),
        "missing": sum(told["missing"]), "skipped": told["skipped"], "first_skipped": told["first_skipped"],
        "objects": int(counts.sum()), "crowds": int(crowds.sum()), "empty": int((counts == 0).sum()),
        "count type": f"{counts.dtype} {crowds.dtype}",
        "object counts": work.digest(counts.tolist()), "crowd counts": work.digest(crowds.tolist()),
        "sizes": work.digest(told["sizes"]), "image ids": work.digest(told["image_ids"]),
        "given ids": work.digest(told["given_ids"]), "file names": work.digest(told["file_names"]),
        "first": str([told[key][0] for key in ("image_ids", "given_ids", "sizes", "file_names")]),
        "label map": work.digest(told["label_map"]), "fingerprint": fingerprint(data_set),
        "results": str(with_given_ids(data_set, results)),
        "targets": targets_digest(data_set), "dense targets": dense,
        "truth": f"{len(found['images'])} images, {len(found['annotations'])} annotations, {work.digest(found)}",
        "subset": f"{opened_part(work, few)}: {described(few)}",
        PIXELS: images,
    }  # fmt: skip


def opened_part(work: Work, data_set: Any, whole: bool = True) -> str:
    """A part of an opening in brief; whole: with its ground truth."""
    told = facts(data_set)
    line = (
        f"{len(data_set)} images, {int(object_counts(data_set).sum())} objects, "
        f"{len(told['label_map']['labels'])} labels, ids {work.digest(told['image_ids'])[:16]}"
    )
    return line + (f", truth {work.digest(truth(data_set))[:16]}" if whole else "")


def opening(work: Work, path: Path, whole: bool = True, **options: Any) -> Any:
    """What comes of opening data: its parts in brief, or the message."""
    found: dict[str, Any] = {}

    def call() -> None:
        splits = open_splits(path, **options)
        for name, part in (("train", splits.train), ("val", splits.val)):
            if part is not None:
                found[name] = opened_part(work, part, whole)

    message = said(call)
    return found if message == "accepted" else message


def openings(work: Work, path: Path, large: bool) -> dict[str, Any]:
    """Data opened in other ways; large: those that read its training part are left out."""
    given: dict[str, dict] = {
        "val alone": {"split": "val", "drop_empty": True}, "strict": {"strict": True, "split": "val"},
        "other labels": {"label_map": other_labels(), "split": "val"},
        "image_dir": {"image_dir": "elsewhere"}, "year": {"year": "1999"},
        "label_json": {"label_json_path": "names.json"},
    }  # fmt: skip
    if not large:
        given["train alone"] = {"split": "train", "drop_empty": True}
        given["all flags"] = {"val_fraction": 0.4, "seed": 3, "drop_empty": True}
    given |= {f"as {layout}": {"dataset": layout, "split": "val"} for layout in layouts() if layout != "auto"}
    return {name: opening(work, path, whole=False, **options) for name, options in given.items()}


def cached_equals(work: Work, path: Path, **options: Any) -> dict[str, Any]:
    """Whether data opens the same with an index, both when that is written and when it is read."""
    folder = work.new("cache")
    with caching(None):
        plain = opening(work, path, **options)
    with caching(folder):
        found = [opening(work, path, **options) for _ in range(2)]
    return {"indexes": len(list(folder.glob("*"))), "same": all(one == plain for one in found)}


def checked(work: Work, path: Path, *flags: Any) -> dict[str, Any]:
    """tools.check_data: its lines, the first find of each kind, and its json as a hash."""
    out = work.new("checked")
    ended = run_tool("check_data", path, "--output-dir", out, "--samples", "0", *flags)
    found = json.loads((out / "check_data.json").read_text()) if (out / "check_data.json").exists() else {}
    found = work.plain(found)
    return {
        "status": ended.status, "error": ended.err, "lines": ended.out.splitlines(),
        "finds": [(f"{kind['severity']}: {kind['title']}: {kind['count']}", kind["finds"][0]["text"])
                  for kind in found.get("finds", ())],
        "verdict": found.get("error"), "counts": str(found.get("counts")), PIXELS: work.digest(rounded(found)),
    }  # fmt: skip


def checked_in_brief(work: Work, path: Path, *flags: Any) -> dict[str, Any]:
    """The same without the finds, which the lines have."""
    return {key: value for key, value in checked(work, path, *flags).items() if key != "finds"}


def data_set_record(work: Work, path: Path, large: bool = False, cached: bool = True) -> dict[str, Any]:
    """All of one data set; large: what takes long is left out; cached: it may have an index."""
    splits = open_splits(path)
    labels = facts(splits.val)["label_map"]
    return {
        "labels": label_text(labels), "shared labels": splits.label_map.to_dict() == labels,
        "train": split_record(work, splits.train), "val": split_record(work, splits.val),
        "openings": openings(work, path, large),
        **({"cached": cached_equals(work, path, split="val")} if cached else {}),
        "check_data": checked_in_brief(work, path, "--quick" if large else "--full"),
    }  # fmt: skip


def pack_content(work: Work, path: Path) -> dict[str, Any]:
    """A packed file's parts, but for the checksum of the paths that it holds."""
    content = path.read_bytes()
    place, size, _ = struct.unpack("<QQ32s", content[-48:])
    index = content[place : place + size]
    line, _, arrays = index.partition(b"\n")
    header = json.loads(line)
    return {
        "arrays": ", ".join(f"{name} {dtype} {shape}" for name, (dtype, _, shape) in header["arrays"].items()),
        "values": work.digest(header["values"]),
        PIXELS: [hexadecimal(hashlib.sha256(part)) for part in (content[:place], arrays)],
    }


def packed_record(work: Work, source: Path, large: bool = False) -> dict[str, Any]:
    """Of a data set that is packed first."""
    out = work.room / "packed"
    ended = run_tool("pack_dataset", source, out)
    return {
        "pack_dataset": [ended.status, ended.out.splitlines(), ended.err],
        "files": {path.name: pack_content(work, path) for path in sorted(out.iterdir())},
        **data_set_record(work, out, large, cached=False), "one file": opening(work, out / "train.pack"),
        "one file, val": opening(work, out / "val.pack", whole=False, split="val"),
    }  # fmt: skip


def encoded_record(work: Work, source: Path) -> dict[str, Any]:
    """Of a data set that is packed with its files as they are: what differs from `packed_record`."""
    out = work.room / "packed"
    ended = run_tool("pack_dataset", source, out, "--keep-encoded")
    splits = open_splits(out)
    return {
        "pack_dataset": [ended.status, ended.out.splitlines(), ended.err],
        "files": {path.name: pack_content(work, path) for path in sorted(out.iterdir())},
        "train": split_record(work, splits.train), "val": split_record(work, splits.val),
        "packed again": run_tool("pack_dataset", out, work.room / "again", "--keep-encoded").err,
    }  # fmt: skip


# --- the parts of the record ----------------------------------------------------------------------------------


def real(work: Work, name: str) -> Path:
    assert work.data is not None
    return work.data / name


def of_coco_mini(work: Work) -> dict[str, Any]:
    path = real(work, "coco_mini")
    jsons = path / "annotations"
    one, other = jsons / "instances_train2017.json", jsons / "instances_val2017.json"
    return {
        **data_set_record(work, path),
        "one json": opening(work, one), "one json, seed 5": opening(work, one, val_fraction=0.1, seed=5),
        "val's json": opening(work, other, split="val"), "folder of jsons": opening(work, jsons),
        "with the folder of images": opening(work, other, image_dir=str(path / "val2017")),
        "with another's folder": opening(work, other, image_dir=str(path / "train2017")),
    }  # fmt: skip


def of_voc_mini(work: Work) -> dict[str, Any]:
    path = real(work, "voc_mini")
    year = path / "VOCdevkit" / "VOC2012"
    return {
        **data_set_record(work, path),
        "year's folder": opening(work, year),
        "year 2012": opening(work, path, year="2012"),
        "devkit": opening(work, year.parent),
    }


def of_nuclei(work: Work) -> dict[str, Any]:
    return data_set_record(work, real(work, "nuclei"), large=True)


def of_nuclei_npy(work: Work) -> dict[str, Any]:
    out = work.room / "npy"
    ended = run_tool("coco_to_npy", real(work, "nuclei"), out, "--limit", "12", "--seed", "1")
    record = {"coco_to_npy": [ended.status, ended.out.splitlines(), ended.err], **data_set_record(work, out)}
    whole = work.room / "whole"  # without a split
    whole.mkdir()
    (out / "images_val").rename(whole / "images")
    (out / "annotations_val").rename(whole / "annotations")
    (whole / "names.json").write_text('{"1": "a cell"}')
    return {
        **record,
        "whole": opening(work, whole),
        "named": opening(work, whole, label_json_path=whole / "names.json"),
        "wrongly named": opening(work, whole, label_json_path=whole / "absent.json"),
    }


def of_coco_npy(work: Work) -> dict[str, Any]:
    out, flags = work.room / "npy", ("--limit", "5", "--balanced", "--classes", "dog", "person")
    ended = run_tool("coco_to_npy", real(work, "coco_mini"), out, *flags)
    return {"coco_to_npy": [ended.status, ended.out.splitlines(), ended.err], **data_set_record(work, out)}


def of_odd_images(work: Work) -> dict[str, Any]:
    folder = real(work, "odd_images")
    read = []
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.suffix not in (".txt", ".md"):
            state = hashlib.sha256()
            message = said(lambda path=path, state=state: put_tensor(state, "image", decoded(path)))
            read.append(f"{path.name}: {state.hexdigest()[:16] if message == 'accepted' else message}")
    return {"opening": opening(work, folder), PIXELS: {"read": read, "check_data": checked_in_brief(work, folder)}}


def of_shapes(work: Work) -> dict[str, Any]:
    path = draw_shapes(work.room / "shapes")
    built_in = open_splits(None, shapes_dir=path)
    return {
        **data_set_record(work, path, large=True),
        "dropped": opening(work, path, drop_empty=True, whole=False),
        "without a path": opened_part(work, built_in.train),
    }


def of_fix(work: Work) -> dict[str, Any]:
    """--fix of drawn data with several faults, then of what it wrote."""
    data = catalogue.Data(work.room / "data")
    for number, fields in enumerate([
        {"bbox": [4, 4, 0, 9]}, {"bbox": [48, 4, 9, 9]}, {"segmentation": [[4, 4, 24, 4]]}, {"segmentation": []},
        {"segmentation": [[1, 2, 3], [4, 4, 24, 4, 24, 28]]}, {"image_id": 99}, {"area": None}, {"iscrowd": None},
        {"area": 7}, {"bbox": [-5, -5, 20, 20], "segmentation": [[-5, -5, 15, -5, 15, 15, -5, 15]]},
        {"iscrowd": "0"}, {"category_id": 3}, {"bbox": [4, 4, 20, 24], "category_id": "2"}, {"bbox": [1, 2, 3]},
        {"segmentation": {"size": [64, 48], "counts": [10, 5, 3]}},
    ], 20):  # fmt: skip
        x = number - 17  # each has a mask of its own
        own = {"bbox": [x, 30, 6, 8], "segmentation": [[x, 30, x + 6, 30, x + 6, 38, x, 38]], "area": 48}
        data.add(number, **{**own, **fields})
    data.add(20, bbox=[30, 50, 5, 6], area=30, segmentation=[[30, 50, 35, 50, 35, 56, 30, 56]])  # an id stands twice
    data.add(60)  # the same as another
    data.images[0]["height"] = 50
    data.write()
    record: dict[str, Any] = {}
    for turn, folder in (("first", data.folder), ("second", work.room / "fixed 1")):
        out = work.room / f"fixed {1 if turn == 'first' else 2}"
        flags = () if turn == "first" else ("--image-dir", data.image_dir)
        found = checked_in_brief(work, folder, *flags, "--fix", out)
        told = found.pop("lines")
        start = next(i for i, line in enumerate(told) if line.startswith("written: "))
        record[turn] = {**found, "fixed": told[start + 1 :]}
        if not out.exists():
            continue
        record[f"{turn}: changes"] = (out / "changes.txt").read_text().splitlines()
        for path in sorted(out.glob("*.json")):
            record[f"{turn}: {path.name}"] = work.digest(json.loads(path.read_text()))
    return record


def of_messages(work: Work) -> dict[str, Any]:
    """What is said of data that can't be opened, or only in part; and of flags that a layout has no use for."""
    room = work.room
    empty, text, val_only = room / "empty", room / "text", room / "val_only"
    empty.mkdir()
    text.mkdir()
    (text / "notes.txt").write_text("nothing")
    write(val_only, many(3), "instances_val.json")
    two = room / "two"
    write(two, many(3), "instances_train.json")
    write(two, coco(categories=[{"id": 1, "name": "other"}]), "instances_val.json")
    one = room / "one"
    write(one, many(6))
    partly = room / "partly"
    write(partly, coco(
        [{"id": i, "file_name": f"{i}.png", "height": 20, "width": 30} for i in range(1, 5)],
        [a_square(1, 1), a_square(2, 3, category_id=2), a_square(3, 1, iscrowd=1)],
        [{"id": i, "name": name} for i, name in ((1, "thing"), (2, "other"), (7, "never"))],
    ))  # fmt: skip
    gone = room / "gone"
    write(gone, many(6))
    for path in sorted((gone / "images").iterdir())[:2]:
        path.unlink()
    none = room / "none"
    write(none, many(2))
    shutil.rmtree(none / "images")
    leaving = room / "leaving"
    write(leaving, coco([{"id": 1, "file_name": "../../a.png", "height": 20, "width": 30}]), image_dir="images/x/y")
    linked = room / "linked"
    write(linked, many(3))
    image = sorted((linked / "images").iterdir())[0]
    image.rename(room / "outside.png")
    image.symlink_to(room / "outside.png")
    npy = many_npy(room / "npy", 5)
    unnamed = many_npy(room / "unnamed", 4, classes=3)
    (unnamed / "classes.txt").write_text("a\nb\n")
    alone = many_npy(room / "alone", 3, suffix="_train")
    broken = room / "broken"
    broken.mkdir()
    (broken / "train.pack").write_bytes(b"no such thing")
    cases: dict[str, tuple[Path, dict]] = {
        "no such folder": (room / "nowhere", {}), "empty folder": (empty, {}), "no data set": (text, {}),
        "a text file": (text / "notes.txt", {}), "layout that is unknown": (one, {"dataset": "other"}),
        "val alone": (val_only, {}), "val alone, asked for": (val_only, {"split": "val"}),
        "contradicting classes": (two, {}), "one json": (one, {}), "all for training": (one, {"val_fraction": 0}),
        "all for training, train asked for": (one, {"val_fraction": 0, "split": "train"}),
        "all for validation": (one, {"val_fraction": 1}), "twice all": (one, {"val_fraction": 2}),
        "seed 1": (one, {"seed": 1}), "half": (one, {"val_fraction": 0.5}),
        "other labels": (one, {"label_map": other_labels()}),
        "partly empty": (partly, {}), "partly empty, dropped": (partly, {"drop_empty": True}),
        "missing images": (gone, {}), "no image": (none, {}), "names that leave": (leaving, {}),
        "a link": (linked, {}), "a link, followed": (linked, {"follow_links": True}),
        "npy": (npy, {}), "npy, as a file": (npy / "annotations" / "1.npy", {"dataset": "npy"}),
        "npy, label without a name": (unnamed, {}), "npy, train alone": (alone, {}),
        "packed, damaged": (broken, {}), "packed, no val": (broken, {"split": "val"}),
    }  # fmt: skip
    return {
        "flags": {layout: {flag: flag_message(layout, flag) for flag in FLAGS} for layout in layouts()},
        "openings": {name: opening(work, path, **options) for name, (path, options) in cases.items()},
        "cached": {name: cached_equals(work, path) for name, path in (("one", one), ("npy", npy), ("gone", gone))},
        "check_data": {name: [f"{count}: {text}" for count, text in checked(work, path)["finds"]]
                       for name, (path, options) in cases.items() if not options},
    }  # fmt: skip


def of_cases(cases: list, work: Work) -> dict[str, Any]:
    """Each case of the catalogue: opened, read and checked."""
    record: dict[str, Any] = {}
    usual: dict[type, list] = {}  # what the doctor says of the data before it is spoilt
    for case in cases:
        if case.data not in usual:
            plain = case.data(work.new("case"))
            plain.write()
            usual[case.data] = checked(work, plain.folder)["finds"]
        data = case.data(work.new("case"))
        case.make(data)
        data.write()
        record[case.name] = case_record(work, data.folder, usual[case.data])
    return record


def case_record(work: Work, folder: Path, usual: list) -> dict[str, Any]:
    """One case; what goes without saying is left out."""
    opened: list = []
    message = work.plain(said(lambda: opened.append(open_splits(folder))))
    found = opened_case(work, folder, opened[0]) if opened else {"opening": message}
    told = checked(work, folder, "--min-size", 64, "--max-size", 96)
    verdict, titles = told["verdict"], [title.rsplit(": ", 1)[0] for title, _ in usual]
    if verdict is not None and f"InputError: {verdict}" != message:
        found["verdict"] = verdict
    lines = found["check_data"] = [f"status {told['status']}{told['error']}"]
    for title, text in told["finds"]:
        if (title, text) not in usual:
            known = text == verdict or title.rsplit(": ", 1)[0] in titles
            lines.append(title if known else f"{title}: {text}")
    if not cached_equals(work, folder)["same"]:
        found["cached"] = "differs"
    return found


def opened_case(work: Work, folder: Path, splits: Any) -> dict[str, Any]:
    """What a case gives when it is opened: of val, which train is as."""
    data_set, unreadable, images = splits.val, [], hashlib.sha256()
    told = facts(data_set)
    for i in range(len(data_set)):
        message = said(lambda i=i: put_tensor(images, "image", sample(data_set, i)[0]))
        if message != "accepted":
            unreadable.append(f"{told['given_ids'][i]}: {message}")
    counts = [object_counts(data_set).tolist(), crowd_counts(data_set).tolist()]
    digests = [targets_digest(data_set), work.digest([told, counts]), work.digest(truth(data_set))]
    found = {"opening": described(data_set), "targets, facts, truth": " ".join(digest[:12] for digest in digests)}
    strict = said(lambda: open_splits(folder, strict=True))
    if strict != "accepted":
        found["strict"] = strict
    if targets_digest(splits.train) != digests[0]:
        found["train"] = described(splits.train)
    return {**found, PIXELS: "; ".join([hexadecimal(images)[:12], *unreadable])}


class Part(NamedTuple):
    """compute: what makes it; real: whether it needs the real data."""

    compute: Callable[[Work], dict[str, Any]]
    real: bool = True


PARTS = {
    "coco_mini": Part(of_coco_mini),
    "voc_mini": Part(of_voc_mini),
    "nuclei": Part(of_nuclei),
    "nuclei_npy": Part(of_nuclei_npy),
    "coco_npy": Part(of_coco_npy),
    "coco_packed": Part(lambda work: packed_record(work, real(work, "coco_mini"))),
    "coco_packed_encoded": Part(lambda work: encoded_record(work, real(work, "coco_mini"))),
    "nuclei_packed": Part(lambda work: packed_record(work, real(work, "nuclei"), large=True)),
    "nuclei_packed_encoded": Part(lambda work: encoded_record(work, real(work, "nuclei"))),
    "voc_packed": Part(lambda work: packed_record(work, real(work, "voc_mini"))),
    "odd_images": Part(of_odd_images),
    "shapes": Part(of_shapes, real=False),
    "fix": Part(of_fix, real=False),
    "messages": Part(of_messages, real=False),
    "cases_images": Part(lambda work: of_cases(odd_images.CASES, work), real=False),
    "cases_annotations": Part(lambda work: of_cases(odd_annotations.CASES, work), real=False),
    "cases_data": Part(lambda work: of_cases(odd_data.CASES, work), real=False),
}


# --- record and comparison ------------------------------------------------------------------------------------


def compute(name: str, data: Path | None, room: Path) -> dict[str, Any]:
    """One part, as it comes out of a json. room: an empty folder."""
    work = Work(data, room.resolve())
    with caching(None):
        return json.loads(json.dumps(work.plain(PARTS[name].compute(work))))


def made_with() -> dict[str, str]:
    """What "pixels" depend on."""
    return {"Pillow": PIL.__version__}


def read_record() -> dict[str, Any]:
    return json.loads(RECORD.read_text(encoding="utf-8"))


def leaves(value: Any, pixels: bool, path: str = "") -> dict[str, Any]:
    """{"train / describe": value} of nested dicts; pixels: with what depends on Pillow."""
    if not isinstance(value, dict) or not value:
        return {path: value}
    found = {}
    for key, part in value.items():
        if key != PIXELS or pixels:
            found |= leaves(part, pixels, f"{path} / {key}" if path else key)
    return found


def differences(name: str, record: dict[str, Any], found: dict[str, Any]) -> list[str]:
    """A line for each value of a part that is other than in the record."""
    pixels = record["made with"] == made_with()
    before, now = leaves(record["parts"].get(name, {}), pixels), leaves(found, pixels)
    absent = "(absent)"
    return [
        f"{name} / {key}:\n  record: {before.get(key, absent)!r}\n  now:    {now.get(key, absent)!r}"
        for key in {**before, **now} if before.get(key, absent) != now.get(key, absent)
    ]  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)} (default: all)")
    parser.add_argument("--write", action="store_true", help=f"write {RECORD.name}, in place of comparing with it")
    args = parser.parse_args()
    unknown = set(args.names) - set(PARTS)
    if unknown:
        parser.error(f"no part {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}")
    from tests.conftest import find_shared_data

    data, names = find_shared_data(), args.names or list(PARTS)
    if data is None:
        left = [name for name in names if PARTS[name].real]
        if left and args.write:
            parser.error(f"{', '.join(left)}: no real data: set MASKRCNN_DATA, or put it into ../shared/data")
        print(f"no real data, so not compared: {', '.join(left)}")
        names = [name for name in names if name not in left]
    found = {}
    for name in names:
        start = time.process_time()
        with tempfile.TemporaryDirectory(prefix="golden-") as room:
            found[name] = compute(name, data, Path(room))
        print(f"{name}: {time.process_time() - start:.1f} s", file=sys.stderr, flush=True)
    if args.write:
        parts = {**(read_record()["parts"] if args.names and RECORD.exists() else {}), **found}
        whole = {"made with": made_with(), "parts": {name: parts[name] for name in PARTS if name in parts}}
        RECORD.write_text(json.dumps(whole, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        return 0
    record = read_record()
    if record["made with"] != made_with():
        print(f"made with {record['made with']}, here is {made_with()}: {PIXELS} are not compared")
    told = [line for name in names for line in differences(name, record, found[name])]
    print("\n".join(told) if told else "nothing differs")
    return int(bool(told))


if __name__ == "__main__":
    sys.exit(main())
