"""Predictions that are cut, by every signal and by kill -9: nothing is lost, and going on ends in the same bytes."""

import json
import os
import re
import signal
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

import predict
from backbone.errors import InputError
from tests.faults.processes import wait_for
from tests.small_runs import call
from tests.tiny_model import write_checkpoint, write_coco, write_images
from train_utils.evaluation import tiled_model
from train_utils.io.plain_text import counted
from train_utils.prediction import pipeline
from train_utils.prediction.kept import kept_file
from train_utils.prediction.kept.growing_results import GrowingResults
from train_utils.prediction.kept.kept_file import Lines
from train_utils.prediction.predictor import Predictor
from train_utils.prediction.tally import Tally

IMAGES = 4


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return write_checkpoint(tmp_path_factory.mktemp("weights") / "model.pth", width=8)


class Runs:
    """predict.py on four images as `kind` reads them; `seen` counts detections, the `cut`-th of which does `act`."""

    def __init__(self, kind, weights, monkeypatch):
        self.folder, self.seen, self.cut, self.act = write_coco(Path("data")), [], None, None
        self.result = Path("o/test_result.json" if kind == "folder" else "o/R.json")
        source = ("--img-path", "data/images", "--output-dir", "o")
        if kind != "folder":
            source = ("--coco-json", "data/instances_val.json", "--image-dir", "data/images", "--output", self.result)
        self.flags = ("--weights-path", weights, "--device", "cpu", "--score", 0, *source)
        detect = Predictor.look_in

        def counted(predictor, image):
            self.seen.append(image)
            if len(self.seen) == self.cut:
                self.act()
            return detect(predictor, image)

        monkeypatch.setattr(Predictor, "look_in", counted)

    def __call__(self, *more, cut=None, act=None):
        self.seen.clear()
        self.cut, self.act = cut, act
        return call(predict, *self.flags, *more)

    @property
    def unfinished(self):
        return self.result.with_name(self.result.name + ".unfinished")


