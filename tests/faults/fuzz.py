"""Data files changed at random, through the readers that the commands use: an InputError, or they are read.

Bases are COCO jsons (of the real data where it is there, and of the tests' makers), VOC's XML, lists and class
files, and .npy files. A document is a base with one to four changes: a value replaced by an odd one, a key dropped,
an element repeated, a type swapped; or bytes flipped, dropped, inserted, cut off. Document i depends on SEED and i
alone. They are read in worker processes that may take BYTES more address space than they began with, and for each
document SECONDS of CPU time and WAIT seconds in all; a stray exception, a signal or a limit is a failure, and the
document is kept.
"""

import copy
import json
import mmap
import os
import pickle
import random
import resource
import shutil
import signal
import struct
import sys
import tempfile
import traceback
from pathlib import Path

import numpy as np
import torch

from backbone.errors import InputError
from my_dataset_coco import CocoDataset
from my_dataset_voc import VocDataset
from tests import coco_folders
from tests.faults import Outcome
from tests.faults.hostile_data import XML, voc
from train_utils.data.dataset import ImageDataset
from train_utils.data.formats import npy
from train_utils.data.labels import LabelMap
from train_utils.data.options import DataOptions
from train_utils.data.problems import STOP
from train_utils.evaluation.numbers import evaluate_results

WHAT = "data files changed at random: read, or refused in one line"
SEED, WORKERS = 20, 2
BYTES, SECONDS, WAIT = 2**30, 20, 300
READABLE = 178_956_970  # pixels of the largest image that Pillow opens
DATA = Path(os.environ.get("MASKRCNN_DATA", Path(__file__).resolve().parents[3] / "shared" / "data"))
ODD = (
    None, float("nan"), float("inf"), -float("inf"), 1e999, 1e308, -1, 0, 1, 2**31, 2**53, 2**63, 2**64, -(2**63),
    10**400, 0.5, 1e-320, "", "a", "0", "-1", "\x1b[2J", "\ud800", "x" * 5000, "../../x", "NaN", [], {}, [[]],
    [None], {"a": 1},
    True, False, [1, 2], [0, 0, 0, 0, 0, 0], [[0, 0, 9, 0, 9, 9]], {"size": [4, 4], "counts": "04"}, [1e300] * 6,
    {"size": [4, 4], "counts": [16]}, {"counts": "0"}, 1000000, 4096, 65536, list(range(300)), [[1] * 6] * 300,
)  # fmt: skip
KINDS = ("coco",) * 6 + ("xml",) * 2 + ("class", "list") + ("npy",) * 3


class Bases:
    """What documents are made from."""

    def __init__(self):
        self.coco = [
            coco_folders.coco(),
            coco_folders.many(4),
            coco_folders.coco(
                annotations=[
                    coco_folders.annotation(segmentation={"size": [20, 30], "counts": [100, 50, 450]}, iscrowd=1),
                    coco_folders.annotation(
                        2, segmentation=[[2.5, 3, 10, 3, 10, 12.25], [1, 1, 5, 1, 5, 5]], area=None
                    ),
                ]
            ),
        ]
        for path in sorted(DATA.glob("coco_mini/annotations/*.json")) + sorted(DATA.glob("nuclei/*.json")):
            self.coco += parts_of(json.loads(path.read_text()))
        xmls = [path.read_text() for path in sorted(DATA.glob("voc_mini/**/Annotations/*.xml"))]
        self.xml = [XML.format(name="aeroplane", side=64), *xmls]
        sample = {
            "boxes": np.array([[0, 0, 4, 5], [1, 1, 3, 9]], np.float32),
            "labels": np.array([1, 2]),
            "names": ["a", b"b"],
            "masks": np.ones((2, 6, 5), bool),
            "score": np.float64(0.5),
            "none": np.zeros((0, 4)),
        }
        self.sample = sample


def parts_of(content: dict) -> list[dict]:
    """Small jsons of a large one: two images each, one with a crowd region among them where there is one."""
    crowds = {a["image_id"] for a in content["annotations"] if a.get("iscrowd")}
    images = sorted(content["images"], key=lambda image: image["id"] not in crowds)[:12]
    found = []
    for i in range(0, len(images), 2):
        pair = images[i : i + 2]
        ids = {image["id"] for image in pair}
        annotations = [a for a in content["annotations"] if a["image_id"] in ids][:12]
        used = {a["category_id"] for a in annotations}
        found.append(
            {
                "images": pair,
                "annotations": annotations,
                "categories": [c for c in content["categories"] if c["id"] in used] or content["categories"][:1],
            }
        )
    return found


