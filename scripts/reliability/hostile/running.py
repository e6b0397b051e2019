"""The real command line in a process of its own, and what it did there."""

import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

REPOSITORY = Path(__file__).parents[3]
AUDIT = Path(__file__).parent / "audit"
TIME_S = 120.0


@dataclass(frozen=True)
class Seen:
    """code: the exit code, None when it had to be ended. events: lines of audit/sitecustomize."""

    code: int | None
    output: str
    error: str
    events: list[str] = field(default_factory=list)

    def of_kind(self, kind: str) -> list[str]:
        """What came after `socket`, `write`, `program` or `code`."""
        return [event.partition(" ")[2] for event in self.events if event.startswith(f"{kind} ")]

    def written_outside(self, *allowed: Path) -> list[str]:
        """Places that were written, but for those below `allowed` and the devices."""
        inside = (*map(str, allowed), "/dev/null", "/dev/shm", "/proc/self")
        return [place for place in self.of_kind("write")
                if not any(place == one or place.startswith(f"{one}/") for one in inside)]


def run_lorafit(arguments: list[str], folder: Path, audit: bool = True, *,
                artifact: Path | None = None, environment: dict[str, str] | None = None,
                time_s: float = TIME_S) -> Seen:
    """`lorafit ARGUMENTS` with `folder` as working directory.

    The cache and temporary files are in `folder`/.cache and `folder`/.tmp, so whatever is written
    elsewhere is seen. artifact: the directory whose code must not run.
    """
    temporary = folder / ".tmp"
    temporary.mkdir(exist_ok=True)
    log = Path(tempfile.mkstemp(prefix="audit-")[1])
    paths = [str(AUDIT), str(REPOSITORY)] if audit else [str(REPOSITORY)]
    given = {
        **os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1",
        "LORAFIT_DEVICE": "cpu", "LORAFIT_CACHE": str(folder / ".cache"), "HOME": str(folder),
        "TMPDIR": str(temporary), "HF_HOME": str(folder / ".cache" / "hub"),
        "PYTHONDONTWRITEBYTECODE": "1", "TORCHINDUCTOR_CACHE_DIR": str(temporary),
        "AUDIT_LOG": str(log), "AUDIT_ARTIFACT": str(artifact or "\1"), **(environment or {})}
    for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "LORAFIT_PINS"):
        if name not in (environment or {}):
            given.pop(name, None)
    try:
        done = subprocess.run([sys.executable, "-m", "lorafit", *arguments], cwd=folder, env=given,
                              capture_output=True, text=True, errors="replace", timeout=time_s,
                              stdin=subprocess.DEVNULL)
        code, output, error = done.returncode, done.stdout, done.stderr
    except subprocess.TimeoutExpired as late:
        code, output, error = None, str(late.stdout or ""), str(late.stderr or "")
    events = log.read_text(encoding="utf-8", errors="replace").splitlines()
    log.unlink()
    return Seen(code, output, error, events)
