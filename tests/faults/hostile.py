"""Files made to harm: each is refused at once, in one line, with nothing run and nothing read outside its folder.

Every case is a file, or several, in a folder of its own, and the command that is given it. The command runs in a
forked process, after the program's imports. There an audit hook notes each function that Python tells of a new
process, a connection, an unpickled global, a module or code from elsewhere than the program, and a file opened
outside the case's folder; the time and the growth of memory are measured (VmHWM, under a limit of address space).

The project unpacks no archive (test_forbidden_calls.py keeps it so), so there is no case of an archive's entry that
leaves its folder. Names with backslashes or a drive's letter are plain names here; on Windows they are paths.
"""

import os
import resource
import signal
import sys
import sysconfig
import time
import traceback
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import NamedTuple

import torch

import predict
import train
import validation
from tests import small_runs, tiny_model
from tests.faults import Outcome
from tests.faults.hostile_data import DATA_CASES
from tests.faults.hostile_npy import NPY_CASES
from tests.faults.hostile_weights import OF_CHECKPOINTS, WEIGHTS_CASES
from tests.small_runs import ROOT
from train_utils.cli.command import EXIT_WRONG_INPUT, run_command
from train_utils.data.formats.npy_file import read_npy

WHAT = "files made to harm: refused in one line, nothing run, nothing read elsewhere"
SECONDS, MIB = 1.0, 100  # of CPU time and memory: a refusal takes less of both, beyond the program's start
ADDRESSES = 2**31  # bytes of address space that a case may add: room for libraries' own, not for what is claimed
PROGRAM = tuple({str(ROOT), sys.prefix, sys.base_prefix, *sysconfig.get_paths().values()})
SYSTEM = tuple(
    "/proc/ /sys/ /dev/null /dev/urandom /etc/localtime /usr/share/zoneinfo /usr/lib /lib /etc/ld.so".split()
)
FORBIDDEN = (
    "os.system subprocess.Popen os.exec os.posix_spawn os.spawn os.fork socket.connect pickle.find_class "
    "marshal.loads_file ctypes.dlopen_foreign urllib.Request"
).split()
SMALL = tuple(tiny_model.train_flags(backbone_width=8, epochs=1))
IMAGE = "GOOD/data/images/0.png"
SCRIPTS = {"train": train, "validation": validation, "predict": predict}


class Result(NamedTuple):
    """How a command ended: exit status, standard error, forbidden events, seconds, MiB that memory grew by."""

    status: int
    error: str
    events: list[str]
    seconds: float
    growth: float


class Case(NamedTuple):
    """name; make(folder): writes the files, returns the hostile one; command: "train" ... or "npy"; flags, in
    which FILE and FOLDER stand for these."""

    name: str
    make: object
    command: str
    flags: tuple[str, ...]


def all_cases(full: bool) -> list[Case]:
    """In the short version a file goes to one of the commands that take it, in the long one to each."""
    cases = []
    for number, (name, make) in enumerate(WEIGHTS_CASES.items()):
        weights, data = ("--weights-path", "FILE", "--device", "cpu"), ("--data-path", "GOOD/data")
        of_weights = [
            Case(f"{name} as --weights-path of validation", make, "validation", (*weights, *data)),
            Case(f"{name} as --weights-path of predict", make, "predict", (*weights, "--img-path", IMAGE)),
            Case(f"{name} as --weights", make, "train", (*data, *SMALL, "--weights", "FILE")),
            Case(f"{name} as --resume", make, "train", (*data, *SMALL, "--resume", "FILE")),
        ]
        if name in OF_CHECKPOINTS:  # --weights looks at the weights alone
            del of_weights[2]
        cases += of_weights if full else [of_weights[number % len(of_weights)]]
    cases += [Case(f"{name} (.npy)", make, "npy", ("FILE",)) for name, make in NPY_CASES.items()]
    cases += [Case(f"{name} in {c}", make, c, tuple(flags.split())) for name, (make, (c, flags)) in DATA_CASES.items()]
    return cases


def run(full: bool, folder: Path) -> Outcome:
    """The long version also requires SECONDS."""
    good = folder / "good"
    tiny_model.write_coco(good / "data")
    tiny_model.write_checkpoint(good / "model.pth", width=8)
    warm_up(good)
    failures, cases, slowest, largest = [], all_cases(full), 0.0, 0.0
    for number, case in enumerate(cases):
        place = folder / f"case{number}"
        place.mkdir()
        mark = folder / f"mark{number}"  # what a payload writes, were it run
        os.environ["HOSTILE_MARK"] = str(mark)
        file = case.make(place, mark)
        words = [
            str(file) if w == "FILE" else w.replace("FOLDER", str(place)).replace("GOOD", str(good)) for w in case.flags
        ]
        result = in_child(case.command, words, place, (place, good))
        slowest, largest = max(slowest, result.seconds), max(largest, result.growth)
        wrong = faults_of(result, mark, full)
        failures += [f"{case.name}: {fault}" for fault in wrong[:1]]
    note = f"slowest {slowest:.2f} s, largest growth {largest:.0f} MiB"
    return Outcome(len(cases) - len(failures), len(cases), failures, note)


