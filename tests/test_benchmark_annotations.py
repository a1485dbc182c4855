"""The benchmark of opening: both sides read the same data, and a worker's own memory is told apart."""

import os
import sys
import tempfile

import pytest

from backbone.errors import InputError
from benchmarks import annotations
from benchmarks.harness import LeftOut


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path / "maskrcnn_benchmarks"


class Kept(list):
    send = list.append


def test_both_sides_open_the_same(place, monkeypatch):
    monkeypatch.setenv("MASKRCNN_CACHE", "as it was")
    folder = annotations.data_folder(20)
    ours, theirs = annotations.open_ours(folder, "off"), annotations.open_theirs(folder)
    assert len(ours) == len(theirs.imgs) == 20 and len(ours.annotations.boxes) == len(theirs.anns) > 20
    assert not ours.missing.any() and os.environ["MASKRCNN_CACHE"] == "as it was"
    drawn = folder.stat()
    assert annotations.data_folder(20).stat() == drawn and list(place.iterdir()) == [folder]


def test_left_out_where_the_disk_is_full(monkeypatch):
    monkeypatch.setattr(annotations, "NEEDED", 2**62)
    with pytest.raises(LeftOut, match="less than 2 GiB are free"):
        annotations.data_folder(20)
    with pytest.raises(InputError):  # which commands print as one line
        annotations.main(["--images", "20"])


@pytest.mark.skipif(sys.platform != "linux", reason="memory is read from Linux' /proc")
def test_memory_of_an_opening_and_of_workers():
    kept = Kept()
    annotations.measure_opening(20, "off", kept)
    annotations.measure_workers(20, "off", 1, kept)
    (count, seconds, _, peak), (first, last, objects, _) = kept
    assert count == 20 and seconds > 0 and peak > -1  # MiB: memory of before may be given back meanwhile
    assert len(first) == len(last) == 1 and last[0] > 0.1 and 20 < objects < 145
