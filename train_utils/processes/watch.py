"""A thread beside each of several processes: it notices what a process cannot notice while it waits for the others.

The thread passes on a signal to one process, names the process that the others wait for in vain, and ends a process
whose launcher has died. The threads communicate through the store of torch.distributed.

Keys of the store, under a prefix for each start: `stop` (number of the signal that one process got), `state/RANK`
(what that process does), `named` (set by the first that names a stuck process).
"""

import json
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import torch.distributed as dist

# requests to stop; SIGHUP: the terminal was closed (Windows has none)
SIGNALS = (signal.SIGTERM, signal.SIGINT, *((signal.SIGHUP,) if hasattr(signal, "SIGHUP") else ()))
INTERVAL = 0.3  # seconds between two looks
SILENT = 5.0  # seconds without a sign of life: a process that was stopped or has died
GRACE = 60.0  # seconds that a process has to save when its launcher has died


class Watch(threading.Thread):
    """Watches over one process; a daemon thread, started by `start`.

    store: used only under `lock`; timeout: seconds that the process may wait for the others; launcher: pid of the
    parent that must live, or None; advice: what helps when the others are waited for in vain. If the store's host
    neither answers nor closes the connection (a machine that lost its power), this thread hangs for good; the process
    therefore waits for `lock` only `silent` seconds.
    """

    def __init__(
        self, rank: int, size: int, store: dist.Store, timeout: float, launcher: int | None = None, advice: str = ""
    ) -> None:
        super().__init__(name="watch", daemon=True)
        self.rank, self.size, self.store, self.timeout, self.launcher = rank, size, store, timeout, launcher
        self.advice = advice
        self.silent = min(SILENT, timeout / 2)
        self.what, self.waits, self.since = "start", False, time.monotonic()
        self.stop, self.passed_on = None, False  # the signal to one of the processes
        self.beats, self.heard = 0, {}  # rank -> (its last beat, when that was heard, its state)
        self.over = threading.Event()
        self.lock, self.signals, self.writing = threading.RLock(), None, None  # ends of a pipe that signals write to

    # --- called by the process ---

    def phase(self, what: str, waits: bool = False) -> None:
        """Notes what the process does now; waits: it needs the other processes to go on."""
        # `waits` is set last: the thread never sees it together with the time of an earlier phase
        self.what, self.since, self.waits = what, time.monotonic(), waits

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Notes for the block that the process waits for the others."""
        before = self.what
        self.phase(before, waits=True)
        try:
            yield
        finally:
            self.phase(before)

    def listen(self) -> None:
        """Starts to notice signals, also while the process is deep in a call and Python's handlers must wait."""
        reading, self.writing = os.pipe()
        for end in (reading, self.writing):
            os.set_blocking(end, False)
        signal.set_wakeup_fd(self.writing, warn_on_full_buffer=False)
        self.signals = reading

    def ignore_signals(self) -> None:
        """Undoes `listen`; a signal that was not yet passed on is passed on now."""
        with self.locked() as mine:
            if self.signals is None:
                return
            signal.set_wakeup_fd(-1)
            if not mine:  # the thread may still read from the pipe
                return
            self.pass_on_now()
            reading, self.signals = self.signals, None
            for end in (reading, self.writing):
                os.close(end)

    def pass_on_now(self) -> None:
        """Sends a signal to this process to the others, without waiting for the thread's next look."""
        with self.locked() as mine, suppress(RuntimeError, OSError):  # the store may be gone already
            if mine and self.signals is not None:
                self.pass_on_own()

    def stop_number(self) -> int | None:
        """Looks up the signal that one of the processes got, if any."""
        with self.locked() as mine, suppress(RuntimeError, OSError):
            if mine and self.stop is None and self.store is not None and self.store.check(["stop"]):
                self.stop = int(self.store.get("stop"))
        return self.stop

    @contextmanager
    def locked(self) -> Iterator[bool]:
        """Holds the lock for the block; yields False where the thread does not release it in `silent` seconds."""
        mine = self.lock.acquire(timeout=self.silent)
        try:
            yield mine
        finally:
            if mine:
                self.lock.release()

    def close(self) -> None:
        """Ends the thread."""
        self.over.set()
        self.join(self.silent)

    def states(self) -> dict[int, dict]:
        """Fetches the last state of each rank that has one; "silent": seconds since its last beat was first seen."""
        now = time.monotonic()
        for rank in range(self.size):
            key = f"state/{rank}"
            if self.store.check([key]):
                state = json.loads(self.store.get(key))
                if self.heard.get(rank, (None,))[0] != state["beat"]:
                    self.heard[rank] = (state["beat"], now, state)
        return {rank: {**state, "silent": now - heard} for rank, (_, heard, state) in self.heard.items()}

    # --- the thread ---

    def run(self) -> None:
        """Looks around every INTERVAL seconds until `close`, or until store and launcher are gone."""
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

    def look(self) -> None:
        """Passes signals on, says that the process lives, and ends it where it waits in vain."""
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
            self.states()  # a process shows that it is silent only after some looks
        if waited > self.timeout:
            self.give_up(waited)
        elif self.stop and waited > self.silent and any(s["silent"] > self.silent for s in self.states().values()):
            os._exit(128 + self.stop)  # it waits in vain for a GPU's collective, which no signal ends

    def pass_on_signals(self) -> None:
        """Sends a signal to this process to the others, and a signal to one of the others to this process."""
        if self.signals is None or self.passed_on:
            return
        self.pass_on_own()
        if not self.passed_on and self.stop_number():
            self.passed_on = True
            ignored = signal.getsignal(self.stop) == signal.SIG_IGN  # under nohup, as the other process is not
            os.kill(os.getpid(), signal.SIGTERM if ignored else self.stop)

    def pass_on_own(self) -> None:
        """Sends a signal to this process to the others."""
        try:
            came = [number for number in os.read(self.signals, 64) if number in SIGNALS]
        except BlockingIOError:
            return
        if came and not self.passed_on and self.store is not None:
            self.passed_on, self.stop = True, came[0]
            self.store.set("stop", str(int(came[0])))

    def give_up(self, waited: float) -> None:
        """Ends the process; names those it waited for: those that do not wait themselves, or fell silent."""
        states = self.states()
        stuck = {r: s for r, s in states.items() if r != self.rank and (s["silent"] > self.silent or not s["waits"])}
        if self.store.add("named", 1) == 1:
            lines = [
                f"process {rank} (pid {s['pid']} on {s['host']}), in {s['what']} for "
                f"{s['seconds'] + s['silent']:.0f} s" + (", gives no sign of life" if s["silent"] > self.silent else "")
                for rank, s in stuck.items()
            ] or ["none of them is known to be stuck: all wait"]
            with suppress(OSError):
                print(
                    f"error: process {self.rank} waited {waited:.0f} s (--dist-timeout {self.timeout:g}) in "
                    f"{self.what} for {'; '.join(lines)}. {self.advice}",
                    file=sys.stderr,
                    flush=True,
                )
        os._exit(1)

    def leave_without_launcher(self) -> None:
        """Ends the process by SIGTERM, so that it saves; after GRACE seconds at once."""
        os.kill(os.getpid(), signal.SIGTERM)
        with suppress(OSError):  # the reader of stderr may have ended as well
            print(f"process {self.rank}: its launcher has ended; it saves and leaves", file=sys.stderr, flush=True)
        if not self.over.wait(GRACE):
            os._exit(128 + signal.SIGTERM)
