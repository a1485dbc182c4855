"""A thread beside each of several processes, for what a process cannot notice while it waits for the others.

It passes on that one of them was asked to stop, names the one that the others wait for in vain, and ends a
process whose launcher has died. Processes meet in the store of torch.distributed.

Keys of the store, under a prefix of the attempt: `stop` (number of the signal that one process got),
`state/RANK` (what it is doing), `told` (who names the stuck process).
"""

import json
import os
import signal
import socket
import sys
import threading
import time
from contextlib import contextmanager, suppress

from train_utils.processes.stop_signal import SIGNALS

INTERVAL = 0.3  # seconds between two looks
SILENT = 5.0  # seconds without a sign of life: a process that was stopped or has died
GRACE = 60.0  # seconds that a process has to save when its launcher has died


class Watch(threading.Thread):
    """Watches over one process; daemon, started by `start`.

    store: a torch.distributed store, used under `lock` alone; timeout: seconds that the process may wait for the
    others; launcher: pid of the parent that must live, or None. A store whose host neither answers nor closes the
    connection (a machine that lost its power) holds this thread for good: the process waits for it only so long.
    """

    def __init__(self, rank, size, store, timeout, launcher=None):
        super().__init__(name="watch", daemon=True)
        self.rank, self.size, self.store, self.timeout, self.launcher = rank, size, store, timeout, launcher
        self.silent = min(SILENT, timeout / 2)
        self.what, self.waits, self.since = "start", False, time.monotonic()
        self.stop, self.passed_on = None, False  # the signal to one of the processes
        self.beats, self.heard = 0, {}  # rank -> (its last beat, when that was heard, its state)
        self.over = threading.Event()
        self.lock, self.signals, self.writing = threading.RLock(), None, None  # ends of a pipe that signals write to

    # --- called by the process ---

    def phase(self, what, waits=False):
        """Note what the process does now; waits: it needs the other processes to go on."""
        self.what, self.since, self.waits = what, time.monotonic(), waits  # it never waits since long ago

    @contextmanager
    def waiting(self):
        """The block waits for the other processes."""
        before = self.what
        self.phase(before, waits=True)
        try:
            yield
        finally:
            self.phase(before)

    def listen(self):
        """Learn of signals, also while the process is deep in a call and Python's handlers must wait."""
        reading, self.writing = os.pipe()
        for end in (reading, self.writing):
            os.set_blocking(end, False)
        signal.set_wakeup_fd(self.writing, warn_on_full_buffer=False)
        self.signals = reading

    def ignore_signals(self):
        """Undo `listen`; what had not yet been passed on is passed on now."""
        with self.locked() as mine:
            if self.signals is None:
                return
            signal.set_wakeup_fd(-1)
            if not mine:  # this thread may yet read from the pipe
                return
            with suppress(RuntimeError, OSError):  # the store may have gone first
                self.pass_on_own()
            reading, self.signals = self.signals, None
            for end in (reading, self.writing):
                os.close(end)

    def stop_number(self):
        """The signal that one of the processes got, if any; looked up now."""
        with self.locked() as mine, suppress(RuntimeError, OSError):
            if mine and self.stop is None and self.store is not None and self.store.check(["stop"]):
                self.stop = int(self.store.get("stop"))
        return self.stop

    @contextmanager
    def locked(self):
        """The lock held; or False, where the thread has not let go of it for long."""
        mine = self.lock.acquire(timeout=self.silent)
        try:
            yield mine
        finally:
            if mine:
                self.lock.release()

    def close(self):
        """End the thread."""
        self.over.set()
        self.join(self.silent)

    def states(self):
        """Rank -> what it was last heard to do, with how long ago, for those heard of; fetched now."""
        now = time.monotonic()
        for rank in range(self.size):
            key = f"state/{rank}"
            if self.store.check([key]):
                state = json.loads(self.store.get(key))
                if self.heard.get(rank, (None,))[0] != state["beat"]:
                    self.heard[rank] = (state["beat"], now, state)
        return {rank: {**state, "silent": now - heard} for rank, (_, heard, state) in self.heard.items()}

    # --- the thread ---

    def run(self):
        while not self.over.wait(INTERVAL):
            if self.launcher is not None and os.getppid() != self.launcher:
                self.leave_without_launcher()
                return
            with self.lock:
                try:
                    self.look()
                except (RuntimeError, OSError):  # the store is gone: with the launcher, or with the first process
                    self.store = None
            if self.store is None and self.launcher is None:
                return

    def look(self):
        if self.store is None:
            return
        self.pass_on_signals()
        self.beats += 1
        state = {
            "beat": self.beats,
            "what": self.what,
            "waits": self.waits,
            "pid": os.getpid(),
            "host": socket.gethostname(),
            "seconds": time.monotonic() - self.since,
        }
        self.store.set(f"state/{self.rank}", json.dumps(state))
        waited = time.monotonic() - self.since if self.waits else 0.0
        if waited > self.silent / 4:
            self.states()  # who of the others still gives signs of life shows only over a while
        if waited > self.timeout:
            self.give_up(waited)
        elif self.stop and waited > self.silent and any(s["silent"] > self.silent for s in self.states().values()):
            os._exit(128 + self.stop)  # it waits in vain (for a GPU's collective, which no signal ends)

    def pass_on_signals(self):
        if self.signals is None or self.passed_on:
            return
        self.pass_on_own()
        if not self.passed_on and self.stop_number():
            self.passed_on = True
            os.kill(os.getpid(), self.stop)

    def pass_on_own(self):
        """Tell the others of a signal that this process got."""
        try:
            came = [number for number in os.read(self.signals, 64) if number in SIGNALS]
        except BlockingIOError:
            return
        if came and not self.passed_on and self.store is not None:
            self.passed_on, self.stop = True, came[0]
            self.store.set("stop", str(int(came[0])))

    def give_up(self, waited):
        """End the process, and name whom it waited for: those that do not wait themselves, or fell silent."""
        states = self.states()
        stuck = {r: s for r, s in states.items() if r != self.rank and (s["silent"] > self.silent or not s["waits"])}
        if self.store.add("told", 1) == 1:
            lines = [
                f"process {rank} (pid {s['pid']} on {s['host']}), in {s['what']} for "
                f"{s['seconds'] + s['silent']:.0f} s" + (", gives no sign of life" if s["silent"] > self.silent else "")
                for rank, s in stuck.items()
            ] or ["none of them is known to be stuck: all wait"]
            with suppress(OSError):
                print(
                    f"error: process {self.rank} waited {waited:.0f} s (--dist-timeout {self.timeout:g}) in "
                    f"{self.what} for {'; '.join(lines)}. --resume auto goes on from the last checkpoint",
                    file=sys.stderr,
                    flush=True,
                )
        os._exit(1)

    def leave_without_launcher(self):
        os.kill(os.getpid(), signal.SIGTERM)
        with suppress(OSError):  # who read that may have ended as well
            print(f"process {self.rank}: its launcher has ended; it saves and leaves", file=sys.stderr, flush=True)
        if not self.over.wait(GRACE):
            os._exit(128 + signal.SIGTERM)
