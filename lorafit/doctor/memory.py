"""Memory, cores, and the limits of this process."""

import os
import resource
from collections.abc import Iterator
from pathlib import Path

from lorafit.doctor.finding import Finding, Section, size
from lorafit.processor import processor_name

_FEW_FILES = 1024
_GROUP = Path("/sys/fs/cgroup")
_UNLIMITED = 1 << 60  # control groups of the first kind write a number near 2⁶³


def examine_memory() -> Iterator[Finding]:
    """Memory of the machine and the control group, swap, shared memory, limits, cores."""
    section = Section("memory and cores")
    fields = _meminfo()
    total = fields.get("MemTotal", os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    free = fields.get("MemAvailable")
    text = f"{size(total)}" + ("" if free is None else f", {size(free)} of it available")
    if free is not None and free < 2 * 2**30:
        yield section.warning("memory", text, "end other programs; a base of a billion parameters "
                              "takes 2 GiB in 16 bits")
    else:
        yield section.ok("memory", text)
    limit, used = _group_memory()
    if limit is not None and limit < total:
        yield section.note("control group", f"limits memory to {size(limit)}, {size(used)} in use: "
                           "a process above it is killed without a message")
    swap = fields.get("SwapTotal", 0)
    if swap:
        yield section.note("swap", f"{size(swap)}, {size(swap - fields.get('SwapFree', 0))} in use")
    yield from _shared_memory(section)
    yield from _limits(section)
    yield _cores(section)


def usable_cores() -> float:
    """Cores that this process may use at once, by its affinity and its control group."""
    cores: float = os.cpu_count() or 1
    if hasattr(os, "sched_getaffinity"):
        cores = min(cores, len(os.sched_getaffinity(0)))
    quota = _first_line(_GROUP / "cpu.max").split()
    if len(quota) == 2 and quota[0].isdecimal():
        cores = min(cores, int(quota[0]) / int(quota[1]))
    return max(cores, 0.01)


def _meminfo() -> dict[str, int]:
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        return {line.split(":")[0]: int(line.split()[1]) * 1024 for line in lines}
    except (OSError, ValueError, IndexError):
        return {}


def _group_memory() -> tuple[int | None, int]:
    for limit, used in ((_GROUP / "memory.max", _GROUP / "memory.current"),
                        (_GROUP / "memory/memory.limit_in_bytes",
                         _GROUP / "memory/memory.usage_in_bytes")):
        text = _first_line(limit)
        if text.isdecimal() and int(text) < _UNLIMITED:
            now = _first_line(used)
            return int(text), int(now) if now.isdecimal() else 0
    return None, 0


def _first_line(path: Path) -> str:
    try:
        return (path.read_text(encoding="ascii").splitlines() or [""])[0]
    except (OSError, ValueError):
        return ""


def _shared_memory(section: Section) -> Iterator[Finding]:
    try:
        there = os.statvfs("/dev/shm")
    except OSError:
        return
    all_bytes = there.f_blocks * there.f_frsize
    free_bytes = there.f_bavail * there.f_frsize
    text = f"{size(all_bytes)}, {size(free_bytes)} free in /dev/shm"
    if free_bytes < 64 * 2**20:
        yield section.warning("shared memory", text, "processes hand data over in it: give a "
                              "container more, for example docker run --shm-size=2g")
    else:
        yield section.ok("shared memory", text)


def _limits(section: Section) -> Iterator[Finding]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < _FEW_FILES:
        yield section.warning("open files", f"at most {soft}: a base of many files may not open",
                              f"ulimit -n {min(hard, 65536) if hard > 0 else 65536}")
    else:
        yield section.ok("open files", f"at most {soft}" if soft >= 0 else "no limit")
    for which, name, what, option in (
        (resource.RLIMIT_AS, "address space", "larger bases and GPUs need more", "-v"),
        (resource.RLIMIT_DATA, "data", "larger bases need more", "-d"),
        (resource.RLIMIT_FSIZE, "size of files", "a merged model or a checkpoint may be larger",
         "-f"),
        (resource.RLIMIT_CPU, "CPU time", "the process is killed after it", "-t"),
    ):
        limit = resource.getrlimit(which)[0]
        if limit != resource.RLIM_INFINITY:
            shown = f"{limit:,} s" if which == resource.RLIMIT_CPU else size(limit)
            yield section.warning(name, f"at most {shown}: {what}", f"ulimit {option} unlimited")


def _cores(section: Section) -> Finding:
    cores, there = usable_cores(), os.cpu_count() or 1
    load = os.getloadavg()[0]
    text = f"{cores:g} of {there} usable, load {load:.1f}, {processor_name()}"
    if load > 1.5 * there:
        return section.warning("cores", text, "other programs use them; training waits")
    return section.ok("cores", text)
