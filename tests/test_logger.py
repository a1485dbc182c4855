"""Console lines and results files, read back."""

import io
import json
import math
import re

import pytest
import torch

from backbone.errors import InputError
from train_utils.evaluation.numbers import STAT_NAMES
from train_utils.logs import console
from train_utils.logs.console import ImageProgress, Left, MetricLogger, SmoothedValue, duration
from train_utils.logs.result_files import RENAMED, ResultsWriter

LOSSES = {
    "loss_classifier": 0.5,
    "loss_box_reg": 0.25,
    "loss_mask": 0.125,
    "loss_objectness": 0.0625,
    "loss_rpn_box_reg": 0.03125,
}
STATS = {"bbox": [0.1 * i for i in range(11)] + [-1], "segm": [0.05 * i for i in range(12)]}


# --- console -----------------------------------------------------------------------------------------------


def test_smoothed_value_median_of_the_last_20_and_average_of_all():
    meter = SmoothedValue()
    values = [float(v * v) for v in range(50)]
    for value in values:
        meter.update(value)
    assert meter.median == torch.tensor(values[-20:]).median().item()
    assert meter.average == pytest.approx(sum(values[-20:]) / 20)
    assert meter.global_average == pytest.approx(sum(values) / 50)


def test_console_line_to_the_letter():
    out = io.StringIO()
    logger = MetricLogger("Epoch: [0]", total=1924, first=199, print_freq=200, stream=out)
    logger.step(1.0, 0.5, {"loss_mask": 0.5, "loss_box_reg": 1.0}, lr=0.001)
    logger.step(0.5, 0.25, {"loss_mask": 0.25, "loss_box_reg": 0.5}, lr=0.0010089)
    assert out.getvalue() == (
        "Epoch: [0]  [ 200/1924]  eta: 0:21:32  lr: 0.001009  loss: 0.7500 (1.1250)  "
        "loss_mask: 0.2500 (0.3750)  loss_box_reg: 0.5000 (0.7500)  time: 0.7500  data: 0.3750\n"
    )


def test_lines_come_every_print_freq_and_at_the_end():
    out = io.StringIO()
    logger = MetricLogger("Epoch: [0]", total=12, print_freq=5, stream=out)
    for _ in range(12):
        logger.step(0.25, 0.0, None, 0.1)
    logger.close()
    assert re.findall(r"\[ *(\d+)/12\]", out.getvalue()) == ["0", "5", "10", "11"]
    assert "loss" not in out.getvalue()
    assert out.getvalue().splitlines()[-1] == "Epoch: [0]  total time: 0:00:03 (0.2500 s / it)"


def test_the_eta_is_the_runs():
    out = io.StringIO()
    logger = MetricLogger("Epoch: [0]", total=10, print_freq=1, stream=out)
    logger.left = Left(steps=20, seconds=100.0)
    logger.step(2.0, 0.0, None, 0.1)
    assert "[ 0/10]  eta: 0:02:38  " in out.getvalue()


