"""SIGTERM and SIGINT as a wish to stop, granted after the step in progress."""

import signal


class StopSignal:
    """Within `with StopSignal() as stop`, a first SIGTERM or SIGINT is noted; a second one acts at once."""

    def __init__(self):
        self.number, self.previous = None, {}

    def __enter__(self):
        self.previous = {s: signal.signal(s, self._note) for s in (signal.SIGTERM, signal.SIGINT)}
        return self

    def __exit__(self, *_):
        for number, handler in self.previous.items():
            signal.signal(number, handler)

    def _note(self, number, _frame):
        self.number = number
        self.__exit__()

    def requested(self):
        return self.number is not None

    def leave(self):
        """Exit status 143 after SIGTERM, 130 after SIGINT; 143 where another rank had the signal."""
        raise SystemExit(128 + (self.number or signal.SIGTERM))

    def leave_if_requested(self):
        if self.requested():
            self.leave()
