"""Debian's headless Chromium, driven through the two pipes of its DevTools: no port, no driver, no package."""

from __future__ import annotations

import base64
import fcntl
import json
import os
import subprocess
import time
from contextlib import contextmanager, suppress
from pathlib import Path

SECONDS = 30.0  # that anything may take


class Browser:
    """One page, and every request that it made."""

    def __init__(self, to_browser: int, from_browser: int):
        self._out, self._in = os.fdopen(to_browser, "wb"), os.fdopen(from_browser, "rb")
        self._number, self._session, self._rest = 0, None, b""
        self.requests, self.said = [], []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.call(f"{domain}.enable")

    def call(self, method, **parameters):
        """Call a method of the DevTools, and return what it answers."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        self._out.write(json.dumps(message).encode() + b"\0")
        self._out.flush()
        while (found := self._next()).get("id") != self._number:
            self._note(found)
        assert "error" not in found, found["error"]
        return found["result"]

    def _next(self):
        while b"\0" not in self._rest:
            part = os.read(self._in.fileno(), 1 << 20)
            assert part, "Chromium has ended"
            self._rest += part
        line, _, self._rest = self._rest.partition(b"\0")
        return json.loads(line)

    def _note(self, event):
        parameters = event.get("params", {})
        if event.get("method") == "Network.requestWillBeSent":
            self.requests.append(parameters["request"]["url"])
        elif event.get("method") == "Runtime.exceptionThrown":
            self.said.append(str(parameters["exceptionDetails"]))
        elif event.get("method") == "Log.entryAdded":
            self.said.append(parameters["entry"]["text"])

    def open(self, path: Path, query: str = ""):
        """Open a local page, and wait until it is there."""
        self.call("Page.navigate", url=path.as_uri() + query)
        self.wait("document.readyState === 'complete' && location.protocol === 'file:'")

    def ask(self, expression):
        """Return what an expression is on the page, promises awaited."""
        found = self.call(
            "Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True, userGesture=True
        )
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def wait(self, expression):
        """Wait until an expression is true."""
        deadline = time.monotonic() + SECONDS
        while not self.ask(expression):
            assert time.monotonic() < deadline, f"never true: {expression}"
            time.sleep(0.05)

    def press(self, key, code=0, text=""):
        """Press and release a key."""
        for kind in ("keyDown", "keyUp"):
            more = {"text": text} if text and kind == "keyDown" else {}
            self.call("Input.dispatchKeyEvent", type=kind, key=key, windowsVirtualKeyCode=code, **more)

    def click(self, selector, number=0):
        """Click the middle of an element with the mouse."""
        self.ask(f"document.querySelectorAll('{selector}')[{number}].scrollIntoView({{block: 'center'}})")
        x, y = self.ask(
            f"(() => {{ const box = document.querySelectorAll('{selector}')[{number}].getBoundingClientRect();"
            " return [box.x + box.width / 2, box.y + box.height / 2]; })()"
        )
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def picture(self, path: Path, *, dark=False, width=900, height=900):
        """Take a picture of the page."""
        scheme = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        self.call("Emulation.setEmulatedMedia", features=scheme)
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot")["data"]))


def _high(number):
    """Return a file descriptor under a number that is in nobody's way."""
    moved = fcntl.fcntl(number, fcntl.F_DUPFD_CLOEXEC, 10)
    os.close(number)
    return moved


@contextmanager
def browser(program: str, profile: Path):
    """Run Chromium with a profile of its own."""
    for_browser, to_browser = map(_high, os.pipe())
    from_browser, by_browser = map(_high, os.pipe())
    command = [
        *(program, "--headless", "--no-sandbox", "--disable-gpu", "--mute-audio", "--disable-dev-shm-usage"),
        *("--remote-debugging-pipe", "--autoplay-policy=no-user-gesture-required", f"--user-data-dir={profile}"),
        *("--no-first-run", "--disable-background-networking", "--disable-component-update"),
    ]
    shell = f'exec "$@" 3<&{for_browser} 4>&{by_browser}'  # the numbers that the DevTools' pipes have
    process = subprocess.Popen(
        ["bash", "-c", shell, "bash", *command],
        pass_fds=(for_browser, by_browser),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    os.close(for_browser)
    os.close(by_browser)
    try:
        yield Browser(to_browser, from_browser)
    finally:
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(10)
        process.kill()
        process.wait()