@pytest.fixture(params=["folder", "json"])
def runs(request, weights, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return Runs(request.param, weights, monkeypatch)


def stop():
    raise KeyboardInterrupt


def kill_once_kept(unfinished):
    """Kills this process when an image is kept: that is done beside the next one."""
    wait_for(lambda: unfinished.exists() and unfinished.read_bytes().count(b"\n") == 2)
    os.kill(os.getpid(), signal.SIGKILL)


def images_of(path):
    return list(dict.fromkeys(result["image_id"] for result in json.loads(path.read_text())))


@pytest.mark.parametrize(
    ("runs", "number"),
    [("folder", signal.SIGINT), ("folder", signal.SIGTERM), ("folder", signal.SIGHUP), ("json", signal.SIGTERM)],
    indirect=["runs"],
)
def test_a_signal_loses_no_complete_image(runs, number, capsys):
    assert runs() == 0
    whole, said = runs.result.read_bytes(), capsys.readouterr().out.splitlines()[-1]
    runs.result.write_text('[{"image_id": "of another call"}]')
    assert runs(cut=3, act=lambda: os.kill(os.getpid(), number)) == 128 + number
    told = f"stopped: 2 of 4 images predicted, {counted(len(json.loads(runs.result.read_text())), 'detection')} in"
    assert f"{told} {runs.result}; the same command with --resume goes on\n" in capsys.readouterr().out
    assert len(images_of(runs.result)) == 2 and "of another call" not in images_of(runs.result)
    assert runs("--resume") == 0 and len(runs.seen) == 2
    out = capsys.readouterr().out
    assert "resuming: 2 of 4 images done" in out and out.splitlines()[-1] == said
    assert runs.result.read_bytes() == whole and not runs.unfinished.exists()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
def test_a_kill_loses_the_images_in_progress_alone(runs, capsys):
    assert runs() == 0
    whole = runs.result.read_bytes()
    runs.result.write_text('"of another call"')
    child = os.fork()
    if child == 0:
        runs(cut=2, act=lambda: kill_once_kept(runs.unfinished))
        os._exit(0)
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
    assert not runs.result.exists()  # it would look current
    with open(runs.unfinished, "ab") as file:
        file.write(b'{"at": 1, "image"')  # as a power cut leaves it
    assert runs("--resume", cut=2, act=stop) == 130
    assert runs("--resume") == 0 and len(runs.seen) == 2
    assert runs.result.read_bytes() == whole and not runs.unfinished.exists()
    capsys.readouterr()
    assert runs("--resume", cut=1, act=stop) == 130 and runs.result.read_bytes() == whole  # of an earlier call, whole
    out = capsys.readouterr().out
    assert "starting fresh" in out and f"of an earlier call, of {time.strftime('%Y-')}" in out
    assert "stopped: 0 of 4 images predicted; the same command" in out
    assert runs("--resume") == 0 and len(runs.seen) == 4 and runs.result.read_bytes() == whole


def test_what_has_changed_is_done_again(runs, capsys):
    assert runs() == 0
    whole = runs.result.read_bytes()
    assert runs(cut=4, act=stop) == 130
    write_images(Path("data/images"))  # the same pixels at another time
    capsys.readouterr()
    assert runs("--resume") == 0 and len(runs.seen) == 4
    assert "resuming: 0 of 4 images done" in (out := capsys.readouterr().out) and "; 3 images that it has kept" in out
    assert runs.result.read_bytes() == whole
    assert runs(cut=4, act=stop) == 130
    if drawn := runs.result.name == "test_result.json":
        Path("o/1.jpg").unlink()
    assert runs("--resume") == 0 and len(runs.seen) == 1 + drawn
    assert runs(cut=2, act=stop) == 130
    assert runs("--resume", "--mask-threshold", 0.4) == 2
    assert "was begun with another mask_threshold; give the same, or leave --resume out" in capsys.readouterr().err
    assert runs() == 0 and len(runs.seen) == 4 and runs.result.read_bytes() == whole
    assert f"{runs.unfinished}: 1 image of an earlier call that was cut; it stays" in capsys.readouterr().out
    runs.unfinished.write_bytes(b"\0\0")
    assert runs("--resume") == 2 and "is damaged" in capsys.readouterr().err


def test_an_error_keeps_what_is_complete_and_one_line(runs, capsys):
    def fail():
        raise InputError("bad")

    assert runs(cut=2, act=fail) == 2
    out, err = capsys.readouterr()
    assert re.fullmatch(r"error: \S*1\.png: bad\n", err)
    assert f"ended by an error: 1 of 4 images kept in {runs.unfinished}; the same" in out
    assert runs("--resume") == 0 and len(runs.seen) == 3


def test_what_earlier_images_count_for_is_not_forgotten(runs, capsys, monkeypatch):
    Path("data/images/3.png").write_bytes(b"")
    limit = ("--box-detections-per-img", 2)
    assert runs(*limit) == 1
    said = [line for line in capsys.readouterr().out.splitlines() if " images " in line]
    assert runs(*limit, cut=3, act=stop) == 130
    capsys.readouterr()
    older = runs.unfinished.with_name(runs.unfinished.name + "-2")  # of a version that had one size a line
    older.write_bytes(re.sub(rb'"sizes": \[\[(.*?), 1\]\]', rb'"size": \1', runs.unfinished.read_bytes()))
    assert b'"size": [48, 64]' in older.read_bytes()
    stamped, stamp, tallied = [], pipeline.stamp_of, Tally()
    for line in Lines(older):
        tallied.add(line.about)
    assert tallied.sizes == {(48, 64): 1, (64, 48): 1}
    monkeypatch.setattr(pipeline, "stamp_of", lambda path: stamped.append(str(path)) or stamp(path))
    assert runs(*limit, "--resume") == 1
    older.unlink()
    assert [sum(name in path for path in stamped) for name in ("0.png", "1.png")] == [1, 1]  # of both files
    lines = [line for line in capsys.readouterr().out.splitlines() if " images " in line]
    assert lines[1:] == said and "3 images have 2 detections" in said[0] and "1 could not be read" in said[1]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
def test_a_kill_within_a_large_image_loses_the_tiles_in_progress_alone(weights, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(pipeline, "EVERY", 0)
    pixels = np.random.default_rng(0).integers(0, 256, (110, 110, 3), dtype=np.uint8)
    pixels[:64, :64] = 7  # the first of 4 tiles
    Image.fromarray(pixels).save("large.png")
    looked, seen, look = [], {}, tiled_model.looked_at

    def watched(*given):
        looked.append(1)
        if len(looked) in seen:
            seen[len(looked)]()
        return look(*given)

    monkeypatch.setattr(tiled_model, "looked_at", watched)

    def run(*more, **acts):
        looked.clear()
        seen.clear()
        seen.update({int(number.strip("_")): act for number, act in acts.items()})
        words = ("--weights-path", weights, "--device", "cpu", "--score", 0, "--img-path", "large.png", "--tile", 64)
        return call(predict, *words, *more)

    assert run() == 0 and len(looked) == 3
    written = [Path("test_result.json"), Path("test_result.jpg")]
    whole = [path.read_bytes() for path in written]
    capsys.readouterr()
    child = os.fork()
    if child == 0:
        run(_2=lambda: os.kill(os.getpid(), signal.SIGKILL))
        os._exit(0)
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
    assert run("--resume", _2=stop) == 130
    out = capsys.readouterr().out
    assert "resuming: 0 of 1 image done, and tiles of 1 more, in" in out and "also within an image" in out
    assert run("--resume") == 0 and len(looked) == 1
    assert [path.read_bytes() for path in written] == whole and not Path("test_result.json.unfinished").exists()
    assert run(_3=stop) == 130
    os.utime("large.png", (0, 0))
    assert run("--resume") == 0 and len(looked) == 3 and written[0].read_bytes() == whole[0]


@pytest.mark.parametrize("at_once", [1, 2000])
def test_two_processes_with_one_json(tmp_path, monkeypatch, at_once):
    monkeypatch.setattr(kept_file, "WRITTEN_AT_ONCE", at_once)
    path = tmp_path / "test_result.json"
    with GrowingResults(path, {}, 2) as one, GrowingResults(path, {}, 2) as two:
        for at in (1, 0):
            one.add(at, {}, [{"one": at}])
            two.add(at, {}, [{"two": at}, {"two": at}])
        one.finish()
        one.remove()
        assert json.loads(path.read_text()) == [{"one": 0}, {"one": 1}]
        two.finish()
        two.remove()
    assert path.read_text() == json.dumps([{"two": 0}, {"two": 0}, {"two": 1}, {"two": 1}])
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_of_two_calls_the_cut_one_goes_on_when_the_other_is_done(tmp_path):
    path = tmp_path / "test_result.json"
    done, cut = GrowingResults(path, {}, 2), GrowingResults(path, {}, 2)
    done.add(0, {"of": "done"}, [])
    cut.add(0, {"of": "cut"}, [])
    done.finish()
    done.remove()
    cut.file.close()
    assert [about["of"] for about in GrowingResults(path, {}, 2).resume(lambda *_: True)] == ["cut"]
    assert [p.name for p in tmp_path.glob("*.unfinished*")] == [f"{path.name}.unfinished-2"]


def test_what_cut_calls_have_kept_stays_and_the_most_useful_goes_on(tmp_path, capsys):
    path = tmp_path / "R.json"

    def cut(images, first=0, **asked):
        """A call without --resume that is cut after so many images."""
        kept = GrowingResults(path, asked, 99)
        kept.share()
        for at in range(first, first + images):
            kept.add(at, {"first": first}, [at])
        kept.file.close()
        said = capsys.readouterr().out
        assert said.count("of an earlier call that was cut; it stays: --resume goes on with it") == len(kept._staying)
        return said

    assert cut(5) == ""
    assert f"{path}.unfinished: 5 images of an earlier call" in cut(2, first=10)
    cut(3, other=1)
    cut(1)
    assert f"{path}.unfinished-4: of an earlier call that was cut; not used, as 3 others" in cut(4, first=20)
    assert [p.name for p in sorted(tmp_path.iterdir())] == [f"R.json.unfinished{end}" for end in ("", "-2", "-3", "-4")]
    fitting = GrowingResults(path, {}, 99)
    assert [about["at"] for about in fitting.resume(lambda at, _: at >= 10)] == [20, 21, 22, 23]
    assert [about["at"] for about in GrowingResults(path, {"other": 1}, 99).resume(lambda *_: True)] == [0, 1, 2]
    fitting.finish()
    fitting.remove()
    assert not (tmp_path / "R.json.unfinished-4").exists() and json.loads(path.read_text()) == [20, 21, 22, 23]


def test_what_another_process_kept_before_a_cut_does_not_come_back_where_it_is_outdated(tmp_path):
    path, told = tmp_path / "R.json", []
    part = tmp_path / "R.json.unfinished.1"
    for file, at in ((path.with_name("R.json.unfinished"), 0), (part, 1)):
        file.write_text('{}\n{"of": "before", "at": ' + f'{at}}}\t["before"]\n')
    two = SimpleNamespace(size=2, rank=0, is_main=True, gather=lambda value: [value])
    kept = GrowingResults(path, {}, 2, world=two)
    assert [about["at"] for about in kept.resume(lambda at, _: at == 0)] == [0]  # the other image has changed
    with open(part, "a") as file:
        file.write('{"at": 1, "of": "now"}\t["now"]\n')
    kept.finish(told.append)
    assert json.loads(path.read_text()) == ["before", "now"] and [about["of"] for about in told] == ["now"]
