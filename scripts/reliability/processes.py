"""Real processes, started in milliseconds: forks of one that has imported everything."""

import atexit
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from itertools import count
from pathlib import Path
from typing import Any

from reliability.faults import Fault, build
from reliability.inject import Injection

SCRIPTS = Path(__file__).parent.parent
ENVIRONMENT = {
    "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false",
    "LORAFIT_DEVICE": "cpu", "CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1",
}


class Process:
    """One that was started. number: the process's; code: its exit code, −N after signal N."""

    def __init__(self, forks: "Forks", id: int, output: Path, errors: Path) -> None:
        self._forks, self.id = forks, id
        self._signalled = threading.Event()
        self._output, self._errors = output, errors
        self._started, self._ended = threading.Event(), threading.Event()
        self.number = 0
        self.code: int | None = None
        self.started_s = self.ended_s = time.monotonic()

    def wait(self, timeout_s: float = 300.0) -> int:
        """The exit code. TimeoutError, and the process is killed, when it does not end."""
        if not self._ended.wait(timeout_s):
            self.send(signal.SIGKILL)
            raise TimeoutError(f"did not end within {timeout_s:.0f} s\n{self.said()[-2000:]}")
        assert self.code is not None
        return self.code

    def kill_after(self, seconds: float) -> None:
        """kill -9 after so long, unless it ends before."""
        if not self._ended.wait(seconds):
            self.send(signal.SIGKILL)
            self.wait(60)

    def is_running(self) -> bool:
        return not self._ended.is_set()

    def send(self, number: int) -> None:
        """A signal, sent when this returns; nothing where the process has ended."""
        self._signalled.clear()
        self._forks.ask(do="signal", id=self.id, process=self.number, signal=int(number))
        self._signalled.wait(10)

    @property
    def seconds(self) -> float:
        return self.ended_s - self.started_s

    def output(self) -> str:
        return self._output.read_text(encoding="utf-8", errors="replace")

    def errors(self) -> str:
        return self._errors.read_text(encoding="utf-8", errors="replace")

    def said(self) -> str:
        return self.output() + self.errors()

    def heard(self, answer: dict[str, Any]) -> None:
        if "process" in answer:
            self.number = answer["process"]
            self.started_s = time.monotonic()
            self._started.set()
        elif "signalled" in answer:
            self._signalled.set()
        else:
            self.code, self.ended_s = answer["code"], answer["ended_s"]
            self._ended.set()

    def wait_for_start(self) -> None:
        if not self._started.wait(120):
            raise TimeoutError("the fork server does not answer")


class Forks:
    """The server and its connection. Threads may use it together."""

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory()
        library = build(Path(self._folder.name))
        self.sees_every_change = library is not None
        ours, theirs = socket.socketpair()
        environment = {**os.environ, **ENVIRONMENT, "PYTHONPATH": os.pathsep.join(
            [str(SCRIPTS), str(SCRIPTS.parent), os.environ.get("PYTHONPATH", "")]).rstrip(":")}
        if library is not None:
            environment["LD_PRELOAD"] = str(library)
        self._server = subprocess.Popen(
            [sys.executable, "-m", "reliability.forkserver", str(theirs.fileno())],
            pass_fds=[theirs.fileno()], env=environment, stdin=subprocess.DEVNULL)
        theirs.close()
        self._connection = ours
        self._lock = threading.Lock()
        self._numbers = count()
        self._processes: dict[int, Process] = {}
        threading.Thread(target=self._listen, daemon=True).start()

    def start(self, command: Sequence[str], folder: Path, name: str, *,
              environment: dict[str, str] | None = None, fault: Fault | None = None,
              injection: Injection | None = None, ranks: int = 0) -> Process:
        """Run `lorafit …` or `trainer …`. What it says is kept in FOLDER/NAME.out and .err.

        ranks: how many the command starts by torch's launcher; they are forks too.
        """
        output, errors = folder / f"{name}.out", folder / f"{name}.err"
        output.touch()
        errors.touch()
        number = next(self._numbers)
        process = Process(self, number, output, errors)
        self._processes[number] = process
        self.ask(do="start", id=number, command=list(command), folder=str(folder),
                 output=str(output), errors=str(errors), environment=environment or {},
                 fault=None if fault is None else asdict(fault),
                 injection=None if injection is None else asdict(injection), ranks=ranks)
        process.wait_for_start()
        return process

    def ask(self, **request: Any) -> None:
        with self._lock:
            self._connection.sendall(json.dumps(request).encode() + b"\n")

    def close(self) -> None:
        self._connection.shutdown(socket.SHUT_RDWR)
        self._server.wait(30)
        self._folder.cleanup()

    def _listen(self) -> None:
        with self._connection.makefile("r", encoding="utf-8") as lines:
            for line in lines:
                answer = json.loads(line)
                self._processes[answer["id"]].heard(answer)


_forks: Forks | None = None
_lock = threading.Lock()


def forks() -> Forks:
    """The one of this program, started when it is first asked for."""
    global _forks
    with _lock:
        if _forks is None:
            _forks = Forks()
            atexit.register(close)
        return _forks


def ranks_by_hand(command: Sequence[str], folder: Path, ranks: int, a_machine: int) -> \
        list[Process]:
    """Ranks that no launcher of lorafit's starts, as so many on each machine would be."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    return [forks().start(command, folder, f"rank-{rank}", environment={
        "RANK": str(rank), "WORLD_SIZE": str(ranks), "LOCAL_RANK": str(rank % a_machine),
        "LOCAL_WORLD_SIZE": str(a_machine), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port,
    }) for rank in range(ranks)]


def close() -> None:
    """End the server, if there is one, and all that it has started."""
    global _forks
    with _lock:
        if _forks is not None:
            _forks.close()
            _forks = None


def alive(numbers: Sequence[int]) -> list[int]:
    """Those processes that still run; one that is dead and not yet collected does not."""
    return [number for number in numbers if _state(number) not in ("", "Z", "X")]


def wait_until(happens: Callable[[], bool], timeout_s: float) -> bool:
    """Whether it happened in time; asked every few milliseconds."""
    deadline = time.monotonic() + timeout_s
    while not happens():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.003)
    return True


def session(number: int) -> list[int]:
    """The processes of the session that a started process began (Linux), itself included."""
    found = []
    for entry in Path("/proc").iterdir():
        fields = _stat(int(entry.name)) if entry.name.isdigit() else []
        if len(fields) > 3 and int(fields[3]) == number and fields[0] not in ("Z", "X"):
            found.append(int(entry.name))
    return found


def children(number: int) -> list[int]:
    """Child processes (Linux)."""
    try:
        text = Path(f"/proc/{number}/task/{number}/children").read_text()
    except OSError:
        return []
    return [int(word) for word in text.split()]


def _state(number: int) -> str:
    fields = _stat(number)
    return fields[0] if fields else ""


def _stat(number: int) -> list[str]:
    """State, parent, group, session … of a process; nothing where there is none."""
    try:
        return Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []
