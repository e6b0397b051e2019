"""A case asked of the command line: a real process in a directory that holds nothing else."""

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

from reliability.malformed.case import RECIPE, Case, Outcome, lay_out

REPOSITORY = Path(__file__).parents[3]
TIMEOUT_S = 120


def ask(case: Case, verb: str, folder: Path) -> Outcome:
    """Run `lorafit VERB r.yaml …` on a case; `folder` is made, and removed again.

    Home, cache and the directory for temporary files are empty ones of this process, so that
    whatever it leaves anywhere is seen.
    """
    work, around = folder / "work", folder / "around"
    work.mkdir(parents=True)
    places = {"HOME": "home", "XDG_CACHE_HOME": "xdg", "LORAFIT_CACHE": "cache", "TMPDIR": "tmp",
              "HF_HOME": "hub"}
    for name in places.values():
        (around / name).mkdir(parents=True)
    lay_out(case, work)
    before = _everything_in(work)
    environment = {
        **os.environ, **{name: str(around / place) for name, place in places.items()},
        "PYTHONPATH": str(REPOSITORY), "PYTHONDONTWRITEBYTECODE": "1", "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1", "LORAFIT_DEVICE": "cpu",
    }
    command = [sys.executable, "-m", "lorafit", verb, RECIPE, *case.arguments]
    with (folder / "stdout").open("w+b") as out, (folder / "stderr").open("w+b") as err:
        started_s = time.perf_counter()
        process = subprocess.Popen(command, cwd=work, env=environment, stdin=subprocess.DEVNULL,
                                   stdout=out, stderr=err)
        code, cpu_s = _ended(process)
        seconds = time.perf_counter() - started_s
    said = [(folder / name).read_text(encoding="utf-8", errors="replace")
            for name in ("stdout", "stderr")]
    after = _everything_in(work)
    written = sorted(path for path in before.keys() | after.keys()
                     if before.get(path) != after.get(path))
    written += sorted(str(path.relative_to(around)) for path in around.rglob("*")
                      if path.is_file())
    shutil.rmtree(folder)
    return Outcome(code, said[0], said[1], seconds, cpu_s, written)


def _ended(process: subprocess.Popen[bytes]) -> tuple[int, float]:
    """Exit code and processor seconds of a process; it is killed after TIMEOUT_S."""
    until_s = time.monotonic() + TIMEOUT_S
    while True:
        pid, status, usage = os.wait4(process.pid, os.WNOHANG)
        if pid:
            process.returncode = os.waitstatus_to_exitcode(status)
            return process.returncode, usage.ru_utime + usage.ru_stime
        if time.monotonic() > until_s:
            process.kill()
        time.sleep(0.005)


def _everything_in(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Kind, time and content of everything below a directory."""
    found = {}
    for path in [folder, *folder.rglob("*")]:
        facts = path.lstat()
        content = path.read_bytes() if path.is_file() else b""
        found[str(path.relative_to(folder))] = (facts.st_mode ^ facts.st_mtime_ns, content)
    return found
