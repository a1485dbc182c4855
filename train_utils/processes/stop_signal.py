"""SIGTERM and SIGINT as a wish to stop, granted after the step in progress."""

import os
import signal
import threading
import time
from contextlib import contextmanager

SIGNALS = (signal.SIGTERM, signal.SIGINT)
# Ctrl-C reaches every process of a terminal, and torchrun passes it on: what comes so soon is the same wish.
SAME_WISH = 3.0  # seconds


class StopSignal:
    """Within `with StopSignal(world) as stop`, SIGTERM and SIGINT are noted; one more after a while acts at once.

    Where several processes train, each learns of a signal to any other through the world. In a thread, where Python
    allows no handlers, signals are left to the main thread.
    """

    def __init__(self, world):
        self.world, self.number, self.previous = world, None, {}
        self.since, self.may_leave = 0.0, False

    def __enter__(self):
        if threading.current_thread() is threading.main_thread():
            self.previous = {s: signal.signal(s, self._note) for s in SIGNALS}
            self.world.watch_signals()
        return self

    def __exit__(self, *_):
        self.world.watch_signals(False)
        for number, handler in self.previous.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)  # None: not of Python's

    def _note(self, number, _frame):
        if self.number is None:
            self.number, self.since = number, time.monotonic()
            if self.may_leave:
                self.leave()
        elif time.monotonic() - self.since > SAME_WISH:
            self.__exit__()
            os.kill(os.getpid(), number)

    def requested(self):
        return self.number is not None

    @contextmanager
    def at_once(self):
        """Within this block, where nothing is lost by it, a signal leaves without waiting for a step's end."""
        self.may_leave = True
        self.leave_if_requested()
        try:
            yield
        finally:
            self.may_leave = False

    def leave(self):
        """Exit status 143 after SIGTERM, 130 after SIGINT, to this process or another."""
        raise SystemExit(128 + (self.number or self.world.stop_number() or signal.SIGTERM))

    def leave_if_requested(self):
        if self.requested():
            self.leave()
