"""Odd and wrong input, each through train.py, validation.py and predict.py.

A case writes a small data set with one oddity. ERROR: exit status 2, one line that names it, and no file that looks
like a result. SKIP: left out, counted and named; under --strict an ERROR. GO_ON: used as it should be, which the
case's own check sees in targets, pixels or results. The commands run in this process, with the cache of annotations
on for jsons of any size, so that the second command reads what the first has stored.
"""

import functools
import io
import json
import os
import re
import tempfile
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import NamedTuple
from unittest.mock import patch

import predict
import train
import validation
from tests import small_runs
from tests.faults import Outcome
from tests.tiny_model import NAMES, train_flags, write_checkpoint, write_coco
from train_utils.data.opening import open_data
from train_utils.io import array_cache as annotation_cache
from train_utils.io.plain_text import counted

WHAT = "odd and wrong images, annotations and jsons: an error, a counted skip, or the right result"
ERROR, SKIP, GO_ON = "error", "skip", "go on"
WIDTH = 8  # channels of the backbone's stem: the files of weights stay below a megabyte
TRAIN = train_flags(backbone_width=WIDTH, epochs=1)
RESULTS = re.compile(r"record_mAP.*|detections\.json|test_result.*|R\.json|model_.*\.pth|(det|seg)_results.*")


class Data:
    """A COCO folder to spoil: four images of `tiny_model`, ids 10 to 13, with a square each, ids 1 to 4."""

    names = NAMES

    def __init__(self, folder: Path):
        self.folder, self.image_dir = write_coco(folder), folder / "images"
        self.content = json.loads((folder / "instances_val.json").read_text())
        self.images, self.annotations = self.content["images"], self.content["annotations"]
        self.text: str | bytes | None = None  # of the json, where it is not that of `content`

    def path(self, name: str = "1.png") -> Path:
        """Where image 11 (64 x 48, height x width) lies, when it is called `name`."""
        (self.image_dir / self.images[1]["file_name"]).unlink(missing_ok=True)
        self.images[1]["file_name"] = name
        return self.image_dir / name

    def add(self, number=17, **fields) -> None:
        """One more annotation, of image 11, a square unless the fields say otherwise; None leaves a field out."""
        whole = {**self.annotations[1], "id": number, **fields}
        self.annotations.append({key: value for key, value in whole.items() if value is not None})

    def write(self) -> None:
        text = json.dumps(self.content) if self.text is None else self.text
        for split in ("train", "val"):
            (self.folder / f"instances_{split}.json").write_bytes(text if isinstance(text, bytes) else text.encode())


@dataclass
class Case:
    """make writes the data; says: what the line of an ERROR, or of what is skipped, holds. skips: how many images
    or annotations. check(seen): asserts on a Seen. of: "images" (predict.py reads them), "json" (it reads the json)
    or "annotations" (which it does not look at: it goes on). predicts, validates: its outcome, where it is another.
    trained: validate and predict with what train.py gives, as the classes are other than tiny_model's."""

    name: str
    outcome: str
    make: Callable
    says: tuple = ()
    skips: int = 1
    check: Callable | None = None
    of: str = "annotations"
    predicts: str | None = None
    validates: str | None = None
    trained: bool = False
    data: Callable = field(default=Data)
    flags: dict = field(default_factory=dict)  # command -> more flags


class Done(NamedTuple):
    """How a command ended."""

    status: int
    out: str
    err: str

    def told(self) -> str:
        """All of it; what is most likely to be looked for comes first: a long message may be cut."""
        return f"status {self.status}; on stderr: {self.err!r}; on stdout: {self.out!r}"


@dataclass
class Seen:
    """What the check of a case may look at."""

    folder: Path
    data: object  # the val data set
    run: Done
    validated: Done
    predicted: Done

    def read(self, name: str):
        """record_mAP.json or detections.json of the validation, test_result.json or R.json of the prediction."""
        (path,) = self.folder.glob(f"*/{name}")
        return json.loads(path.read_text())


def call(script, *flags) -> Done:
    """A script's main in this process."""
    streams = [io.TextIOWrapper(io.BytesIO(), encoding="utf-8") for _ in range(2)]
    with redirect_stdout(streams[0]), redirect_stderr(streams[1]), patch.object(annotation_cache, "WORTHWHILE", 1):
        status = small_runs.call(script, *flags)
    for stream in streams:
        stream.flush()
    return Done(status, *(stream.buffer.getvalue().decode() for stream in streams))


def trial(case: Case, folder: Path) -> None:
    """Run the commands on a case; AssertionError says what is not as it should be."""
    with patch.dict(os.environ, {"MASKRCNN_CACHE": str(folder / "cache")}):
        data = case.data(folder / "data")
        case.make(data)
        data.write()
        done = {name: command() for name, command in commands(case, data, folder).items()}
        for name, ended in done.items():
            check_end(case, name, ended, folder)
        if case.check is not None:
            val = open_data(data.folder, split="val").val
            case.check(Seen(folder, val, done["train"], done["validation"], done["predict"]))


