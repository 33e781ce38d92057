"""A headless Chromium, driven over the pipe of its DevTools protocol: no library, no port.

`FALCON_CHROMIUM` names the program; without it the usual names are looked for.
"""

from __future__ import annotations

import base64
import json
import os
import select
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from tests.server_harness import PATIENCE

VARIABLE = "FALCON_CHROMIUM"
NAMES = ("chromium", "chromium-browser", "google-chrome-stable", "google-chrome")
KEYS = {
    "Enter": (13, "\r"),
    "Escape": (27, ""),
    "Tab": (9, ""),
    "Home": (36, ""),
    "ArrowRight": (39, ""),
    "ArrowLeft": (37, ""),
    " ": (32, " "),
}
SHIFT = 8
# Where to click on it: null while it moves from frame to frame, or something else would be hit.
PLACE = """async (selector) => {
  const it = document.querySelector(selector);
  const middle = () => {
    const box = it.getClientRects()[0];
    return [box.x + box.width / 2, box.y + box.height / 2];
  };
  it.scrollIntoView({ block: "nearest" });
  const before = middle();
  await new Promise((seen) => requestAnimationFrame(() => requestAnimationFrame(seen)));
  const [x, y] = middle();
  const isStill = x === before[0] && y === before[1];
  return isStill && it.contains(document.elementFromPoint(x, y)) ? [x, y] : null;
}"""
# Chromium reads what it is asked from descriptor 3, and answers on 4.
WITH_PIPES = """
import os, sys
asked, answered = (os.dup2(int(fd), 64 + number, False) for number, fd in enumerate(sys.argv[1:3]))
os.dup2(asked, 3)
os.dup2(answered, 4)
os.execvp(sys.argv[3], sys.argv[3:])
"""


def find_chromium() -> str | None:
    """The program to run, if there is one."""
    if named := os.environ.get(VARIABLE):
        return named
    return next(filter(None, map(shutil.which, NAMES)), None)


class Page:
    """One tab. Everything that it asked the network for or complained about is kept."""

    def __init__(self, connection: _Connection, session: str) -> None:
        self._connection = connection
        self._session = session
        self.requested: list[str] = []
        self.posted: list[str] = []
        self.complaints: list[str] = []
        connection.listeners[session] = self._hear
        for domain in ("Page", "Runtime", "Log"):
            self.call(f"{domain}.enable")
        self.call("Network.enable", maxPostDataSize=1 << 20)

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        return self._connection.call(method, params, self._session)

    def open(self, url: str) -> None:
        """Load an address anew; what was kept is forgotten."""
        for kept in (self.requested, self.posted, self.complaints):
            kept.clear()
        self.call("Page.navigate", url=url)
        self.wait("document.readyState === 'complete'")

    def run(self, script: str) -> Any:
        """The value of an expression, awaited. Raises what it throws."""
        answer = self.call(
            "Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True
        )
        if "exceptionDetails" in answer:
            raise RuntimeError(answer["exceptionDetails"]["exception"].get("description"))
        return answer["result"].get("value")

    def wait(self, claim: str, seconds: float = PATIENCE) -> None:
        """Until an expression is true."""
        deadline = time.monotonic() + seconds
        while not self.run(f"Boolean({claim})"):
            if time.monotonic() > deadline:
                raise AssertionError(f"it did not become true: {claim}\n{self.complaints}")
            time.sleep(0.02)

    def press(self, key: str, modifiers: int = 0) -> None:
        code, text = KEYS[key]
        event = {"key": key, "code": key, "windowsVirtualKeyCode": code, "modifiers": modifiers}
        self.call("Input.dispatchKeyEvent", type="keyDown", text=text, **event)
        self.call("Input.dispatchKeyEvent", type="keyUp", **event)

    def type(self, text: str) -> None:
        self.call("Input.insertText", text=text)

    def click(self, selector: str) -> None:
        """With the mouse, in the middle of it, once it lies still and nothing lies over it."""
        deadline = time.monotonic() + PATIENCE
        while (place := self.run(f"({PLACE})({json.dumps(selector)})")) is None:
            if time.monotonic() > deadline:
                raise AssertionError(f"it cannot be clicked: {selector}")
        x, y = place
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def emulate(self, **features: str) -> None:
        """Media features, `-` written as `_`: `prefers_color_scheme="dark"`."""
        named = [{"name": n.replace("_", "-"), "value": v} for n, v in features.items()]
        self.call("Emulation.setEmulatedMedia", features=named)

    def resize(self, width: int, height: int, scale: float = 1) -> None:
        size = {"width": width, "height": height, "deviceScaleFactor": scale, "mobile": width < 500}
        self.call("Emulation.setDeviceMetricsOverride", **size)

    def screenshot(self, file: Path) -> None:
        file.write_bytes(base64.b64decode(self.call("Page.captureScreenshot")["data"]))

    def _hear(self, method: str, params: dict[str, Any]) -> None:
        match method:
            case "Network.requestWillBeSent":
                self.requested.append(params["request"]["url"])
                if body := params["request"].get("postData"):
                    self.posted.append(body)
            case "Runtime.exceptionThrown":
                self.complaints.append(json.dumps(params["exceptionDetails"]))
            case "Runtime.consoleAPICalled":
                self.complaints.append(json.dumps(params["args"]))
            case "Log.entryAdded":
                self.complaints.append(f"{params['entry']['text']} {params['entry'].get('url')}")


