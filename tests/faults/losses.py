"""What was lost or half-written, and what strangers' folders could do: a fault of each kind, injected into a command.

The commands run in processes of their own, forked from one that has everything imported, so that a fault may be a kill
or a signal to a whole group. A kind is a function (folder, rng) that injects one fault and asserts what is left.
"""

import importlib
import json
import os
import pty
import random
import re
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from tests.faults import Outcome, processes, progress
from tests.faults.processes import children, context, end_all, fill, finished_steps, wait_for
from tests.small_runs import SMALL, differences
from tests.tiny_model import write_checkpoint
from train_utils.cli.command import run_command
from train_utils.data.formats.shapes import make_shapes
from train_utils.io import unfinished
from train_utils.io.plain_text import CONTROL

WHAT = "results, tools, packs, links, names, ports, full disks, closed terminals: nothing lost or half-written"
CLASSES = {1: "rectangle", 2: "ellipse", 3: "triangle"}
WAIT = 120.0  # seconds for a command to end
ODD = (  # in names
    " ", "(3)", "'", '"', "\n", "\x1b[32m", "$(echo)", ";", "`", "\\", "\u202e", "é", "*", "\t", "&", "|", "!",
)  # fmt: skip
TIMES = 5  # faults of each kind in the long version


def start(script: str, fault: tuple, *words: object, log: Path, terminal: str | None = None, nohup: bool = False):
    """A command; fault: (module or module:class, name, which call, a signal's number, "full" or "truncate PATH").

    terminal: a pseudo-terminal's name, which it controls; nohup: as that starts it.
    """
    arguments = (script, fault, list(map(str, words)), str(log), terminal, nohup)
    process = context().Process(target=_run, args=arguments)
    process.start()
    return process


def _run(script: str, fault: tuple, words: list[str], log: str, terminal: str | None, nohup: bool) -> None:
    os.setsid()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # the server ignores it
    signal.signal(signal.SIGHUP, signal.SIG_IGN if nohup else signal.SIG_DFL)
    out = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    if terminal:
        own = os.open(terminal, os.O_RDWR)  # as the first of its session, it is controlled by it
        out = out if nohup else own
    os.dup2(out, 1)
    os.dup2(out, 2)
    os.environ["MASKRCNN_CACHE"] = "off"
    torch.set_num_threads(1)
    inject(*fault)
    sys.argv = [script, *words]
    sys.exit(run_command(importlib.import_module(script).main))


def inject(module: str, name: str, count: int, act: int | str) -> None:
    """Puts a fault into this process."""
    place = importlib.import_module(module.partition(":")[0])
    place = getattr(place, module.partition(":")[2]) if ":" in module else place
    whole, calls = getattr(place, name), []

    def faulty(*args, **keywords):
        calls.append(1)
        if len(calls) == count:
            if isinstance(act, int):
                os.kill(os.getpid(), act)
            elif act == "full":
                fill()
            else:
                os.truncate(act.removeprefix("truncate "), 4096)
        return whole(*args, **keywords)

    setattr(place, name, faulty)


def run_one(script: str, fault: tuple, *words: object) -> tuple[int | None, str]:
    """(exit status, what was printed) of a command."""
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log"
        (status,) = end_all([start(script, fault, *words, log=log)], WAIT)
        return status, log.read_text() if log.exists() else ""


NONE = ("os", "getpid", -1, 0)  # no fault