def commands(case: Case, data, folder: Path) -> dict[str, Callable]:
    """name -> call; the strict ones write elsewhere."""
    weights = folder / "train" / "model_0.pth" if case.trained else tiny_weights(folder, data.names)
    where = ("--data-path", data.folder)
    model = ("--device", "cpu", "--weights-path", weights)

    def predict_flags(out):
        if case.of == "images" or case.data is not Data:
            return (*model, "--img-path", data.image_dir, "--output-dir", out, "--score", "0")
        json_path = data.folder / "instances_val.json"
        return (*model, "--coco-json", json_path, "--image-dir", data.image_dir, "--output", out / "R.json")

    found = {}
    for strict in (False, True) if case.outcome == SKIP else (False,):
        end, more = (" --strict", ["--strict"]) if strict else ("", [])
        calls = {
            "train": (train, *TRAIN, *where, "--output-dir", folder / f"train{end}"),
            "validation": (validation, *model, *where, "--output-dir", folder / f"validation{end}"),
            "predict": (predict, *predict_flags(folder / f"predict{end}")),
        }
        for name, flags in calls.items():
            found[name + end] = partial(call, *flags, *more, *case.flags.get(name, ()))
    return found


@functools.cache
def _checkpoint(names: tuple) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        return write_checkpoint(Path(folder) / "tiny.pth", names=dict(names), width=WIDTH).read_bytes()


def tiny_weights(folder: Path, names: dict) -> Path:
    """A checkpoint of `tiny_model` for these classes."""
    path = folder / "tiny.pth"
    path.write_bytes(_checkpoint(tuple(names.items())))
    return path


def outcome_of(case: Case, name: str) -> str:
    """What a command is to do with the case."""
    wanted = case.outcome
    if name.startswith("predict"):
        wanted = case.predicts or (GO_ON if case.of == "annotations" else wanted)
    if name.startswith("validation"):
        wanted = case.validates or wanted
    return ERROR if wanted == SKIP and name.endswith("--strict") else wanted


def check_end(case: Case, name: str, ended: Done, folder: Path) -> None:
    wanted, told = outcome_of(case, name), f"{case.name}, {name}: {ended.told()}"
    if wanted == ERROR:
        assert ended.status == 2 and ended.err.startswith("error: ") and ended.err.count("\n") == 1, told
        assert all(word in ended.err for word in case.says), told
        written = [path.name for path in (folder / name).rglob("*") if RESULTS.fullmatch(path.name)]
        assert not written, (told, written)
    elif wanted == GO_ON or case.of == "annotations":
        assert ended.status == 0 and not ended.err, told
        if wanted == SKIP:  # where the data is described
            for part in ("train: ", "val: ") if name == "train" else ("",):
                (line,) = (line for line in ended.out.splitlines() if line.startswith(part) and "; skipped" in line)
                assert all(word in line for word in case.says), told
        elif name != "predict":
            assert "skipped" not in ended.out, told
    else:
        check_skipped_images(case, name, ended, told)


def check_skipped_images(case: Case, name: str, ended: Done, told: str) -> None:
    start = {"train": "skipped: ", "validation": "not evaluated: ", "predict": "not predicted: "}[name]
    named = [line for line in ended.err.splitlines() if line.startswith(start)]
    assert len(named) == case.skips and all(all(word in line for word in case.says) for line in named), told
    assert ended.status == (0 if name == "train" else 1), told
    counts = {
        "train": f"left out: {case.skips} in training so far, {case.skips} in validation",
        "validation": f"{counted(case.skips, 'image')} could not be read",
        "predict": f", {case.skips} could not be read",
    }
    assert counts[name] in ended.out + ended.err, told


def cases() -> list[Case]:
    from tests.faults import odd_annotations, odd_data, odd_images

    return odd_images.CASES + odd_annotations.CASES + odd_data.CASES


def run(full: bool, folder: Path) -> Outcome:
    """Every case; the short version is the whole."""
    failures, table = [], cases()
    for case in table:
        with tempfile.TemporaryDirectory(dir=folder) as own:
            try:
                trial(case, Path(own))
            except Exception as error:  # an assertion, or a fault of the program: a trial that failed
                failures.append(f"{case.name}: {' '.join(f'{type(error).__name__}: {error}'.split())}")
    counts = ", ".join(f"{sum(case.outcome == kind for case in table)} {kind}" for kind in (ERROR, SKIP, GO_ON))
    runs = sum(6 if case.outcome == SKIP else 3 for case in table)
    return Outcome(len(table) - len(failures), len(table), failures, f"{counts}; {runs} commands")
