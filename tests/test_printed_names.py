"""Names that would steer a terminal or break a pasted command: every command shows them as escapes, and quoted."""

import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest

import predict
from tests.tiny_model import write_checkpoint, write_coco
from tools import check_data, pack_dataset
from train_utils.checkpoints.run_folder import prepare_run_folder, write_args
from train_utils.data.opening import open_data
from train_utils.io.plain_text import CONTROL, of_several, pasted
from train_utils.run.config import RunConfig
from train_utils.run.reports import print_outcome, resume_command

EVIL = "a;echo PASTED '\x1b[32m\n\u202e$(echo).png"


def shell(line):
    """What bash makes of the words of a line."""
    done = subprocess.run(["bash", "-c", f"printf '%s\\0' {line}"], capture_output=True, check=True)
    return [os.fsdecode(word) for word in done.stdout.split(b"\0")[:-1]]


@pytest.mark.parametrize(
    ("plural", "one"),
    [
        ("annotations without segmentation", "annotation without segmentation"),
        ("annotations whose polygons have fewer than 3 points", "annotation whose polygons have fewer than 3 points"),
        ("annotations of images that are not listed", "annotation of images that are not listed"),
        ("files that are neither images nor .npy", "file that is neither images nor .npy"),
        ("XML objects without a mask", "XML object without a mask"),
        ("skipped: images that cannot be read", "skipped: image that cannot be read"),
        ("objects that cover over 95% of their image", "object that covers over 95% of their image"),
        ("image files are missing", "image file is missing"),
        ("points and lines, which have no area", "points and lines, which have no area"),
    ],
)
def test_one_has_its_noun_in_the_singular(plural, one):
    assert (of_several(1, plural), of_several(2, plural)) == (one, plural)


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_a_pasted_word_is_the_word():
    words = [
        "strawberry (33).jpg",
        "plain.jpg",
        EVIL,
        "\x01f\x7f\x9b",
        "back\\slash\n",
        "bytes\udcff\n",
        "é\tž",
        "it's",
    ]
    line = pasted(*words)
    assert shell(line) == words and not CONTROL.search(line)
    assert pasted("strawberry (33).jpg", "plain.jpg") == "'strawberry (33).jpg' plain.jpg"


@pytest.fixture
def data(tmp_path):
    """A COCO folder of an evil name, one image of which has one, too."""
    folder = write_coco(tmp_path / EVIL)
    (folder / "images" / "0.png").rename(folder / "images" / EVIL)
    for path in folder.glob("*.json"):
        path.write_text(path.read_text().replace('"0.png"', json.dumps(EVIL)))
    return folder


def test_no_command_prints_them_as_they_are(data, tmp_path, command):
    weights, out = write_checkpoint(tmp_path / "m.pth", width=8), tmp_path / "out" / EVIL
    (data / "images" / f"{EVIL}.txt").touch()
    (data / "images" / f"{EVIL}.jpg").touch()
    model = ("--weights-path", weights, "--device", "cpu")
    said = {
        "predict": command(predict, *model, "--img-path", data / "images", "--output-dir", out),
        "check_data": command(check_data, data, "--output-dir", out, "--samples", 0),
        "pack_dataset": command(pack_dataset, data, out / EVIL),
        "refused": command(pack_dataset, data, out / EVIL),
    }
    for name, (status, printed, errors) in said.items():
        assert status == {"predict": 1, "check_data": 1, "refused": 2}.get(name, 0), (name, errors)
        assert not CONTROL.search((printed + errors).replace("\n", "")), name
        assert "PASTED" in printed + errors and not re.search(r"^\\u202e", printed + errors, re.MULTILINE), name
    (line,) = (line for line in said["pack_dataset"][1].splitlines() if "(python train.py" in line)
    assert shell(line.partition("(python ")[2][:-1]) == ["train.py", "--data-path", str(out / EVIL)]


def test_the_next_commands_of_a_run_are_quoted(data, tmp_path, capsys):
    folder = tmp_path / EVIL / "run"
    for _ in range(2):
        with prepare_run_folder(folder).lock:
            write_args(folder, {})
    (folder / "model_0.pth").touch()
    go_on = resume_command(folder, RunConfig(follow_links=True), SimpleNamespace(size=1))
    print_outcome(folder, 0.5, open_data(data, split="val").val, go_on, 300, True)
    printed = capsys.readouterr().out
    assert not CONTROL.search(printed.replace("\n", ""))
    lines = [line.partition(" python ")[2] for line in printed.splitlines() if " python " in line]
    image = open_data(data, split="val").val.file_name(0)
    weights = ["--weights-path", str(folder)]
    assert shell(lines[1]) == ["predict.py", *weights, "--img-path", image] and Path(image).exists()
    assert shell(lines[0]) == ["validation.py", *weights, "--max-dets", "300", "--follow-links", "--report"]
    assert shell(lines[2]) == ["train.py", "--output-dir", str(folder), "--resume", "auto", "--follow-links"]
    print_outcome(folder, 0.5, SimpleNamespace(file_name=lambda i: "gone.png"), go_on)  # as of packed data
    assert f"predict.py --weights-path {pasted(folder)} --img-path IMAGE\n" in capsys.readouterr().out
    (line,) = (line for line in printed.splitlines() if "holds a run already" in line)
    goes_on = line.partition("of the former: ")[2][:-1]
    assert shell(goes_on) == ["--output-dir", str(folder), "--resume", "auto"]
