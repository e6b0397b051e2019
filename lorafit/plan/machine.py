"""What a plan is made for: this machine, found without torch, or one that the user describes."""

import importlib.util
import os
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

from lorafit.errors import UserError
from lorafit.processor import processor_name
from lorafit.recipe.auto import Device

GIB = 2**30
_SMI_S = 5.0
_BFLOAT16_FROM = 8.0  # compute capability

# Memory that GPUs are sold with, in GiB, and an example of each.
SIZES = ((8, "RTX 4060"), (12, "RTX 4070"), (16, "RTX 4080, T4"), (24, "RTX 4090, A10, L4"),
         (32, "RTX 5090, V100"), (48, "L40S, A6000"), (80, "A100, H100"), (141, "H200"),
         (180, "B200"))


@dataclass(frozen=True)
class Machine:
    """devices: how many alike. memory_bytes: of each. is_here: whether it is this machine.
    threads: that a CPU computes with. processor: what a CPU calls itself."""

    device: Device
    devices: int
    memory_bytes: int
    is_here: bool
    threads: int = 1
    processor: str = ""

    def __str__(self) -> str:
        count = f"{self.devices} × " if self.devices > 1 else ""
        return f"{count}{self.device.name} with {self.memory_bytes / GIB:,.1f} GiB"


def this_machine() -> Machine:
    """Its GPUs, as its driver names them, or its CPU. LORAFIT_DEVICE chooses, as in training."""
    wanted = os.environ.get("LORAFIT_DEVICE")
    gpus = _gpus() if wanted in (None, "cuda") else []
    if gpus:
        name, memory_bytes, capability = gpus[0]
        return Machine(_gpu(name, memory_bytes, capability >= _BFLOAT16_FROM), len(gpus),
                       memory_bytes, True)
    has_tiles = _has_tiles()
    cpu = Device("cpu", "this CPU (AMX)" if has_tiles else "this CPU", has_bfloat16=has_tiles)
    return Machine(cpu, 1, _main_memory_bytes(), True, usable_threads(),
                   processor_name())


def described(memory: str, devices: int, name: str = "GPU") -> Machine:
    """GPUs with so much memory (`24GB`, `24GiB` or `24`), which compute in bfloat16. name: as their
    maker has it. UserError for what is no size."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(GiB|GB|G|)", memory.strip(), re.IGNORECASE)
    if match is None or float(match[1]) <= 0:
        raise UserError(f"{memory!r} is no size", "--gpu-memory", "write it as 24GB or 22.5GiB")
    unit = 10**9 if match[2].lower() == "gb" else GIB
    size = int(float(match[1]) * unit)
    return Machine(_gpu(name, size, True), devices, size, False)


def _gpu(name: str, memory_bytes: int, has_bfloat16: bool) -> Device:
    return Device("cuda", name, has_bfloat16=has_bfloat16,
                  has_flash_attention=importlib.util.find_spec("flash_attn") is not None,
                  memory_bytes=memory_bytes)


def _gpus() -> list[tuple[str, int, float]]:
    """Name, memory in bytes and compute capability of the GPUs that processes see."""
    try:
        done = subprocess.run(
            ["nvidia-smi", "--query-gpu=name,memory.total,compute_cap",
             "--format=csv,noheader,nounits"],
            capture_output=True, text=True, timeout=_SMI_S, check=True)
    except (OSError, subprocess.SubprocessError):
        return []
    found = []
    for line in done.stdout.splitlines():
        name, memory_mib, capability = (word.strip() for word in line.split(","))
        try:
            found.append((name, int(memory_mib) << 20, float(capability)))
        except ValueError:  # a GPU cut into parts shows no memory of its own
            continue
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return found
    return found[:len([word for word in visible.split(",") if word.strip() not in ("", "-1")])]


def _has_tiles() -> bool:
    """Whether a CPU multiplies bfloat16 in tiles, by the flags that Linux lists."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False
    flags = next((line for line in text.splitlines() if line.startswith("flags")), "").split()
    return "amx_tile" in flags and "amx_bf16" in flags


def _main_memory_bytes() -> int:
    """Of the machine, or of the control group that this process is in."""
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    try:
        limit = int(Path("/sys/fs/cgroup/memory.max").read_text(encoding="ascii"))
    except (OSError, ValueError):
        return total
    return min(total, limit)


def usable_threads() -> int:
    """Threads that torch takes: OMP_NUM_THREADS, or the cores that this process may use."""
    wanted = os.environ.get("OMP_NUM_THREADS", "")
    if wanted.isdecimal() and int(wanted) > 0:
        return int(wanted)
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
