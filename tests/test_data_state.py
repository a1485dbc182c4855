"""Checksums of data: what has changed between two of them is named with counts, and nothing else is."""

import os
import shutil

import pytest
import torch

from backbone.errors import InputError
from tests.faults.catalogue import Data
from tests.faults.hostile_data import voc
from tests.small_runs import flags
from tests.tiny_model import write_coco
from train_utils.checkpoints.data_state import compare, data_state, rewritten
from train_utils.cli.parser import Parser
from train_utils.data.opening import open_data
from train_utils.io import checksums
from train_utils.processes.distributed import World
from train_utils.run.config import add_arguments
from train_utils.run.loop import run


def gone(data):
    data.images.pop()
    data.annotations.pop()


def swapped(data):
    data.images[:2] = data.images[1::-1]


def new_image(data):
    data.images.append({**data.images[0], "id": 77, "file_name": "0b.png"})
    shutil.copy(data.image_dir / "0.png", data.image_dir / "0b.png")


def relabelled(data):
    for annotation in data.annotations[1:]:
        annotation["category_id"] = 4


def replaced(data):
    """Another image of the same size, also in bytes."""
    path = data.image_dir / "1.png"
    content = bytearray(path.read_bytes())
    content[-20] ^= 1
    path.write_bytes(content)


def longer(data):
    with open(data.image_dir / "2.png", "ab") as file:
        file.write(b"more")


