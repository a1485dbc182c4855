"""Benchmarks that run whole commands: a huge image through validation.py, ranks beside one rank. Made small."""

import json
import os
import re
import sys
import time
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as coco_mask

import train
from benchmarks import compare_models, distributed, mini_masks, models
from benchmarks.data_formats import __main__ as formats_of_data
from benchmarks.device import gpu
from benchmarks.large_images import borders, huge_image, perfect, slide, training
from benchmarks.recipes import dense_images
from network_files import MaskRCNN, matching
from network_files.operators.cropped_masks import CroppedMasks
from tests import small_runs, tiny_model
from tests.coco_folders import many, write
from tests.faults.processes import end_all, start_rank
from tests.tiny_model import write_checkpoint, write_coco
from train_utils.data.images import windows
from train_utils.data.opening import open_data

pytestmark = pytest.mark.slow

SMALL = ["--backbone", "resnet18", "--min-size", "32", "--max-size", "64"]


def test_a_huge_image_is_validated_and_measured(tmp_path, capfd, monkeypatch):
    monkeypatch.setattr(huge_image, "subprocess", SimpleNamespace(Popen=small_runs.Forked))
    options = ["--width", "96", "--height", "64", "--objects", "4", "--detections", "3", *SMALL]
    assert huge_image.main([*options, "--keep", str(tmp_path)]) == 0
    out = capfd.readouterr().out
    assert "1 image (0 without objects), 4 objects of 3 classes" in out and ", 3 detections, " in out
    seconds, peak = re.search(r"exit status 0, ([\d.]+) s, peak (\d+) MiB", out).groups()
    assert float(seconds) > 0 and 100 < int(peak) < 4000


def test_a_slide_is_read_in_parts(tmp_path, capfd, monkeypatch):
    def run_code(command, cwd, **_):
        assert command[1] == "-c"
        (tmp_path / "code.py").write_text(command[2])
        assert small_runs.Forked([command[0], tmp_path / "code.py", *command[3:]], cwd).wait() == 0

    monkeypatch.setattr(slide, "subprocess", SimpleNamespace(Popen=small_runs.Forked, run=run_code))
    monkeypatch.setattr(windows, "LARGE", 1000)
    small = ["--side", "300", "--keep", str(tmp_path)]
    assert slide.main([*small, "--form", "tif"]) == 0
    assert "slide300.tif: every tile of 1024: " in (out := capfd.readouterr().out) and "an overview of 4000: " in out
    weights = str(write_checkpoint(tmp_path / "model.pth"))
    assert slide.main([*small, "--weights-path", weights, "--tile", "200"]) == 0
    assert re.search(r"predict.py: exit status 0, [\d.]+ s of CPU time, peak \d+ MiB", capfd.readouterr().out)


def test_of_many_discs_those_are_found_that_a_box_meets():
    boxes, colours = slide.discs(300, 10)
    assert len(boxes) == len(colours) == 10 and slide.squares(300, 10) == (4, 75)
    results = [{"bbox": [x1, y1, x2 - x1, y2 - y1]} for x1, y1, x2, y2 in boxes.tolist()]
    half = [{"bbox": [*result["bbox"][:2], result["bbox"][2] * 0.4, result["bbox"][3]]} for result in results]
    outside = {"bbox": [290, 290, 9, 9]}  # of a square without a disc
    assert slide.found([*results[:7], results[0], half[8], outside], 300, 10) == 7


def test_a_network_that_shows_what_is_drawn_finds_all_discs_in_tiles(tmp_path, capfd, monkeypatch):
    for place, name in ((MaskRCNN, "forward"), (sys, "argv")):
        monkeypatch.setattr(place, name, getattr(place, name))  # put back what the benchmark replaces
    slide.draw(tmp_path / "slide300_12.png", 300, 12)

    def run(path, program, words, folder):  # in this process
        return perfect.main([*program[2:], "--img-path", str(path), "--output-dir", str(folder), *words])

    monkeypatch.setattr(slide, "predict", run)
    small = ["--form", "png", "--side", "300", "--objects", "12", "--tile", "128", "--keep", str(tmp_path)]
    assert slide.main([*small, "--perfect"]) == 0
    out = capfd.readouterr().out
    assert re.search(r"^\d+ MiB with the first tile, \d+ MiB more at the peak$", out, re.M)
    assert "12 detections, 12 of 12 discs found" in out and "all that --box-detections-per-img allows" not in out
    shown = np.zeros((300, 300), bool)
    for result in json.loads((tmp_path / "test_result.json").read_text()):
        shown |= coco_mask.decode(result["segmentation"]) > 0
    with Image.open(tmp_path / "slide300_12.png") as image:
        drawn = np.asarray(image).max(2) > 40
    assert (shown != drawn).sum() < 0.05 * drawn.sum()