def document(bases: Bases, index: int) -> tuple[str, bytes]:
    """(kind, content) of document `index`."""
    rng = random.Random(f"{SEED} {index}")
    kind = rng.choice(KINDS)
    by_bytes = rng.random() < 0.3
    if kind == "coco":
        content = copy.deepcopy(rng.choice(bases.coco))
        if not by_bytes:
            content = changed(content, rng)
        data = json.dumps(content).encode()
    elif kind == "xml":
        data = rng.choice(bases.xml).encode()
        data = data if by_bytes else changed_xml(data, rng)
    elif kind == "class":
        content = {"aeroplane": 1, "bicycle": 2}
        data = json.dumps(content if by_bytes else changed(content, rng)).encode()
    elif kind == "list":
        data, by_bytes = b"a\nb\n", True
    else:
        content = bases.sample if by_bytes or rng.random() < 0.2 else changed(bases.sample, rng)
        data = npy_of(content, rng)
        by_bytes = by_bytes or rng.random() < 0.5
    return kind, flipped(data, rng) if by_bytes else data


def changed(content, rng):
    for _ in range(rng.randint(1, 4)):
        content = change_once(content, rng)
    return content


def change_once(content, rng):
    """A value somewhere in `content`, chosen by going down at random, changed."""
    if isinstance(content, dict | list) and content and rng.random() < 0.85:
        content = copy.copy(content)
        key = rng.choice(list(content)) if isinstance(content, dict) else rng.randrange(len(content))
        action = rng.random()
        if action < 0.1:
            del content[key]
        elif action < 0.2 and isinstance(content, list):
            content += [content[key]] * rng.choice([1, 2, 50])
        elif action < 0.2:
            content[f"{key}x"] = content[key]
        else:
            content[key] = change_once(content[key], rng)
        return content
    swap = rng.randrange(8)
    if swap == 0:
        return str(content)
    if swap == 1:
        return [content]
    if swap == 2:
        return {"a": content}
    if swap == 3 and isinstance(content, int | float) and content == content and abs(content) < 1e300:
        return rng.choice([-content, content * 1000, content / 3, float(content), int(content), content + 2**40])
    return copy.deepcopy(rng.choice(ODD))


def changed_xml(data: bytes, rng) -> bytes:
    """An element dropped, repeated or emptied, or a text replaced by an odd one."""
    for _ in range(rng.randint(1, 4)):
        tag = rng.choice([b"object", b"bndbox", b"xmin", b"ymax", b"name", b"size", b"width", b"difficult", b"part"])
        start = data.find(b"<" + tag + b">", rng.randrange(len(data)) if rng.random() < 0.5 else 0)
        stop = data.find(b"</" + tag + b">", start)
        if start < 0 or stop < 0:
            continue
        inner, end = start + len(tag) + 2, stop + len(tag) + 3
        odd = str(rng.choice(ODD)).encode(errors="replace").replace(b"\x1b", b"&#27;")
        put = rng.choice(
            [
                b"",
                data[start:end] * 2,
                data[start:inner] + odd + data[stop:end],
                data[start:inner] + data[stop:end],
                b"<" + tag + b"/>",
            ]
        )
        data = data[:start] + put + data[end:]
    return data


def npy_of(content, rng) -> bytes:
    array = np.empty((), dtype=object)
    array[()] = content
    header = "{'descr': '|O', 'fortran_order': False, 'shape': ()}"
    body = pickle.dumps(array, rng.choice([2, 3, 4, 5]))
    if rng.random() < 0.2:  # an array of numbers
        header, body = "{'descr': '<f4', 'fortran_order': False, 'shape': (2, 4), }", bytes(32)
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header.encode() + body


def flipped(data: bytes, rng) -> bytes:
    data = bytearray(data)
    for _ in range(rng.choice([1, 1, 2, 5])):
        at, action = rng.randrange(len(data) + 1), rng.randrange(6)
        if action == 0:
            del data[at:]
        elif action == 1:
            del data[at : at + rng.choice([1, 2, 20])]
        elif action == 2:
            data[at:at] = rng.choice([b"\xff", b"\0", b"9" * 30, b"[", b"}", b",", b"-", b"e999", rng.randbytes(3)])
        elif action == 3:
            other = rng.randrange(len(data) + 1)
            data[at:at] = data[other : other + 20]
        elif at < len(data):
            data[at] = data[at] ^ (1 << rng.randrange(8)) if action == 4 else rng.randrange(256)
    return bytes(data)