CHANGES = {
    gone: ["1 of 4 images are gone"],
    new_image: ["1 image is new"],
    swapped: ["the images have another order"],
    relabelled: ["other labels of 3 images, such as 1.png"],
    lambda data: data.annotations[2].update(bbox=[4, 4, 20, 23]): ["other boxes of 1 image, such as 2.png"],
    lambda data: data.annotations[2].update(area=3): ["other boxes of 1 image, such as 2.png"],
    lambda data: data.annotations[3]["segmentation"][0].__setitem__(0, 5): ["other masks of 1 image, such as 3.png"],
    lambda data: data.images[3].update(width=44): ["other sizes of 1 image, such as 3.png"],
    lambda data: data.add(): [f"other {what} of 1 image, such as 1.png" for what in ("labels", "boxes", "masks")],
    replaced: ["other image files of 1 image, such as 1.png"],
    longer: ["other image files of 1 image, such as 2.png"],
    lambda data: (gone(data), relabelled(data)): ["1 of 4 images are gone", "other labels of 2 images, such as 1.png"],
    lambda data: None: [],
    lambda data: [annotation.update(id=annotation["id"] + 5) for annotation in data.annotations]: [],
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_has_changed_is_named_with_counts(tmp_path, change):
    data = Data(tmp_path)
    before = data_state(open_data(tmp_path).train)
    change(data)
    data.write()
    train = open_data(tmp_path).train
    assert compare(before, data_state(train), train) == (CHANGES[change], [])


def touch(data_set, positions=range(4)):
    for i in positions:
        os.utime(data_set.file_name(i), ns=(1, 10**18 + i))


def test_copied_data_passes_and_is_said(tmp_path, monkeypatch):
    train = open_data(write_coco(tmp_path)).train
    before = data_state(train)
    assert not rewritten(train, before).any()
    touch(train)
    assert rewritten(train, before).all()
    said = (
        "the image files have other times, 4 of 4; their sizes are those of before, and so is the content of the {} "
        "that were compared"
    )
    assert compare(before, data_state(train), train) == ([], [said.format(4)])
    # a share alone is compared
    size = sum(path.stat().st_size for path in (tmp_path / "images").iterdir())
    monkeypatch.setattr(checksums.file_checksums, "__defaults__", (size - 1,))
    share = data_state(train)
    assert (share["image contents"] != 0).tolist() == [True, False, True, False]
    touch(train, [1])
    assert compare(share, data_state(train), train) == ([], [])  # the time that it had
    os.utime(train.file_name(1), ns=(1, 7))
    assert compare(share, data_state(train), train)[0] == ["image files written anew of 1 image, such as 1.png"]
    for i in range(4):
        os.utime(train.file_name(i), ns=(1, 7))
    assert compare(share, data_state(train), train) == ([], [said.format(2)])


def test_what_varies_is_not_compared(tmp_path):
    data = Data(tmp_path)
    before = open_data(tmp_path).train
    before.annotations.images.varies = True
    relabelled(data)
    data.write()
    train = open_data(tmp_path).train
    train.annotations.images.varies = True
    state = data_state(train)
    assert compare(data_state(before), state, train) == ([], []) and not rewritten(train, state).any()
    gone(data)
    data.write()
    assert compare(state, data_state(open_data(tmp_path).train), train)[0] == ["1 of 4 images are gone"]


def test_masks_in_files_count(tmp_path):
    """The masks of VOC data are read while the run lasts."""
    voc()(tmp_path, None)
    train = open_data(tmp_path / "data", "train").train
    before = data_state(train)
    path = train.annotations.masks.mask_path(train.rows[0])
    path.write_bytes(path.read_bytes() + b"x")
    assert compare(before, data_state(train), train)[0] == [f"other mask files of 1 image, such as {path.stem}.jpg"]
    assert rewritten(train, before).tolist() == [True] + [False] * (len(train) - 1)


def renamed(data):
    relabelled(data)
    data.content["categories"][0]["name"] = "disc"


class OfTwo(World):
    """Process 1 of two, as process 0 sees it: `gather` gives what process 0 has stated before."""

    stated = None

    def gather(self, value):
        if not isinstance(value, tuple):
            return [value, value]
        if self.rank == 0:
            OfTwo.stated = value
            raise InterruptedError
        return [OfTwo.stated, value]

    def broadcast(self, value):
        return value

    def on_main(self, function, *args):
        return function(*args)


def start(rank, data, folder, *more, host="a", monkeypatch):
    parser = Parser()
    add_arguments(parser)
    monkeypatch.setattr("socket.gethostname", lambda: host)
    run(parser.given(flags(data, folder / "run", *more)), OfTwo(rank, 2, rank, torch.device("cpu")))


@pytest.mark.parametrize(
    ("more", "change", "told"),
    [
        (("--lr", 0.02, "--seed", 3), None, "--lr 0.02, not 0.002; --seed 3, not 0"),
        ((), renamed, "other class names or ids; other labels of train; other labels of val"),
        ((), gone, "images of train 3, not 4; images of val 3, not 4"),
        ((), replaced, "other image contents of train; other image contents of val"),
        (("--workers", 1, "--device", "cpu", "--dist-timeout", 7), None, None),
    ],
)
def test_a_process_that_differs_is_named(tmp_path, monkeypatch, more, change, told):
    data = Data(tmp_path / "data")
    with pytest.raises(InterruptedError):
        start(0, tmp_path / "data", tmp_path, monkeypatch=monkeypatch)
    shutil.copytree(tmp_path / "data", tmp_path / "other", copy_function=shutil.copyfile)  # with other times
    other = Data(tmp_path / "other")
    if change:
        change(other)
        other.write()
    del data
    # process 1 finds it as process 0 does, whose line it is
    expected = (SystemExit, "2") if told else (AssertionError, "went on")
    monkeypatch.setattr("train_utils.run.loop.build_model", went_on)
    with pytest.raises(expected[0], match=expected[1]):
        start(1, tmp_path / "other", tmp_path, *more, host="b", monkeypatch=monkeypatch)
    if told:
        monkeypatch.setattr(OfTwo, "is_main", True)
        with pytest.raises(InputError) as error:
            start(1, tmp_path / "other", tmp_path, *more, host="b", monkeypatch=monkeypatch)
        assert f"Unlike process 0 on a, process 1 on b: {told}. Give all" in str(error.value)


def went_on(*_):
    raise AssertionError("went on")
