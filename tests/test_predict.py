"""predict.py as a user runs it, and its files read back."""

import io
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as coco_mask

import predict
from network_files.roi_heads import RoIHeads
from tests.small_runs import ROOT, files_of
from tests.tiny_model import NAMES, SIZES, tiny_model, write_checkpoint, write_coco, write_images
from train_utils.evaluation.tiled_model import all_need
from train_utils.prediction.model import unfinished
from train_utils.prediction.predictor import Predictor
from train_utils.show.image_lists import output_names


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return write_checkpoint(tmp_path_factory.mktemp("weights") / "model.pth")


@pytest.fixture
def run(weights, tmp_path, monkeypatch, command):
    """Runs predict.py's main in an empty working folder -> (exit status, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)
    return lambda *flags, weights=weights: command(predict, "--weights-path", weights, "--device", "cpu", *flags)


@pytest.mark.parametrize(
    ("step", "done", "said"),
    [(72, 1, ["saved after 5 of the 67 steps of that epoch (--resume goes on)"]), (67, 1, []), (0, 0, [])],
)
def test_weights_of_the_middle_of_an_epoch_are_told(step, done, said):
    progress = {"steps_per_epoch": 67, "step": step, "epochs_done": done}
    assert unfinished({"progress": progress}) == said and unfinished({"progress": None}) == unfinished({}) == []


def test_one_image_from_the_command_line(weights, tmp_path):
    (image,) = write_images(tmp_path / "in")[:1]
    command = [sys.executable, ROOT / "predict.py", "--weights_path", weights, "--img_path", image, "--verbose"]
    done = subprocess.run([*command, "--device", "cpu"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in", "test_result.jpg", "test_result.json"]
    results = json.loads((tmp_path / "test_result.json").read_text())
    lines = [line for line in done.stdout.splitlines() if line.startswith(f"{image}: circle 0.")]
    assert len(lines) == len(results) > 0
    assert done.stdout.startswith(f"weights: {weights}: epoch ") and ", knows circle" in done.stdout
    assert f"{image}: {len(results)} circle in " in done.stdout and "nothing found" not in done.stdout
    with Image.open(tmp_path / "test_result.jpg") as drawn:  # a small image is drawn enlarged
        assert drawn.size == tuple(640 // max(SIZES[0]) * side for side in SIZES[0][::-1])
    for result in results:
        assert result["score"] >= 0.5 and result["category_id"] == 1 and result["file_name"] == str(image)
        assert result["segmentation"]["size"] == list(SIZES[0])
        assert len(result["bbox"]) == 4 and isinstance(result["segmentation"]["counts"], str)


def test_the_json_holds_the_models_detections(run, tmp_path):
    (path,) = write_images(tmp_path / "in")[:1]
    run("--img-path", path, "--score", 0, "--mask-threshold", 0.3)
    image = torch.from_numpy(np.array(Image.open(path))).permute(2, 0, 1)
    with torch.inference_mode():
        (expected,) = tiny_model()([image])
    results = json.loads(Path("test_result.json").read_text())
    assert [r["score"] for r in results] == expected["scores"].tolist()
    assert [r["category_id"] for r in results] == [list(NAMES)[i - 1] for i in expected["labels"].tolist()]
    for result, box, mask in zip(results, expected["boxes"].tolist(), expected["masks"], strict=True):
        x, y, w, h = result["bbox"]
        assert [x, y, x + w, y + h] == pytest.approx(box, abs=1e-4)
        decoded = coco_mask.decode(result["segmentation"])
        assert (decoded != (mask[0] > 0.3).numpy()).mean() < 0.01  # paste and RLE may differ by rounding at the edge


def test_score_and_classes_only_filter(run, tmp_path):
    (image,) = write_images(tmp_path / "in")[:1]

    def results(*flags):
        assert run("--img-path", image, *flags)[0] == 0
        return json.loads(Path("test_result.json").read_text())

    every = results("--score", 0)
    assert {r["category_id"] for r in every} > {1}
    middle = sorted(r["score"] for r in every)[len(every) // 2]
    assert results("--score", middle) == [r for r in every if r["score"] >= middle]
    assert "replaces results of an earlier call, of 20" in run("--img-path", image, "--score", middle)[1]
    below = sum(r["score"] < middle for r in every)
    others = sum(r["score"] >= middle and r["category_id"] != 2 for r in every)
    words = "--img-path", image, "--score", middle, "--classes", "Square"
    assert f"left out: {below} below --score {middle:g}, {others} of other classes than --classes\n" in run(*words)[1]
    out = run("--img-path", image, "--score", 0, "--mask-threshold", 1)[1]
    assert f"{len(every)} detections have a mask without a pixel above --mask-threshold 1\n" in out
    assert "left out" not in out
    assert results("--score", 0, "--classes", "Square") == [r for r in every if r["category_id"] == 2]
    both = results("--score", 0, "--classes", "circle", "big triangle")
    assert both == [r for r in every if r["category_id"] in (1, 4)]


@pytest.mark.parametrize(
    "words", [("--order", "uncertain", "--classes", "square"), ("--tta", "flips"), ("--tile", 112, "--overlap", 0.1)]
)
def test_what_is_left_out_takes_no_masks_and_changes_no_file(run, tmp_path, monkeypatch, words):
    image, taken, masks = tmp_path / "image.png", [], RoIHeads.masks
    pixels = np.random.default_rng(0).integers(0, 256, (192, 192, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(image)
    monkeypatch.setattr(RoIHeads, "masks", lambda *given: taken.append(len(given[2])) or masks(*given))

    def outcome(score):
        taken.clear()
        status, out, _ = run("--img-path", image, "--output-dir", "out", "--verbose", "--score", score, *words)
        assert status == 0
        files = files_of("out")
        shutil.rmtree("out")
        return sum(taken), {"said": re.sub(r" in [\d.]+ s", "", out), **files}

    results = json.loads(outcome(0)[1]["test_result.json"])
    score = sorted(result["score"] for result in results)[len(results) // 2]
    few, files = outcome(score)
    monkeypatch.setattr(Predictor, "_is_wanted", lambda self, found: all_need(found))
    every, same = outcome(score)
    assert 0 < few < every and files == same and json.loads(files["test_result.json"])


def test_an_image_without_detections_is_written(run, tmp_path):
    (image,) = write_images(tmp_path / "in")[:1]
    status, out, _ = run("--img-path", image, "--score", 1, "--magnify", 1)
    assert status == 0 and f"{image}: nothing in " in out
    best = re.search(
        r"nothing found: the best score is (0.\d\d) \(circle\), below --score 1; try --score 0.\d\d?\. ", out
    )
    assert best and "The model knows circle, square, big triangle\n" in out
    assert "nothing found" not in run("--img-path", image, "--score", float(best[1]) - 0.01)[1]
    Path("names.json").write_text(json.dumps({"1": "cell", "2": "square", "3": "big triangle"}))
    _, out, _ = run("--img-path", image, "--box-score-thresh", 1, "--label-json-path", "names.json")
    assert "2 classes are called otherwise than in the checkpoint: 1 circle -> 1 cell, 4 big triangle -> 3 big" in out
    assert "nothing found: no detection has any score" in out
    run("--img-path", image, "--score", 1, "--magnify", 1)
    assert json.loads(Path("test_result.json").read_text()) == []
    drawn, given = np.asarray(Image.open("test_result.jpg"), float), np.asarray(Image.open(image), float)
    assert drawn.shape == given.shape and np.abs(drawn - given).mean() < 10


def test_exif_rotation_is_applied(run, tmp_path):
    (image,) = write_images(tmp_path / "in")[:1]
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = tmp_path / "turned.jpg"
    Image.open(image).save(turned, exif=exif, quality=95)
    run("--img-path", turned, "--magnify", 2, "--score", 0)
    height, width = SIZES[0]
    with Image.open("test_result.jpg") as drawn:
        assert drawn.size == (2 * height, 2 * width)
    results = json.loads(Path("test_result.json").read_text())
    assert all(r["segmentation"]["size"] == [width, height] for r in results) and results


def test_a_folder_keeps_every_image_and_names_the_broken_ones(run, tmp_path):
    paths = write_images(tmp_path / "in")
    for name in ("0.bmp", "0_png.jpg"):  # the same stem; what 0.png's copy would be called
        Image.open(paths[0]).save(tmp_path / "in" / name)
    (tmp_path / "in" / "broken.jpg").write_bytes(b"no image")
    (tmp_path / "in" / "notes.txt").write_text("no image either")
    (tmp_path / "in" / "more").mkdir()
    status, out, err = run("--img-path", tmp_path / "in", "--output-dir", "out")
    assert status == 1
    assert "in: 1 sub-folder is not searched" in out
    assert "broken.jpg" in err and "notes.txt" in out
    assert f"6 of 7 images predicted, 1 could not be read: {tmp_path / 'in' / 'broken.jpg'}: " in out
    drawn = [path.name for path in Path("out").iterdir() if path.name != "test_result.json"]
    assert sorted(drawn) == ["0_bmp.jpg", "0_png.jpg", "0_png_2.jpg", "1.jpg", "2.jpg", "3.jpg"]
    results = json.loads(Path("out/test_result.json").read_text())
    assert len({r["image_id"] for r in results}) == len({r["file_name"] for r in results}) == 6
    Path("test_result.json").write_text("[1]")
    status, out, _ = run("--img-path", tmp_path / "in" / "broken.jpg", "--write", "coco", "--order", "uncertain")
    assert status == 2 and "0 of 1 image predicted" in out
    assert "test_result.json: not written, as no image was predicted; that of an earlier call stays" in out
    assert Path("test_result.json").read_text() == "[1]"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "out", "test_result.json"]


def test_a_folder_without_an_output_folder_has_one_of_its_own(run, tmp_path):
    write_images(tmp_path / "in")
    assert run("--img-path", tmp_path / "in")[0] == 0
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in", "test_result", "test_result.json"]
    assert sorted(p.name for p in Path("test_result").iterdir()) == ["0.jpg", "1.jpg", "2.jpg", "3.jpg"]


def test_a_folder_is_not_drawn_into_itself(run, tmp_path):
    before = {path: path.read_bytes() for path in write_images(tmp_path / "in")}
    for same in ("in", "in/../in"):
        status, _, error = run("--img-path", tmp_path / "in", "--output-dir", same)
        assert status == 2 and "is the folder of the images" in error and error.count("\n") == 1
    assert {path: path.read_bytes() for path in (tmp_path / "in").iterdir()} == before


def test_a_file_name_that_the_terminal_cannot_show(run, tmp_path, monkeypatch):
    (image,) = write_images(tmp_path / "in")[:1]
    odd = image.rename(tmp_path / "p\u00e9.png")
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), encoding="ascii"))
    assert run("--img-path", odd)[0] == 0
    assert Path("test_result.jpg").exists()


def test_output_names_are_unique_on_disks_without_capitals():
    paths = [Path(name) for name in ("a/x.jpg", "b/X.jpg", "x_jpg.png", "y.jpg")]
    names = output_names(paths)
    assert len({name.lower() for name in names}) == 4 and names[3] == "y.jpg"


def test_strict_ends_before_anything_is_drawn(run, tmp_path):
    write_images(tmp_path / "in")
    (tmp_path / "in" / "z.jpg").write_bytes(b"no image")
    status, _, err = run("--img-path", tmp_path / "in", "--strict")
    assert status == 2 and "z.jpg: not an image" in err and not Path("test_result").exists()


def test_names_as_long_as_disks_take_them(run, tmp_path):
    (image,) = write_images(tmp_path / "in")[:1]
    for name in ("é" * 125 + "1.png", "é" * 125 + "2.png"):  # 255 bytes
        shutil.copy(image, tmp_path / "in" / name)
    assert run("--img-path", tmp_path / "in")[0] == 0
    drawn = sorted(path.name for path in Path("test_result").iterdir())
    assert drawn[4:] == ["é" * 120 + ".jpg", "é" * 120 + "_2.jpg"]


def test_a_glob(run, tmp_path):
    write_images(tmp_path / "in")
    status, out, _ = run("--img-path", tmp_path / "in" / "[12].png")
    assert status == 0
    assert sorted(p.name for p in Path("test_result").iterdir()) == ["1.jpg", "2.jpg"]


def test_odd_images_of_real_life(run, shared_data, tmp_path):
    folder = shutil.copytree(shared_data / "odd_images" / "pillow", tmp_path / "odd")
    for bomb in ("badwidth.bmp", "decompression_bomb.gif"):  # these end the command, before anything is drawn
        status, out, err = run("--img-path", folder)
        assert status == 2 and f"{bomb}: a decompression bomb" in err and not Path("test_result").exists()
        (folder / bomb).unlink()
    status, out, err = run("--img-path", folder, "--score", 1)
    assert status == 1
    index = [line.split("\t") for line in (folder / "INDEX.tsv").read_text().splitlines()[1:]]
    index = [row for row in index if (folder / row[0]).exists()]
    unreadable = {row[0] for row in index if row[-1].startswith(("open:", "load:"))}
    named = {Path(line.split(": ")[1]).name for line in err.splitlines() if line.startswith("not predicted: ")}
    assert unreadable <= named
    assert len(list(Path("test_result").iterdir())) == len(index) - len(named) >= 50


def test_coco_json_without_annotations(run, tmp_path):
    folder = write_coco(tmp_path / "data")
    content = json.loads((folder / "instances_val.json").read_text())
    (tmp_path / "images.json").write_text(json.dumps({"images": content["images"]}))
    flags = ("--coco-json", "images.json", "--image-dir", folder / "images", "--output", "out/R.json")
    assert run(*flags)[0] == 0
    results = json.loads(Path("out/R.json").read_text())
    assert {r["image_id"] for r in results} == {10, 11, 12, 13}
    assert min(r["score"] for r in results) < 0.5  # all that the model gives
    run(*flags, "--score", 0.5)
    assert json.loads(Path("out/R.json").read_text()) == [r for r in results if r["score"] >= 0.5]
    # the json's classes under other ids: matched by name, and its ids written; what it lacks keeps the model's
    other = {"square": 1, "big triangle": 9}
    categories = [{"id": i, "name": name.upper()} for name, i in other.items()]
    (tmp_path / "images.json").write_text(json.dumps({"images": content["images"], "categories": categories}))
    _, out, _ = run(*flags)
    own = {i: other.get(name) for i, name in NAMES.items()}
    free = {i: i for i in NAMES if i not in other.values()}
    expected = [
        {**r, "category_id": own[r["category_id"]] or free[r["category_id"]]}
        for r in results
        if own[r["category_id"]] or r["category_id"] in free
    ]
    assert json.loads(Path("out/R.json").read_text()) == expected
    assert "not there: 1 class of the model, whose ids stay: 'circle' (1)" in out
    assert 0 < len(expected) < len(results) and {1, 9} == {r["category_id"] for r in expected}
    assert (
        "2 classes are matched by name" in out and f"{len(results) - len(expected)} detections of classes that" in out
    )
    categories[1]["name"] = "square"
    (tmp_path / "images.json").write_text(json.dumps({"images": content["images"], "categories": categories}))
    status, _, err = run(*flags)
    assert status == 2 and "images.json: category 1 is not to be matched by its name: 'SQUARE' has several ids" in err
    (tmp_path / "images.json").write_text(json.dumps({"images": content["images"]}))
    shutil.copy(folder / "images" / "3.png", folder / "images" / "0.png")  # another size than the json says
    status, _, err = run(*flags)
    assert status == 2 and "0.png" in err and err.count("\n") == 1
    (folder / "images" / "0.png").write_bytes(b"")
    status, _, err = run(*flags)
    assert status == 1 and "0.png" in err
    status, _, err = run(*flags, "--strict")
    assert status == 2 and "0.png: the file is empty" in err
    (folder / "images" / "0.png").unlink()
    status, _, err = run(*flags)
    assert status == 2 and "1 of its 4 image files are missing, the first is" in err and "(image id 10)" in err


def test_a_bare_state_dict(run, tmp_path):
    (image,) = write_images(tmp_path / "in")[:1]
    torch.save(tiny_model().state_dict(), "bare.pth")
    Path("names.json").write_text(json.dumps({"1": "one", "2": "two", "3": "three"}))
    flags = (
        "--img-path",
        image,
        "--num-classes",
        3,
        "--min-size",
        64,
        "--max-size",
        96,
        "--score",
        0,
        "--anchor-sizes",
        8,
        16,
        32,
        48,
        64,
        "--label-json-path",
        "names.json",
    )
    status, out, err = run(*flags, weights="bare.pth")
    assert status == 0, err
    assert " one in " in out


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--img-path", "nowhere.jpg"), "nowhere.jpg"),
        (("--img-path", "empty"), "no images"),
        (("--img-path", "in/0.png", "--classes", "dog"), "circle, square, big triangle"),
        (("--img-path", "in/0.png", "--num-classes", "7"), "--num-classes"),
        (("--img-path", "in/0.png", "--weights-path", "in/0.png"), "not a checkpoint"),
        (("--img-path", "in/0.png", "--score", "1.5"), "--score"),
        (("--coco-json", "in/0.png", "--image-dir", "in", "--output", "R.json"), "0.png"),
        (("--coco-json", "a.json", "--image-dir", "in"), "--output"),
        (("--img-path", "in/0.png", "--output", "mine.jpg"), "--output goes with --coco-json"),
        (
            ("--coco-json", "a.json", "--image-dir", "in", "--output", "R.json", "--every", 3),
            "--every goes with --img-",
        ),
        ((), "--img-path"),
    ],
)
def test_wrong_input_is_one_line_and_status_2(run, tmp_path, flags, said, capsys):
    write_images(tmp_path / "in")
    (tmp_path / "empty").mkdir()
    try:
        status, _, err = run(*flags)
    except SystemExit as stop:  # argparse
        status, err = stop.code, capsys.readouterr().err.splitlines()[-1]
    assert status == 2 and said in err and err.count("\n") <= 1
    assert not Path("test_result.json").exists()


def test_no_image_is_overwritten(run, tmp_path):
    image = write_images(tmp_path)[0].rename(tmp_path / "test_result.jpg")
    before = image.read_bytes()
    status, _, error = run("--img-path", image)
    assert status == 2 and "would be overwritten" in error and error.count("\n") == 1
    assert image.read_bytes() == before


def test_a_folder_as_results_file_is_refused_before_predicting(run, tmp_path):
    (tmp_path / "j.json").write_text(json.dumps({"images": []}))
    status, out, error = run("--coco-json", tmp_path / "j.json", "--image-dir", tmp_path, "--output", tmp_path)
    assert status == 2 and "is a folder" in error and out == ""


@pytest.mark.parametrize(("width", "magnify", "drawn"), [(7000, 20, (63000, 36)), (66000, 1, (65500, 4))])
def test_what_is_longer_than_a_jpeg_can_be_is_drawn_smaller_and_said(run, tmp_path, width, magnify, drawn):
    Image.new("RGB", (width, 4)).save(tmp_path / "scan.png")
    status, out, err = run("--img-path", "scan.png", "--magnify", magnify, "--score", 0)
    assert status == 0 and err == "" and "1 image is drawn smaller: a JPEG has at most 65,500 pixels a side\n" in out
    with Image.open("test_result.jpg") as image:
        assert image.size == drawn
    results = json.loads(Path("test_result.json").read_text())
    assert results and all(result["segmentation"]["size"] == [4, width] for result in results)


def test_captions_and_boxes_are_chosen(run, tmp_path):
    (image,) = write_images(tmp_path / "in")[:1]
    drawn = {}
    for words in (("--captions", "auto"), ("--captions", "none"), ("--captions", "full"), ("--no-boxes",)):
        assert run("--img-path", image, "--score", 0.5, *words)[0] == 0
        drawn[words[-1]] = Path("test_result.jpg").read_bytes()
    assert len(set(drawn.values())) == 4
    out = run("--img-path", image, "--score", 0, "--box-detections-per-img", 21)[1]
    assert "1 image is drawn without boxes around masks, with more than 20 objects in an image" in out
    for words in (("--no-boxes",), ("--box-detections-per-img", 20)):
        assert "without boxes" not in run("--img-path", image, "--score", 0, *words)[1]
