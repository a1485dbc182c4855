"""What training and the doctor say of images and objects whose sizes do not fit, and the flags that they advise."""

import shlex

import numpy as np
import pytest

import train
from network_files import MaskRCNNConfig
from network_files.transform import resized_size
from tests.coco_folders import many, write
from tests.test_check_data import both, run  # noqa: F401  (a fixture)
from tools.doctor.advice import on_limit
from train_utils.cli.parser import Parser
from train_utils.data.opening import open_data
from train_utils.evaluation.advice import lines_on_fit, resized_sides, sizing, step_memory
from train_utils.run.config import add_arguments

USUAL = MaskRCNNConfig()


@pytest.mark.parametrize(
    ("sizes", "config", "flags", "line"),
    [
        ([(256, 256)] * 3, USUAL, "--min-size 256 --max-size 256", "enlarged to 800x800, 10 times the pixels: "),
        ([(200, 300), (200, 300), (300, 200)], USUAL, "--min-size 200 --max-size 300", "images are 300x200"),
        ([(480, 640)], USUAL, "", ""),  # photos of COCO, on which these sizes are usual
        ([(4000, 6000)], USUAL, "", "images are 6000x4000 (the median), shrunk to 1200x800: small objects may be lost"),
        ([(256, 256)], MaskRCNNConfig(min_size=256, max_size=256), "", ""),
        ([(100, 100)], MaskRCNNConfig(fixed_size=(320, 320)), "", ""),
    ],
)
def test_the_size_that_images_have_is_advised(sizes, config, flags, line):
    found = sizing(np.array(sizes), config)
    assert found.flags == flags and line in found.line() and bool(line) == bool(found.line())
    if flags:
        _, short, _, long = flags.split()
        kept = MaskRCNNConfig(min_size=int(short), max_size=int(long))
        assert sizing(np.array(sizes), kept).resized == sizes[0] and not sizing(np.array(sizes), kept).line()


def test_memory_is_that_of_the_figures_in_proportion_to_the_pixels():
    assert step_memory(2, (800, 1088)) == pytest.approx(1261 * 2**20)
    one, two, three = (step_memory(count, (256, 256)) for count in (1, 2, 3))
    assert three - two == pytest.approx(two - one) and two > one


def test_objects_too_small_for_any_anchor_are_told(tmp_path):
    both(tmp_path / "d", many(12))  # squares of 10 pixels
    part = open_data(tmp_path / "d").train
    height, width = part.sizes[0].tolist()
    same = {"min_size": min(height, width), "max_size": max(height, width)}
    assert np.allclose(resized_sides(part, MaskRCNNConfig(**same)), 10)
    assert resized_size(height, width, same["min_size"], same["max_size"], None) == (height, width)
    (line,) = lines_on_fit(part, MaskRCNNConfig(**same))
    told = (
        "100% of the objects are below half of the smallest anchor's side, 32 pixels: --anchor-sizes 16 32 64 128 256"
    )
    assert line == told
    assert lines_on_fit(part, MaskRCNNConfig(**same, anchor_sizes=(16, 32, 64, 128, 256))) == []


def test_the_doctor_ends_with_a_command_that_training_takes(run, tmp_path):  # noqa: F811
    both(tmp_path / "my data", many(12))
    _, out, _, found = run(tmp_path / "my data")
    (line,) = (line for line in out.splitlines() if line.startswith("train with: python "))
    words = shlex.split(line.partition("python ")[2])
    parser = Parser()
    add_arguments(parser)
    given = parser.given(words[1:])
    assert words[0] == f"{train.__name__}.py" and given["data_path"] == str(tmp_path / "my data")
    assert given["output_dir"] == "runs/my data" and "min_size" in given
    assert "keeps their size" in out
    table = [line for line in out.splitlines() if "x the images' pixels" in line]
    assert [row.partition(":")[0].strip() for row in table[:2]] == ["as configured", "as large as the images"]
    assert table[1].endswith(", 1 x the images' pixels")
    assert len(table) == 3 and f"--min-size {given['min_size'][0]} " in table[2]
    assert "takes the last row, as auto takes no side below 128 pixels; the one above has 0.0" in out
    assert "as large as the images" in (tmp_path / "checked" / "check_data.html").read_text()
    assert "train.py makes 100 epochs, as there are 12 images to train on: 600 steps of 2 images" in out
    assert found["advice"][-1] == line
    assert "train with: python train.py" in (tmp_path / "checked" / "check_data.html").read_text()
    assert "memory of a step" in out


def test_more_objects_than_detections_are_advised_on():
    assert on_limit(np.array([3, 100, 0]), USUAL) == ([], []) and on_limit(np.array([], int), USUAL) == ([], [])
    (line,), flags = on_limit(np.array([3, 101, 140]), USUAL)
    assert line.startswith("2 images with more objects than 100 detections (most: 140)") and line.endswith("300")
    assert flags == ["--box-detections-per-img", "300", "--max-dets", "300"]


def test_data_that_training_refuses_is_not_advised_on(run, tmp_path):  # noqa: F811
    (tmp_path / "images").mkdir()
    assert "train with" not in run(tmp_path / "images")[1]


def test_data_without_a_split_is_advised_on_as_training_divides_it(run, tmp_path):  # noqa: F811
    json = write(tmp_path / "some", many(10), image_dir="pictures")
    flags = ("--image-dir", json.parent / "pictures", "--anchor-sizes", 4, 8, 16, 32, 64, "--min-size", 20)
    out = run(json, *flags)[1]
    assert "train.py makes 100 epochs, as there are 8 images to train on: 400 steps of 2 images" in out
    line = next(line for line in out.splitlines() if line.startswith("train with: "))
    assert f"--image-dir {json.parent / 'pictures'} " in line and "8 16 32 64 --min-size 20 --output-dir" in line
