"""Headless Chromium through its own protocol, on a pair of pipes: no driver, no port, no library.

Each message is JSON and a NUL; `--remote-debugging-pipe` reads them from descriptor 3 and writes
to 4. The methods are those of https://chromedevtools.github.io/devtools-protocol.
"""

import base64
import fcntl
import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest


class Browser:
    """One page in a browser of its own. `console`: what it logged, and what was blocked or failed.
    Use it in a `with` statement."""

    def __init__(self, scratch: Path) -> None:
        program = shutil.which("chromium") or shutil.which("chromium-browser")
        if program is None:
            pytest.skip("needs chromium")
        self.console: list[str] = []
        self._asked: dict[str, str] = {}
        # The shell gives the pipes the numbers that the browser wants, so they must have others.
        commands, self.to = os.pipe()
        answers, written = os.pipe()
        ends = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 20) for fd in (commands, written)]
        os.close(commands)
        os.close(written)
        words = [program, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
        words += [
            "--no-first-run",
            f"--user-data-dir={scratch}/chromium",
            "--remote-debugging-pipe",
        ]
        script = f'exec "$@" 3<&{ends[0]} 4>&{ends[1]} {ends[0]}<&- {ends[1]}>&-'
        self.process = subprocess.Popen(
            ["timeout", "300", "bash", "-c", script, "sh", *words, "about:blank"],
            pass_fds=ends,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "HOME": str(scratch)},
        )
        for fd in ends:
            os.close(fd)
        self.answers = os.fdopen(answers, "rb")
        self.last, self.session, self.buffer = 0, "", b""
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        attached = self.call("Target.attachToTarget", targetId=target, flatten=True)
        self.session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def __enter__(self) -> "Browser":
        return self

    def __exit__(self, *args: object) -> None:
        os.close(self.to)  # the browser ends when its pipe does
        self.answers.close()
        self.process.wait(60)

    def requests(self) -> "list[str]":
        """Every address that was asked for; what the page contains itself is none."""
        self.call("Runtime.evaluate", expression="0")  # all that came before it has been noted
        return [address for address in self._asked.values() if not address.startswith("data:")]

    def call(self, method: str, **params: Any) -> "dict[str, Any]":
        """Call a method of the protocol; its result."""
        self.last += 1
        message = {"id": self.last, "method": method, "params": params}
        if self.session:
            message["sessionId"] = self.session
        os.write(self.to, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next()
            if answer.get("id") == self.last:
                assert "error" not in answer, answer
                return dict(answer["result"])
            self._note(answer)

    def _next(self) -> "dict[str, Any]":
        while b"\0" not in self.buffer:
            part = self.answers.read1()
            assert part, "chromium has ended"
            self.buffer += part
        line, _, self.buffer = self.buffer.partition(b"\0")
        return dict(json.loads(line))

    def _note(self, event: "dict[str, Any]") -> None:
        method, params = event.get("method"), event.get("params", {})
        if method == "Log.entryAdded":
            self.console.append(params["entry"]["text"])
        elif method == "Runtime.consoleAPICalled":
            self.console.append(str(params["args"]))
        elif method == "Runtime.exceptionThrown":
            self.console.append(str(params["exceptionDetails"]))
        elif method == "Page.javascriptDialogOpening":
            self.console.append(f"dialog: {params['message']}")
        elif method == "Network.requestWillBeSent":
            self._asked[params["requestId"]] = params["request"]["url"]
        elif method == "Network.loadingFailed" and params.get("blockedReason") == "csp":
            self._asked.pop(params["requestId"], None)  # it was never sent
        elif method == "Page.loadEventFired":
            self.is_loaded = True

    def open(self, file: Path, width: int = 1280, height: int = 800, scheme: str = "light") -> None:
        """Open a file at a size in CSS pixels, in the colour scheme `light` or `dark`."""
        is_phone = width < 600
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width, height=height, deviceScaleFactor=1, mobile=is_phone,
        )  # fmt: skip
        feature = {"name": "prefers-color-scheme", "value": scheme}
        self.call("Emulation.setEmulatedMedia", features=[feature])
        self.is_loaded = False
        self.call("Page.navigate", url=file.as_uri())
        while not self.is_loaded:
            self._note(self._next())

    def evaluate(self, expression: str) -> Any:
        """The value of a JavaScript expression, which may be a promise."""
        answer = self.call(
            "Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True
        )
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def press(self, key: str, code: int, modifiers: int = 0) -> None:
        """Press and release a key, by its name and its Windows key code."""
        text = {"text": "\r"} if key == "Enter" else {}
        for kind in ("keyDown", "keyUp"):
            self.call(
                "Input.dispatchKeyEvent",
                type=kind, key=key, code=key, windowsVirtualKeyCode=code, modifiers=modifiers,
                **text,
            )  # fmt: skip

    def screenshot(self, file: Path, is_whole: bool = True) -> None:
        """Save what the page looks like, all of it or what the window shows."""
        data = self.call("Page.captureScreenshot", captureBeyondViewport=is_whole)["data"]
        file.write_bytes(base64.b64decode(data))

    def pdf(self) -> bytes:
        """The page as it is printed."""
        return base64.b64decode(self.call("Page.printToPDF")["data"])
