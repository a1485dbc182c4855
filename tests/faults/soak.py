"""Runs of tiny steps, each cut again and again by faults of every kind, until the time is over.

    python -m tests.faults soak --hours 2

Each run goes on after each fault, until it ends, and is then compared bit for bit with a run of the same flags that
nothing cut. What is counted is faults: survived where the run went on, and ended as the other one.
"""

import json
import os
import random
import shutil
import signal
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch

from network_files.weight_files.file_stamp import find_damage
from tests.faults import KEPT_LOGS, Outcome, progress
from tests.faults.processes import children, end_all, finished_steps, free_port, start
from tests.small_runs import differences
from train_utils.checkpoints.run_folder import newest_checkpoint
from train_utils.data.formats.shapes import make_shapes

WHAT = "hours of runs with a random fault in each start: nothing lost, and the end bit for bit as uncut"
# name -> (ranks, flags)
RUNS = {"one process": (1, ()), "2 workers": (1, ("--workers", 2)), "2 ranks": (2, ("--batch-size", 1))}
# --dist-timeout: a rank that was killed before it met the others is waited for twice as long
FLAGS = ("--log-steps", "--resume", "auto", "--save-every-steps", 1, "--dist-timeout", 60)
PATIENCE = 900.0  # seconds that a start may take before it counts as stuck
MOST = 8  # faults of one run, after which it is let end
IN_A_SAVE = ("replace", "fsync")  # calls of os, of which a run has more than CALLS
CALLS = 12


class Cut:
    """A run that is cut: `fault` starts it, does something to it, and waits for its end."""

    def __init__(self, data: Path, folder: Path, name: str, seconds: float, rng: random.Random) -> None:
        self.data, self.folder, self.seconds, self.rng = data, folder, seconds, rng
        self.size, self.flags = RUNS[name]
        self.spoilt: set[int] = set()  # inodes of the checkpoints that a fault has damaged: they may stay so

    def start(self, fault: tuple | None = None, other: Path | None = None, more: tuple = ()) -> list:
        """Starts all ranks; fault: in one of them; other, more: data and flags of the last rank alone."""
        port, faulty = free_port() if self.size > 1 else None, self.rng.randrange(self.size)
        return [
            start(
                other if other and rank == self.size - 1 else self.data, self.folder, *FLAGS, *self.flags,
                *(more if rank == self.size - 1 else ()), log=f"{self.folder}.log", size=self.size, rank=rank,
                port=port, fault=fault if rank == faulty else None,
            )
            for rank in range(self.size)
        ]  # fmt: skip

    def wait(self, share: float = 0.8) -> None:
        """Waits for some of the time that the uncut run took."""
        time.sleep(self.rng.uniform(0.05, share * self.seconds))

    def said(self, since: int) -> str:
        """Returns what the log has since then."""
        return Path(f"{self.folder}.log").read_text()[since:]


Fault = Callable[["Cut"], "Trial | None"]  # None: of no use to this run now


class Trial(NamedTuple):
    """How the processes of one start ended: exit codes, those allowed, and whether the fault came before their end."""

    codes: list
    allowed: set
    injected: bool = True


def signalled(number: int, group: bool = False) -> Fault:
    def act(cut: Cut) -> Trial:
        processes = cut.start()
        cut.wait()
        process = cut.rng.choice(processes)
        if lives := process.is_alive():
            (os.killpg if group else os.kill)(process.pid, number)
        # -number: before the handler was there; 1 and 2: a rank that lost another one then
        return Trial(ended(processes), {0, 128 + number, -number, *([1, 2] if cut.size > 1 else [])}, lives)

    return act


def killed_in_a_save(cut: Cut) -> Trial:
    codes = ended(cut.start(("kill", cut.rng.choice(IN_A_SAVE), cut.rng.randint(1, CALLS))))
    return Trial(codes, {0, -9, 1}, -9 in codes)


def full_disk(cut: Cut) -> Trial:
    since = log_length(cut)
    codes = ended(cut.start(("full", cut.rng.choice(IN_A_SAVE), cut.rng.randint(1, CALLS))))
    return Trial(codes, {0, 1, 2} if not any(codes) or "no room left" in cut.said(since) else set(), any(codes))


def full_board(cut: Cut) -> Trial:
    """The disk is full for TensorBoard's thread."""
    since = log_length(cut)
    codes = ended(cut.start(("board", "write", cut.rng.randint(2, 3 * CALLS))))
    said = "tensorboard: no room left" in cut.said(since)
    return Trial(codes, {0, 1, 2} if not any(codes) or said else set(), any(codes))


def stopped_and_continued(cut: Cut) -> Trial:
    """A rank, or one of its loader's processes, for up to 3 seconds: nothing ends."""
    processes = cut.start()
    cut.wait()
    process = cut.rng.choice(processes)
    if lives := process.is_alive():
        pid = cut.rng.choice([process.pid, *children(process.pid)])
        os.kill(pid, signal.SIGSTOP)
        time.sleep(cut.rng.uniform(0.1, 3))
        os.kill(pid, signal.SIGCONT)
    return Trial(ended(processes), {0}, lives)


def stopped_worker(cut: Cut) -> Trial | None:
    """A process that reads images is stopped for good as SIGTERM comes: the run ends."""
    if "--workers" not in cut.flags:
        return None
    (process,) = cut.start()
    cut.wait()
    pids = children(process.pid) if process.is_alive() else []
    for pid in pids[:1]:
        os.kill(pid, signal.SIGSTOP)
        os.kill(process.pid, signal.SIGTERM)
    return Trial(ended([process]), {0, 128 + signal.SIGTERM, -signal.SIGTERM}, bool(pids))


def killed_worker(cut: Cut) -> Trial | None:
    if "--workers" not in cut.flags:
        return None
    processes = cut.start()
    cut.wait()
    pids = [pid for process in processes if process.is_alive() for pid in children(process.pid)]
    for pid in pids[:1]:
        os.kill(pid, signal.SIGKILL)
    return Trial(ended(processes), {0, 2}, bool(pids))


