"""The benchmarks' harness: it times both sides, compares their results, and takes each side's memory apart."""

import json
import pickle
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from backbone.errors import InputError
from benchmarks import harness, models
from benchmarks.__main__ import BENCHMARKS, FIGURES, main, write_table
from benchmarks.harness import Benchmark, Settings, inputs, largest_difference, measure
from benchmarks.machine import profile
from network_files import matching, rpn
from tests.greedy import prepare_greedy

SETTINGS = Settings(torch.device("cpu"), None, 1)


def test_a_row_and_a_line_of_json_for_each(capsys):
    main(["nms_2000", "--repeats", "2", "--no-memory", "--data", "nowhere"])
    head, _, *table, row, empty, line = capsys.readouterr().out.splitlines()
    assert f"torch {torch.__version__}, torchvision " in head and head.endswith("drawn images")
    assert len(table) == 2 and row.startswith("| NMS, 2,000 boxes |") and row.count("|") == table[0].count("|")
    values = json.loads(line)
    assert (values["name"], values["difference"], values["repeats"]) == ("nms_2000", 0.0, 2)
    assert values["ratio"] == pytest.approx(values["ours"] / values["theirs"]) and not empty


def test_all_are_listed_and_others_are_refused(capsys):
    main(["--list"])
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == [b.name for b in BENCHMARKS]
    with pytest.raises(InputError, match="no benchmark is called x; there are nms_2000"):
        main(["x"])


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="peak memory is read from Linux' /proc")
def test_memory_is_each_sides_own(monkeypatch):
    context = harness.multiprocessing.get_context("fork")  # with all imported; a spawned process takes seconds for it
    monkeypatch.setattr(harness.multiprocessing, "get_context", lambda how: context)
    benchmark = Benchmark("greedy", "64 MiB beside none", prepare_greedy)
    assert pickle.dumps([*BENCHMARKS, benchmark, SETTINGS])  # as a spawned process is given them
    row = measure(benchmark, SETTINGS)
    assert 60 < row.ours_mib < 80 and row.theirs_mib < 16
    assert row.difference is None and row.markdown().startswith("| 64 MiB beside none | ")


def test_largest_difference():
    a = torch.tensor([1.0, 2.0])
    assert largest_difference(a, a + 0.5) == 0.5
    assert largest_difference([a, a], [a, a - 2]) == 2
    assert largest_difference(a, a[:1]) == largest_difference([a], []) == float("inf")
    assert largest_difference(a[:0], a[:0]) == 0


@pytest.mark.parametrize("name", ["mask_targets", "paste"])
def test_results_of_the_operators_agree(name):
    (benchmark,) = (b for b in BENCHMARKS if b.name == name)
    ours, theirs = (run() for run in benchmark.prepare(SETTINGS))
    assert benchmark.difference(ours, theirs) <= 1e-6


def test_drawn_images_have_the_objects_asked_for():
    (image, target), _ = inputs.photos(None, 2, objects=7)
    assert image.shape == (3, 480, 640) and len(target["masks"]) == len(target["boxes"]) == 7
    assert bool((target["boxes"][:, 2:] > target["boxes"][:, :2]).all())
    images, targets = inputs.as_torchvision([(image, target)], torch.device("cpu"))
    assert images[0].max() <= 1 and targets[0]["masks"].shape == (7, 480, 640)


def test_the_page_of_figures_has_a_place_for_the_table(tmp_path):
    text = FIGURES.read_text()
    copy = tmp_path / FIGURES.name
    copy.write_text(text)
    for row in ("| one |", "| two |"):
        write_table(copy, ["head", row])
    before, _, after = text.partition("<!-- benchmarks -->")
    assert copy.read_text().startswith(before + "<!-- benchmarks -->\nhead\n| two |\n<!-- end of benchmarks -->")
    assert copy.read_text().endswith(after.partition("<!-- end of benchmarks -->")[2])
    copy.write_text("nothing")
    with pytest.raises(InputError, match="marks"):
        write_table(copy, [])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["inference", "training_step_small"])
def test_results_of_the_models_agree(name, monkeypatch):
    monkeypatch.setattr(matching, "draw", matching.draw)  # put back what the benchmark replaces
    (benchmark,) = (b for b in models.BENCHMARKS if b.name == name)
    few = {"min_size": 128, "max_size": 128, "rpn_post_nms_top_n_test": 100, "box_batch_size_per_image": 64}
    options = {**models.SMALL, **few, "box_detections_per_img": 20}
    case = replace(benchmark.prepare.keywords["case"], images=1, backbone="resnet18", options=options)
    ours, theirs = (run() for run in benchmark.prepare.func(SETTINGS, case))
    assert benchmark.difference(ours, theirs) < 0.02  # in float32 a proposal or two may be others


def test_a_gpu_and_bfloat16_are_left_out_where_they_are_missing(capsys, monkeypatch):
    monkeypatch.setattr(models, "cpu_has_bf16", lambda: False)
    main(["gpu_training", "inference_bf16", "--repeats", "1", "--data", "nowhere"])
    output = capsys.readouterr().out
    assert "left out: gpu_training: it is for a GPU" in output
    assert "left out: inference_bf16: this processor" in output


def test_the_profile_counts_each_operator_once(capsys, monkeypatch):
    def nms():
        rpn.nms_of_rows(torch.rand(1, 300, 4).cumsum(2), torch.ones(1, 300, dtype=torch.bool), 0.5)

    def both():
        nms()
        torch.conv2d(torch.rand(1, 8, 64, 64), torch.rand(8, 8, 3, 3)).relu_().sort()

    monkeypatch.setattr(profile, "prepare_inference", lambda *args: (both, None))
    monkeypatch.setattr(profile, "prepare_training", lambda *args: (nms, None))
    main(["profile"])
    lines = [line.split("|") for line in capsys.readouterr().out.splitlines()[4:]]
    shares = {kind.strip(): [float(cell.strip(" %")) for cell in cells] for _, kind, *cells, _ in lines[1:]}
    assert shares["NMS"][0] > 0 and shares["NMS"][1] > 20 and shares["convolutions"] == [shares["convolutions"][0], 0]
    assert {"ReLU", "the rest"} < set(shares) and 99 < sum(share for share, _ in shares.values()) < 101