def test_a_line_comes_when_long_none_came(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(console.time, "monotonic", lambda: now[0])
    out = io.StringIO()
    logger = MetricLogger("Epoch: [0]", total=12, print_freq=10, stream=out)
    images = ImageProgress("Test: [0]", 100, stream=out)
    for _ in range(8):
        now[0] += 12
        logger.step(12.0, 0.0, None, 0.1)
        images.add(5)
    assert re.findall(r"\[ *(\d+)/12\]", out.getvalue()) == ["0", "3", "6"]
    assert re.findall(r"^Test: .*", out.getvalue(), re.M) == [
        "Test: [0]  [ 15/100] images  eta: 0:03:24",
        "Test: [0]  [ 30/100] images  eta: 0:02:48",
    ]


def test_a_duration_in_words():
    words = [duration(seconds) for seconds in (0.2, 45, 720, 5400, 108_000, 345_600)]
    assert words == ["1 s", "45 s", "12 minutes", "1.5 hours", "30 hours", "4 days"]


def test_disabled_logger_averages_in_silence():
    out = io.StringIO()
    logger = MetricLogger("Epoch: [0]", total=1, enabled=False, stream=out)
    logger.step(1.0, 0.0, LOSSES, 0.1)
    logger.close()
    assert out.getvalue() == "" and logger.averages()["loss"] == sum(LOSSES.values())


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_terminal_gets_a_bar_and_keeps_the_last_line():
    out = Terminal()
    logger = MetricLogger("Epoch: [0]", total=3, print_freq=1, stream=out)
    for _ in range(3):
        logger.step(0.1, 0.0, LOSSES, 0.1)
    assert "\r" in out.getvalue() and "\n" not in out.getvalue()
    logger.close()
    lines = out.getvalue().rsplit("\r", 1)[1].splitlines()
    assert len(lines) == 2
    assert "Epoch: [0]  [2/3]  eta: 0:00:00" in lines[0] and "loss_mask: 0.1250" in lines[0]


def test_steps_without_losses_are_not_averaged():
    logger = MetricLogger("Epoch: [0]", total=3, enabled=False)
    assert logger.averages() == {}
    logger.step(0.1, 0.0, None, 0.1)
    logger.step(0.1, 0.0, LOSSES, 0.1)
    assert logger.averages() == {"loss": 0.96875, **LOSSES}


def test_resumed_epoch_ends_with_the_same_line():
    def run(logger, steps):
        for step in steps:
            logger.step(0.1, 0.0, {k: v * math.sin(step) for k, v in LOSSES.items()}, 0.1 / (step + 1))

    whole = MetricLogger("Epoch: [0]", total=40, enabled=False)
    run(whole, range(40))
    first = MetricLogger("Epoch: [0]", total=40, enabled=False)
    run(first, range(27))
    state = json.loads(json.dumps(first.state_dict()))  # plain values
    second = MetricLogger("Epoch: [0]", total=40, first=27, enabled=False)
    second.load_state_dict(state)
    run(second, range(27, 40))
    assert second.line(39) == whole.line(39)
    assert second.state_dict() == whole.state_dict()


# --- results files -----------------------------------------------------------------------------------------


def result_lines(folder, name="det"):
    (path,) = folder.glob(f"{name}_results*.txt")
    assert re.fullmatch(rf"{name}_results\d{{8}}-\d{{6}}\.txt", path.name)
    return path.read_text().splitlines()


def test_results_line_to_the_letter(tmp_path):
    writer = ResultsWriter(tmp_path)
    writer.write(3, STATS, loss=1.23456, lr=0.0012345678, val_losses=LOSSES)
    assert result_lines(tmp_path) == [
        "epoch:3 0.0000  0.1000  0.2000  0.3000  0.4000  0.5000  0.6000  0.7000  0.8000  0.9000  1.0000  "
        "-1.0000  1.2346  0.001235"
    ]
    (record,) = json.loads((tmp_path / "det_results.json").read_text())
    assert record == {
        "epoch": 3,
        **dict(zip(STAT_NAMES, STATS["bbox"], strict=True)),
        "loss": 1.23456,
        "lr": 0.0012345678,
        "val_losses": LOSSES,
    }
    assert json.loads((tmp_path / "seg_results.json").read_text())[0]["APm"] == STATS["segm"][4]
    assert len(list(tmp_path.iterdir())) == 4  # nothing temporary stays


def test_resume_neither_loses_nor_repeats_lines(tmp_path):
    first = ResultsWriter(tmp_path)
    for epoch in range(5):
        first.write(epoch, STATS, loss=float(epoch), lr=0.1)
    for iou_type in STATS:  # the run began on another day
        first.path(iou_type).rename(str(first.path(iou_type)).replace(first.stamp, "20240131-235959"))
    with open(tmp_path / "det_results20240131-235959.txt", "a") as file:
        file.write("epoch:1 0.1  0.")  # torn by a power cut
    second = ResultsWriter(tmp_path, first_epoch=3)
    assert second.stamp == "20240131-235959"
    assert [line.split()[0] for line in result_lines(tmp_path)] == ["epoch:0", "epoch:1", "epoch:2"]
    for epoch in (3, 3, 4):
        second.write(epoch, STATS, loss=100.0 + epoch, lr=0.1)
    lines = result_lines(tmp_path)
    assert [line.split()[0] for line in lines] == [f"epoch:{e}" for e in range(5)]
    assert [float(line.split()[-2]) for line in lines] == [0, 1, 2, 103, 104]
    assert [r["loss"] for r in second.history("segm")] == [0, 1, 2, 103, 104]
    assert [r["loss"] for r in json.loads((tmp_path / "seg_results.json").read_text())] == [0, 1, 2, 103, 104]


def test_epoch_without_losses_is_nan_in_the_line_and_null_in_the_json(tmp_path):
    ResultsWriter(tmp_path).write(0, STATS, loss=None, lr=0.1, val_losses={"loss_mask": math.inf})
    assert result_lines(tmp_path)[0].split()[-2] == "nan"
    (record,) = json.loads((tmp_path / "det_results.json").read_text())
    assert record["loss"] is None and record["val_losses"] == {"loss_mask": None}


def test_a_json_with_the_names_of_earlier_versions_is_continued_with_the_new_ones(tmp_path):
    assert set(RENAMED) >= {"AP_small", "AP_medium", "AP_large", "AR_1", "AR_10", "AR_100", "AR_large"}
    first = ResultsWriter(tmp_path)
    first.write(0, STATS, loss=1.0, lr=0.1, seconds=2.0)
    expected, text = first.history("bbox"), first.path("bbox", ".json").read_text()
    for old, new in RENAMED.items():
        text = text.replace(f'"{new}"', f'"{old}"')
    first.path("bbox", ".json").write_text(text)
    assert '"AP_small": ' in text and '"AR_100": ' in text and "APs" not in text
    second = ResultsWriter(tmp_path, first_epoch=1)
    assert second.history("bbox") == expected
    assert json.loads(second.path("bbox", ".json").read_text()) == expected


@pytest.mark.parametrize("text", ["{", "[1]", '[{"a": 1}]', '{"a": 1}'])
def test_foreign_json_is_named_and_left_alone(tmp_path, text):
    path = tmp_path / "det_results.json"
    path.write_text(text)
    with pytest.raises(InputError, match="det_results.json: not a results file"):
        ResultsWriter(tmp_path)
    assert path.read_text() == text
