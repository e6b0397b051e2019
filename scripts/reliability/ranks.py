"""Ranks without the seconds of importing: what torch's launcher starts are forks that wait already.

A launcher starts `python -m lorafit …` for each rank. Here it gets a child of its own that was
forked before (while no thread ran) and now takes on the rank's environment and runs the same
command: as real a process, with its own session, to be killed and collected like any other.
"""

import json
import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from typing import Any


def prepare(count: int, main: Callable[[], None]) -> None:
    """Fork `count` processes that wait, and let the launcher of this process start those."""
    from torch.distributed.elastic.multiprocessing.subprocess_handler import subprocess_handler

    waiting: list[_Rank] = []
    for _ in range(count):
        waiting.append(_Rank(main, others=waiting))

    def start(args: Sequence[str], env: dict[str, str], **how: Any) -> Any:
        rank = waiting.pop(0)
        rank.begin(args, env)
        return rank

    subprocess_handler.Popen = start


class _Rank:
    """The part of subprocess.Popen that torch's launcher uses."""

    def __init__(self, main: Callable[[], None], others: Sequence["_Rank"]) -> None:
        reading, self._writing = os.pipe()
        self.returncode: int | None = None
        self.pid = os.fork()
        if self.pid == 0:
            for rank in (self, *others):  # a pipe ends when nobody holds its end
                os.close(rank._writing)
            _wait_and_run(reading, main)
        os.close(reading)

    def begin(self, args: Sequence[str], env: dict[str, str]) -> None:
        os.write(self._writing, json.dumps([list(args), env]).encode())
        os.close(self._writing)

    def poll(self) -> int | None:
        if self.returncode is None:
            process, status = os.waitpid(self.pid, os.WNOHANG)
            if process:
                self.returncode = os.waitstatus_to_exitcode(status)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        started = time.monotonic()
        while (code := self.poll()) is None:
            if timeout is not None and time.monotonic() - started > timeout:
                raise subprocess.TimeoutExpired("rank", timeout)
            time.sleep(0.01)
        return code

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)


def _wait_and_run(reading: int, main: Callable[[], None]) -> None:
    code = 1
    try:
        with os.fdopen(reading, "rb") as pipe:
            given = pipe.read()
        if not given:  # the launcher ended without starting ranks
            os._exit(0)
        args, environment = json.loads(given)
        os.setsid()
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        os.environ.clear()
        os.environ.update(environment)
        sys.argv = ["lorafit", *args[args.index("lorafit") + 1:]]
        main()
        code = 0
    except SystemExit as leaving:
        code = leaving.code if isinstance(leaving.code, int) else int(leaving.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
