"""Two machines in one: network namespaces with a cable between them, and names of their own."""

import os
import shutil
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


@dataclass
class Machine:
    """A namespace. host: the name its processes find; nothing resolves it."""

    space: str
    host: str
    address: str
    processes: list[subprocess.Popen[str]] = field(default_factory=list)

    def start(self, *arguments: str, **environment: str) -> "Running":
        """`lorafit ARGUMENTS` on this machine, in a session of its own."""
        inside = f"hostname {self.host} && exec \"$@\""
        process = subprocess.Popen(
            ["ip", "netns", "exec", self.space, "unshare", "--uts", "sh", "-c", inside, "sh",
             sys.executable, "-m", "lorafit", *arguments], stdout=subprocess.PIPE,
            stderr=subprocess.PIPE, text=True, start_new_session=True,
            env={**ENVIRONMENT, **environment})
        self.processes.append(process)
        return Running(process)

    def vanish(self) -> None:
        """Kill all that runs here, at once. What a power cut leaves out: the kernel hangs up."""
        numbers = subprocess.run(["ip", "netns", "pids", self.space], capture_output=True,
                                 text=True, check=True).stdout.split()
        for number in numbers:
            with suppress(ProcessLookupError):
                os.kill(int(number), signal.SIGKILL)
        for process in self.processes:
            process.wait(10)

    def unplug(self) -> None:
        """Nothing comes or goes any more, and nobody is told."""
        _ip("-n", self.space, "link", "set", "cable", "down")


@dataclass
class Running:
    process: "subprocess.Popen[str]"

    def end(self, timeout_s: float = 240.0) -> tuple[int, str, str]:
        """Exit code, output and errors."""
        try:
            output, errors = self.process.communicate(timeout=timeout_s)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            output, errors = self.process.communicate()
            pytest.fail(f"did not end within {timeout_s:.0f} s:\n{output[-2000:]}{errors[-4000:]}")
        return self.process.returncode, output, errors


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True)


@pytest.fixture
def machines() -> Iterator[list[Machine]]:
    """Two machines with a cable between them, and no way out."""
    if shutil.which("ip") is None or shutil.which("unshare") is None:
        pytest.skip("there is no ip and unshare (iproute2, util-linux)")
    mark = uuid.uuid4().hex[:6]
    both = [Machine(f"lorafit-{mark}-{n}", f"node-{letter}", f"10.77.0.{n + 1}")
            for n, letter in enumerate("ab")]
    try:
        try:
            for machine in both:
                _ip("netns", "add", machine.space)
            _ip("link", "add", f"lf{mark}a", "type", "veth", "peer", "name", f"lf{mark}b")
            for machine, end in zip(both, "ab", strict=True):
                _ip("link", "set", f"lf{mark}{end}", "netns", machine.space)
                _ip("-n", machine.space, "link", "set", f"lf{mark}{end}", "name", "cable")
                _ip("-n", machine.space, "addr", "add", f"{machine.address}/24", "dev", "cable")
                for interface in ("lo", "cable"):
                    _ip("-n", machine.space, "link", "set", interface, "up")
        except subprocess.CalledProcessError as error:
            pytest.skip(f"network namespaces are not permitted here: {error.stderr.strip()}")
        yield both
    finally:
        for machine in both:
            with suppress(subprocess.CalledProcessError):
                machine.vanish()
            subprocess.run(["ip", "netns", "del", machine.space], capture_output=True, check=False)


@pytest.fixture
def wait_for() -> Callable[..., None]:
    return _wait_for


def _wait_for(happens: Callable[[], Any], what: str, timeout_s: float = 300.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not happens():
        assert time.monotonic() < deadline, f"{what} did not happen"
        time.sleep(0.02)


def steps_logged(run: Path) -> int:
    """How many steps a run has logged."""
    log = run / "metrics.jsonl"
    return log.read_text().count('"loss"') if log.exists() else 0


def said(errors: str) -> Sequence[str]:
    """The messages for a person among what was written to the standard error."""
    return [line for line in errors.splitlines() if line.startswith("error:")]
