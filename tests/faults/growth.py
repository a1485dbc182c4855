"""How work grows with input: at 4 times the size it may be 4 times as much, and a little more, but not 16 times.

Work is counted where it can be: calls, of Python's functions and C's, by `sys.setprofile`; keys that count their
comparisons make loops within C visible. The long version measures CPU time as well, which shows what calls do not:
arrays that grow. `Growth.counted` says whether calls are enough.
"""

import io
import json
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import torch

from backbone.errors import InputError
from network_files.operators.cropped_masks import CroppedMasks
from tests.coco_folders import annotation, many
from tests.faults import Outcome
from tests.tiny_model import write_coco
from train_utils.checkpoints.checkpoint import load_file, save_checkpoint
from train_utils.checkpoints.data_state import compare
from train_utils.data.formats.coco.reading import read_annotations
from train_utils.data.labels import read_json
from train_utils.data.opening import open_data
from train_utils.data.problems import Collect
from train_utils.evaluation.detections_file import read_detections
from train_utils.io.json_stream import Unusual, object_of, read_lists
from train_utils.show.drawing import draw_detections

WHAT = "work at 4 times the size: about 4 times as much, by counts of calls and, in the long version, by CPU time"
TIMES = 4
MOST_CALLS, MOST_TIME = 5.0, 12.0  # a square would be 16; sorting takes a little more than 4, and time is rough


class Growth(NamedTuple):
    """make(n, folder): returns an action on input of size n; counted: whether calls show all that it does."""

    make: Callable[[int, Path], Callable[[], Any]]
    n: int
    counted: bool = True


class Key(str):
    """A text whose comparisons are calls."""

    def __eq__(self, other: object) -> bool:
        return str.__eq__(self, other)

    def __hash__(self) -> int:
        return str.__hash__(self)


def repeated_key(n: int, folder: Path) -> Callable[[], Any]:
    pairs = [(Key(f"k{i}"), 0) for i in range(n)] + [(Key(f"k{n - 1}"), 1)]
    return lambda: object_of(pairs)


def many_keys(n: int, folder: Path) -> Callable[[], Any]:
    text = json.dumps({**{f"k{i}": 0 for i in range(n)}, "images": []}).encode()
    return lambda: read_lists(io.BytesIO(text), {"images": len}, len)


def document(n: int, folder: Path, **fields: Any) -> Path:
    content = many(n, **fields)
    content["annotations"] += [annotation(n + i, i) for i in range(1, n + 1)]
    path = folder / f"{n}.json"
    path.write_text(json.dumps(content))
    return path


def sound_json(n: int, folder: Path) -> Callable[[], Any]:
    path = document(n, folder)
    return lambda: read_annotations(path)


def wrong_json(n: int, folder: Path) -> Callable[[], Any]:
    """A mistake in each annotation, all collected."""
    path = document(n, folder, bbox=[1, 2, "x", 4])
    return lambda: read_annotations(path, problems=Collect(id))


def repeated_in_json(n: int, folder: Path) -> Callable[[], Any]:
    path = folder / f"{n}.json"
    path.write_text('{"images": [], "info": {' + ", ".join(f'"k{i}": 0' for i in range(n)) + ', "k0": 1}}')
    return lambda: read_json(path)


def results(n: int, folder: Path) -> Callable[[], Any]:
    data = open_data(write_coco(folder)).val
    entries = [{"image_id": 10, "category_id": 1, "bbox": [1, 2, 3, 4], "score": 0.5}] * n
    path = folder / f"{n}.json"
    path.write_text(json.dumps(entries))
    return lambda: read_detections(path, data, {1, 2, 4})


def weights(n: int, folder: Path) -> Callable[[], Any]:
    path = folder / f"{n}.pth"
    save_checkpoint(path, {f"layer{i}": torch.zeros(1) for i in range(n)})
    return lambda: load_file(path)


def other_data(n: int, folder: Path) -> Callable[[], Any]:
    """Images in another order."""
    data = open_data(write_coco(folder)).val
    data.rows = data.rows[torch.arange(n) % len(data.rows)]
    columns = {name: torch.arange(n, dtype=torch.int32) for name in ("names", "sizes", "labels", "boxes", "masks")}
    other = {name: column.flip(0) for name, column in columns.items()}
    return lambda: compare({"form": "a", **columns}, {"form": "a", **other}, data)


def captions(n: int, folder: Path) -> Callable[[], Any]:
    x, y = torch.arange(n) * 7 % 500, torch.arange(n) * 13 % 500
    boxes = torch.stack([x, y, x + 8, y + 8], 1)
    masks = CroppedMasks(torch.ones(n * 64, dtype=torch.uint8), boxes, (512, 512))
    image, labels = torch.zeros(3, 512, 512, dtype=torch.uint8), torch.ones(n, dtype=torch.int64)
    return lambda: draw_detections(image, boxes.float(), labels, None, masks, lambda _: "a")


CASES = {
    "a json object with a repeated key": Growth(repeated_key, 500),
    "a json file with a repeated key": Growth(repeated_in_json, 20000, counted=False),
    "a json object of many keys": Growth(many_keys, 5000, counted=False),
    "a sound json": Growth(sound_json, 100),
    "a json with many mistakes": Growth(wrong_json, 100),
    "detections": Growth(results, 200),
    "tensors in a file of weights": Growth(weights, 50),
    "other data on resume": Growth(other_data, 500),
    "objects drawn with captions": Growth(captions, 1200, counted=False),
}


def run(full: bool, folder: Path) -> Outcome:
    failures, figures, total = [], [], 0
    for number, (name, case) in enumerate(CASES.items()):
        if not (full or case.counted):
            continue
        total += 1
        actions = []
        for size in (case.n, TIMES * case.n):
            place = folder / f"{number} {size}"
            place.mkdir()
            actions.append(case.make(size, place))
        told = []
        if case.counted:
            small, large = map(calls, actions)
            told.append(f"{large / small:.1f} x the calls")
            if large > MOST_CALLS * small:
                failures.append(f"{name}: {small} calls at {case.n}, {large} at {TIMES * case.n}")
        if full:
            small, large = map(seconds, actions)
            told.append(f"{large / small:.1f} x the time")
            if large > MOST_TIME * small:
                failures.append(f"{name}: {small:.3f} s of CPU at {case.n}, {large:.3f} s at {TIMES * case.n}")
        figures.append(f"{name} {', '.join(told)}")
    return Outcome(total - len({line.partition(":")[0] for line in failures}), total, failures, "; ".join(figures))


def calls(action: Callable[[], Any]) -> int:
    """How many functions an action calls."""
    count = 0

    def note(frame: Any, event: str, arg: Any) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    finish(action)  # what is imported or kept by the first call
    sys.setprofile(note)
    try:
        finish(action)
    finally:
        sys.setprofile(None)
    return count


def seconds(action: Callable[[], Any]) -> float:
    """The least CPU time of three calls."""
    times = []
    for _ in range(3):
        start = time.process_time()
        finish(action)
        times.append(time.process_time() - start)
    return min(times)


def finish(action: Callable[[], Any]) -> None:
    """Calls an action whose input may be wrong."""
    with suppress(InputError, Unusual):
        action()
