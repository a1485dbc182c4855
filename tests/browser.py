"""A headless Chromium for tests of pages: open, click, press keys, read, photograph.

Speaks the DevTools protocol through a pipe (--remote-debugging-pipe): json messages that end with a zero byte.
"""

import base64
import json
import os
import select
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

import pytest

PROGRAM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
needs_browser = pytest.mark.skipif(
    PROGRAM is None, reason="chromium is not installed (a system package: apt install chromium); pages are not tried"
)
PATIENCE = 60  # seconds for one answer
KEYS = {
    "Enter": (13, "\r"),
    "Tab": (9, ""),
    "Escape": (27, ""),
    " ": (32, " "),
    "ArrowLeft": (37, ""),
    "ArrowUp": (38, ""),
    "ArrowRight": (39, ""),
    "ArrowDown": (40, ""),
    "Home": (36, ""),
    "End": (35, ""),
}
SHIFT = 8


class Browser:
    """One tab. errors: what the console complained of; fetched: addresses asked for, but for files and data:."""

    def __init__(self, width: int = 1200, height: int = 900):
        self.errors: list[str] = []
        self.fetched: list[str] = []
        self.count, self.received = 0, b""
        self.profile = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        read_by_it, self.to = os.pipe()
        self.source, written_by_it = os.pipe()
        flags = [
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--no-first-run",
            "--remote-debugging-pipe",
            "--disable-dev-shm-usage",
            "--disable-background-networking",
            f"--user-data-dir={self.profile.name}",
        ]
        # the browser reads descriptor 3 and writes descriptor 4
        wires = f'exec "$@" 3<&{read_by_it} 4>&{written_by_it}'
        self.process = subprocess.Popen(
            ["bash", "-c", wires, "wires", PROGRAM, *flags],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            pass_fds=(read_by_it, written_by_it),
        )
        os.close(read_by_it)
        os.close(written_by_it)
        self.session = None
        target = self.ask("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.ask("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.ask(f"{domain}.enable")
        self.resize(width, height)

    def __enter__(self) -> "Browser":
        return self

    def __exit__(self, *_) -> None:
        self.process.kill()
        self.process.wait()
        for descriptor in (self.to, self.source):
            os.close(descriptor)
        self.profile.cleanup()

    def ask(self, method: str, **parameters) -> dict:
        """Send a command, take in what comes until its answer does."""
        self.count += 1
        message = {"id": self.count, "method": method, "params": parameters}
        if self.session:
            message["sessionId"] = self.session
        os.write(self.to, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._receive()
            if answer.get("id") == self.count:
                assert "error" not in answer, f"{method}: {answer['error']}"
                return answer["result"]

    def _receive(self) -> dict:
        until = time.monotonic() + PATIENCE
        while b"\0" not in self.received:
            ready, _, _ = select.select([self.source], [], [], max(0, until - time.monotonic()))
            part = os.read(self.source, 2**20) if ready else b""
            assert part, "the browser does not answer"
            self.received += part
        line, _, self.received = self.received.partition(b"\0")
        message = json.loads(line)
        self._note(message.get("method"), message.get("params", {}))
        return message

    def _note(self, method: str | None, event: dict) -> None:
        if method == "Runtime.exceptionThrown":
            details = event["exceptionDetails"]
            self.errors.append(details.get("exception", {}).get("description", details["text"]))
        elif method == "Runtime.consoleAPICalled" and event["type"] in ("error", "warning", "assert"):
            self.errors.append(" ".join(str(value.get("value", value.get("description"))) for value in event["args"]))
        elif method == "Log.entryAdded" and event["entry"]["level"] in ("error", "warning"):
            self.errors.append(event["entry"]["text"])
        elif method == "Network.requestWillBeSent":
            url = event["request"]["url"]
            if not url.startswith(("data:", "file:", "about:")):
                self.fetched.append(url)
        elif method == "Page.loadEventFired":
            self.loaded = True

    def open(self, path: str | Path) -> None:
        self.loaded = False
        self.ask("Page.navigate", url=Path(path).resolve().as_uri())
        while not self.loaded:
            self._receive()

    def resize(self, width: int, height: int, mobile: bool = False) -> None:
        self.ask("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=mobile)

    def prefer(self, scheme: str) -> None:
        """scheme: dark or light."""
        self.ask("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])

    def run(self, expression: str):
        """The value of a JavaScript expression; of a promise what it comes to."""
        answer = self.ask("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def text(self, selector: str) -> str:
        return self.run(f"document.querySelector({json.dumps(selector)}).innerText")

    def click(self, selector: str) -> None:
        """A real click in the middle of the first such element, which is scrolled to."""
        x, y = self.run(f"""(() => {{
            const element = document.querySelector({json.dumps(selector)});
            element.scrollIntoView({{block: "center", behavior: "instant"}});
            const box = element.getBoundingClientRect();
            return [box.x + box.width / 2, box.y + box.height / 2];
        }})()""")
        for kind in ("mousePressed", "mouseReleased"):
            self.ask("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def press(self, key: str, shift: bool = False) -> None:
        """One of KEYS, or a character."""
        code, text = KEYS.get(key, (ord(key[0].upper()), key))
        common = {"key": key, "windowsVirtualKeyCode": code, "modifiers": SHIFT if shift else 0}
        self.ask("Input.dispatchKeyEvent", type="keyDown", **common, **({"text": text} if text else {}))
        self.ask("Input.dispatchKeyEvent", type="keyUp", **common)

    def focused(self) -> str:
        """The element that has the focus, as its opening tag."""
        return self.run("document.activeElement.cloneNode(false).outerHTML")

    def too_wide(self) -> bool:
        """Whether the page as a whole scrolls sideways."""
        return self.run("document.documentElement.scrollWidth > document.documentElement.clientWidth")

    def photograph(self, path: str | Path, whole: bool = False) -> None:
        """Writes a PNG of what is seen, or of the whole page."""
        image = self.ask("Page.captureScreenshot", format="png", captureBeyondViewport=whole)["data"]
        Path(path).write_bytes(base64.b64decode(image))
