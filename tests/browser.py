"""A headless Chromium, driven by its DevTools protocol over a pipe; no library needed."""

from __future__ import annotations

import base64
import json
import os
import select
import shutil
import subprocess
import time
from pathlib import Path

import pytest

from tests.samples import PATIENCE

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


class Browser:
    """One page, 900 x 900 pixels. https://chromedevtools.github.io/devtools-protocol/."""

    def __init__(self, profile: Path) -> None:
        found = next(filter(None, map(shutil.which, BROWSERS)), None)
        if found is None:
            pytest.skip("no Chromium; install one, such as Debian's: apt-get install chromium")
        theirs_in, self._out = os.pipe()
        self._in, theirs_out = os.pipe()
        usual = "--headless=new --no-sandbox --disable-gpu --remote-debugging-pipe"
        usual += " --window-size=900,900 --host-resolver-rules='MAP * ~NOTFOUND, EXCLUDE 127.0.0.1'"
        line = f"exec {found} {usual} --user-data-dir={profile} 3<&{theirs_in} 4>&{theirs_out}"
        self.process = subprocess.Popen(
            ["bash", "-c", line],
            pass_fds=(theirs_in, theirs_out),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(theirs_in)
        os.close(theirs_out)
        self._session: str | None = None
        self._n_asked, self._read, self.events = 0, b"", []
        target = self("Target.createTarget", url="about:blank")["targetId"]
        self._session = self("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network", "DOM"):
            self(f"{domain}.enable")

    def __call__(self, method: str, **parameters: object) -> dict:
        """The result of one command."""
        self._n_asked += 1
        message = {"id": self._n_asked, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._out, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._message()
            if answer.get("id") == self._n_asked:
                assert "error" not in answer, (method, answer)
                return answer["result"]
            self.events.append(answer)

    def _message(self) -> dict:
        while b"\0" not in self._read:
            assert select.select([self._in], [], [], PATIENCE)[0], "the browser does not answer"
            self._read += os.read(self._in, 1 << 20)
        first, _, self._read = self._read.partition(b"\0")
        return json.loads(first)

    def value(self, expression: str) -> object:
        """What an expression of JavaScript comes to."""
        result = self("Runtime.evaluate", expression=expression, returnByValue=True)["result"]
        return result.get("value")

    def wait(self, expression: str, seconds: float = PATIENCE) -> object:
        """Waits until an expression is true, and returns it."""
        deadline = time.monotonic() + seconds
        while not (found := self.value(expression)):
            assert time.monotonic() < deadline, f"{expression} stays {found!r}"
            time.sleep(0.05)
        return found

    def screenshot(self, file: Path) -> None:
        """Writes a PNG."""
        file.write_bytes(base64.b64decode(self("Page.captureScreenshot")["data"]))

    def complaints(self) -> list[str]:
        """What the console was told: refused loads, scripts, exceptions."""
        self.value("1")
        told = ("Log.entryAdded", "Runtime.exceptionThrown", "Runtime.consoleAPICalled")
        return [json.dumps(e["params"])[:400] for e in self.events if e.get("method") in told]

    def close(self) -> None:
        """Ends it."""
        self.process.kill()
        self.process.wait()
        os.close(self._in)
        os.close(self._out)