def test_borders_of_tiles_cost_a_network_without_fault_nothing(tmp_path, capfd):
    data = ["--data-path", str(write_coco(tmp_path)), "--side", "40", "--images", "2", "--tile", "32", "--offsets", "3"]
    assert borders.main(data) == 0
    where, sums = capfd.readouterr().out.strip().split(": ")
    assert where == "4 objects in 25 tiles of 32 pixels, overlap 0.25, 3 places, 12 in all"
    assert sums == "0 lost, 0 more, 0 doubled, 0 cut"
    square = [torch.zeros(30, 30, dtype=torch.uint8) for _ in range(5)]
    for one, (x1, x2) in zip(square, [(0, 10), (0, 9), (1, 10), (15, 20), (0, 10)], strict=True):
        one[:10, x1:x2] = 1
    masks = CroppedMasks.from_masks(torch.stack(square))
    assert borders.differences(masks[[1, 2]], masks[[0]]) == Counter({"doubled": 1, "cut": 1})
    assert borders.differences(masks[[3]], masks[[0]]) == Counter({"lost": 1, "more": 1})
    assert borders.differences(masks[[]], masks[[0]]) == Counter({"lost": 1})
    assert borders.differences(masks[[0]], masks[[4]]) == Counter()


def test_dense_images_are_drawn_and_trained_on(tmp_path, capfd, monkeypatch):
    """Each cap's mask is what is seen of it, none is hidden, and the metric counts as many as an image may have."""
    commands = []

    def run(command, **_):
        commands.append(command)
        flags = tiny_model.train_flags(backbone_width=16)
        return SimpleNamespace(returncode=small_runs.call(train, *command[2:], *flags, "--workers", "0"))

    monkeypatch.setattr(dense_images, "subprocess", SimpleNamespace(run=run))
    monkeypatch.setattr(dense_images, "SIDE", 96)
    monkeypatch.setattr(dense_images, "OBJECTS", (9, 12))
    words = ["--output-dir", str(tmp_path), "--images", "2", "--epochs", "1"]
    assert dense_images.main([*words, "--draw"]) == 0 and not commands
    assert dense_images.main(words) == 0
    assert re.search(r"^epoch 0: box AP -?[\d.]+, mask AP -?[\d.]+$", capfd.readouterr().out, re.M)
    assert commands[0][-4:] == ["--box-detections-per-img", "300", "--max-dets", "300"]
    data = open_data(tmp_path / "data").train
    for i in range(2):
        _, target = data[i]
        masks = target["masks"].to_masks()
        x1, y1, x2, y2 = target["boxes"].long().unbind(1)
        assert 3 <= len(masks) <= 12 and int(masks.sum(0).max()) == 1
        assert all(
            mask.sum() >= 0.2 * (c - a) * (d - b) for mask, a, b, c, d in zip(masks, x1, y1, x2, y2, strict=True)
        )


def test_training_in_tiles_is_measured_beside_whole_mosaics(tmp_path, capfd, monkeypatch):
    commands = []

    def run(command, **_):
        commands.append(command[6:])  # behind the places of data and run
        return SimpleNamespace(returncode=small_runs.call(train, *command[2:]))

    monkeypatch.setattr(training, "subprocess", SimpleNamespace(run=run, DEVNULL=None))
    monkeypatch.setattr(training, "SIDE", 32)
    monkeypatch.setattr(training, "ACROSS", 2)
    monkeypatch.setattr(training, "NETWORK", " ".join(tiny_model.train_flags(backbone_width=16)))
    assert training.main(["--mosaics", "1", "--epochs", "1", "--keep", str(tmp_path)]) == 0
    out = capfd.readouterr().out
    assert commands[0][:-2] == commands[1][:-2]
    assert [words[-2:] for words in commands] == [["--tile", "32"], ["--repeat", "9"]]
    line = r"^--(?:tile 32|repeat 9): mask AP -?[\d.]+, AP50 -?[\d.]+, \d+ s of CPU time$"
    assert len(re.findall(line, out, re.M)) == 2
    (mosaic, target), parts = open_data(tmp_path / "mosaics").train[0], open_data(tmp_path / "shapes").train
    masks, labels = [], []
    for place in range(4):
        y, x = (32 * along for along in divmod(place, 2))
        image, own = parts[place]
        assert torch.equal(mosaic[:, y : y + 32, x : x + 32], image)
        masks.append(torch.zeros(len(own["labels"]), 64, 64, dtype=torch.uint8))
        masks[-1][:, y : y + 32, x : x + 32] = own["masks"].to_masks()
        labels.append(own["labels"])
    assert torch.equal(target["masks"].to_masks(), torch.cat(masks)) and torch.equal(
        target["labels"], torch.cat(labels)
    )


def test_formats_are_compared(tmp_path, capfd):
    assert formats_of_data.main([str(write_coco(tmp_path)), "--turns", "1"]) == 0
    out = capfd.readouterr().out
    rows = [row for row in out.splitlines() if "pixels differ" in row]
    assert "4 images, 4 objects, 1,920 pixels of masks" in out
    assert [row.split()[0] for row in rows] == ["as", "coco", "labelme", "yolo", "masks", "voc", "npy", "packed"]
    assert all(re.search(r" 4 objects +0 pixels differ  median IoU 1\.0000", row) for row in rows)