class _Connection:
    """JSON messages, each with a NUL behind it, on two pipes."""

    def __init__(self, read: int, write: int) -> None:
        self._read, self._write = read, write
        self._rest = b""
        self._number = 0
        self.listeners: dict[str, Callable[[str, dict[str, Any]], None]] = {}

    def call(self, method: str, params: dict[str, Any], session: str = "") -> dict[str, Any]:
        self._number += 1
        message = {"id": self._number, "method": method, "params": params}
        if session:
            message["sessionId"] = session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._receive()
            if answer.get("id") == self._number:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']}")
                result: dict[str, Any] = answer["result"]
                return result
            if listener := self.listeners.get(answer.get("sessionId", "")):
                listener(answer["method"], answer["params"])

    def _receive(self) -> dict[str, Any]:
        while b"\0" not in self._rest:
            if not select.select([self._read], [], [], PATIENCE)[0]:
                raise TimeoutError("Chromium does not answer")
            if not (data := os.read(self._read, 1 << 16)):
                raise EOFError("Chromium is gone")
            self._rest += data
        message, self._rest = self._rest.split(b"\0", 1)
        answer: dict[str, Any] = json.loads(message)
        return answer


@contextmanager
def running_chromium(program: str, profile: Path) -> Iterator[Page]:
    """One tab of a browser with a profile of its own."""
    asked, ask = os.pipe()
    answers, answered = os.pipe()
    options = [
        "--headless=new",
        "--remote-debugging-pipe",
        f"--user-data-dir={profile}",
        "--no-first-run",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--disable-background-networking",
        "--disable-component-update",
        "--hide-scrollbars",
        *(["--no-sandbox"] if os.geteuid() == 0 else []),
    ]
    process = subprocess.Popen(
        [sys.executable, "-c", WITH_PIPES, str(asked), str(answered), program, *options],
        pass_fds=(asked, answered),
        stderr=subprocess.DEVNULL,
    )
    os.close(asked)
    os.close(answered)
    connection = _Connection(answers, ask)

    try:
        target = connection.call("Target.createTarget", {"url": "about:blank"})["targetId"]
        session = connection.call("Target.attachToTarget", {"targetId": target, "flatten": True})
        yield Page(connection, session["sessionId"])
    finally:
        with suppress(OSError, EOFError):  # it has gone already
            connection.call("Browser.close", {})  # killed, it would leave children that still write
        process.wait(PATIENCE)
        os.close(ask)
        os.close(answers)
