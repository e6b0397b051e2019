"""Faults at a chosen change to a run's files: the process is killed there, or the change fails.

Where a C compiler is found, faults.c is preloaded and sees every change, those made by safetensors
in Rust too, down to a part of a write. Elsewhere Python's audit events are what is seen: files
opened for writing, directories made, renames and removals.
"""

import ctypes
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SOURCE = Path(__file__).with_name("faults.c")
EVERY_KIND = "cowtsrmu"  # as faults.c names them


@dataclass(frozen=True)
class Fault:
    """What happens at the `at`-th change under a directory (0: never) whose kind is in `kinds`.

    error: errno that it fails with; 0 kills the process. lasting: what follows fails too.
    percent: of a write that happens before. trace: file to which every change is written.
    """

    under: str
    at: int = 0
    error: int = 0
    kinds: str = EVERY_KIND
    lasting: bool = False
    percent: int = 0
    trace: str = ""


@dataclass(frozen=True)
class Change:
    """One change to the files of a run, in the order of an uninterrupted run: the `at`-th."""

    at: int
    kind: str
    path: str


def read_trace(path: Path) -> list[Change]:
    lines = path.read_text(encoding="utf-8").splitlines()
    return [Change(number, line[0], line[2:]) for number, line in enumerate(lines, 1)]


def build(folder: Path) -> Path | None:
    """The library to preload; None where there is no compiler, or no Linux."""
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None or sys.platform != "linux":
        return None
    target = folder / "faults.so"
    made = subprocess.run([compiler, "-shared", "-fPIC", "-O1", str(SOURCE), "-o", str(target),
                           "-ldl"], capture_output=True, check=False)
    return target if made.returncode == 0 else None


def is_preloaded() -> bool:
    return hasattr(ctypes.CDLL(None), "faults_arm")


def arm(fault: Fault) -> None:
    """From now on, in this process."""
    trace = -1
    if fault.trace:
        trace = os.open(fault.trace, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    if is_preloaded():
        ctypes.CDLL(None).faults_arm(
            os.fsencode(fault.under), ctypes.c_long(fault.at), fault.error, fault.kinds.encode(),
            int(fault.lasting), fault.percent, trace)
    else:
        sys.addaudithook(_Audit(fault, trace))


class _Audit:
    """The same by Python's audit events."""

    KINDS = {"os.rename": "r", "os.mkdir": "m", "os.remove": "u", "os.rmdir": "u",  # noqa: RUF012
             "os.truncate": "t"}

    def __init__(self, fault: Fault, trace: int) -> None:
        self.fault, self.trace = fault, trace
        self.process, self.seen, self.broken = os.getpid(), 0, False

    def __call__(self, event: str, values: tuple[Any, ...]) -> None:
        if (event != "open" and event not in self.KINDS) or os.getpid() != self.process:
            return
        kind = self.KINDS.get(event, "")
        if event == "open":
            flags = values[2] or 0
            created = flags & (os.O_CREAT | os.O_TRUNC)
            kind = "c" if created else "o" if flags & (os.O_WRONLY | os.O_RDWR) else ""
        path = values[1] if event == "os.rename" else values[0]
        if not kind or not isinstance(path, str | bytes | os.PathLike):
            return
        name = os.path.abspath(os.fsdecode(path))
        if name != self.fault.under and not name.startswith(self.fault.under + "/"):
            return
        self.seen += 1
        if self.trace >= 0:
            os.write(self.trace, f"{kind} {name}\n".encode())
        fault = self.fault
        if not fault.at or self.seen < fault.at or kind not in fault.kinds:
            return
        if self.broken and not fault.lasting:
            return
        self.broken = True
        if fault.error == 0:
            os.kill(self.process, signal.SIGKILL)
        raise OSError(fault.error, os.strerror(fault.error), name)