def damaged_checkpoint(cut: Cut) -> Trial | None:
    """A bit of the newest checkpoint flips; the one before it is used, and its step made once more."""
    path = begun(cut)
    if not path or all(other.samefile(path) for other in cut.folder.glob("model_*.pth")):
        return None
    content = bytearray(path.read_bytes())
    content[cut.rng.randrange(len(content) // 4, len(content) // 2)] ^= 1 << cut.rng.randrange(8)
    path.unlink()  # it may have several names
    path.write_bytes(content)
    cut.spoilt.add(path.stat().st_ino)
    return Trial(ended(cut.start()), {0})


def changed_labels(cut: Cut) -> Trial | None:
    """Labels change between two starts: the run is refused; they are put back."""
    path = next(cut.data.rglob(cut.rng.choice(["instances_train*.json", "instances_val*.json"])))
    labels = json.loads(path.read_text())
    for annotation in labels["annotations"]:
        annotation["category_id"] = annotation["category_id"] % 3 + 1
    return refused(cut, path, json.dumps(labels).encode(), "other labels of ")


def changed_image(cut: Cut) -> Trial | None:
    """An image is replaced by another of the same size."""
    path, other = cut.rng.sample(sorted(cut.data.rglob("*.png")), 2)
    return refused(cut, path, other.read_bytes(), "other image files of 1 image")


def refused(cut: Cut, path: Path, wrong: bytes, says: str) -> Trial | None:
    if not begun(cut):
        return None
    right, since = path.read_bytes(), log_length(cut)
    path.write_bytes(wrong)
    try:
        codes = ended(cut.start())
    finally:
        path.write_bytes(right)
    return Trial(codes, {2} if says in cut.said(since) else set())


def copied_data(cut: Cut) -> Trial | None:
    """All files have other times: said, and not refused."""
    if not begun(cut):
        return None
    for path in cut.data.rglob("*.png"):
        os.utime(path, ns=(1, cut.rng.randrange(10**18)))
    since, codes = log_length(cut), ended(cut.start())
    return Trial(codes, {0} if "the image files have other times" in cut.said(since) else set())


def other_node(cut: Cut) -> Trial | None:
    """One of two nodes has other labels, fewer images, or another seed, which a resumed run refuses there."""
    if cut.size == 1:
        return None
    since, other, more = log_length(cut), None, ()
    what = cut.rng.choice(["labels", "fewer", "seed"])
    if what == "seed":
        more = ("--seed", 5)
    else:
        other = cut.folder.with_suffix(".other")
        shutil.copytree(cut.data, other, dirs_exist_ok=True)
        path = next(other.rglob("instances_train*.json"))
        content = json.loads(path.read_text())
        if what == "labels":
            content["annotations"][0]["category_id"] = content["annotations"][0]["category_id"] % 3 + 1
        else:
            last = content["images"].pop()["id"]
            content["annotations"] = [a for a in content["annotations"] if a["image_id"] != last]
        path.write_text(json.dumps(content))
    codes = ended(cut.start(other=other, more=more))
    says = {"labels": "other labels of train", "fewer": "images of train ", "seed": "--seed 5"}[what]
    return Trial(codes, {2, 1} if says in cut.said(since) and 2 in codes else set())


def ended(processes: list) -> list:
    """Returns the exit codes of processes; the machine may be busy."""
    return end_all(processes, PATIENCE)


def begun(cut: Cut) -> Path | None:
    """Returns the newest checkpoint of a run that has one."""
    return newest_checkpoint(cut.folder) if cut.folder.is_dir() else None


def log_length(cut: Cut) -> int:
    path = Path(f"{cut.folder}.log")
    return len(path.read_text()) if path.exists() else 0


FAULTS: dict[str, Fault] = {
    "kill -9": signalled(signal.SIGKILL),
    "kill -9 in a save": killed_in_a_save,
    "SIGTERM": signalled(signal.SIGTERM),
    "SIGINT to the group": signalled(signal.SIGINT, group=True),
    "SIGHUP": signalled(signal.SIGHUP),
    "full disk": full_disk,
    "TensorBoard's full disk": full_board,
    "stopped and continued": stopped_and_continued,
    "stopped loader process, SIGTERM": stopped_worker,
    "killed loader process": killed_worker,
    "damaged checkpoint": damaged_checkpoint,
    "changed labels": changed_labels,
    "changed image": changed_image,
    "copied data": copied_data,
    "another node": other_node,
}


def run(full: bool, folder: Path, hours: float = 2.0, seed: int = 0) -> Outcome:
    """Cuts runs for some hours; full has no meaning here."""
    rng, failures, runs = random.Random(seed), [], 0
    injected, survived = Counter(), Counter()
    data = make_shapes(folder / "shapes", train=6, val=2, size=48)
    uncut = {name: measure(data, folder, name) for name in RUNS}
    until = time.monotonic() + 3600 * hours
    while time.monotonic() < until:
        name, runs = rng.choice(list(RUNS)), runs + 1
        cut = Cut(data, folder / f"cut {runs}", name, uncut[name], rng)
        faults, problems = cut_and_resume(cut, until)
        injected.update(faults)
        problems = problems or [f"{what} differ" for what in differences(folder / f"uncut {name}", cut.folder)]
        if problems:
            failures.append(f"{name}, run {runs} of seed {seed}, after {', '.join(faults)}: {', '.join(problems)}")
            shutil.copy(f"{cut.folder}.log", KEPT_LOGS / f"soak-{runs}.log")
        else:
            survived.update(faults)
            shutil.rmtree(cut.folder)
        progress(f"run {runs}, {name}: {', '.join(faults) or 'no fault'}: {problems or 'well'}")
    table = "; ".join(f"{fault}: {survived[fault]} of {injected[fault]}" for fault in FAULTS)
    return Outcome(survived.total(), injected.total(), failures, f"faults survived in {runs} runs. {table}")


def measure(data: Path, folder: Path, name: str) -> float:
    """Does the uncut run; returns its seconds."""
    begin = time.monotonic()
    codes = ended(Cut(data, folder / f"uncut {name}", name, 0.0, random.Random(0)).start())
    if any(codes):
        raise RuntimeError(f"{name}: the uncut run ended with {codes}; see {folder}/uncut {name}.log")
    return time.monotonic() - begin


def cut_and_resume(cut: Cut, until: float) -> tuple[list[str], list[str]]:
    """Returns (faults, what went wrong) of a run that is cut up to MOST times, and then let end."""
    faults: list[str] = []
    while True:
        fault, since, before = cut.rng.choice(list(FAULTS)), log_length(cut), finished_steps(cut.folder)
        if len(faults) == MOST or time.monotonic() > until:
            trial = Trial(ended(cut.start()), {0}, injected=False)
        else:
            trial = FAULTS[fault](cut)  # None: a fault that the run cannot have yet
        if trial is None:
            continue
        faults += [fault] * trial.injected
        if problems := lost(cut, fault, trial.codes, before, since):
            return faults, problems
        if not set(trial.codes) <= trial.allowed:
            return faults, [f"exit status {trial.codes}, allowed are {trial.allowed}"]
        if not any(trial.codes):
            return faults, []


def lost(cut: Cut, fault: str, codes: list, before: int, since: int) -> list[str]:
    """Returns what a fault should not have done: damage, tracebacks, steps that were made and are not saved."""
    problems = [
        f"damaged: {path.name}"
        for path in cut.folder.glob("model_*.pth")
        if find_damage(path) and path.stat().st_ino not in cut.spoilt
    ]
    if "Traceback" in cut.said(since) and -signal.SIGINT not in codes:
        problems.append("a traceback")
    path = begun(cut)
    saved = torch.load(path, weights_only=True)["step"] if path else 0
    trained = "Epoch:" in cut.said(since)  # else the steps beyond those saved are of a start that was killed
    if set(codes) <= {143, 130, 129} and trained and saved < finished_steps(cut.folder):
        problems.append(f"{finished_steps(cut.folder)} steps done, {saved} saved")
    if saved < before - 1 and fault != "damaged checkpoint":
        problems.append(f"{before} steps were done before, {saved} are saved")
    return problems