class Place:
    """A folder with drawn data, a checkpoint of a tiny model for it, and the results of an uncut prediction."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.data = folder, make_shapes(folder / "shapes", train=12, val=4, size=48)
        self.weights = write_checkpoint(folder / "m.pth", names=CLASSES, width=8)
        self.whole: dict[str, bytes] = {}

    def prediction(self, kind: str, out: Path) -> tuple[Path, tuple]:
        """(the json, the flags of predict.py)."""
        model = ("--weights-path", self.weights, "--device", "cpu", "--score", 0)
        if kind == "folder":
            return out / "test_result.json", (*model, "--img-path", self.data / "train2017", "--output-dir", out)
        source = self.data / "annotations" / "instances_train2017.json"
        flags = (*model, "--coco-json", source, "--image-dir", self.data / "train2017", "--output", out / "R.json")
        return out / "R.json", flags

    def uncut(self, kind: str) -> bytes:
        if kind not in self.whole:
            path, flags = self.prediction(kind, self.folder / f"whole {kind}")
            status, out = run_one("predict", NONE, *flags)
            assert status == 0, out
            self.whole[kind] = path.read_bytes()
        return self.whole[kind]

    def uncut_run(self, epochs: int = 1) -> Path:
        """The folder of a run that nothing cut."""
        folder = self.folder / f"uncut of {epochs}"
        if not folder.exists():
            status, out = run_one("train", NONE, *train_flags(self.data, folder, "--epochs", epochs))
            assert status == 0, out
        return folder


def cut_prediction(kind: str, number: int) -> Callable[[Place, Path, random.Random], None]:
    """A prediction that a signal ends at any image goes on to the bytes of an uncut one."""

    def inject(place: Place, own: Path, rng: random.Random) -> None:
        path, flags = place.prediction(kind, own)
        whole, done = place.uncut(kind), rng.randint(1, 11)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text('"of another call"')
        fault = ("train_utils.prediction.predictor:Predictor", "look_in", done + 1, int(number))
        status, out = run_one("predict", fault, *flags)
        assert status in (-number, 128 + number), (status, out)
        killed = number == signal.SIGKILL  # it loses what threads were about to keep, two images at most
        assert killed or json.loads(path.read_text()) != "of another call"
        assert killed or f"stopped: {done} of 12 images predicted" in out, out
        status, out = run_one("predict", NONE, *flags, "--resume")
        taken = re.search(r"resuming: (\d+) of 12 image\(s\) are done", out)
        assert status == 0 and done - 2 * killed <= (int(taken[1]) if taken else 0) <= done, out
        assert path.read_bytes() == whole and not list(own.glob("*.unfinished"))

    return inject


def cut_tool(script: str, name: str, number: int) -> Callable[[Place, Path, random.Random], None]:
    """A converter that is cut leaves nothing; one that is killed leaves what the next start clears."""

    def inject(place: Place, own: Path, rng: random.Random) -> None:
        own.mkdir()
        status, out = run_one(script, (script, name, rng.randint(1, 12), int(number)), place.data, own / "out")
        assert status in (-number, 128 + number), (status, out)
        left = [path.name for path in own.iterdir()]
        assert len(left) == (number == signal.SIGKILL) and all(map(unfinished.NAME.fullmatch, left)), left
        status, out = run_one(script, NONE, place.data, own / "out")
        assert status == 0 and [path.name for path in own.iterdir()] == ["out"], out
        assert ("removed from" in out) == bool(left), out

    return inject


def parallel_predictions(place: Place, own: Path, rng: random.Random) -> None:
    """Commands that write the same files at once all end well, and the files are whole."""
    images = sorted((place.data / "train2017").iterdir())[:6]
    flags = ("--weights-path", place.weights, "--device", "cpu", "--score", 0, "--output-dir", own)
    log = own.with_suffix(".log")
    ended = end_all([start("predict", NONE, *flags, "--img-path", image, log=log) for image in images], WAIT)
    assert ended == [0] * len(images), log.read_text()
    names = {result["file_name"] for result in json.loads((own / "test_result.json").read_text())}
    assert len(names) == 1 and sorted(path.name for path in own.iterdir()) == ["test_result.jpg", "test_result.json"]


def train_flags(data: Path, own: Path, *more: object) -> list:
    return ["--data-path", data, *SMALL, "--epochs", 1, "--log-steps", "--output-dir", own, *more]


def truncated_pack(place: Place, own: Path, rng: random.Random) -> None:
    """A packed file that is cut while a run reads it ends that with a line."""
    packed = own / "packed"
    assert run_one("tools.pack_dataset", NONE, place.data, packed)[0] == 0
    workers = rng.choice((0, 1))
    fault = ("train_utils.run.step", "forward_backward", rng.randint(1, 3), f"truncate {packed / 'train.pack'}")
    status, out = run_one("train", fault, *train_flags(packed, own / "run", "--epochs", 3, "--workers", workers))
    assert status == 2 and "train.pack: has been cut off since it was opened" in out and "Traceback" not in out, out


def links_in_a_run_folder(place: Place, own: Path, rng: random.Random) -> None:
    """What a stranger's run folder links to is neither written nor emptied."""
    name = rng.choice((".lock", "steps.jsonl", "tensorboard"))
    (own / "run").mkdir(parents=True)
    (own / "precious").write_text("mine")
    (own / "run" / name).symlink_to(own / "precious")
    status, out = run_one("train", NONE, *train_flags(place.data, own / "run", "--resume", "auto"))
    assert status == 2 and f"{name}: is a link" in out, out
    assert (own / "precious").read_text() == "mine"


