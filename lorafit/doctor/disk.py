"""Disks that lorafit writes to: room, speed, and whether they keep what they promise.

Everything is tried in one temporary file that is removed again; directories are not made.
"""

import fcntl
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from lorafit.doctor.finding import Finding, Section, size

_WRITTEN_BYTES = 8 * 2**20
_LITTLE_BYTES = 5 * 2**30
_SLOW_BYTES_PER_S = 20 * 2**20
_OVER_A_NETWORK = ("nfs", "cifs", "smb", "fuse", "9p", "lustre", "ceph", "gluster", "beegfs",
                   "afs", "virtiofs")


@dataclass(frozen=True)
class Place:
    """Where something is written. find: the directory. is_needed: nothing works without it."""

    name: str
    what: str
    find: Callable[[], Path]
    is_needed: bool
    remedy: str


PLACES = (
    Place("current directory", "runs, unless output.dir says otherwise", Path.cwd, False,
          "set output.dir to a directory that can be written"),
    Place("lorafit's cache", "tokenised rows", lambda: _cache(), True,
          "set LORAFIT_CACHE to a directory that can be written"),
    Place("temporary files", "rows of a stream, a smoke test", lambda: _temporary(), True,
          "set TMPDIR to a directory that can be written"),
    Place("the hub's cache", "downloads", lambda: _hub_cache(), False,
          "set HF_HOME to a directory that can be written"),
)


def examine_disk() -> Iterator[Finding]:
    """What each place offers. Two places on one device are tried each, as rights may differ."""
    section = Section("disk")
    for place in PLACES:
        try:
            wanted = place.find()
            there = _nearest(wanted)
        except (OSError, RuntimeError) as error:
            yield section.problem(place.name, str(error), place.remedy)
            continue
        try:
            yield from _try(section, place, wanted, there)
        except OSError as error:
            judged = section.problem if place.is_needed else section.warning
            yield judged(place.name, f"{wanted} cannot be written: {error.strerror or error}",
                         place.remedy)


def _try(section: Section, place: Place, wanted: Path, there: Path) -> Iterator[Finding]:
    free = shutil.disk_usage(there).free
    kind = _file_system(there)
    with tempfile.NamedTemporaryFile(prefix=".lorafit-doctor-", dir=there) as file:
        block = os.urandom(1 << 20)  # what a disk that compresses cannot make small
        started = time.perf_counter()
        for _ in range(_WRITTEN_BYTES // len(block)):
            file.write(block)
        file.flush()
        os.fsync(file.fileno())
        rate = _WRITTEN_BYTES / max(time.perf_counter() - started, 1e-9)
        lock = _lock_trouble(Path(file.name))
        rename = _rename_trouble(Path(file.name))
    # Found, or not made yet: then the nearest directory above it.
    text = (f"{wanted}: {size(free)} free, {size(rate)}/s with fsync"
            + (f", {kind}" if kind else "") + ("" if wanted.exists() else ", not made yet"))
    if free < _LITTLE_BYTES:
        yield section.warning(place.name, f"{text}; little room for {place.what}",
                              f"make room, or {place.remedy}")
    elif rate < _SLOW_BYTES_PER_S:
        yield section.warning(place.name, f"{text}: slow; checkpoints wait for it", place.remedy)
    else:
        yield section.ok(place.name, text)
    if kind.startswith(_OVER_A_NETWORK):
        yield section.note(place.name, f"{kind}: other machines may see changes later, and locks "
                           "not at all")
    if lock:
        yield section.problem(place.name, lock, place.remedy)
    if rename:
        yield section.problem(place.name, rename, place.remedy)


def _lock_trouble(path: Path) -> str:
    """Whether a file that one has locked is locked for another. Descriptors of one process exclude
    each other as those of two do."""
    try:
        with path.open("rb") as one, path.open("rb") as other:
            fcntl.flock(one, fcntl.LOCK_EX | fcntl.LOCK_NB)
            try:
                fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return ""
            return "locks (flock) exclude nobody: two runs could share a directory"
    except OSError as error:
        return f"files cannot be locked (flock): {error.strerror or error}"


def _rename_trouble(target: Path) -> str:
    """Whether a rename replaces a file, in one step, and the directory can be synced."""
    descriptor, name = tempfile.mkstemp(prefix=".lorafit-doctor-", dir=target.parent)
    source = Path(name)
    try:
        os.write(descriptor, b"new")
        os.fsync(descriptor)
        with target.open("rb") as old:  # who has it open keeps the old one
            old_number = os.fstat(old.fileno()).st_ino
            source.replace(target)
            if target.read_bytes() != b"new" or os.fstat(old.fileno()).st_ino != old_number:
                return "a rename does not replace a file as a whole"
        folder = os.open(target.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except OSError as error:
        return f"a rename over a file fails: {error.strerror or error}"
    finally:
        os.close(descriptor)
        with suppress(OSError):
            source.unlink(missing_ok=True)
    return ""


def _nearest(path: Path) -> Path:
    """The path, or the nearest directory above it that exists."""
    found = next(place for place in (path, *path.absolute().parents) if place.exists())
    if not found.is_dir():
        raise NotADirectoryError(f"{found} is no directory")
    return found


def _cache() -> Path:
    from lorafit.cache_dir import cache_directory
    from lorafit.errors import MachineError

    try:
        return cache_directory()
    except MachineError as error:
        raise RuntimeError(str(error).splitlines()[0]) from None


def _temporary() -> Path:
    named = os.environ.get("TMPDIR")
    return Path(named) if named and Path(named).is_dir() else Path(tempfile.gettempdir())


def _hub_cache() -> Path:
    """As huggingface_hub looks for it."""
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"):
        if named := os.environ.get(name):
            return Path(named).expanduser()
    home = os.environ.get("HF_HOME") or os.path.join(
        os.environ.get("XDG_CACHE_HOME") or "~/.cache", "huggingface")
    return Path(home).expanduser() / "hub"


def _file_system(path: Path) -> str:
    """Its type, by the longest mount point that the path is below; empty where nobody tells."""
    try:
        mounts = Path("/proc/mounts").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return ""
    real, best, kind = str(path.resolve()), "", ""
    for line in mounts:
        fields = line.split(" ")
        point = fields[1].replace("\\040", " ")
        if (real == point or real.startswith(point.rstrip("/") + "/")) and len(point) >= len(best):
            best, kind = point, fields[2]
    return kind
