"""SIGTERM, SIGINT and SIGHUP -> a request to stop, which the run follows after the current step."""

import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any, NoReturn, TextIO

from train_utils.processes.distributed import World
from train_utils.processes.watch import SIGNALS

# Ctrl-C reaches every process of a terminal, and torchrun passes it on: a signal so soon is the same request.
SAME_REQUEST = 3.0  # seconds
HANGUP = getattr(signal, "SIGHUP", None)


class StopSignal:
    """Within `with StopSignal(world) as stop`, SIGNALS are noted; one more after SAME_REQUEST acts at once.

    A SIGHUP that is ignored stays so: nohup was asked for. After one that is not, the terminal is gone: what is printed
    is lost, and no error. Processes that were stopped (SIGSTOP) and read images are continued, so that the step ends.
    Python drops an exit that is raised in a finaliser or in what follows a fork: no traceback shows it, and
    `leave_if_requested` makes up for it.
    Where several processes train, the world passes a signal to one on to all. In a thread, where Python allows no
    handlers, signals are left to the main thread.
    """

    def __init__(self, world: World) -> None:
        self.world, self.number, self.previous = world, None, {}
        self.since, self.may_leave = 0.0, False
        self.streams: tuple[TextIO, TextIO] | None = None  # stdout and stderr as they were
        self.unraisable = sys.unraisablehook

    def __enter__(self) -> "StopSignal":
        if threading.current_thread() is threading.main_thread():
            nohup = HANGUP is not None and signal.getsignal(HANGUP) == signal.SIG_IGN
            self.previous = {s: signal.signal(s, self._note) for s in SIGNALS if s != HANGUP or not nohup}
            self.streams = sys.stdout, sys.stderr
            sys.stdout, sys.stderr = (_OutlivingStream(stream, self) for stream in self.streams)
            self.unraisable, sys.unraisablehook = sys.unraisablehook, self._hide_dropped
            self.world.watch_signals()
        return self

    def __exit__(self, *_: Any) -> None:
        self.world.watch_signals(False)
        for number, handler in self.previous.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)  # None: not of Python's
        if self.streams:
            sys.stdout, sys.stderr = self.streams
            sys.unraisablehook, self.streams = self.unraisable, None

    def _note(self, number: int, _frame: FrameType | None) -> None:
        if self.number is None:
            self.number, self.since = number, time.monotonic()
            continue_children()
            if self.may_leave:
                self.leave()
        elif time.monotonic() - self.since > SAME_REQUEST:
            self.__exit__()
            os.kill(os.getpid(), number)

    def _hide_dropped(self, dropped: Any) -> None:
        """Hides what was raised where Python drops all, as in a fork's hook, and will be raised again.

        That is an exit (by `leave_if_requested`) and the death of a process that loads (by the loader's next batch).
        """
        exit_ = self.requested() and isinstance(dropped.exc_value, SystemExit)
        if not exit_ and "DataLoader worker" not in str(dropped.exc_value):
            self.unraisable(dropped)

    def requested(self) -> bool:
        """Returns whether this process got such a signal, and lets the others know which before they hear of it."""
        if self.number is not None:
            self.world.pass_on_signal()
        return self.number is not None

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """Lets a signal end the process without waiting: in the block nothing can be lost."""
        self.may_leave = True
        self.leave_if_requested()
        try:
            yield
        finally:
            self.may_leave = False

    def leave_if_requested(self) -> None:
        """Exits if a signal came."""
        if self.requested():
            self.leave()

    def leave(self) -> NoReturn:
        """Exits with status 143 after SIGTERM, 130 after SIGINT, 129 after SIGHUP, to this process or another."""
        raise SystemExit(128 + (self.number or self.world.stop_number() or signal.SIGTERM))


@contextmanager
def held_back() -> Iterator[None]:
    """Holds SIGNALS to this thread back until the block ends.

    Processes that are started in the block get none before they unblock or ignore them.
    """
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def continue_children() -> None:
    """Continues child processes that were stopped: they would be waited for in vain."""
    for child in multiprocessing.active_children() if hasattr(signal, "SIGCONT") else ():
        with suppress(ProcessLookupError):
            os.kill(child.pid, signal.SIGCONT)


class _OutlivingStream:
    """A text stream that loses what it cannot write, once a SIGHUP has come; until then it is the stream itself."""

    def __init__(self, stream: TextIO, stop: StopSignal) -> None:
        self.stream, self.stop = stream, stop

    def write(self, text: str) -> int:
        try:
            return self.stream.write(text)
        except OSError as error:
            self._lose(error)
            return len(text)

    def flush(self) -> None:
        try:
            self.stream.flush()
        except OSError as error:
            self._lose(error)

    def _lose(self, error: OSError) -> None:
        if self.stop.number != HANGUP:
            raise error
        os.dup2(os.open(os.devnull, os.O_WRONLY), self.stream.fileno())

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)
