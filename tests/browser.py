"""Chromium without a window and without a network, for pages: opens files and what a server on this machine shows, runs
scripts in them, clicks and types, takes pictures.

It is driven over a pipe with the DevTools protocol, which needs nothing that Python does not bring along.
"""

import base64
import itertools
import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")

OPTIONS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars"),
    *("--no-first-run", "--disable-background-networking", "--disable-component-update"),
    *("--remote-debugging-pipe", "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"),
)


class BrowserError(Exception):
    """What the browser answers to a call that it cannot do."""


class Browser:
    """One page. `requests`: what it asked for besides itself; `complaints`: its errors and refused actions."""

    def __init__(self, to_browser: int, from_browser: IO[bytes]) -> None:
        self._out, self._in = to_browser, from_browser
        self._numbers = itertools.count(1)
        self._session: dict[str, str] = {}
        self.requests: list[str] = []
        self.complaints: list[str] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        attached = self.call("Target.attachToTarget", targetId=target, flatten=True)
        self._session = {"sessionId": attached["sessionId"]}
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: Any) -> Any:
        """Call the browser and wait for its answer."""
        number = next(self._numbers)
        message = {"id": number, "method": method, "params": parameters, **self._session}
        os.write(self._out, json.dumps(message).encode() + b"\0")
        while (answer := self._read()).get("id") != number:
            self._note(answer)
        if "error" in answer:
            raise BrowserError(answer["error"]["message"])
        return answer["result"]

    def open(self, page: Path | str, *, width: int = 1200, dark: bool = False, phone: bool = False) -> None:
        """Show a file or a URL; returns when its scripts have run."""
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=900,
            deviceScaleFactor=2 if phone else 1,
            mobile=phone,
        )
        self.call("Emulation.setTouchEmulationEnabled", enabled=phone)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])
        self.requests.clear()
        self.complaints.clear()
        self._go("Page.navigate", url=page.absolute().as_uri() if isinstance(page, Path) else page)

    def open_anew(self, url: str, *, kept: Mapping[str, str], **screen: Any) -> None:
        """As `open`, in a tab that has kept nothing but `kept` in its sessionStorage."""
        entries = json.dumps(dict(kept))
        script = f"sessionStorage.clear(); localStorage.clear(); Object.assign(sessionStorage, {entries});"
        added = self.call("Page.addScriptToEvaluateOnNewDocument", source=script)
        self.open(url, **screen)
        self.call("Page.removeScriptToEvaluateOnNewDocument", **added)

    def reload(self) -> None:
        """Show the page once more, as its reader does."""
        self._go("Page.reload")

    def _go(self, method: str, **parameters: Any) -> None:
        answer = self.call(method, **parameters)
        if method == "Page.navigate" and "loaderId" not in answer:
            return  # Only another #place of the same page.
        while (message := self._read()).get("method") != "Page.loadEventFired":
            self._note(message)

    def run(self, script: str) -> Any:
        """The value of an expression; a promise is waited for."""
        result = self.call("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in result, result["exceptionDetails"]
        return result["result"].get("value")

    def wait(self, condition: str, *, seconds: float = 20) -> None:
        """Until an expression is true."""
        until = time.monotonic() + seconds
        while not self._holds(condition):
            assert time.monotonic() < until, f"after {seconds} s still not: {condition}"
            time.sleep(0.02)

    def _holds(self, condition: str) -> bool:
        try:
            return bool(self.run(f"Boolean({condition})"))
        except BrowserError as error:  # On the way from one page to the next.
            if "navigated" not in str(error) and "context" not in str(error):
                raise
            return False

    def click(self, selector: str) -> None:
        """With the mouse, in the middle of the first element that can be seen; it must not be covered."""
        script = (
            f"(() => {{ const element = document.querySelector({json.dumps(selector)});"
            "element.scrollIntoView({block: 'nearest'}); const box = element.getBoundingClientRect();"
            "const [x, y] = [box.x + box.width / 2, box.y + box.height / 2];"
            "const top = document.elementFromPoint(x, y);"
            "return {x, y, hit: element === top || element.contains(top)} })()"
        )
        place = self.run(script)
        assert place.pop("hit"), f"{selector} is covered or not to be seen"
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, button="left", clickCount=1, **place)

    def type(self, text: str) -> None:
        """Into what has the focus."""
        self.call("Input.insertText", text=text)

    def press(self, key: str, *, shift: bool = False, ctrl: bool = False) -> None:
        """One key, down and up."""
        code = {"Enter": 13, "Escape": 27, "ArrowUp": 38, "ArrowDown": 40, "Tab": 9, "/": 191}[key]
        modifiers = (8 if shift else 0) | (2 if ctrl else 0)
        written = {"Enter": "\r", "/": "/"}.get(key)
        event = {"key": key, "windowsVirtualKeyCode": code, "modifiers": modifiers}
        if written and not ctrl:
            event["text"] = written
        self.call("Input.dispatchKeyEvent", type="keyDown" if "text" in event else "rawKeyDown", **event)
        self.call("Input.dispatchKeyEvent", type="keyUp", **event)

    def picture(self, path: Path) -> None:
        """The whole page as PNG."""
        shot = self.call("Page.captureScreenshot", captureBeyondViewport=True, format="png")
        path.write_bytes(base64.b64decode(shot["data"]))

    def pdf(self) -> bytes:
        """The page as it prints on A4."""
        printed = self.call("Page.printToPDF", paperWidth=8.27, paperHeight=11.69)
        return base64.b64decode(printed["data"])

    def _read(self) -> dict[str, Any]:
        message = bytearray()
        while (byte := self._in.read(1)) != b"\0":
            assert byte, "chromium has ended"
            message += byte
        return dict(json.loads(message))

    def _note(self, message: dict[str, Any]) -> None:
        parameters = message.get("params", {})
        match message.get("method"):
            case "Network.requestWillBeSent":
                self.requests.append(parameters["request"]["url"])
            case "Log.entryAdded":
                self.complaints.append(parameters["entry"]["text"])
            case "Runtime.exceptionThrown":
                self.complaints.append(str(parameters["exceptionDetails"]))


@contextmanager
def chromium(profile: Path) -> Iterator[Browser]:
    """A browser that keeps its files in `profile` and ends with the block."""
    assert CHROMIUM is not None
    to_browser, from_browser = os.pipe(), os.pipe()

    def give_pipes() -> None:  # The protocol's: it reads from 3 and writes to 4.
        reading, writing = os.dup(to_browser[0]), os.dup(from_browser[1])
        os.dup2(reading, 3)
        os.dup2(writing, 4)

    process = subprocess.Popen(
        [CHROMIUM, *OPTIONS, f"--user-data-dir={profile}"],
        preexec_fn=give_pipes,
        close_fds=False,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "HOME": str(profile)},
    )
    os.close(to_browser[0])
    os.close(from_browser[1])
    try:
        with os.fdopen(from_browser[0], "rb") as answers:
            yield Browser(to_browser[1], answers)
    finally:
        with suppress(OSError):
            os.close(to_browser[1])
        process.kill()
        process.wait()