def test_mini_masks_are_measured(tmp_path, capfd):
    data = write(tmp_path, many(6))
    assert mini_masks.main(["--data-path", str(data), "--sizes", "4", "--min-size", "64"]) == 0
    *_, whole, mini = (line.split() for line in capfd.readouterr().out.splitlines())
    assert whole[0] == "whole" and mini[0] == "4" and float(mini[1].replace(",", "")) < float(whole[1].replace(",", ""))
    assert len(mini) == 7 and 0 <= float(mini[4]) <= float(mini[5]) <= 1


def test_ranks_are_timed_beside_one_rank(tmp_path, monkeypatch):
    data, log = write(tmp_path, many(6)), tmp_path / "log"
    model = tiny_model.flags_of(**tiny_model.FIELDS | tiny_model.FEW)

    def start(command, env):
        assert command[1:3] == ["-m", "benchmarks.distributed"]
        given = {name: env[name] for name in env if env[name] != os.environ.get(name)}
        rank = start_rank(command[2], command[3:], given, log)
        return SimpleNamespace(wait=lambda: end_all([rank])[0])

    monkeypatch.setattr(distributed, "subprocess", SimpleNamespace(Popen=start))
    assert distributed.main(["--data-path", str(data), "--turns", "1", "--steps", "1", *model]) == 0
    head, *lines = log.read_text().splitlines()[-4:]
    assert "resnet18, 64 px, batch size 1 per rank, 2 ranks of one thread" in head
    assert [line[:22].strip() for line in lines] == list(distributed.MODES) and "1.00 x one rank" in lines[0]


def test_models_are_timed_beside_one_another(tmp_path, capfd):
    write_coco(tmp_path / "data")
    for name, width in (("one.pth", 64), ("two.pth", 16)):
        write_checkpoint(tmp_path / name, width=width)
    paths = [str(tmp_path / name) for name in ("one.pth", "two.pth")]
    compare_models.main([*paths, "--data-path", str(tmp_path / "data"), "--turns", "1", "--images", "2"])
    lines = re.findall(r"(\w+): (.*): ([\d.]+) images/s, ([\d.]+) times the first", capfd.readouterr().out)
    assert [line[:2] for line in lines] == [(what, path) for what in ("detection", "training") for path in paths]
    assert all(float(rate) > 0 for *_, rate, _ in lines) and lines[0][3] == lines[2][3] == "1.00"


def test_the_script_for_a_gpu_runs_on_a_cpu(tmp_path, capfd, monkeypatch):
    monkeypatch.setattr(matching, "draw", matching.draw)  # put back what the benchmark replaces
    out = tmp_path / "gpu.json"
    monkeypatch.setattr(models, "cpu_has_bf16", lambda: True)  # emulated, it is as right, and slow
    few = {"min_size": 32, "max_size": 64, "box_batch_size_per_image": 4, "rpn_post_nms_top_n_train": 20}
    monkeypatch.setattr(gpu, "TINY", gpu.TINY | few)
    some = ["v1 float64", "resume", "mixed", "CUDA graphs", "profile"]
    words = ["--device", "cpu", "--tiny", "--repeats", "1", "--seconds", "9999", "--out", str(out)]
    assert gpu.main([*words, "--parts", *some]) == 0
    found, printed = json.loads(out.read_text()), capfd.readouterr().out.splitlines()
    assert [line.partition(":")[0] for line in printed[1:]] == list(found)[1:] and len(found) == 6
    assert {"exact resume", "mixed precision", "training, CUDA graphs, batch 1", "profile, batch 1"} < set(found)
    exact = found["fidelity v1 float64"]
    assert exact["detections"] > 0 and max(exact["boxes"], exact["scores"], exact["masks"]) < 1e-6
    assert found["exact resume"]["same bits"] and 0 < found["mixed precision"]["largest relative difference"] < 0.5
    assert min(found["training, CUDA graphs, batch 1"][side] for side in ("ours", "torchvision")) > 0


def test_what_fails_or_finds_no_time_loses_no_other_part(tmp_path, capfd, monkeypatch):
    def fail(settings):
        raise AssertionError("no such kernel\nmore")

    def hang(settings):
        time.sleep(30)

    parts = {"bad": gpu.Part(fail, 9), "slow": gpu.Part(hang, 0.2)}
    parts["good"] = gpu.Part(lambda settings: {"rate": 2.0, "its seconds": settings.seconds}, 9)
    monkeypatch.setattr(gpu, "parts_of", lambda *args: parts)
    assert gpu.main(["--device", "cpu", "--out", str(tmp_path / "a.json")]) == 1
    assert "bad: error AssertionError: no such kernel, seconds" in (out := capfd.readouterr().out)
    assert "slow: error TooLong: more than 0 s" in out and "good: rate 2, its seconds 4.5, seconds" in out
    del parts["bad"], parts["slow"]
    assert gpu.main(["--device", "cpu", "--seconds", "1e-9", "--out", str(tmp_path / "b.json")]) == 0
    assert set(json.loads((tmp_path / "b.json").read_text())["good"]) == {"left out", "seconds"}
