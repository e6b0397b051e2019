"""What the machine offers to a rank."""

import importlib.util
import os
from pathlib import Path

import torch

from lorafit.recipe.auto import Device


def find_device() -> tuple[torch.device, Device]:
    """The device of this process (by its local rank) and the facts that decisions rest on.

    The variable LORAFIT_DEVICE names another kind, `cpu` for instance.
    """
    wanted = os.environ.get("LORAFIT_DEVICE")
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    if wanted in (None, "cuda") and torch.cuda.is_available():
        index = local_rank % torch.cuda.device_count()
        torch.cuda.set_device(index)
        device = torch.device("cuda", index)
        return device, Device(
            "cuda", torch.cuda.get_device_name(index),
            has_bfloat16=torch.cuda.get_device_capability(index) >= (8, 0),
            has_flash_attention=importlib.util.find_spec("flash_attn") is not None,
            memory_bytes=torch.cuda.get_device_properties(index).total_memory,
        )
    if wanted in (None, "mps") and torch.backends.mps.is_available():
        return torch.device("mps"), Device("mps", "Apple GPU", has_bfloat16=False)
    # A CPU multiplies bfloat16 faster than float32 only with matrix tiles (AMX).
    has_tiles = bool(getattr(torch.cpu, "_is_amx_tile_supported", lambda: False)())
    name = "this CPU (AMX)" if has_tiles else "this CPU"
    return torch.device("cpu"), Device("cpu", name, has_bfloat16=has_tiles)


def device_memory_bytes(device: torch.device) -> int:
    """All memory of a device; a CPU's is the machine's."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def free_memory_bytes() -> int | None:
    """Main memory that processes can still have, also within a control group; None where the system
    does not tell (Linux does)."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    fields = {line.split(":")[0]: int(line.split()[1]) * 1024 for line in lines}
    free = fields.get("MemAvailable")
    try:
        group = Path("/sys/fs/cgroup")
        limit = int((group / "memory.max").read_text(encoding="ascii"))
        used = int((group / "memory.current").read_text(encoding="ascii"))
    except (OSError, ValueError):  # no control groups of this kind, or no limit
        return free
    return max(0, limit - used) if free is None else min(free, max(0, limit - used))


def gpu_count() -> int:
    """GPUs that training can be spread over; 0 where it runs on a CPU or another accelerator."""
    if os.environ.get("LORAFIT_DEVICE") not in (None, "cuda"):
        return 0
    return torch.cuda.device_count()
