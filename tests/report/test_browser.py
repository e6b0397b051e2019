"""The page in a real browser, where one is installed: no complaint, nothing asked for, no wider
than a phone, and its script works. Spoken to by the protocol of developer tools, over a pipe."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.report.test_report_page import write

_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable",
          "headless_shell")
_POINT = """(() => {
  const figure = document.querySelector('figure');
  figure.querySelector('.strip').dispatchEvent(new PointerEvent('pointermove', {bubbles: true}));
  return [document.documentElement.scrollWidth, figure.querySelector('output').textContent,
          getComputedStyle(document.body).backgroundColor];
})()"""


class Browser:
    """calls are answered in order; what happens meanwhile is in `events`."""

    def __init__(self, path: str, profile: Path) -> None:
        theirs, self._write = os.pipe()
        self._read, to_us = os.pipe()
        arguments = [path, "--headless", "--no-sandbox", "--disable-gpu", "--single-process",
                     "--no-zygote", "--disable-dev-shm-usage", "--remote-debugging-pipe",
                     f"--user-data-dir={profile}"]
        mover = ("import os, sys; theirs, to_us = map(int, sys.argv[1:3]); "
                 "low = [os.dup(each) for each in (theirs, to_us)]; "
                 "os.dup2(low[0], 3); os.dup2(low[1], 4); "
                 "os.set_inheritable(3, True); os.set_inheritable(4, True); "
                 "os.execv(sys.argv[3], sys.argv[3:])")
        self.process = subprocess.Popen(  # it reads from 3 and writes to 4
            [sys.executable, "-c", mover, str(theirs), str(to_us), *arguments],
            pass_fds=(theirs, to_us), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        os.close(theirs)
        os.close(to_us)
        self.events: list[dict[str, Any]] = []
        self._rest = b""
        self._number = 0
        self._session: dict[str, str] = {}

    def attach(self) -> None:
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        found = self.call("Target.attachToTarget", targetId=target, flatten=True)
        self._session = {"sessionId": found["sessionId"]}
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters, **self._session}
        os.write(self._write, json.dumps(message).encode() + b"\0")
        while (answer := self._next()).get("id") != self._number:
            self.events.append(answer)
        assert "error" not in answer, answer
        return answer["result"]

    def wait_for(self, method: str) -> None:
        while not any(event["method"] == method for event in self.events):
            self.events.append(self._next())

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self._rest:
            block = os.read(self._read, 1 << 16)
            assert block, "the browser ended"
            self._rest += block
        message, _, self._rest = self._rest.partition(b"\0")
        return json.loads(message)


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Browser]:
    """LORAFIT_TEST_BROWSER names one that is not on the PATH."""
    path = os.environ.get("LORAFIT_TEST_BROWSER") or next(
        filter(None, map(shutil.which, _NAMES)), None)
    if path is None:
        pytest.skip("no Chromium is installed")
    started = Browser(path, tmp_path / "profile")
    try:
        started.attach()
        yield started
    finally:
        started.process.kill()
        started.process.wait()


@pytest.mark.timeout(120)
def test_the_page_has_no_error_asks_for_nothing_and_fits(
        two_runs: tuple[Path, Path], tmp_path: Path, browser: Browser) -> None:
    write(tmp_path, *two_runs)
    url = (tmp_path / "report.html").as_uri()
    backgrounds = set()
    for width, scheme in ((360, "light"), (1280, "dark")):
        browser.call("Emulation.setDeviceMetricsOverride", width=width, height=900,
                     deviceScaleFactor=1, mobile=False)
        browser.call("Emulation.setEmulatedMedia",
                     features=[{"name": "prefers-color-scheme", "value": scheme}])
        browser.events.clear()
        browser.call("Page.navigate", url=url)
        browser.wait_for("Page.loadEventFired")
        found = browser.call("Runtime.evaluate", expression=_POINT, returnByValue=True)
        page_width, said, background = found["result"]["value"]
        assert page_width <= width
        assert said.startswith("step 0: one: held-out ")
        backgrounds.add(background)
        kinds = [event["method"] for event in browser.events]
        assert not {"Runtime.consoleAPICalled", "Runtime.exceptionThrown", "Log.entryAdded"} & set(
            kinds), browser.events
        asked = [event["params"]["request"]["url"] for event in browser.events
                 if event["method"] == "Network.requestWillBeSent"]
        assert asked == [url]
    assert len(backgrounds) == 2
