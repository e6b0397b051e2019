"""Probes in a process of their own: what crashes there, or hangs, is a finding here.

One process answers one probe after the other, so that torch is imported once. When it dies, or does
not answer in time, that is said of the probe it was at, and the rest go to a new one.
"""

import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from types import TracebackType

from lorafit.doctor.finding import Finding, Section, Verdict

# The same import path as here, whatever `-m`, `-P` or a console script made of it.
_START = ("import json, sys; sys.path[:] = json.loads(sys.argv[1]); "
          "from lorafit.doctor.worker import serve; serve(int(sys.argv[2]))")


@dataclass(frozen=True)
class Probe:
    """Something that is tried. function: `module:name` of what yields findings. needs: probes
    without which there is no use in trying. limit_s: how long it may take."""

    name: str
    section: str
    function: str
    needs: tuple[str, ...] = ()
    limit_s: float = 30.0
    remedy: str = ""


class Died(Exception):
    """The process ended, or had to be ended; says how."""


class Worker:
    """A process that answers probes."""

    def __init__(self) -> None:
        environment = dict(os.environ)
        self._temporary: tempfile.TemporaryDirectory[str] | None = None
        with suppress(OSError):  # compilers leave caches in it; where there is none, so be it
            self._temporary = tempfile.TemporaryDirectory(
                prefix="lorafit-doctor-", ignore_cleanup_errors=True)
            environment["TMPDIR"] = self._temporary.name
        reading, writing = os.pipe()
        self._answers, self._buffer = reading, b""
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-c", _START, json.dumps(sys.path), str(writing)],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                pass_fds=(writing,), start_new_session=True, env=environment)
        finally:
            os.close(writing)
        self._said: deque[str] = deque(maxlen=20)
        self._listener = threading.Thread(target=self._listen, daemon=True)
        self._listener.start()

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        self._end()
        os.close(self._answers)
        if self._temporary is not None:
            self._temporary.cleanup()

    def ask(self, probe: Probe) -> tuple[list[Finding], str]:
        """The findings of a probe, and what came out: works, fails or absent. Raises Died."""
        assert self._process.stdin is not None
        found: list[Finding] = []
        self._said.clear()
        deadline = time.monotonic() + probe.limit_s
        try:
            self._process.stdin.write(json.dumps([probe.function, probe.section, probe.name,
                                                  probe.remedy]).encode() + b"\n")
            self._process.stdin.flush()
        except OSError:
            raise Died(self._how_it_ended()) from None
        while True:
            answer = json.loads(self._line(deadline, probe.limit_s))
            if "came_out" in answer:
                return found, answer["came_out"]
            found.append(Finding(**answer | {"verdict": Verdict(answer["verdict"])}))

    def _line(self, deadline: float, limit_s: float) -> bytes:
        while b"\n" not in self._buffer:
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([self._answers], [], [], left)[0]:
                raise Died(f"no answer in {limit_s:.0f} s")
            block = os.read(self._answers, 1 << 16)
            if not block:
                raise Died(self._how_it_ended())
            self._buffer += block
        line, _, self._buffer = self._buffer.partition(b"\n")
        return line

    def _how_it_ended(self) -> str:
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(5)
        self._listener.join(1)
        code = self._process.returncode
        if code is not None and code < 0:
            how = f"the process died of {signal.Signals(-code).name}"
        else:
            how = f"the process ended with code {code}"
        said = next((line for line in reversed(self._said) if line.strip()), "")
        return f"{how}: {said.strip()}" if said else how

    def _listen(self) -> None:
        """What libraries print belongs to nobody, unless they die of it."""
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._said.append(line.decode("utf-8", "replace"))

    def _end(self) -> None:
        with suppress(OSError):  # with whatever it started itself
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()


def isolated(probes: Sequence[Probe]) -> Iterator[Finding]:
    """The findings of all probes, in their order."""
    came_out: dict[str, str] = {}
    left = list(probes)
    while left:
        with Worker() as worker:
            while left:
                probe = left.pop(0)
                section = Section(probe.section)
                needed = {came_out.get(name): name for name in probe.needs}
                if "absent" in needed:
                    continue
                if "fails" in needed:
                    came_out[probe.name] = "fails"
                    yield section.note(probe.name, f"not tried: {needed['fails']} does not work")
                    continue
                try:
                    found, came_out[probe.name] = worker.ask(probe)
                except Died as how:
                    came_out[probe.name] = "fails"
                    yield section.problem(probe.name, str(how), probe.remedy)
                    break
                yield from found
