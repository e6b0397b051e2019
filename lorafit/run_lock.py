"""One process at a time trains in a run directory.

The lock itself is the operating system's (flock, through filelock): it goes with the process that
holds it, however that ends, so there is nothing to clean up. Beside it `running.json` says who
holds it, for whoever is refused. File systems that are shared without sharing locks (some NFS
mounts) are why the holder also touches that file every few seconds: before it takes over from
another machine, a process watches whether the file is still being touched.
"""

import getpass
import json
import os
import platform
import sys
import threading
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from filelock import FileLock, Timeout

from lorafit.errors import MachineError, UserError
from lorafit.run_dir import RunDir, read_json, write_json

BEAT_S = 5.0
_WATCH_BEATS = 3
_ORPHANS_S = 10.0  # processes that a killed one had forked share its lock until they notice


@dataclass(frozen=True)
class Holder:
    """A process that trains. begun: seconds since 1970."""

    pid: int
    host: str
    user: str
    begun: float
    command: list[str]

    def __str__(self) -> str:
        begun = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(self.begun))
        return f"process {self.pid} of {self.user} on {self.host}, begun {begun}"

    @classmethod
    def this(cls) -> "Holder":
        try:
            user = getpass.getuser()
        except (KeyError, OSError):  # a container without a name for its user
            user = str(os.getuid()) if hasattr(os, "getuid") else "?"
        return cls(os.getpid(), platform.node(), user, time.time(), sys.argv)


class RunLock:
    """Holds a run's directory while it is used as a context.

    stale: who held it before and ended without letting go (killed, or the machine went down).
    UserError when another process trains in the directory, MachineError when the disk refuses.
    """

    def __init__(self, run: RunDir) -> None:
        self._run = run
        self._lock = FileLock(run.lock)
        self._over = threading.Event()
        self._made: list[Path] = []
        self.stale: Holder | None = None

    def __enter__(self) -> "RunLock":
        run = self._run
        self._made = [place for place in (run.path, *run.path.parents) if not place.exists()]
        try:
            run.path.mkdir(parents=True, exist_ok=True)
            self._lock.acquire(timeout=_ORPHANS_S if _is_dead(holder_of(run)) else 0)
        except Timeout:
            raise self._taken(holder_of(run)) from None
        except (OSError, NotImplementedError) as error:
            raise MachineError(f"{run.path}: cannot be locked: {error}\n    choose another "
                               "directory with --set output.dir=DIR") from None
        try:
            self.stale = holder_of(run)
            if self.stale is not None and self.stale.host != platform.node() \
                    and self._is_touched():
                raise self._taken(self.stale)
            write_json(run.running, asdict(Holder.this()))
        except BaseException:
            self._lock.release()
            raise
        threading.Thread(target=self._touch, daemon=True).start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        self._over.set()
        with suppress(OSError):
            self._run.running.unlink(missing_ok=True)
        if not self._run.holds_a_run():
            self._leave_nothing()
        self._lock.release()

    def _leave_nothing(self) -> None:
        """What was refused before a run began leaves no directory behind."""
        with suppress(OSError):
            if [path.name for path in self._run.path.iterdir()] == [self._run.lock.name]:
                self._run.lock.unlink()
                for place in self._made:
                    place.rmdir()

    def _taken(self, holder: Holder | None) -> UserError:
        return UserError(
            f"another process trains in this directory: {holder or 'it does not say who'}",
            str(self._run.path), "wait for it or stop it, or choose another directory with --set "
            "output.dir=DIR")

    def _touch(self) -> None:
        while not self._over.wait(BEAT_S):
            with suppress(OSError):
                os.utime(self._run.running)

    def _is_touched(self) -> bool:
        """Whether somebody still touches running.json. Changes are looked for, not times compared:
        clocks of machines differ."""
        before = self._time()
        deadline = time.monotonic() + _WATCH_BEATS * BEAT_S
        while time.monotonic() < deadline:
            time.sleep(BEAT_S / 5)
            if self._time() != before:
                return True
        return False

    def _time(self) -> float | None:
        with suppress(OSError):
            return self._run.running.stat().st_mtime
        return None


def _is_dead(holder: Holder | None) -> bool:
    """Whether the process was on this machine and is gone."""
    if holder is None or holder.host != platform.node():
        return False
    try:
        os.kill(holder.pid, 0)
    except ProcessLookupError:
        return True
    except OSError:  # it is somebody else's
        return False
    return False


def holder_of(run: RunDir) -> Holder | None:
    """Who says that it trains in the directory; None where nobody does, or it cannot be read."""
    try:
        values: dict[str, Any] = read_json(run.running)
        return Holder(**values)
    except (OSError, ValueError, TypeError, json.JSONDecodeError):
        return None