def the_users_own_files(place: Place, own: Path, rng: random.Random) -> None:
    """What a run clears away is the project's own, by exact name."""
    (own / "a.tmp").mkdir(parents=True)
    mine = ["thesis.tmp", "x.unfinished", ".maskrcnn-x.unfinished"]
    for name in (*mine, f".maskrcnn-{'0' * 16}.unfinished"):
        (own / name).write_text("mine")
    status, out = run_one("train", NONE, *train_flags(place.data, own))
    assert status == 0 and "removed from" in out and (own / "a.tmp").is_dir(), out
    assert all((own / name).read_text() == "mine" for name in mine)


def full_board(place: Place, own: Path, rng: random.Random) -> None:
    """A disk that is full when TensorBoard's thread writes ends a run in one line, and it goes on."""
    fault = ("tensorboard.summary.writer.record_writer:RecordWriter", "write", rng.randint(2, 12), "full")
    flags = train_flags(place.data, own)
    status, out = run_one("train", fault, *flags)
    assert status == 2 and "tensorboard: no room left to write it" in out and "Traceback" not in out, out
    assert out.count("error: ") == 1 and "--resume goes on" in out, out
    status, out = run_one("train", NONE, *flags, "--resume", "auto")
    assert status == 0 and differences(place.uncut_run(), own, epoch=0) == [], out


def taken_port(place: Place, own: Path, rng: random.Random) -> None:
    """Ranks whose port another program holds say so; with a port of their own they train."""
    flags, log = ("--epochs", 1, "--batch-size", 1), own.with_suffix(".log")
    with socket.create_server(("", 0), family=socket.AF_INET6, dualstack_ipv6=True) as other:
        port = other.getsockname()[1]
        rank = processes.start(place.data, own, *flags, log=log, size=2, port=port)
        assert end_all([rank], WAIT) == [2], log.read_text()
    out = log.read_text()
    assert f"error: port {port} of this machine is in use" in out and "--master-port" in out, out
    assert "Traceback" not in out and out.count("error: ") == 1, out
    assert end_all(processes.start_all(place.data, own, *flags, log=log, size=2), WAIT) == [0, 0], log.read_text()


def stopped_worker(place: Place, own: Path, rng: random.Random) -> None:
    """A process that reads images and was stopped (SIGSTOP) does not hold a SIGTERM: the run is saved and ends."""
    flags = train_flags(place.data, own, "--workers", 2)
    process = start("train", NONE, *flags, log=own.with_suffix(".log"))
    wanted = rng.randint(1, 4)
    assert wait_for(lambda: finished_steps(own) >= wanted or not process.is_alive(), WAIT)
    for child in rng.sample(children(process.pid), rng.randint(1, 2)):
        os.kill(child, signal.SIGSTOP)
    time.sleep(rng.uniform(0, 0.3))  # the run may wait for it by now
    os.kill(process.pid, signal.SIGTERM)
    out = own.with_suffix(".log")
    assert end_all([process], WAIT) == [128 + signal.SIGTERM], out.read_text()
    assert torch.load(own / "model_0.pth", weights_only=True)["step"] == finished_steps(own), out.read_text()
    status, out = run_one("train", NONE, *flags, "--resume", "auto")
    assert status == 0 and differences(place.uncut_run(), own, epoch=0) == [], out