def read(kind: str, data: bytes, folder: Path, index: int) -> None:
    """Read a document as the commands do; raises what they would show."""
    if kind == "npy":
        (folder / "annotations" / "a.npy").write_bytes(data)
        read_data_set(ImageDataset(npy.read((folder, folder / "images", folder / "annotations"), DataOptions(), STOP)))
    elif kind == "coco":
        (folder / "a.json").write_bytes(data)
        read_coco(folder / "a.json", index)
    else:
        names = {
            "xml": "Annotations/a.xml",
            "class": "pascal_voc_indices.json",
            "list": "ImageSets/Segmentation/train.txt",
        }
        root = folder / "voc" / "data" / "VOC2012"
        path = root / names[kind]
        before = path.read_bytes() if path.exists() else None
        path.write_bytes(data)
        try:
            data_set = VocDataset(root)
            data_set.describe()
            data_set.target(0)
            data_set.ground_truth()
        finally:
            path.unlink() if before is None else path.write_bytes(before)


def read_coco(path: Path, index: int) -> None:
    truth = read_data_set(CocoDataset(path, path.parent))
    if index % 10 == 0 and all(image["height"] * image["width"] <= READABLE for image in truth["images"]):
        evaluate_results(truth, [])


def read_data_set(data_set) -> dict:
    """All but the images; returns the ground truth."""
    data_set.describe()
    LabelMap.from_dict(data_set.label_map.to_dict())
    for i in range(min(3, len(data_set))):
        height, width = data_set.sizes[i].tolist()
        if height * width <= READABLE:  # else the image is refused before its target is asked for
            target = data_set.target(i)
            if height * width < 2**20 and len(target["labels"]) < 20:
                target["masks"].to_masks()
    return data_set.ground_truth()


def run(full: bool, folder: Path) -> Outcome:
    count = 100_000 if full else 2_000
    voc()(folder / "voc", None)
    bases, failures = Bases(), []
    shared = mmap.mmap(-1, WORKERS * 16)  # each worker's document, and how many were refused
    workers = {}
    for number in range(WORKERS):
        pid = start(number, number, count, folder, bases, shared)
        workers[pid] = number
    while workers:
        pid, state = os.wait()
        number = workers.pop(pid)
        index, _ = struct.unpack_from("<qq", shared, number * 16)
        if os.WIFEXITED(state) and os.WEXITSTATUS(state) == 0:
            continue
        how = (
            f"signal {os.WTERMSIG(state)}"
            if os.WIFSIGNALED(state)
            else ((folder / f"trace{number}").read_text().strip().splitlines() or ["?"])[-1][:300]
        )
        kind, data = document(bases, index)
        kept = Path(tempfile.gettempdir()) / f"fuzz-{SEED}-{index}.{kind}"
        kept.write_bytes(data)
        failures.append(f"{kind} document {index}: {how}; kept as {kept}")
        if len(failures) < 200:
            workers[start(number, index + WORKERS, count, folder, bases, shared)] = number
    refused = sum(struct.unpack_from("<qq", shared, number * 16)[1] for number in range(WORKERS))
    note = f"seed {SEED}, {refused} refused, {count - refused - len(failures)} read"
    return Outcome(count - len(failures), count, failures, note)


def start(number: int, first: int, count: int, folder: Path, bases: Bases, shared) -> int:
    """A worker for the documents first, first + WORKERS, ...; returns its process id."""
    sys.stdout.flush()
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        status = work(number, first, count, folder, bases, shared)
    except BaseException:
        (folder / f"trace{number}").write_text(traceback.format_exc())
    finally:
        os._exit(status)


def work(number: int, first: int, count: int, folder: Path, bases: Bases, shared) -> int:
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + BYTES, size + BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    os.environ["MASKRCNN_CACHE"] = "off"
    torch.set_num_threads(1)  # OpenMP's threads did not come along with the fork: waiting for them never ends
    place = folder / f"worker{number}"
    if not place.exists():
        place.mkdir()
        shutil.copytree(folder / "voc", place / "voc")
        coco_folders.write_image(place / "images" / "a.png", (6, 5))
        (place / "annotations").mkdir()
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # a library's own lines
    for end in (signal.SIGPROF, signal.SIGALRM):
        signal.signal(end, signal.SIG_DFL)
    _, refused = struct.unpack_from("<qq", shared, number * 16)
    for index in range(first, count, WORKERS):
        struct.pack_into("<qq", shared, number * 16, index, refused)
        kind, data = document(bases, index)
        signal.setitimer(signal.ITIMER_PROF, SECONDS)
        signal.alarm(WAIT)
        try:
            read(kind, data, place, index)
        except InputError as error:
            refused += 1
            if "\n" in str(error) or len(str(error)) > 20_000:
                raise RuntimeError(f"a message of {len(str(error))} letters: {str(error)[:200]!r}") from error
    signal.setitimer(signal.ITIMER_PROF, 0)
    signal.alarm(0)
    struct.pack_into("<qq", shared, number * 16, count, refused)
    return 0
