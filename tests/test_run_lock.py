"""Two processes never train in one directory, and one that was killed leaves no lock behind."""

import json
import os
import platform
import signal
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from lorafit import run_lock
from lorafit.errors import UserError
from lorafit.run_dir import RunDir, write_json
from lorafit.run_lock import Holder, RunLock, holder_of

HOLD = """
import sys, time
from pathlib import Path
from lorafit.run_dir import RunDir
from lorafit.run_lock import RunLock
with RunLock(RunDir(Path(sys.argv[1]))):
    print("held", flush=True)
    time.sleep(60)
"""


def another_process(run: RunDir) -> subprocess.Popen[str]:
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(run.path)], text=True,
                               stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def test_a_second_process_is_told_who_trains_there(tmp_path: Path) -> None:
    run = RunDir(tmp_path / "run")
    process = another_process(run)
    try:
        with pytest.raises(UserError, match=f"process {process.pid} of .* on "), RunLock(run):
            pass
    finally:
        process.kill()
        process.wait()


def test_a_killed_process_is_recognised_and_followed(tmp_path: Path) -> None:
    run = RunDir(tmp_path / "run")
    process = another_process(run)
    run.recipe.write_text("")  # a run that had begun
    process.send_signal(signal.SIGKILL)
    process.wait()
    with RunLock(run) as lock:
        assert lock.stale is not None
        assert lock.stale.pid == process.pid
        held = holder_of(run)
        assert held is not None
        assert held.pid == os.getpid()
    assert holder_of(run) is None
    with RunLock(run) as lock:
        assert lock.stale is None


def test_another_machine_that_still_touches_its_file_is_waited_for_and_refused(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file system that shares no locks: only the file and its time tell."""
    monkeypatch.setattr(run_lock, "BEAT_S", 0.2)
    run = RunDir(tmp_path)
    run.recipe.write_text("")
    elsewhere = replace(Holder.this(), host=f"not-{platform.node()}")
    write_json(run.running, asdict(elsewhere))
    touch = subprocess.Popen([sys.executable, "-c", "import os, sys, time\nwhile True:\n"
                              "    os.utime(sys.argv[1])\n    time.sleep(0.1)", run.running])
    try:
        time.sleep(0.3)
        with pytest.raises(UserError, match="not-"), RunLock(run):
            pass
    finally:
        touch.kill()
        touch.wait()
    with RunLock(run) as lock:  # it is touched no longer
        assert lock.stale == elsewhere


def test_a_lock_without_a_run_leaves_nothing(tmp_path: Path) -> None:
    with RunLock(RunDir(tmp_path / "new" / "run")):
        assert json.loads((tmp_path / "new" / "run" / "running.json").read_text())["pid"] == \
            os.getpid()
    assert list(tmp_path.iterdir()) == []