def faults_of(result: Result, mark: Path, full: bool) -> list[str]:
    """What is wrong with a refusal."""
    lines = result.error.splitlines()
    wrong = [f"ended with status {result.status}: {result.error[-400:]!r}"] * (result.status != EXIT_WRONG_INPUT)
    wrong += [f"{len(lines)} lines: {result.error[:200]!r}"] * (len(lines) != 1)
    wrong += [f"the line is not clean: {line[:200]!r}" for line in lines if not is_clean(line)]
    wrong += [f"did {event}" for event in result.events]
    wrong += ["ran what the file says"] * mark.exists()
    wrong += [f"memory grew by {result.growth:.0f} MiB"] * (result.growth >= MIB)
    wrong += [f"took {result.seconds:.2f} s"] * (full and result.seconds >= SECONDS)
    return wrong


def is_clean(line: str) -> bool:
    return line.startswith("error: ") and len(line) < 1000 and line.isprintable()


def warm_up(good: Path) -> None:
    """Each command once, so that everything that is imported late is there."""
    for script, words in (
        ("validation", ["--weights-path", str(good / "model.pth"), "--data-path", str(good / "data")]),
        ("predict", ["--weights-path", str(good / "model.pth"), "--img-path", str(good / "data/images/0.png")]),
        ("train", ["--data-path", str(good / "data"), *SMALL, "--resume", str(good / "model.pth")]),
    ):
        words = [*words, "--output-dir", str(good / "out"), "--device", "cpu"]
        call(script, words)


def call(command: str, words: list[str]) -> int:
    """The command in this process, silent; returns its exit status."""
    with (
        open(os.devnull, "w", errors="backslashreplace") as nowhere,
        redirect_stdout(nowhere),
        redirect_stderr(nowhere),
    ):
        return small_runs.call(SCRIPTS[command], *words)


def in_child(command: str, words: list[str], work: Path, allowed) -> Result:
    """Run a command in a forked process with the hook."""
    out = work.parent / f"{work.name}.out"
    pid = os.fork()
    if pid == 0:
        status = 99
        try:
            status = _child(command, words, work, allowed, out)
        finally:
            os._exit(status)
    _, state = os.waitpid(pid, 0)
    if os.WIFSIGNALED(state):
        return Result(-os.WTERMSIG(state), f"killed by signal {os.WTERMSIG(state)}", [], 0.0, 0.0)
    head, _, error = out.read_text(errors="backslashreplace").partition("\n\0\n")
    seconds, growth, *events = head.splitlines()
    return Result(os.WEXITSTATUS(state), error, events, float(seconds), float(growth))


def _child(command, words, work, allowed, out) -> int:
    os.chdir(work)
    error_file, events = out.with_suffix(".err"), []
    error = os.open(error_file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    nothing = os.open(os.devnull, os.O_WRONLY)
    os.dup2(error, 2)
    os.dup2(nothing, 1)
    sys.stdout, sys.stderr = os.fdopen(1, "w", closefd=False), os.fdopen(2, "w", closefd=False)
    Path("/proc/self/clear_refs").write_text("5")  # VmHWM counts from here
    before = memory()
    limit = before["VmSize"] * 1024 + ADDRESSES
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CPU, (60, 60))
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.alarm(300)  # a child that waits takes no CPU time
    torch.set_num_threads(1)  # OpenMP's threads did not come along with the fork: waiting for them never ends
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    sys.addaudithook(hook(events, tuple(map(str, allowed))))
    sys.argv = [f"{command}.py", *words, *(["--output-dir", str(work / "out")] if command in SCRIPTS else [])]
    start = time.process_time()
    try:
        status = run_command(SCRIPTS[command].main if command in SCRIPTS else lambda: read_npy(words[0]) and None)
    except SystemExit as stop:
        status = stop.code
    except BaseException:
        traceback.print_exc()
        status = 98
    seconds = time.process_time() - start
    growth = (memory()["VmHWM"] - before["VmRSS"]) / 1024
    sys.stderr.flush()
    seen, events = list(dict.fromkeys(events)), []
    out.write_text(
        "\n".join([str(seconds), str(growth), *seen]) + "\n\0\n" + error_file.read_text(errors="backslashreplace")
    )
    return status


def memory() -> dict[str, int]:
    """KiB by name."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return {
        name: int(value.split()[0])
        for name, _, value in (line.partition(":") for line in lines)
        if name in ("VmHWM", "VmRSS", "VmSize")
    }


def hook(events: list[str], allowed: tuple[str, ...]):
    """An audit hook that notes what a refusal must not do."""
    inside = tuple(f"{os.path.realpath(place)}{os.sep}" for place in (*PROGRAM, *allowed))

    def is_inside(path) -> bool:
        path = os.path.realpath(os.fsdecode(path))
        return path.startswith(inside) or path.startswith(SYSTEM) or f"{path}{os.sep}" in inside

    def note(event, arguments):
        if event in FORBIDDEN:
            events.append(f"{event} {arguments!r}"[:200])
        elif event == "open" and isinstance(arguments[0], str | bytes) and not is_inside(arguments[0]):
            events.append(f"open {arguments[0]!r}")
        elif event == "exec":
            name = getattr(arguments[0], "co_filename", "")
            if os.path.isabs(name) and not is_inside(name) or name == "<string>" and not _of_library():
                events.append(f"exec of {name}")
        elif event == "import" and arguments[1] and not is_inside(arguments[1]):
            events.append(f"import of {arguments[1]}")

    return note


def _of_library() -> bool:
    """Whether exec was called by a module of Python's own (dataclasses, collections) or an installed one."""
    frame = sys._getframe(2)
    return frame.f_code.co_filename.startswith(PROGRAM) and not frame.f_code.co_filename.startswith(str(ROOT))