def printed_names(place: Place, own: Path, rng: random.Random) -> None:
    """A printed command with odd names, pasted into bash, opens what it names; nothing steers the terminal."""
    name = "".join(rng.sample(ODD, 8)) + ".png"
    data = shutil.copytree(place.data, own / name / "data")
    image = sorted((data / "val2017").iterdir())[0]
    (source,) = data.rglob("instances_val*.json")
    source.write_text(source.read_text().replace(json.dumps(image.name), json.dumps(name)))
    image.rename(image.with_name(name))
    status, out = run_one("train", NONE, *train_flags(data, own / name / "run"))
    assert status == 0 and not CONTROL.search(out.replace("\n", "")), repr(out)
    (line,) = (line for line in out.splitlines() if " python predict.py " in line)
    script, *words = typed(line[line.index(" python ") :])
    status, out = run_one(script.removesuffix(".py"), NONE, *words, "--score", 0, "--output-dir", own / "out")
    assert status == 0 and not CONTROL.search(out.replace("\n", "")), repr(out)
    found = json.loads((own / "out" / "test_result.json").read_text())
    assert found and {one["file_name"] for one in found} == {str(image.with_name(name))}, found


def typed(line: str) -> list[str]:
    """What a python gets that bash starts with this line."""
    python = "python() { printf '%s\\0' \"$@\"; }; "
    done = subprocess.run(["bash", "-c", python + line], capture_output=True, check=True)
    assert not done.stderr, done.stderr
    return [os.fsdecode(word) for word in done.stdout.split(b"\0")[:-1]]


def closed_terminal(nohup: bool) -> Callable[[Place, Path, random.Random], None]:
    """A terminal that is closed ends a run, which is saved; under nohup it goes on to its end."""

    def inject(place: Place, own: Path, rng: random.Random) -> None:
        own.mkdir()
        uncut = place.uncut_run(epochs=2)
        flags = train_flags(place.data, own / "run", "--epochs", 2)
        ours, theirs = pty.openpty()
        run, log = own / "run", own / "log"
        process = start("train", NONE, *flags, log=log, terminal=os.ttyname(theirs), nohup=nohup)
        until, wanted = time.monotonic() + WAIT, rng.randint(1, 9)
        while time.monotonic() < until and finished_steps(run) < wanted and process.is_alive():
            if select.select([ours], [], [], 0.02)[0]:
                os.read(ours, 4096)
        os.close(theirs)
        os.close(ours)
        assert end_all([process], WAIT) == [0 if nohup else 128 + signal.SIGHUP], log.read_text()
        if not nohup:
            status, out = run_one("train", NONE, *flags, "--resume", "auto")
            assert status == 0 and "resuming from" in out, out
        assert differences(uncut, own / "run") == []

    return inject


KINDS = {
    **{f"{kind} prediction, {signal.Signals(number).name}": cut_prediction(kind, number)
       for kind in ("folder", "json")
       for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGKILL)},
    **{f"{script}, {signal.Signals(number).name}": cut_tool(script, name, number)
       for script, name in (("tools.pack_dataset", "mask_bits"), ("tools.coco_to_npy", "content_of"))
       for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGKILL)},
    "parallel predictions": parallel_predictions,
    "truncated pack": truncated_pack,
    "links in a run folder": links_in_a_run_folder,
    "the user's own files": the_users_own_files,
    "TensorBoard's full disk": full_board,
    "port in use": taken_port,
    "stopped loader process, SIGTERM": stopped_worker,
    "printed names": printed_names,
    "closed terminal": closed_terminal(False),
    "closed terminal under nohup": closed_terminal(True),
}  # fmt: skip
SHORT = ("tools.pack_dataset, SIGKILL", "links in a run folder", "printed names")


def run(full: bool, folder: Path) -> Outcome:
    """TIMES faults of each kind; the short version is one of SHORT each: tests of their own inject the others."""
    rng, failures, total, notes = random.Random(0), [], 0, []
    place = Place(folder)
    for name, inject in KINDS.items():
        if not full and name not in SHORT:
            continue
        survived, times = 0, TIMES if full else 1
        for number in range(times):
            own = folder / f"trial {name} {number}"
            try:
                inject(place, own, rng)
                survived += 1
            except AssertionError as error:
                failures.append(f"{name}: {' '.join(str(error).split())[:600]}")
            shutil.rmtree(own, ignore_errors=True)
        total += times
        notes.append(f"{name} {survived}/{times}")
        progress(notes[-1])
    return Outcome(total - len(failures), total, failures, "; ".join(notes))
