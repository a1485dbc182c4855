"""TensorBoard's files, read back."""

import pytest
import torch
from PIL import Image

from backbone.errors import InputError
from train_utils.evaluation.numbers import STAT_NAMES
from train_utils.logs.board import TensorBoard, image_grid
from train_utils.logs.callbacks import EpochNumbers, StepNumbers
from train_utils.run.step import HostCopy

LOSSES = {"loss_classifier": 0.5, "loss_mask": 0.125}
STATS = {"bbox": [0.1 * i for i in range(11)] + [-1], "segm": [0.05 * i for i in range(12)]}


def events(folder):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    return EventAccumulator(str(folder / "tensorboard"), size_guidance={"scalars": 0, "images": 0}).Reload()


def test_tensorboard_holds_losses_lr_coco_numbers_and_images(tmp_path):
    board = TensorBoard(tmp_path)
    board.on_step(StepNumbers(0, 0, LOSSES, 0.1))
    board.on_step(StepNumbers(0, 1, None, 0.2))
    board.on_epoch(EpochNumbers(0, 2, STATS, LOSSES, {"segm": {"a/b": 0.25, "none there": None}}, {}))
    board.images(2, [[Image.new("RGB", (30, 20)), Image.new("L", (10, 20))]])
    board.close()
    read = events(tmp_path)
    tags = read.Tags()
    expected = {f"{t}/{n}" for t in STATS for n in STAT_NAMES} | {"train/lr"}
    expected |= {f"{part}/{n}" for part in ("train", "val") for n in (*LOSSES, "loss")}
    assert set(tags["scalars"]) == expected | {"AP50 of masks/a/b"}
    assert [(e.step, round(e.value, 6)) for e in read.Scalars("train/lr")] == [(0, 0.1), (1, 0.2)]
    assert [e.step for e in read.Scalars("train/loss")] == [0]
    assert read.Scalars("segm/AP50")[0].value == pytest.approx(0.05)
    (image,) = read.Images(tags["images"][0])
    assert (image.height, image.width) == (256, 384 + 4 + 128)


def test_tensorboard_resumes_without_doubled_steps(tmp_path):
    first = TensorBoard(tmp_path)
    for step in range(5):
        first.on_step(StepNumbers(0, step, LOSSES, 1.0))
        if step == 2:
            first.on_epoch(EpochNumbers(0, 3, STATS, {}, {}, {}))
    first.close()
    second = TensorBoard(tmp_path, steps_done=3)
    for step in range(3, 6):
        second.on_step(StepNumbers(0, step, LOSSES, 2.0))
    second.close()
    points = [(e.step, e.value) for e in events(tmp_path).Scalars("train/lr")]
    assert points == [(0, 1.0), (1, 1.0), (2, 1.0), (3, 2.0), (4, 2.0), (5, 2.0)]
    assert [e.step for e in events(tmp_path).Scalars("segm/AP")] == [2]  # of the epoch that had ended


def test_disabled_tensorboard_writes_nothing(tmp_path):
    board = TensorBoard(tmp_path, enabled=False)
    board.on_step(StepNumbers(0, 0, LOSSES, 0.1))
    board.on_epoch(EpochNumbers(0, 1, STATS, {}, {}, {}))
    board.images(1, [[Image.new("RGB", (3, 2))]])
    board.close()
    assert list(tmp_path.iterdir()) == []


def test_image_grid_places_rows_below_each_other():
    red, blue = Image.new("RGB", (8, 4), "red"), Image.new("RGB", (2, 4), "blue")
    grid = image_grid([[red, blue], [blue]], height=8, gap=2)
    assert grid.size == (16 + 2 + 4, 8 + 2 + 8)
    at = [grid.getpixel(xy) for xy in ((15, 7), (16, 0), (18, 0), (0, 10), (4, 10))]
    assert at == [(255, 0, 0), (255,) * 3, (0, 0, 255), (0, 0, 255), (255,) * 3]


@pytest.mark.parametrize("size", [(6000, 4), (4, 6000), (9000, 1)])
def test_the_grid_of_a_line_scan_is_bounded(size):
    grid = image_grid([[Image.new("RGB", size, "red")] * 2] * 3, height=16)
    assert grid.width <= 2 * 4 * 16 + 4 and grid.height <= 3 * (16 + 4) and grid.getpixel((0, 0)) == (255, 0, 0)


def test_a_value_on_the_way_is_read_a_step_later(tmp_path):
    read = []

    class Late(HostCopy):
        def read(self):
            read.append(float(super().read()))
            return super().read()

    board = TensorBoard(tmp_path)
    board.on_step(StepNumbers(0, 0, LOSSES, 0.1, {"gradient norm": Late(torch.tensor(3.0))}))
    assert read == []
    board.on_step(StepNumbers(0, 1, LOSSES, 0.1, {"gradient norm": Late(torch.tensor(5.0))}))
    assert read == [3.0]
    board.close()
    assert [(e.step, e.value) for e in events(tmp_path).Scalars("train/gradient norm")] == [(0, 3.0), (1, 5.0)]


def test_the_run_is_told_as_text(tmp_path):
    board = TensorBoard(tmp_path)
    board.run(0, "python train.py --lr 0.1", flags={"lr": 0.1, "amp": False})
    board.close()
    read = events(tmp_path)
    texts = [
        read.Tensors(f"run/{name}/text_summary")[0].tensor_proto.string_val[0].decode() for name in ("command", "flags")
    ]
    assert texts[0].strip() == "python train.py --lr 0.1" and "| lr | `0.1` |" in texts[1]


def test_names_that_are_no_text_are_told_as_escapes_and_refused_for_the_folder(tmp_path):
    board = TensorBoard(tmp_path)
    board.run(0, "python train.py --data-path d\udcff", flags={"data_path": "d\udcff"})
    board.close()
    assert (
        b"--data-path d\\udcff" in (events(tmp_path).Tensors("run/command/text_summary")[0].tensor_proto.string_val[0])
    )
    with pytest.raises(InputError, match="not UTF-8; give another --output-dir"):
        TensorBoard(tmp_path / "o\udcff")
