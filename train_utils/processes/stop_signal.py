"""SIGTERM and SIGINT -> a request to stop, which the run follows after the current step."""

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, NoReturn

from train_utils.processes.distributed import World
from train_utils.processes.watch import SIGNALS

# Ctrl-C reaches every process of a terminal, and torchrun passes it on: a signal so soon is the same request.
SAME_REQUEST = 3.0  # seconds


class StopSignal:
    """Within `with StopSignal(world) as stop`, SIGTERM and SIGINT are noted; one more after SAME_REQUEST acts at once.

    Where several processes train, the world passes a signal to one on to all. In a thread, where Python allows no
    handlers, signals are left to the main thread.
    """

    def __init__(self, world: World) -> None:
        self.world, self.number, self.previous = world, None, {}
        self.since, self.may_leave = 0.0, False

    def __enter__(self) -> "StopSignal":
        if threading.current_thread() is threading.main_thread():
            self.previous = {s: signal.signal(s, self._note) for s in SIGNALS}
            self.world.watch_signals()
        return self

    def __exit__(self, *_: Any) -> None:
        self.world.watch_signals(False)
        for number, handler in self.previous.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)  # None: not of Python's

    def _note(self, number: int, _frame: FrameType | None) -> None:
        if self.number is None:
            self.number, self.since = number, time.monotonic()
            if self.may_leave:
                self.leave()
        elif time.monotonic() - self.since > SAME_REQUEST:
            self.__exit__()
            os.kill(os.getpid(), number)

    def requested(self) -> bool:
        """Returns whether this process got such a signal."""
        return self.number is not None

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """Lets a signal end the process without waiting: in the block nothing can be lost."""
        self.may_leave = True
        if self.requested():
            self.leave()
        try:
            yield
        finally:
            self.may_leave = False

    def leave(self) -> NoReturn:
        """Exits with status 143 after SIGTERM, 130 after SIGINT, to this process or another."""
        raise SystemExit(128 + (self.number or self.world.stop_number() or signal.SIGTERM))
